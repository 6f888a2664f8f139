//! The probes that a bus sends itself, and the topics that are its own.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use hailmary_client::{Address, Publisher, Subscriber};

use super::support::{
    PATIENCE, Serving, Subscribing, assert_laws, datagram, event, sum, sum_of, value,
};

/// A configuration of these lines, with a canary.
fn configure(directory: &Path, interval_ms: u32, lines: &str) -> String {
    let file = directory.join("bus.toml");
    let text = format!("[canary]\ninterval_ms = {interval_ms}\n{lines}");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn of_listener(metric: &str, listener: &str) -> String {
    format!("{metric}{{listener=\"{listener}\"}}")
}

/// A frame of these topics, from no publisher in particular.
fn send(bus: &Serving, topics: &[&str]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let events = topics.iter().map(|topic| event(topic)).collect();
    socket.send_to(&datagram(events), bus.udp()).unwrap();
}

#[test]
fn an_idle_bus_watches_the_path_from_each_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.sock");
    let unix = format!("unix://{}", path.display());
    let workers = if cfg!(target_os = "linux") { 2 } else { 1 };
    // Nobody may publish or subscribe, which does not speak of the bus itself.
    let lines = format!("[access]\npublish = []\nsubscribe = []\n[loop]\nworkers = {workers}\n");
    let file = configure(directory.path(), 10, &lines);
    let mut listeners = vec!["127.0.0.1:0", "0.0.0.0:0", &unix];
    if UdpSocket::bind("[::1]:0").is_ok() {
        listeners.extend(["[::1]:0", "[::]:0"]);
    }
    let bus = Serving::start(&["--config", &file], &listeners);
    for listener in &bus.listening {
        bus.wait_for("/metrics", |page| {
            assert_laws(page);
            value(page, &of_listener("canary_latency_seconds_count", listener)) >= 5
        });
    }
    let page = bus.get("/metrics");
    assert_laws(&page);
    let sent = sum(&page, "canary_sent_total");
    assert!(sent >= 5 * listeners.len() as u64);
    for listener in &bus.listening {
        assert_eq!(value(&page, &of_listener("canary_lost_total", listener)), 0);
    }
    assert_eq!(sum(&page, "ingress_dropped_events_total"), 0);
    assert_eq!(sum(&page, "ingress_lost_events_total"), 0);
    let label = "subscriber=\"_hailmary.canary\"";
    let passed = sum_of(&page, "egress_events_total", label);
    assert_eq!(
        passed,
        sum(&page, "ingress_events_total"),
        "counted as all events are"
    );
    assert!(
        bus.get("/api/v1/status")
            .contains("\"canary\":{\"interval_seconds\":0.01,\"lost\":0,\"sent\":")
    );
    assert!(
        bus.get("/api/v1/subscribers")
            .contains("\"name\":\"_hailmary.canary\"")
    );
    assert_eq!(bus.threads("canary").len(), 1);
    assert!(directory.path().join("bus.sock.canary").exists());
    assert_eq!(bus.stop().0, 0);
    assert!(!directory.path().join("bus.sock.canary").exists());
}

#[test]
fn without_a_canary_there_is_nothing_of_it() {
    let bus = Serving::start(&[], &[]);
    let page = bus.get("/metrics");
    assert!(!page.contains("canary"), "{page}");
    assert_eq!(sum(&page, "ingress_frames_total"), 0);
    assert!(bus.get("/api/v1/status").contains("\"canary\":null"));
    assert!(bus.get("/api/v1/subscribers").ends_with("\r\n\r\n[]"));
    assert!(bus.threads("canary").is_empty());
}

#[test]
fn a_canary_sleeps_between_its_probes() {
    let directory = tempfile::tempdir().unwrap();
    let file = configure(directory.path(), 3_600_000, "[limits]\nlease_ms = 1000\n");
    let bus = Serving::start(&["--config", &file], &[]);
    let address: Address = bus.address().parse().unwrap();
    let returned = of_listener("canary_latency_seconds_count", bus.address());
    bus.wait_for_metric(&returned, 1);
    let builder = Subscriber::builder(&address).pattern("a");
    let _silent = builder.connect(PATIENCE).unwrap();
    // From here to the lease's end a second passes by the bus's own clock.
    let before = bus.threads("canary");
    let page = bus.wait_for_metric("leases_expired_total", 1);
    // The thread may have been on its way to sleep.
    assert!(bus.threads("canary")[0] - before[0] <= 1);
    assert_eq!(sum(&page, "canary_sent_total"), 1);
    assert_eq!(bus.stop().0, 0, "at once, not an hour later");
}

#[test]
fn the_buss_own_topics_are_published_by_nobody_else_and_seen_by_whoever_names_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = configure(directory.path(), 10, "");
    let bus = Serving::start(&["--config", &file], &[]);
    let all = Subscribing::start(bus.address(), &[">", "*.*", "--count", "4"]);
    let own = Subscribing::start(bus.address(), &["_hailmary.>", "--count", "5"]);
    send(&bus, &["a", "_hailmary.canary.0", "b.c"]);
    bus.wait_for_metric("ingress_dropped_events_total{reason=\"not_allowed\"}", 1);
    send(&bus, &["_hailmary.x"]);
    let publisher = Publisher::connect(&bus.address().parse::<Address>().unwrap()).unwrap();
    publisher.publish("_hailmary", b"x");
    let reason = "ingress_dropped_events_total{reason=\"not_allowed\"}";
    bus.wait_for_metric(reason, 3);
    send(&bus, &["d", "e"]);

    let (printed, last) = all.output();
    let topics: Vec<_> = printed.split_whitespace().collect();
    assert_eq!(topics, ["a", "b.c", "d", "e"]);
    assert_eq!(last, "received 4, lost 0 on the way, dropped 0 by the bus");
    let (printed, _) = own.output();
    let is_canary = |line: &str| line.starts_with("_hailmary.canary.0\t");
    assert!(
        printed.lines().count() == 5 && printed.lines().all(is_canary),
        "{printed}"
    );

    let page = bus.get("/metrics");
    assert_laws(&page);
    assert_eq!(value(&page, reason), 3);
    assert_eq!(sum(&page, "canary_lost_total"), 0);
}
