//! The topics seen: the busiest, those of them that nobody wanted, and those whose events were
//! dropped by a decision of the bus.
//!
//! Only legal topics are here, the bus's own among them. Routes count their events in plain
//! integers, which come here once a second and where a route ends. All is bounded by
//! [`SEEN_TOPICS_MAX`].

use std::time::Duration;

use super::limits::SEEN_TOPICS_MAX;
use super::sketch::Sketch;

/// Why an event was not routed, or not to all whom it was for. Its [`label`](EventDrop::label) is
/// the metric's: of `ingress_dropped_events_total`, or of `egress_dropped_events_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventDrop {
    /// Its source may not publish it.
    NotAllowed,
    /// Over the rate of its topic's policy.
    RateLimit,
    /// Older than its topic's policy permits.
    Stale,
    /// Copies of it were let go because the bus could not keep up. It is among those routed, too.
    Overload,
}

impl EventDrop {
    /// The reason as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            EventDrop::NotAllowed => "not_allowed",
            EventDrop::RateLimit => "rate_limit",
            EventDrop::Stale => "stale",
            EventDrop::Overload => "overload",
        }
    }
}

/// Three sketches of topics.
#[derive(Debug)]
pub struct TopicsSeen {
    /// Topics by events routed, wanted or not.
    pub busiest: Sketch<()>,
    /// Topics by events that nobody wanted.
    pub unmatched: Sketch<()>,
    /// Topics by events dropped for what is decided of them, each reason apart.
    pub dropped: Sketch<EventDrop>,
    /// The second in which is counted, since the start of the program.
    second: u64,
}

impl TopicsSeen {
    /// None yet. `seed` keeps strangers from choosing topics that collide.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            busiest: Sketch::new(SEEN_TOPICS_MAX, seed),
            unmatched: Sketch::new(SEEN_TOPICS_MAX, seed),
            dropped: Sketch::new(SEEN_TOPICS_MAX, seed),
            second: 0,
        }
    }

    /// What is counted from here on is of this time.
    #[inline]
    pub fn set_now(&mut self, now: Duration) {
        self.second = now.as_secs();
    }

    /// Counts events of a legal topic that were routed to so many subscribers.
    pub fn count_routed(&mut self, topic: &[u8], events: u64, copies: u32) {
        self.busiest.add(topic, (), events, self.second);
        if copies == 0 {
            self.unmatched.add(topic, (), events, self.second);
        }
    }

    /// Counts events of many legal topics, each of which is there once: how many were routed, and
    /// to how many subscribers each.
    pub fn count_all_routed<'a>(
        &mut self,
        all: impl Iterator<Item = (&'a [u8], u64, u32)> + Clone,
    ) {
        let events = |(topic, events, _)| (topic, events);
        let unmatched = all.clone().filter(|(.., copies)| *copies == 0);
        self.busiest.add_all(all.map(events), (), self.second);
        self.unmatched
            .add_all(unmatched.map(events), (), self.second);
    }

    /// Counts events of a legal topic that were dropped.
    #[cold]
    pub fn count_dropped(&mut self, topic: &[u8], reason: EventDrop, events: u64) {
        self.dropped.add(topic, reason, events, self.second);
    }

    /// Whether nothing has been counted since it was cleared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.busiest.is_empty() && self.dropped.is_empty()
    }

    /// Adds what others have counted.
    pub fn merge(&mut self, other: &TopicsSeen) {
        self.busiest.merge(&other.busiest);
        self.unmatched.merge(&other.unmatched);
        self.dropped.merge(&other.dropped);
    }

    /// Back to nothing.
    pub fn clear(&mut self) {
        self.busiest.clear();
        self.unmatched.clear();
        self.dropped.clear();
    }
}

#[cfg(test)]
mod tests {
    use hailmary_proto::v1::{Event, Frame};
    use prost::Message;

    use super::super::access::{Access, Effect, Rule, Rules};
    use super::super::address::{Address, Source};
    use super::super::directory::Directory;
    use super::super::leases::LeaseLimits;
    use super::super::limits::CACHED_TOPICS_MAX;
    use super::super::routes::Routes;
    use super::super::subscribers::Terms;
    use super::super::tally::EventTally;
    use super::super::{Arrival, Settings, StaticSubscriber, open};
    use super::*;

    fn rule(effect: Effect, topic: &str) -> Rule {
        Rule {
            from: vec!["0.0.0.0/0".parse().unwrap()],
            topics: vec![topic.to_owned()],
            effect,
        }
    }

    /// One who wants these topics, and nobody may publish `secret.>`.
    fn settings(wanted: &[&str]) -> Settings {
        let subscriber = |topic: &&str| StaticSubscriber {
            name: "s".to_owned(),
            address: Address::Ip(([127, 0, 0, 1], 9).into()),
            topics: vec![(*topic).to_owned()],
            frame_bytes_max: None,
            terms: Terms::default(),
        };
        Settings {
            access: Access {
                publish: Rules(vec![
                    rule(Effect::Allow, ">"),
                    rule(Effect::Deny, "secret.>"),
                ]),
                subscribe: Rules::default(),
            },
            own_sources: vec![Address::Ip(([127, 0, 0, 1], 77).into())],
            leases: LeaseLimits {
                leases_max: 0,
                leases_per_origin_max: 0,
                patterns_max: 0,
                group_members_max: 1,
                lease_ms: 1,
                lease_ms_max: 1,
            },
            leased_series_max: 0,
            subscribers: wanted.iter().map(subscriber).collect(),
            topic_policies: Vec::new(),
        }
    }

    fn counts<K: Copy + Eq + std::hash::Hash>(sketch: &Sketch<K>) -> Vec<(String, u64)> {
        let counters = sketch.counters().iter();
        let count = |counter: &super::super::sketch::Counter<K>| {
            let topic = String::from_utf8(counter.topic().to_vec()).unwrap();
            (topic, counter.events())
        };
        let mut counts: Vec<_> = counters.map(count).collect();
        counts.sort();
        counts
    }

    fn told(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        let owned = |(topic, events): &(&str, u64)| ((*topic).to_owned(), *events);
        expected.iter().map(owned).collect()
    }

    fn frame(events: &[(&str, usize)]) -> Vec<u8> {
        let event = |topic: &str| Event {
            topic: topic.to_owned(),
            ..Event::default()
        };
        let events = events.iter();
        let events = events.flat_map(|(topic, n)| std::iter::repeat_n(event(topic), *n));
        let frame = Frame {
            events: events.collect(),
            ..Frame::default()
        };
        frame.encode_to_vec()
    }

    #[test]
    fn each_event_is_where_it_ended_and_illegal_topics_are_nowhere() {
        let settings = settings(&["wanted.>"]);
        let mut parts = open(&settings, 1, Duration::ZERO, Box::new(|| [7; 16]));
        let (mut forwarder, mut publishers) = parts.workers.remove(0);
        let datagrams = [
            (9, frame(&[("wanted.a", 3)])),
            (9, frame(&[("wanted.a", 2), ("other", 4), ("secret.a", 5)])),
            (9, frame(&[("secret.a", 1)])),
            (9, frame(&[("no topic", 1), ("..", 1), ("", 1)])),
            (9, frame(&[("_hailmary.a", 1)])),
            (9, frame(&[("_hailmary.no topic", 1)])),
            (77, frame(&[("_hailmary.a", 6)])),
            (77, frame(&[("_hailmary.a", 1), ("_hailmary.a", 1)])),
        ];
        let mut tally = EventTally::default();
        forwarder.begin_turn(&parts.directory);
        for (port, datagram) in &datagrams {
            let arrival = Arrival {
                source: Source::Ip(([127, 0, 0, 1], *port).into()),
                listener: 0,
                now: Duration::from_millis(5_500),
                unix_nano: 0,
            };
            let (directory, publishers) = (&parts.directory, &mut publishers);
            forwarder
                .handle_datagram(directory, publishers, arrival, datagram, &mut tally)
                .unwrap();
        }
        let seen = forwarder.topics_seen(Duration::from_secs(6));
        let unmatched = [("_hailmary.a", 8), ("other", 4)];
        let wanted = ("wanted.a", 5);
        assert_eq!(
            counts(&seen.busiest),
            told(&[unmatched[0], unmatched[1], wanted])
        );
        assert_eq!(counts(&seen.unmatched), told(&unmatched));
        let dropped = [("_hailmary.a", 1), ("secret.a", 6)];
        assert_eq!(counts(&seen.dropped), told(&dropped));
        let recent: u64 = seen
            .busiest
            .counters()
            .iter()
            .map(|c| c.events_before(7))
            .sum();
        let routed: u64 = tally.matched + tally.unmatched;
        assert_eq!((recent, routed), (17, 17));
        seen.clear();
        assert!(forwarder.topics_seen(Duration::from_secs(7)).is_empty());
    }

    #[test]
    fn no_count_is_lost_with_its_route() {
        let (nobody, one) = (settings(&[]), settings(&["a"]));
        let [nobody, one] = [nobody, one].map(|settings| Directory::new(&settings, 1));
        let mut routes = Routes::new(1);
        let mut seen = TopicsSeen::new(1);
        let mut count = |routes: &mut Routes, topic: &str, directory, events| {
            let id = routes.resolve(topic.as_bytes(), directory, &mut seen);
            let route = routes.route(id.unwrap()).unwrap();
            route.count(events);
        };
        for (directory, events) in [(&nobody, 3), (&one, 40), (&nobody, 500)] {
            count(&mut routes, "a", directory, events);
        }
        // So many that the first are forgotten.
        for number in 0..CACHED_TOPICS_MAX {
            let topic = format!("b.{number}");
            count(&mut routes, &topic, &nobody, u64::from(number < 100));
        }
        routes.hand_over(&mut seen);
        routes.hand_over(&mut seen);
        let told = |sketch| counts(sketch).into_iter().map(|(_, events)| events);
        assert_eq!(counts(&seen.busiest)[0], ("a".to_owned(), 543));
        assert_eq!(told(&seen.busiest).sum::<u64>(), 643);
        assert_eq!(counts(&seen.unmatched)[0], ("a".to_owned(), 503));
        assert_eq!(told(&seen.unmatched).sum::<u64>(), 603);
    }
}
