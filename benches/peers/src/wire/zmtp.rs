//! ZMTP 3.0, the protocol of ZeroMQ, with the NULL mechanism: a greeting, a READY command, then
//! messages of frames. <https://rfc.zeromq.org/spec/23/>
//!
//! A message here has two frames, topic and payload, as ZeroMQ's guide does it.

use std::io::{self, Read, Write};
use std::ops::Range;

use super::{Greet, Role, Step, Unexpected, Wire, tail};
use crate::event::TOPIC;

/// ZeroMQ.
#[derive(Debug)]
pub struct Zmtp;

/// Another frame of the same message follows.
const MORE: u8 = 1;
/// The length has eight bytes instead of one.
const LONG: u8 = 2;
/// A command, not a message.
const COMMAND: u8 = 4;

const SIGNATURE_FIRST: u8 = 0xFF;
const SIGNATURE_LAST: u8 = 0x7F;
const GREETING_BYTES: usize = 64;
/// Where the mechanism's name lies in the greeting, behind the signature and the version.
const MECHANISM: Range<usize> = 12..32;

/// What begins a subscription; the topic follows.
const SUBSCRIBE: u8 = 1;

/// The longest frame that is taken, in bytes: far above every event here.
const FRAME_BYTES_MAX: usize = 1 << 20;

impl Greet for Zmtp {
    /// Each side must have heard the other's READY before it speaks on: libzmq hangs up on a
    /// subscription that comes earlier.
    fn greet(stream: &mut (impl Read + Write), role: Role) -> io::Result<()> {
        stream.write_all(&greeting())?;
        stream.read_exact(&mut [0; GREETING_BYTES])?;
        let socket_type = match role {
            Role::Publisher => "PUB",
            Role::Subscriber => "SUB",
        };
        stream.write_all(&ready(socket_type))?;
        skip_ready(stream)?;
        match role {
            Role::Publisher => Ok(()),
            Role::Subscriber => stream.write_all(&subscription()),
        }
    }
}

impl Wire for Zmtp {
    fn put_event(out: &mut Vec<u8>, payload: &[u8]) -> Range<usize> {
        put_frame(out, MORE, TOPIC.as_bytes());
        put_frame(out, 0, payload);
        tail(out, payload.len(), 0)
    }

    #[inline]
    fn step(bytes: &[u8]) -> Result<Step, Unexpected> {
        let Some(first) = frame(bytes, 0)? else {
            return Ok(Step::Partial);
        };
        match first.flags & (MORE | COMMAND) {
            COMMAND => Ok(Step::Other {
                bytes: first.body.end,
            }),
            MORE => payload_frame(bytes, first.body.end),
            _ => Err(Unexpected),
        }
    }
}

/// The second and last frame of a message.
#[inline]
fn payload_frame(bytes: &[u8], at: usize) -> Result<Step, Unexpected> {
    match frame(bytes, at)? {
        None => Ok(Step::Partial),
        Some(Frame { flags, body }) if flags & (MORE | COMMAND) == 0 => Ok(Step::Event {
            bytes: body.end,
            payload: body,
        }),
        Some(_) => Err(Unexpected),
    }
}

struct Frame {
    flags: u8,
    body: Range<usize>,
}

/// The frame that begins there, if it is whole.
#[inline]
fn frame(bytes: &[u8], at: usize) -> Result<Option<Frame>, Unexpected> {
    let Some((&flags, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    let (length, start) = match flags & !(MORE | COMMAND) {
        0 => (rest.first().map(|length| usize::from(*length)), at + 2),
        LONG => (rest.first_chunk().map(long_length), at + 9),
        _ => return Err(Unexpected),
    };
    let Some(length) = length else {
        return Ok(None);
    };
    if length > FRAME_BYTES_MAX {
        return Err(Unexpected);
    }
    let body = start..start + length;
    Ok((body.end <= bytes.len()).then_some(Frame { flags, body }))
}

fn long_length(bytes: &[u8; 8]) -> usize {
    usize::try_from(u64::from_be_bytes(*bytes)).unwrap_or(usize::MAX)
}

fn greeting() -> Vec<u8> {
    let mut out = vec![0; GREETING_BYTES];
    for (at, bytes) in [
        (0..1, [SIGNATURE_FIRST].as_slice()),
        (9..10, &[SIGNATURE_LAST]),
        (10..12, &[3, 0]),
        (MECHANISM.start..MECHANISM.start + 4, b"NULL"),
    ] {
        if let Some(place) = out.get_mut(at) {
            place.copy_from_slice(bytes);
        }
    }
    out
}

fn subscription() -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, 0, &[&[SUBSCRIBE], TOPIC.as_bytes()].concat());
    out
}

/// Reads a short command, and that it is READY: an error would be one, too.
fn skip_ready(stream: &mut impl Read) -> io::Result<()> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let [flags, length] = head;
    let mut body = vec![0; usize::from(length)];
    stream.read_exact(&mut body)?;
    if flags == COMMAND && body.starts_with(b"\x05READY") {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// What ends the handshake: of the properties only the one that must be there.
fn ready(socket_type: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put_short(&mut body, b"READY");
    put_short(&mut body, b"Socket-Type");
    // A value's length has four bytes: three zeros in front.
    body.extend_from_slice(&[0; 3]);
    put_short(&mut body, socket_type.as_bytes());
    let mut out = Vec::new();
    put_frame(&mut out, COMMAND, &body);
    out
}

/// Bytes behind their length; what is too long for one is left out.
fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    if let Ok(length) = u8::try_from(bytes.len()) {
        out.push(length);
        out.extend_from_slice(bytes);
    }
}

fn put_frame(out: &mut Vec<u8>, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(length) => out.extend_from_slice(&[flags, length]),
        Err(_) => {
            out.push(flags | LONG);
            out.extend_from_slice(&u64::try_from(body.len()).unwrap_or(u64::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{holds_at_every_cut, says_where_the_payload_lies};
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn reads_messages_wherever_they_are_cut() {
        let long = [0xFF; 300];
        let mut stream = ready("XPUB");
        Zmtp::put_event(&mut stream, b"1");
        Zmtp::put_event(&mut stream, &long);
        Zmtp::put_event(&mut stream, b"");
        holds_at_every_cut::<Zmtp>(&stream, &[b"1", &long, b""]);
    }

    #[test]
    fn writes_what_a_peer_reads() {
        says_where_the_payload_lies::<Zmtp>();
        let mut out = Vec::new();
        Zmtp::put_event(&mut out, b"abc");
        assert_eq!(out, b"\x01\x12search.index.photo\x00\x03abc");
        let start = b"\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL";
        assert_eq!(greeting()[..start.len()], *start);
        assert_eq!(
            ready("PUB"),
            b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB"
        );
    }

    #[test]
    fn greets_a_peer_and_reads_nothing_behind_its_ready() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let answer = [greeting(), ready("XPUB"), b"rest".to_vec()].concat();
        there.write_all(&answer).unwrap();
        Zmtp::greet(&mut here, Role::Subscriber).unwrap();
        let mut rest = [0; 4];
        here.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"rest");
        drop(here);
        let mut said = Vec::new();
        there.read_to_end(&mut said).unwrap();
        assert_eq!(said, [greeting(), ready("SUB"), subscription()].concat());
    }

    #[test]
    fn refuses_a_peer_that_is_not_ready() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let answer = [greeting(), b"\x04\x08\x05ERROR\x01x".to_vec()].concat();
        there.write_all(&answer).unwrap();
        assert!(Zmtp::greet(&mut here, Role::Publisher).is_err());
    }

    #[test]
    fn refuses_frames_that_are_none() {
        for stream in [
            b"\x08\x01a".as_slice(),
            b"\x00\x01a",
            b"\x01\x01a\x01\x01b",
            b"\x01\x01a\x04\x01b",
            b"\x02\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(
                Zmtp::step(stream),
                Err(Unexpected),
                "{}",
                stream.escape_ascii()
            );
        }
    }
}
