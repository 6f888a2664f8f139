//! Several data threads on one port.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;

use hailmary_client::{Address, Publisher, Subscriber};

use crate::support::{PATIENCE, Serving, assert_laws, hailmary, sum, value, wait_until};

fn configure(directory: &Path, text: &str) -> String {
    let file = directory.join("bus.toml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn one_port_is_dealt_out_and_leases_stand_in_one_directory() {
    const CLIENTS: usize = 32;
    const EVENTS: usize = 20;
    let directory = tempfile::tempdir().unwrap();
    let file = configure(directory.path(), "[loop]\nworkers = 3\n");
    let bus = Serving::start(&["--config", &file], &["127.0.0.1:0", "[::1]:0"]);
    let addresses: Vec<Address> = bus.listening.iter().map(|it| it.parse().unwrap()).collect();
    let by_turns = || addresses.iter().cycle().take(CLIENTS);
    // Each from a port of its own, so that they come to all workers.
    let mut subscribers: Vec<_> = by_turns()
        .map(|bus| {
            let builder = Subscriber::builder(bus).pattern("a");
            builder.connect(PATIENCE).unwrap()
        })
        .collect();
    for bus in by_turns() {
        let publisher = Publisher::connect(bus).unwrap();
        (0..EVENTS).for_each(|_| publisher.publish("a", b"x"));
        // One worker counted what came on its flow, and another one may answer, even sooner.
        wait_until("the count of all workers", || {
            let pong = publisher.ping(PATIENCE).unwrap();
            ((pong.received, pong.lost) == (EVENTS as u64, 0)).then_some(())
        });
    }
    for subscriber in &mut subscribers {
        for _ in 0..CLIENTS * EVENTS {
            assert!(subscriber.recv_timeout(PATIENCE).unwrap().is_some());
        }
        let stats = subscriber.stats();
        assert_eq!(
            (stats.lost, stats.dropped_by_bus),
            (0, 0),
            "one flow for all workers"
        );
    }
    let copies = (CLIENTS * CLIENTS * EVENTS) as u64;
    let page = bus.wait_for("/metrics", |page| {
        sum(page, "egress_events_total") == copies
    });
    assert_laws(&page);
    assert_eq!(value(&page, "leases_granted_total"), CLIENTS as u64);
    assert_eq!(
        sum(&page, "ingress_events_total"),
        (CLIENTS * EVENTS) as u64
    );
    subscribers.clear();
    bus.wait_for("/metrics", |page| value(page, "leases") == 0);
    let workers = bus.threads("worker-");
    assert_eq!(workers.len(), 2);
    assert!(
        workers.iter().all(|sleeps| *sleeps > 1),
        "all had work: {workers:?}"
    );
    let (status, said) = bus.stop();
    assert_eq!(status, 0);
    assert!(
        said.contains(&format!("events={}", CLIENTS * EVENTS)),
        "{said}"
    );
}

#[test]
fn a_port_is_shared_with_no_other_bus() {
    let directory = tempfile::tempdir().unwrap();
    let file = configure(directory.path(), "[loop]\nworkers = 2\n");
    let bus = Serving::start(&["--config", &file], &[]);
    let mut second = hailmary();
    second.args([
        "serve",
        "--config",
        &file,
        "--admin",
        "off",
        "--listen",
        bus.address(),
    ]);
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("is in use"), "{said}");
}

#[test]
fn a_lease_that_ends_ends_for_all_workers() {
    let directory = tempfile::tempdir().unwrap();
    let file = configure(
        directory.path(),
        "[loop]\nworkers = 3\n[limits]\nlease_ms = 1000\n",
    );
    let bus = Serving::start(&["--config", &file], &[]);
    let address: Address = bus.address().parse().unwrap();
    let _silent = Subscriber::builder(&address)
        .pattern("a")
        .connect(PATIENCE)
        .unwrap();
    wait_until("the end of a lease that nobody renews", || {
        for _ in 0..8 {
            Publisher::connect(&address).unwrap().publish("a", b"x");
        }
        let page = bus.get("/metrics");
        assert_laws(&page);
        (value(&page, "leases") == 0).then_some(())
    });
    let matched = value(&bus.get("/metrics"), "matched_events_total");
    for _ in 0..32 {
        Publisher::connect(&address).unwrap().publish("a", b"x");
    }
    bus.wait_for("/metrics", |page| {
        value(page, "unmatched_events_total") >= 32
    });
    assert_eq!(value(&bus.get("/metrics"), "matched_events_total"), matched);
}
