//! Settings, events and requests from a tape.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hailmary::bus::access::Effect;
use hailmary::bus::address::{Address, Credentials, Source};
use hailmary::bus::leases::LeaseLimits;
use hailmary::bus::policies::{Priority, TopicPolicy};
use hailmary::bus::sample::Sample;
use hailmary::bus::subscribers::Terms;
use hailmary::bus::{Settings, StaticSubscriber};
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Event, Frame, Ping, Report, Stamp, Subscribe, Unsubscribe};
use hailmary_proto::write::{DATAGRAM_BYTES_MAX, UNPROVEN_REQUEST_BYTES_MIN, pad};
use prost::Message;

use super::UNIX_NANO;
use super::model::Model;
use super::rules::{Deed, Plain, Written};
use crate::tape::Tape;

const fn ip(a: u8, b: u8, c: u8, d: u8, port: u16) -> Source<'static> {
    Source::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port))
}

const fn ipv6(last: u16, port: u16) -> Source<'static> {
    let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
    Source::Ip(SocketAddr::new(IpAddr::V6(address), port))
}

const fn unix(path: &[u8], user: Option<(u32, u32)>) -> Source<'_> {
    let credentials = match user {
        Some((uid, gid)) => Some(Credentials { uid, gid }),
        None => None,
    };
    Source::Unix { path, credentials }
}

/// A host with more ports than it may have leases, hosts of one network and of others, and this
/// host's sockets: known by user and group, unknown, and without an address.
pub(super) const SOURCES: [Source<'static>; 16] = [
    ip(127, 0, 0, 1, 1_000),
    ip(127, 0, 0, 1, 1_001),
    ip(127, 0, 0, 1, 1_002),
    ip(127, 0, 0, 1, 1_003),
    ip(127, 0, 0, 1, 1_004),
    ip(10, 0, 0, 1, 1_000),
    ip(10, 0, 0, 2, 1_000),
    ip(192, 0, 2, 1, 1_000),
    ipv6(1, 9),
    ipv6(2, 9),
    unix(b"/run/one", None),
    unix(b"/run/one", Some((7, 70))),
    unix(b"\0abstract", Some((8, 70))),
    unix(b"/run/two", Some((70, 7))),
    unix(b"/run/three", None),
    unix(b"", Some((7, 70))),
];

/// Whom rules speak of.
const FROM: [&str; 12] = [
    "10.0.0.0/8",
    "10.0.0.1",
    "127.0.0.1",
    "::1",
    "2001:db8::2/127",
    "2001:db8::/32",
    "0.0.0.0/0",
    "::/0",
    "uid:7",
    "gid:70",
    "gid:7",
    "uid:8",
];

/// Patterns of rules, everything most of all.
const COVERED: [&str; 6] = [">", ">", ">", "a.>", "a.b", "*"];

const TOPICS: [&str; 8] = [
    "a",
    "a.b",
    "a.b.c",
    "b",
    "search.index.photo",
    "_hailmary.x",
    "a..b",
    "",
];

const PATTERNS: [&str; 8] = ["a", ">", "a.*", "*.b", "a.>", "_hailmary.>", "b", "a.b"];

const NAMES: [&str; 6] = ["", "one", "two", "three", "_hailmary-canary", "no name"];

const KEYS: [&[u8]; 4] = [b"", b"k", b"key", b"\xff\0"];

/// Sizes of payloads about the bounds of frames: the least that a subscriber may ask for, an
/// Ethernet packet's, the largest datagram's.
const PAYLOAD_BYTES: [usize; 8] = [0, 3, 450, 500, 1_350, 1_500, 40_000, 65_000];

/// Mostly everybody may, but for a few.
fn deed(tape: &mut Tape<'_>) -> Deed {
    let all = |from| Written {
        from,
        topics: ">",
        effect: Effect::Allow,
    };
    let mut rules = match tape.below(4) {
        0..=2 => vec![all("0.0.0.0/0"), all("::/0")],
        _ => Vec::new(),
    };
    for _ in 0..tape.below(4) {
        rules.push(Written {
            from: FROM[tape.below(FROM.len())],
            topics: COVERED[tape.below(COVERED.len())],
            effect: *tape.pick(&[Effect::Allow, Effect::Deny]),
        });
    }
    Deed(rules)
}

pub(super) fn plain(tape: &mut Tape<'_>) -> Plain {
    Plain {
        publish: deed(tape),
        subscribe: deed(tape),
    }
}

fn terms(tape: &mut Tape<'_>) -> Terms {
    Terms {
        group: tape.one_in(4).then(|| "group".into()),
        sample: *tape.pick(&[
            Sample::ALL,
            Sample::ALL,
            Sample::of_share(0.5).expect("a share"),
        ]),
        events_per_second: *tape.pick(&[None, None, None, Some(2)]),
    }
}

fn statics(tape: &mut Tape<'_>) -> Vec<StaticSubscriber> {
    let one = |tape: &mut Tape<'_>, number: u16| StaticSubscriber {
        name: format!("static-{number}"),
        address: match tape.below(4) {
            // Where somebody may hold a lease.
            0 => SOURCES[0].to_address(),
            1 => Address::Unix(b"/run/static".as_slice().into()),
            _ => Address::Ip(([10, 0, 0, 9], 7_000 + number).into()),
        },
        topics: vec![(*tape.pick(&PATTERNS)).to_owned()],
        frame_bytes_max: *tape.pick(&[None, Some(508), Some(1_400), Some(65_507)]),
        terms: terms(tape),
    };
    let number = u16::try_from(tape.below(4)).expect("few");
    (0..number).map(|number| one(tape, number)).collect()
}

fn policies(tape: &mut Tape<'_>) -> Vec<TopicPolicy> {
    let one = |tape: &mut Tape<'_>| TopicPolicy {
        pattern: (*tape.pick(&PATTERNS)).to_owned(),
        events_per_second: *tape.pick(&[None, None, Some(1), Some(100)]),
        priority: *tape.pick(&[Priority::Low, Priority::Normal, Priority::High]),
        age_max: *tape.pick(&[None, None, Some(Duration::from_millis(1))]),
    };
    (0..tape.below(3)).map(|_| one(tape)).collect()
}

pub(super) fn settings(tape: &mut Tape<'_>, plain: &Plain) -> Settings {
    Settings {
        access: plain.to_access(),
        own_sources: tape
            .one_in(4)
            .then(|| SOURCES[1].to_address())
            .into_iter()
            .collect(),
        leases: LeaseLimits {
            leases_max: 8 - tape.below(9),
            leases_per_origin_max: 4 - tape.below(5),
            patterns_max: 3,
            group_members_max: 2,
            lease_ms: 30_000,
            lease_ms_max: *tape.pick(&[300_000, 30_000]),
        },
        leased_series_max: tape.below(4),
        subscribers: statics(tape),
        topic_policies: policies(tape),
    }
}

fn event(tape: &mut Tape<'_>) -> Event {
    Event {
        topic: (*tape.pick(&TOPICS)).to_owned(),
        payload: vec![b'x'; *tape.pick(&PAYLOAD_BYTES)],
        key: tape.pick(&KEYS).to_vec(),
        time_unix_nano: *tape.pick(&[0, 1, UNIX_NANO - 1, UNIX_NANO + 1]),
        ..Event::default()
    }
}

/// Of a few publishers, mostly with sequences near to each other.
fn stamp(tape: &mut Tape<'_>) -> Stamp {
    let near = |tape: &mut Tape<'_>| match tape.below(4) {
        0 => tape.number(),
        _ => u64::from(tape.byte()),
    };
    Stamp {
        sender: tape.below(4) as u64,
        sequence: near(tape),
        dropped: near(tape),
        hops: *tape.pick(&[0, 0, 0, 1, 7, 8, u32::MAX]),
        weight: *tape.pick(&[0.0, 0.0, 2.5, -1.0, f64::NAN, f64::INFINITY, 1e300]),
    }
}

pub(super) fn events(tape: &mut Tape<'_>) -> Vec<u8> {
    let frame = Frame {
        events: (0..tape.below(6)).map(|_| event(tape)).collect(),
        stamp: tape.one_in(2).then(|| stamp(tape)),
        ..Frame::default()
    };
    let mut datagram = frame.encode_to_vec();
    // Many small ones: as the table of a frame grows.
    if tape.one_in(8) {
        let times = (DATAGRAM_BYTES_MAX / datagram.len().max(1)).max(1);
        datagram = datagram.repeat(times.min(usize::from(tape.byte()) + 1));
    }
    datagram.truncate(DATAGRAM_BYTES_MAX);
    datagram
}

/// With a cookie and its nonce: the newest for this source, an older one, another's, one with
/// a wrong bit, or anything.
fn cookie(tape: &mut Tape<'_>, source: usize, model: &Model) -> (Vec<u8>, u64) {
    let own = SOURCES[source].to_address();
    let other = tape.pick(&SOURCES).to_address();
    match tape.below(8) {
        0 => (Vec::new(), u64::from(tape.byte())),
        1 => (tape.piece().to_vec(), 0),
        2 => model.cookie(&other, tape.below(4)),
        3 => {
            let (mut cookie, nonce) = model.cookie(&own, 0);
            let place = tape.below(cookie.len().max(1));
            if let Some(byte) = cookie.get_mut(place) {
                *byte ^= 1 << tape.below(8);
            }
            (cookie, nonce)
        }
        4 => (model.cookie(&own, 0).0, u64::from(tape.byte())),
        5 => model.cookie(&own, tape.below(4)),
        _ => model.cookie(&own, 0),
    }
}

pub(super) fn subscribe(tape: &mut Tape<'_>, source: usize, model: &Model) -> Vec<u8> {
    let (cookie, nonce) = cookie(tape, source, model);
    let patterns = *tape.pick(&[1, 1, 2, 3, 4, 0]);
    let topics = (0..patterns).map(|_| (*tape.pick(&PATTERNS)).to_owned());
    let subscribe = Subscribe {
        topics: topics.collect(),
        group: (*tape.pick(&["", "", "group", "other", "no group"])).to_owned(),
        name: (*tape.pick(&NAMES)).to_owned(),
        lease_ms: *tape.pick(&[0, 1, 1_000, 2_000, 300_000, u32::MAX]),
        cookie,
        max_frame_bytes: *tape.pick(&[0, 0, 1, 507, 508, 1_000, 65_507, u32::MAX]),
        sample: *tape.pick(&[0.0, 0.0, 1.0, 0.5, -1.0, 2.0, f64::NAN]),
        events_per_second: *tape.pick(&[0, 0, 1, 100, u32::MAX]),
        report: tape.one_in(2).then(|| Report {
            bus: *tape.pick(&[model.bus(), 1]),
            received: tape.number(),
            lost: tape.number(),
            dropped: tape.number(),
        }),
        nonce,
    };
    request(tape, Control::Subscribe(subscribe))
}

/// As a subscriber asks: with what it was last sent, and in as many bytes as a bus wants. Each has
/// a nonce of its own.
pub(super) fn plain_subscribe(cookie: Vec<u8>, source: usize, lease_ms: u32) -> Vec<u8> {
    framed(Control::Subscribe(Subscribe {
        topics: vec![">".to_owned()],
        lease_ms,
        cookie,
        nonce: nonce(source),
        ..Subscribe::default()
    }))
}

/// As a subscriber leaves.
pub(super) fn plain_unsubscribe(cookie: Vec<u8>, source: usize) -> Vec<u8> {
    let nonce = nonce(source);
    framed(Control::Unsubscribe(Unsubscribe { cookie, nonce }))
}

fn nonce(source: usize) -> u64 {
    1 + source as u64
}

fn framed(control: Control) -> Vec<u8> {
    let mut frame = Frame {
        control: Some(control),
        ..Frame::default()
    };
    pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
    frame.encode_to_vec()
}

pub(super) fn unsubscribe(tape: &mut Tape<'_>, source: usize, model: &Model) -> Vec<u8> {
    let (cookie, nonce) = cookie(tape, source, model);
    request(tape, Control::Unsubscribe(Unsubscribe { cookie, nonce }))
}

pub(super) fn ping(tape: &mut Tape<'_>) -> Vec<u8> {
    let nonce = tape.number();
    request(tape, Control::Ping(Ping { nonce }))
}

/// Mostly padded, as a bus asks for.
fn request(tape: &mut Tape<'_>, control: Control) -> Vec<u8> {
    let mut frame = Frame {
        control: Some(control),
        stamp: tape.one_in(4).then(|| stamp(tape)),
        ..Frame::default()
    };
    if !tape.one_in(8) {
        pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
    }
    if tape.one_in(8) {
        frame.events.push(event(tape));
    }
    frame.encode_to_vec()
}
