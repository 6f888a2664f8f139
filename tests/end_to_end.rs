//! The whole program, as a user runs it: real processes, real sockets, real HTTP.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod support;

use std::net::UdpSocket;

use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Event, Frame, Ping, Stamp, Subscribe};
use hailmary_proto::write::{UNPROVEN_REQUEST_BYTES_MIN, pad};
use prost::Message;
use support::{PATIENCE, Serving, Subscribing, assert_laws, hailmary, sum, value};

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

    let (output, last) = search.output();
    assert_eq!(last, "received 2, lost 0 on the way, dropped 0 by the bus");
    let lines: Vec<serde_json::Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["topic"], "search.index.photo");
    assert_eq!(lines[0]["payload"], "one");
    assert_eq!(lines[0]["key"], "k");
    assert_eq!(lines[0]["attributes"]["a"], "b");
    assert_eq!(lines[0]["weight"], 1.0);
    assert_eq!(lines[1]["payload"], "two");
    assert_eq!(other.output().0.stdout, b"one\n");

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
    assert_eq!(subscriber.output().0.stdout, b"x\nx\nx\n");
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
    assert_eq!(subscriber.output().0.stdout, b"a\tone\na\ttwo\\u{1b}\n");
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
fn hostile_datagrams_are_counted_and_harm_nobody() {
    let bus = Serving::start(&[], &[]);
    let subscriber = Subscribing::start(bus.address(), &["good", "--count", "1"]);
    let hostile = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |bytes: &[u8]| hostile.send_to(bytes, bus.udp()).unwrap();
    let event = |topic: &str| Event {
        topic: topic.to_owned(),
        ..Event::default()
    };
    let frame = |events: Vec<Event>| {
        Frame {
            events,
            ..Frame::default()
        }
        .encode_to_vec()
    };

    let malformed: [&[u8]; 5] = [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\x7f",
        b"\x0b",
        b"\x08\x01",
        b"\x0a\x02\x0a\x05",
    ];
    malformed.iter().for_each(|bytes| {
        send(bytes);
    });
    for topic in ["", "a..b", "a b", ".a", "a.*", ">", &"x".repeat(256)] {
        send(&frame(vec![event(topic)]));
    }
    send(&frame(vec![Event::default(); 10_000]));
    let looped = Stamp {
        hops: 8,
        ..Stamp::default()
    };
    send(
        &Frame {
            events: vec![event("good")],
            stamp: Some(looped),
            ..Frame::default()
        }
        .encode_to_vec(),
    );
    publish(bus.address(), &["good", "still"]);

    assert_eq!(subscriber.output().0.stdout, b"good\tstill\n");
    let page = bus.wait_for_metric("matched_events_total", 1);
    assert_laws(&page);
    assert_eq!(
        value(&page, "ingress_dropped_frames_total{reason=\"malformed\"}"),
        5
    );
    assert_eq!(
        value(&page, "ingress_dropped_frames_total{reason=\"hops\"}"),
        1
    );
    assert_eq!(
        value(&page, "ingress_dropped_events_total{reason=\"bad_topic\"}"),
        10_007
    );
    assert_eq!(bus.stop().0, 0);
}

#[test]
fn ten_thousand_first_subscribes_leave_nothing_behind() {
    let bus = Serving::start(&[], &[]);
    let before = bus.resident_bytes();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for nonce in 0..10_000 {
        let subscribe = Subscribe {
            topics: vec![">".to_owned()],
            nonce,
            ..Subscribe::default()
        };
        let mut frame = Frame {
            control: Some(Control::Subscribe(subscribe)),
            ..Frame::default()
        };
        pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
        stranger.send_to(&frame.encode_to_vec(), bus.udp()).unwrap();
    }
    let asked =
        |page: &str| sum(page, "challenges_total") + sum(page, "lease_requests_unanswered_total");
    let lost = |page: &str| {
        value(
            page,
            "ingress_dropped_frames_total{reason=\"kernel_buffer\"}",
        )
    };
    let page = bus.wait_for("/metrics", |page| asked(page) + lost(page) == 10_000);
    assert_eq!(value(&page, "leases"), 0);
    assert!(sum(&page, "challenges_total") > 0);
    let grown = bus.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "grew by {grown} bytes");
    publish(bus.address(), &["a", "b"]);
    bus.wait_for_metric("ingress_events_total", 1);
}

#[test]
fn a_ping_tells_a_publisher_what_came() {
    let bus = Serving::start(&[], &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let event = Event {
        topic: "a".to_owned(),
        ..Event::default()
    };
    let stamp = |sequence| {
        Some(Stamp {
            sender: 77,
            sequence,
            ..Stamp::default()
        })
    };
    for sequence in [0, 5] {
        let frame = Frame {
            events: vec![event.clone()],
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
    assert_eq!(bus.metric("ingress_lost_events_total"), 4);
}

#[test]
fn a_second_bus_on_the_port_fails_with_a_word() {
    let bus = Serving::start(&[], &[]);
    let output = hailmary()
        .args(["serve", "--admin", "off", "--listen", bus.address()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("in use") && said.contains(bus.address()),
        "{said}"
    );
}

#[test]
fn a_stop_takes_what_is_in_the_socket() {
    let bus = Serving::start(&[], &[]);
    publish(bus.address(), &["a", "x", "--count", "500"]);
    let (status, said) = bus.stop();
    assert_eq!(status, 0);
    assert!(said.contains("events=500"), "{said}");
}

#[test]
fn wrong_usage_exits_2_and_a_bad_configuration_78() {
    let code = |arguments: &[&str]| hailmary().args(arguments).output().unwrap().status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
    assert_eq!(code(&["pub", "not a topic", "x"]), Some(2));
    assert_eq!(code(&["sub", "a.>.b"]), Some(2));
    assert_eq!(code(&["serve", "--listen", "nowhere"]), Some(78));
    assert_eq!(code(&["check", "/nonexistent"]), Some(78));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    let printed = hailmary()
        .args(["serve", "--print-config"])
        .output()
        .unwrap();
    std::fs::write(&file, printed.stdout).unwrap();
    assert_eq!(code(&["check", file.to_str().unwrap()]), Some(0));
    std::fs::write(&file, "").unwrap();
    assert_eq!(code(&["check", file.to_str().unwrap()]), Some(78));
}
