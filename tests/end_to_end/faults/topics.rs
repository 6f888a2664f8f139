//! A million topics and patterns that never come again: memory and metrics do not grow with them.

use std::net::UdpSocket;
use std::time::Instant;

use hailmary_proto::v1::Subscribe;
use hailmary_proto::v1::frame::Control;

use super::long_or;
use crate::support::evidence::{figure, tell};
use crate::support::{ByHand, Serving, assert_laws, datagram, event, value};

/// Topics that are published, each once.
const TOPICS: (u64, u64) = (1_000_000, 40_000);

/// Events of a datagram, and datagrams that the bus takes before more are sent.
const EVENTS: u64 = 100;
const DATAGRAMS: u64 = 20;

/// Patterns of one subscription: as many as it may have.
const PATTERNS: u64 = 64;

/// How often it asks while these are under way.
const CHURN: u32 = 20;

/// How far the bus's memory may grow, in bytes: 16,384 topics in the cache, 1,024 in each of the
/// counts of topics, and the patterns of one subscriber.
const GROWTH_BYTES: u64 = 24 << 20;

/// A token that no other number has, and that looks like nothing.
fn token(number: u64) -> String {
    format!("{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn publish(socket: &UdpSocket, bus: &Serving, from: u64) {
    for number in 0..DATAGRAMS {
        let first = from + number * EVENTS;
        let topic = |number| event(&format!("t.{}", token(number)));
        let events = (first..first + EVENTS).map(topic).collect();
        socket.send_to(&datagram(events), bus.udp()).unwrap();
    }
}

/// One that asks for other patterns each time.
struct Churning {
    subscriber: ByHand,
    cookie: Vec<u8>,
    asked: u64,
}

impl Churning {
    fn ask(&mut self, bus: &Serving) {
        let pattern = |number| format!("p.{}.*", token(number));
        let topics = (self.asked..self.asked + PATTERNS).map(pattern).collect();
        let ask = Control::Subscribe(Subscribe {
            topics,
            cookie: std::mem::take(&mut self.cookie),
            nonce: 7,
            ..Subscribe::default()
        });
        self.cookie = match self.subscriber.ask(bus.udp(), ask) {
            Control::Challenge(challenge) => challenge.cookie,
            Control::Lease(lease) => {
                self.asked += PATTERNS;
                lease.cookie
            }
            other => panic!("{other:?}"),
        };
    }
}

#[test]
fn topics_that_never_come_again_leave_nothing_behind() {
    let bus = Serving::start(&[], &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let round = EVENTS * DATAGRAMS;
    publish(&socket, &bus, 0);
    bus.wait_for_metric("unmatched_events_total", round);
    let mut churning = Churning {
        subscriber: ByHand::new(),
        cookie: Vec::new(),
        asked: 0,
    };
    // Challenge, lease, and other patterns.
    (0..3).for_each(|_| churning.ask(&bus));
    bus.wait_for_metric("leases", 1);
    let (memory, lines) = (bus.resident_bytes(), bus.get("/metrics").lines().count());
    let topics = long_or(TOPICS.0, TOPICS.1);
    let start = Instant::now();
    for number in 1..topics / round {
        publish(&socket, &bus, number * round);
        (0..CHURN).for_each(|_| churning.ask(&bus));
        bus.wait_for_metric("unmatched_events_total", (number + 1) * round);
    }
    let rate = topics as f64 / start.elapsed().as_secs_f64();
    let growth = bus.resident_bytes().saturating_sub(memory);
    let page = bus.get("/metrics");
    assert_laws(&page);
    assert_eq!(value(&page, "unmatched_events_total"), topics);
    assert_eq!(value(&page, "leases_granted_total"), 1);
    assert_eq!(page.lines().count(), lines, "{page}");
    assert!(!page.contains(&token(1)), "{page}");
    let listed = bus
        .get("/api/v1/topics?limit=1024")
        .matches("\"topic\":")
        .count();
    assert!(listed <= 3 * 1_024, "{listed}");
    assert!(growth < GROWTH_BYTES, "{growth} bytes");
    let figures = [
        figure("topics published, each once", topics, "topics"),
        figure("patterns asked for meanwhile", churning.asked, "patterns"),
        figure(
            "events a second, of a build for tests",
            rate.round(),
            "events/s",
        ),
        figure("growth of the bus's memory", growth >> 10, "KiB"),
        figure("topics that the API lists", listed, "topics"),
    ];
    tell(
        "random_topics",
        "Events come on topics that never come again, beside a subscriber that asks for other \
         patterns all the time.",
        "Memory and the lists of topics are bounded, no topic becomes a label, no event is lost.",
        &figures,
    );
}
