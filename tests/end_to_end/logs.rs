//! What a bus says: little, and never a line for each datagram.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

use serde_json::Value;

use super::publish;
use super::support::{Serving, Subscribing, request, subscribe, sum_of, value, wait_until};

#[test]
fn neither_work_nor_malformed_datagrams_bring_a_line() {
    const MALFORMED: u64 = 10_000;
    let bus = Serving::start(&[], &[]);
    let subscriber = Subscribing::start(bus.address(), &["a", "--count", "20"]);
    publish(bus.address(), &["a", "x", "--count", "20"]);
    subscriber.output();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..MALFORMED {
        stranger.send_to(b"\xff\xff", bus.udp()).unwrap();
    }
    let dropped = |page: &str, reason: &str| {
        value(
            page,
            &format!("ingress_dropped_frames_total{{reason=\"{reason}\"}}"),
        )
    };
    let page = bus.wait_for("/metrics", |page| {
        dropped(page, "malformed") + dropped(page, "kernel_buffer") == MALFORMED
    });
    assert_eq!(sum_of(&page, "ingress_dropped_frames_total", ""), MALFORMED);
    let (status, said) = bus.stop();
    assert_eq!(status, 0);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("stopped"), "{said}");
}

#[test]
fn what_recurs_is_told_once_a_second_with_its_count() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.sock");
    let address = format!("unix://{}", path.display());
    let bus = Serving::start(&["--log-format", "json"], &[&address]);
    // Takes no answer, so that every one fails once its queue is full.
    let deaf = UnixDatagram::bind(directory.path().join("deaf")).unwrap();
    let mut asked = 0_u64;
    let mut failures = 0;
    let suppressed = wait_until("a count of suppressed lines", || {
        for _ in 0..10 {
            deaf.send_to(&request(subscribe(asked, b"")), &path)
                .unwrap();
            asked += 1;
        }
        assert!(bus.get("/-/healthy").contains("200 OK"));
        let line: Value = serde_json::from_str(&bus.logged()?).unwrap();
        assert_eq!(line["level"], "WARN", "{line}");
        failures += u64::from(line["message"] == "cannot answer");
        line["suppressed"].as_u64()
    });
    assert_eq!(failures, 1, "one line before the count");
    assert!((1..asked).contains(&suppressed), "{suppressed} of {asked}");
    let (status, said) = bus.stop();
    assert_eq!(status, 0);
    let messages: Vec<_> = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["message"].clone())
        .collect();
    assert!(messages.len() < 5, "{said}");
    assert_eq!(messages.last().unwrap(), "stopped");
}
