use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;
use crate::bus::CopyDrop;
use crate::bus::series::SeriesId;
use crate::ledger::Ledger;

fn start() -> (Admin, Arc<State>) {
    let state = Arc::new(State::new(7, Vec::new(), 1));
    state.put_topic_labels(&["other".into(), "spam.>".into()]);
    state.put_series(&["other".into(), "indexer".into()]);
    let address = "127.0.0.1:0".parse().unwrap();
    let (reloads, _) = Requests::listen().unwrap();
    let bound = Bound::bind(address).unwrap();
    let admin = Admin::start(bound, Arc::clone(&state), reloads);
    (admin.unwrap(), state)
}

fn send(admin: &Admin, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(admin.address()).unwrap();
    // A client that was cut off learns it while it still writes.
    let _ = stream.write_all(bytes);
    stream
}

fn read(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn ask(admin: &Admin, method: &str, path: &str) -> String {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    read(send(admin, head.as_bytes()))
}

#[test]
fn a_scrape_shows_what_was_handed_over() {
    let (admin, state) = start();
    let mut ledger = Ledger::new(0);
    ledger.count_frames(0, 1, 10);
    ledger.events().events = 3;
    ledger.events().by_label = vec![0, 2];
    ledger.count_sent(SeriesId::OTHER, 5, 100);
    ledger.count_dropped_copy(SeriesId::OTHER, 1, CopyDrop::Refused);
    ledger.count_forwarded(1, 20_000);
    ledger.hand_over(&state.mailbox);
    let page = ask(&admin, "GET", "/metrics");
    for line in [
        "content-type: text/plain; version=0.0.4; charset=utf-8",
        "# TYPE hailmary_ingress_events_total counter",
        "hailmary_ingress_events_total 3",
        "hailmary_topic_events_total{topic=\"spam.>\"} 2",
        "hailmary_topic_events_total{topic=\"other\"} 0",
        "hailmary_egress_events_total{subscriber=\"other\"} 5",
        "hailmary_egress_events_total{subscriber=\"indexer\"} 0",
        "hailmary_egress_dropped_events_total{subscriber=\"other\",reason=\"refused\"} 1",
        "hailmary_forward_latency_seconds_bucket{le=\"0.000016384\"} 0",
        "hailmary_forward_latency_seconds_bucket{le=\"0.000065536\"} 1",
        "hailmary_forward_latency_seconds_bucket{le=\"+Inf\"} 1",
        "hailmary_lease_refusals_total{reason=\"full\"} 0",
    ] {
        assert!(
            page.lines().any(|other| other == line),
            "{line} is not in\n{page}"
        );
    }
    assert_eq!(admin.stop().counts.events.events, 3);
}

#[test]
fn health_and_readiness_follow_the_data_thread() {
    let (admin, state) = start();
    assert!(ask(&admin, "GET", "/-/ready").starts_with("HTTP/1.1 503"));
    state.set_phase(Phase::Ready);
    assert!(ask(&admin, "GET", "/-/ready").starts_with("HTTP/1.1 200"));
    assert!(ask(&admin, "GET", "/-/healthy").starts_with("HTTP/1.1 200"));
    state.set_phase(Phase::Stopping);
    assert!(ask(&admin, "GET", "/-/ready").starts_with("HTTP/1.1 503"));
    assert!(ask(&admin, "GET", "/api/v1/status").contains("\"phase\":\"stopping\""));
    let _ = admin.stop();
}

#[test]
fn what_is_not_offered_is_refused() {
    let (admin, _state) = start();
    assert!(ask(&admin, "POST", "/metrics").starts_with("HTTP/1.1 405"));
    assert!(ask(&admin, "GET", "/nothing").starts_with("HTTP/1.1 404"));
    let long = format!(
        "GET / HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(2 * HEAD_BYTES_MAX)
    );
    assert!(!read(send(&admin, long.as_bytes())).starts_with("HTTP/1.1 200"));
    let _ = admin.stop();
}

#[test]
fn slow_and_many_clients_are_bounded() {
    let (admin, _state) = start();
    let mut slow: Vec<_> = (0..CONNECTIONS_MAX)
        .map(|_| send(&admin, b"GET / HT"))
        .collect();
    // Accepted in order: this one finds all places taken, and is closed without a word.
    assert_eq!(ask(&admin, "GET", "/-/healthy"), "");
    slow.truncate(CONNECTIONS_MAX / 2);
    // The places come free once the admin has noticed.
    while ask(&admin, "GET", "/-/healthy").is_empty() {}
    let _ = admin.stop();
}
