//! Rates: what exceeds one is dropped where it was to be kept, counted, and never delayed.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use hailmary_client::{Address, Subscriber};
use hailmary_proto::v1::{Event, Frame};
use prost::Message;

use super::support::{
    Configured, PATIENCE, Serving, Subscribing, assert_laws, datagram, event, sum_of, value,
    wait_until,
};

/// How long a subscriber listens before it looks at the counts.
const LOOK: Duration = Duration::from_millis(10);

/// Events of one datagram.
const DATAGRAM: u64 = 100;

/// Sends datagrams of events with this payload, each once the bus has taken the one before.
fn send(bus: &Serving, topic: &str, payload: &[u8], datagrams: u64) {
    let one = Event {
        payload: payload.to_vec(),
        ..event(topic)
    };
    let datagram = datagram((0..DATAGRAM).map(|_| one.clone()).collect());
    let mut sent = value(&bus.get("/metrics"), "ingress_events_total");
    for _ in 0..datagrams {
        // Of a port of its own, so that several data threads get some.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&datagram, bus.udp()).unwrap();
        sent += DATAGRAM;
        bus.wait_for_metric("ingress_events_total", sent);
    }
}

/// The most that a rate lets pass since then: one second's worth and what the time gave.
fn most(events_per_second: u64, since: Instant) -> u64 {
    let earned = since.elapsed().as_nanos() * u128::from(events_per_second) / 1_000_000_000;
    events_per_second + u64::try_from(earned).unwrap()
}

#[test]
fn a_subscriber_gets_its_rate_and_never_late() {
    const RATE: u32 = 150;
    let start = Instant::now();
    let bus = Serving::start(&[], &[]);
    let address: Address = bus.address().parse().unwrap();
    let builder = || Subscriber::builder(&address).pattern("x");
    let limited = builder().name("limited").rate(RATE);
    let mut limited = limited.connect(PATIENCE).unwrap();
    let mut whole = builder().name("whole").connect(PATIENCE).unwrap();
    let (mut published, mut passed) = (0, 0);
    for round in [b"first", b"again"] {
        send(&bus, "x", round, 4);
        published += 4 * DATAGRAM;
        let page = bus.get("/metrics");
        assert_laws(&page);
        let sent = sum_of(&page, "egress_events_total", "\"limited\"");
        let dropped = "subscriber=\"limited\",reason=\"rate_limit\"";
        let dropped = sum_of(&page, "egress_dropped_events_total", dropped);
        assert_eq!(
            sent + dropped,
            published,
            "each at once, the one way or the other"
        );
        assert!(sent <= most(RATE.into(), start), "{sent}");
        assert!(sent >= RATE.into(), "one second's worth at once: {sent}");
        // All that has come is of this round: nothing of the one before was kept back.
        while passed < sent {
            let event = limited.recv_timeout(PATIENCE).unwrap().unwrap();
            assert_eq!((&event.payload[..], event.weight), (&round[..], 1.0));
            passed += 1;
        }
        for _ in 0..4 * DATAGRAM {
            assert_eq!(
                whole.recv_timeout(PATIENCE).unwrap().unwrap().payload,
                round
            );
        }
        // What was dropped last is told by the next renewal.
        wait_until("word of what was dropped", || {
            assert_eq!(
                limited.recv_timeout(LOOK).unwrap(),
                None,
                "nothing comes late"
            );
            (limited.stats().dropped_by_bus == dropped).then_some(())
        });
    }
    let page = bus.get("/metrics");
    assert_eq!(sum_of(&page, "egress_events_total", "\"limited\""), passed);
    let stats = limited.close();
    assert_eq!((stats.received, stats.lost), (passed, 0));
    let stats = whole.close();
    assert_eq!((stats.received, stats.dropped_by_bus), (published, 0));
}

#[test]
fn the_command_takes_a_rate() {
    const RATE: u64 = 7;
    let start = Instant::now();
    let bus = Serving::start(&[], &[]);
    let arguments = ["x", "--max-rate", "7", "--name", "few", "--format", "raw"];
    let few = Subscribing::start(bus.address(), &arguments);
    send(&bus, "x", b"p", 2);
    let page = bus.get("/metrics");
    assert_laws(&page);
    let sent = sum_of(&page, "egress_events_total", "\"few\"");
    assert!((RATE..=most(RATE, start)).contains(&sent), "{sent}");
    let reason = "subscriber=\"few\",reason=\"rate_limit\"";
    let dropped = sum_of(&page, "egress_dropped_events_total", reason);
    assert_eq!(dropped, 2 * DATAGRAM - sent);
    for _ in 0..sent {
        assert_eq!(few.line(), "p");
    }
    few.signal("TERM");
    assert_eq!(few.output().0, "");
}

/// What a socket that is sent events has: how many in all.
fn received(socket: &UdpSocket) -> u64 {
    let mut buffer = vec![0; 65_536];
    let mut events = 0;
    socket.set_nonblocking(true).unwrap();
    while let Ok(length) = socket.recv(&mut buffer) {
        events += Frame::decode(&buffer[..length]).unwrap().events.len() as u64;
    }
    events
}

#[test]
fn a_static_subscriber_has_the_rate_of_its_entry() {
    const RATE: u64 = 20;
    let inbox = UdpSocket::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    let bus = Configured::start(&format!(
        "[[subscriber]]\nname = \"fixed\"\naddress = \"{}\"\ntopics = [\">\"]\n\
         events_per_second = {RATE}\n",
        inbox.local_addr().unwrap()
    ));
    send(&bus, "x", b"", 3);
    let page = bus.get("/metrics");
    assert_laws(&page);
    let passed = sum_of(&page, "egress_events_total", "\"fixed\"");
    assert!((RATE..=most(RATE, start)).contains(&passed), "{passed}");
    let reason = "subscriber=\"fixed\",reason=\"rate_limit\"";
    let dropped = sum_of(&page, "egress_dropped_events_total", reason);
    assert_eq!(dropped, 3 * DATAGRAM - passed);
    let mut came = 0;
    wait_until("what passed", || {
        came += received(&inbox);
        (came >= passed).then_some(())
    });
    assert_eq!(came, passed);
}

#[test]
fn a_topics_rate_holds_over_all_its_topics_and_data_threads() {
    const RATE: u64 = 50;
    let start = Instant::now();
    let bus = Configured::start(
        "[loop]\nworkers = 2\n\
         [[topic]]\nmatch = \"x.>\"\nevents_per_second = 50\n\
         [[topic]]\nmatch = \"y\"\n",
    );
    let address: Address = bus.address().parse().unwrap();
    let builder = Subscriber::builder(&address).pattern(">").name("all");
    let mut all = builder.connect(PATIENCE).unwrap();
    for topic in ["x.a", "y", "x.b.c", "x.a", "x.d", "y"] {
        send(&bus, topic, b"", 1);
    }
    let page = bus.get("/metrics");
    assert_laws(&page);
    let dropped = value(&page, "ingress_dropped_events_total{reason=\"rate_limit\"}");
    let passed = 4 * DATAGRAM - dropped;
    assert!((RATE..=most(RATE, start)).contains(&passed), "{passed}");
    assert_eq!(value(&page, "matched_events_total"), passed + 2 * DATAGRAM);
    assert_eq!(
        value(&page, "topic_events_total{topic=\"x.>\"}"),
        4 * DATAGRAM
    );
    assert_eq!(
        value(&page, "topic_events_total{topic=\"y\"}"),
        2 * DATAGRAM
    );
    // What did not pass was for nobody: no subscriber is told of it.
    assert_eq!(value(&page, "copies_total"), passed + 2 * DATAGRAM);
    let mut of_topic = 0;
    for _ in 0..passed + 2 * DATAGRAM {
        let event = all.recv_timeout(PATIENCE).unwrap().unwrap();
        of_topic += u64::from(event.topic != "y");
    }
    assert_eq!(of_topic, passed);
    let stats = all.close();
    assert_eq!((stats.lost, stats.dropped_by_bus), (0, 0));
}
