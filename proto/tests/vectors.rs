//! The golden datagrams, topics and flows in `tests/vectors`, read by the view, by prost and by
//! the tracker.

#[cfg(test)]
mod support;

use hailmary_proto::decode::{Decoder, EventView, FrameView};
use hailmary_proto::flow::{Position, Tracker};
use hailmary_proto::topic::{TopicError, check_pattern, check_topic, matches};
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use support::check_against_prost;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Datagram {
    name: String,
    hex: String,
    #[serde(default = "once")]
    repeat: usize,
    valid: bool,
    #[serde(default, rename = "implementations_differ")]
    _implementations_differ: bool,
    #[serde(default, rename = "why")]
    _why: String,
    #[serde(default)]
    events: Vec<Event>,
    stamp: Option<Stamp>,
    control: Option<String>,
    seal: Option<Seal>,
}

fn once() -> usize {
    1
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Event {
    topic: String,
    payload_hex: String,
    key_hex: String,
    time_unix_nano: String,
    attributes: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Stamp {
    sender: String,
    sequence: String,
    dropped: String,
    hops: u32,
    weight: f64,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Seal {
    key_id: u32,
    time_unix: String,
    mac_hex: String,
}

impl From<EventView<'_>> for Event {
    fn from(event: EventView<'_>) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Event {
            topic: event.topic().to_owned(),
            payload_hex: hex(event.payload()),
            key_hex: hex(event.key()),
            time_unix_nano: event.time_unix_nano().to_string(),
            attributes: event.attributes().map(own).collect(),
        }
    }
}

impl From<v1::Stamp> for Stamp {
    fn from(stamp: v1::Stamp) -> Self {
        Stamp {
            sender: stamp.sender.to_string(),
            sequence: stamp.sequence.to_string(),
            dropped: stamp.dropped.to_string(),
            hops: stamp.hops,
            weight: stamp.weight,
        }
    }
}

impl From<&v1::Seal> for Seal {
    fn from(seal: &v1::Seal) -> Self {
        Seal {
            key_id: seal.key_id,
            time_unix: seal.time_unix.to_string(),
            mac_hex: hex(&seal.mac),
        }
    }
}

fn control_name(control: &Control) -> &'static str {
    match control {
        Control::Subscribe(_) => "subscribe",
        Control::Unsubscribe(_) => "unsubscribe",
        Control::Challenge(_) => "challenge",
        Control::Lease(_) => "lease",
        Control::Refusal(_) => "refusal",
        Control::Ping(_) => "ping",
        Control::Pong(_) => "pong",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
fn from_hex(hex: &str) -> Vec<u8> {
    let digits = |pair: &[u8]| String::from_utf8(pair.to_vec()).expect("hex digits");
    let byte = |pair| u8::from_str_radix(&digits(pair), 16).expect("hex digits");
    assert_eq!(hex.len() % 2, 0, "two digits a byte");
    hex.as_bytes().chunks(2).map(byte).collect()
}

#[cfg(test)]
fn read<T: for<'a> Deserialize<'a>>(file: &str) -> T {
    let path = format!("{}/../tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the file is there");
    serde_json::from_str(&text).expect("the file is as its README says")
}

#[cfg(test)]
impl Datagram {
    fn bytes(&self) -> Vec<u8> {
        from_hex(&self.hex).repeat(self.repeat)
    }

    fn check(&self, frame: &FrameView<'_>) {
        let name = &self.name;
        let events: Vec<Event> = frame.events().map(Event::from).collect();
        let expected: Vec<Event> = self
            .events
            .iter()
            .cloned()
            .cycle()
            .take(self.events.len() * self.repeat)
            .collect();
        assert_eq!(events, expected, "{name}");
        assert_eq!(
            frame.stamp().copied().map(Stamp::from),
            self.stamp,
            "{name}"
        );
        assert_eq!(
            frame.control().map(control_name),
            self.control.as_deref(),
            "{name}"
        );
        assert_eq!(frame.seal().map(Seal::from), self.seal, "{name}");
    }
}

#[test]
fn datagrams() {
    let mut decoder = Decoder::new();
    let mut names = BTreeSet::new();
    for datagram in read::<Vec<Datagram>>("frames.json") {
        let bytes = datagram.bytes();
        assert!(
            names.insert(datagram.name.clone()),
            "{} comes twice",
            datagram.name
        );
        let verdict = check_against_prost(&mut decoder, &bytes);
        assert_eq!(
            verdict.is_ok(),
            datagram.valid,
            "{}: {verdict:?}",
            datagram.name
        );
        if let Ok(frame) = decoder.decode(&bytes) {
            datagram.check(&frame);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Topics {
    topics: Vec<Named>,
    patterns: Vec<Named>,
    matches: Vec<Match>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    #[serde(alias = "topic", alias = "pattern")]
    text: String,
    why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {
    pattern: String,
    topic: String,
    matches: bool,
}

fn why(verdict: Result<(), TopicError>) -> Option<&'static str> {
    verdict.err().map(|error| match error {
        TopicError::Empty => "empty",
        TopicError::TooLong => "too_long",
        TopicError::TooManyTokens => "too_many_tokens",
        TopicError::EmptyToken => "empty_token",
        TopicError::BadByte => "bad_byte",
        TopicError::PartialWildcard => "partial_wildcard",
        TopicError::TailNotLast => "tail_not_last",
        _ => "unknown",
    })
}

#[test]
fn topics() {
    let file: Topics = read("topics.json");
    for topic in &file.topics {
        let verdict = why(check_topic(topic.text.as_bytes()));
        assert_eq!(verdict, topic.why.as_deref(), "topic {:?}", topic.text);
    }
    for pattern in &file.patterns {
        let verdict = why(check_pattern(pattern.text.as_bytes()));
        assert_eq!(
            verdict,
            pattern.why.as_deref(),
            "pattern {:?}",
            pattern.text
        );
    }
    for case in &file.matches {
        let (pattern, topic) = (case.pattern.as_bytes(), case.topic.as_bytes());
        assert_eq!(check_pattern(pattern), Ok(()), "{}", case.pattern);
        assert_eq!(check_topic(topic), Ok(()), "{}", case.topic);
        let is_match = matches(pattern, topic);
        assert_eq!(
            is_match, case.matches,
            "{} for {}",
            case.pattern, case.topic
        );
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flow {
    name: String,
    #[serde(rename = "why")]
    _why: String,
    first: Option<First>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    at_ms: u64,
    sequence: String,
    dropped: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    at_ms: Option<u64>,
    frame: Option<FlowFrame>,
    then: Then,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowFrame {
    sequence: String,
    dropped: String,
    events: u64,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Then {
    received: u64,
    lost: u64,
    dropped: u64,
    duplicates: u64,
    awaited: u64,
}

impl From<&Tracker> for Then {
    fn from(flow: &Tracker) -> Self {
        let counts = flow.counts();
        Then {
            received: counts.received,
            lost: counts.lost,
            dropped: counts.dropped,
            duplicates: counts.duplicates,
            awaited: flow.awaited(),
        }
    }
}

#[cfg(test)]
fn position(sequence: &str, dropped: &str) -> Position {
    Position {
        sequence: sequence.parse().expect("a number"),
        dropped: dropped.parse().expect("a number"),
    }
}

#[cfg(test)]
impl Flow {
    fn begin(&self) -> Tracker {
        let Some(First {
            at_ms,
            sequence,
            dropped,
        }) = &self.first
        else {
            return Tracker::from_zero();
        };
        Tracker::from_first(Duration::from_millis(*at_ms), position(sequence, dropped))
    }
}

#[cfg(test)]
impl Step {
    fn apply(&self, flow: &mut Tracker) {
        let now = self.at_ms.map(Duration::from_millis);
        match (&self.frame, now) {
            (Some(frame), Some(now)) => {
                let at = position(&frame.sequence, &frame.dropped);
                flow.record(now, at, frame.events);
            }
            (None, Some(now)) => {
                flow.settle(now);
            }
            (None, None) => {
                flow.settle_all();
            }
            (Some(_), None) => panic!("a frame comes at some time"),
        }
    }
}

#[test]
fn flows() {
    for case in read::<Vec<Flow>>("flows.json") {
        let mut flow = case.begin();
        for (number, step) in case.steps.iter().enumerate() {
            step.apply(&mut flow);
            assert_eq!(Then::from(&flow), step.then, "{}, step {number}", case.name);
        }
    }
}
