//! The protocol of Redis, version 2: arrays of strings, each behind its length.
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use std::io::{self, Read, Write};
use std::ops::Range;

use memchr::memchr;

use super::{Greet, Role, Step, Unexpected, Wire, tail};
use crate::event::TOPIC;

/// Redis Pub/Sub.
#[derive(Debug)]
pub struct Redis;

/// A length has at most so many digits: a string has at most 512 MiB.
const DIGITS_MAX: usize = 9;

impl Greet for Redis {
    /// A publisher wants no replies: they would cost the server a write each, and somebody would
    /// have to read them.
    fn greet(stream: &mut (impl Read + Write), role: Role) -> io::Result<()> {
        let mut out = Vec::new();
        match role {
            Role::Publisher => put_array(&mut out, &[b"CLIENT", b"REPLY", b"OFF"]),
            Role::Subscriber => put_array(&mut out, &[b"SUBSCRIBE", TOPIC.as_bytes()]),
        }
        stream.write_all(&out)
    }
}

impl Wire for Redis {
    fn put_event(out: &mut Vec<u8>, payload: &[u8]) -> Range<usize> {
        put_array(out, &[b"PUBLISH", TOPIC.as_bytes(), payload]);
        tail(out, payload.len(), 2)
    }

    /// `message`, channel and payload; or `subscribe`, channel and a number.
    #[inline]
    fn step(bytes: &[u8]) -> Result<Step, Unexpected> {
        let mut reader = Reader { bytes, at: 0 };
        match reader.push() {
            Ok(step) => Ok(step),
            Err(Stop::Partial) => Ok(Step::Partial),
            Err(Stop::Unexpected) => Err(Unexpected),
        }
    }
}

fn put_array(out: &mut Vec<u8>, strings: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", strings.len()).as_bytes());
    for string in strings {
        out.extend_from_slice(format!("${}\r\n", string.len()).as_bytes());
        out.extend_from_slice(string);
        out.extend_from_slice(b"\r\n");
    }
}

enum Stop {
    Partial,
    Unexpected,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    #[inline]
    fn push(&mut self) -> Result<Step, Stop> {
        if self.number(b'*')? != 3 {
            return Err(Stop::Unexpected);
        }
        let word = self.string()?;
        self.string()?;
        if self.bytes.get(word) == Some(b"message") {
            let payload = self.string()?;
            let bytes = self.at;
            Ok(Step::Event { payload, bytes })
        } else {
            self.number(b':')?;
            Ok(Step::Other { bytes: self.at })
        }
    }

    #[inline]
    fn string(&mut self) -> Result<Range<usize>, Stop> {
        let length = self.number(b'$')?;
        let string = self.at..self.at + length;
        let end = string.end + 2;
        match self.bytes.get(string.end..end) {
            None => Err(Stop::Partial),
            Some(b"\r\n") => {
                self.at = end;
                Ok(string)
            }
            Some(_) => Err(Stop::Unexpected),
        }
    }

    /// A line of this mark and a number.
    #[inline]
    fn number(&mut self, mark: u8) -> Result<usize, Stop> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (&first, digits) = rest.split_first().ok_or(Stop::Partial)?;
        if first != mark {
            return Err(Stop::Unexpected);
        }
        // The mark of the longest line is followed by its digits and two bytes of end.
        let line = digits.get(..DIGITS_MAX + 2).unwrap_or(digits);
        let Some(line_end) = memchr(b'\n', line) else {
            return Err(if line.len() < DIGITS_MAX + 2 {
                Stop::Partial
            } else {
                Stop::Unexpected
            });
        };
        let number = digits
            .get(..line_end)
            .and_then(|line| line.strip_suffix(b"\r"));
        self.at += 1 + line_end + 1;
        number.and_then(decimal).ok_or(Stop::Unexpected)
    }
}

#[inline]
fn decimal(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0, |number: usize, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + usize::from(byte - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holds_at_every_cut, says_where_the_payload_lies};
    use super::*;

    #[test]
    fn reads_messages_wherever_they_are_cut() {
        let long = [b'\n'; 130];
        let mut stream = b"*3\r\n$9\r\nsubscribe\r\n$3\r\na.b\r\n:1\r\n".to_vec();
        stream.extend_from_slice(b"*3\r\n$7\r\nmessage\r\n$3\r\na.b\r\n$3\r\n1\r\n\r\n");
        put_array(&mut stream, &[b"message", b"a.b", &long]);
        put_array(&mut stream, &[b"message", b"a.b", b""]);
        holds_at_every_cut::<Redis>(&stream, &[b"1\r\n", &long, b""]);
    }

    #[test]
    fn writes_what_a_server_reads() {
        says_where_the_payload_lies::<Redis>();
        let mut out = Vec::new();
        Redis::put_event(&mut out, b"abc");
        let expected = b"*3\r\n$7\r\nPUBLISH\r\n$18\r\nsearch.index.photo\r\n$3\r\nabc\r\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn refuses_errors_and_lengths_that_are_none() {
        for stream in [
            b"-ERR unknown command\r\n".as_slice(),
            b"*2\r\n",
            b"*3\r\n$-1\r\n",
            b"*3\r\n$\r\n",
            b"*3\r\n$12345678901",
            b"*3\r\n$1\nx\r\n",
            b"*3\r\n$1\r\nxyz",
        ] {
            assert_eq!(
                Redis::step(stream),
                Err(Unexpected),
                "{}",
                stream.escape_ascii()
            );
        }
    }
}
