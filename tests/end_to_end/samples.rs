//! Samples: a share of the events, those with equal keys together, and the weight that says what
//! they stand for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::time::Duration;

use hailmary_client::{Address, Subscriber, SubscriberStats};
use hailmary_proto::v1::Event;
use xxhash_rust::xxh3::xxh3_64;

use super::support::{
    Configured, PATIENCE, Serving, Subscribing, assert_laws, datagram, event, sum, sum_of, value,
    wait_until,
};

/// How long a subscriber listens before it looks at the counts.
const LOOK: Duration = Duration::from_millis(10);

/// Events that a datagram brings.
const DATAGRAM: usize = 200;

/// Sends events, each datagram once the bus has taken the one before.
fn send(bus: &Serving, events: &[Event]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = value(&bus.get("/metrics"), "ingress_events_total");
    for events in events.chunks(DATAGRAM) {
        sent += events.len() as u64;
        socket
            .send_to(&datagram(events.to_vec()), bus.udp())
            .unwrap();
        bus.wait_for_metric("ingress_events_total", sent);
    }
}

/// So many keys, each of them three times, and not one after the other.
fn keyed(keys: u32) -> Vec<Event> {
    let numbers = (0..3).flat_map(|_| 0..keys);
    let with_key = |number| Event {
        key: format!("user-{number}").into_bytes(),
        ..event("x")
    };
    numbers.map(with_key).collect()
}

/// Which keys a bus keeps, by what is promised of it.
fn is_kept(key: &[u8], share: f64) -> bool {
    const POINTS: f64 = 18_446_744_073_709_551_616.0;
    (xxh3_64(key) as f64) < share * POINTS
}

/// What a sum of weights may differ from the truth by: four standard deviations of so many
/// events, each of which is kept with this chance and then stands for its inverse.
fn deviation(events: f64, share: f64) -> f64 {
    4.0 * (events * (1.0 - share) / share).sqrt()
}

/// A subscriber with this share of all events.
fn sampling(bus: &Serving, name: &str, share: f64) -> Subscriber {
    let address: Address = bus.address().parse().unwrap();
    let builder = Subscriber::builder(&address).pattern(">").name(name);
    builder.sample(share).connect(PATIENCE).unwrap()
}

/// What a bus counts for a subscriber.
fn of_bus(page: &str, metric: &str, name: &str) -> u64 {
    sum_of(page, metric, &format!("subscriber=\"{name}\""))
}

/// Takes all events, till all that the bus had for it are told of: keys, with their weights.
fn take_all(bus: &Serving, subscriber: &mut Subscriber, name: &str) -> Vec<(Vec<u8>, f64)> {
    let page = bus.get("/metrics");
    assert_laws(&page);
    let sent = of_bus(&page, "egress_events_total", name);
    let dropped = of_bus(&page, "egress_dropped_events_total", name);
    let mut taken = Vec::new();
    // What was dropped last is told by the next renewal.
    wait_until("the events", || {
        while let Some(event) = subscriber.recv_timeout(LOOK).unwrap() {
            taken.push((event.key, event.weight));
        }
        let stats = subscriber.stats();
        ((stats.received, stats.dropped_by_bus) == (sent, dropped)).then_some(())
    });
    let label = format!("subscriber=\"{name}\",reason=\"sampled\"");
    assert_eq!(
        sum_of(&page, "egress_dropped_events_total", &label),
        dropped
    );
    taken
}

/// Keys and how often each came.
fn counts(taken: &[(Vec<u8>, f64)]) -> BTreeMap<&[u8], usize> {
    let mut counts = BTreeMap::new();
    for (key, _) in taken {
        *counts.entry(&key[..]).or_default() += 1;
    }
    counts
}

#[test]
fn the_command_shows_the_weight_and_keeps_keys_together() {
    const SHARE: f64 = 0.1;
    let bus = Serving::start(&[], &[]);
    let arguments = [
        ">", "--sample", "0.1", "--format", "json", "--name", "tenth",
    ];
    let tenth = Subscribing::start(bus.address(), &arguments);
    let events = keyed(400);
    send(&bus, &events);
    let page = bus.get("/metrics");
    assert_laws(&page);
    let sent = of_bus(&page, "egress_events_total", "tenth");
    let mut came: Vec<String> = (0..sent)
        .map(|_| {
            let line: serde_json::Value = serde_json::from_str(&tenth.line()).unwrap();
            assert_eq!(line["weight"], 10.0);
            line["key"].as_str().unwrap().to_owned()
        })
        .collect();
    tenth.signal("TERM");
    assert_eq!(tenth.output().0, "");
    let kept = events.iter().filter(|event| is_kept(&event.key, SHARE));
    let mut kept: Vec<_> = kept
        .map(|event| String::from_utf8(event.key.clone()).unwrap())
        .collect();
    came.sort_unstable();
    kept.sort_unstable();
    assert_eq!(came, kept);
    assert!(!came.is_empty());
}

#[test]
fn every_bus_keeps_the_same_keys_and_their_weights_estimate_the_truth() {
    const KEYS: u32 = 2_000;
    const SHARE: f64 = 0.2;
    // Another bus in all but what is asked of it: by a static entry, with several data threads.
    let inbox = UdpSocket::bind("127.0.0.1:0").unwrap();
    let buses = [
        Configured::start("[loop]\nworkers = 1\n"),
        Configured::start(&format!(
            "[loop]\nworkers = 2\n[[subscriber]]\nname = \"fixed\"\naddress = \"{}\"\n\
             topics = [\">\"]\nsample = {SHARE}\n",
            inbox.local_addr().unwrap()
        )),
    ];
    let events = keyed(KEYS);
    let expected: BTreeSet<&[u8]> = events
        .iter()
        .map(|event| &event.key[..])
        .filter(|key| is_kept(key, SHARE))
        .collect();
    for bus in &buses {
        let mut one = sampling(bus, "one", SHARE);
        let mut half = sampling(bus, "half", 0.5);
        send(bus, &events);
        let taken = take_all(bus, &mut one, "one");
        let counts = counts(&taken);
        assert!(
            counts.values().all(|times| *times == 3),
            "all of a key or none"
        );
        assert_eq!(counts.keys().copied().collect::<BTreeSet<_>>(), expected);
        let kept_by_half = take_all(bus, &mut half, "half");
        let kept_by_half: BTreeSet<_> = kept_by_half.iter().map(|(key, _)| &key[..]).collect();
        assert!(expected.is_subset(&kept_by_half));
        let estimate: f64 = taken.iter().map(|(_, weight)| weight).sum();
        // Three events of a key are kept or not together.
        let error = estimate - 3.0 * f64::from(KEYS);
        assert!(
            error.abs() < 3.0 * deviation(f64::from(KEYS), SHARE),
            "{estimate}"
        );
        assert_books(&one.close(), &bus.get("/metrics"), "one");
    }
    let page = buses[1].get("/metrics");
    let kept = 3 * expected.len() as u64;
    assert_eq!(of_bus(&page, "egress_events_total", "fixed"), kept);
}

/// The third law, and that both sides of it say the same.
fn assert_books(stats: &SubscriberStats, page: &str, name: &str) {
    let dropped = of_bus(page, "egress_dropped_events_total", name);
    let sent = of_bus(page, "egress_events_total", name);
    assert_eq!((stats.dropped_by_bus, stats.lost), (dropped, 0));
    assert_eq!(stats.received, sent);
    assert_eq!(sent + dropped, value(page, "ingress_events_total"));
}

#[test]
fn events_without_a_key_are_kept_at_random_and_counted_by_weight() {
    const EVENTS: u32 = 6_000;
    const SHARE: f64 = 0.25;
    let bus = Serving::start(&[], &[]);
    let mut quarter = sampling(&bus, "quarter", SHARE);
    let mut whole = sampling(&bus, "whole", 1.0);
    send(&bus, &vec![event("x"); EVENTS as usize]);
    let taken = take_all(&bus, &mut quarter, "quarter");
    assert!(taken.iter().all(|(_, weight)| *weight == 4.0));
    let estimate: f64 = taken.iter().map(|(_, weight)| weight).sum();
    // The dice are others each time, so it is given half as much again.
    let error = (estimate - f64::from(EVENTS)).abs();
    assert!(
        error < 1.5 * deviation(f64::from(EVENTS), SHARE),
        "{estimate}"
    );
    let all = take_all(&bus, &mut whole, "whole");
    assert_eq!(all.len(), EVENTS as usize);
    assert!(all.iter().all(|(_, weight)| *weight == 1.0));
    let page = bus.get("/metrics");
    assert_eq!(sum(&page, "copies_total"), 2 * u64::from(EVENTS));
    assert_books(&quarter.close(), &page, "quarter");
    assert_books(&whole.close(), &page, "whole");
}

#[test]
fn a_frame_tells_the_weight_too_and_members_of_a_group_may_sample() {
    const SHARE: f64 = 0.5;
    let bus = Serving::start(&[], &[]);
    let address: Address = bus.address().parse().unwrap();
    let mut members = ["a", "b"].map(|name| {
        let builder = Subscriber::builder(&address).pattern(">").group("g");
        builder.name(name).sample(SHARE).connect(PATIENCE).unwrap()
    });
    let events = keyed(300);
    send(&bus, &events);
    let page = bus.get("/metrics");
    assert_laws(&page);
    assert_eq!(
        value(&page, "copies_total"),
        events.len() as u64,
        "one copy of each"
    );
    let mut came = Vec::new();
    for (name, member) in ["a", "b"].into_iter().zip(&mut members) {
        let sent = of_bus(&page, "egress_events_total", name);
        let mut mine = 0;
        while mine < sent {
            let taken = member.recv_frame(PATIENCE, |frame| {
                assert_eq!(frame.weight(), 2.0);
                let keys = frame.events().map(|event| event.key().to_vec());
                keys.collect::<Vec<_>>()
            });
            let taken = taken.unwrap().unwrap();
            mine += taken.len() as u64;
            came.extend(taken);
        }
        assert!(mine > 0, "{name} has a share");
    }
    let kept = events.into_iter().map(|event| event.key);
    let mut kept: Vec<_> = kept.filter(|key| is_kept(key, SHARE)).collect();
    came.sort_unstable();
    kept.sort_unstable();
    assert_eq!(
        came, kept,
        "a group has the sample that one alone would have"
    );
}
