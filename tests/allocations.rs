//! Events cost no heap allocation once the bus has the memory that its load needs.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../benches/load/mod.rs"]
mod load;

use std::fmt::Debug;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use hailmary::bus::{self, Arrival};
use hailmary::config::Config;
use hailmary::ledger::{Ledger, Mailbox, Totals};
use hailmary::net::egress::Egress;
use hailmary::net::listener::{ListenAddress, Listener};
use hailmary::net::sys::{Ask, RECEIVE_BATCH_MAX, ReceiveRing};
use hailmary::topics_seen;
use load::{BATCH, Interest, Load, Shape, datagrams, many_topics};

/// Turns that are counted.
const TURNS: usize = 50;

fn shape(subscribers: usize, topics: usize, events_per_datagram: usize) -> Shape {
    Shape {
        subscribers,
        topics,
        events_per_datagram,
        ..Shape::default()
    }
}

/// Turns that bring a load's memory to what it stays at.
fn assert_steady(what: impl Debug, mut turn: impl FnMut()) {
    (0..4).for_each(|_| turn());
    let counted = measure(|| (0..TURNS).for_each(|_| turn()));
    let AllocationInfo { count_total, .. } = counted;
    assert_eq!(count_total, 0, "{what:?}: {counted:?}");
}

#[test]
fn the_counter_counts() {
    // What nobody looks at is optimized away.
    assert_eq!(
        measure(|| drop(std::hint::black_box(Box::new(1)))).count_total,
        1
    );
}

#[test]
fn the_core_allocates_nothing_for_an_event() {
    for shape in [
        shape(0, 1, 1),
        shape(1, 1, 1),
        shape(4, 1, 9),
        shape(4, 1, 100),
        shape(16, 1_000, 100),
        shape(1, 10_000, 100),
    ] {
        let mut load = Load::new(shape);
        assert_steady(shape, || {
            load.turn();
        });
    }
}

#[test]
fn routes_to_a_thousand_subscribers_allocate_nothing_for_an_event() {
    let mut load = many_topics(1_000, Interest::OwnTen);
    assert_steady("own topics", || {
        load.route();
    });
}

/// What a data thread does in a turn, with real sockets: from the batch to the books.
fn turns_with_sockets(shape: Shape) {
    let subscriber = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = subscriber.local_addr().unwrap();
    let text = format!(
        "[listen]\nadmin = \"off\"\n[[subscriber]]\nname = \"s\"\naddress = \"{address}\"\n\
         topics = [\"search.>\"]\n"
    );
    let (_, plan) = Config::parse("test", &text).unwrap();
    let mut core = bus::open(&plan.settings, 1, Duration::ZERO, Box::new(|| [7; 16]));
    let (mut forwarder, mut publishers) = core.workers.remove(0);
    let any_port = ListenAddress::Udp(([127, 0, 0, 1], 0).into());
    let listener = Listener::bind(&any_port, 1 << 20).unwrap();
    let to = listener.name().strip_prefix("udp://").unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let mut ring = ReceiveRing::new();
    let mut egress = Egress::open(1 << 20).unwrap();
    let (mailbox, mut ledger) = (Mailbox::new(1), Ledger::new(1));
    let mut totals = Totals::new(1);
    let seen_mailbox = topics_seen::Mailbox::default();
    let mut topics_seen = topics_seen::Totals::default();
    let batch = datagrams(BATCH / 2, shape);
    let publisher = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut frames = 0;

    assert_steady(shape, || {
        for datagram in &batch {
            publisher.send_to(datagram, to).unwrap();
        }
        forwarder.begin_turn(&core.directory);
        egress.follow(&core.directory, Duration::ZERO).unwrap();
        frames += ring
            .receive(listener.as_fd(), RECEIVE_BATCH_MAX, Ask::Source)
            .unwrap();
        for datagram in ring.datagrams() {
            ledger.count_frames(0, 1, datagram.bytes.len());
            let arrival = Arrival {
                source: datagram.source,
                listener: 0,
                now: Duration::ZERO,
                unix_nano: 1,
            };
            forwarder
                .handle_datagram(
                    &core.directory,
                    &mut publishers,
                    arrival,
                    datagram.bytes,
                    ledger.events(),
                )
                .unwrap();
        }
        egress.flush(&mut forwarder, &core.directory, &mut ledger);
        ledger.hand_over(&mailbox);
        mailbox.take_into(&mut totals);
        seen_mailbox.hand_over(forwarder.topics_seen(Duration::ZERO));
        seen_mailbox.take_into(&mut topics_seen);
    });
    assert!(frames >= TURNS, "datagrams came");
    assert!(totals.counts.events.copies > 0);
}

#[test]
fn a_turn_with_sockets_allocates_nothing_for_an_event() {
    turns_with_sockets(shape(1, 1, 1));
    turns_with_sockets(shape(1, 100, 9));
}
