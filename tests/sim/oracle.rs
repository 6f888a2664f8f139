//! What must come of what a bus is sent: a model of its own, which calls nothing of the bus.
//!
//! It reads every datagram that a bus reads, keeps the leases, flows and rates that must follow,
//! and holds against them each copy, each answer, each count and the bus's table of subscribers,
//! after every turn. Where the contract leaves the bus a choice (which member of a group, which
//! share of a sample) the model follows the choice made, and demands that it is one that may be
//! made, that it is counted, and that it stays the same for the same key.

mod books;
mod events;
mod leases;
mod tables;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hailmary::bus::leases::LeaseEvent;

use super::bus::Bus;
use super::law::{Kept, law};
use super::plan::{self, Asked, Plan, Policy, Right, Static};
use super::seen::Seen;
use super::wire;
use books::Books;
use leases::{Proof, Request};

/// The limits of the contract, written down once more, here and beside what is held to them.
const TARGETS: [u32; 9] = [
    508, 1_024, 1_400, 2_048, 4_096, 8_192, 16_384, 32_768, 60_000,
];
const DATAGRAM_MAX: u32 = 65_507;
const PUBLISHERS_MAX: usize = 4_096;

/// By what a subscriber is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Static(String),
    Lease(SocketAddr),
}

/// So many a second, and at most one second's worth at once.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: u128,
    left_nano: u128,
    filled: Duration,
}

impl Rate {
    fn full(per_second: u32) -> Self {
        let per_second = u128::from(per_second);
        Self {
            per_second,
            left_nano: per_second * 1_000_000_000,
            filled: Duration::ZERO,
        }
    }

    fn available(&mut self, now: Duration) -> u64 {
        let gained = now.saturating_sub(self.filled).as_nanos() * self.per_second;
        self.left_nano = (self.left_nano + gained).min(self.per_second * 1_000_000_000);
        self.filled = self.filled.max(now);
        (self.left_nano / 1_000_000_000) as u64
    }

    fn take(&mut self, events: u64) {
        self.left_nano -= u128::from(events) * 1_000_000_000;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub events: u64,
    pub dropped: u64,
}

#[derive(Clone, Debug)]
struct Lease {
    expires: Duration,
    nonce: u64,
    lost: u64,
    dropped: u64,
}

/// Somebody who is to get events.
#[derive(Clone, Debug)]
pub struct Member {
    address: SocketAddr,
    name: String,
    patterns: Vec<String>,
    terms: Asked,
    rate: Option<Rate>,
    target: u32,
    max: u32,
    series: usize,
    lease: Option<Lease>,
    pub flow: Flow,
}

impl Member {
    /// Whether it gets every event of its topics.
    fn is_plain(&self) -> bool {
        self.terms.group.is_empty() && self.share() >= 1.0 && self.rate.is_none()
    }

    fn share(&self) -> f64 {
        match self.terms.sample {
            0.0 => 1.0,
            share => share,
        }
    }
}

/// What came of a sender in used frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrived {
    pub events: u64,
    /// The sequence of its first frame.
    pub first: u64,
}

/// What a bus must have come to.
#[derive(Debug)]
pub struct Oracle {
    bus: u64,
    plan: Plan,
    members: BTreeMap<Key, Member>,
    policies: Vec<(Policy, Option<Rate>)>,
    series: Vec<String>,
    leased_series: usize,
    cookies: BTreeMap<Vec<u8>, Proof>,
    own_messages: VecDeque<Request>,
    passed_on: VecDeque<Request>,
    /// When unproven addresses were answered within the last second.
    answered: VecDeque<(Duration, IpAddr)>,
    books: Books,
    /// By sender.
    arrived: BTreeMap<u64, Arrived>,
    /// How many flows there were to an address: by leases, one after the other.
    flows: BTreeMap<SocketAddr, u32>,
    /// Which member of a party a key goes to, till anything changes about any member.
    owners: BTreeMap<(Vec<Key>, Vec<u8>), Key>,
    /// Whether a share keeps a key.
    kept: BTreeMap<(u64, Vec<u8>), bool>,
    /// Frames that the bus takes for malformed and prost does not: keys and lengths may be padded.
    pub stricter: u64,
    /// Whether a table may have changed since it was compared.
    is_changed: bool,
    /// What the bus's own counts do not tell.
    pub seen: Seen,
}

impl Oracle {
    /// Of a bus that has just started.
    pub fn new(bus: &Bus, plan: &Plan) -> Self {
        let mut oracle = Self {
            bus: bus.id(),
            plan: plan.clone(),
            members: BTreeMap::new(),
            policies: Vec::new(),
            series: vec!["other".to_owned()],
            leased_series: 0,
            cookies: BTreeMap::new(),
            own_messages: VecDeque::new(),
            passed_on: VecDeque::new(),
            answered: VecDeque::new(),
            books: Books::default(),
            arrived: BTreeMap::new(),
            flows: BTreeMap::new(),
            owners: BTreeMap::new(),
            kept: BTreeMap::new(),
            stricter: 0,
            is_changed: true,
            seen: Seen::default(),
        };
        for kind in events::KINDS.iter().chain(&leases::KINDS) {
            oracle.seen.note(kind, 0);
        }
        oracle.configure();
        oracle
    }

    /// Whoever gets events at an address by lease.
    pub fn leased(&self, address: SocketAddr) -> Option<&Member> {
        self.members.get(&Key::Lease(address))
    }

    /// How many hold a lease.
    pub fn leases(&self) -> usize {
        self.members
            .values()
            .filter(|member| member.lease.is_some())
            .count()
    }

    /// The nonce of the lease that stands for an address.
    pub fn nonce(&self, address: SocketAddr) -> Option<u64> {
        let lease = self.leased(address)?.lease.as_ref()?;
        Some(lease.nonce)
    }

    // Configuration.

    /// The operator has decided otherwise, and so many leases ended by it.
    pub fn reload(&mut self, plan: &Plan, revoked: &[LeaseEvent]) -> Kept {
        self.plan = plan.clone();
        self.is_changed = true;
        self.owners.clear();
        self.configure();
        let rules = &self.plan.subscribe;
        let before = self.members.len();
        self.members.retain(|_, member| {
            member.lease.is_none() || plan::right(rules, member.address.ip()) == Right::Something
        });
        let ended = before - self.members.len();
        let all_revoked = revoked
            .iter()
            .all(|event| matches!(event, LeaseEvent::Revoked(_)));
        law!(
            all_revoked && revoked.len() == ended,
            "a reload ends the leases of those who may nothing, and no others",
            "{ended} were to end: {revoked:?}"
        );
        self.books.revoked += ended as u64;
        Ok(())
    }

    fn configure(&mut self) {
        let statics = self.plan.statics.clone();
        for one in &statics {
            if !self.series.contains(&one.name) {
                self.series.push(one.name.clone());
            }
        }
        let stays = |key: &Key, member: &Member| match key {
            Key::Lease(_) => true,
            Key::Static(name) => statics
                .iter()
                .any(|one| one.name == *name && one.address == member.address),
        };
        self.members.retain(|key, member| stays(key, member));
        for one in &statics {
            self.put_static(one);
        }
        let mut before = std::mem::take(&mut self.policies);
        for policy in &self.plan.policies {
            let same = before.iter().position(|(other, _)| other == policy);
            let rate = || policy.events_per_second.map(Rate::full);
            let entry = same.map(|at| before.swap_remove(at));
            self.policies
                .push(entry.unwrap_or_else(|| (policy.clone(), rate())));
        }
    }

    fn put_static(&mut self, one: &Static) {
        let key = Key::Static(one.name.clone());
        let member = self.member(
            one.address,
            &one.name,
            &one.topics,
            &one.terms,
            one.frame_bytes_max,
        );
        let Some(before) = self.members.remove(&key) else {
            self.members.insert(key, member);
            return;
        };
        let rate = match before.terms.events_per_second == member.terms.events_per_second {
            true => before.rate,
            false => member.rate,
        };
        let flow = before.flow;
        self.members.insert(
            key,
            Member {
                rate,
                flow,
                ..member
            },
        );
    }

    fn member(
        &mut self,
        address: SocketAddr,
        name: &str,
        patterns: &[String],
        terms: &Asked,
        asked: Option<u32>,
    ) -> Member {
        let max = asked.unwrap_or(DATAGRAM_MAX).min(DATAGRAM_MAX);
        let suits = if address.ip().is_loopback() {
            60_000
        } else {
            1_400
        };
        let fitting = TARGETS.iter().rev().find(|target| **target <= max);
        Member {
            address,
            name: name.to_owned(),
            patterns: patterns.to_vec(),
            terms: terms.clone(),
            rate: (terms.events_per_second > 0).then(|| Rate::full(terms.events_per_second)),
            target: asked.map_or(suits, |_| *fitting.unwrap_or(&max)),
            max,
            series: self.assign_series(name),
            lease: None,
            flow: Flow::default(),
        }
    }

    fn assign_series(&mut self, name: &str) -> usize {
        if name.is_empty() {
            return 0;
        }
        if let Some(index) = self.series.iter().position(|known| known == name) {
            return index;
        }
        if self.leased_series >= self.plan.leased_series_max {
            return 0;
        }
        self.leased_series += 1;
        self.series.push(name.to_owned());
        self.series.len() - 1
    }

    /// Events of a sender that came in used frames.
    pub fn arrived(&self, sender: u64) -> Arrived {
        self.arrived.get(&sender).copied().unwrap_or_default()
    }

    /// How many senders spoke.
    pub fn senders(&self) -> usize {
        self.arrived.len()
    }

    /// How many flows there were to an address.
    pub fn flows(&self, address: SocketAddr) -> u32 {
        self.flows.get(&address).copied().unwrap_or(0)
    }

    /// Whether so many senders spoke that some may have been forgotten.
    pub fn may_forget_senders(&self) -> bool {
        self.arrived.len() >= PUBLISHERS_MAX / 2
    }

    /// Whether somebody at `address` with this nonce is to get each event of a topic alone.
    pub fn is_certain(&self, address: SocketAddr, topic: &str) -> bool {
        let member = self.leased(address);
        member.is_some_and(|member| {
            member.is_plain()
                && member
                    .patterns
                    .iter()
                    .any(|pattern| wire::wants(pattern, topic))
                && plan::permits(&self.plan.subscribe, address.ip(), topic)
        })
    }
}
