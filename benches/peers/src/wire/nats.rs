//! The client protocol of NATS: lines of text, payloads behind their length.
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>

use std::io::{self, Read, Write};
use std::ops::Range;

use memchr::memchr;

use super::{Greet, Role, Step, Unexpected, Wire, tail};
use crate::event::TOPIC;

/// NATS, as of protocol version 0: no headers, no echo to oneself.
#[derive(Debug)]
pub struct Nats;

/// The longest line that is waited for: INFO, with the server's own limit of a control line (4 KiB)
/// and room to spare.
const LINE_BYTES_MAX: usize = 16 << 10;

/// The length at the end of a line has at most so many digits: a payload has at most 64 MiB.
const DIGITS_MAX: usize = 8;

impl Greet for Nats {
    fn greet(stream: &mut (impl Read + Write), role: Role) -> io::Result<()> {
        let connect = r#"CONNECT {"verbose":false,"pedantic":false,"echo":false,"protocol":0}"#;
        let hello = match role {
            Role::Publisher => format!("{connect}\r\n"),
            Role::Subscriber => format!("{connect}\r\nSUB {TOPIC} 1\r\n"),
        };
        stream.write_all(hello.as_bytes())
    }
}

impl Wire for Nats {
    fn put_event(out: &mut Vec<u8>, payload: &[u8]) -> Range<usize> {
        out.extend_from_slice(format!("PUB {TOPIC} {}\r\n", payload.len()).as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
        tail(out, payload.len(), 2)
    }

    /// `MSG subject sid length`, or a line: `INFO`, `PING`, `PONG`. A PING may stay without an
    /// answer for four minutes by default, longer than any run here.
    #[inline]
    fn step(bytes: &[u8]) -> Result<Step, Unexpected> {
        let Some(line_end) = memchr(b'\n', bytes) else {
            return if bytes.len() < LINE_BYTES_MAX {
                Ok(Step::Partial)
            } else {
                Err(Unexpected)
            };
        };
        let line = bytes.get(..line_end).ok_or(Unexpected)?;
        match line.first() {
            Some(b'M') => message(bytes, line),
            Some(b'I' | b'P' | b'+') => Ok(Step::Other {
                bytes: line_end + 1,
            }),
            _ => Err(Unexpected),
        }
    }
}

fn message(bytes: &[u8], line: &[u8]) -> Result<Step, Unexpected> {
    let length = last_number(line.strip_suffix(b"\r").ok_or(Unexpected)?)?;
    let start = line.len() + 1;
    let end = start + length + 2;
    match bytes.get(start + length..end) {
        None => Ok(Step::Partial),
        Some(b"\r\n") => Ok(Step::Event {
            payload: start..start + length,
            bytes: end,
        }),
        Some(_) => Err(Unexpected),
    }
}

/// The number at the end of a line, behind a space.
fn last_number(line: &[u8]) -> Result<usize, Unexpected> {
    let mut number = 0;
    let mut unit = 1;
    for byte in line.iter().rev().take(DIGITS_MAX + 1) {
        match byte {
            b'0'..=b'9' => number += usize::from(byte - b'0') * unit,
            b' ' if unit > 1 => return Ok(number),
            _ => return Err(Unexpected),
        }
        unit *= 10;
    }
    Err(Unexpected)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holds_at_every_cut, says_where_the_payload_lies};
    use super::*;

    #[test]
    fn reads_messages_wherever_they_are_cut() {
        let long = [b'\n'; 130];
        let mut stream = b"INFO {\"a\":1}\r\nPING\r\nMSG a.b 1 3\r\n1\r\n\r\n+OK\r\n".to_vec();
        stream.extend_from_slice(b"MSG a.b 1 130\r\n");
        stream.extend_from_slice(&long);
        stream.extend_from_slice(b"\r\nMSG a 1 0\r\n\r\nPONG\r\n");
        holds_at_every_cut::<Nats>(&stream, &[b"1\r\n", &long, b""]);
    }

    #[test]
    fn writes_what_a_server_reads() {
        says_where_the_payload_lies::<Nats>();
        let mut out = Vec::new();
        Nats::put_event(&mut out, b"abc");
        assert_eq!(out, b"PUB search.index.photo 3\r\nabc\r\n");
    }

    #[test]
    fn refuses_errors_and_lengths_that_are_none() {
        for stream in [
            b"-ERR 'Slow Consumer'\r\n".as_slice(),
            b"MSG a 1 \r\n\r\n",
            b"MSG a 1 1x\r\n1\r\n",
            b"MSG a 1 123456789\r\n",
            b"MSG a 1 1\r\n1xx",
            b"3\r\n",
            &[b'I'; LINE_BYTES_MAX],
        ] {
            assert_eq!(
                Nats::step(stream),
                Err(Unexpected),
                "{}",
                stream.escape_ascii()
            );
        }
    }
}
