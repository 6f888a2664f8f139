//! Losses behind the bus, told to the application: each event is received, lost on the way or
//! dropped by the bus, to the event.

use std::net::UdpSocket;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hailmary_client::{Address, Item, Loss, Publisher, Subscriber, SubscriberStats};
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Frame, Lease, Stamp};
use prost::Message;

use crate::support::way::Way;
use crate::support::{
    EndOnDrop, PATIENCE, Serving, assert_laws, event, hailmary, sum_of, value, wait_until,
};

/// How long a subscriber listens before it is looked whether all is over.
const LOOK: Duration = Duration::from_millis(10);

/// Bursts of events, each taken by the bus before the next, so that no buffer is full.
const ROUNDS: u64 = 40;

/// Events of each, of which the last is too large for the subscriber.
const ROUND: u64 = 25;

/// What the subscriber takes, in bytes, and what it does not. So a burst is several frames.
const FRAME_BYTES: u32 = 1400;
const SMALL: [u8; 200] = [0; 200];
const TOO_LARGE: [u8; 2000] = [0; 2000];

/// What a subscriber has seen, for whoever waits for it.
#[derive(Default)]
struct Seen {
    stats: Mutex<SubscriberStats>,
    is_over: AtomicBool,
}

/// Takes everything: how many events were handed out, and what all notices told.
fn listen(mut subscriber: Subscriber, seen: &Seen) -> (u64, Loss, SubscriberStats) {
    let (mut events, mut told) = (0, Loss::default());
    while !seen.is_over.load(Ordering::Relaxed) {
        match subscriber.recv_item_timeout(LOOK).unwrap() {
            Some(Item::Event(_)) => events += 1,
            Some(Item::Loss(loss)) => {
                told.lost += loss.lost;
                told.dropped_by_bus += loss.dropped_by_bus;
            }
            Some(_) | None => {}
        }
        *seen.stats.lock().unwrap() = subscriber.stats();
    }
    (events, told, subscriber.close())
}

/// Publishes bursts and waits for each to be through the bus, and on the way.
fn publish_rounds(bus: &Serving, publisher: &Publisher, way: &Way) {
    for round in 1..=ROUNDS {
        for _ in 1..ROUND {
            publisher.publish("a", &SMALL);
        }
        publisher.publish("a", &TOO_LARGE);
        let page = bus.wait_for("/metrics", |page| {
            value(page, "copies_total") == round * ROUND
        });
        wait_until("the frames", || {
            let taken = way.back.taken();
            (taken == value(&page, "egress_events_total{subscriber=\"far\"}")).then_some(())
        });
    }
}

#[test]
fn the_books_balance_behind_a_rough_way() {
    let bus = Serving::start(&[], &[]);
    let way = Way::to(bus.udp());
    way.back.set_rough(true);
    let near: Address = way.near.to_string().parse().unwrap();
    let subscriber = Subscriber::builder(&near)
        .pattern("a")
        .name("far")
        .max_frame_bytes(FRAME_BYTES)
        .connect(PATIENCE)
        .unwrap();
    let publisher = Publisher::connect(&bus.address().parse().unwrap()).unwrap();
    let seen = Seen::default();
    let (events, told, stats) = std::thread::scope(|threads| {
        let listening = threads.spawn(|| listen(subscriber, &seen));
        let over = EndOnDrop(&seen.is_over);
        publish_rounds(&bus, &publisher, &way);
        wait_until("all losses to be told", || {
            let stats = *seen.stats.lock().unwrap();
            let sum = stats.received + stats.lost + stats.dropped_by_bus;
            (sum == ROUNDS * ROUND).then_some(())
        });
        let reported = way.back.lost();
        bus.wait_for("/metrics", |page| {
            sum_of(page, "subscriber_lost_events_total", "\"far\"") == reported
        });
        drop(over);
        listening.join().unwrap()
    });
    let (lost, doubled) = (way.back.lost(), way.back.doubled());
    assert!(lost > 0 && doubled > 0, "it was a rough way");
    assert_eq!((stats.lost, stats.duplicates), (lost, doubled));
    assert_eq!((stats.dropped_by_bus, stats.lapses), (ROUNDS, 0));
    assert_eq!(events, stats.received + stats.duplicates);
    assert_eq!((told.lost, told.dropped_by_bus), (lost, ROUNDS));

    // The bus sent and dropped as much, and has been told of what was lost.
    let page = bus.get("/metrics");
    assert_laws(&page);
    let of_bus = |name: &str| sum_of(&page, name, "subscriber=\"far\"");
    assert_eq!(of_bus("egress_events_total"), stats.received + stats.lost);
    assert_eq!(of_bus("egress_dropped_events_total"), ROUNDS);
    assert_eq!(of_bus("subscriber_lost_events_total"), lost);
    let pong = publisher.ping(PATIENCE).unwrap();
    assert_eq!((pong.received, pong.lost), (publisher.stats().sent, 0));
}

#[test]
fn an_application_that_stood_still_past_its_lease_counts_right() {
    let bus = Serving::start(&[], &[]);
    let address: Address = bus.address().parse().unwrap();
    let mut subscriber = Subscriber::builder(&address)
        .pattern("a")
        .lease(Duration::from_secs(3))
        .connect(PATIENCE)
        .unwrap();
    let publisher = Publisher::connect(&address).unwrap();
    let publish = |events: u64| (0..events).for_each(|_| publisher.publish("a", &SMALL));
    publish(10);
    bus.wait_for_metric("matched_events_total", 10);
    subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
    // These wait in the socket, and the next ones are for nobody.
    publish(20);
    bus.wait_for_metric("matched_events_total", 30);
    bus.wait_for("/metrics", |page| value(page, "leases") == 0);
    publish(5);
    bus.wait_for_metric("unmatched_events_total", 5);

    for _ in 1..30 {
        subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    wait_until("the lease", || {
        assert_eq!(subscriber.recv_timeout(LOOK).unwrap(), None);
        (value(&bus.get("/metrics"), "leases") == 1).then_some(())
    });
    publish(40);
    for _ in 0..40 {
        subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    let stats = subscriber.close();
    assert_eq!(stats.received, 70);
    assert!(stats.lapses > 0, "it was to lapse");
    assert_eq!((stats.lost, stats.duplicates), (0, 0));
}

/// A frame of a bus that a test plays.
fn frame(sequence: u64, dropped: u64, events: usize) -> Frame {
    let stamp = Stamp {
        sender: 77,
        sequence,
        dropped,
        ..Stamp::default()
    };
    Frame {
        events: vec![event("a"); events],
        stamp: Some(stamp),
        ..Frame::default()
    }
}

/// Runs `hailmary sub` till it has three events, two of them after losses, and gives what it
/// said on standard output and standard error.
fn subscribe(arguments: &[&str]) -> (String, String) {
    let bus = UdpSocket::bind("127.0.0.1:0").unwrap();
    bus.set_read_timeout(Some(PATIENCE)).unwrap();
    let subscriber = hailmary()
        .args(["sub", "a", "--count", "3"])
        .args(["--from", &bus.local_addr().unwrap().to_string()])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut buffer = [0; 1500];
    let mut receive = || {
        let (length, from) = bus.recv_from(&mut buffer).unwrap();
        match Frame::decode(&buffer[..length]).unwrap().control {
            Some(Control::Subscribe(request)) => (request, from),
            other => panic!("{other:?}"),
        }
    };
    let (mut request, from) = receive();
    let send = |frame: Frame| bus.send_to(&frame.encode_to_vec(), from).unwrap();
    let grant = |nonce| {
        let lease = Control::Lease(Lease {
            bus: 77,
            lease_ms: 30_000,
            cookie: b"c".to_vec(),
            nonce,
        });
        let control = Some(lease);
        send(Frame {
            control,
            ..Frame::default()
        });
    };
    grant(request.nonce);
    send(frame(0, 0, 1));
    send(frame(813, 800, 1));
    // The last one comes when the missing ones are known to be lost.
    while request.report.is_none_or(|report| report.lost == 0) {
        (request, _) = receive();
        grant(request.nonce);
    }
    send(frame(819, 800, 1));
    let output = subscriber.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

const SUMMARY: &str = "received 3, lost 17 on the way, dropped 800 by the bus";

#[test]
fn sub_prints_notices_where_it_is_asked_to() {
    let (printed, said) = subscribe(&["--notices"]);
    assert_eq!(printed, "a\t\na\t\na\t\n");
    let notices = [800, 12, 5].map(|lost| {
        let dropped = if lost == 800 { 800 } else { 0 };
        format!("{lost} events lost, {dropped} of them dropped by the bus\n")
    });
    assert_eq!(said, format!("subscribed\n{}{SUMMARY}\n", notices.concat()));
}

#[test]
fn sub_prints_notices_as_objects_among_events() {
    let (printed, said) = subscribe(&["--notices", "--format", "json"]);
    let lines: Vec<serde_json::Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let notice = |lost, dropped| serde_json::json!({"lost": lost, "dropped_by_bus": dropped});
    assert_eq!(lines.len(), 6, "{printed}");
    assert_eq!(lines[1], notice(0, 800));
    assert_eq!(lines[3], notice(12, 0));
    assert_eq!(lines[5], notice(5, 0), "at the end nothing is awaited");
    for event in [0, 2, 4] {
        assert_eq!(lines[event]["topic"], "a");
    }
    assert_eq!(said, format!("subscribed\n{SUMMARY}\n"));
}
