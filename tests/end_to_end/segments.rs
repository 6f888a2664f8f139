//! Subscribers on another host, whose datagrams leave as segments of few messages.

use hailmary_proto::v1::{Event, Frame};
use prost::Message;

use crate::support::hosts::{HOSTS, Host, is_inside};
use crate::support::{Serving, Subscribing, assert_laws, sum};

/// Events of one datagram: those of two fill some forty frames, which a receive buffer holds.
const EVENTS: usize = 250;

/// Packets that have left by the cable: a message of segments is one.
fn packets_sent() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("cable0:"));
    let packets = line.unwrap().split_whitespace().nth(9).unwrap();
    packets.parse().unwrap()
}

/// Payloads of unlike lengths, so that hardly two frames are of one size.
fn payloads() -> Vec<String> {
    let payload = |number| format!("{number:06}{}", "x".repeat(number * 37 % 101));
    (0..2 * EVENTS).map(payload).collect()
}

/// Sends events to two subscribers over a cable, and says how many frames the bus sent in how
/// many packets.
fn send_over(mtu_bytes: u32) -> (u64, u64) {
    let host = Host::connect(mtu_bytes);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    let access = "[access]\nsubscribe = [{ from = [\"198.18.0.0/24\"], topics = [\">\"] }]\n";
    std::fs::write(&file, access).unwrap();
    let reach = format!("{}:0", HOSTS[0]);
    let bus = Serving::start(
        &["--config", file.to_str().unwrap()],
        &["127.0.0.1:0", &reach],
    );
    let count = (2 * EVENTS).to_string();
    let wants = ["a", "--format", "raw", "--count", &count];
    let subscribers = [0, 1].map(|_| {
        let program = host.command(env!("CARGO_BIN_EXE_hailmary"));
        Subscribing::start_by(program, &bus.listening[1], &wants)
    });
    let before = packets_sent();
    let publisher = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for half in payloads().chunks(EVENTS) {
        let event = |payload: &String| Event {
            topic: "a".to_owned(),
            payload: payload.clone().into_bytes(),
            ..Event::default()
        };
        let frame = Frame {
            events: half.iter().map(event).collect(),
            ..Frame::default()
        };
        publisher
            .send_to(&frame.encode_to_vec(), bus.udp())
            .unwrap();
    }
    for subscriber in subscribers {
        let (printed, last) = subscriber.output();
        assert!(printed.lines().eq(payloads()), "{printed}");
        let all = format!("received {count}, lost 0 on the way, dropped 0 by the bus");
        assert_eq!(last, all);
    }
    let page = bus.wait_for_metric("copies_total", 4 * EVENTS as u64);
    assert_laws(&page);
    assert_eq!(sum(&page, "egress_dropped_events_total"), 0);
    (sum(&page, "egress_frames_total"), packets_sent() - before)
}

// The fallback sends no segments, so that there it would be as many packets as frames.
#[test]
#[cfg(not(feature = "portable"))]
#[ignore = "needs network namespaces"]
fn frames_for_another_host_leave_together() {
    if is_inside("segments::frames_for_another_host_leave_together") {
        let (frames, packets) = send_over(1_500);
        assert!(packets < frames / 2, "{frames} frames in {packets} packets");
    }
}

#[test]
#[ignore = "needs network namespaces"]
fn frames_over_the_ways_mtu_leave_one_by_one() {
    if is_inside("segments::frames_over_the_ways_mtu_leave_one_by_one") {
        let (frames, packets) = send_over(1_280);
        assert!(packets > frames, "{frames} frames in {packets} packets");
    }
}
