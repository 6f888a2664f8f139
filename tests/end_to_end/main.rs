//! The whole program, as a user runs it: real processes, real sockets, real HTTP.
//!
//! Here is what everybody does with it; what goes wrong, and what must hold then, is in the
//! modules.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod access;
mod bench;
mod canary;
mod configuration;
#[cfg(target_os = "linux")]
mod confined;
mod cookies;
mod doctor;
mod fairness;
#[cfg(target_os = "linux")]
mod faults;
mod freshness;
mod groups;
mod hostile;
mod laws;
mod life;
mod logs;
mod losses;
mod order;
mod overload;
mod panics;
#[cfg(target_os = "linux")]
mod prometheus;
mod proof;
mod rates;
#[cfg(target_os = "linux")]
mod refused;
#[cfg(target_os = "linux")]
mod reload;
mod restart;
mod samples;
mod scrapes;
#[cfg(target_os = "linux")]
mod segments;
#[cfg(target_os = "linux")]
mod send_buffers;
#[path = "../support/mod.rs"]
mod support;
mod topics;
mod workers;

use std::net::UdpSocket;

use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Frame, Ping, Stamp};
use hailmary_proto::write::{UNPROVEN_REQUEST_BYTES_MIN, pad};
use prost::Message;
use support::{PATIENCE, Serving, Subscribing, assert_laws, event, hailmary, value};

fn publish(bus: &str, arguments: &[&str]) {
    let status = hailmary()
        .args(["pub", "--to", bus])
        .args(arguments)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn an_event_reaches_whoever_wants_it() {
    let bus = Serving::start(&[], &[]);
    let wants = ["--count", "2", "--format", "json", "--name", "indexer"];
    let search = Subscribing::start(bus.address(), &[&["search.>"][..], &wants].concat());
    let other = Subscribing::start(
        bus.address(),
        &["*.index.photo", "--count", "1", "--format", "raw"],
    );
    publish(bus.address(), &["spam.signal", "nobody"]);
    publish(
        bus.address(),
        &["search.index.photo", "one", "--key", "k", "--attr", "a=b"],
    );
    publish(bus.address(), &["search.index.user", "two"]);

    let (printed, last) = search.output();
    assert_eq!(last, "received 2, lost 0 on the way, dropped 0 by the bus");
    let lines: Vec<serde_json::Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["topic"], "search.index.photo");
    assert_eq!(lines[0]["payload"], "one");
    assert_eq!(lines[0]["key"], "k");
    assert_eq!(lines[0]["attributes"]["a"], "b");
    assert_eq!(lines[0]["weight"], 1.0);
    assert_eq!(lines[1]["payload"], "two");
    assert_eq!(other.output().0, "one\n");

    let page = bus.wait_for_metric("copies_total", 3);
    assert_laws(&page);
    assert_eq!(value(&page, "unmatched_events_total"), 1);
    assert_eq!(
        value(&page, "egress_events_total{subscriber=\"indexer\"}"),
        2
    );
    assert_eq!(value(&page, "leases_granted_total"), 2);
    let (status, said) = bus.stop();
    assert_eq!(status, 0);
    assert!(
        said.contains("stopped") && said.contains("copies=3"),
        "{said}"
    );
}

#[test]
fn events_pass_unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix://{}", directory.path().join("bus.sock").display());
    let bus = Serving::start(&[], &[&address]);
    let subscriber = Subscribing::start(&address, &[">", "--count", "3", "--format", "raw"]);
    publish(&address, &["a.b", "x", "--count", "3"]);
    assert_eq!(subscriber.output().0, "x\nx\nx\n");
    assert_eq!(bus.stop().0, 0);
    assert!(
        !directory.path().join("bus.sock").exists(),
        "removed at the end"
    );
}

#[test]
fn lines_of_standard_input_are_events() {
    use std::io::Write;
    let bus = Serving::start(&[], &[]);
    let subscriber = Subscribing::start(bus.address(), &["a", "--count", "2"]);
    let mut publisher = hailmary()
        .args(["pub", "a", "--lines", "--to", bus.address()])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    publisher
        .stdin
        .take()
        .unwrap()
        .write_all(b"one\ntwo\x1b")
        .unwrap();
    assert!(publisher.wait().unwrap().success());
    assert_eq!(subscriber.output().0, "a\tone\na\ttwo\\u{1b}\n");
}

#[test]
fn a_static_subscriber_needs_no_lease() {
    let subscriber = UdpSocket::bind("127.0.0.1:0").unwrap();
    subscriber.set_read_timeout(Some(PATIENCE)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    let entry = format!(
        "[[subscriber]]\nname = \"fixed\"\naddress = \"{}\"\ntopics = [\"a.>\"]\n[[topic]]\nmatch = \"a.*\"\n",
        subscriber.local_addr().unwrap()
    );
    std::fs::write(&file, entry).unwrap();
    let bus = Serving::start(&["--config", file.to_str().unwrap()], &[]);
    publish(bus.address(), &["a.b", "x"]);
    let mut buffer = [0; 1500];
    let length = subscriber.recv(&mut buffer).unwrap();
    let frame = Frame::decode(&buffer[..length]).unwrap();
    assert_eq!(frame.events[0].payload, b"x");
    let stamp = frame.stamp.unwrap();
    assert_eq!((stamp.sequence, stamp.dropped, stamp.hops), (0, 0, 1));
    let page = bus.wait_for_metric("egress_events_total{subscriber=\"fixed\"}", 1);
    assert_eq!(value(&page, "topic_events_total{topic=\"a.*\"}"), 1);
    assert!(
        bus.get("/api/v1/subscribers")
            .contains("\"kind\":\"static\"")
    );
}

#[test]
fn a_ping_tells_a_publisher_what_came() {
    let bus = Serving::start(&[], &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let stamp = |sequence| {
        Some(Stamp {
            sender: 77,
            sequence,
            ..Stamp::default()
        })
    };
    for sequence in [0, 5] {
        let frame = Frame {
            events: vec![event("a")],
            stamp: stamp(sequence),
            ..Frame::default()
        };
        socket.send_to(&frame.encode_to_vec(), bus.udp()).unwrap();
    }
    let ping = Control::Ping(Ping { nonce: 9 });
    let mut frame = Frame {
        stamp: stamp(6),
        control: Some(ping),
        ..Frame::default()
    };
    pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
    socket.send_to(&frame.encode_to_vec(), bus.udp()).unwrap();
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, bus.udp(), "an answer comes from where was asked");
    match Frame::decode(&buffer[..length]).unwrap().control {
        Some(Control::Pong(pong)) => {
            assert_eq!((pong.nonce, pong.received, pong.lost), (9, 2, 4));
        }
        other => panic!("{other:?}"),
    }
    let page = bus.wait_for_metric("ingress_lost_events_total", 1);
    assert_eq!(value(&page, "ingress_lost_events_total"), 4);
}

#[test]
fn ipv4_and_ipv6_meet_on_one_bus() {
    if UdpSocket::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    // Of any address, too: then each family has a listener of its own.
    for listeners in [["[::1]:0", "127.0.0.1:0"], ["[::]:0", "0.0.0.0:0"]] {
        let bus = Serving::start(&[], &listeners);
        let reach = |listener: &String| {
            listener
                .replace("[::]", "[::1]")
                .replace("0.0.0.0", "127.0.0.1")
        };
        let addresses: Vec<_> = bus.listening.iter().map(reach).collect();
        let wants = [">", "--format", "raw", "--count", "2"];
        let subscribers = [0, 1].map(|family| Subscribing::start(&addresses[family], &wants));
        publish(&addresses[0], &["a", "by IPv6"]);
        bus.wait_for_metric("matched_events_total", 1);
        publish(&addresses[1], &["a", "by IPv4"]);
        for subscriber in subscribers {
            let (printed, last) = subscriber.output();
            assert_eq!(printed, "by IPv6\nby IPv4\n");
            assert_eq!(last, "received 2, lost 0 on the way, dropped 0 by the bus");
        }
        let page = bus.wait_for_metric("copies_total", 4);
        assert_laws(&page);
        for listener in &bus.listening {
            let frames = format!("ingress_frames_total{{listener=\"{listener}\"}}");
            assert!(value(&page, &frames) > 0, "{frames} in\n{page}");
        }
    }
}
