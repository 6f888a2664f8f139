//! The protocols: how an event is written, and how one is found in what arrives.
//!
//! Owns each protocol's bytes and nothing else: sockets, buffers and counting are the same for
//! all and live elsewhere. So the clients differ by these few functions alone. That the way is open
//! shows by an event that comes through, whatever a protocol says of it: so a client waits for no
//! answer where its protocol lets it speak on without one.

pub mod hailmary;
pub mod mqtt;
pub mod nats;
pub mod resp;
pub mod zmtp;

use std::io::{self, Read, Write};
use std::ops::Range;

use anyhow::anyhow;

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It sends events.
    Publisher,
    /// It receives those of [`TOPIC`](crate::event::TOPIC).
    Subscriber,
}

/// What lies at the beginning of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An event, whose payload lies here.
    Event {
        /// Where the payload lies.
        payload: Range<usize>,
        /// How many bytes the event takes.
        bytes: usize,
    },
    /// Something that a subscriber may skip.
    Other {
        /// How many bytes it takes.
        bytes: usize,
    },
    /// A part of something, whose rest has not arrived.
    Partial,
}

/// The other side said what nobody expected, or that it refuses.
#[derive(Debug, PartialEq, Eq)]
pub struct Unexpected;

/// A protocol.
pub trait Wire {
    /// Appends an event with this payload, as a publisher sends it, and says where in `out` the
    /// payload lies.
    fn put_event(out: &mut Vec<u8>, payload: &[u8]) -> Range<usize>;

    /// Looks at the beginning of what a subscriber has received and not yet used.
    ///
    /// # Errors
    ///
    /// Where it is nothing that the protocol has, or a refusal.
    fn step(bytes: &[u8]) -> Result<Step, Unexpected>;
}

/// A protocol over a stream.
pub trait Greet: Wire {
    /// Says what comes before the first event, and reads no more than it must.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    fn greet(stream: &mut (impl Read + Write), role: Role) -> io::Result<()>;
}

/// Hands every whole event's payload to `take` and says how many bytes were used.
///
/// # Errors
///
/// With the beginning of what was not expected.
#[inline]
pub fn scan<W: Wire>(bytes: &[u8], mut take: impl FnMut(&[u8])) -> anyhow::Result<usize> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let used = match W::step(rest) {
            Ok(Step::Event { payload, bytes }) => {
                take(rest.get(payload).unwrap_or_default());
                bytes
            }
            Ok(Step::Other { bytes }) => bytes,
            Ok(Step::Partial) => break,
            Err(Unexpected) => return Err(unexpected(rest)),
        };
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok(bytes.len() - rest.len())
}

#[cold]
fn unexpected(rest: &[u8]) -> anyhow::Error {
    let beginning: Vec<u8> = rest.iter().copied().take(80).collect();
    anyhow!("unexpected from the bus: {}", beginning.escape_ascii())
}

/// Where in `out` the last `length` bytes lie but for those `behind` them.
fn tail(out: &[u8], length: usize, behind: usize) -> Range<usize> {
    let end = out.len() - behind;
    end - length..end
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans `stream` in two reads for every place that it can be cut at, and byte by byte:
    /// whatever the cuts, the same payloads come out.
    pub fn holds_at_every_cut<W: Wire>(stream: &[u8], payloads: &[&[u8]]) {
        for cut in 0..=stream.len() {
            assert_eq!(
                read_in_parts::<W>(&[&stream[..cut], &stream[cut..]]),
                payloads
            );
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read_in_parts::<W>(&bytes), payloads);
    }

    fn read_in_parts<W: Wire>(parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        let mut unread = Vec::new();
        for part in parts {
            unread.extend_from_slice(part);
            let used = scan::<W>(&unread, |payload| payloads.push(payload.to_vec())).unwrap();
            unread.drain(..used);
        }
        assert!(unread.is_empty(), "{unread:?} is left");
        payloads
    }

    /// The payload that `put_event` speaks of is where it says, behind other events too.
    pub fn says_where_the_payload_lies<W: Wire>() {
        let mut out = Vec::new();
        for payload in [b"one".as_slice(), &[b'2'; 300]] {
            let place = W::put_event(&mut out, payload);
            assert_eq!(&out[place], payload);
        }
    }
}
