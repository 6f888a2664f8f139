//! From a topic to the subscriber sets that want it.
//!
//! A cache of topics stands in front of the directory. What it holds is right for one generation
//! of it; a change begins a new one, and topics find their sets again as they come. Topics that
//! nobody wants are cached like others, and what is cached is bounded: see
//! [`CACHED_TOPICS_MAX`].
//!
//! The bus's own topics are cached as out of date from the start, so that each of their events is
//! resolved anew: there its source is looked at, which costs the others nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hailmary_proto::topic;
use hailmary_proto::write::STAMP_BYTES_MAX;
use hashbrown::{HashMap, HashTable};

use super::directory::Directory;
use super::groups::Seed;
use super::limits::{CACHED_TOPICS_MAX, SET_MEMBERS_MAX};
use super::overload::Reach;
use super::patterns::LookUp;
use super::policies::{Policy, PolicyId, Priority};
use super::sample::{Sample, Weight};
use super::seen::{EventDrop, TopicsSeen};
use super::series::SeriesId;
use super::subscribers::{Subscriber, SubscriberId, Subscribers, Terms};

/// The generation of routes that never hold: no bus changes its directory so often.
const NEVER: u64 = u64::MAX;

/// Subscribers that get the same frames, interned: topics with equal members share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetId(u32);

impl SetId {
    /// The set as an index, dense from 0 within a generation.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A subscriber set: members that get the same events in datagrams of one size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubscriberSet {
    /// Who they are, in order of id.
    pub members: Box<[SubscriberId]>,
    /// Bytes that their datagrams are filled to.
    pub frame_bytes: u32,
    /// Of which priority the topics are, where they are thinned out: so their events, which have
    /// another weight, have frames of their own.
    pub thinned: Option<Priority>,
}

/// A set that a topic leads to, with what the fan-out needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The set.
    pub id: SetId,
    /// Bytes of events that its members' datagrams have room for, beside any stamp.
    pub body_bytes_max: usize,
}

/// What a topic leads to.
#[derive(Clone, Debug)]
pub struct Route {
    /// Where the topic's events go.
    pub way: Way,
    /// Where they are counted.
    pub label: SeriesId,
    /// Events routed since they were last handed to the topics seen.
    events: Cell<u64>,
}

impl Route {
    /// Counts events as routed.
    #[inline]
    pub fn count(&self, events: u64) {
        self.events.set(self.events.get() + events);
    }

    fn copies(&self) -> u32 {
        match &self.way {
            Way::Nowhere => 0,
            Way::Straight(sets) => sets.copies,
            Way::Selective(selection) => selection.copies,
        }
    }
}

/// Where events go.
#[derive(Clone, Debug)]
pub enum Way {
    /// To nobody.
    Nowhere,
    /// All of them to all members of some sets.
    Straight(Sets),
    /// It is to be decided of each.
    Selective(Box<Selection>),
}

/// Sets whose members get every event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// One for each size of datagram.
    pub destinations: Box<[Destination]>,
    /// Members of all together.
    pub copies: u32,
}

/// What is to be decided of each event of a topic, and who gets what is let pass.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The topic's policy, if it has one.
    pub policy: Option<PolicyId>,
    /// What becomes of the events when the bus cannot keep up.
    pub priority: Priority,
    /// Who gets every event.
    pub sets: Sets,
    /// Of each of these parties, one gets an event.
    pub parties: PartiesId,
    /// Copies made of each event.
    pub copies: u32,
    /// Events dropped since they were last handed to the topics seen, by [`SELECTED`].
    dropped: [Cell<u64>; SELECTED.len()],
}

/// The reasons for which events are dropped by what is decided of their topic.
const SELECTED: [EventDrop; 3] = [EventDrop::RateLimit, EventDrop::Stale, EventDrop::Overload];

impl Selection {
    /// Counts events as dropped, for one of the reasons in [`SELECTED`].
    pub fn count_dropped(&self, reason: EventDrop, events: u64) {
        for (other, count) in SELECTED.into_iter().zip(&self.dropped) {
            if other == reason {
                count.set(count.get() + events);
            }
        }
    }
}

/// Parties, interned: topics with equal members have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartiesId(u32);

/// What parties are interned by: who they are, and of which priority the topics are that are
/// thinned out.
type PartiesKey = (Box<[SubscriberId]>, Option<Priority>);

/// Parties, and how many copies they get of an event.
#[derive(Debug)]
struct Parties {
    all: Box<[Party]>,
    copies: u32,
}

/// Those of whom one gets an event: a group, or a subscriber on its own terms.
#[derive(Clone, Debug)]
pub struct Party {
    /// At least one.
    pub members: Box<[Member]>,
}

/// A member of a party.
#[derive(Clone, Debug)]
pub struct Member {
    /// What decides which keys are its own.
    pub seed: Seed,
    /// Its set: it alone, or all who share these very terms.
    pub to: Destination,
    /// The share of events that it gets.
    pub sample: Sample,
    /// How many events each of these stands for.
    pub weight: Weight,
    /// Who has a rate that is not to be exceeded, if it has one.
    pub limited: Option<SubscriberId>,
}

/// A topic's place in the cache. It stays what it is until the next [`Routes::resolve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteId(u32);

#[derive(Debug)]
struct CachedTopic {
    topic: Box<[u8]>,
    generation: u64,
    route: Route,
}

impl CachedTopic {
    /// Its topic, the events that are to be handed to the topics seen, and the copies of each.
    fn counted(&self) -> Option<(&[u8], u64, u32)> {
        let events = self.route.events.get();
        (events > 0).then_some((&self.topic, events, self.route.copies()))
    }

    /// Hands what was dropped of its events to the topics seen.
    fn hand_dropped_over(&self, seen: &mut TopicsSeen) {
        let Way::Selective(selection) = &self.route.way else {
            return;
        };
        for (reason, count) in SELECTED.into_iter().zip(&selection.dropped) {
            if count.get() > 0 {
                seen.count_dropped(&self.topic, reason, count.take());
            }
        }
    }
}

/// The way from topics to subscriber sets.
#[derive(Debug)]
pub struct Routes {
    cache: Vec<CachedTopic>,
    /// The places in `cache`, by topic.
    places: HashTable<RouteId>,
    /// The topic found last: publishers repeat themselves.
    last: RouteId,
    /// Of these routes: it also changes when sets are forgotten.
    generation: u64,
    /// The directory's, as of these routes.
    followed: u64,
    /// Which topics are thinned out.
    reach: Reach,
    sets: Vec<SubscriberSet>,
    interned: HashMap<SubscriberSet, SetId, FixedState>,
    parties: Vec<Parties>,
    interned_parties: HashMap<PartiesKey, PartiesId, FixedState>,
    /// Members of all sets and parties together.
    members: usize,
    hasher: FixedState,
    look_up: LookUp,
}

impl Routes {
    /// Nothing known yet. `seed` keeps strangers from choosing topics that collide.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            cache: Vec::new(),
            places: HashTable::new(),
            last: RouteId(0),
            generation: 0,
            followed: 0,
            reach: Reach::default(),
            members: 0,
            sets: Vec::new(),
            interned: HashMap::with_hasher(FixedState::with_seed(seed)),
            parties: Vec::new(),
            interned_parties: HashMap::with_hasher(FixedState::with_seed(seed)),
            hasher: FixedState::with_seed(seed),
            look_up: LookUp::default(),
        }
    }

    /// Forgets what no longer holds of the directory. Only between turns: no frame may be under
    /// construction.
    #[inline]
    pub fn follow(&mut self, directory: &Directory) {
        if self.followed != directory.generation() {
            self.followed = directory.generation();
            self.begin_generation();
        }
    }

    /// From now on these topics are thinned out, or may be: where fewer are, it stays as it is
    /// till none is, so that routes are not found anew at each step. Only between turns.
    pub fn thin(&mut self, reach: Reach) {
        if reach > self.reach || (reach == Reach::None && self.reach != reach) {
            self.reach = reach;
            self.begin_generation();
        }
    }

    /// The cached route of a topic, if there is one and it still holds. That of a reserved topic
    /// never does.
    #[inline(always)]
    pub fn find(&mut self, topic: &[u8]) -> Option<RouteId> {
        if !self.is_of(self.last, topic) {
            let hash = self.hasher.hash_one(topic);
            self.last = *self.places.find(hash, |id| self.is_of(*id, topic))?;
        }
        let cached = self.cached(self.last)?;
        (cached.generation == self.generation).then_some(self.last)
    }

    /// Finds the route of a topic anew and caches it, or `None` where the topic is illegal. What
    /// was counted for a route that goes is handed to the topics seen.
    #[cold]
    pub fn resolve(
        &mut self,
        topic: &[u8],
        directory: &Directory,
        seen: &mut TopicsSeen,
    ) -> Option<RouteId> {
        topic::check_topic(topic).ok()?;
        let mut look_up = std::mem::take(&mut self.look_up);
        directory.find(topic, &mut look_up);
        let policy = directory.policies().of(topic);
        let route = Route {
            label: policy
                .and_then(|id| directory.policies().get(id))
                .map_or(SeriesId::OTHER, |policy| policy.label),
            way: self.way(topic, &look_up.found, policy, directory),
            events: Cell::new(0),
        };
        self.look_up = look_up;
        Some(self.remember(topic, route, seen))
    }

    /// Hands what has been counted for each route to the topics seen.
    pub fn hand_over(&self, seen: &mut TopicsSeen) {
        seen.count_all_routed(self.cache.iter().filter_map(CachedTopic::counted));
        for cached in &self.cache {
            if cached.route.events.get() > 0 {
                cached.route.events.set(0);
            }
            cached.hand_dropped_over(seen);
        }
    }

    fn way(
        &mut self,
        topic: &[u8],
        found: &[SubscriberId],
        policy: Option<PolicyId>,
        directory: &Directory,
    ) -> Way {
        let decided = policy.and_then(|id| directory.policies().get(id));
        let priority = match topic::is_reserved(topic) {
            // What watches the bus is to tell of its load, and not to go first.
            true => Priority::High,
            false => decided.map_or(Priority::Normal, Policy::priority),
        };
        let thinned = self.reach.includes(priority).then_some(priority);
        let subscribers = directory.subscribers();
        let is_plain = |id: &&SubscriberId| {
            let one = subscribers.get(**id);
            one.is_some_and(|one| one.terms == Terms::default())
        };
        let (plain, others): (Vec<_>, Vec<_>) = found.iter().partition(is_plain);
        let sets = self.sets(&plain, thinned, subscribers);
        let is_selective = decided.is_some_and(Policy::is_selective) || thinned.is_some();
        if !is_selective && others.is_empty() {
            return match sets.copies {
                0 => Way::Nowhere,
                _ => Way::Straight(sets),
            };
        }
        let (parties, copies) = self.intern_parties(others, thinned, subscribers);
        Way::Selective(Box::new(Selection {
            policy,
            priority,
            copies: sets.copies.saturating_add(copies),
            sets,
            parties,
            dropped: Default::default(),
        }))
    }

    /// The route of an id that [`Routes::find`] or [`Routes::resolve`] gave.
    #[must_use]
    #[inline]
    pub fn route(&self, id: RouteId) -> Option<&Route> {
        self.cached(id).map(|cached| &cached.route)
    }

    #[inline]
    fn cached(&self, id: RouteId) -> Option<&CachedTopic> {
        self.cache.get(id.0 as usize)
    }

    #[inline]
    fn is_of(&self, id: RouteId, topic: &[u8]) -> bool {
        self.cached(id)
            .is_some_and(|cached| topic::is_same(&cached.topic, topic))
    }

    /// The set of an id that a route of this generation gave.
    #[must_use]
    #[inline]
    pub fn set(&self, id: SetId) -> Option<&SubscriberSet> {
        self.sets.get(id.index())
    }

    /// The parties of an id that a route of this generation gave.
    #[must_use]
    #[inline]
    pub fn parties(&self, id: PartiesId) -> &[Party] {
        let parties = self.parties.get(id.0 as usize);
        parties.map_or(&[], |parties| &parties.all)
    }

    /// Between turns: forgets sets and parties past the bound. They are found again as topics come.
    pub fn end_turn(&mut self) {
        if self.members > SET_MEMBERS_MAX {
            self.begin_generation();
        }
    }

    fn begin_generation(&mut self) {
        self.generation += 1;
        self.sets.clear();
        self.interned.clear();
        self.parties.clear();
        self.interned_parties.clear();
        self.members = 0;
    }

    /// One set for each size of datagram.
    fn sets(
        &mut self,
        members: &[SubscriberId],
        thinned: Option<Priority>,
        subscribers: &Subscribers,
    ) -> Sets {
        let mut by_size: BTreeMap<u32, Vec<SubscriberId>> = BTreeMap::new();
        for id in members {
            if let Some(one) = subscribers.get(*id) {
                by_size.entry(one.frame_bytes.target).or_default().push(*id);
            }
        }
        let destination = |(size, members)| self.destination(size, members, thinned);
        Sets {
            destinations: by_size.into_iter().map(destination).collect(),
            copies: count(members),
        }
    }

    fn destination(
        &mut self,
        frame_bytes: u32,
        members: Vec<SubscriberId>,
        thinned: Option<Priority>,
    ) -> Destination {
        Destination {
            id: self.intern(SubscriberSet {
                members: members.into(),
                frame_bytes,
                thinned,
            }),
            body_bytes_max: (frame_bytes as usize).saturating_sub(STAMP_BYTES_MAX),
        }
    }

    /// The parties that these make, and how many copies they get of an event.
    fn intern_parties(
        &mut self,
        members: Vec<SubscriberId>,
        thinned: Option<Priority>,
        subscribers: &Subscribers,
    ) -> (PartiesId, u32) {
        let key = (members.into_boxed_slice(), thinned);
        if let Some(id) = self.interned_parties.get(&key) {
            let copies = self.parties.get(id.0 as usize).map(|one| one.copies);
            return (*id, copies.unwrap_or_default());
        }
        let parties = self.make_parties(&key.0, thinned, subscribers);
        let copies = parties.iter().map(|(_, copies)| copies).sum::<u32>();
        let all: Box<[Party]> = parties.into_iter().map(|(party, _)| party).collect();
        self.members += all.iter().map(|party| party.members.len()).sum::<usize>();
        // Bounded as sets are.
        let id = PartiesId(u32::try_from(self.parties.len()).unwrap_or(u32::MAX));
        self.parties.push(Parties { all, copies });
        self.interned_parties.insert(key, id);
        (id, copies)
    }

    /// The groups, and those who are in none; with each, how many copies it gets of an event.
    fn make_parties(
        &mut self,
        members: &[SubscriberId],
        thinned: Option<Priority>,
        subscribers: &Subscribers,
    ) -> Vec<(Party, u32)> {
        let mut groups: BTreeMap<&str, Vec<Member>> = BTreeMap::new();
        let mut alike: BTreeMap<(u32, Sample), Vec<SubscriberId>> = BTreeMap::new();
        let mut parties = Vec::new();
        for id in members {
            let Some(one) = subscribers.get(*id) else {
                continue;
            };
            match &one.terms {
                Terms {
                    group: Some(group), ..
                } => {
                    let member = self.member(*id, one, thinned);
                    groups.entry(group).or_default().push(member);
                }
                Terms {
                    events_per_second: None,
                    sample,
                    ..
                } => {
                    let key = (one.frame_bytes.target, *sample);
                    alike.entry(key).or_default().push(*id);
                }
                _ => parties.push((party([self.member(*id, one, thinned)]), 1)),
            }
        }
        for ((frame_bytes, sample), members) in alike {
            let copies = count(&members);
            let to = self.destination(frame_bytes, members, thinned);
            parties.push((party([on_terms(to, sample, None)]), copies));
        }
        parties.extend(groups.into_values().map(|members| (party(members), 1)));
        parties
    }

    fn member(&mut self, id: SubscriberId, one: &Subscriber, thinned: Option<Priority>) -> Member {
        let to = self.destination(one.frame_bytes.target, vec![id], thinned);
        let limited = one.terms.events_per_second.map(|_| id);
        Member {
            seed: one.standing.seed.unwrap_or_default(),
            ..on_terms(to, one.terms.sample, limited)
        }
    }

    fn intern(&mut self, set: SubscriberSet) -> SetId {
        if let Some(id) = self.interned.get(&set) {
            return *id;
        }
        // Bounded by SET_MEMBERS_MAX and one turn's events, far under 32 bits.
        self.members += set.members.len();
        let id = SetId(u32::try_from(self.sets.len()).unwrap_or(u32::MAX));
        self.sets.push(set.clone());
        self.interned.insert(set, id);
        id
    }

    fn remember(&mut self, topic: &[u8], route: Route, seen: &mut TopicsSeen) -> RouteId {
        let generation = match topic::is_reserved(topic) {
            true => NEVER,
            false => self.generation,
        };
        let hash = self.hasher.hash_one(topic);
        let known = self.places.find(hash, |id| self.is_of(*id, topic)).copied();
        if let Some(cached) = known.and_then(|id| self.cache.get_mut(id.0 as usize)) {
            if let Some((topic, events, copies)) = cached.counted() {
                seen.count_routed(topic, events, copies);
            }
            cached.hand_dropped_over(seen);
            cached.route = route;
            cached.generation = generation;
            return known.unwrap_or(self.last);
        }
        if self.cache.len() >= CACHED_TOPICS_MAX {
            self.hand_over(seen);
            self.cache.clear();
            self.places.clear();
        }
        // CACHED_TOPICS_MAX has far less than 32 bits.
        let id = RouteId(u32::try_from(self.cache.len()).unwrap_or(u32::MAX));
        self.cache.push(CachedTopic {
            topic: topic.into(),
            generation,
            route,
        });
        let (hasher, cache) = (&self.hasher, &self.cache);
        let hash_of = |id: &RouteId| {
            let cached = cache.get(id.0 as usize);
            hasher.hash_one(cached.map_or(&[][..], |cached| &cached.topic))
        };
        self.places.insert_unique(hash, id, hash_of);
        id
    }
}

fn party(members: impl Into<Box<[Member]>>) -> Party {
    Party {
        members: members.into(),
    }
}

/// A member that is the only one of its party.
fn on_terms(to: Destination, sample: Sample, limited: Option<SubscriberId>) -> Member {
    Member {
        seed: Seed::default(),
        to,
        sample,
        weight: sample.weight(),
        limited,
    }
}

fn count(members: &[SubscriberId]) -> u32 {
    u32::try_from(members.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::access::{Access, Rules};
    use crate::bus::leases::LeaseLimits;
    use crate::bus::{Settings, StaticSubscriber};

    /// A directory in which so many members of one group want every topic.
    fn directory(members: u16) -> Directory {
        let member = |number: u16| StaticSubscriber {
            name: format!("s{number}"),
            address: crate::bus::address::Address::Ip(([127, 0, 0, 1], 1 + number).into()),
            topics: vec![">".to_owned()],
            frame_bytes_max: None,
            terms: Terms {
                group: Some("g".into()),
                ..Terms::default()
            },
        };
        let settings = Settings {
            access: Access {
                publish: Rules(Vec::new()),
                subscribe: Rules(Vec::new()),
            },
            own_sources: Vec::new(),
            leases: LeaseLimits {
                leases_max: 0,
                leases_per_origin_max: 0,
                patterns_max: 0,
                group_members_max: 0,
                lease_ms: 0,
                lease_ms_max: 0,
            },
            leased_series_max: 0,
            subscribers: (0..members).map(member).collect(),
            topic_policies: Vec::new(),
        };
        Directory::new(&settings, 1)
    }

    #[test]
    fn topics_with_equal_members_share_their_parties() {
        const MEMBERS: u16 = 100;
        let mut routes = Routes::new(1);
        let directory = directory(MEMBERS);
        routes.follow(&directory);
        for number in 0..1_000 {
            let topic = format!("t.{number}");
            let seen = &mut TopicsSeen::new(1);
            let id = routes.resolve(topic.as_bytes(), &directory, seen).unwrap();
            let Way::Selective(selection) = &routes.route(id).unwrap().way else {
                panic!("a group is chosen from");
            };
            let parties = routes.parties(selection.parties);
            assert_eq!((parties.len(), selection.copies), (1, 1));
            assert_eq!(parties[0].members.len(), usize::from(MEMBERS));
        }
        assert_eq!(routes.parties.len(), 1);
        assert_eq!(
            routes.members,
            2 * usize::from(MEMBERS),
            "of sets of one, and of the party"
        );
    }
}
