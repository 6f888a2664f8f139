//! A publisher against real sockets: read ones, full ones, missing ones.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what helps tests may panic as they do"
)]

mod common;

use std::time::{Duration, Instant, UNIX_EPOCH};

use common::{PATIENCE, SocketPath, StandIn, receive_unix};
use hailmary_client::{Event, PublishError, Publisher, SPY_EVENTS_MAX, TopicError};
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;

/// One publisher serves all threads, and a subscriber may move to its own.
const _: () = {
    const fn shared<T: Send + Sync + Clone>() {}
    const fn movable<T: Send + Sync>() {}
    shared::<hailmary_client::Spy>();
    movable::<hailmary_client::Batch>();
    shared::<Publisher>();
    movable::<hailmary_client::Subscriber>();
};

fn stamp(frame: &v1::Frame) -> (u64, u64) {
    let stamp = frame.stamp.unwrap();
    (stamp.sequence, stamp.dropped)
}

#[test]
fn an_event_arrives_with_all_its_parts_and_a_stamp() {
    let bus = StandIn::open();
    let publisher = Publisher::connect(&bus.address()).unwrap();
    publisher.publish("a.b", "plain");
    let full = Event::new("a.c", b"full")
        .key("k")
        .time(UNIX_EPOCH + Duration::from_nanos(9))
        .attributes(&[("n", "v")]);
    publisher.publish_event(&full);

    let (first, _) = bus.receive();
    assert_eq!(first.events[0].topic, "a.b");
    assert_eq!(first.events[0].payload, b"plain");
    let (second, _) = bus.receive();
    let expected = v1::Event {
        topic: "a.c".to_owned(),
        payload: b"full".to_vec(),
        key: b"k".to_vec(),
        time_unix_nano: 9,
        attributes: [("n".to_owned(), "v".to_owned())].into(),
    };
    assert_eq!(second.events, [expected]);
    assert_eq!((stamp(&first), stamp(&second)), ((0, 0), (1, 0)));
    let sender = first.stamp.unwrap().sender;
    assert_eq!(second.stamp.unwrap().sender, sender);
    assert_ne!(sender, 0);

    let other = Publisher::connect(&bus.address()).unwrap();
    other.publish("a", "");
    assert_ne!(bus.receive().0.stamp.unwrap().sender, sender);
}

#[test]
fn what_cannot_be_sent_is_counted_and_told_in_the_next_stamp() {
    let bus = StandIn::open();
    let publisher = Publisher::connect(&bus.address()).unwrap();
    publisher.publish("not..legal", "");
    publisher.publish("", "");
    let error = publisher.try_publish(&Event::new("a b", "")).unwrap_err();
    assert_eq!(error, PublishError::Invalid(TopicError::BadByte));
    let large = vec![0; 65_507];
    let error = publisher.try_publish(&Event::new("a", &large)).unwrap_err();
    assert_eq!(error, PublishError::TooLarge);
    publisher.publish("a", "");
    assert_eq!(stamp(&bus.receive().0), (4, 4));

    let stats = publisher.stats();
    assert_eq!((stats.sent, stats.dropped()), (1, 4));
    assert_eq!((stats.invalid, stats.too_large), (3, 1));
}

#[test]
fn the_largest_event_fits() {
    let bus = StandIn::open();
    let publisher = Publisher::connect(&bus.address()).unwrap();
    let payload = vec![1; hailmary_proto::write::EVENT_BYTES_MAX - 11];
    publisher.try_publish(&Event::new("a", &payload)).unwrap();
    assert_eq!(bus.receive().0.events[0].payload, payload);
    let longer = vec![1; payload.len() + 1];
    let error = publisher
        .try_publish(&Event::new("a", &longer))
        .unwrap_err();
    assert_eq!(error, PublishError::TooLarge);
}

#[test]
fn a_missing_udp_bus_costs_nothing_but_counts() {
    let address = StandIn::open().address();
    let publisher = Publisher::connect(&address).unwrap();
    for _ in 0..1_000 {
        publisher.publish("a", "payload");
    }
    let stats = publisher.stats();
    assert_eq!(stats.sent + stats.dropped(), 1_000);
    assert_eq!(stats.dropped(), stats.refused);
    assert!(stats.bounced > 0);
}

#[test]
fn a_full_unix_socket_drops_and_the_next_stamp_says_so() {
    let place = SocketPath::new("full");
    let bus = place.bind();
    let publisher = Publisher::connect(&place.address()).unwrap();
    let event = Event::new("a", "payload");
    let mut sent = 0;
    while publisher.try_publish(&event).is_ok() {
        sent += 1;
    }
    assert_eq!(publisher.try_publish(&event), Err(PublishError::WouldBlock));
    let stats = publisher.stats();
    assert_eq!(
        (stats.sent, stats.would_block, stats.dropped()),
        (sent, 2, 2)
    );
    for sequence in 0..sent {
        assert_eq!(stamp(&receive_unix(&bus)), (sequence, 0));
    }
    publisher.try_publish(&event).unwrap();
    assert_eq!(stamp(&receive_unix(&bus)), (sent + 2, 2));
}

/// Publishes until the bus has a frame.
fn publish_until_received(
    publisher: &Publisher,
    bus: &std::os::unix::net::UnixDatagram,
) -> v1::Frame {
    let began = Instant::now();
    while publisher.try_publish(&Event::new("a", "")).is_err() {
        assert!(began.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    receive_unix(bus)
}

#[test]
fn a_unix_bus_is_found_when_it_comes_and_when_it_comes_back() {
    let place = SocketPath::new("restart");
    let publisher = Publisher::connect(&place.address()).unwrap();
    let missing = publisher.try_publish(&Event::new("a", ""));
    assert_eq!(missing, Err(PublishError::Refused));

    let bus = place.bind();
    let first = publish_until_received(&publisher, &bus);
    let (sequence, dropped) = stamp(&first);
    assert_eq!(sequence, dropped);
    assert!(dropped >= 1);

    drop(bus);
    assert_eq!(
        publisher.try_publish(&Event::new("a", "")),
        Err(PublishError::Refused)
    );
    std::fs::remove_file(place.path()).unwrap();
    let bus = place.bind();
    let second = publish_until_received(&publisher, &bus);
    let stats = publisher.stats();
    assert_eq!(stats.sent, 2);
    assert_eq!(stamp(&second), (stats.refused + 1, stats.refused));
}

#[test]
fn a_batch_is_one_frame_and_goes_when_it_is_full() {
    let bus = StandIn::open();
    let publisher = Publisher::connect(&bus.address()).unwrap();
    let mut batch = publisher.batch_of(200);
    let event = Event::new("a", "0123456789012345678901234567890123456789");
    for _ in 0..4 {
        batch.push(&event);
    }
    batch.push(&Event::new("..", ""));
    assert_eq!(batch.events(), 1);
    let (full, _) = bus.receive();
    assert_eq!((full.events.len(), stamp(&full)), (3, (0, 0)));

    let large = vec![0; 1_000];
    batch.push(&Event::new("b", &large));
    let (rest, _) = bus.receive();
    assert_eq!((rest.events.len(), stamp(&rest)), (1, (4, 1)));
    drop(batch);
    let (alone, _) = bus.receive();
    assert_eq!(
        (alone.events[0].topic.as_str(), stamp(&alone)),
        ("b", (5, 1))
    );
    assert_eq!(
        (publisher.stats().sent, publisher.stats().dropped()),
        (5, 1)
    );
}

#[test]
fn threads_share_one_flow() {
    const THREADS: usize = 4;
    const EVENTS: usize = 2_000;
    let place = SocketPath::new("threads");
    let bus = place.bind();
    let publisher = Publisher::connect(&place.address()).unwrap();
    let mut stamps = Vec::new();
    std::thread::scope(|scope| {
        let publish = || (0..EVENTS).for_each(|_| publisher.publish("a", ""));
        let threads = [(); THREADS].map(|()| scope.spawn(publish));
        // Read on until nothing is left after the last of them has ended.
        bus.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        loop {
            let over = threads.iter().all(|thread| thread.is_finished());
            match bus.recv(&mut buffer) {
                Ok(bytes) => {
                    let frame = <v1::Frame as prost::Message>::decode(&buffer[..bytes]).unwrap();
                    stamps.push(stamp(&frame));
                }
                Err(_) if over => break,
                Err(_) => std::thread::yield_now(),
            }
        }
    });
    let stats = publisher.stats();
    assert_eq!(stats.sent, stamps.len() as u64);
    assert_eq!(stats.sent + stats.would_block, (THREADS * EVENTS) as u64);
    assert!(
        stamps
            .iter()
            .all(|&(sequence, dropped)| dropped <= sequence)
    );
    stamps.sort_unstable();
    stamps.dedup_by_key(|&mut (sequence, _)| sequence);
    assert_eq!(stats.sent, stamps.len() as u64);
}

#[test]
fn a_ping_is_padded_names_the_flow_and_is_repeated() {
    let bus = StandIn::open();
    let publisher = Publisher::connect(&bus.address()).unwrap();
    publisher.publish("a", "");
    let sender = bus.receive().0.stamp.unwrap().sender;
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| publisher.ping(PATIENCE));
        // The first goes unanswered.
        let (first, _) = bus.receive();
        assert!(!first.padding.is_empty());
        assert_eq!(first.stamp.unwrap().sender, sender);
        assert_eq!(stamp(&first), (1, 0));
        let (second, from) = bus.receive();
        let Some(Control::Ping(v1::Ping { nonce })) = second.control else {
            panic!("{second:?}");
        };
        for nonce in [nonce ^ 1, nonce] {
            bus.answer(
                Control::Pong(v1::Pong {
                    nonce,
                    bus: 7,
                    received: nonce,
                    lost: 2,
                }),
                from,
            );
        }
        let pong = pinging.join().unwrap().unwrap();
        assert_eq!((pong.bus, pong.received, pong.lost), (7, nonce, 2));
    });
}

#[test]
fn a_ping_without_answer_ends_in_time() {
    let place = SocketPath::new("ping");
    for address in [StandIn::open().address(), place.address()] {
        let error = hailmary_client::ping(&address, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}

#[test]
fn a_spy_sees_what_a_bus_would_have_got() {
    let (publisher, spy) = Publisher::spy();
    let clone = publisher.clone();
    let event = Event::new("a.b", "payload").key("k").time_unix_nano(5);
    clone.publish_event(&event.attributes(&[("n", "v")]));
    let seen = spy.take();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].topic.as_str(), seen[0].key.as_slice()),
        ("a.b", &b"k"[..])
    );
    assert_eq!(
        (seen[0].payload.as_slice(), seen[0].time_unix_nano),
        (&b"payload"[..], 5)
    );
    assert_eq!(seen[0].attributes, [("n".to_owned(), "v".to_owned())]);
    assert!(spy.events().is_empty());

    publisher.publish("not..legal", "");
    let large = vec![0; 65_507];
    publisher.publish("a", &large);
    let mut batch = publisher.batch();
    batch.push(&event);
    batch.push(&event);
    assert!(spy.events().is_empty());
    drop(batch);
    assert_eq!(spy.events().len(), 2);
    let stats = publisher.stats();
    assert_eq!((stats.sent, stats.invalid, stats.too_large), (3, 1, 1));
    publisher.resolve().unwrap();
    let unasked = publisher.ping(PATIENCE).unwrap_err();
    assert_eq!(unasked.kind(), std::io::ErrorKind::NotConnected);
}

#[test]
fn a_spy_is_bounded() {
    let (publisher, spy) = Publisher::spy();
    let mut batch = publisher.batch();
    for _ in 0..=SPY_EVENTS_MAX {
        batch.push(&Event::new("a", ""));
    }
    batch.flush();
    let stats = publisher.stats();
    assert_eq!(stats.offered(), SPY_EVENTS_MAX as u64 + 1);
    assert!(stats.would_block > 0);
    assert_eq!(spy.events().len() as u64, stats.sent);
}

#[test]
fn a_nop_publisher_keeps_the_rules_and_nothing_else() {
    let publisher = Publisher::nop();
    publisher.try_publish(&Event::new("a", "")).unwrap();
    let error = publisher.try_publish(&Event::new("", "")).unwrap_err();
    assert_eq!(error, PublishError::Invalid(TopicError::Empty));
    let mut batch = publisher.batch();
    batch.push(&Event::new("a", ""));
    batch.try_flush().unwrap();
    let stats = publisher.stats();
    assert_eq!((stats.sent, stats.dropped()), (0, 1));
}

#[test]
fn resolving_goes_on_with_the_flow_by_a_new_socket() {
    let bus = StandIn::open();
    let address = bus.address().to_string().replace("127.0.0.1", "localhost");
    let publisher = Publisher::connect(&address.parse().unwrap()).unwrap();
    let clone = publisher.clone();
    clone.publish("a", "");
    publisher.resolve().unwrap();
    clone.publish("a", "");
    let (first, from) = bus.receive();
    let (second, later_from) = bus.receive();
    assert_ne!(from, later_from);
    assert_eq!((stamp(&first), stamp(&second)), ((0, 0), (1, 0)));
    assert_eq!(first.stamp.unwrap().sender, second.stamp.unwrap().sender);
    assert_eq!(publisher.stats().sent, 2);
}

#[test]
fn resolving_in_the_midst_of_publishing_costs_no_event() {
    let bus = StandIn::open();
    let publisher = Publisher::connect(&bus.address()).unwrap();
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for _ in 0..5_000 {
                publisher.try_publish(&Event::new("a", "")).unwrap();
            }
        });
        while !publishing.is_finished() {
            publisher.resolve().unwrap();
        }
    });
    assert_eq!(publisher.stats().sent, 5_000);
}

/// Run by the test after this one, in a process of its own with its own environment.
#[test]
fn as_the_environment_says() {
    let Ok(expected) = std::env::var("EXPECTED") else {
        return;
    };
    let publisher = Publisher::from_env();
    match expected.as_str() {
        "error" => drop(publisher.unwrap_err()),
        "nop" => {
            let publisher = publisher.unwrap();
            publisher.try_publish(&Event::new("a", "")).unwrap();
            assert_eq!(publisher.stats().offered(), 0);
        }
        "unreachable" => {
            let publisher = publisher.unwrap();
            let error = publisher.try_publish(&Event::new("a", "")).unwrap_err();
            assert_eq!(error, PublishError::Unreachable);
            assert_eq!(publisher.stats().unreachable, 1);
            publisher.resolve().unwrap_err();
        }
        _ => {
            let publisher = publisher.unwrap();
            publisher.try_publish(&Event::new("a", "")).unwrap();
            assert_eq!(publisher.stats().sent, 1);
        }
    }
}

#[test]
fn the_environment_names_the_bus_and_turns_publishing_off() {
    let run = |bus: &str, disable: &str, expected: &str| {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "as_the_environment_says"])
            .env("HAILMARY_BUS", bus)
            .env("HAILMARY_DISABLE", disable)
            .env("EXPECTED", expected)
            .output()
            .unwrap();
        assert!(status.status.success(), "{bus} {disable}: {status:?}");
    };
    let bus = StandIn::open();
    run(&bus.address().to_string(), "", "sent");
    assert_eq!(bus.receive().0.events[0].topic, "a");
    run(&bus.address().to_string(), "0", "sent");
    run(&bus.address().to_string(), "1", "nop");
    run("no address", " True ", "nop");
    run(&bus.address().to_string(), "perhaps", "sent");
    run("no address", "", "error");
    // A name that no name server may know (RFC 6761).
    run("hailmary.invalid:1", "", "unreachable");
}
