//! How a history ends: faults stop, whoever lives must get what is published, then all go, and nothing
//! of them may stay.

use std::collections::BTreeSet;

use hailmary_client::lease::RETRY_MAX;
use hailmary_proto::flow::{Tracker, WINDOW};
use hailmary_proto::v1::Subscribe;

use super::super::bus::Bus;
use super::super::clock::{MS, Nanos, SECOND};
use super::super::law::{Kept, law};
use super::super::plan::Plan;
use super::super::publisher::PROBE;
use super::super::subscriber::{Life, Order};
use super::World;

/// The longest that leases and cookies of before may be in the way of those who live.
const CALM: Nanos = 45 * SECOND;

/// What a data thread may hold at the end to forward with, in bytes: its frames keep the room that they
/// took, up to the bus's own bound, and its routes that of some topics.
const STAYS_PER_DATA_THREAD: u64 = (1 << 20) + (16 << 10);

/// What a bus may hold at the end of what it knew, in bytes: tables that were fuller.
const STAYS_OF_TABLES: u64 = 64 << 10;

/// What a bus keeps of a sender, in bytes, till others speak: its flow, at each data thread.
const STAYS_PER_SENDER: u64 = 2 << 10;

/// The least time between two renewals: the shortest lease is renewed three times.
const RENEWAL_LEAST: Nanos = SECOND / 3;

impl World {
    /// No more faults: everybody lives, within the bounds that an operator gives.
    pub(super) fn calm_down(&mut self) -> Kept {
        self.is_rough = false;
        let way_max = self.faults.delay + self.faults.jitter;
        self.faults.stop();
        self.network.part(BTreeSet::new());
        for index in 0..self.stations.len() {
            self.stations[index].stopped_until = 0;
            // What a flood has left in buffers is read at once.
            self.stations[index].latency = 0;
            self.stations[index].stalled_until = 0;
            self.stations[index].host.send_fails = 0;
            self.stations[index].bus.host.send_fails = 0;
            let own = self.stations[index].own;
            let plan = Plan::open(&mut self.rng, own);
            self.reload(index, plan)?;
        }
        for index in 0..self.subscribers.len() {
            let subscriber = &mut self.subscribers[index];
            // Where an answer may come after the next request but one, an old one looks like one of a
            // new flow.
            subscriber.is_steady &= way_max + subscriber.read_after < RENEWAL_LEAST;
            subscriber.buffer_max = 1_000;
            subscriber.read_after = 0;
            if let Life::Stopped(_) = subscriber.life {
                subscriber.life = Life::Stopped(self.now);
                self.wake_subscriber(index);
            }
        }
        // What is to be refused may be asked for once more, and the answer take its time.
        self.run_until(self.now + RETRY_MAX.as_nanos() as u64 + 2 * SECOND)?;
        self.revive();
        self.run_until(self.now + CALM)
    }

    /// Others come in the place of those who have gone, or were refused for good.
    fn revive(&mut self) {
        for index in 0..self.subscribers.len() {
            let subscriber = &self.subscribers[index];
            if subscriber.life == Life::Dead || subscriber.is_refused() {
                self.subscribers[index].request = Subscribe {
                    topics: vec![">".to_owned()],
                    name: "again".to_owned(),
                    ..Subscribe::default()
                };
                let address = self.address();
                self.restart_subscriber(index, address);
            }
        }
    }

    /// Whoever lives gets what is published for it, once.
    pub(super) fn check_progress(&mut self) -> Kept {
        for subscriber in &self.subscribers {
            let oracle = &self.stations[subscriber.bus].oracle;
            let is_known = oracle.nonce(subscriber.address) == Some(subscriber.nonce);
            law!(
                subscriber.is_held() && is_known,
                "once faults stop, whoever asks has a lease",
                "{} is {:?}, and the bus knows {:?}",
                subscriber.address,
                subscriber.subscription.state(),
                oracle.nonce(subscriber.address)
            );
        }
        let mut probes = Vec::new();
        for index in 0..self.publishers.len() {
            let (from, to) = self.way_of(index);
            for (topic, name, datagram) in self.publishers[index].probe() {
                self.send(from, to, datagram);
                probes.push((self.publishers[index].bus, topic, name));
            }
            self.run_until(self.now + 200 * MS)?;
        }
        self.run_until(self.now + 2 * SECOND)?;
        for (bus, topic, name) in probes {
            debug_assert!(name.number & PROBE != 0);
            for subscriber in self.subscribers.iter().filter(|one| one.bus == bus) {
                let is_certain = self.stations[bus]
                    .oracle
                    .is_certain(subscriber.address, &topic);
                let came = subscriber.probes.get(&name).copied().unwrap_or(0);
                law!(
                    !is_certain || came == 1,
                    "once faults stop, whoever has a lease gets what it asked for",
                    "{topic} came {came} times to {}",
                    subscriber.address
                );
            }
        }
        Ok(())
    }

    /// The third law, for each hop whose flow nothing ended, and whose address nobody had before (what
    /// was on its way to them comes, too): sent = received + lost + dropped.
    pub(super) fn check_ledgers(&mut self) -> Kept {
        // Two renewals, whose stamps tell the rest, and what is awaited after that.
        self.run_until(self.now + 5 * SECOND + WINDOW.as_nanos() as u64)?;
        for subscriber in &self.subscribers {
            let counts = subscriber.subscription.counts();
            let oracle = &self.stations[subscriber.bus].oracle;
            let Some(member) = oracle.leased(subscriber.address) else {
                continue;
            };
            if !subscriber.is_steady
                || counts.lapses > 0
                || counts.bus_restarts > 0
                || oracle.flows(subscriber.address) != 1
                || self.summary.lied
            {
                continue;
            }
            let flow = counts.flow;
            let told = flow.received + flow.lost + flow.dropped + counts.awaited;
            law!(
                told == member.flow.events,
                "the third law: sent = received + lost + dropped, at the subscriber",
                "{flow:?} of {:?} at {}",
                member.flow,
                subscriber.address
            );
            law!(
                flow.dropped <= member.flow.dropped,
                "nothing counts as dropped by the bus that it did not drop",
                "{flow:?} of {:?}",
                member.flow
            );
        }
        self.check_publishers()
    }

    fn check_publishers(&self) -> Kept {
        for publisher in &self.publishers {
            let station = &self.stations[publisher.bus];
            if self.summary.lied || station.oracle.may_forget_senders() {
                continue;
            }
            let heard: Vec<_> = station.bus.trackers(publisher.sender).collect();
            let flows = heard.iter().map(|tracker| tracker.counts());
            let counted: u64 = flows.map(|flow| flow.received + flow.duplicates).sum();
            let arrived = station.oracle.arrived(publisher.sender);
            law!(
                counted == arrived.events,
                "the bus counts what arrives of a publisher",
                "{heard:?}, {arrived:?}"
            );
            let known = |tracker: &Tracker| {
                let flow = tracker.counts();
                flow.received + flow.lost + flow.dropped + tracker.awaited()
            };
            // Each data thread knows what came to it, and only over an orderly network is the first
            // frame that came the first one of those that did.
            let sent = publisher.sequence() - arrived.first;
            let is_right = match heard[..] {
                [one] if self.order == Order::Kept => known(one) == sent,
                _ => heard.iter().all(|one| known(one) <= publisher.sequence()),
            };
            law!(
                is_right,
                "the third law: sent = received + lost + dropped, at the bus",
                "{heard:?} of {sent}"
            );
        }
        Ok(())
    }

    /// All go, half of them without a word, and nothing of them stays.
    pub(super) fn check_the_end(&mut self) -> Kept {
        for index in 0..self.subscribers.len() {
            match index % 2 {
                0 => self.leave(index),
                _ => self.subscribers[index].life = Life::Dead,
            }
        }
        self.run_until(self.now + 21 * SECOND)?;
        for station in &mut self.stations {
            let left = station.bus.directory().subscribers().iter().count();
            law!(
                left == 0 && station.bus.next_end().is_none(),
                "when all have gone, nobody is left",
                "{left}, {:?}",
                station.bus.next_end()
            );
            law!(
                station.bus.poll_timeout().is_none(),
                "a bus without anybody sleeps",
                "{:?}",
                station.bus.poll_timeout()
            );
        }
        Ok(())
    }

    /// What a bus holds when all have gone, against what it held at its start.
    pub(super) fn check_memory(&mut self) -> Kept {
        for station in &mut self.stations {
            self.summary.add_bus(station);
            let start = || Bus::start(&station.plan, station.host, self.rng.clone());
            let first = start().end();
            let last = std::mem::replace(&mut station.bus, start()).end();
            let frames = STAYS_PER_DATA_THREAD * station.host.workers as u64;
            let tables = STAYS_OF_TABLES + STAYS_PER_SENDER * station.oracle.senders() as u64;
            law!(
                last.to_forward <= first.to_forward + frames
                    && last.to_know <= first.to_know + tables,
                "when all have gone, their memory is given back",
                "{last:?}, {first:?} at the start, and {frames} and {tables} may stay"
            );
        }
        Ok(())
    }

    /// So many times, everybody comes from a new address, gets events, and goes.
    pub(super) fn come_and_go(&mut self, rounds: u32) -> Kept {
        self.calm_down()?;
        for _ in 0..rounds {
            for index in 0..self.subscribers.len() {
                let address = self.address();
                self.restart_subscriber(index, address);
            }
            self.run_until(self.now + 3 * SECOND)?;
            // Always the same ones, so that no round takes more room than another.
            for index in 0..self.publishers.len() {
                let (from, to) = self.way_of(index);
                for (_, _, datagram) in self.publishers[index].probe() {
                    self.send(from, to, datagram);
                }
            }
            self.run_until(self.now + SECOND)?;
            self.check_the_end()?;
        }
        Ok(())
    }
}
