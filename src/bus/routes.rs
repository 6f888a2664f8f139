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
use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hailmary_proto::topic;
use hailmary_proto::write::STAMP_BYTES_MAX;
use hashbrown::{HashMap, HashTable};

use super::directory::Directory;
use super::limits::{CACHED_TOPICS_MAX, SUBSCRIBER_SETS_MAX};
use super::patterns::LookUp;
use super::seen::TopicsSeen;
use super::subscribers::{FrameBytes, SubscriberId, Subscribers};

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

/// A subscriber set: members that take datagrams of one size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubscriberSet {
    /// Who they are, in order of id.
    pub members: Box<[SubscriberId]>,
    /// How large their datagrams are.
    pub frame_bytes: FrameBytes,
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
    /// One set for each size of datagram; none where nobody wants the topic.
    pub sets: Box<[Destination]>,
    /// Members of all sets together.
    pub copies: u32,
    /// The first configured topic policy that matches, else the number of policies.
    pub policy: u32,
    /// Events routed since they were last handed to the topics seen.
    pub events: Cell<u64>,
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
        (events > 0).then_some((&self.topic, events, self.route.copies))
    }
}

/// The way from topics to subscriber sets.
#[derive(Debug)]
pub struct Routes {
    policies: Vec<String>,
    cache: Vec<CachedTopic>,
    /// The places in `cache`, by topic.
    places: HashTable<RouteId>,
    /// The topic found last: publishers repeat themselves.
    last: RouteId,
    /// Of these routes: it also changes when sets are forgotten.
    generation: u64,
    /// The directory's, as of these routes.
    followed: u64,
    sets: Vec<SubscriberSet>,
    interned: HashMap<SubscriberSet, SetId, FixedState>,
    hasher: FixedState,
    look_up: LookUp,
}

impl Routes {
    /// Nothing known yet. `seed` keeps strangers from choosing topics that collide.
    #[must_use]
    pub fn new(policies: Vec<String>, seed: u64) -> Self {
        Self {
            policies,
            cache: Vec::new(),
            places: HashTable::new(),
            last: RouteId(0),
            generation: 0,
            followed: 0,
            sets: Vec::new(),
            interned: HashMap::with_hasher(FixedState::with_seed(seed)),
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
        let route = Route {
            copies: u32::try_from(look_up.found.len()).unwrap_or(u32::MAX),
            sets: self.intern_by_size(&look_up.found, directory.subscribers()),
            policy: self.policy(topic),
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
        }
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

    /// Between turns: forgets sets past the bound. They are found again as topics come.
    pub fn end_turn(&mut self) {
        if self.sets.len() > SUBSCRIBER_SETS_MAX {
            self.begin_generation();
        }
    }

    fn begin_generation(&mut self) {
        self.generation += 1;
        self.sets.clear();
        self.interned.clear();
    }

    fn intern_by_size(
        &mut self,
        found: &[SubscriberId],
        subscribers: &Subscribers,
    ) -> Box<[Destination]> {
        let size = |id: &SubscriberId| subscribers.get(*id).map(|one| one.frame_bytes);
        let mut sizes: Vec<FrameBytes> = found.iter().filter_map(size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
            .into_iter()
            .map(|frame_bytes| {
                let members = found
                    .iter()
                    .copied()
                    .filter(|id| size(id) == Some(frame_bytes));
                let set = SubscriberSet {
                    members: members.collect(),
                    frame_bytes,
                };
                Destination {
                    id: self.intern(set),
                    body_bytes_max: (frame_bytes.target as usize).saturating_sub(STAMP_BYTES_MAX),
                }
            })
            .collect()
    }

    fn intern(&mut self, set: SubscriberSet) -> SetId {
        if let Some(id) = self.interned.get(&set) {
            return *id;
        }
        // Bounded by SUBSCRIBER_SETS_MAX and one turn's events, far under 32 bits.
        let id = SetId(u32::try_from(self.sets.len()).unwrap_or(u32::MAX));
        self.sets.push(set.clone());
        self.interned.insert(set, id);
        id
    }

    fn policy(&self, topic: &[u8]) -> u32 {
        let first = self
            .policies
            .iter()
            .position(|pattern| topic::matches(pattern.as_bytes(), topic))
            .unwrap_or(self.policies.len());
        u32::try_from(first).unwrap_or(u32::MAX)
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
