//! What strangers may send, and how much of it: counted, bounded, and nobody else's trouble.

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use hailmary_client::{Address, Publisher, Subscriber};
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{Challenge, Event, Frame, Lease, Ping, Pong, Refusal, Stamp};
use hailmary_proto::write::DATAGRAM_BYTES_MAX;
use prost::Message;

use super::publish;
use super::support::{
    ByHand, PATIENCE, Serving, Subscribing, assert_laws, datagram, event, request, subscribe, sum,
    sum_of, value, wait_until,
};

#[test]
fn hostile_datagrams_are_counted_and_harm_nobody() {
    let bus = Serving::start(&[], &[]);
    let subscriber = Subscribing::start(bus.address(), &["good", "--count", "1"]);
    let hostile = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |bytes: &[u8]| hostile.send_to(bytes, bus.udp()).unwrap();
    let malformed: [&[u8]; 5] = [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\x7f",
        b"\x0b",
        b"\x08\x01",
        b"\x0a\x02\x0a\x05",
    ];
    malformed.iter().for_each(|bytes| {
        send(bytes);
    });
    for topic in ["", "a..b", "a b", ".a", "a.*", ">", &"x".repeat(256)] {
        send(&datagram(vec![event(topic)]));
    }
    send(&datagram(vec![Event::default(); 10_000]));
    let looped = Stamp {
        hops: 8,
        ..Stamp::default()
    };
    send(
        &Frame {
            events: vec![event("good")],
            stamp: Some(looped),
            ..Frame::default()
        }
        .encode_to_vec(),
    );
    publish(bus.address(), &["good", "still"]);

    assert_eq!(subscriber.output().0, "good\tstill\n");
    let page = bus.wait_for_metric("matched_events_total", 1);
    assert_laws(&page);
    assert_eq!(
        value(&page, "ingress_dropped_frames_total{reason=\"malformed\"}"),
        5
    );
    assert_eq!(
        value(&page, "ingress_dropped_frames_total{reason=\"hops\"}"),
        1
    );
    assert_eq!(
        value(&page, "ingress_dropped_events_total{reason=\"bad_topic\"}"),
        10_007
    );
    assert_eq!(bus.stop().0, 0);
}

#[test]
fn ten_thousand_first_subscribes_leave_nothing_behind() {
    let bus = Serving::start(&[], &[]);
    // Once it has turned it has the memory of its buffers.
    publish(bus.address(), &["a", "b"]);
    bus.wait_for_metric("ingress_events_total", 1);
    let before = bus.resident_bytes();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for nonce in 0..10_000 {
        let datagram = request(subscribe(nonce, b""));
        stranger.send_to(&datagram, bus.udp()).unwrap();
    }
    let asked =
        |page: &str| sum(page, "challenges_total") + sum(page, "lease_requests_unanswered_total");
    let lost = |page: &str| {
        value(
            page,
            "ingress_dropped_frames_total{reason=\"kernel_buffer\"}",
        )
    };
    let page = bus.wait_for("/metrics", |page| asked(page) + lost(page) == 10_000);
    assert_eq!(value(&page, "leases"), 0);
    assert!(sum(&page, "challenges_total") > 0);
    let grown = bus.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "grew by {grown} bytes");
    publish(bus.address(), &["a", "b"]);
    bus.wait_for_metric("ingress_events_total", 2);
}

/// How long a subscriber listens before the next look at it.
const LOOK: Duration = Duration::from_millis(10);

/// So short that a test can wait for its end: what a subscriber says at its own may get lost.
const LEASE: Duration = Duration::from_secs(3);

/// A datagram of so many bytes: one event and what it takes to get there.
fn datagram_of(bytes: usize) -> Vec<u8> {
    let mut large = event("a");
    large.payload = vec![0; bytes];
    let over = datagram(vec![large.clone()]).len() - bytes;
    large.payload.truncate(bytes - over);
    let datagram = datagram(vec![large]);
    assert_eq!(datagram.len(), bytes);
    datagram
}

#[test]
fn a_datagram_longer_than_its_place_is_not_passed_on_cut() {
    // More than UDP can carry, so that only a Unix socket brings it; see the bus's buffers.
    const PLACE_BYTES: usize = 65_536;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.sock");
    let address = format!("unix://{}", path.display());
    let bus = Serving::start(&[], &[&address]);
    let subscriber = Subscribing::start(&address, &["a", "--count", "2", "--format", "raw"]);
    let sender = UnixDatagram::unbound().unwrap();
    publish(&address, &["a", "before"]);
    for bytes in [
        PLACE_BYTES + 1,
        2 * PLACE_BYTES,
        PLACE_BYTES,
        DATAGRAM_BYTES_MAX,
    ] {
        sender.send_to(&datagram_of(bytes), &path).unwrap();
    }
    publish(&address, &["a", "after"]);
    assert_eq!(subscriber.output().0, "before\nafter\n");
    let page = bus.wait_for_metric("matched_events_total", 4);
    let dropped = |reason: &str| {
        value(
            &page,
            &format!("ingress_dropped_frames_total{{reason=\"{reason}\"}}"),
        )
    };
    assert_eq!((dropped("truncated"), dropped("malformed")), (2, 0));
    // The two others came whole, and with the bus's stamp are more than a datagram may be.
    let too_large = "egress_dropped_events_total{subscriber=\"other\",reason=\"too_large\"}";
    assert_eq!(value(&page, too_large), 2);
    assert_laws(&page);
}

#[test]
fn a_nameless_sender_is_answered_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.sock");
    let bus = Serving::start(&[], &["127.0.0.1:0", &format!("unix://{}", path.display())]);
    let named = ByHand::new();
    let nameless = UnixDatagram::unbound().unwrap();
    for nonce in 1..=10 {
        // An answer to the nameless one would come here, where the last request came from.
        match named.ask(bus.udp(), subscribe(nonce, b"")) {
            Control::Challenge(challenge) => assert_eq!(challenge.nonce, nonce),
            other => panic!("{other:?}"),
        }
        nameless
            .send_to(&request(subscribe(1_000, b"")), &path)
            .unwrap();
        let frames = format!("ingress_frames_total{{listener=\"{}\"}}", bus.listening[1]);
        bus.wait_for_metric(&frames, nonce);
    }
    let page = bus.wait_for_metric("challenges_total", 10);
    assert_eq!(value(&page, "challenges_total"), 10);
}

#[test]
fn what_only_a_bus_says_is_answered_by_none() {
    let bus = Serving::start(&[], &[]);
    let stranger = ByHand::new();
    let (nonce, cookie) = (1, vec![1; 18]);
    for control in [
        Control::Challenge(Challenge {
            nonce,
            cookie: cookie.clone(),
        }),
        Control::Lease(Lease {
            nonce,
            cookie,
            bus: 1,
            lease_ms: 1_000,
        }),
        Control::Refusal(Refusal {
            nonce,
            reason: Reason::Full.into(),
        }),
        Control::Pong(Pong {
            nonce,
            bus: 1,
            received: 1,
            lost: 0,
        }),
    ] {
        stranger.tell(bus.udp(), control);
    }
    let answer = stranger.ask(bus.udp(), Control::Ping(Ping { nonce: 2 }));
    assert!(
        matches!(answer, Control::Pong(Pong { nonce: 2, .. })),
        "{answer:?}"
    );
}

/// A client of the admin that sends its request a byte at a time and never ends it.
struct SlowClient(TcpStream);

impl SlowClient {
    fn start(bus: &Serving) -> Self {
        let mut stream = TcpStream::connect(bus.admin).unwrap();
        // Cut off at once where all places are taken.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ");
        Self(stream)
    }

    fn send_a_byte(&mut self) {
        let _ = self.0.write_all(b"x");
    }
}

#[test]
fn slow_http_clients_hold_up_nobody() {
    /// Less than the places that the admin has.
    const SOME: usize = 40;
    /// Far more than the places that the admin has.
    const TOO_MANY: usize = 200;
    let bus = Serving::start(&[], &[]);
    let address: Address = bus.address().parse().unwrap();
    let subscriber = Subscriber::builder(&address).pattern("a");
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    let publisher = Publisher::connect(&address).unwrap();
    let before = bus.resident_bytes();

    let mut clients: Vec<_> = (0..SOME).map(|_| SlowClient::start(&bus)).collect();
    let mut events = 0;
    for is_crowded in [false, true] {
        if is_crowded {
            clients.extend((SOME..TOO_MANY).map(|_| SlowClient::start(&bus)));
        }
        for _ in 0..50 {
            clients.iter_mut().for_each(SlowClient::send_a_byte);
            publisher.publish("a", b"x");
            assert!(subscriber.recv_timeout(PATIENCE).unwrap().is_some());
            events += 1;
            if !is_crowded {
                assert!(bus.get("/metrics").contains("200 OK"));
            }
        }
    }
    // A byte now and then keeps no place: scrapes are answered again, whatever the slow ones do.
    let page = wait_until("a scrape", || {
        clients.iter_mut().for_each(SlowClient::send_a_byte);
        bus.try_get("/metrics")
            .ok()
            .filter(|page| page.contains("200 OK"))
    });
    assert_eq!(value(&page, "matched_events_total"), events);
    let grown = bus.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "grew by {grown} bytes");
    assert_eq!(bus.stop().0, 0);
}

#[test]
fn a_subscriber_that_stands_still_costs_itself_alone() {
    const EVENTS: u64 = 300;
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", directory.path().join("bus.sock").display());
    let bus = Serving::start(&[], &[&address]);
    let still = Subscribing::start(&address, &["a", "--name", "still", "--format", "raw"]);
    let address: Address = address.parse().unwrap();
    let live = Subscriber::builder(&address).pattern("a").name("live");
    let mut live = live.connect(PATIENCE).unwrap();
    let publisher = Publisher::connect(&address).unwrap();

    still.signal("STOP");
    for number in 0..EVENTS {
        publisher.publish("a", &number.to_string());
        let event = live.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(event.payload, number.to_string().as_bytes());
    }
    let page = bus.wait_for_metric("matched_events_total", EVENTS);
    assert_laws(&page);
    let sent = |name: &str| {
        value(
            &page,
            &format!("egress_events_total{{subscriber=\"{name}\"}}"),
        )
    };
    let blocked = value(
        &page,
        "egress_dropped_events_total{subscriber=\"still\",reason=\"would_block\"}",
    );
    assert_eq!(sent("live"), EVENTS);
    assert_eq!(sent("still") + blocked, EVENTS);
    assert!(blocked > 0);

    // It goes on where it stood, and learns what it missed.
    still.signal("CONT");
    for number in 0..sent("still") {
        assert_eq!(still.line(), number.to_string());
    }
    publisher.publish("a", b"last");
    assert_eq!(still.line(), "last");
    still.signal("INT");
    let expected = format!(
        "received {}, lost 0 on the way, dropped {blocked} by the bus",
        sent("still") + 1
    );
    assert_eq!(still.output(), (String::new(), expected));
    assert_eq!(
        live.recv_timeout(PATIENCE).unwrap().unwrap().payload,
        b"last"
    );
    let stats = live.close();
    assert_eq!(
        (stats.received, stats.lost, stats.dropped_by_bus),
        (EVENTS + 1, 0, 0)
    );
}

fn subscriber(bus: &Address, lease: Duration) -> Subscriber {
    let builder = Subscriber::builder(bus).pattern("a").lease(lease);
    builder.connect(PATIENCE).unwrap()
}

#[test]
fn a_low_limit_of_descriptors_is_raised() {
    const SUBSCRIBERS: usize = 100;
    let directory = tempfile::tempdir().unwrap();
    let unix = format!("unix://{}", directory.path().join("bus.sock").display());
    let bus = Serving::start_limited("-S -n 64", &[&unix]);
    let address = unix.parse().unwrap();
    let mut subscribers: Vec<_> = (0..SUBSCRIBERS)
        .map(|_| subscriber(&address, PATIENCE))
        .collect();
    publish(&unix, &["a", "x"]);
    for subscriber in &mut subscribers {
        assert!(subscriber.recv_timeout(PATIENCE).unwrap().is_some());
    }
    assert_laws(&bus.get("/metrics"));
}

#[test]
fn a_subscriber_without_a_socket_gets_one_when_one_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let unix = format!("unix://{}", directory.path().join("bus.sock").display());
    // Each subscriber over a Unix socket costs the bus a descriptor.
    let bus = Serving::start_limited("-n 64", &[&unix]);
    let address = unix.parse().unwrap();
    let subscribers: Vec<_> = (0..64).map(|_| subscriber(&address, LEASE)).collect();
    wait_until("a word of it", || {
        bus.logged().filter(|line| line.contains("cannot reach"))
    });
    let mut last = subscriber(&address, LEASE);
    let publisher = Publisher::connect(&address).unwrap();
    publisher.publish("a", b"missed");
    drop(subscribers);
    wait_until("an event", || {
        publisher.publish("a", b"x");
        last.recv_timeout(LOOK).unwrap()
    });
    let page = bus.get("/metrics");
    assert_laws(&page);
    let missed = sum_of(&page, "egress_dropped_events_total", "unreachable");
    assert!(missed > 0, "copies for it before are counted");
}
