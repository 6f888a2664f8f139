//! A frame as the oracle reads it: by prost, and by a walk of its own for what prost does not show,
//! the events' bytes. It has nothing to do with the view that the bus reads frames by.

use hailmary_proto::v1::Frame;
use prost::Message;

/// A frame and its events' whole fields, tags and lengths included, in their order.
pub struct Read<'a> {
    pub frame: Frame,
    pub slices: Vec<&'a [u8]>,
}

/// Reads a datagram, if it is a frame.
pub fn read(datagram: &[u8]) -> Option<Read<'_>> {
    let frame = Frame::decode(datagram).ok()?;
    let slices = event_slices(datagram)?;
    (slices.len() == frame.events.len()).then_some(Read { frame, slices })
}

const EVENT_FIELD: u64 = 1;

/// What kind of value a field has.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const DELIMITED: u64 = 2;
const GROUP_START: u64 = 3;
const GROUP_END: u64 = 4;
const FIXED32: u64 = 5;

fn event_slices(datagram: &[u8]) -> Option<Vec<&[u8]>> {
    let mut slices = Vec::new();
    let mut at = 0;
    let mut open_groups = 0_u32;
    while at < datagram.len() {
        let start = at;
        let key = varint(datagram, &mut at)?;
        match key & 7 {
            VARINT => drop(varint(datagram, &mut at)?),
            FIXED64 => at += 8,
            FIXED32 => at += 4,
            DELIMITED => {
                let length = varint(datagram, &mut at)?;
                at = at.checked_add(usize::try_from(length).ok()?)?;
            }
            GROUP_START => open_groups += 1,
            GROUP_END => open_groups = open_groups.checked_sub(1)?,
            _ => return None,
        }
        let field = datagram.get(start..at)?;
        if open_groups == 0 && key & 7 == DELIMITED && key >> 3 == EVENT_FIELD {
            slices.push(field);
        }
    }
    Some(slices)
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Whether this is a topic: 1 to 255 bytes, up to 16 tokens of `[A-Za-z0-9_:/-]+`.
pub fn is_topic(topic: &str) -> bool {
    let is_byte = |c: char| c.is_ascii_alphanumeric() || "_:/-".contains(c);
    let is_token = |token: &str| !token.is_empty() && token.chars().all(is_byte);
    (1..=255).contains(&topic.len())
        && topic.split('.').count() <= 16
        && topic.split('.').all(is_token)
}

/// Whether this is a pattern: tokens of a topic, or `*`, or at the end `>`.
pub fn is_pattern(pattern: &str) -> bool {
    let tokens: Vec<&str> = pattern.split('.').collect();
    let last = tokens.len() - 1;
    let plain = tokens.iter().enumerate().map(|(at, token)| match *token {
        "*" => "a",
        ">" if at == last => "a",
        other => other,
    });
    pattern.len() <= 255 && is_topic(&plain.collect::<Vec<_>>().join("."))
}

/// Whether a pattern stands for a topic, the bus's own topics like any others.
pub fn covers(pattern: &str, topic: &str) -> bool {
    let (pattern, topic): (Vec<_>, Vec<_>) =
        (pattern.split('.').collect(), topic.split('.').collect());
    if pattern.last() == Some(&">") {
        let head = pattern.len() - 1;
        return topic.len() > head && fits(&pattern[..head], &topic[..head]);
    }
    pattern.len() == topic.len() && fits(&pattern, &topic)
}

fn fits(pattern: &[&str], topic: &[&str]) -> bool {
    let mut both = pattern.iter().zip(topic);
    both.all(|(wanted, token)| *wanted == "*" || wanted == token)
}

/// Whether a topic or pattern is of those that the bus keeps for itself.
pub fn is_reserved(text: &str) -> bool {
    text.split('.').next() == Some("_hailmary")
}

/// Whether whoever asks for a pattern gets a topic.
pub fn wants(pattern: &str, topic: &str) -> bool {
    covers(pattern, topic) && (!is_reserved(topic) || is_reserved(pattern))
}
