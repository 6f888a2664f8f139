//! Frames of Hail Mary: protobuf, one frame a datagram.
//!
//! Writes by `hailmary-proto`; reads by a walk over the frame's fields that finds payloads and
//! skips the rest, as the other protocols' scanners do.

use std::ops::Range;

use hailmary_proto::write::{EventParts, write_event};

use super::{Step, Unexpected, Wire, tail};
use crate::event::TOPIC;

/// Hail Mary.
#[derive(Debug)]
pub struct HailMary;

/// The key of `Frame.events`, with its wire type.
const FRAME_EVENT: u8 = 0x0A;
/// The key of `Frame.stamp`.
const FRAME_STAMP: u8 = 0x12;
/// The key of `Event.payload`.
const EVENT_PAYLOAD: u8 = 0x12;

/// The wire type of a field behind its length, and the bits that it is told by.
const DELIMITED: u8 = 2;
const WIRE_TYPE: u8 = 7;

/// A length within a datagram has at most so many bytes.
const LENGTH_BYTES_MAX: usize = 3;

impl Wire for HailMary {
    fn put_event(out: &mut Vec<u8>, payload: &[u8]) -> Range<usize> {
        // Here the payload has no topic, key, time or attribute behind it.
        let parts = EventParts {
            topic: TOPIC,
            payload,
            ..EventParts::default()
        };
        write_event(out, &parts);
        tail(out, payload.len(), 0)
    }

    /// One field of the frame. In a datagram nothing is partial: what is, is unexpected to whoever
    /// scans a whole one.
    #[inline]
    fn step(bytes: &[u8]) -> Result<Step, Unexpected> {
        let Some((key, body)) = delimited(bytes, 0)? else {
            return Ok(Step::Partial);
        };
        let end = body.end;
        match key {
            FRAME_EVENT => Ok(Step::Event {
                payload: payload(bytes.get(..end).unwrap_or_default(), body)?,
                bytes: end,
            }),
            FRAME_STAMP => Ok(Step::Other { bytes: end }),
            _ => Err(Unexpected),
        }
    }
}

/// Where in `bytes` the payload of the event lies that has its fields at `fields`, to the end.
#[inline]
fn payload(bytes: &[u8], fields: Range<usize>) -> Result<Range<usize>, Unexpected> {
    let mut at = fields.start;
    while at < fields.end {
        match delimited(bytes, at)? {
            Some((EVENT_PAYLOAD, body)) => return Ok(body),
            Some((_, body)) => at = body.end,
            None => return Err(Unexpected),
        }
    }
    Ok(fields.end..fields.end)
}

/// The key and the place of the field that begins there, if it is whole.
#[inline]
fn delimited(bytes: &[u8], at: usize) -> Result<Option<(u8, Range<usize>)>, Unexpected> {
    let Some((&key, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    if key & WIRE_TYPE != DELIMITED || key >= 0x80 {
        return Err(Unexpected);
    }
    let mut length = 0;
    for (index, byte) in rest.iter().take(LENGTH_BYTES_MAX).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if *byte < 0x80 {
            let start = at + 1 + index + 1;
            let body = start..start + length;
            return Ok((body.end <= bytes.len()).then_some((key, body)));
        }
    }
    if rest.len() < LENGTH_BYTES_MAX {
        Ok(None)
    } else {
        Err(Unexpected)
    }
}

#[cfg(test)]
mod tests {
    use hailmary_proto::v1;
    use hailmary_proto::write::StampBytes;

    use super::super::tests::{holds_at_every_cut, says_where_the_payload_lies};
    use super::*;

    #[test]
    fn reads_fields_wherever_they_are_cut() {
        let long = [0x0A; 300];
        let stamp = v1::Stamp {
            sender: 7,
            sequence: 300,
            ..v1::Stamp::default()
        };
        let mut frame = StampBytes::new(&stamp).as_slice().to_vec();
        for payload in [b"1".as_slice(), &long, b""] {
            write_event(
                &mut frame,
                &EventParts {
                    topic: "a.b",
                    payload,
                    key: b"key",
                    attributes: &[("name", "value")],
                    ..EventParts::default()
                },
            );
        }
        holds_at_every_cut::<HailMary>(&frame, &[b"1", &long, b""]);
    }

    #[test]
    fn says_where_payloads_lie() {
        says_where_the_payload_lies::<HailMary>();
    }

    #[test]
    fn refuses_what_no_frame_has() {
        for frame in [
            b"\x0a\x04\x12\x05ab".as_slice(),
            b"\x0a\x80\x80\x80",
            b"\x08\x01",
            b"\x1a\x00",
            b"\x8a\x00",
        ] {
            assert_eq!(HailMary::step(frame), Err(Unexpected), "{frame:?}");
        }
    }
}
