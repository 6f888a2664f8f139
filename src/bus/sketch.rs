//! Which topics have the most events, in bounded memory whatever strangers publish.
//!
//! A [`Sketch`] is a table of counters. A topic without one gets one, and where the table is full
//! the median of all counts is taken off each of them first, so that at least half of the
//! counters come free. What was taken off is the [error](Sketch::error): no topic's count is
//! further below the truth. After Anderson, Bevan, Lang, Liberty, Rhodes and Thaler, "A
//! High-Performance Algorithm for Identifying Frequent Items in Data Streams" (IMC 2017), with
//! the exact median where they sample it. Of many exact counts that come at once, no more than
//! fit the table are looked up at all: the others are error as a whole. Sketches of parts can be
//! merged into one of the whole, whose error is the sum.
//!
//! For `n` events and `k` counters the error is under `3 n / k`: the medians were each taken off
//! half of the table, and what of many counts was left out had `k` others before it.
//!
//! Memory is used again: once the table has been full, counting allocates no more than it takes
//! to hold longer topics.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::limits::RATE_WINDOW_SECONDS;

/// The seconds of the window, which are over, and the one that is not.
const SLOTS: usize = RATE_WINDOW_SECONDS as usize + 1;

/// Events by second, for the seconds of a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Recent {
    /// The second of the first slot.
    newest: u64,
    /// The slots of ever earlier seconds. More than 32 bits of events in a second stay at that.
    events: [u32; SLOTS],
}

impl Recent {
    fn add(&mut self, second: u64, events: u64) {
        let later = usize::try_from(second.saturating_sub(self.newest)).unwrap_or(usize::MAX);
        if later > 0 {
            self.newest = second;
            self.events.rotate_right(later.min(SLOTS));
            self.events
                .iter_mut()
                .take(later)
                .for_each(|slot| *slot = 0);
        }
        let age = usize::try_from(self.newest - second).unwrap_or(usize::MAX);
        if let Some(slot) = self.events.get_mut(age) {
            *slot = slot.saturating_add(u32::try_from(events).unwrap_or(u32::MAX));
        }
    }

    fn merge(&mut self, other: &Recent) {
        for (second, events) in other.by_second().filter(|(_, events)| *events > 0) {
            self.add(second, events);
        }
    }

    /// Events of the window's seconds before this one.
    fn before(&self, now: u64) -> u64 {
        let first = now.saturating_sub(RATE_WINDOW_SECONDS.into());
        self.by_second()
            .filter(|(second, _)| (first..now).contains(second))
            .map(|(_, events)| events)
            .sum()
    }

    fn by_second(&self) -> impl Iterator<Item = (u64, u64)> {
        self.events
            .iter()
            .zip(0..)
            .filter_map(|(events, age)| Some((self.newest.checked_sub(age)?, u64::from(*events))))
    }
}

/// A topic with a counter. Topics are told apart by `kind` too, where there are kinds.
#[derive(Clone, Debug)]
pub struct Counter<K> {
    topic: Vec<u8>,
    kind: K,
    events: u64,
    recent: Recent,
}

impl<K: Copy> Counter<K> {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &[u8] {
        &self.topic
    }

    /// Of which kind its events are.
    #[must_use]
    pub fn kind(&self) -> K {
        self.kind
    }

    /// Its events, at least. There were at most the sketch's [error](Sketch::error) more.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Its events in the [`RATE_WINDOW_SECONDS`] before this second, or as many as came since it
    /// got its counter.
    #[must_use]
    pub fn events_before(&self, now: u64) -> u64 {
        self.recent.before(now)
    }
}

/// Counters of the topics with the most events.
#[derive(Debug)]
pub struct Sketch<K> {
    counters_max: usize,
    /// The first `used` count; others are spare.
    counters: Vec<Counter<K>>,
    used: usize,
    /// The places of those that count, by topic and kind.
    places: HashTable<usize>,
    hasher: FixedState,
    error: u64,
    /// Where the middle of counts is looked for.
    counts: Vec<u64>,
}

impl<K: Copy + Eq + Hash> Sketch<K> {
    /// With room for so many counters, at least one. `seed` keeps strangers from choosing topics
    /// that collide.
    #[must_use]
    pub fn new(counters_max: usize, seed: u64) -> Self {
        Self {
            counters_max: counters_max.max(1),
            counters: Vec::new(),
            used: 0,
            places: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            error: 0,
            counts: Vec::new(),
        }
    }

    /// The counters, in no order.
    #[must_use]
    pub fn counters(&self) -> &[Counter<K>] {
        self.counters.get(..self.used).unwrap_or_default()
    }

    /// Events that any topic may have had beyond what its counter says, and that a topic without
    /// a counter may have had in all.
    #[must_use]
    pub fn error(&self) -> u64 {
        self.error
    }

    /// Counts events of a topic in a second since any fixed one.
    pub fn add(&mut self, topic: &[u8], kind: K, events: u64, second: u64) {
        if let Some(counter) = self.counter(topic, kind) {
            counter.events += events;
            counter.recent.add(second, events);
        }
    }

    /// Counts events of many topics, each of which is there once. Of more than there is room for,
    /// those with the most.
    pub fn add_all<'a>(
        &mut self,
        all: impl Iterator<Item = (&'a [u8], u64)> + Clone,
        kind: K,
        second: u64,
    ) {
        self.counts.clear();
        self.counts.extend(all.clone().map(|(_, events)| events));
        let surplus = self.counts.len().saturating_sub(self.counters_max);
        let mut least = 0;
        if surplus > 0 {
            least = *self.counts.select_nth_unstable(surplus - 1).1;
            self.error += least;
        }
        let more = self.counts.iter().filter(|events| **events > least);
        let mut equals = self.counters_max.saturating_sub(more.count());
        for (topic, events) in all {
            if events == least && equals > 0 {
                equals -= 1;
                self.add(topic, kind, events, second);
            } else if events > least {
                self.add(topic, kind, events, second);
            }
        }
    }

    /// Whether nothing has been counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0 && self.error == 0
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Sketch<K>) {
        self.error += other.error;
        for more in other.counters() {
            if let Some(counter) = self.counter(&more.topic, more.kind) {
                counter.events += more.events;
                counter.recent.merge(&more.recent);
            }
        }
    }

    /// Back to nothing.
    pub fn clear(&mut self) {
        self.used = 0;
        self.places.clear();
        self.error = 0;
    }

    /// A topic's counter, a new one where it has none. There is always one to be had.
    fn counter(&mut self, topic: &[u8], kind: K) -> Option<&mut Counter<K>> {
        let hash = self.hasher.hash_one((topic, kind));
        let is_it = |place: &usize| {
            let counter = self.counters.get(*place);
            counter.is_some_and(|counter| counter.topic == topic && counter.kind == kind)
        };
        let place = match self.places.find(hash, is_it) {
            Some(place) => *place,
            None => self.begin(hash, topic, kind),
        };
        self.counters.get_mut(place)
    }

    fn begin(&mut self, hash: u64, topic: &[u8], kind: K) -> usize {
        if self.used == self.counters_max {
            self.make_room();
        }
        let place = self.used;
        self.used += 1;
        match self.counters.get_mut(place) {
            Some(spare) => {
                spare.topic.clear();
                spare.topic.extend_from_slice(topic);
                spare.kind = kind;
                spare.events = 0;
                spare.recent = Recent::default();
            }
            None => self.counters.push(Counter {
                topic: topic.to_vec(),
                kind,
                events: 0,
                recent: Recent::default(),
            }),
        }
        self.put_place(hash, place);
        place
    }

    fn put_place(&mut self, hash: u64, place: usize) {
        let (hasher, counters) = (&self.hasher, &self.counters);
        let hash_of = |place: &usize| {
            counters.get(*place).map_or(0, |counter| {
                hasher.hash_one((counter.topic.as_slice(), counter.kind))
            })
        };
        self.places.insert_unique(hash, place, hash_of);
    }

    /// Takes the median off all counts and lets those go that are at or under it.
    fn make_room(&mut self) {
        self.counts.clear();
        let counters = self.counters.iter_mut().take(self.used);
        self.counts.extend(counters.map(|counter| counter.events));
        let (_, median, _) = self.counts.select_nth_unstable(self.used / 2);
        let median = *median;
        self.error += median;
        let mut kept = 0;
        for place in 0..self.used {
            let Some(counter) = self.counters.get_mut(place) else {
                break;
            };
            counter.events = counter.events.saturating_sub(median);
            if counter.events > 0 {
                self.counters.swap(kept, place);
                kept += 1;
            }
        }
        self.used = kept;
        self.find_places();
    }

    fn find_places(&mut self) {
        self.places.clear();
        for place in 0..self.used {
            let Some(counter) = self.counters.get(place) else {
                break;
            };
            let hash = self
                .hasher
                .hash_one((counter.topic.as_slice(), counter.kind));
            self.put_place(hash, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    type Exact = HashMap<Vec<u8>, u64>;

    fn count(sketch: &mut Sketch<()>, exact: &mut Exact, topic: u16, events: u64) {
        let topic = format!("t.{topic}").into_bytes();
        sketch.add(&topic, (), events, 0);
        *exact.entry(topic).or_default() += events;
    }

    /// What the sketch promises of any stream.
    fn assert_promises(sketch: &Sketch<()>, exact: &Exact) {
        let room = sketch.counters_max;
        assert!(sketch.counters().len() <= room);
        let mut estimates: HashMap<&[u8], u64> = HashMap::new();
        for counter in sketch.counters() {
            let twice = estimates.insert(counter.topic(), counter.events());
            assert_eq!(twice, None, "{counter:?}");
            assert!(exact.contains_key(counter.topic()), "{counter:?}");
        }
        for (topic, truth) in exact {
            let estimate = estimates.get(topic.as_slice()).copied().unwrap_or(0);
            assert!(estimate <= *truth, "{estimate} for {truth}");
            assert!(*truth <= estimate + sketch.error(), "{estimate}: {truth}");
        }
        let all: u64 = exact.values().sum();
        let error = sketch.error() * room as u64;
        assert!(error <= 3 * all, "{error} of {all}");
    }

    /// Events of some of many topics, few of which have most.
    fn stream() -> impl Strategy<Value = Vec<(u16, u64)>> {
        let topic = prop_oneof![0..8_u16, 0..100_u16, any::<u16>()];
        let events = prop_oneof![Just(1), 1..20_u64, 1..10_000_u64];
        proptest::collection::vec((topic, events), 0..150)
    }

    proptest! {
        #[test]
        fn a_count_is_true_up_to_the_error(room in 1..40_usize, stream in stream()) {
            let (mut sketch, mut exact) = (Sketch::new(room, 7), Exact::new());
            for (topic, events) in stream {
                count(&mut sketch, &mut exact, topic, events);
            }
            assert_promises(&sketch, &exact);
        }

        #[test]
        fn what_is_merged_keeps_the_promises(
            room in 1..40_usize,
            streams in proptest::collection::vec(stream(), 1..4),
        ) {
            let (mut all, mut exact) = (Sketch::new(room, 1), Exact::new());
            let mut part = Sketch::new(room, 2);
            for stream in streams {
                part.clear();
                for (topic, events) in stream {
                    count(&mut part, &mut exact, topic, events);
                }
                all.merge(&part);
            }
            assert_promises(&all, &exact);
        }

        #[test]
        fn many_at_once_are_as_true(
            room in 1..40_usize,
            batches in proptest::collection::vec(stream(), 1..4),
        ) {
            let (mut sketch, mut exact) = (Sketch::new(room, 7), Exact::new());
            for (second, batch) in batches.iter().enumerate() {
                let mut counts = Exact::new();
                for (topic, events) in batch {
                    *counts.entry(topic.to_be_bytes().to_vec()).or_default() += events;
                }
                let all = counts.iter().map(|(topic, events)| (topic.as_slice(), *events));
                sketch.add_all(all, (), second as u64);
                // A first batch is exact, as far as there is room.
                let told = sketch.counters().len();
                prop_assert!(second > 0 || told == room.min(counts.len()));
                for (topic, events) in counts {
                    *exact.entry(topic).or_default() += events;
                }
            }
            assert_promises(&sketch, &exact);
        }

        #[test]
        fn a_window_is_what_came_in_its_seconds(
            by_second in proptest::collection::vec((0..60_u64, 1..1_000_u64), 0..60),
            split in 0..60_usize,
            now in 0..80_u64,
        ) {
            let [mut first, mut second] = [Recent::default(), Recent::default()];
            for (place, (at, events)) in by_second.iter().enumerate() {
                let to = if place < split { &mut first } else { &mut second };
                to.add(*at, *events);
            }
            first.merge(&second);
            let newest = by_second.iter().map(|(at, _)| *at).max().unwrap_or(0);
            // Later than that nobody asks, and of earlier seconds there are no slots.
            let now = now.max(newest);
            let window = now.saturating_sub(RATE_WINDOW_SECONDS.into())..now;
            let in_window = by_second.iter().filter(|(at, _)| window.contains(at));
            prop_assert_eq!(
                first.before(now),
                in_window.map(|(_, events)| events).sum::<u64>()
            );
        }
    }

    #[test]
    fn a_flood_of_topics_hides_no_heavy_one() {
        const FLOOD: usize = 50_000;
        let mut sketch = Sketch::new(64, 7);
        for number in 0..FLOOD {
            let topic = format!("flood.{number}.{}", "x".repeat(230));
            sketch.add(topic.as_bytes(), (), 1, 0);
            if number % 20 == 0 {
                sketch.add(b"heavy", (), 1, 0);
            }
        }
        let heavy = sketch.counters().iter().find(|c| c.topic() == b"heavy");
        let estimate = heavy.unwrap().events();
        let truth = (FLOOD / 20) as u64;
        assert!((truth - sketch.error()..=truth).contains(&estimate));
        assert!(sketch.counters.len() <= 64, "spare ones too");
    }

    #[test]
    fn kinds_are_counted_apart() {
        let mut sketch = Sketch::new(4, 7);
        for (kind, events) in [(true, 2), (false, 3), (true, 4)] {
            sketch.add(b"a", kind, events, 0);
        }
        let mut all: Vec<_> = sketch.counters().iter().collect();
        all.sort_by_key(|counter| counter.kind());
        let all: Vec<_> = all.iter().map(|c| (c.kind(), c.events())).collect();
        assert_eq!(all, [(false, 3), (true, 6)]);
    }

    #[test]
    fn a_rate_falls_to_nothing_when_nothing_comes() {
        let mut recent = Recent::default();
        for second in 100..200 {
            recent.add(second, 3);
        }
        // The second that is not over does not count.
        let window: Vec<_> = (199..212).map(|now| recent.before(now) / 3).collect();
        assert_eq!(window, [10, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]);
        recent.add(1_000_000, 5);
        assert_eq!(recent.before(1_000_000), 0);
        assert_eq!(recent.before(1_000_001), 5);
        recent.add(3, 1);
        assert_eq!(recent.before(1_000_001), 5, "too long ago to be told");
        recent.add(1_000_000, u64::MAX);
        assert_eq!(recent.before(1_000_001), u64::from(u32::MAX));
    }
}
