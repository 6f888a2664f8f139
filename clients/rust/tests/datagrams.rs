//! What this client says, byte for byte, by `tests/vectors/datagrams.json`.
//!
//! Sender ids and nonces are random, and so are put in place of the golden ones where
//! they cannot be told.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what helps tests may panic as they do"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::StandIn;
use hailmary_client::lease::{Origin, Subscription};
use hailmary_client::{Event, Publisher};
use hailmary_proto::decode::Decoder;
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use prost::Message;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    sender: String,
    nonce: String,
    published: Vec<Published>,
    dialogues: Vec<Dialogue>,
    pings: Vec<Ping>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    name: String,
    #[serde(rename = "why")]
    _why: String,
    sent: u64,
    dropped: u64,
    events: Vec<EventParts>,
    hex: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventParts {
    topic: String,
    payload_hex: String,
    key_hex: String,
    time_unix_nano: String,
    attributes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dialogue {
    name: String,
    #[serde(rename = "why")]
    _why: String,
    request: Request,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    topics: Vec<String>,
    group: String,
    name: String,
    lease_ms: u32,
    max_frame_bytes: u32,
    sample: f64,
    events_per_second: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    at_ms: u64,
    #[serde(flatten)]
    act: Act,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Act {
    Says(String),
    Hears(String),
    Leaves(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ping {
    name: String,
    #[serde(rename = "why")]
    _why: String,
    sent: u64,
    dropped: u64,
    hex: String,
}

fn golden() -> Golden {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("tests/vectors/datagrams.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap();
    hex.as_bytes().chunks(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A publisher that has published so much that its stamp is the golden one.
fn publisher_after(bus: &StandIn, sent: u64, dropped: u64) -> Publisher {
    let publisher = Publisher::connect(&bus.address()).unwrap();
    (0..dropped).for_each(|_| publisher.publish("not..legal", ""));
    for _ in 0..sent {
        publisher.publish("a", "");
        bus.receive();
    }
    publisher
}

/// The next datagram, with the golden ids.
fn receive(bus: &StandIn, golden: &Golden) -> String {
    let mut datagram = bus.receive_bytes();
    let frame = v1::Frame::decode(datagram.as_slice()).unwrap();
    put(&mut datagram, frame.stamp.unwrap().sender, &golden.sender);
    if let Some(Control::Ping(ping)) = frame.control {
        put(&mut datagram, ping.nonce, &golden.nonce);
    }
    hex(&datagram)
}

fn put(datagram: &mut [u8], ours: u64, golden: &str) {
    let is_ours = |window: &[u8]| window == ours.to_le_bytes();
    let place = datagram.windows(8).position(is_ours).unwrap();
    let golden: u64 = golden.parse().unwrap();
    datagram[place..place + 8].copy_from_slice(&golden.to_le_bytes());
}

#[test]
fn published() {
    let golden = golden();
    for case in &golden.published {
        let bus = StandIn::open();
        let publisher = publisher_after(&bus, case.sent, case.dropped);
        let mut batch = publisher.batch();
        with_events(&case.events, |event| batch.push(event));
        batch.flush();
        assert_eq!(receive(&bus, &golden), case.hex, "{}, batch", case.name);
        if case.events.len() == 1 {
            let publisher = publisher_after(&bus, case.sent, case.dropped);
            with_events(&case.events, |event| publisher.publish_event(event));
            assert_eq!(receive(&bus, &golden), case.hex, "{}", case.name);
        }
    }
}

fn with_events(events: &[EventParts], mut publish: impl FnMut(&Event<'_>)) {
    for parts in events {
        let (payload, key) = (bytes(&parts.payload_hex), bytes(&parts.key_hex));
        let attributes = parts.attributes.iter();
        let attributes: Vec<_> = attributes.map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let event = Event::new(&parts.topic, &payload)
            .key(&key)
            .time_unix_nano(parts.time_unix_nano.parse().unwrap())
            .attributes(&attributes);
        publish(&event);
    }
}

#[test]
fn dialogues() {
    let golden = golden();
    for case in golden.dialogues {
        let request = v1::Subscribe {
            topics: case.request.topics,
            group: case.request.group,
            name: case.request.name,
            lease_ms: case.request.lease_ms,
            max_frame_bytes: case.request.max_frame_bytes,
            sample: case.request.sample,
            events_per_second: case.request.events_per_second,
            ..v1::Subscribe::default()
        };
        let nonce = golden.nonce.parse().unwrap();
        let mut subscription = Subscription::new(request, nonce, Duration::ZERO);
        for step in case.steps {
            take(&mut subscription, &step, &case.name);
        }
    }
}

fn take(subscription: &mut Subscription, step: &Step, name: &str) {
    let now = Duration::from_millis(step.at_ms);
    let (said, wanted) = match &step.act {
        Act::Hears(datagram) => {
            let datagram = bytes(datagram);
            let mut decoder = Decoder::new();
            let frame = decoder.decode(&datagram).unwrap();
            subscription.handle_frame(now, Origin::Bus, &frame);
            return;
        }
        Act::Says(wanted) => {
            subscription.handle_timeout(now);
            (subscription.poll_transmit(now), wanted)
        }
        Act::Leaves(wanted) => (subscription.close(), wanted),
    };
    assert_eq!(
        said.map(hex).as_ref(),
        Some(wanted),
        "{name}, {} ms",
        step.at_ms
    );
    assert_eq!(subscription.poll_transmit(now), None);
}

#[test]
fn pings() {
    let golden = golden();
    for case in &golden.pings {
        let bus = StandIn::open();
        let publisher = publisher_after(&bus, case.sent, case.dropped);
        // Nobody answers.
        assert!(publisher.ping(Duration::from_millis(1)).is_err());
        assert_eq!(receive(&bus, &golden), case.hex, "{}", case.name);
    }
}
