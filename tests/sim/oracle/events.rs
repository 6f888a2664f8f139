//! The way of events: what comes in, and the copies that must come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use hailmary::bus::policies::Priority;
use hailmary::bus::{CopyDrop, FrameDrop};
use hailmary_proto::v1::{Event, Frame, Stamp};

use super::super::bus::{Decided, FlowRead, Sent, Turn};
use super::super::law::{Broken, Kept, law};
use super::super::party::{Due, Party, Taken, weight_of};
use super::super::plan::{self, Right};
use super::super::wire;
use super::books::SeriesBooks;
use super::leases::Request;
use super::{Arrived, DATAGRAM_MAX, Flow, Key, Member, Oracle};

const HOPS_MAX: u32 = 8;

/// What is noted where it is seen.
const SHARED: &str = "group whose members shared events";
const OVERLOADED: &str = "turn under overload";
pub(super) const KINDS: [&str; 2] = [SHARED, OVERLOADED];

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

impl Oracle {
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
            let first = Arrived {
                events: 0,
                first: stamp.sequence,
            };
            self.arrived.entry(stamp.sender).or_insert(first).events += slices.len() as u64;
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
            let message = Request {
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

fn hops(frame: &Frame) -> u32 {
    frame.stamp.as_ref().map_or(0, |stamp| stamp.hops)
}
