//! Encodes what is sent often: events, stamps, and the body of a frame out of whole events.
//!
//! The bytes equal those that prost writes for the same messages, without building the messages
//! first. A frame is put together by concatenation: encoded fields one behind the other are a
//! frame, in whatever order. Control messages are rare and left to prost.
//!
//! This module refuses to check: a topic is written as it is given
//! ([`check_topic`](crate::topic::check_topic) says what is legal), and whether a datagram grows
//! too long is for its caller to see beforehand, by [`event_bytes`].

use crate::{key, v1};
use prost::Message;

/// The largest datagram, in bytes: what UDP over IPv4 carries at most (RFC 768, RFC 791: 65,535
/// less 20 of the IP header and 8 of the UDP header). No way that a frame takes carries less.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;

/// The most bytes of a stamp field: its key and length (1 each), `sender` (9), `sequence` and
/// `dropped` (11 each), `hops` (6) and `weight` (9), each with its own key.
pub const STAMP_BYTES_MAX: usize = 1 + 1 + 9 + 11 + 11 + 6 + 9;

/// Bytes of a stamp field up to its sender, that included, by [`StampBytes`]: its key and length
/// (1 each), and `sender` (9).
pub const STAMP_HEAD_BYTES: usize = 1 + 1 + 9;

/// The most bytes of an event field, by [`event_bytes`], that can be sent: alone in a datagram,
/// any stamp beside it still fits.
pub const EVENT_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - STAMP_BYTES_MAX;

/// What a first Subscribe and a Ping are padded to, in bytes. Every answer that a bus gives to an
/// unproven address (Challenge, Refusal, Pong; without a stamp) fits in it, so no such answer is
/// longer than what asked for it.
pub const UNPROVEN_REQUEST_BYTES_MIN: usize = 64;

/// The longest cookie, in bytes, with which a Challenge still fits in
/// [`UNPROVEN_REQUEST_BYTES_MIN`]: beside it are its own key and length (1 each), the nonce (9),
/// and the key and length of the Challenge (1 each).
pub const COOKIE_BYTES_MAX: usize = UNPROVEN_REQUEST_BYTES_MIN - 2 - 9 - 2;

/// What an event is made of, borrowed from wherever it is. What is empty or 0 is not written.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventParts<'a> {
    /// The topic. Not checked here.
    pub topic: &'a str,
    /// Opaque bytes.
    pub payload: &'a [u8],
    /// What groups and samples go by. Empty: no key.
    pub key: &'a [u8],
    /// When the event was made, in nanoseconds of Unix time. 0: not told.
    pub time_unix_nano: u64,
    /// Small facts beside the payload. Written in the order given; a name that comes twice has
    /// its last value for the reader.
    pub attributes: &'a [(&'a str, &'a str)],
}

/// How many bytes [`write_event`] appends for these parts.
#[must_use]
pub fn event_bytes(parts: &EventParts<'_>) -> usize {
    1 + delimited_bytes(event_body_bytes(parts))
}

/// Appends one event field, key and length included, to `out`.
///
/// ```
/// use hailmary_proto::write::{EventParts, event_bytes, write_event};
///
/// let parts = EventParts { topic: "search.index", payload: b"42", ..EventParts::default() };
/// let mut frame = Vec::new();
/// write_event(&mut frame, &parts);
/// assert_eq!(frame.len(), event_bytes(&parts));
/// assert_eq!(frame, b"\x0a\x12\x0a\x0csearch.index\x12\x0242");
/// ```
pub fn write_event(out: &mut Vec<u8>, parts: &EventParts<'_>) {
    let body_bytes = event_body_bytes(parts);
    out.reserve(1 + delimited_bytes(body_bytes));
    out.push(low_seven_bits(key::FRAME_EVENT));
    put_length(out, body_bytes);
    put_bytes(out, key::EVENT_TOPIC, parts.topic.as_bytes());
    put_bytes(out, key::EVENT_PAYLOAD, parts.payload);
    put_bytes(out, key::EVENT_KEY, parts.key);
    if parts.time_unix_nano != 0 {
        out.push(low_seven_bits(key::EVENT_TIME));
        out.extend_from_slice(&parts.time_unix_nano.to_le_bytes());
    }
    for (name, value) in parts.attributes {
        out.push(low_seven_bits(key::EVENT_ATTRIBUTE));
        put_length(out, attribute_body_bytes(name, value));
        put_bytes(out, key::ATTRIBUTE_NAME, name.as_bytes());
        put_bytes(out, key::ATTRIBUTE_VALUE, value.as_bytes());
    }
}

fn event_body_bytes(parts: &EventParts<'_>) -> usize {
    let time = if parts.time_unix_nano == 0 { 0 } else { 9 };
    let attributes: usize = parts
        .attributes
        .iter()
        .map(|(name, value)| 1 + delimited_bytes(attribute_body_bytes(name, value)))
        .sum();
    optional_bytes(parts.topic.len())
        + optional_bytes(parts.payload.len())
        + optional_bytes(parts.key.len())
        + time
        + attributes
}

fn attribute_body_bytes(name: &str, value: &str) -> usize {
    optional_bytes(name.len()) + optional_bytes(value.len())
}

/// What a string or bytes field of this length takes, with its key; nothing where it is empty.
fn optional_bytes(length: usize) -> usize {
    if length == 0 {
        0
    } else {
        1 + delimited_bytes(length)
    }
}

/// A length and what follows it.
fn delimited_bytes(length: usize) -> usize {
    prost::length_delimiter_len(length) + length
}

fn put_bytes(out: &mut Vec<u8>, key: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(low_seven_bits(key));
        put_length(out, bytes.len());
        out.extend_from_slice(bytes);
    }
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(low_seven_bits(length as u64) | 0x80);
        length >>= 7;
    }
    out.push(low_seven_bits(length as u64));
}

/// The highest bit of each byte.
const CONTINUED: u64 = u64::from_ne_bytes([0x80; 8]);

/// The lowest 56 bits, seven in each byte, the lowest first: halves, quarters and eighths are
/// moved apart.
#[inline]
fn spread(bits: u64) -> u64 {
    let halves = (bits & 0x00FF_FFFF_F000_0000) << 4 | bits & 0x0FFF_FFFF;
    let quarters = (halves & 0x0FFF_C000_0FFF_C000) << 2 | halves & 0x0000_3FFF_0000_3FFF;
    (quarters & 0x3F80_3F80_3F80_3F80) << 1 | quarters & 0x007F_007F_007F_007F
}

#[inline]
const fn low_seven_bits(value: u64) -> u8 {
    (value & 0x7F) as u8
}

/// A stamp field, key and length included, in an array of its own: made anew for each subscriber
/// and frame, and sent beside a body that all of them share.
///
/// ```
/// use hailmary_proto::{v1, write::StampBytes};
///
/// let stamp = v1::Stamp { sequence: 300, hops: 1, ..v1::Stamp::default() };
/// assert_eq!(StampBytes::new(&stamp).as_slice(), b"\x12\x05\x10\xac\x02\x20\x01");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct StampBytes {
    /// Varints are put eight bytes at a time, of which the last may not count.
    bytes: [u8; STAMP_BYTES_MAX + 8],
    len: usize,
}

impl StampBytes {
    /// Encodes `stamp`.
    #[must_use]
    #[inline]
    pub fn new(stamp: &v1::Stamp) -> Self {
        let mut field = StampBytes {
            bytes: [0; STAMP_BYTES_MAX + 8],
            len: 0,
        };
        field.put([low_seven_bits(key::FRAME_STAMP), 0]);
        field.put_fixed64(key::STAMP_SENDER, stamp.sender);
        field.put_varint(key::STAMP_SEQUENCE, stamp.sequence);
        field.put_varint(key::STAMP_DROPPED, stamp.dropped);
        field.put_varint(key::STAMP_HOPS, u64::from(stamp.hops));
        // As prost does it: -0.0 equals the default and is left out.
        if stamp.weight != 0.0 {
            field.put_fixed64(key::STAMP_WEIGHT, stamp.weight.to_bits());
        }
        if let Some(length) = field.bytes.get_mut(1) {
            *length = low_seven_bits(field.len as u64 - 2);
        }
        field
    }

    /// The encoded field: at least 2 bytes, at most [`STAMP_BYTES_MAX`].
    #[must_use]
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    #[inline(always)]
    fn put_fixed64(&mut self, key: u64, value: u64) {
        if value != 0 {
            self.put([low_seven_bits(key)]);
            self.put(value.to_le_bytes());
        }
    }

    #[inline(always)]
    fn put_varint(&mut self, key: u64, value: u64) {
        if value == 0 {
            return;
        }
        self.put([low_seven_bits(key)]);
        let bytes = (u64::BITS - value.leading_zeros()).div_ceil(7);
        if bytes <= 8 {
            // Every byte but the last says that another one follows.
            let more = CONTINUED & !(u64::MAX << (8 * (bytes - 1)));
            self.put((spread(value) | more).to_le_bytes());
            self.len -= 8 - bytes as usize;
        } else {
            self.put_long_varint(value);
        }
    }

    #[cold]
    fn put_long_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put([low_seven_bits(value) | 0x80]);
            value >>= 7;
        }
        self.put([low_seven_bits(value)]);
    }

    /// Appends bytes; the array has room for all that [`StampBytes::new`] can put.
    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + N) {
            place.copy_from_slice(&bytes);
            self.len += N;
        }
    }
}

/// The sender of the stamp that a frame begins with, where it was written by [`StampBytes`] and is
/// not 0. None of anything else, though it may be a frame with a stamp. It takes no more than the
/// first [`STAMP_HEAD_BYTES`].
///
/// ```
/// use hailmary_proto::{v1, write::{STAMP_HEAD_BYTES, StampBytes, leading_sender}};
///
/// let stamp = StampBytes::new(&v1::Stamp { sender: 7, hops: 1, ..v1::Stamp::default() });
/// assert_eq!(leading_sender(&stamp.as_slice()[..STAMP_HEAD_BYTES]), Some(7));
/// ```
#[must_use]
pub fn leading_sender(frame: &[u8]) -> Option<u64> {
    const STAMP: u8 = low_seven_bits(key::FRAME_STAMP);
    const SENDER: u8 = low_seven_bits(key::STAMP_SENDER);
    let ([STAMP, _, SENDER], sender) = frame.split_first_chunk()? else {
        return None;
    };
    sender.first_chunk().copied().map(u64::from_le_bytes)
}

/// The events of a frame under construction, one behind the other. With a stamp beside them, on
/// either side, they are a frame.
///
/// ```
/// use hailmary_proto::{decode::Decoder, v1, write::{EventParts, FrameBody, StampBytes, write_event}};
///
/// let mut event = Vec::new();
/// write_event(&mut event, &EventParts { topic: "clicks", ..EventParts::default() });
///
/// let mut body = FrameBody::new();
/// body.push(&event);
/// body.push(&event);
///
/// let stamp = StampBytes::new(&v1::Stamp { sequence: 7, ..v1::Stamp::default() });
/// let datagram = [stamp.as_slice(), body.bytes()].concat();
///
/// let mut decoder = Decoder::new();
/// let frame = decoder.decode(&datagram)?;
/// assert_eq!(frame.events().len(), 2);
/// assert_eq!(frame.stamp().map(|stamp| stamp.sequence), Some(7));
/// # Ok::<(), hailmary_proto::decode::Malformed>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct FrameBody {
    bytes: Vec<u8>,
    events: u32,
}

impl FrameBody {
    /// An empty body.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one whole event field, as [`write_event`] makes it or a frame's view shows it.
    #[inline]
    pub fn push(&mut self, event: &[u8]) {
        self.bytes.extend_from_slice(event);
        self.events += 1;
    }

    /// The encoded events.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many events there are.
    #[must_use]
    #[inline]
    pub fn events(&self) -> u32 {
        self.events
    }

    /// How many bytes they take.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no event.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// Forgets the events and keeps the memory.
    #[inline]
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.events = 0;
    }
}

/// Pads `frame` so that it encodes to `to_bytes` or up to 2 bytes more, where it is shorter.
/// Padding that it has already is replaced.
///
/// The few lengths that a padding field cannot have (it is at least 3 bytes with its key and
/// length, and grows by 2 where its length takes one more byte) round up.
///
/// ```
/// use hailmary_proto::{v1, write::{UNPROVEN_REQUEST_BYTES_MIN, pad}};
/// use prost::Message;
///
/// let ping = v1::frame::Control::Ping(v1::Ping { nonce: 5 });
/// let mut frame = v1::Frame { control: Some(ping), ..v1::Frame::default() };
/// pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
/// assert_eq!(frame.encoded_len(), UNPROVEN_REQUEST_BYTES_MIN);
/// ```
pub fn pad(frame: &mut v1::Frame, to_bytes: usize) {
    frame.padding.clear();
    let missing = to_bytes.saturating_sub(frame.encoded_len());
    if missing > 0 {
        frame.padding.resize(padding_bytes(missing), 0);
    }
}

/// The shortest padding field, in bytes.
pub const PADDING_FIELD_BYTES_MIN: usize = 2;

/// Makes all of `field` one padding field, of [`PADDING_FIELD_BYTES_MIN`] to 16,386 bytes. What it
/// pads with is what was there: readers ignore it.
///
/// ```
/// use hailmary_proto::{v1, write::write_padding};
/// use prost::Message;
///
/// for bytes in 2..=16_386 {
///     let mut field = vec![0; bytes];
///     write_padding(&mut field);
///     let frame = v1::Frame::decode(&field[..])?;
///     assert!(bytes - frame.padding.len() <= 3);
/// }
/// # Ok::<(), prost::DecodeError>(())
/// ```
pub fn write_padding(field: &mut [u8]) {
    const ONE_BYTE_LENGTH_MAX: usize = 0x7f;
    match field {
        [key, length, padding @ ..] if padding.len() <= ONE_BYTE_LENGTH_MAX => {
            [*key, *length] = [key::FRAME_PADDING, padding.len() as u64].map(low_seven_bits);
        }
        [key, low, high, padding @ ..] => {
            // One length, 127, is spelled with a byte more than it takes, which readers accept.
            let length = padding.len() as u64;
            [*key, *low, *high] = [key::FRAME_PADDING, length, length >> 7].map(low_seven_bits);
            *low |= 0x80;
        }
        _ => {}
    }
}

/// The shortest padding, at least 1, whose field has this many bytes or more.
fn padding_bytes(field_bytes: usize) -> usize {
    let most = field_bytes.saturating_sub(2).max(1);
    // The longer the padding, the longer its length: try from what is too long by at most that.
    let surplus = prost::length_delimiter_len(most) - 1;
    let fewer = most.saturating_sub(surplus).max(1);
    if optional_bytes(fewer) >= field_bytes {
        fewer
    } else {
        fewer + 1
    }
}
