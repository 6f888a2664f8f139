//! The core as its caller drives it: datagrams and times in, copies and answers out.

use super::*;
use access::{Effect, Rule, Rules};
use directory::Reconfigured;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{Challenge, Event, Frame, Lease, Ping, Stamp, Subscribe, Unsubscribe};
use hailmary_proto::write::{UNPROVEN_REQUEST_BYTES_MIN, pad};
use leases::LeaseEvent;
use proptest::prelude::*;
use prost::Message;
use publishers::Heard;
use subscribers::{Subscriber, SubscriberId, Subscribers};
use tally::EventTally;

mod who_may;

fn everybody() -> Rules {
    Rules(vec![Rule {
        from: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        topics: vec![">".to_owned()],
        effect: Effect::Allow,
    }])
}

fn settings() -> Settings {
    Settings {
        access: Access {
            publish: everybody(),
            subscribe: everybody(),
        },
        own_sources: Vec::new(),
        leases: LeaseLimits {
            leases_max: 6,
            leases_per_origin_max: 4,
            patterns_max: 3,
            group_members_max: 3,
            lease_ms: 30_000,
            lease_ms_max: 300_000,
        },
        leased_series_max: 2,
        subscribers: Vec::new(),
        topic_policies: Vec::new(),
    }
}

/// The core's parts as one, with one forwarder.
struct Bus {
    directory: Directory,
    registrar: Registrar,
    forwarder: Forwarder,
    publishers: Publishers,
}

impl Bus {
    fn handle_datagram(
        &mut self,
        arrival: Arrival<'_>,
        datagram: &[u8],
        tally: &mut EventTally,
    ) -> Result<(), FrameDrop> {
        self.forwarder.begin_turn(&self.directory);
        self.forwarder.handle_datagram(
            &self.directory,
            &mut self.publishers,
            arrival,
            datagram,
            tally,
        )
    }

    fn poll_copies(&mut self, copies: &mut Vec<FrameCopy>, copies_max: usize) {
        self.forwarder
            .poll_copies(&self.directory, copies, copies_max);
    }

    fn handle_dropped(&self, copy: &FrameCopy) {
        self.forwarder.handle_dropped(&self.directory, copy);
    }

    fn handle_controls(&mut self, now: Duration, events: &mut Vec<LeaseEvent>) {
        for message in self.forwarder.controls() {
            let flow = |stamp: &Stamp| {
                self.publishers.observe_aside(now, stamp);
                let flow = self.publishers.get(stamp.sender);
                flow.map(Heard::of).unwrap_or_default()
            };
            self.registrar
                .handle_control(now, message, flow, &mut self.directory, events);
            assert_tells_its_next_end(&self.directory, &self.registrar);
        }
    }

    fn handle_timeout(&mut self, now: Duration, events: &mut Vec<LeaseEvent>) {
        self.registrar
            .handle_timeout(now, &mut self.directory, events);
        assert_tells_its_next_end(&self.directory, &self.registrar);
    }

    fn subscribers(&self) -> &Subscribers {
        self.directory.subscribers()
    }
}

/// Other data threads than the registrar's know the ends of leases by the directory.
fn assert_tells_its_next_end(directory: &Directory, registrar: &Registrar) {
    match registrar.poll_timeout() {
        Some(end) => {
            assert!(directory.is_overdue(end));
            assert!(!directory.is_overdue(end - Duration::from_nanos(1)));
        }
        None => assert!(!directory.is_overdue(Duration::MAX)),
    }
}

fn bus_of(settings: Settings) -> Bus {
    let mut counter = 0_u8;
    let random = move || {
        counter += 1;
        [counter; 16]
    };
    let mut parts = open(&settings, 1, Duration::ZERO, Box::new(random));
    let (forwarder, publishers) = parts.workers.remove(0);
    Bus {
        directory: parts.directory,
        registrar: parts.registrar,
        forwarder,
        publishers,
    }
}

fn bus() -> Bus {
    bus_of(settings())
}

const T0: Duration = Duration::from_secs(1_000);
const HERE: &str = "127.0.0.1:1000";

fn subscribe(topics: &[&str], cookie: &[u8]) -> Subscribe {
    Subscribe {
        topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        cookie: cookie.to_vec(),
        nonce: 5,
        ..Subscribe::default()
    }
}

fn padded(control: Control) -> Vec<u8> {
    let mut frame = Frame {
        control: Some(control),
        ..Frame::default()
    };
    pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
    frame.encode_to_vec()
}

/// One datagram and everything that follows but its copies.
fn exchange(
    bus: &mut Bus,
    now: Duration,
    from: &str,
    datagram: &[u8],
) -> (Vec<LeaseEvent>, Option<Frame>) {
    let source = Source::Ip(from.parse().unwrap());
    let arrival = Arrival {
        source,
        listener: 0,
        now,
        unix_nano: 0,
    };
    bus.handle_datagram(arrival, datagram, &mut EventTally::default())
        .unwrap();
    let mut events = Vec::new();
    bus.handle_controls(now, &mut events);
    let answer = bus.registrar.poll_answer();
    assert_eq!(bus.registrar.poll_answer(), None);
    if let Some(answer) = &answer {
        assert_eq!(answer.to, Address::Ip(from.parse().unwrap()));
    }
    let decode = |answer: Answer| Frame::decode(&*answer.datagram).unwrap();
    (events, answer.map(decode))
}

/// What is said in answer to one datagram.
fn ask(
    bus: &mut Bus,
    now: Duration,
    from: &str,
    datagram: &[u8],
) -> (Vec<LeaseEvent>, Option<Control>) {
    let (events, answer) = exchange(bus, now, from, datagram);
    (events, answer.and_then(|frame| frame.control))
}

fn challenged(bus: &mut Bus, now: Duration, from: &str, request: Subscribe) -> Vec<u8> {
    match ask(bus, now, from, &padded(Control::Subscribe(request))) {
        (events, Some(Control::Challenge(Challenge { cookie, nonce: 5 }))) => {
            assert_eq!(events, [LeaseEvent::Challenged]);
            cookie
        }
        other => panic!("{other:?}"),
    }
}

fn leased(bus: &mut Bus, now: Duration, from: &str, topics: &[&str]) -> Lease {
    let cookie = challenged(bus, now, from, subscribe(topics, b""));
    granted(bus, now, from, subscribe(topics, &cookie))
}

fn granted(bus: &mut Bus, now: Duration, from: &str, request: Subscribe) -> Lease {
    match ask(bus, now, from, &padded(Control::Subscribe(request))).1 {
        Some(Control::Lease(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

fn refusal(bus: &mut Bus, now: Duration, from: &str, request: Control) -> Reason {
    match ask(bus, now, from, &padded(request)).1 {
        Some(Control::Refusal(refusal)) => refusal.reason(),
        other => panic!("{other:?}"),
    }
}

fn frame_of(topics: &[&str]) -> Vec<u8> {
    let event = |topic: &&str| Event {
        topic: (*topic).to_owned(),
        ..Event::default()
    };
    Frame {
        events: topics.iter().map(event).collect(),
        ..Frame::default()
    }
    .encode_to_vec()
}

/// Publishes and gives the frames that would be sent: to whom, and what.
fn publish(bus: &mut Bus, datagram: &[u8], tally: &mut EventTally) -> Vec<(SubscriberId, Frame)> {
    let source = Source::Ip("127.0.0.1:9".parse().unwrap());
    let arrival = Arrival {
        source,
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    bus.handle_datagram(arrival, datagram, tally).unwrap();
    let mut sent = Vec::new();
    let mut copies = Vec::new();
    loop {
        // Two at a time, so that the place where one left off matters.
        bus.poll_copies(&mut copies, 2);
        if copies.is_empty() {
            break;
        }
        for copy in &copies {
            let datagram = [copy.stamp(), bus.forwarder.body(copy)].concat();
            let frame = Frame::decode(&*datagram).unwrap();
            assert_eq!(frame.events.len(), copy.events as usize);
            sent.push((copy.subscriber, frame));
        }
    }
    bus.forwarder.end_frames();
    sent
}

#[test]
fn a_lease_takes_a_proven_address_and_ends_in_time() {
    let mut bus = bus();
    let lease = leased(&mut bus, T0, HERE, &["a.>"]);
    assert_eq!(
        (lease.bus, lease.lease_ms, lease.nonce),
        (bus.registrar.bus(), 30_000, 5)
    );
    assert_eq!(
        bus.registrar.poll_timeout(),
        Some(T0 + Duration::from_secs(30))
    );
    let sent = publish(
        &mut bus,
        &frame_of(&["a.b", "b", "a.c"]),
        &mut EventTally::default(),
    );
    assert_eq!(sent.len(), 1, "both events in one frame");
    assert_eq!(sent[0].1.events.len(), 2);

    let renewed_at = T0 + Duration::from_secs(20);
    granted(
        &mut bus,
        renewed_at,
        HERE,
        subscribe(&["a.>"], &lease.cookie),
    );
    let mut events = Vec::new();
    bus.handle_timeout(T0 + Duration::from_secs(30), &mut events);
    assert_eq!(events, [], "renewed");
    bus.handle_timeout(renewed_at + Duration::from_secs(30), &mut events);
    assert!(matches!(events[..], [LeaseEvent::Expired(_)]));
    let mut tally = EventTally::default();
    assert_eq!(publish(&mut bus, &frame_of(&["a.b"]), &mut tally), []);
    assert_eq!((tally.unmatched, tally.copies), (1, 0));
    assert_eq!(bus.registrar.poll_timeout(), None);
}

#[test]
fn a_cookie_that_is_old_foreign_or_bent_proves_nothing() {
    let mut bus = bus();
    let topics = &["a"];
    let cookie = challenged(&mut bus, T0, HERE, subscribe(topics, b""));
    let late = T0 + limits::CHALLENGE_AGE_MAX + Duration::from_millis(1);
    challenged(&mut bus, late, HERE, subscribe(topics, &cookie));
    challenged(&mut bus, T0, "127.0.0.1:1001", subscribe(topics, &cookie));
    challenged(&mut bus, T0, "127.0.0.2:1000", subscribe(topics, &cookie));
    let mut bent = cookie.clone();
    bent[12] ^= 1;
    challenged(&mut bus, T0, HERE, subscribe(topics, &bent));
    let foreign = challenged(
        &mut bus_of(Settings {
            leased_series_max: 0,
            ..settings()
        }),
        T0 / 2,
        HERE,
        subscribe(topics, b""),
    );
    // Of a bus with the same seed, so the same key: only its time is another.
    assert_ne!(foreign, cookie);
    assert_eq!(bus.subscribers().leases(), 0, "nothing kept of any of them");
}

#[test]
fn a_lapsed_subscriber_is_challenged_again() {
    let mut bus = bus();
    let lease = leased(&mut bus, T0, HERE, &["a"]);
    let late = T0 + Duration::from_secs(31);
    bus.handle_timeout(late, &mut Vec::new());
    challenged(&mut bus, late, HERE, subscribe(&["a"], &lease.cookie));
}

#[test]
fn a_renewal_may_want_other_topics() {
    let mut bus = bus();
    let lease = leased(&mut bus, T0, HERE, &["a"]);
    granted(&mut bus, T0, HERE, subscribe(&["b"], &lease.cookie));
    let sent = publish(&mut bus, &frame_of(&["a", "b"]), &mut EventTally::default());
    assert_eq!(sent[0].1.events[0].topic, "b");
    assert_eq!(sent[0].1.events.len(), 1);
}

#[test]
fn a_lease_is_given_back_by_its_holder_alone() {
    let mut bus = bus();
    let lease = leased(&mut bus, T0, HERE, &["a"]);
    let release = |cookie: &[u8]| {
        Control::Unsubscribe(Unsubscribe {
            cookie: cookie.to_vec(),
            nonce: 5,
        })
    };
    assert_eq!(
        refusal(&mut bus, T0, "127.0.0.1:7", release(&lease.cookie)),
        Reason::UnknownLease
    );
    assert_eq!(
        refusal(&mut bus, T0, HERE, release(b"guess")),
        Reason::UnknownLease
    );
    let (events, answer) = ask(&mut bus, T0, HERE, &padded(release(&lease.cookie)));
    assert!(matches!(events[..], [LeaseEvent::Released(_)]) && answer.is_none());
    assert_eq!(bus.registrar.poll_timeout(), None);
}

#[test]
fn what_cannot_be_granted_is_refused_with_its_reason() {
    let mut bus = bus();
    let request = |change: fn(&mut Subscribe)| {
        let mut request = subscribe(&["a"], b"");
        change(&mut request);
        request
    };
    for (wrong, reason) in [
        (
            request(|r| r.topics = vec!["a.>.b".to_owned()]),
            Reason::BadTopic,
        ),
        (request(|r| r.topics.clear()), Reason::BadRequest),
        (
            request(|r| r.topics = vec!["a".to_owned(); 4]),
            Reason::BadRequest,
        ),
        (request(|r| r.name = "a b".to_owned()), Reason::BadRequest),
        (
            request(|r| r.name = "_hailmary.canary".to_owned()),
            Reason::BadRequest,
        ),
        (request(|r| r.sample = f64::NAN), Reason::BadRequest),
        (request(|r| r.sample = 7.0), Reason::BadRequest),
        (request(|r| r.max_frame_bytes = 10), Reason::BadRequest),
    ] {
        let cookie = challenged(&mut bus, T0, HERE, wrong.clone());
        let proven = Control::Subscribe(Subscribe { cookie, ..wrong });
        assert_eq!(refusal(&mut bus, T0, HERE, proven), reason);
    }
    assert_eq!(bus.subscribers().leases(), 0);
}

#[test]
fn full_refuses_and_evicts_nobody() {
    let mut bus = bus();
    let full = |bus: &mut Bus, from: &str| {
        let cookie = challenged(bus, T0, from, subscribe(&["a"], b""));
        let proven = Control::Subscribe(subscribe(&["a"], &cookie));
        assert_eq!(refusal(bus, T0, from, proven), Reason::Full);
    };
    for port in 1..=4 {
        leased(&mut bus, T0, &format!("10.0.0.1:{port}"), &["a"]);
    }
    full(&mut bus, "10.0.0.1:5");
    for port in 1..=2 {
        leased(&mut bus, T0, &format!("10.0.0.2:{port}"), &["a"]);
    }
    full(&mut bus, "10.0.0.3:1");
    assert_eq!(
        publish(&mut bus, &frame_of(&["a"]), &mut EventTally::default()).len(),
        6
    );
}

#[test]
fn an_unproven_address_gets_no_more_bytes_than_it_sent() {
    let mut bus = bus();
    let request = Control::Subscribe(subscribe(&["a"], b""));
    let short = Frame {
        control: Some(request),
        ..Frame::default()
    }
    .encode_to_vec();
    assert_eq!(
        ask(&mut bus, T0, HERE, &short),
        (vec![LeaseEvent::Unanswered], None)
    );
    let ping = Control::Ping(Ping { nonce: 1 });
    let short = Frame {
        control: Some(ping),
        ..Frame::default()
    }
    .encode_to_vec();
    assert_eq!(ask(&mut bus, T0, HERE, &short), (vec![], None));
}

#[test]
fn who_may_not_is_told_or_dropped() {
    let nobody = Access::default();
    let mut bus = bus_of(Settings {
        access: nobody,
        ..settings()
    });
    let request = Control::Subscribe(subscribe(&["a"], b""));
    assert_eq!(refusal(&mut bus, T0, HERE, request), Reason::NotAllowed);
    let source = Source::Ip(HERE.parse().unwrap());
    let arrival = Arrival {
        source,
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    let mut tally = EventTally::default();
    let dropped = bus.handle_datagram(arrival, &frame_of(&["a"]), &mut tally);
    assert_eq!((dropped, tally.events), (Err(FrameDrop::NotAllowed), 0));
}

/// A process of which nothing is told.
fn by_unix(path: &[u8]) -> Source<'_> {
    Source::Unix {
        path,
        credentials: None,
    }
}

/// Publishes from there and gives the topics that were sent on.
fn publish_from(
    bus: &mut Bus,
    from: Source<'_>,
    topics: &[&str],
    tally: &mut EventTally,
) -> Vec<String> {
    let arrival = Arrival {
        source: from,
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    // A frame of a source that may do nothing is dropped as a whole.
    let _ = bus.handle_datagram(arrival, &frame_of(topics), tally);
    let mut copies = Vec::new();
    bus.poll_copies(&mut copies, 9);
    let bodies = copies
        .iter()
        .map(|copy| Frame::decode(bus.forwarder.body(copy)).unwrap());
    let topics = bodies
        .flat_map(|frame| frame.events)
        .map(|event| event.topic)
        .collect();
    bus.forwarder.end_frames();
    topics
}

#[test]
fn reserved_topics_come_from_the_bus_itself_alone_whatever_the_rules_say() {
    const OWN: &str = "127.0.0.1:9";
    let path = &b"/run/bus.sock.canary"[..];
    let ip = |text: &str| Source::Ip(text.parse().unwrap());
    let mut others = everybody();
    others.0[0].from = vec!["127.0.0.2/32".parse().unwrap()];
    for publish in [everybody(), Rules::default(), others] {
        let nobody_else = publish.rights(ip("127.0.0.1:1").peer());
        let may_publish = matches!(nobody_else, access::Rights::All);
        let mut bus = bus_of(Settings {
            access: Access {
                publish,
                subscribe: everybody(),
            },
            own_sources: vec![
                Address::Ip(OWN.parse().unwrap()),
                Address::Unix(path.into()),
            ],
            ..settings()
        });
        leased(&mut bus, T0, HERE, &[">", "_hailmary.>"]);
        let mut tally = EventTally::default();
        // Twice: what the bus was allowed is not remembered for anybody else.
        for _ in 0..2 {
            for own in [ip(OWN), by_unix(path)] {
                let sent = publish_from(&mut bus, own, &["_hailmary.a", "_hailmary.a"], &mut tally);
                assert_eq!(sent, ["_hailmary.a"; 2]);
            }
            assert_eq!(tally.not_allowed, 0);
            let topics = ["a", "_hailmary.a", "b", "_hailmary", "_hailmary2"];
            let sent = publish_from(&mut bus, ip("127.0.0.1:10"), &topics, &mut tally);
            match may_publish {
                true => assert_eq!(sent, ["a", "b", "_hailmary2"], "nothing else is lost"),
                false => assert!(
                    sent.is_empty(),
                    "an address beside the bus's is not trusted"
                ),
            }
            let beside = by_unix(b"/run/bus.sock.canary2");
            let sent = publish_from(&mut bus, beside, &topics, &mut tally);
            assert_eq!(sent.len(), if may_publish { 3 } else { 0 });
            let not_allowed = std::mem::take(&mut tally.not_allowed);
            assert_eq!(not_allowed, if may_publish { 4 } else { 0 });
        }
        assert_eq!(tally.unmatched, 0);
    }
}

#[test]
fn reserved_topics_go_to_whoever_names_them_and_may_see_them() {
    let own = by_unix(b"/own");
    let mut bus = bus_of(Settings {
        own_sources: vec![own.to_address()],
        topic_policies: vec![policy(">")],
        ..settings()
    });
    leased(&mut bus, T0, HERE, &[">", "*.canary"]);
    let mut tally = EventTally {
        ..EventTally::default()
    };
    let send = |bus: &mut Bus, tally: &mut EventTally| {
        publish_from(bus, own, &["_hailmary.canary"], tally)
    };
    assert!(send(&mut bus, &mut tally).is_empty());
    assert_eq!((tally.unmatched, &tally.by_label[..]), (1, &[1][..]));
    leased(&mut bus, T0, "127.0.0.1:1001", &["_hailmary.>"]);
    assert_eq!(send(&mut bus, &mut tally), ["_hailmary.canary"]);

    let mut rules = everybody();
    rules.0[0].effect = Effect::Deny;
    rules.0[0].topics = vec!["_hailmary.>".to_owned()];
    rules.0.extend(everybody().0);
    let mut bus = bus_of(Settings {
        own_sources: vec![own.to_address()],
        access: Access {
            publish: Rules::default(),
            subscribe: rules,
        },
        ..settings()
    });
    leased(&mut bus, T0, HERE, &["_hailmary.>"]);
    assert!(send(&mut bus, &mut tally).is_empty(), "a rule denies it");
}

#[test]
fn a_pattern_that_overlaps_gets_what_it_may_see_alone() {
    let mut some = everybody();
    some.0[0].topics = vec!["open.>".to_owned()];
    let access = Access {
        publish: everybody(),
        subscribe: some,
    };
    let mut bus = bus_of(Settings {
        access,
        ..settings()
    });
    leased(&mut bus, T0, HERE, &[">"]);
    let sent = publish(
        &mut bus,
        &frame_of(&["open.a", "secret.a"]),
        &mut EventTally::default(),
    );
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].1.events[0].topic, "open.a");
    assert_eq!(sent[0].1.events.len(), 1);
}

#[test]
fn what_lies_between_two_events_is_not_copied_with_them() {
    let mut bus = bus();
    leased(&mut bus, T0, HERE, &["a"]);
    let stamp = Stamp {
        sender: 9,
        sequence: 7,
        hops: 1,
        ..Stamp::default()
    };
    let stamp = Frame {
        stamp: Some(stamp),
        ..Frame::default()
    }
    .encode_to_vec();
    let event = frame_of(&["a"]);
    let datagram = [&*event, &stamp, &event].concat();
    let source = Source::Ip(HERE.parse().unwrap());
    let arrival = Arrival {
        source,
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    bus.handle_datagram(arrival, &datagram, &mut EventTally::default())
        .unwrap();
    let mut copies = Vec::new();
    bus.poll_copies(&mut copies, 9);
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].events, 2);
    assert_eq!(bus.forwarder.body(&copies[0]), [&*event, &event].concat());
    let sent = Frame::decode(copies[0].stamp()).unwrap().stamp.unwrap();
    assert_eq!((sent.sequence, sent.hops), (0, 2), "the bus's own");
}

#[test]
fn stamps_count_what_went_and_what_was_dropped() {
    let mut bus = bus();
    leased(&mut bus, T0, HERE, &["a"]);
    let source = Source::Ip(HERE.parse().unwrap());
    let arrival = Arrival {
        source,
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    let mut stamps = Vec::new();
    for is_dropped in [false, true, false] {
        bus.handle_datagram(arrival, &frame_of(&["a", "a"]), &mut EventTally::default())
            .unwrap();
        let mut copies = Vec::new();
        bus.poll_copies(&mut copies, 9);
        let stamp = Frame::decode(copies[0].stamp()).unwrap().stamp.unwrap();
        stamps.push((stamp.sequence, stamp.dropped));
        if is_dropped {
            bus.handle_dropped(&copies[0]);
        }
        bus.forwarder.end_frames();
    }
    assert_eq!(stamps, [(0, 0), (2, 0), (4, 2)]);
}

#[test]
fn frames_are_filled_to_the_subscribers_size_and_too_large_ones_marked() {
    let mut bus = bus();
    let request = |cookie: Vec<u8>| Subscribe {
        max_frame_bytes: 600,
        ..subscribe(&["a"], &cookie)
    };
    let cookie = challenged(&mut bus, T0, HERE, request(Vec::new()));
    granted(&mut bus, T0, HERE, request(cookie));
    let event = |bytes| Event {
        topic: "a".to_owned(),
        payload: vec![0; bytes],
        ..Event::default()
    };
    let events = vec![event(200), event(200), event(200), event(700), event(200)];
    let datagram = Frame {
        events,
        ..Frame::default()
    }
    .encode_to_vec();
    let source = Source::Ip(HERE.parse().unwrap());
    let arrival = Arrival {
        source,
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    bus.handle_datagram(arrival, &datagram, &mut EventTally::default())
        .unwrap();
    let mut copies = Vec::new();
    bus.poll_copies(&mut copies, 9);
    let shape: Vec<_> = copies
        .iter()
        .map(|copy| (copy.events, copy.is_sendable))
        .collect();
    assert_eq!(shape, [(2, true), (1, true), (1, false), (1, true)]);
}

#[test]
fn a_frame_has_no_hops_of_an_event_that_it_had_no_room_for() {
    let mut bus = bus();
    leased(&mut bus, T0, HERE, &["a"]);
    for hops in [0, 5] {
        let event = Event {
            topic: "a".to_owned(),
            payload: vec![0; 40_000],
            ..Event::default()
        };
        let stamp = Some(Stamp {
            hops,
            ..Stamp::default()
        });
        let frame = Frame {
            events: vec![event],
            stamp,
            ..Frame::default()
        };
        let arrival = Arrival {
            source: Source::Ip(HERE.parse().unwrap()),
            listener: 0,
            now: T0,
            unix_nano: 0,
        };
        bus.handle_datagram(arrival, &frame.encode_to_vec(), &mut EventTally::default())
            .unwrap();
    }
    let mut copies = Vec::new();
    bus.poll_copies(&mut copies, 9);
    let hops = |copy: &FrameCopy| Frame::decode(copy.stamp()).unwrap().stamp.unwrap().hops;
    assert_eq!(copies.iter().map(hops).collect::<Vec<_>>(), [1, 6]);
}

#[test]
fn only_the_hop_limit_stops_a_frame() {
    let mut bus = bus();
    leased(&mut bus, T0, HERE, &["a"]);
    let event = Event {
        topic: "a".to_owned(),
        ..Event::default()
    };
    let with_hops = |hops| Frame {
        events: vec![event.clone()],
        stamp: Some(Stamp {
            hops,
            ..Stamp::default()
        }),
        ..Frame::default()
    };
    let last = with_hops(limits::HOPS_MAX - 1).encode_to_vec();
    let sent = publish(&mut bus, &last, &mut EventTally::default());
    assert_eq!(sent[0].1.stamp.unwrap().hops, limits::HOPS_MAX);
    let source = Source::Ip(HERE.parse().unwrap());
    let arrival = Arrival {
        source,
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    let over = with_hops(u32::MAX).encode_to_vec();
    let dropped = bus.handle_datagram(arrival, &over, &mut EventTally::default());
    assert_eq!(dropped, Err(FrameDrop::Hops));
}

mod terms;

proptest! {
    #[test]
    fn every_event_and_copy_ends_once_and_in_order(
        wants in prop::collection::vec(prop::collection::vec("[ab*](\\.[ab>])?|_hailmary\\.>", 1..3), 0..4),
        frames in prop::collection::vec(prop::collection::vec("[abc.]{0,3}|_hailmary\\.[ab]", 0..6), 1..20),
    ) {
        let legal = |pattern: &&String| hailmary_proto::topic::check_pattern(pattern.as_bytes()).is_ok();
        let mut bus = bus();
        for (patterns, port) in wants.iter().zip(1..) {
            let patterns: Vec<_> = patterns.iter().filter(legal).map(String::as_str).collect();
            if !patterns.is_empty() {
                leased(&mut bus, T0, &format!("127.0.0.1:{port}"), &patterns);
            }
        }
        let mut tally = EventTally::default();
        let mut reserved = 0;
        for topics in &frames {
            reserved += topics.iter().filter(|topic| topic.starts_with('_')).count() as u64;
            let topics: Vec<_> = topics.iter().map(String::as_str).collect();
            let before = tally.copies;
            let sent = publish(&mut bus, &frame_of(&topics), &mut tally);
            let copies: usize = sent.iter().map(|(_, frame)| frame.events.len()).sum();
            prop_assert_eq!(copies as u64, tally.copies - before);
            for (id, subscriber) in bus.subscribers().iter() {
                let wanted = |topic: &&&str| subscriber.topics.iter().any(|pattern| {
                    hailmary_proto::topic::check_topic(topic.as_bytes()).is_ok()
                        && !hailmary_proto::topic::is_reserved(topic.as_bytes())
                        && hailmary_proto::topic::matches(pattern.as_bytes(), topic.as_bytes())
                });
                // Order holds for each topic; sets may pass each other.
                for topic in topics.iter().filter(wanted) {
                    let expected = topics.iter().filter(|other| *other == topic).count();
                    let got = sent.iter().filter(|(to, _)| *to == id)
                        .flat_map(|(_, frame)| &frame.events)
                        .filter(|event| event.topic == **topic).count();
                    prop_assert_eq!(got, expected);
                }
            }
        }
        prop_assert_eq!(tally.not_allowed, reserved);
        prop_assert_eq!(tally.events, tally.bad_topic + tally.not_allowed + tally.unmatched + tally.matched);
    }

    #[test]
    fn no_datagram_makes_the_core_panic(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let mut bus = bus();
        let source = Source::Ip(HERE.parse().unwrap());
        let arrival = Arrival { source, listener: 0, now: T0, unix_nano: 0 };
        for datagram in datagrams {
            let _ = bus.handle_datagram(arrival, &datagram, &mut EventTally::default());
            bus.handle_controls(T0, &mut Vec::new());
        }
    }
}

#[test]
fn an_answer_tells_what_went_to_the_subscriber_and_another_one_begins_anew() {
    let mut bus = bus();
    let this = bus.registrar.bus();
    let cookie = leased(&mut bus, T0, HERE, &["a"]).cookie;
    let three = frame_of(&["a", "a", "a"]);
    let sent = publish(&mut bus, &three, &mut EventTally::default());
    let subscriber = bus.subscribers().get(sent[0].0).unwrap();
    subscriber.flow.drop(2);
    let mut ask = |nonce, cookie: &[u8]| {
        let request = Subscribe {
            nonce,
            ..subscribe(&["a"], cookie)
        };
        let request = padded(Control::Subscribe(request));
        let answer = exchange(&mut bus, T0, HERE, &request).1.unwrap();
        let position = |stamp: Stamp| (stamp.sender, stamp.sequence, stamp.dropped);
        (answer.control.unwrap(), answer.stamp.map(position))
    };
    assert_eq!(ask(5, &cookie).1, Some((this, 3, 2)));
    let Control::Challenge(Challenge { cookie, .. }) = ask(6, b"").0 else {
        panic!("another one has to prove itself");
    };
    assert_eq!(ask(6, &cookie).1, Some((this, 0, 0)));
}

fn static_subscriber(name: &str, port: u16, topics: &[&str]) -> StaticSubscriber {
    StaticSubscriber {
        name: name.to_owned(),
        address: Address::Ip(([127, 0, 0, 1], port).into()),
        topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        frame_bytes_max: None,
        terms: Terms::default(),
    }
}

fn policy(pattern: &str) -> TopicPolicy {
    TopicPolicy {
        pattern: pattern.to_owned(),
        ..TopicPolicy::default()
    }
}

fn reconfigure(bus: &mut Bus, settings: &Settings) -> (Reconfigured, Vec<LeaseEvent>) {
    let mut events = Vec::new();
    let before = bus.directory.generation();
    let changes = bus
        .registrar
        .reconfigure(settings, &mut bus.directory, &mut events);
    assert!(bus.directory.generation() > before, "nothing is remembered");
    (changes, events)
}

/// Who is sent an event of this topic: name, address, and how many went there before.
fn sent_to(bus: &mut Bus, topic: &str) -> Vec<(String, String, u64)> {
    let copies = publish(bus, &frame_of(&[topic]), &mut EventTally::default());
    let subscribers = bus.directory.subscribers();
    let mut all: Vec<_> = copies
        .iter()
        .map(|(id, frame)| {
            let one = subscribers.get(*id).unwrap();
            let sequence = frame.stamp.unwrap().sequence;
            (one.name.to_string(), one.address.to_string(), sequence)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn static_subscribers_that_stay_keep_their_places_and_flows() {
    let with = |subscribers: &[StaticSubscriber]| Settings {
        subscribers: subscribers.to_vec(),
        ..settings()
    };
    let mut bus = bus_of(with(&[
        static_subscriber("gone", 1, &["a"]),
        static_subscriber("same", 2, &["a"]),
        static_subscriber("wider", 3, &["a"]),
        static_subscriber("moved", 4, &["a"]),
    ]));
    let lease = leased(&mut bus, T0, HERE, &["a"]);
    sent_to(&mut bus, "a");
    let place = |bus: &Bus, name: &str| {
        let mut all = bus.directory.subscribers().iter();
        all.find(|(_, one)| &*one.name == name).unwrap().0
    };
    let names = ["same", "wider", "moved"];
    let before = names.map(|name| place(&bus, name));
    let mut wider = static_subscriber("wider", 3, &["a", "b"]);
    wider.frame_bytes_max = Some(600);
    let other = with(&[
        static_subscriber("moved", 5, &["a"]),
        static_subscriber("new", 6, &["a"]),
        wider,
        static_subscriber("same", 2, &["a"]),
    ]);
    let (changes, events) = reconfigure(&mut bus, &other);
    assert_eq!(events, [], "leases stay");
    let after = names.map(|name| place(&bus, name));
    assert_eq!(after[..2], before[..2]);
    assert_eq!(changes.changed, [before[1]]);
    assert_eq!((changes.added.len(), changes.removed.len()), (2, 2));
    let here = |name: &str, port: &str, before| {
        (name.to_owned(), format!("udp://127.0.0.1:{port}"), before)
    };
    let expected = [
        here("", "1000", 1),
        here("moved", "5", 0),
        here("new", "6", 0),
        here("same", "2", 1),
        here("wider", "3", 1),
    ];
    assert_eq!(sent_to(&mut bus, "a"), expected);
    assert_eq!(sent_to(&mut bus, "b"), [here("wider", "3", 2)]);
    let wider = bus.directory.subscribers().get(before[1]).unwrap();
    assert_eq!(wider.frame_bytes.max, 600);
    let series = bus.directory.series_names().len();

    let (changes, _) = reconfigure(&mut bus, &other);
    assert_eq!(changes, Reconfigured::default(), "nothing is new");
    let (changes, _) = reconfigure(&mut bus, &settings());
    assert_eq!(changes.removed.len(), 4);
    assert_eq!(sent_to(&mut bus, "a"), [here("", "1000", 2)]);
    assert_eq!(bus.directory.series_names().len(), series, "it only grows");
    granted(&mut bus, T0, HERE, subscribe(&["a"], &lease.cookie));
}

#[test]
fn leases_end_where_nothing_is_allowed_any_more_and_nowhere_else() {
    let rules = |denied: &[(&str, &str)]| {
        let denial = |(from, topic): &(&str, &str)| Rule {
            from: vec![from.parse().unwrap()],
            topics: vec![(*topic).to_owned()],
            effect: Effect::Deny,
        };
        let denials = denied.iter().map(denial);
        Rules(everybody().0.into_iter().chain(denials).collect())
    };
    let subscribing = |denied: &[(&str, &str)]| Settings {
        access: Access {
            publish: everybody(),
            subscribe: rules(denied),
        },
        ..settings()
    };
    let mut bus = bus();
    let (limited, forbidden) = ("127.0.0.2:1", "127.0.0.3:1");
    let leases = [HERE, limited, forbidden].map(|from| leased(&mut bus, T0, from, &["*"]));
    let id = |bus: &Bus, from: &str| {
        let address = Address::Ip(from.parse().unwrap());
        bus.directory.subscribers().leased(&address)
    };
    let before = [HERE, limited, forbidden].map(|from| id(&bus, from));
    let mut other = subscribing(&[("127.0.0.2", "a"), ("127.0.0.3", ">")]);
    // Under what stands: nobody is evicted by that.
    other.leases.leases_max = 1;
    other.leases.lease_ms = 1_000;
    let (_, events) = reconfigure(&mut bus, &other);
    assert_eq!(events, [LeaseEvent::Revoked(before[2].unwrap())]);
    let after = [HERE, limited, forbidden].map(|from| id(&bus, from));
    assert_eq!(after, [before[0], before[1], None]);
    assert_eq!(sent_to(&mut bus, "a").len(), 1, "of what it may see alone");
    assert_eq!(sent_to(&mut bus, "b").len(), 2);

    let renewal = |n: usize| subscribe(&["*"], &leases[n].cookie);
    assert_eq!(granted(&mut bus, T0, HERE, renewal(0)).lease_ms, 1_000);
    let request = Control::Subscribe(renewal(2));
    let reason = refusal(&mut bus, T0, forbidden, request);
    assert_eq!(reason, Reason::NotAllowed);
    let cookie = challenged(&mut bus, T0, "127.0.0.4:1", subscribe(&["*"], b""));
    let request = Control::Subscribe(subscribe(&["*"], &cookie));
    let reason = refusal(&mut bus, T0, "127.0.0.4:1", request);
    assert_eq!(reason, Reason::Full, "till those that stand have ended");

    // As many as ever of an origin whose lease was taken.
    reconfigure(&mut bus, &subscribing(&[]));
    for port in 1..=4 {
        leased(&mut bus, T0, &format!("127.0.0.3:{port}"), &["*"]);
    }
    let nobody = Settings {
        access: Access::default(),
        ..settings()
    };
    let (_, events) = reconfigure(&mut bus, &nobody);
    assert_eq!(events.len(), 6);
    assert_eq!(bus.registrar.poll_timeout(), None, "no end is left behind");
    assert_eq!(bus.directory.subscribers().leases(), 0);
}

#[test]
fn a_right_to_publish_that_is_taken_is_not_remembered() {
    let mut bus = bus_of(Settings {
        subscribers: vec![static_subscriber("all", 1, &[">"])],
        ..settings()
    });
    let from = Source::Ip(HERE.parse().unwrap());
    let mut tally = EventTally::default();
    assert_eq!(publish_from(&mut bus, from, &["a"], &mut tally), ["a"]);
    let mut nobody = settings();
    nobody.access.publish = Rules::default();
    nobody.subscribers = vec![static_subscriber("all", 1, &[">"])];
    reconfigure(&mut bus, &nobody);
    assert!(publish_from(&mut bus, from, &["a"], &mut tally).is_empty());
    assert_eq!(tally.events, 1, "the frame is dropped as a whole");
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let pattern = prop::sample::select(vec!["a", "a.>", "*.b", ">", "b"]);
    let topics = prop::collection::vec(pattern.clone(), 1..3);
    let group = prop::option::of(prop::sample::select(vec!["g", "h"]));
    let rate = prop::option::of(1_000..1_002_u32);
    let size = prop::option::of(600..700_u32);
    let subscriber = (0..3_u16, topics, size, (group, rate));
    let subscribers = prop::collection::btree_map(0..4_u8, subscriber, 0..4);
    let policies = prop::sample::subsequence(vec!["a", "b.>", "a.*"], 0..3);
    let denied = prop::option::of(pattern);
    (subscribers, policies, denied).prop_map(|(subscribers, policies, denied)| {
        let mut settings = settings();
        for (name, (port, topics, size, (group, rate))) in subscribers {
            let mut one = static_subscriber(&format!("s{name}"), port + 1, &topics);
            one.frame_bytes_max = size;
            one.terms.group = group.map(Into::into);
            one.terms.events_per_second = rate;
            settings.subscribers.push(one);
        }
        settings.topic_policies = policies.into_iter().map(policy).collect();
        settings.access.publish.0.extend(denied.map(|topic| Rule {
            from: vec!["127.0.0.0/8".parse().unwrap()],
            topics: vec![topic.to_owned()],
            effect: Effect::Deny,
        }));
        settings
    })
}

proptest! {
    #[test]
    fn a_bus_configured_anew_does_as_one_that_always_was_so(
        all in prop::collection::vec(any_settings(), 1..5)
    ) {
        let mut bus = bus();
        let last = all.last().unwrap();
        for settings in &all {
            reconfigure(&mut bus, settings);
        }
        let mut fresh = bus_of(last.clone());
        for topic in ["a", "a.b", "a.c", "b", "b.b", "c"] {
            let from = Source::Ip(HERE.parse().unwrap());
            let [deeds, fresh_deeds] = [&mut bus, &mut fresh].map(|bus| {
                let mut tally = EventTally::default();
                let sent = publish_from(bus, from, &[topic], &mut tally);
                let labels = bus.directory.policies().labels();
                let counted = tally.by_label.iter().zip(labels).filter(|(n, _)| **n > 0);
                let counted: Vec<_> = counted.map(|(n, label)| (*n, label.to_string())).collect();
                (sent, counted, tally.unmatched, tally.not_allowed, tally.copies)
            });
            prop_assert_eq!(deeds, fresh_deeds, "{}", topic);
        }
        let shown = |bus: &Bus| {
            let groups = ["g", "h"].map(|group| bus.directory.members(group));
            let all = bus.directory.subscribers().iter();
            let show = |one: &Subscriber| {
                let Subscriber { name, address, topics, frame_bytes, terms, .. } = one;
                format!("{name} {address} {topics:?} {frame_bytes:?} {terms:?} {groups:?}")
            };
            let mut all: Vec<_> = all.map(|(_, one)| show(one)).collect();
            all.sort();
            all
        };
        prop_assert_eq!(shown(&bus), shown(&fresh));
    }
}
