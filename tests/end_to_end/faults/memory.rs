//! Every table full at once: the bus stays within the memory that the README promises.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Event, Frame, Ping, Stamp, Subscribe};
use prost::Message;

use super::long_or;
use crate::support::evidence::{figure, tell};
use crate::support::{ByHand, Serving, assert_laws, event, request, sum, value, wait_until};

/// What the README promises, in KiB, held by RLIMIT_DATA (getrlimit(2)).
const LIMIT_KIB: u64 = 256 << 10;

/// Leases: all that there may be, from hosts that each have as many as one may.
const LEASES: (u64, u64) = (4_096, 512);
const LEASES_PER_HOST: u64 = 1_024;

/// The first port of each host's subscribers: below those that are given out to anybody.
const PORT: u16 = 20_000;

/// Patterns of each: as many as it may have.
const PATTERNS: u64 = 64;

/// Publishers: as many as are followed, each with as many gaps as are awaited.
const PUBLISHERS: u64 = 4_096;
const GAPS: (u64, u64) = (64, 8);

/// Topics: more than are remembered, and nearly the longest.
const TOPICS: u64 = 20_000;

/// Topics that most subscribers get, each another part of them: enough for the members of all sets
/// kept to reach their bound.
const WIDE_TOPICS: (u64, u64) = (600, 40);

/// How long an answer is waited for before it is asked again.
const LOOK: Duration = Duration::from_millis(200);

/// Datagrams that the bus takes before more are sent.
const BATCH: usize = 128;

/// A number in which nothing of this one is to be seen.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    number ^ (number >> 29)
}

/// Half of the wide topics' two tokens each, at random, so that three quarters of the topics match.
fn patterns(subscriber: u64) -> Vec<String> {
    let pattern = |number| {
        let random = mix(subscriber * PATTERNS + number) % PATTERNS;
        match number % 2 {
            0 => format!("w.{random}.*"),
            _ => format!("w.*.{random}"),
        }
    };
    (0..PATTERNS).map(pattern).collect()
}

/// One that asks for a lease and does not listen afterwards.
struct Asking {
    socket: UdpSocket,
    number: u64,
    cookie: Vec<u8>,
}

impl Asking {
    fn new(number: u64) -> Self {
        let (host, port) = (number / LEASES_PER_HOST, number % LEASES_PER_HOST);
        let host = 1 + u8::try_from(host).unwrap();
        let port = PORT + u16::try_from(port).unwrap();
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 82, host], port))).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        Self {
            socket,
            number,
            cookie: Vec::new(),
        }
    }

    fn ask(&self, bus: SocketAddr) {
        let ask = Control::Subscribe(Subscribe {
            topics: patterns(self.number),
            // Half of them are members of groups, of which each is full.
            group: match self.number % 2 {
                0 => String::new(),
                _ => format!("{:064}", self.number / 512),
            },
            name: format!("{:064}", self.number),
            lease_ms: 300_000,
            cookie: self.cookie.clone(),
            nonce: 7,
            ..Subscribe::default()
        });
        self.socket.send_to(&request(ask), bus).unwrap();
    }

    /// Whether it has its lease now.
    fn hear(&mut self) -> bool {
        let mut buffer = [0; 1_500];
        let Ok(length) = self.socket.recv(&mut buffer) else {
            return false; // Too many have asked within this second.
        };
        match Frame::decode(&buffer[..length]).unwrap().control {
            Some(Control::Challenge(challenge)) => {
                self.cookie = challenge.cookie;
                false
            }
            Some(Control::Lease(_)) => true,
            other => panic!("{other:?}"),
        }
    }
}

/// Takes all leases, many at once.
fn lease_all(bus: SocketAddr, count: u64) {
    let numbers: Vec<_> = (0..count).collect();
    for some in numbers.chunks(BATCH) {
        let mut asking: Vec<_> = some.iter().map(|number| Asking::new(*number)).collect();
        wait_until("leases", || {
            asking.iter().for_each(|one| one.ask(bus));
            asking.retain_mut(|one| !one.hear());
            asking.is_empty().then_some(())
        });
    }
}

/// Sends frames and waits now and then till the bus has taken them.
struct Sender<'a> {
    bus: &'a Serving,
    socket: UdpSocket,
    pinging: ByHand,
    sent: u64,
}

impl Sender<'_> {
    fn send(&mut self, frames: impl Iterator<Item = Frame>) {
        let mut frames = frames.peekable();
        while frames.peek().is_some() {
            for frame in frames.by_ref().take(BATCH) {
                self.sent += frame.events.len() as u64;
                let sent = self.socket.send_to(&frame.encode_to_vec(), self.bus.udp());
                sent.unwrap();
            }
            // Answered once all before it is taken, and far sooner than a scrape.
            let pong = self
                .pinging
                .ask(self.bus.udp(), Control::Ping(Ping { nonce: 1 }));
            assert!(matches!(pong, Control::Pong(_)), "{pong:?}");
        }
    }
}

/// Every publisher's frames, with a gap before each but the first.
fn publishers(gaps: u64) -> impl Iterator<Item = Frame> {
    (0..PUBLISHERS).flat_map(move |publisher| {
        (0..=gaps).map(move |gap| Frame {
            events: vec![event("n")],
            stamp: Some(Stamp {
                sender: mix(publisher) | 1,
                sequence: 2 * gap,
                ..Stamp::default()
            }),
            ..Frame::default()
        })
    })
}

fn topics() -> impl Iterator<Item = Frame> {
    let topic = |number| event(&format!("{number:0250}"));
    let frame = move |number: u64| Frame {
        events: (number..number + 50).map(topic).collect(),
        ..Frame::default()
    };
    (0..TOPICS).step_by(50).map(frame)
}

fn wide_topics(count: u64) -> impl Iterator<Item = Frame> {
    let frame = |number| Frame {
        events: vec![Event {
            payload: vec![b'x'; 100],
            ..event(&format!("w.{}.{}", number % PATTERNS, number / PATTERNS))
        }],
        ..Frame::default()
    };
    (0..count).map(frame)
}

#[test]
fn all_tables_full_at_once_fit_the_memory_that_is_promised() {
    let bus = Serving::start_limited(&format!("-d {LIMIT_KIB}"), &[]);
    let (wide, gaps) = (
        long_or(WIDE_TOPICS.0, WIDE_TOPICS.1),
        long_or(GAPS.0, GAPS.1),
    );
    let leases = long_or(LEASES.0, LEASES.1);
    let idle = bus.resident_bytes();
    lease_all(bus.udp(), leases);
    let page = bus.wait_for("/metrics", |page| value(page, "leases") == leases);
    let leased = bus.resident_bytes();
    assert_eq!(sum(&page, "lease_refusals_total"), 0);

    let mut sender = Sender {
        bus: &bus,
        socket: UdpSocket::bind("127.0.0.1:0").unwrap(),
        pinging: ByHand::new(),
        sent: 0,
    };
    sender.send(topics());
    sender.send(wide_topics(wide));
    sender.send(publishers(gaps));
    let page = bus.wait_for_metric("ingress_events_total", sender.sent);
    assert_laws(&page);
    assert!(value(&page, "copies_total") > wide * leases / 4, "{page}");
    let full = bus.resident_bytes();
    let mib = |bytes: u64| bytes >> 20;
    let figures = [
        figure("leases, each with 64 patterns", leases, "leases"),
        figure("publishers", PUBLISHERS, "publishers"),
        figure("gaps of each", gaps, "gaps"),
        figure("topics", TOPICS, "topics"),
        figure("topics that three of four subscribers get", wide, "topics"),
        figure("limit", mib(LIMIT_KIB << 10), "MiB"),
        figure("resident while idle", mib(idle), "MiB"),
        figure("resident with all leases", mib(leased), "MiB"),
        figure("resident with all tables full", mib(full), "MiB"),
    ];
    assert_eq!(bus.stop().0, 0);
    tell(
        "tables_full",
        "Leases, patterns, publishers, topics and sets are there at once, as many as the figures say.",
        "With the default limits the bus needs no more than 256 MiB.",
        &figures,
    );
}
