//! Groups, samples, rates, policies of topics, and what is let go when there is too much.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::*;
use hailmary_proto::topic;
use overload::Level;
use policies::{Priority, TopicPolicy};
use proptest::sample::select;
use sample::Sample;
use seen::EventDrop;
use sketch::Counter;
use subscribers::{Subscriber, Terms};

/// A subscriber by the configuration on the port of its name, `a` on 1 and so on.
fn on_terms(name: &str, topics: &[&str], terms: Terms) -> StaticSubscriber {
    StaticSubscriber {
        name: name.to_owned(),
        address: address(name),
        topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        frame_bytes_max: None,
        terms,
    }
}

fn address(name: &str) -> Address {
    let port = u16::from(name.as_bytes()[0]);
    Address::Ip(([127, 0, 0, 1], port).into())
}

fn in_group(group: &str) -> Terms {
    Terms {
        group: Some(group.into()),
        ..Terms::default()
    }
}

fn sampled(share: f64) -> Terms {
    Terms {
        sample: Sample::of_share(share).unwrap(),
        ..Terms::default()
    }
}

fn limited(events_per_second: u32) -> Terms {
    Terms {
        events_per_second: Some(events_per_second),
        ..Terms::default()
    }
}

fn bus_with(subscribers: Vec<StaticSubscriber>, topic_policies: Vec<TopicPolicy>) -> Bus {
    bus_of(Settings {
        subscribers,
        topic_policies,
        ..settings()
    })
}

fn event(topic: &str, key: impl Into<Vec<u8>>) -> Event {
    Event {
        topic: topic.to_owned(),
        key: key.into(),
        ..Event::default()
    }
}

fn number(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// What one copy brings: to whom, why not where it does not, and the frame.
#[derive(Debug)]
struct Copied {
    to: String,
    dropped: Option<CopyDrop>,
    events: u64,
    frame: Frame,
}

impl Copied {
    fn weight(&self) -> f64 {
        let stamp = self.frame.stamp.as_ref();
        stamp.map_or(1.0, |stamp| stamp.weight.max(1.0))
    }
}

/// What a subscriber is called here: its address where it has no name.
fn name_of(subscriber: &Subscriber) -> String {
    match &*subscriber.name {
        "" => subscriber.address.to_string(),
        name => name.to_owned(),
    }
}

/// One turn with one frame.
fn turn(
    bus: &mut Bus,
    now: Duration,
    unix_nano: u64,
    frame: &Frame,
    tally: &mut EventTally,
) -> Vec<Copied> {
    let arrival = Arrival {
        source: Source::Ip("127.0.0.1:9".parse().unwrap()),
        listener: 0,
        now,
        unix_nano,
    };
    bus.handle_datagram(arrival, &frame.encode_to_vec(), tally)
        .unwrap();
    let mut all = Vec::new();
    let names: HashMap<_, _> = bus
        .subscribers()
        .iter()
        .map(|(_, one)| (one.series, name_of(one)))
        .collect();
    bus.forwarder
        .take_drops(&bus.directory, |series, reason, events| {
            all.push(Copied {
                to: names[&series].clone(),
                dropped: Some(reason),
                events: events.into(),
                frame: Frame::default(),
            });
        });
    let mut copies = Vec::new();
    loop {
        // One at a time, so that each stamp tells of all drops before it.
        bus.poll_copies(&mut copies, 1);
        if copies.is_empty() {
            break;
        }
        for copy in &copies {
            let datagram = [copy.stamp(), bus.forwarder.body(copy)].concat();
            let frame = Frame::decode(&*datagram).unwrap();
            assert_eq!(frame.events.len(), copy.events as usize);
            if !copy.is_sendable {
                bus.handle_dropped(copy);
            }
            let subscriber = bus.directory.subscribers().get(copy.subscriber).unwrap();
            all.push(Copied {
                to: name_of(subscriber),
                dropped: (!copy.is_sendable).then_some(CopyDrop::TooLarge),
                events: copy.events.into(),
                frame,
            });
        }
    }
    bus.forwarder.end_frames();
    all
}

fn send(bus: &mut Bus, events: Vec<Event>) -> Vec<Copied> {
    let frame = Frame {
        events,
        ..Frame::default()
    };
    turn(bus, T0, 0, &frame, &mut EventTally::default())
}

fn frame_of_events(events: Vec<Event>) -> Frame {
    Frame {
        events,
        ..Frame::default()
    }
}

/// Who got each key.
fn receivers(copies: &[Copied]) -> HashMap<Vec<u8>, Vec<&str>> {
    let mut all: HashMap<Vec<u8>, Vec<&str>> = HashMap::new();
    for copy in copies {
        for event in &copy.frame.events {
            all.entry(event.key.clone()).or_default().push(&copy.to);
        }
    }
    all
}

fn dropped(copies: &[Copied], to: &str, reason: CopyDrop) -> u64 {
    let of = copies
        .iter()
        .filter(|copy| copy.to == to && copy.dropped == Some(reason));
    of.map(|copy| copy.events).sum()
}

fn received(copies: &[Copied], to: &str) -> u64 {
    let of = copies
        .iter()
        .filter(|copy| copy.to == to && copy.dropped.is_none());
    of.map(|copy| copy.events).sum()
}

#[test]
fn of_each_group_one_member_gets_an_event_and_all_others_get_it_besides() {
    let mut bus = bus_with(
        vec![
            on_terms("a", &["x"], in_group("one")),
            on_terms("b", &["x"], in_group("one")),
            on_terms("c", &[">"], in_group("two")),
            on_terms("d", &["x"], Terms::default()),
            on_terms("e", &["y"], in_group("one")),
        ],
        Vec::new(),
    );
    let events: Vec<_> = (0..200).map(|n| event("x", number(n))).collect();
    let mut tally = EventTally::default();
    let copies = turn(
        &mut bus,
        T0,
        0,
        &frame_of_events(events.clone()),
        &mut tally,
    );
    let first = receivers(&copies);
    for to in first.values() {
        let ones = to.iter().filter(|to| ["a", "b"].contains(to)).count();
        let others: Vec<_> = to.iter().filter(|to| !["a", "b"].contains(to)).collect();
        assert_eq!(ones, 1, "{to:?}");
        assert_eq!(others.len(), 2, "c and d, and e never: {to:?}");
    }
    assert_eq!((tally.matched, tally.copies), (200, 600));
    for name in ["a", "b"] {
        assert!(received(&copies, name) > 60, "{name}");
    }
    // The same members again, whatever else comes.
    let again = send(&mut bus, events.into_iter().rev().collect());
    let mut again = receivers(&again);
    for (key, to) in first {
        let mut expected = to;
        let got = again.get_mut(&key).unwrap();
        expected.sort_unstable();
        got.sort_unstable();
        assert_eq!(*got, expected);
    }
}

#[test]
fn events_without_a_key_are_spread_over_a_group_evenly() {
    let members = ["a", "b", "c"].map(|name| on_terms(name, &["x"], in_group("g")));
    let mut bus = bus_with(members.into(), Vec::new());
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    // Alone and in batches, with those of another group in between.
    for length in [1, 1, 2, 7, 30].into_iter().cycle().take(300) {
        for copy in send(&mut bus, vec![event("x", ""); length]) {
            *counts.entry(copy.to).or_default() += copy.events;
        }
    }
    let all: u64 = counts.values().sum();
    assert_eq!(all, 60 * 41);
    for (name, count) in counts {
        assert!(
            count.abs_diff(all / 3) < all / 30,
            "{name}: {count} of {all}"
        );
    }
}

#[test]
fn an_expired_members_keys_move_on_at_once_and_no_others_do() {
    let mut bus = bus();
    let join = |bus: &mut Bus, now, port: u16, lease_ms| {
        let from = format!("127.0.0.1:{port}");
        let request = |cookie: Vec<u8>| Subscribe {
            group: "g".to_owned(),
            lease_ms,
            ..subscribe(&["x"], &cookie)
        };
        let cookie = challenged(bus, now, &from, request(Vec::new()));
        granted(bus, now, &from, request(cookie));
    };
    join(&mut bus, T0, 1, 10_000);
    join(&mut bus, T0, 2, 60_000);
    join(&mut bus, T0, 3, 60_000);
    let events: Vec<_> = (0..300).map(|n| event("x", number(n))).collect();
    let before = send(&mut bus, events.clone());
    let mut lease_events = Vec::new();
    bus.handle_timeout(T0 + Duration::from_secs(10), &mut lease_events);
    assert!(matches!(lease_events[..], [LeaseEvent::Expired(_)]));
    let after = send(&mut bus, events);
    let (before, after) = (receivers(&before), receivers(&after));
    let gone = "udp://127.0.0.1:1";
    let mut moved = 0;
    for (key, to) in &before {
        assert_eq!((to.len(), after[key].len()), (1, 1));
        assert_ne!(after[key][0], gone);
        if to[0] == gone {
            moved += 1;
        } else {
            assert_eq!(*to, after[key]);
        }
    }
    assert!(moved > 60, "{moved}");
}

#[test]
fn a_member_too_many_is_refused_and_nobody_suffers() {
    let mut bus = bus();
    let request = |group: &str, cookie: Vec<u8>| Subscribe {
        group: group.to_owned(),
        ..subscribe(&["x"], &cookie)
    };
    for port in 1..=4 {
        let from = format!("127.0.0.1:{port}");
        let cookie = challenged(&mut bus, T0, &from, request("g", Vec::new()));
        let control = Control::Subscribe(request("g", cookie));
        match ask(&mut bus, T0, &from, &padded(control)).1 {
            Some(Control::Lease(lease)) if port <= 3 => {
                // Renewing is not joining.
                granted(&mut bus, T0, &from, request("g", lease.cookie));
            }
            Some(Control::Refusal(refusal)) if port == 4 => {
                assert_eq!(refusal.reason(), Reason::Full);
            }
            other => panic!("{port}: {other:?}"),
        }
    }
    // Whoever is in another group may not change into the full one, and stays where it is.
    let cookie = challenged(&mut bus, T0, "127.0.0.2:9", request("h", Vec::new()));
    let lease = granted(&mut bus, T0, "127.0.0.2:9", request("h", cookie));
    let change = Control::Subscribe(request("g", lease.cookie));
    assert_eq!(refusal(&mut bus, T0, "127.0.0.2:9", change), Reason::Full);
    assert_eq!(bus.directory.members("g"), 3);
    assert_eq!(bus.directory.members("h"), 1);
    let copies = send(&mut bus, vec![event("x", "")]);
    assert_eq!(copies.len(), 2);
}

#[test]
fn a_sample_keeps_keys_together_the_same_ones_in_every_bus() {
    let kept = |seed: u8, share: f64| {
        let mut settings = settings();
        settings.subscribers = vec![on_terms("a", &["x"], sampled(share))];
        let mut parts = open(&settings, 1, Duration::ZERO, Box::new(move || [seed; 16]));
        let (forwarder, publishers) = parts.workers.remove(0);
        let mut bus = Bus {
            directory: parts.directory,
            registrar: parts.registrar,
            forwarder,
            publishers,
        };
        let events = (0..3_000).map(|n| event("x", number(n % 1_000))).collect();
        let copies = send(&mut bus, events);
        let counts = receivers(&copies);
        assert!(
            counts.values().all(|to| to.len() == 3),
            "all of a key or none"
        );
        let all = received(&copies, "a") + dropped(&copies, "a", CopyDrop::Sampled);
        assert_eq!(all, 3_000);
        counts.into_keys().collect::<HashSet<_>>()
    };
    let quarter = kept(1, 0.25);
    assert_eq!(quarter, kept(99, 0.25));
    assert!(quarter.is_subset(&kept(2, 0.5)));
    // Six standard deviations of a binomial count.
    assert!(quarter.len().abs_diff(250) < 83, "{}", quarter.len());
}

#[test]
fn weighted_counts_estimate_the_truth() {
    const EVENTS: u32 = 100_000;
    for (share, has_keys) in [
        (0.5, true),
        (0.1, true),
        (0.01, true),
        (0.1, false),
        (0.01, false),
    ] {
        let mut bus = bus_with(vec![on_terms("a", &["x"], sampled(share))], Vec::new());
        let mut estimate = 0.0;
        for start in (0..EVENTS).step_by(1_000) {
            let key = |n| if has_keys { number(n) } else { Vec::new() };
            let events = (start..start + 1_000).map(|n| event("x", key(n))).collect();
            for copy in send(&mut bus, events) {
                if copy.dropped.is_none() {
                    estimate += copy.weight() * copy.events as f64;
                }
            }
        }
        // Four standard deviations of a weighted binomial count, the same in every run.
        let deviation = (f64::from(EVENTS) * (1.0 - share) / share).sqrt();
        let error = estimate - f64::from(EVENTS);
        assert!(
            error.abs() < 4.0 * deviation,
            "{share}, keys {has_keys}: {estimate}"
        );
    }
}

#[test]
fn a_sample_of_what_was_sampled_elsewhere_tells_the_truth_too() {
    let mut first = bus_with(vec![on_terms("a", &["x"], sampled(0.2))], Vec::new());
    let mut second = bus_with(
        vec![
            on_terms("b", &["x"], sampled(0.25)),
            on_terms("c", &["x"], Terms::default()),
        ],
        Vec::new(),
    );
    let (mut sampled_again, mut whole) = (0.0, 0.0);
    for start in (0..40_000).step_by(1_000) {
        let events = (start..start + 1_000)
            .map(|n| event("x", number(n)))
            .collect();
        for copy in send(&mut first, events) {
            if copy.dropped.is_some() {
                continue;
            }
            for copy in turn(&mut second, T0, 0, &copy.frame, &mut EventTally::default()) {
                let weighed = copy.weight() * copy.frame.events.len() as f64;
                match (copy.to.as_str(), copy.dropped) {
                    ("b", None) => {
                        assert!((copy.weight() - 20.0).abs() < 1e-9);
                        sampled_again += weighed;
                    }
                    ("c", None) => {
                        assert!((copy.weight() - 5.0).abs() < 1e-9);
                        whole += weighed;
                    }
                    _ => {}
                }
            }
        }
    }
    assert!((sampled_again - 40_000.0_f64).abs() < 4.0 * (40_000.0_f64 * 19.0).sqrt());
    assert!((whole - 40_000.0_f64).abs() < 4.0 * (40_000.0_f64 * 4.0).sqrt());
}

#[test]
fn events_of_different_weight_do_not_share_a_frame() {
    let mut bus = bus_with(vec![on_terms("a", &["x"], Terms::default())], Vec::new());
    let mut tally = EventTally::default();
    let arrival = Arrival {
        source: Source::Ip("127.0.0.1:9".parse().unwrap()),
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    for (weight, key) in [
        (0.0, "a"),
        (1.0, "b"),
        (3.0, "c"),
        (3.0, "d"),
        (f64::NAN, "e"),
        (3.0, "f"),
    ] {
        let frame = Frame {
            events: vec![event("x", key)],
            stamp: Some(Stamp {
                weight,
                ..Stamp::default()
            }),
            ..Frame::default()
        };
        bus.handle_datagram(arrival, &frame.encode_to_vec(), &mut tally)
            .unwrap();
    }
    let mut copies = Vec::new();
    bus.poll_copies(&mut copies, 9);
    let frames = copies.iter().map(|copy| {
        let datagram = [copy.stamp(), bus.forwarder.body(copy)].concat();
        let frame = Frame::decode(&*datagram).unwrap();
        let keys = frame.events.iter().flat_map(|event| &event.key);
        let keys: String = keys.map(|byte| char::from(*byte)).collect();
        (frame.stamp.unwrap().weight, keys)
    });
    let expected = [(0.0, "ab"), (3.0, "cd"), (0.0, "e"), (3.0, "f")];
    let expected = expected.map(|(weight, keys)| (weight, keys.to_owned()));
    assert_eq!(frames.collect::<Vec<_>>(), expected);
}

#[test]
fn a_subscriber_gets_its_rate_and_is_told_of_the_rest() {
    let mut bus = bus_with(
        vec![
            on_terms("a", &["x"], limited(100)),
            on_terms("b", &["x"], Terms::default()),
        ],
        Vec::new(),
    );
    let frame = frame_of_events(vec![event("x", ""); 150]);
    let mut tally = EventTally::default();
    let copies = turn(&mut bus, T0, 0, &frame, &mut tally);
    assert_eq!(received(&copies, "a"), 100);
    assert_eq!(dropped(&copies, "a", CopyDrop::RateLimit), 50);
    assert_eq!(received(&copies, "b"), 150);
    assert_eq!(tally.copies, 300);
    let later = T0 + Duration::from_millis(500);
    let copies = turn(&mut bus, later, 0, &frame, &mut tally);
    assert_eq!(received(&copies, "a"), 50);
    let last = copies.iter().rfind(|copy| copy.to == "a").unwrap();
    let stamp = last.frame.stamp.as_ref().unwrap();
    let before = stamp.sequence + last.events;
    assert_eq!(before, 300, "its flow counts all that was for it");
}

#[test]
fn a_renewal_may_change_the_terms() {
    let mut bus = bus();
    let request = |rate, sample, cookie: Vec<u8>| Subscribe {
        events_per_second: rate,
        sample,
        ..subscribe(&["x"], &cookie)
    };
    let cookie = challenged(&mut bus, T0, HERE, request(5, 0.0, Vec::new()));
    let lease = granted(&mut bus, T0, HERE, request(5, 0.0, cookie));
    let to = "udp://127.0.0.1:1000";
    let events = || vec![event("x", "k"); 20];
    assert_eq!(received(&send(&mut bus, events()), to), 5);
    // The same again fills no bucket.
    let lease = granted(&mut bus, T0, HERE, request(5, 0.0, lease.cookie));
    assert_eq!(received(&send(&mut bus, events()), to), 0);
    let lease = granted(&mut bus, T0, HERE, request(0, 1e-12, lease.cookie));
    assert_eq!(
        dropped(&send(&mut bus, events()), to, CopyDrop::Sampled),
        20
    );
    granted(&mut bus, T0, HERE, request(u32::MAX, 1.0, lease.cookie));
    assert_eq!(received(&send(&mut bus, events()), to), 20);
}

#[test]
fn a_topics_rate_is_of_all_its_topics_together() {
    let mut bus = bus_with(
        vec![on_terms("a", &["x.>"], Terms::default())],
        vec![TopicPolicy {
            events_per_second: Some(10),
            ..policy("x.>")
        }],
    );
    let mut tally = EventTally::default();
    let events = (0..24).map(|n| event(["x.a", "x.b", "x.unwanted", "y"][n % 4], ""));
    let copies = turn(
        &mut bus,
        T0,
        0,
        &frame_of_events(events.collect()),
        &mut tally,
    );
    assert_eq!(received(&copies, "a"), 10);
    assert_eq!(
        (tally.rate_limit, tally.matched, tally.unmatched),
        (8, 10, 6)
    );
    let seen = bus.forwarder.topics_seen(T0);
    let over = seen.dropped.counters().iter();
    let over = over.filter(|counter| counter.kind() == EventDrop::RateLimit);
    assert_eq!(over.map(Counter::events).sum::<u64>(), 8);
    let routed = seen.busiest.counters().iter();
    assert_eq!(routed.map(Counter::events).sum::<u64>(), 16);
    let frame = frame_of_events(vec![event("x.unwanted", ""); 3]);
    bus.directory = bus_with(
        Vec::new(),
        vec![TopicPolicy {
            events_per_second: Some(1),
            ..policy("x.>")
        }],
    )
    .directory;
    let mut tally = EventTally::default();
    turn(&mut bus, T0, 0, &frame, &mut tally);
    assert_eq!((tally.rate_limit, tally.unmatched), (2, 1));
}

#[test]
fn stale_events_are_dropped_and_take_nothing_of_a_rate() {
    const MS: u64 = 1_000_000;
    let mut bus = bus_with(
        vec![on_terms("a", &["x"], Terms::default())],
        vec![TopicPolicy {
            events_per_second: Some(2),
            age_max: Some(Duration::from_millis(10)),
            ..policy("x")
        }],
    );
    let at = |time_unix_nano, key: &str| Event {
        time_unix_nano,
        ..event("x", key)
    };
    let now = 1_000 * MS;
    let events = vec![
        at(now - 11 * MS, "old"),
        at(now - 10 * MS, "just"),
        at(now - 99 * MS, "older"),
        at(0, "untold"),
        at(now, "too many"),
    ];
    let mut tally = EventTally::default();
    let copies = turn(&mut bus, T0, now, &frame_of_events(events), &mut tally);
    let mut keys: Vec<_> = receivers(&copies).into_keys().collect();
    keys.sort_unstable();
    assert_eq!(keys, [b"just".to_vec(), b"untold".to_vec()]);
    assert_eq!((tally.stale, tally.rate_limit, tally.matched), (2, 1, 2));
}

/// Topics of each priority, and a subscriber on each kind of terms.
fn bus_of_priorities() -> Bus {
    let with_priority = |pattern: &str, priority| TopicPolicy {
        priority,
        ..policy(pattern)
    };
    bus_with(
        vec![
            on_terms("a", &[">"], Terms::default()),
            on_terms("b", &[">"], sampled(0.5)),
            on_terms("c", &[">"], in_group("g")),
            on_terms("d", &[">"], in_group("g")),
        ],
        vec![
            with_priority("low", Priority::Low),
            with_priority("high", Priority::High),
        ],
    )
}

/// How many events of a topic somebody gets, and how many they stand for.
fn received_of(copies: &[Copied], topic: &str, to: &str) -> (u64, f64) {
    let mut count = (0, 0.0);
    for copy in copies.iter().filter(|copy| copy.to == to) {
        let events = copy.frame.events.iter();
        let of_topic = events.filter(|event| event.topic == topic).count() as u64;
        count.0 += of_topic;
        count.1 += of_topic as f64 * copy.weight();
    }
    count
}

/// Whether the weights of a share of a thousand keys add up to about a thousand.
fn estimates_a_thousand(weighed: f64, share: f64) -> bool {
    let deviation = (1_000.0 * (1.0 - share) / share).sqrt();
    (weighed - 1_000.0).abs() <= 5.0 * deviation
}

/// The keys of a topic that somebody gets.
fn keys_of(copies: &[Copied], topic: &str, to: &str) -> HashSet<Vec<u8>> {
    let copies = copies.iter().filter(|copy| copy.to == to);
    let events = copies.flat_map(|copy| &copy.frame.events);
    let events = events.filter(|event| event.topic == topic);
    events.map(|event| event.key.clone()).collect()
}

#[test]
fn overload_thins_low_topics_by_key_and_leaves_high_ones_alone() {
    let mut bus = bus_of_priorities();
    let events: Vec<_> = (0..3_000)
        .map(|n| event(["low", "normal", "high"][n as usize % 3], number(n / 3)))
        .collect();
    let frame = frame_of_events(events);
    let mut kept_before: Option<HashSet<Vec<u8>>> = None;
    for (level, thinned) in [(0, 0), (6, 1), (12, 1), (40, 2), (64, 2)] {
        bus.forwarder.set_level(Level::new(level));
        let mut tally = EventTally::default();
        let copies = turn(&mut bus, T0, 0, &frame, &mut tally);
        assert_eq!((tally.matched, tally.copies), (3_000, 9_000));
        assert_eq!(copies.iter().map(|copy| copy.events).sum::<u64>(), 9_000);
        let of = |topic, to| received_of(&copies, topic, to);
        assert_eq!(of("high", "a"), (1_000, 1_000.0));
        for (topic, is_thinned) in [("low", thinned > 0), ("normal", thinned > 1)] {
            let (count, weighed) = of(topic, "a");
            assert_eq!(count < 1_000, is_thinned, "{topic} at {level}");
            let share = (count as f64 / 1_000.0).max(1.0 / 72.0);
            assert!(estimates_a_thousand(weighed, share), "{topic} at {level}");
            // Whoever has a sample gets those of its keys that are left.
            let (count, weighed) = of(topic, "b");
            assert!(count > 0 && estimates_a_thousand(weighed, share.min(0.5)));
            let group = of(topic, "c").0 + of(topic, "d").0;
            assert_eq!(group, of(topic, "a").0, "a group gets what everybody gets");
        }
        assert_eq!(dropped(&copies, "a", CopyDrop::Overload) > 0, thinned > 0);
        assert_eq!(dropped(&copies, "a", CopyDrop::Sampled), 0);
        assert!(dropped(&copies, "b", CopyDrop::Sampled) > 1_000);
        let kept = keys_of(&copies, "low", "a");
        if let Some(before) = kept_before {
            assert!(kept.is_subset(&before), "what is left at a higher level");
        }
        kept_before = Some(kept);
    }
}

#[test]
fn events_that_alternate_between_priorities_do_not_make_small_frames() {
    let mut bus = bus_of_priorities();
    let events = (0..3_000).map(|n| event(["low", "normal", "high"][n % 3], ""));
    let frame = frame_of_events(events.collect());
    for level in [0, 6, 40] {
        bus.forwarder.set_level(Level::new(level));
        let copies = turn(&mut bus, T0, 0, &frame, &mut EventTally::default());
        let frames = copies.iter().filter(|copy| copy.to == "a");
        let frames = frames.filter(|copy| copy.dropped.is_none()).count();
        assert!(frames <= 3 * 2, "{frames} frames at {level}");
    }
}

#[test]
fn many_sizes_make_few_frames() {
    let subscribers = (0..200).map(|n| StaticSubscriber {
        address: Address::Ip(([127, 0, 0, 1], 1_000 + n).into()),
        frame_bytes_max: Some(508 + 300 * u32::from(n)),
        ..on_terms(&format!("s{n}"), &["x"], Terms::default())
    });
    let mut bus = bus_with(subscribers.collect(), Vec::new());
    let arrival = Arrival {
        source: Source::Ip("127.0.0.1:9".parse().unwrap()),
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    let events = vec![
        Event {
            payload: vec![7; 1_000],
            ..event("x", "")
        };
        60
    ];
    let mut tally = EventTally::default();
    bus.handle_datagram(
        arrival,
        &frame_of_events(events).encode_to_vec(),
        &mut tally,
    )
    .unwrap();
    let mut copies = Vec::new();
    bus.poll_copies(&mut copies, usize::MAX);
    let bodies: HashSet<_> = copies
        .iter()
        .map(|copy| bus.forwarder.body(copy).as_ptr())
        .collect();
    // 60 kB of events: 60 frames each for the sizes under 2,048, fewer for the others.
    assert!(
        bodies.len() < 3 * 60 + 60 + 30 + 15 + 8 + 4 + 2,
        "{}",
        bodies.len()
    );
    for copy in copies {
        let subscriber = bus.directory.subscribers().get(copy.subscriber).unwrap();
        let bytes = copy.stamp().len() + bus.forwarder.body(&copy).len();
        let is_too_large = bytes > subscriber.frame_bytes.max as usize;
        assert_eq!(copy.is_sendable, !is_too_large);
    }
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let group = prop::option::of(select(vec!["g", "h"]));
    let sample = select(vec![1.0, 0.5, 0.01]);
    let rate = prop::option::of(select(vec![1, 7, 1_000]));
    (group, sample, rate).prop_map(|(group, share, events_per_second)| Terms {
        group: group.map(Into::into),
        sample: Sample::of_share(share).unwrap(),
        events_per_second,
    })
}

fn any_policy() -> impl Strategy<Value = TopicPolicy> {
    let pattern = select(vec!["a", "a.>", "*", ">"]);
    let rate = prop::option::of(select(vec![1, 9]));
    let priority = select(vec![Priority::Low, Priority::Normal, Priority::High]);
    let age = prop::option::of(select(vec![1, 5]));
    (pattern, rate, priority, age).prop_map(|(pattern, events_per_second, priority, age)| {
        TopicPolicy {
            pattern: pattern.to_owned(),
            events_per_second,
            priority,
            age_max: age.map(Duration::from_millis),
        }
    })
}

proptest! {
    /// Both laws, the flows and the terms hold in every turn, whatever is asked for and published.
    #[test]
    fn every_copy_ends_once_on_any_terms(
        wants in prop::collection::vec((select(vec!["a", "a.>", "*", ">"]), any_terms()), 0..8),
        policies in prop::collection::vec(any_policy(), 0..3),
        turns in prop::collection::vec((
            0..=64_u32,
            prop::collection::vec((select(vec!["a", "a.b", "b", "b.c", ".", "_hailmary.x"]), 0..6_u8, 0..4_u64), 0..30),
            select(vec![0.0, 2.0]),
        ), 1..12),
    ) {
        let names = "abcdefgh".chars();
        let subscribers: Vec<_> = names.zip(&wants)
            .map(|(name, (topic, terms))| on_terms(&name.to_string(), &[topic], terms.clone()))
            .collect();
        let mut bus = bus_with(subscribers, policies);
        let mut now = T0;
        let mut sequences: HashMap<String, (u64, u64)> = HashMap::new();
        for (level, events, weight) in turns {
            bus.forwarder.set_level(Level::new(level));
            now += Duration::from_millis(300);
            let events: Vec<_> = events.iter().map(|(topic, key, age)| Event {
                time_unix_nano: 1_000_000_000 - age * 2_000_000,
                ..event(topic, vec![b'k'; usize::from(*key)])
            }).collect();
            let frame = Frame {
                stamp: Some(Stamp { weight, ..Stamp::default() }),
                ..frame_of_events(events.clone())
            };
            let mut tally = EventTally::default();
            let copies = turn(&mut bus, now, 1_000_000_000, &frame, &mut tally);
            prop_assert_eq!(tally.events, events.len() as u64);
            prop_assert_eq!(tally.events, tally.dropped() + tally.unmatched + tally.matched);
            let all: u64 = copies.iter().map(|copy| copy.events).sum();
            prop_assert_eq!(tally.copies, all);
            for copy in &copies {
                let (sequence, dropped) = sequences.entry(copy.to.clone()).or_default();
                if let Some(stamp) = &copy.frame.stamp {
                    prop_assert_eq!((stamp.sequence, stamp.dropped), (*sequence, *dropped));
                    prop_assert!(stamp.weight == 0.0 || stamp.weight > 1.0);
                    prop_assert!(stamp.weight >= weight);
                }
                *sequence += copy.events;
                *dropped += if copy.dropped.is_some() { copy.events } else { 0 };
            }
            for group in ["g", "h"] {
                let member = |copy: &&Copied| {
                    let index = usize::from(copy.to.as_bytes()[0] - b'a');
                    wants[index].1.group.as_deref() == Some(group)
                };
                let got = copies.iter().filter(member).map(|copy| copy.events).sum::<u64>();
                let wanted = wants.iter().filter(|(_, terms)| terms.group.as_deref() == Some(group));
                let patterns: Vec<_> = wanted.map(|(pattern, _)| pattern.as_bytes()).collect();
                let matching = events.iter().filter(|event| {
                    let is_legal = topic::check_topic(event.topic.as_bytes()).is_ok();
                    is_legal && patterns.iter().any(|pattern| topic::matches(pattern, event.topic.as_bytes()))
                }).count() as u64;
                prop_assert!(got <= matching, "one member for each event: {} of {}", got, matching);
                if tally.dropped() == tally.bad_topic + tally.not_allowed {
                    prop_assert_eq!(got, matching);
                }
            }
        }
    }
}
