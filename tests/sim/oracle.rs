//! What must come of what a bus is sent: a model of its own, which calls nothing of the bus.
//!
//! It reads every datagram that a bus reads, keeps the leases, flows and rates that must follow,
//! and holds against them each copy, each answer, each count and the bus's table of subscribers,
//! after every turn. Where the contract leaves the bus a choice (which member of a group, which
//! share of a sample) the model follows the choice made, and demands that it is one that may be
//! made, that it is counted, and that it stays the same for the same key.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hailmary::bus::leases::LeaseEvent;
use hailmary::bus::policies::Priority;
use hailmary::bus::subscribers::{Subscriber, Tenure};
use hailmary::bus::{Answer, CopyDrop, FrameDrop};
use hailmary::ledger::Counts;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{Event, Frame, Stamp, Subscribe};
use prost::Message;

use super::bus::{Acted, Bus, Decided, FlowRead, Sent, Turn, key_of, socket_address};
use super::law::{Broken, Kept, law};
use super::party::{Due, Party, Taken, weight_of};
use super::plan::{self, Asked, Plan, Policy, Right, Static};
use super::seen::Seen;
use super::wire;

/// The limits of the contract, written down once more.
const HOPS_MAX: u32 = 8;
const CHALLENGE_AGE_MAX: Duration = Duration::from_secs(10);
const COOKIE_AGE_MAX: Duration = Duration::from_secs(300);
const LEASE_MS_MIN: u32 = 1_000;
const DATAGRAM_MAX: u32 = 65_507;
const TARGETS: [u32; 9] = [
    508, 1_024, 1_400, 2_048, 4_096, 8_192, 16_384, 32_768, 60_000,
];
const ANSWERS_PER_SECOND: usize = 1_000;
const PUBLISHERS_MAX: usize = 4_096;
const COOKIE_BYTES: usize = 18;

/// What is noted where it is seen.
const RENEWED: &str = "lease renewed";
const RELEASED: &str = "lease given back";
const PONG: &str = "pong";
const SHARED: &str = "group whose members shared events";
const OVERLOADED: &str = "turn under overload";

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

/// A control message that a data thread has read.
#[derive(Clone, Debug)]
struct Message_ {
    from: SocketAddr,
    bytes: usize,
    control: Control,
    stamp: Option<Stamp>,
}

/// What a cookie proves.
#[derive(Clone, Copy, Debug)]
struct Proof {
    address: SocketAddr,
    nonce: u64,
    made_ms: u128,
}

/// What must be counted.
#[derive(Clone, Debug, Default, PartialEq)]
struct Books {
    frames: u64,
    bytes: u64,
    dropped_frames: [u64; FrameDrop::ALL.len()],
    events: u64,
    bad_topic: u64,
    not_allowed: u64,
    rate_limit: u64,
    stale: u64,
    unmatched: u64,
    matched: u64,
    copies: u64,
    granted: u64,
    expired: u64,
    revoked: u64,
    challenges: u64,
    unanswered: u64,
    refusals: [u64; 6],
    series: Vec<SeriesBooks>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct SeriesBooks {
    events: u64,
    frames: u64,
    bytes: u64,
    dropped: [u64; CopyDrop::ALL.len()],
    lost: u64,
    dropped_there: u64,
}

impl Books {
    fn series(&mut self, index: usize) -> &mut SeriesBooks {
        if self.series.len() <= index {
            self.series.resize(index + 1, SeriesBooks::default());
        }
        &mut self.series[index]
    }

    /// The same out of the bus's ledger.
    fn of(counts: &Counts) -> Self {
        let (listener, events) = (counts.listeners[0], &counts.events);
        let series = counts.series.iter().map(|series| SeriesBooks {
            events: series.events,
            frames: series.frames,
            bytes: series.bytes,
            dropped: series.dropped,
            lost: series.reported.lost,
            dropped_there: series.reported.dropped,
        });
        Self {
            frames: listener.frames,
            bytes: listener.bytes,
            dropped_frames: counts.dropped_frames,
            events: events.events,
            bad_topic: events.bad_topic,
            not_allowed: events.not_allowed,
            rate_limit: events.rate_limit,
            stale: events.stale,
            unmatched: events.unmatched,
            matched: events.matched,
            copies: events.copies,
            granted: counts.leases.granted,
            expired: counts.leases.expired,
            revoked: counts.leases.revoked,
            challenges: counts.leases.challenges,
            unanswered: counts.leases.unanswered,
            refusals: counts.leases.refusals,
            series: series.collect(),
        }
    }

    fn trimmed(mut self) -> Self {
        while self.series.last() == Some(&SeriesBooks::default()) {
            self.series.pop();
        }
        self
    }
}

/// A topic within one turn.
struct Route<'a> {
    parties: Vec<Party<'a>>,
    policy: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Handed {
    sent: u64,
    failed: u64,
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
    own_messages: VecDeque<Message_>,
    passed_on: VecDeque<Message_>,
    /// When unproven addresses were answered within the last second.
    answered: VecDeque<(Duration, IpAddr)>,
    books: Books,
    /// Events that came in used frames, by sender.
    arrived: BTreeMap<u64, u64>,
    /// How often a lease was granted to an address and nonce, renewals not counted.
    grants: BTreeMap<(SocketAddr, u64), u32>,
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
            grants: BTreeMap::new(),
            owners: BTreeMap::new(),
            kept: BTreeMap::new(),
            stricter: 0,
            is_changed: true,
            seen: Seen::default(),
        };
        for kind in [RENEWED, RELEASED, PONG, SHARED, OVERLOADED] {
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

    // The way of events.

    /// Holds a turn's copies and drops against what it read.
    pub fn check_turn(&mut self, turn: &Turn) -> Kept {
        let mut routes: BTreeMap<String, Route<'_>> = BTreeMap::new();
        for (datagram, result) in &turn.inputs {
            self.books.frames += 1;
            self.books.bytes += datagram.bytes.len() as u64;
            let read = wire::read(&datagram.bytes);
            self.check_verdict(datagram.from, &datagram.bytes, read.as_ref(), *result)?;
            if let Err(reason) = result {
                self.books.dropped_frames[*reason as usize] += 1;
            } else if let Some(read) = read {
                self.take_frame(turn, datagram.from, datagram.bytes.len(), read, &mut routes);
            }
        }
        let handed = self.check_sends(turn, &mut routes)?;
        self.check_parties(turn, &routes)?;
        self.seen.note(OVERLOADED, u64::from(turn.level > 0));
        self.check_flows(turn, &handed)
    }

    fn check_verdict(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        read: Option<&wire::Read<'_>>,
        result: Result<(), FrameDrop>,
    ) -> Kept {
        if bytes.len() > DATAGRAM_MAX as usize {
            law!(
                result == Err(FrameDrop::Truncated),
                "a cut datagram is not used",
                "{result:?}"
            );
            return Ok(());
        }
        let Some(read) = read else {
            law!(
                result == Err(FrameDrop::Malformed),
                "what is no frame is not used",
                "{result:?} of {bytes:02x?}"
            );
            return Ok(());
        };
        if result == Err(FrameDrop::Malformed) {
            self.stricter += 1;
            return Ok(());
        }
        let may =
            self.is_own(from) || plan::right(&self.plan.publish, from.ip()) == Right::Something;
        let expected = match (read.slices.is_empty(), may) {
            (false, false) => Err(FrameDrop::NotAllowed),
            _ if hops(&read.frame) >= HOPS_MAX => Err(FrameDrop::Hops),
            _ => Ok(()),
        };
        law!(
            result == expected,
            "a frame is dropped for its reason alone",
            "{result:?} instead of {expected:?} from {from}"
        );
        Ok(())
    }

    fn is_own(&self, from: SocketAddr) -> bool {
        self.plan.own.contains(&from)
    }

    fn take_frame<'a>(
        &mut self,
        turn: &Turn,
        from: SocketAddr,
        bytes: usize,
        read: wire::Read<'a>,
        routes: &mut BTreeMap<String, Route<'a>>,
    ) {
        let wire::Read { frame, slices } = read;
        if let (Some(stamp), false) = (&frame.stamp, slices.is_empty()) {
            *self.arrived.entry(stamp.sender).or_default() += slices.len() as u64;
        }
        let weight = frame.stamp.as_ref();
        let weight = weight.map_or(1.0, |stamp| weight_of(stamp.weight));
        let hops = hops(&frame) + 1;
        for (event, slice) in frame.events.into_iter().zip(slices) {
            let Some(route) = self.take_event(turn, from, &event, routes) else {
                continue;
            };
            for party in &mut route.parties {
                party.due.push(Due {
                    slice,
                    key: event.key.clone(),
                    weight,
                    hops,
                    taken_by: None,
                });
            }
        }
        if let Some(control) = frame.control {
            let message = Message_ {
                from,
                bytes,
                control,
                stamp: frame.stamp,
            };
            match turn.worker {
                0 => self.own_messages.push_back(message),
                _ => self.passed_on.push_back(message),
            }
        }
    }

    /// Where an event that came must go: nowhere if it is dropped, or wanted by nobody.
    fn take_event<'r, 'a>(
        &mut self,
        turn: &Turn,
        from: SocketAddr,
        event: &Event,
        routes: &'r mut BTreeMap<String, Route<'a>>,
    ) -> Option<&'r mut Route<'a>> {
        self.books.events += 1;
        let is_own = self.is_own(from);
        if wire::is_reserved(&event.topic) && !is_own {
            self.books.not_allowed += 1;
            return None;
        }
        if !wire::is_topic(&event.topic) {
            self.books.bad_topic += 1;
            return None;
        }
        if !is_own && !plan::permits(&self.plan.publish, from.ip(), &event.topic) {
            self.books.not_allowed += 1;
            return None;
        }
        if !routes.contains_key(&event.topic) {
            let route = self.route(&event.topic, turn.level);
            routes.insert(event.topic.clone(), route);
        }
        let route = routes.get_mut(&event.topic)?;
        if let Some(policy) = route.policy
            && !self.admit(policy, turn, event.time_unix_nano)
        {
            return None;
        }
        if route.parties.is_empty() {
            self.books.unmatched += 1;
            return None;
        }
        self.books.matched += 1;
        self.books.copies += route.parties.len() as u64;
        Some(route)
    }

    /// Whether a topic's policy lets an event pass, and counts it where it does not.
    fn admit(&mut self, policy: usize, turn: &Turn, made: u64) -> bool {
        let (policy, rate) = &mut self.policies[policy];
        let age = turn.unix_nano.saturating_sub(made);
        let is_stale = |most: Duration| made != 0 && u128::from(age) > most.as_nanos();
        if policy.age_max.is_some_and(is_stale) {
            self.books.stale += 1;
            return false;
        }
        let Some(rate) = rate else {
            return true;
        };
        if rate.available(turn.now) == 0 {
            self.books.rate_limit += 1;
            return false;
        }
        rate.take(1);
        true
    }

    /// Who is to get a topic.
    fn route<'a>(&self, topic: &str, level: u32) -> Route<'a> {
        let policy = self.policies.iter();
        let policy = policy
            .map(|(policy, _)| policy)
            .position(|policy| wire::wants(&policy.pattern, topic));
        let priority = match policy {
            _ if wire::is_reserved(topic) => Priority::High,
            Some(policy) => self.policies[policy].0.priority,
            None => Priority::Normal,
        };
        let is_thinned = level > 0 && priority != Priority::High;
        let mut parties: BTreeMap<String, Party<'_>> = BTreeMap::new();
        let mut alone = Vec::new();
        for (key, member) in &self.members {
            let wants = member
                .patterns
                .iter()
                .any(|pattern| wire::wants(pattern, topic));
            let may = member.lease.is_none()
                || plan::permits(&self.plan.subscribe, member.address.ip(), topic);
            if !wants || !may {
                continue;
            }
            let one = Party {
                is_certain: member.is_plain() && !is_thinned,
                ..Party::of(key)
            };
            match member.terms.group.as_str() {
                "" => alone.push(one),
                group => match parties.get_mut(group) {
                    Some(party) => party.add(key),
                    None => drop(parties.insert(group.to_owned(), one)),
                },
            }
        }
        alone.extend(parties.into_values());
        Route {
            parties: alone,
            policy,
        }
    }

    fn check_sends<'a>(
        &mut self,
        turn: &'a Turn,
        routes: &mut BTreeMap<String, Route<'a>>,
    ) -> Result<BTreeMap<Key, Handed>, Broken> {
        let mut handed: BTreeMap<Key, Handed> = BTreeMap::new();
        let mut running: BTreeMap<&Key, Flow> = BTreeMap::new();
        let mut hops = Vec::new();
        for (number, sent) in turn.sends.iter().enumerate() {
            let member = self.receiver(turn, sent)?;
            check_size(member, sent)?;
            let read = self.check_copy(sent)?;
            let stamp = read.frame.stamp.unwrap_or_default();
            follow_flow(
                running.entry(&sent.key).or_insert(member.flow),
                sent,
                &stamp,
            )?;
            for (event, slice) in read.frame.events.iter().zip(&read.slices) {
                let taken = Taken {
                    copy: number,
                    slice,
                    told: stamp.weight,
                    hops: stamp.hops,
                    share: member.share(),
                };
                take(routes, &event.topic, &sent.key, taken)?;
            }
            hops.push((stamp.hops, 0));
            let count = handed.entry(sent.key.clone()).or_default();
            count_copy(sent, count, self.books.series(sent.series));
        }
        for party in routes.values_mut().flat_map(|route| &mut route.parties) {
            party.settle(turn.level, &mut hops)?;
        }
        let wrong = hops.iter().find(|(told, most)| told != most);
        law!(
            wrong.is_none(),
            "a frame tells the most buses that its events have passed",
            "told and passed: {wrong:?}"
        );
        Ok(handed)
    }

    /// Who gets a copy, and may.
    fn receiver(&self, turn: &Turn, sent: &Sent) -> Result<&Member, Broken> {
        let Some(member) = self.members.get(&sent.key) else {
            return Err(Broken {
                law: "nothing is sent to an address without a lease or a static entry",
                how: format!("{:?}", sent.key),
            });
        };
        law!(
            sent.to == member.address,
            "copies go to the subscriber's own address",
            "{:?} to {}",
            sent.key,
            sent.to
        );
        if let Some(lease) = &member.lease {
            law!(
                lease.expires > turn.now,
                "nothing is sent to an address whose lease has ended",
                "{:?} at {:?}, ended {:?}",
                sent.key,
                turn.now,
                lease.expires
            );
        }
        law!(
            sent.series == member.series,
            "a copy is counted under its subscriber's name",
            "{:?}: {} instead of {}",
            sent.key,
            sent.series,
            member.series
        );
        Ok(member)
    }

    /// Reads a copy: the bus's own frame, with as many events as are counted.
    fn check_copy<'a>(&self, sent: &'a Sent) -> Result<wire::Read<'a>, Broken> {
        let Some(read) = wire::read(&sent.bytes) else {
            return Err(Broken {
                law: "what the bus sends is a frame",
                how: format!("{:02x?}", sent.bytes),
            });
        };
        let sender = read.frame.stamp.as_ref().map(|stamp| stamp.sender);
        law!(
            sender == Some(self.bus) && read.frame.control.is_none(),
            "a copy bears the bus's stamp and no message",
            "{:?}",
            read.frame.stamp
        );
        law!(
            read.slices.len() == sent.events as usize && sent.events > 0,
            "a copy has as many events as are counted",
            "{} and {}",
            read.slices.len(),
            sent.events
        );
        Ok(read)
    }

    fn check_parties(&mut self, turn: &Turn, routes: &BTreeMap<String, Route<'_>>) -> Kept {
        let mut missing = 0;
        // Of those with a rate and nothing else: what they were to get.
        let mut limited: BTreeMap<Key, u64> = BTreeMap::new();
        let mut is_shared: BTreeSet<Key> = BTreeSet::new();
        let mut may_drop: BTreeSet<usize> = BTreeSet::new();
        for (topic, route) in routes {
            for party in &route.parties {
                let taken = party
                    .due
                    .iter()
                    .filter(|due| due.taken_by.is_some())
                    .count();
                let left = party.due.len() - taken;
                missing += left as u64;
                law!(
                    !party.is_certain || left == 0,
                    "whoever gets every event gets every event",
                    "{left} of {topic} are missing for {:?}",
                    party.members
                );
                if left > 0 {
                    may_drop.extend(party.members.iter().map(|key| self.members[key].series));
                }
                self.note_choices(turn, party)?;
                self.seen.note(SHARED, u64::from(party.is_shared()));
                for key in &party.members {
                    // What a member of several may get is not certain.
                    let due = match party.members.len() {
                        1 => party.due.len() as u64,
                        _ => 0,
                    };
                    is_shared.extend((due < party.due.len() as u64).then_some(key.clone()));
                    *limited.entry(key.clone()).or_default() += due;
                }
            }
        }
        limited.retain(|key, _| {
            let member = &self.members[key];
            member.rate.is_some()
                && member.share() >= 1.0
                && turn.level == 0
                && !is_shared.contains(key)
        });
        self.check_rates(turn, &limited)?;
        self.check_decided(turn, &may_drop, missing)
    }

    fn check_decided(&mut self, turn: &Turn, may_drop: &BTreeSet<usize>, missing: u64) -> Kept {
        let mut decided = 0;
        for Decided {
            series,
            reason,
            events,
        } in &turn.decided
        {
            let has = |what: fn(&Member) -> bool| self.members.values().any(what);
            let may = match reason {
                CopyDrop::Sampled => has(|member| member.share() < 1.0),
                CopyDrop::RateLimit => has(|member| member.rate.is_some()),
                CopyDrop::Overload => turn.level > 0,
                _ => false,
            };
            law!(
                may && may_drop.contains(series),
                "copies are only let go for a reason that there is",
                "{events} of series {series}: {reason:?}"
            );
            decided += u64::from(*events);
            self.books.series(*series).dropped[*reason as usize] += u64::from(*events);
        }
        law!(
            decided == missing,
            "each copy that is not made is counted as dropped, once",
            "{decided} of {missing}"
        );
        Ok(())
    }

    /// Equal keys go to the same member and are kept or not together.
    fn note_choices(&mut self, turn: &Turn, party: &Party<'_>) -> Kept {
        if turn.level > 0 {
            return Ok(());
        }
        if let [key] = &party.members[..] {
            let member = &self.members[key];
            let share = member.share();
            if share < 1.0 && member.rate.is_none() {
                for due in party
                    .due
                    .iter()
                    .filter(|due| !due.key.is_empty() && due.weight == 1.0)
                {
                    let kept = self
                        .kept
                        .entry((share.to_bits(), due.key.clone()))
                        .or_insert(due.taken_by.is_some());
                    law!(
                        *kept == due.taken_by.is_some(),
                        "events of one key are sampled together",
                        "{:?} at {share}",
                        due.key
                    );
                }
            }
            return Ok(());
        }
        for due in party.due.iter().filter(|due| !due.key.is_empty()) {
            let Some(taken_by) = due.taken_by.map(|member| &party.members[member]) else {
                continue;
            };
            let place = (party.members.clone(), due.key.clone());
            let owner = self.owners.entry(place).or_insert_with(|| taken_by.clone());
            law!(
                owner == taken_by,
                "a key goes to one member of a group while its members stay",
                "{:?} to {taken_by:?} and {owner:?}",
                due.key
            );
        }
        Ok(())
    }

    fn check_rates(&mut self, turn: &Turn, limited: &BTreeMap<Key, u64>) -> Kept {
        let mut taken: BTreeMap<&Key, u64> = limited.keys().map(|key| (key, 0)).collect();
        for sent in &turn.sends {
            *taken.entry(&sent.key).or_default() += u64::from(sent.events);
        }
        for (key, events) in taken {
            let Some(rate) = self
                .members
                .get_mut(key)
                .and_then(|member| member.rate.as_mut())
            else {
                continue;
            };
            let available = rate.available(turn.now);
            law!(
                events <= available,
                "nobody gets more than its rate",
                "{key:?}: {events} of {available}"
            );
            rate.take(events);
            let due = limited.get(key);
            law!(
                due.is_none_or(|due| events == available.min(*due)),
                "whoever has a rate gets what is within it",
                "{key:?}: {events} of {due:?}, {available} left"
            );
        }
        Ok(())
    }

    fn check_flows(&mut self, turn: &Turn, handed: &BTreeMap<Key, Handed>) -> Kept {
        let mut skipped = 0;
        for FlowRead {
            key,
            sequence,
            dropped,
        } in &turn.flows
        {
            let Some(member) = self.members.get_mut(key) else {
                law!(false, "nobody has a flow who is no subscriber", "{key:?}");
                continue;
            };
            let Handed { sent, failed } = handed.get(key).copied().unwrap_or_default();
            let counted = member.flow.events + sent + failed;
            law!(
                *sequence >= counted,
                "a flow counts every copy",
                "{key:?}: {sequence} of {counted}"
            );
            let not_made = sequence - counted;
            law!(
                not_made == 0 || !member.is_plain() || turn.level > 0,
                "a flow counts no copy that there is not",
                "{key:?}: {not_made} too many"
            );
            let expected = member.flow.dropped + failed + not_made;
            law!(
                *dropped == expected,
                "a flow tells what the bus dropped",
                "{key:?}: {dropped} instead of {expected}"
            );
            skipped += not_made;
            member.flow = Flow {
                events: *sequence,
                dropped: *dropped,
            };
        }
        let decided: u64 = turn.decided.iter().map(|one| u64::from(one.events)).sum();
        law!(
            skipped == decided,
            "each copy let go is on its subscriber's flow",
            "{skipped} of {decided}"
        );
        Ok(())
    }

    // Leases.

    /// Holds what the registrar did against what was asked of it.
    pub fn check_acted(&mut self, acted: &Acted) -> Kept {
        let own = std::mem::take(&mut self.own_messages);
        let others = std::mem::take(&mut self.passed_on);
        let messages: Vec<Message_> = own.into_iter().chain(others).collect();
        law!(
            messages.len() == acted.messages.len(),
            "each control message is acted on once",
            "{} of {}",
            acted.messages.len(),
            messages.len()
        );
        self.is_changed |= !messages.is_empty();
        for (message, (events, answers)) in messages.iter().zip(&acted.messages) {
            law!(
                answers.len() <= 1 && events.len() <= 1,
                "one message has one answer at most",
                "{answers:?} {events:?}"
            );
            let answer = answers.first();
            let (event, answer) = self.check_answer(acted.now, message, events.first(), answer)?;
            self.check_message(acted.now, message, event, answer)?;
        }
        self.check_ended(acted.now, &acted.ended)
    }

    /// Holds the leases that ended by time against those that had to.
    pub fn check_ended(&mut self, now: Duration, told: &[LeaseEvent]) -> Kept {
        let before = self.members.len();
        self.members.retain(|_, member| {
            member
                .lease
                .as_ref()
                .is_none_or(|lease| lease.expires > now)
        });
        let ended = before - self.members.len();
        self.is_changed |= ended > 0 || !told.is_empty();
        let all_expired = told
            .iter()
            .all(|event| matches!(event, LeaseEvent::Expired(_)));
        law!(
            all_expired && told.len() == ended,
            "a lease ends when its time is over",
            "{} instead of {ended} at {now:?}",
            told.len()
        );
        self.books.expired += ended as u64;
        if ended > 0 {
            self.owners.clear();
        }
        Ok(())
    }

    fn check_answer<'a>(
        &mut self,
        now: Duration,
        message: &Message_,
        event: Option<&'a LeaseEvent>,
        answer: Option<&Answer>,
    ) -> Result<(Option<&'a LeaseEvent>, Option<Frame>), Broken> {
        let Some(answer) = answer else {
            return Ok((event, None));
        };
        law!(
            socket_address(&answer.to) == message.from && answer.listener == 0,
            "an answer goes where the question came from",
            "{:?}",
            answer.to
        );
        let frame = Frame::decode(&answer.datagram[..]);
        law!(
            frame.is_ok(),
            "an answer is a frame",
            "{:02x?}",
            answer.datagram
        );
        let frame = frame.unwrap_or_default();
        law!(
            frame.events.is_empty(),
            "an answer brings no events",
            "{frame:?}"
        );
        let is_lease = matches!(frame.control, Some(Control::Lease(_)));
        let is_proven = self.is_proven(now, message);
        law!(
            is_proven || !is_lease,
            "a lease takes a proven address",
            "{frame:?} to {}",
            message.from
        );
        law!(
            is_proven || answer.datagram.len() <= message.bytes,
            "an unproven address is never answered with more bytes than it sent",
            "{} to {}",
            answer.datagram.len(),
            message.bytes
        );
        if !is_proven {
            self.note_answered(now, message.from.ip())?;
        }
        Ok((event, Some(frame)))
    }

    fn note_answered(&mut self, now: Duration, ip: IpAddr) -> Kept {
        self.forget_answered(now);
        self.answered.push_back((now, ip));
        let of_host = self
            .answered
            .iter()
            .filter(|(_, other)| *other == ip)
            .count();
        law!(
            of_host <= 2 * ANSWERS_PER_SECOND,
            "unproven addresses are answered so often a second and no more",
            "{of_host} to {ip}"
        );
        Ok(())
    }

    fn forget_answered(&mut self, now: Duration) {
        let is_old = |at: Duration| now.saturating_sub(at) > Duration::from_secs(1);
        while self.answered.front().is_some_and(|(at, _)| is_old(*at)) {
            self.answered.pop_front();
        }
    }

    /// Whether a message brings a cookie that was given to its address and nonce, in time.
    fn is_proven(&self, now: Duration, message: &Message_) -> bool {
        let (cookie, nonce) = match &message.control {
            Control::Subscribe(subscribe) => (&subscribe.cookie, subscribe.nonce),
            Control::Unsubscribe(unsubscribe) => (&unsubscribe.cookie, unsubscribe.nonce),
            _ => return false,
        };
        let age_max = match self.leased(message.from) {
            Some(_) => COOKIE_AGE_MAX,
            None => CHALLENGE_AGE_MAX,
        };
        self.cookies.get(cookie).is_some_and(|proof| {
            let made = Duration::from_millis(proof.made_ms as u64);
            proof.address == message.from
                && proof.nonce == nonce
                && now.checked_sub(made).is_some_and(|age| age <= age_max)
        })
    }

    fn check_message(
        &mut self,
        now: Duration,
        message: &Message_,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        match &message.control {
            Control::Subscribe(subscribe) => {
                let due = self.due(now, message, subscribe);
                self.check_subscribe(now, message, subscribe, due, event, answer)
            }
            Control::Unsubscribe(unsubscribe) => {
                if self.is_proven(now, message) && self.leased(message.from).is_some() {
                    law!(
                        matches!(event, Some(LeaseEvent::Released(_))) && answer.is_none(),
                        "a lease is given back by its holder",
                        "{event:?} {answer:?}"
                    );
                    self.members.remove(&Key::Lease(message.from));
                    self.owners.clear();
                    self.seen.note(RELEASED, 1);
                    return Ok(());
                }
                self.check_refusal(
                    now,
                    message,
                    Reason::UnknownLease,
                    unsubscribe.nonce,
                    event,
                    answer,
                )
            }
            Control::Ping(ping) => self.check_pong(now, message, ping.nonce, event, answer),
            _ => {
                law!(
                    event.is_none() && answer.is_none(),
                    "what only a bus says is not answered",
                    "{answer:?}"
                );
                Ok(())
            }
        }
    }

    /// What is due to a request for a lease: none where the address is to be proven first.
    fn due(
        &self,
        now: Duration,
        message: &Message_,
        subscribe: &Subscribe,
    ) -> Option<Result<(), Reason>> {
        let ip = message.from.ip();
        if plan::right(&self.plan.subscribe, ip) == Right::Nothing {
            return Some(Err(Reason::NotAllowed));
        }
        if !self.is_proven(now, message) {
            return None;
        }
        Some(self.is_due(message.from, subscribe))
    }

    fn is_due(&self, from: SocketAddr, subscribe: &Subscribe) -> Result<(), Reason> {
        let limits = &self.plan.limits;
        let share = subscribe.sample;
        let has_share = share == 0.0 || (share > 0.0 && share <= 1.0);
        let is_legal = is_name(&subscribe.group)
            && is_name(&subscribe.name)
            && !subscribe.name.starts_with("_hailmary")
            && has_share
            && !(1..508).contains(&subscribe.max_frame_bytes)
            && (1..=limits.patterns_max).contains(&subscribe.topics.len());
        if !is_legal {
            return Err(Reason::BadRequest);
        }
        if !subscribe
            .topics
            .iter()
            .all(|pattern| wire::is_pattern(pattern))
        {
            return Err(Reason::BadTopic);
        }
        let standing = self.leased(from);
        let of_origin = self
            .members
            .values()
            .filter(|member| {
                member.lease.is_some() && is_same_origin(member.address.ip(), from.ip())
            })
            .count();
        if standing.is_none()
            && (self.leases() >= limits.leases_max || of_origin >= limits.leases_per_origin_max)
        {
            return Err(Reason::Full);
        }
        let is_member = standing.is_some_and(|member| member.terms.group == subscribe.group);
        let members = self
            .members
            .values()
            .filter(|member| member.terms.group == subscribe.group)
            .count();
        if !subscribe.group.is_empty() && !is_member && members >= limits.group_members_max {
            return Err(Reason::Full);
        }
        Ok(())
    }

    fn check_subscribe(
        &mut self,
        now: Duration,
        message: &Message_,
        subscribe: &Subscribe,
        due: Option<Result<(), Reason>>,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        let nonce = subscribe.nonce;
        let Some(due) = due else {
            return self.check_challenge(now, message, nonce, event, answer);
        };
        if let Err(reason) = due {
            return self.check_refusal(now, message, reason, nonce, event, answer);
        }
        let key = Key::Lease(message.from);
        let stood = self.members.remove(&key);
        let news = self.put_lease(now, message.from, subscribe, stood.clone());
        let member = self.members[&key].clone();
        match stood {
            None => {
                self.books.granted += 1;
                *self.grants.entry((message.from, nonce)).or_default() += 1;
                let is_granted = matches!(event, Some(LeaseEvent::Granted(_)));
                law!(
                    is_granted,
                    "a lease is granted",
                    "{event:?} to {}",
                    message.from
                );
            }
            Some(_) => self.check_renewed(event, member.series, news)?,
        }
        let frame = answer.unwrap_or_default();
        let Some(Control::Lease(lease)) = frame.control else {
            law!(false, "a proven address gets its lease", "{frame:?}");
            return Ok(());
        };
        let granted = (lease.bus, lease.nonce, lease.lease_ms);
        law!(
            granted == (self.bus, nonce, self.lease_ms(subscribe)),
            "a lease is as long as was asked for, within bounds",
            "{lease:?}"
        );
        let stamp = frame.stamp.unwrap_or_default();
        let flow = Flow {
            events: stamp.sequence,
            dropped: stamp.dropped,
        };
        law!(
            stamp.sender == self.bus && flow == member.flow,
            "a lease's stamp tells the flow as it is",
            "{stamp:?} instead of {:?}",
            member.flow
        );
        self.keep_cookie(now, lease.cookie, message.from, nonce);
        Ok(())
    }

    fn check_challenge(
        &mut self,
        now: Duration,
        message: &Message_,
        nonce: u64,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        if self.is_unanswered(now, message, challenge_bytes(nonce), event, &answer)? {
            return Ok(());
        }
        let Some(Control::Challenge(challenge)) = answer.and_then(|frame| frame.control) else {
            law!(false, "an unproven address is challenged", "{event:?}");
            return Ok(());
        };
        law!(
            event == Some(&LeaseEvent::Challenged) && challenge.nonce == nonce,
            "a challenge is counted and bears the nonce",
            "{event:?} {challenge:?}"
        );
        self.books.challenges += 1;
        self.keep_cookie(now, challenge.cookie, message.from, nonce);
        Ok(())
    }

    /// Holds what a renewal's report brought against what it had to.
    fn check_renewed(
        &mut self,
        event: Option<&LeaseEvent>,
        index: usize,
        expected: (u64, u64),
    ) -> Kept {
        let Some(LeaseEvent::Renewed { series, news, .. }) = event else {
            law!(false, "a lease is renewed", "{event:?}");
            return Ok(());
        };
        law!(
            series.index() == index && (news.lost, news.dropped) == expected,
            "a report's news is counted, within what was sent",
            "{news:?} instead of {expected:?}"
        );
        let series = self.books.series(index);
        series.lost += news.lost;
        series.dropped_there += news.dropped;
        self.seen.note(RENEWED, 1);
        Ok(())
    }

    fn keep_cookie(&mut self, now: Duration, cookie: Vec<u8>, address: SocketAddr, nonce: u64) {
        let made_ms = now.as_millis();
        self.cookies.insert(
            cookie,
            Proof {
                address,
                nonce,
                made_ms,
            },
        );
    }

    /// Puts a lease in the place of the one that stood, and says what its report brings.
    fn put_lease(
        &mut self,
        now: Duration,
        from: SocketAddr,
        subscribe: &Subscribe,
        stood: Option<Member>,
    ) -> (u64, u64) {
        let terms = Asked {
            group: subscribe.group.clone(),
            sample: subscribe.sample,
            events_per_second: subscribe.events_per_second,
        };
        let asked = (subscribe.max_frame_bytes > 0).then_some(subscribe.max_frame_bytes);
        let mut member = self.member(from, &subscribe.name, &subscribe.topics, &terms, asked);
        let report = subscribe
            .report
            .as_ref()
            .filter(|report| report.bus == self.bus);
        let told = report.map(|report| (report.lost, report.dropped));
        let expires = now + Duration::from_millis(u64::from(self.lease_ms(subscribe)));
        let (lost, dropped) = told.unwrap_or_default();
        let mut lease = Lease {
            expires,
            nonce: subscribe.nonce,
            lost,
            dropped,
        };
        let mut news = (0, 0);
        if let Some(stood) = stood {
            let before = stood
                .lease
                .as_ref()
                .map_or((0, 0, 0), |lease| (lease.nonce, lease.lost, lease.dropped));
            let before = match before {
                (nonce, lost, dropped) if nonce == subscribe.nonce => {
                    member.flow = stood.flow;
                    (lost, dropped)
                }
                _ => (0, 0),
            };
            if told.is_some() {
                let bound = |count: u64| count.min(member.flow.events);
                news = (
                    bound(lost.saturating_sub(before.0)),
                    bound(dropped.saturating_sub(before.1)),
                );
            } else {
                (lease.lost, lease.dropped) = before;
            }
            if stood.terms.events_per_second == terms.events_per_second {
                member.rate = stood.rate;
            }
        }
        member.lease = Some(lease);
        self.owners.clear();
        self.members.insert(Key::Lease(from), member);
        news
    }

    fn lease_ms(&self, subscribe: &Subscribe) -> u32 {
        match subscribe.lease_ms {
            0 => self.plan.limits.lease_ms,
            asked => asked.clamp(LEASE_MS_MIN, self.plan.limits.lease_ms_max),
        }
    }

    fn check_refusal(
        &mut self,
        now: Duration,
        message: &Message_,
        reason: Reason,
        nonce: u64,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        if !self.is_proven(now, message)
            || reason == Reason::NotAllowed
            || reason == Reason::UnknownLease
        {
            let bytes = refusal_bytes(reason, nonce);
            if self.is_unanswered(now, message, bytes, event, &answer)? {
                return Ok(());
            }
        }
        let told = match answer.and_then(|frame| frame.control) {
            Some(Control::Refusal(refusal)) if refusal.nonce == nonce => Some(refusal.reason()),
            _ => None,
        };
        law!(
            told == Some(reason) && event == Some(&LeaseEvent::Refused(reason)),
            "who is refused is told why",
            "{event:?} {told:?} instead of {reason:?}"
        );
        self.books.refusals[reason as usize] += 1;
        Ok(())
    }

    fn check_pong(
        &mut self,
        now: Duration,
        message: &Message_,
        nonce: u64,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        law!(event.is_none(), "a ping changes no lease", "{event:?}");
        let Some(frame) = answer else {
            // Its length depends on its counts, so the shortest one is what is certain.
            let least = pong_bytes(nonce, self.bus);
            self.forget_answered(now);
            let may = message.bytes < least + 22 || self.answered.len() >= ANSWERS_PER_SECOND - 1;
            law!(may, "a ping is answered", "of {} bytes", message.bytes);
            return Ok(());
        };
        let Some(Control::Pong(pong)) = frame.control else {
            law!(false, "a ping is answered by a pong", "{frame:?}");
            return Ok(());
        };
        let may = plan::right(&self.plan.publish, message.from.ip()) == Right::Something;
        let sender = message
            .stamp
            .as_ref()
            .filter(|_| may)
            .map_or(0, |stamp| stamp.sender);
        let arrived = self.arrived.get(&sender).copied().unwrap_or(0);
        law!(
            (pong.nonce, pong.bus) == (nonce, self.bus),
            "a pong bears the nonce",
            "{pong:?}"
        );
        law!(
            pong.received <= arrived,
            "a pong tells of no event that did not come",
            "{pong:?}, {arrived} came"
        );
        self.seen.note(PONG, 1);
        Ok(())
    }

    /// Whether no answer was given, which takes a reason.
    fn is_unanswered(
        &mut self,
        now: Duration,
        message: &Message_,
        answer_bytes: usize,
        event: Option<&LeaseEvent>,
        answer: &Option<Frame>,
    ) -> Result<bool, Broken> {
        let is_too_long = answer_bytes > message.bytes;
        if event != Some(&LeaseEvent::Unanswered) {
            law!(
                !is_too_long,
                "an unproven address is never answered with more bytes than it sent",
                "{answer_bytes} to {}",
                message.bytes
            );
            return Ok(false);
        }
        self.forget_answered(now);
        let may = is_too_long || self.answered.len() >= ANSWERS_PER_SECOND - 1;
        law!(
            may && answer.is_none(),
            "a request is left unanswered only where it is too short or one of too many",
            "{} bytes, {} answered",
            message.bytes,
            self.answered.len()
        );
        self.books.unanswered += 1;
        Ok(true)
    }

    // What stands at the end of a step.

    /// Holds the bus's tables and books against what they must be.
    pub fn check_state(&mut self, bus: &mut Bus) -> Kept {
        // Only these change tables: what is forwarded has them to read alone.
        if std::mem::take(&mut self.is_changed) {
            self.check_subscribers(bus)?;
            self.check_groups(bus)?;
        }
        let ends = self
            .members
            .values()
            .filter_map(|member| member.lease.as_ref());
        let next = ends.map(|lease| lease.expires).min();
        law!(
            bus.next_end() == next,
            "the bus wakes up for the next end of a lease",
            "{:?} instead of {next:?}",
            bus.next_end()
        );
        let names: Vec<&str> = bus
            .directory()
            .series_names()
            .iter()
            .map(|name| &**name)
            .collect();
        law!(
            names == self.series,
            "names have series as long as there is room",
            "{names:?} instead of {:?}",
            self.series
        );
        self.check_books(bus.counts())
    }

    fn check_subscribers(&self, bus: &Bus) -> Kept {
        let subscribers = bus.directory().subscribers();
        let mut seen = 0;
        for (_, subscriber) in subscribers.iter() {
            seen += 1;
            let key = key_of(subscriber);
            let Some(member) = self.members.get(&key) else {
                law!(
                    false,
                    "nobody is a subscriber without a lease or a static entry",
                    "{key:?}"
                );
                continue;
            };
            check_member(&key, member, subscriber)?;
        }
        law!(
            seen == self.members.len(),
            "whoever has a lease or a static entry is a subscriber",
            "{seen} of {}",
            self.members.len()
        );
        law!(
            subscribers.leases() == self.leases(),
            "leases are counted",
            "{} of {}",
            subscribers.leases(),
            self.leases()
        );
        Ok(())
    }

    fn check_groups(&self, bus: &Bus) -> Kept {
        for group in self
            .members
            .values()
            .map(|member| member.terms.group.as_str())
            .filter(|group| !group.is_empty())
        {
            let count = self
                .members
                .values()
                .filter(|member| member.terms.group == group)
                .count();
            law!(
                bus.directory().members(group) == count,
                "a group has the members that it has",
                "{group}: {} instead of {count}",
                bus.directory().members(group)
            );
        }
        Ok(())
    }

    fn check_books(&self, counts: &Counts) -> Kept {
        let events = &counts.events;
        let ended = events.dropped() + events.unmatched + events.matched;
        law!(
            events.events == ended,
            "the first law: events in = dropped + unmatched + matched",
            "{} and {ended}",
            events.events
        );
        let of_series = |series: &hailmary::ledger::SeriesCounts| {
            series.events + series.dropped.iter().sum::<u64>()
        };
        let ends: u64 = counts.series.iter().map(of_series).sum();
        law!(
            events.copies == ends,
            "the second law: copies = sent + dropped",
            "{} and {ends}",
            events.copies
        );
        let told = Books::of(counts).trimmed();
        let expected = self.books.clone().trimmed();
        law!(
            told == expected,
            "every count is what it must be",
            "\n  {told:?}\ninstead of\n  {expected:?}"
        );
        Ok(())
    }

    /// Events of a sender that came in used frames.
    pub fn arrived(&self, sender: u64) -> u64 {
        self.arrived.get(&sender).copied().unwrap_or(0)
    }

    /// How many senders spoke.
    pub fn senders(&self) -> usize {
        self.arrived.len()
    }

    /// How often a lease was granted to an address and nonce.
    pub fn grants(&self, address: SocketAddr, nonce: u64) -> u32 {
        self.grants.get(&(address, nonce)).copied().unwrap_or(0)
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

fn check_size(member: &Member, sent: &Sent) -> Kept {
    let bytes = sent.bytes.len();
    let fits = bytes <= member.max as usize;
    law!(
        fits == (sent.dropped != Some(CopyDrop::TooLarge)),
        "no datagram is larger than its subscriber takes, and none that is not is dropped for that",
        "{bytes} of {} bytes, {:?}",
        member.max,
        sent.dropped
    );
    law!(
        bytes <= member.target as usize || sent.events == 1,
        "frames are filled to their size and no further",
        "{bytes} of {} bytes with {} events",
        member.target,
        sent.events
    );
    Ok(())
}

fn follow_flow(flow: &mut Flow, sent: &Sent, stamp: &Stamp) -> Kept {
    law!(
        stamp.sequence >= flow.events
            && stamp.dropped >= flow.dropped
            && stamp.dropped <= stamp.sequence,
        "a flow's stamps never fall",
        "{stamp:?} after {flow:?}"
    );
    *flow = Flow {
        events: stamp.sequence + u64::from(sent.events),
        dropped: stamp.dropped,
    };
    Ok(())
}

fn count_copy(sent: &Sent, count: &mut Handed, series: &mut SeriesBooks) {
    let events = u64::from(sent.events);
    match sent.dropped {
        None => {
            count.sent += events;
            series.events += events;
            series.frames += 1;
            series.bytes += sent.bytes.len() as u64;
        }
        Some(reason) => {
            count.failed += events;
            series.dropped[reason as usize] += events;
        }
    }
}

/// Notes an event of a copy for the party that it came to somebody as a member of.
fn take<'a>(
    routes: &mut BTreeMap<String, Route<'a>>,
    topic: &str,
    key: &Key,
    taken: Taken<'a>,
) -> Kept {
    let Some(route) = routes.get_mut(topic) else {
        law!(false, "only events that came are sent", "{topic:?}");
        return Ok(());
    };
    for party in &mut route.parties {
        if let Some(member) = party.members.iter().position(|member| member == key) {
            party.taken[member].push(taken);
            return Ok(());
        }
    }
    Err(Broken {
        law: "nobody gets what it did not ask for or may not see",
        how: format!("{key:?}: {:02x?}", taken.slice),
    })
}

fn check_member(key: &Key, member: &Member, subscriber: &Subscriber) -> Kept {
    let topics: Vec<&str> = subscriber.topics.iter().map(|topic| &**topic).collect();
    let group = subscriber.terms.group.as_deref().unwrap_or_default();
    let rate = subscriber.terms.events_per_second.unwrap_or(0);
    let wants = topics == member.patterns
        && group == member.terms.group
        && rate == member.terms.events_per_second;
    law!(
        wants,
        "a subscriber gets what it asked for last",
        "{subscriber:?} instead of {member:?}"
    );
    let sizes = (subscriber.frame_bytes.target, subscriber.frame_bytes.max);
    law!(
        sizes == (member.target, member.max),
        "datagrams are as large as is asked for or suits the way",
        "{sizes:?} instead of {member:?}"
    );
    law!(
        *subscriber.name == *member.name && subscriber.series.index() == member.series,
        "a subscriber has its name and its series",
        "{subscriber:?} instead of {member:?}"
    );
    let lease = match &subscriber.tenure {
        Tenure::Static => None,
        Tenure::Lease(lease) => Some((lease.expires, lease.nonce)),
    };
    let expected = member
        .lease
        .as_ref()
        .map(|lease| (lease.expires, lease.nonce));
    law!(
        lease == expected,
        "a lease ends as long after its last request as was granted",
        "{key:?}: {lease:?} instead of {expected:?}"
    );
    Ok(())
}

fn hops(frame: &Frame) -> u32 {
    frame.stamp.as_ref().map_or(0, |stamp| stamp.hops)
}

fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_same_origin(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V6(one), IpAddr::V6(other)) => one.segments()[..4] == other.segments()[..4],
        (one, other) => one == other,
    }
}

fn bytes_of(control: Control) -> usize {
    let frame = Frame {
        control: Some(control),
        ..Frame::default()
    };
    frame.encoded_len()
}

fn challenge_bytes(nonce: u64) -> usize {
    let cookie = vec![0; COOKIE_BYTES];
    bytes_of(Control::Challenge(hailmary_proto::v1::Challenge {
        cookie,
        nonce,
    }))
}

fn refusal_bytes(reason: Reason, nonce: u64) -> usize {
    let reason = reason.into();
    bytes_of(Control::Refusal(hailmary_proto::v1::Refusal {
        reason,
        nonce,
    }))
}

fn pong_bytes(nonce: u64, bus: u64) -> usize {
    let pong = hailmary_proto::v1::Pong {
        nonce,
        bus,
        received: 0,
        lost: 0,
    };
    bytes_of(Control::Pong(pong))
}
