//! MQTT 3.1.1 at quality of service 0: packets of a type, a length and a body.
//! <https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html>

use std::io::{self, Read, Write};
use std::ops::Range;

use super::{Greet, Role, Step, Unexpected, Wire, tail};
use crate::event::TOPIC;

/// MQTT, as Mosquitto speaks it.
#[derive(Debug)]
pub struct Mqtt;

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
/// With no flags: quality of service 0, not retained.
const PUBLISH: u8 = 0x30;
/// With the flags that the standard wants.
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// A length has at most so many bytes (section 2.2.3).
const LENGTH_BYTES_MAX: usize = 4;

/// No keep-alive: a run is short, and a silent client is none that has gone.
const KEEP_ALIVE_SECONDS: u16 = 0;

/// The flag of CONNECT that asks for a clean session.
const CLEAN_SESSION: u8 = 2;

impl Greet for Mqtt {
    /// A client may speak on before CONNACK (section 3.1.4).
    fn greet(stream: &mut (impl Read + Write), role: Role) -> io::Result<()> {
        let mut body = Vec::new();
        put_text(&mut body, "MQTT");
        body.extend_from_slice(&[4, CLEAN_SESSION]);
        body.extend_from_slice(&KEEP_ALIVE_SECONDS.to_be_bytes());
        // No client id: the broker makes one.
        put_text(&mut body, "");
        let mut out = Vec::new();
        put_packet(&mut out, CONNECT, &body);
        if role == Role::Subscriber {
            put_packet(&mut out, SUBSCRIBE, &subscription());
        }
        stream.write_all(&out)
    }
}

impl Wire for Mqtt {
    fn put_event(out: &mut Vec<u8>, payload: &[u8]) -> Range<usize> {
        let mut body = Vec::new();
        put_text(&mut body, TOPIC);
        body.extend_from_slice(payload);
        put_packet(out, PUBLISH, &body);
        tail(out, payload.len(), 0)
    }

    #[inline]
    fn step(bytes: &[u8]) -> Result<Step, Unexpected> {
        let Some((&kind, rest)) = bytes.split_first() else {
            return Ok(Step::Partial);
        };
        let Some((length, length_bytes)) = length(rest)? else {
            return Ok(Step::Partial);
        };
        let start = 1 + length_bytes;
        let end = start + length;
        match (kind, bytes.get(start..end)) {
            (PUBLISH | CONNACK | SUBACK, None) => Ok(Step::Partial),
            (PUBLISH, Some(body)) => {
                let payload = start + payload_start(body)?..end;
                Ok(Step::Event {
                    payload,
                    bytes: end,
                })
            }
            (CONNACK, Some([_, 0])) | (SUBACK, Some([_, _, 0])) => Ok(Step::Other { bytes: end }),
            _ => Err(Unexpected),
        }
    }
}

/// One topic, at quality of service 0.
fn subscription() -> Vec<u8> {
    let packet_id: u16 = 1;
    let mut body = packet_id.to_be_bytes().to_vec();
    put_text(&mut body, TOPIC);
    body.push(0);
    body
}

fn put_packet(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    out.push(kind);
    let mut length = body.len();
    while length >= 0x80 {
        out.push(low_seven_bits(length) | 0x80);
        length >>= 7;
    }
    out.push(low_seven_bits(length));
    out.extend_from_slice(body);
}

fn low_seven_bits(number: usize) -> u8 {
    u8::try_from(number & 0x7F).unwrap_or_default()
}

/// A text behind its length; what is too long for one is left out.
fn put_text(out: &mut Vec<u8>, text: &str) {
    if let Ok(length) = u16::try_from(text.len()) {
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
}

/// The length at the beginning of these bytes and how many bytes it has itself, if it is whole.
#[inline]
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Unexpected> {
    let mut length = 0;
    for (index, byte) in bytes.iter().take(LENGTH_BYTES_MAX).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if *byte < 0x80 {
            return Ok(Some((length, index + 1)));
        }
    }
    if bytes.len() < LENGTH_BYTES_MAX {
        Ok(None)
    } else {
        Err(Unexpected)
    }
}

/// Where the payload of a PUBLISH begins: at quality of service 0, right behind the topic.
#[inline]
fn payload_start(body: &[u8]) -> Result<usize, Unexpected> {
    let topic_bytes = body.first_chunk().ok_or(Unexpected)?;
    let start = 2 + usize::from(u16::from_be_bytes(*topic_bytes));
    if start <= body.len() {
        Ok(start)
    } else {
        Err(Unexpected)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holds_at_every_cut, says_where_the_payload_lies};
    use super::*;
    use std::io::Cursor;

    #[test]
    fn reads_packets_wherever_they_are_cut() {
        let long = [0x30; 400];
        let mut stream = vec![CONNACK, 2, 0, 0, SUBACK, 3, 0, 1, 0];
        Mqtt::put_event(&mut stream, b"1");
        Mqtt::put_event(&mut stream, &long);
        Mqtt::put_event(&mut stream, b"");
        holds_at_every_cut::<Mqtt>(&stream, &[b"1", &long, b""]);
    }

    #[test]
    fn writes_what_a_broker_reads() {
        says_where_the_payload_lies::<Mqtt>();
        let mut out = Vec::new();
        Mqtt::put_event(&mut out, b"abc");
        assert_eq!(out, b"\x30\x17\x00\x12search.index.photoabc");
        let mut stream = Cursor::new(Vec::new());
        Mqtt::greet(&mut stream, Role::Subscriber).unwrap();
        assert_eq!(
            stream.into_inner(),
            b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00\x82\x17\x00\x01\x00\x12search.index.photo\x00"
        );
    }

    #[test]
    fn refuses_refusals_and_lengths_that_are_none() {
        for stream in [
            [CONNACK, 2, 0, 5].as_slice(),
            &[SUBACK, 3, 0, 1, 0x80],
            &[PUBLISH, 0x80, 0x80, 0x80, 0x80],
            &[PUBLISH, 1, 0],
            &[PUBLISH, 3, 0, 2, b'a'],
            &[0x32, 2, 0, 0],
        ] {
            assert_eq!(Mqtt::step(stream), Err(Unexpected), "{stream:?}");
        }
    }
}
