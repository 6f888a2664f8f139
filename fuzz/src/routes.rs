//! The trie of patterns, the cache in front of it and the sets behind it, as subscribers come, go
//! and change their minds between events: who gets which events, in which order, against a naive
//! table of patterns.

use std::time::Duration;

use hailmary::bus::access::{Access, Effect, Rule, Rules};
use hailmary::bus::address::{Address, Source};
use hailmary::bus::leases::LeaseLimits;
use hailmary::bus::publishers::Publishers;
use hailmary::bus::subscribers::Terms;
use hailmary::bus::tally::EventTally;
use hailmary::bus::{Arrival, Directory, Forwarder, Registrar, Settings, StaticSubscriber, open};
use hailmary_proto::decode::Decoder;
use hailmary_proto::write::{EventParts, write_event};

use crate::naive;
use crate::tape::Tape;

/// Steps of one input.
const STEPS_MAX: usize = 64;

/// Subscribers that come and go.
const SUBSCRIBERS: usize = 6;

/// What the bus holds with so few of everything: mostly its tables of the topics seen.
const BYTES_MAX: u64 = 8 << 20;

const TOKENS: [&str; 6] = ["a", "b", "*", "_hailmary", "cc", ">"];

/// See the module.
pub fn run(data: &[u8]) {
    crate::within(BYTES_MAX, || drive(data));
}

fn drive(data: &[u8]) {
    let mut tape = Tape::new(data);
    let mut bus = Bus::open();
    for _ in 0..STEPS_MAX {
        if tape.is_at_end() {
            break;
        }
        match tape.below(4) {
            0 => bus.subscribe(tape.below(SUBSCRIBERS), patterns(&mut tape), &mut tape),
            1 => bus.unsubscribe(tape.below(SUBSCRIBERS)),
            _ => bus.publish(&mut tape),
        }
    }
}

/// An event's topic and number.
type Received = (String, u32);

fn text(tape: &mut Tape<'_>, is_legal: fn(&[u8]) -> bool) -> String {
    let tokens: Vec<_> = (0..1 + tape.below(5))
        .map(|_| *tape.pick(&TOKENS))
        .collect();
    let text = tokens.join(".");
    match is_legal(text.as_bytes()) {
        true => text,
        false => "a".to_owned(),
    }
}

fn patterns(tape: &mut Tape<'_>) -> Vec<String> {
    let patterns = 0..1 + tape.below(3);
    patterns.map(|_| text(tape, naive::is_pattern)).collect()
}

struct Bus {
    settings: Settings,
    directory: Directory,
    registrar: Registrar,
    forwarder: Forwarder,
    publishers: Publishers,
    now: Duration,
    /// Events published so far: each has its number as payload.
    published: u32,
}

fn address(index: usize) -> Address {
    let port = 1_000 + u16::try_from(index).expect("few");
    Address::Ip(([127, 0, 0, 1], port).into())
}

fn source() -> Source<'static> {
    Source::Ip(([127, 0, 0, 1], 9).into())
}

fn settings() -> Settings {
    let everybody = || {
        Rules(vec![Rule {
            from: vec!["0.0.0.0/0".parse().expect("a network")],
            topics: vec![">".to_owned()],
            effect: Effect::Allow,
        }])
    };
    Settings {
        access: Access {
            publish: everybody(),
            subscribe: everybody(),
        },
        // So that reserved topics are published, too.
        own_sources: vec![source().to_address()],
        leases: LeaseLimits {
            leases_max: 0,
            leases_per_origin_max: 0,
            patterns_max: 0,
            group_members_max: 1,
            lease_ms: 1_000,
            lease_ms_max: 1_000,
        },
        leased_series_max: 0,
        subscribers: Vec::new(),
        topic_policies: Vec::new(),
    }
}

impl Bus {
    fn open() -> Self {
        let settings = settings();
        let mut counter = 0_u8;
        let random = move || {
            counter += 1;
            [counter; 16]
        };
        let mut parts = open(&settings, 1, Duration::ZERO, Box::new(random));
        let (forwarder, publishers) = parts.workers.remove(0);
        Self {
            settings,
            directory: parts.directory,
            registrar: parts.registrar,
            forwarder,
            publishers,
            now: Duration::from_secs(1),
            published: 0,
        }
    }

    fn subscribe(&mut self, index: usize, topics: Vec<String>, tape: &mut Tape<'_>) {
        let frame_bytes_max = *tape.pick(&[None, Some(508), Some(2_000), Some(65_507)]);
        self.settings
            .subscribers
            .retain(|one| one.address != address(index));
        self.settings.subscribers.push(StaticSubscriber {
            name: format!("s{index}"),
            address: address(index),
            topics,
            frame_bytes_max,
            terms: Terms::default(),
        });
        self.reconfigure();
    }

    fn unsubscribe(&mut self, index: usize) {
        self.settings
            .subscribers
            .retain(|one| one.address != address(index));
        self.reconfigure();
    }

    fn reconfigure(&mut self) {
        let mut events = Vec::new();
        self.registrar
            .reconfigure(&self.settings, &mut self.directory, &mut events);
        assert!(events.is_empty());
        let all = self.directory.subscribers().iter().count();
        assert_eq!(all, self.settings.subscribers.len());
    }

    fn publish(&mut self, tape: &mut Tape<'_>) {
        self.forwarder.begin_turn(&self.directory);
        let mut expected = vec![Vec::new(); SUBSCRIBERS];
        for _ in 0..1 + tape.below(3) {
            let mut datagram = Vec::new();
            let mut topic = "a".to_owned();
            for _ in 0..1 + tape.below(6) {
                if tape.one_in(2) {
                    topic = text(tape, naive::is_topic);
                }
                self.expect(&topic, &mut expected);
                let payload = self.published.to_be_bytes();
                let parts = EventParts {
                    topic: &topic,
                    payload: &payload,
                    ..EventParts::default()
                };
                write_event(&mut datagram, &parts);
                self.published += 1;
            }
            self.handle(&datagram);
        }
        let mut got = self.take_copies();
        for events in got.iter_mut().chain(&mut expected) {
            // Only events of one topic have an order among them.
            events.sort_by(|one, other| one.0.cmp(&other.0));
        }
        assert_eq!(got, expected);
        self.now += Duration::from_millis(1);
    }

    fn expect(&self, topic: &str, expected: &mut [Vec<Received>]) {
        for subscriber in &self.settings.subscribers {
            let mut patterns = subscriber.topics.iter();
            if patterns.any(|pattern| naive::matches(pattern, topic)) {
                let index = (0..SUBSCRIBERS).find(|index| address(*index) == subscriber.address);
                let event = (topic.to_owned(), self.published);
                expected[index.expect("one of them")].push(event);
            }
        }
    }

    fn handle(&mut self, datagram: &[u8]) {
        let arrival = Arrival {
            source: source(),
            listener: 0,
            now: self.now,
            unix_nano: 0,
        };
        let mut tally = EventTally::default();
        let (directory, publishers) = (&self.directory, &mut self.publishers);
        self.forwarder
            .handle_datagram(directory, publishers, arrival, datagram, &mut tally)
            .expect("a frame of events");
        assert_eq!(tally.events, tally.matched + tally.unmatched);
    }

    /// The events that each subscriber gets.
    fn take_copies(&mut self) -> Vec<Vec<Received>> {
        let mut got = vec![Vec::new(); SUBSCRIBERS];
        let mut copies = Vec::new();
        let mut decoder = Decoder::new();
        loop {
            self.forwarder.poll_copies(&self.directory, &mut copies, 3);
            if copies.is_empty() {
                break;
            }
            for copy in &copies {
                assert!(copy.is_sendable);
                let subscriber = self.directory.subscribers().get(copy.subscriber);
                let to = &subscriber.expect("copies are for subscribers").address;
                let index = (0..SUBSCRIBERS).find(|index| address(*index) == *to);
                let datagram = [copy.stamp(), self.forwarder.body(copy)].concat();
                let frame = decoder.decode(&datagram).expect("copies are frames");
                let events = frame.events().map(|event| {
                    let number = event.payload().try_into().expect("a number");
                    (event.topic().to_owned(), u32::from_be_bytes(number))
                });
                got[index.expect("one of them")].extend(events);
            }
        }
        self.forwarder.end_frames();
        assert_eq!(self.forwarder.controls().count(), 0);
        got
    }
}
