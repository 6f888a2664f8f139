//! What happens to somebody at one moment.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Frame, Subscribe};
use prost::Message;

use super::super::bus::RECEIVE_BYTES_MAX;
use super::super::clock::{MS, Nanos, SECOND};
use super::super::datagrams;
use super::super::faults::Mishap;
use super::super::law::Kept;
use super::super::plan::Plan;
use super::super::subscriber::Life;
use super::{Happening, World};

/// The age at which a bus makes another cookie key.
const COOKIE_KEY_AGE: Duration = Duration::from_secs(3_600);

/// Requests of a flood that come at once, and how long it is to the next ones: twice of what one host is
/// answered come within half a second.
const FLOOD_AT_ONCE: u64 = 32;
const FLOOD_EVERY: Nanos = 5 * MS;

impl World {
    pub(super) fn mishap(&mut self) -> Kept {
        if !self.is_rough {
            return Ok(());
        }
        let next = self.now + 1 + self.rng.below(self.faults.mishap_every);
        self.at(next, Happening::Mishap);
        if self.faults.mishaps.is_empty() {
            return Ok(());
        }
        let kind = *self.rng.pick(&self.faults.mishaps);
        self.summary.mishaps += 1;
        self.summary.seen.note(&kind.name(), 1);
        self.trace
            .note(self.now, &[3, kind as u64], || format!("{kind:?}"));
        let (bus, publisher, subscriber) = (
            self.rng.index(self.stations.len()),
            self.rng.index(self.publishers.len()),
            self.rng.index(self.subscribers.len()),
        );
        match kind {
            Mishap::Partition => self.partition(),
            Mishap::BusRestarts => self.restart_bus(bus),
            Mishap::BusStops => self.stop_bus(bus),
            Mishap::PublisherRestarts => self.publishers[publisher].restart(),
            Mishap::PublisherMoves => {
                let address = self.address();
                self.publishers[publisher].move_to(address);
            }
            Mishap::SubscriberRestarts => self.restart_somewhere(subscriber),
            Mishap::SubscriberDies => self.subscribers[subscriber].life = Life::Dead,
            Mishap::SubscriberMoves => self.move_subscriber(subscriber),
            Mishap::AddressTaken => self.take_address(subscriber),
            Mishap::SubscriberStops => self.stop_subscriber(subscriber),
            Mishap::SubscriberLeaves => self.leave(subscriber),
            Mishap::WallClockJumps => {
                let jump = self.rng.below(2_000 * SECOND) as i64 - 1_000 * SECOND as i64;
                self.stations[bus].clock.wall_off += jump;
                self.publishers[publisher].clock.wall_off -= jump;
            }
            Mishap::ClockLeaps => self.leap(bus),
            Mishap::LeaseStorm => self.storm(bus),
            Mishap::LeaseFlood => {
                // One is long enough.
                self.faults
                    .mishaps
                    .retain(|kind| *kind != Mishap::LeaseFlood);
                let (host, left) = (self.address().ip(), self.rng.range(2_000, 3_000));
                self.flood(bus, host, left);
            }
            Mishap::RegistrarStalls => self.stall(bus),
            Mishap::Reload => self.reload_otherwise(bus)?,
            Mishap::Hostile => self.attack(bus),
            Mishap::Burst => {
                for _ in 0..self.rng.range(10, 60) {
                    self.publish(publisher);
                }
            }
        }
        Ok(())
    }

    fn stop_bus(&mut self, index: usize) {
        let until = self.now + self.rng.range(MS, 8 * SECOND);
        let station = &mut self.stations[index];
        station.stopped_until = until;
        if station.wake_at < until {
            station.wake_at = until;
            self.at(until, Happening::Bus(index));
        }
    }

    /// Where there is no other data thread, the whole bus stands still.
    fn stall(&mut self, index: usize) {
        if self.stations[index].host.workers == 1 {
            return self.stop_bus(index);
        }
        let until = self.now + self.rng.range(MS, 3 * SECOND);
        self.stations[index].stalled_until = until;
        self.wake_bus(index, until);
    }

    fn restart_somewhere(&mut self, index: usize) {
        let address = match self.rng.chance(500_000) {
            true => self.subscribers[index].address,
            false => self.address(),
        };
        self.restart_subscriber(index, address);
    }

    fn stop_subscriber(&mut self, index: usize) {
        let until = self.now + self.rng.range(MS, 15 * SECOND);
        if self.subscribers[index].life == Life::Running {
            self.subscribers[index].life = Life::Stopped(until);
            self.wake_subscriber(index);
        }
    }

    fn reload_otherwise(&mut self, index: usize) -> Kept {
        let own = self.stations[index].own;
        let odd = self.faults.odd.max(300_000);
        let plan = Plan::draw(&mut self.rng, own, &self.sinks, odd);
        self.reload(index, plan)
    }

    fn partition(&mut self) {
        let all = self.subscribers.iter().map(|one| one.address.ip());
        let all: BTreeSet<IpAddr> = all
            .chain(self.publishers.iter().map(|one| one.address.ip()))
            .collect();
        let apart = all
            .into_iter()
            .filter(|_| self.rng.chance(500_000))
            .collect();
        self.network.part(apart);
        let end = self.now + self.rng.range(10 * MS, 6 * SECOND);
        self.at(end, Happening::Reunion);
    }

    pub(super) fn restart_subscriber(&mut self, index: usize, address: SocketAddr) {
        let taken = self
            .subscribers
            .iter()
            .any(|one| one.address == address && one.life != Life::Dead);
        let own = self.subscribers[index].address == address;
        let address = match taken && !own {
            true => self.address(),
            false => address,
        };
        let now = self.now;
        self.subscribers[index].restart(address, now);
        self.wake_subscriber(index);
    }

    fn move_subscriber(&mut self, index: usize) {
        let address = self.address();
        let now = self.now;
        if self.subscribers[index].life == Life::Running {
            self.subscribers[index].move_to(address, now);
            self.wake_subscriber(index);
        }
    }

    /// A subscriber dies, and another one comes at its address.
    fn take_address(&mut self, index: usize) {
        let address = self.subscribers[index].address;
        self.subscribers[index].life = Life::Dead;
        let mut heir = self.subscriber();
        heir.address = address;
        heir.bus = self.subscribers[index].bus;
        self.subscribers[index] = heir;
        self.wake_subscriber(index);
    }

    /// Often to just before the bus makes its next cookie key.
    fn leap(&mut self, index: usize) {
        let local = self.stations[index].clock.local(self.now);
        let to_key = COOKIE_KEY_AGE.checked_sub(local);
        let by = match to_key {
            Some(by) if self.rng.chance(700_000) => {
                by.saturating_sub(Duration::from_nanos(self.rng.below(20 * SECOND)))
            }
            _ => Duration::from_nanos(self.rng.below(600 * SECOND)),
        };
        self.stations[index].clock.leap(by);
        for subscriber in self.subscribers.iter_mut().filter(|one| one.bus == index) {
            subscriber.is_steady = false;
        }
        self.wake_bus(index, self.now);
    }

    /// Many ask at once, most of whom never answer a challenge.
    fn storm(&mut self, bus: usize) {
        for _ in 0..self.rng.range(10, 60) {
            let (from, request) = (self.address(), self.request());
            self.ask(bus, from, request);
        }
    }

    /// One host asks from many ports, so many times in all.
    pub(super) fn flood(&mut self, bus: usize, host: IpAddr, left: u64) {
        for _ in 0..left.min(FLOOD_AT_ONCE) {
            let port = self.rng.range(1_024, 9_000) as u16;
            let request = Subscribe {
                topics: vec!["a".to_owned()],
                ..Subscribe::default()
            };
            self.ask(bus, SocketAddr::new(host, port), request);
        }
        let left = left.saturating_sub(FLOOD_AT_ONCE);
        if left > 0 && self.is_rough {
            let next = Happening::Flood { bus, host, left };
            self.at(self.now + FLOOD_EVERY, next);
        }
    }

    /// A stranger's first request.
    fn ask(&mut self, bus: usize, from: SocketAddr, request: Subscribe) {
        let mut frame = Frame {
            control: Some(Control::Subscribe(Subscribe {
                nonce: self.rng.next(),
                ..request
            })),
            ..Frame::default()
        };
        hailmary_proto::write::pad(&mut frame, 64);
        let to = self.stations[bus].listener;
        self.send(from, to, frame.encode_to_vec());
    }

    /// A hostile host says what it likes, from where it likes.
    fn attack(&mut self, bus: usize) {
        let to = self.stations[bus].listener;
        for _ in 0..self.rng.range(1, 40) {
            let from = self.any_address();
            match self.rng.below(6) {
                0 => {
                    let length = self.rng.below(300) as usize;
                    let tape = self.rng.bytes(length);
                    let datagram = datagrams::datagram(&tape, datagrams::Faults::Some);
                    self.send(from, to, datagram);
                }
                1 => {
                    let length = self.rng.below(80) as usize;
                    let noise = match length {
                        0 => vec![0; RECEIVE_BYTES_MAX + 1],
                        _ => self.rng.bytes(length),
                    };
                    self.send(from, to, noise);
                }
                2 => {
                    let datagram = self.short_request();
                    self.send(from, to, datagram);
                }
                _ => self.replay(from),
            }
        }
    }

    /// An address of somebody, or of nobody.
    fn any_address(&mut self) -> SocketAddr {
        match self.rng.below(3) {
            0 => self.address(),
            1 => {
                let index = self.rng.index(self.subscribers.len());
                self.subscribers[index].address
            }
            _ => {
                let index = self.rng.index(self.subscribers.len());
                let address = self.subscribers[index].address;
                SocketAddr::new(address.ip(), address.port() ^ 1)
            }
        }
    }

    /// A request that is shorter than its answer.
    fn short_request(&mut self) -> Vec<u8> {
        let nonce = self.rng.next();
        let control = match self.rng.below(3) {
            0 => Control::Ping(hailmary_proto::v1::Ping { nonce }),
            1 => Control::Unsubscribe(hailmary_proto::v1::Unsubscribe {
                nonce,
                ..Default::default()
            }),
            _ => Control::Subscribe(Subscribe {
                nonce,
                topics: vec!["a".to_owned()],
                ..Subscribe::default()
            }),
        };
        let mut frame = Frame {
            control: Some(control),
            ..Frame::default()
        };
        hailmary_proto::write::pad(&mut frame, self.rng.below(70) as usize);
        frame.encode_to_vec()
    }

    /// What was seen once is sent once more: as it was, from elsewhere, or bent.
    fn replay(&mut self, elsewhere: SocketAddr) {
        if self.remembered.is_empty() {
            return;
        }
        let (from, to, mut bytes) = self.rng.pick(&self.remembered).clone();
        let from = match self.rng.below(3) {
            0 => from,
            1 => SocketAddr::new(from.ip(), from.port() ^ 1),
            _ => elsewhere,
        };
        if self.rng.chance(200_000) && !bytes.is_empty() {
            let at = self.rng.index(bytes.len());
            bytes[at] ^= 1 << self.rng.below(8);
        }
        self.send(from, to, bytes);
    }
}
