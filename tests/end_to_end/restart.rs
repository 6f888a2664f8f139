//! A bus that dies and comes back: publishers do not notice, subscribers come back by themselves.

use std::time::Duration;

use hailmary_client::{Address, Publisher, Subscriber};

use super::support::{PATIENCE, Serving, Subscribing, assert_laws, value, wait_until};

/// How long a subscriber listens at once, so that it can ask for its lease.
const LOOK: Duration = Duration::from_millis(10);

/// Events published while there is no bus.
const UNHEARD: u64 = 1_000;

fn a_restart_is_survived(listener: &str) -> Publisher {
    let bus = Serving::start(&[], &[listener]);
    let address = bus.address().to_owned();
    let process = Subscribing::start(&address, &["a", "--format", "raw"]);
    let at: Address = address.parse().unwrap();
    let mut subscriber = Subscriber::builder(&at)
        .pattern("a")
        .connect(PATIENCE)
        .unwrap();
    let publisher = Publisher::connect(&at).unwrap();
    publisher.publish("a", b"first");
    assert_eq!(process.line(), "first");
    assert_eq!(
        subscriber.recv_timeout(PATIENCE).unwrap().unwrap().payload,
        b"first"
    );

    bus.kill();
    for _ in 0..UNHEARD {
        publisher.publish("a", b"unheard");
    }
    let bus = Serving::start(&[], &[&address]);
    wait_until("both subscribers", || {
        assert_eq!(subscriber.recv_timeout(LOOK).unwrap(), None);
        (value(&bus.get("/metrics"), "leases") == 2).then_some(())
    });
    // A publisher finds a Unix bus again when it next may look, and loses what it has till then.
    wait_until("an event", || {
        publisher.publish("a", b"again");
        subscriber.recv_timeout(LOOK).unwrap()
    });
    publisher.publish("a", b"last");
    while subscriber.recv_timeout(PATIENCE).unwrap().unwrap().payload != b"last" {}
    while process.line() != "last" {}

    let page = bus.wait_for("/metrics", |page| {
        value(page, "matched_events_total") + 1 == subscriber.stats().received
    });
    assert_laws(&page);
    assert_eq!(value(&page, "leases_granted_total"), 2);
    process.signal("INT");
    let (_, last) = process.output();
    let stats = subscriber.close();
    assert_eq!(
        last,
        format!(
            "received {}, lost 0 on the way, dropped 0 by the bus",
            stats.received
        )
    );
    assert_eq!((stats.lost, stats.dropped_by_bus), (0, 0));
    assert_eq!((stats.bus_restarts, stats.lapses), (1, 1));
    publisher
}

#[test]
fn over_udp() {
    // No other test is given a port of this address while nobody holds it.
    let publisher = a_restart_is_survived("127.0.77.1:0");
    let stats = publisher.stats();
    assert_eq!(stats.dropped(), 0, "UDP takes everything: {stats:?}");
    assert!(stats.bounced > 0, "but tells afterwards: {stats:?}");
}

#[test]
fn over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.sock");
    let publisher = a_restart_is_survived(&format!("unix://{}", path.display()));
    let stats = publisher.stats();
    assert_eq!(stats.dropped(), stats.refused, "{stats:?}");
    assert!(
        stats.dropped() >= UNHEARD,
        "a Unix socket tells at once: {stats:?}"
    );
}
