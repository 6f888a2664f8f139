//! A borrowed view of a frame: every datagram that arrives is read by this.
//!
//! [`Decoder::decode`] walks a datagram once, checks it wholly and notes where each event and its
//! fields lie; nothing is copied, and nothing allocated once the decoder's table has grown to the
//! size of the frames that come. Its verdict on every byte string is that of prost's
//! `v1::Frame::decode`, and so is every value: fields in any order, unknown fields skipped, the
//! last of a repeated scalar field, repeated stamps merged. Control messages and seals are rare;
//! their fields are gathered and left to prost.
//!
//! This module refuses to judge: an event with an illegal topic is shown as it is. It never
//! recurses into what a datagram nests, and no datagram makes it panic.

mod cursor;

use crate::v1;
use cursor::{Cursor, FIELDS_DEEP_MAX, Span, field_number};
use prost::Message;
use thiserror::Error;

/// Why a datagram is no frame.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
pub enum Malformed {
    /// It ends, or the message around a field ends, before the field does.
    #[error("a field reaches past the end of what it is in")]
    Truncated,
    /// A varint has more than 64 bits.
    #[error("a varint has more than 64 bits")]
    Varint,
    /// A field's key has the number 0, a wire type that does not exist, or more than 32 bits.
    #[error("a field's key is none")]
    Key,
    /// A field of this protocol has the wire type of another.
    #[error("a field has the wrong wire type")]
    WireType,
    /// A group ends that was not begun, or groups nest too deeply.
    #[error("groups do not pair, or nest too deeply")]
    Group,
    /// A topic or attribute is no UTF-8.
    #[error("a topic or attribute is not UTF-8")]
    Utf8,
    /// A control message or seal does not decode.
    #[error("a control message or seal does not decode")]
    Control,
    /// It has 4 GiB or more, which no datagram has.
    #[error("a frame has less than 4 GiB")]
    TooLong,
}

/// Keys of the fields that frames are full of: field number times 8, plus wire type.
mod key {
    pub(super) const FRAME_EVENT: u32 = 0x0A;
    pub(super) const FRAME_STAMP: u32 = 0x12;

    pub(super) const EVENT_TOPIC: u32 = 0x0A;
    pub(super) const EVENT_PAYLOAD: u32 = 0x12;
    pub(super) const EVENT_KEY: u32 = 0x1A;
    pub(super) const EVENT_TIME: u32 = 0x21;

    pub(super) const ATTRIBUTE_NAME: u32 = 0x0A;
    pub(super) const ATTRIBUTE_VALUE: u32 = 0x12;

    pub(super) const STAMP_SENDER: u32 = 0x09;
    pub(super) const STAMP_SEQUENCE: u32 = 0x10;
    pub(super) const STAMP_DROPPED: u32 = 0x18;
    pub(super) const STAMP_HOPS: u32 = 0x20;
    pub(super) const STAMP_WEIGHT: u32 = 0x29;
}

/// The number of `Event.attributes`.
const EVENT_ATTRIBUTES_NUMBER: u32 = 5;

/// Reads datagrams, one after the other, into memory that it keeps.
///
/// What it keeps is bounded by the largest frame so far: 40 bytes for each event, of which a
/// datagram of 65,507 bytes has at most 32,753.
///
/// ```
/// use hailmary_proto::decode::{Decoder, Malformed};
///
/// let mut decoder = Decoder::new();
/// let frame = decoder.decode(b"\x0a\x0a\x0a\x06clicks\x1a\x00")?;
/// let event = frame.events().next().ok_or(Malformed::Truncated)?;
/// assert_eq!(event.topic(), "clicks");
/// assert_eq!(event.slice().len(), 12);
/// assert!(frame.stamp().is_none());
///
/// assert_eq!(decoder.decode(b"\x0a\x0a\x0a\x06clic").err(), Some(Malformed::Truncated));
/// # Ok::<(), Malformed>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    events: Vec<EventSpans>,
    /// The raw fields that prost decodes.
    rare_fields: Vec<u8>,
    rare: v1::Frame,
}

impl Decoder {
    /// A decoder whose table is empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads one datagram.
    ///
    /// # Errors
    ///
    /// Where prost would not decode it. The whole datagram is then to be dropped: what had been
    /// read of it until then is not shown.
    pub fn decode<'a>(&'a mut self, datagram: &'a [u8]) -> Result<FrameView<'a>, Malformed> {
        if u32::try_from(datagram.len()).is_err() {
            return Err(Malformed::TooLong);
        }
        self.events.clear();
        self.rare_fields.clear();
        let stamp = self.read_fields(datagram)?;
        let rare = if self.rare_fields.is_empty() {
            None
        } else {
            self.read_rare_fields()?;
            Some(&self.rare)
        };
        Ok(FrameView {
            datagram,
            events: &self.events,
            stamp,
            rare,
        })
    }

    fn read_fields(&mut self, datagram: &[u8]) -> Result<Option<v1::Stamp>, Malformed> {
        let mut stamp = None;
        let mut cursor = Cursor::new(datagram);
        while !cursor.is_at_end() {
            let start = cursor.at();
            match cursor.key()? {
                key::FRAME_EVENT => {
                    let body = cursor.delimited()?;
                    let whole = Span {
                        start,
                        end: body.end,
                    };
                    self.events
                        .push(EventSpans::read(whole, cursor.within(body))?);
                }
                key::FRAME_STAMP => {
                    let body = cursor.delimited()?;
                    merge_stamp(stamp.get_or_insert_default(), cursor.within(body))?;
                }
                other => self.read_other_field(other, start, &mut cursor)?,
            }
        }
        Ok(stamp)
    }

    /// Control messages, seals, padding, and what this version does not know.
    #[cold]
    fn read_other_field(
        &mut self,
        key: u32,
        start: u32,
        cursor: &mut Cursor<'_>,
    ) -> Result<(), Malformed> {
        match field_number(key)? {
            1 | 2 => Err(Malformed::WireType),
            3..=9 | 14 => {
                cursor.skip_delimited(key)?;
                let field = Span {
                    start,
                    end: cursor.at(),
                };
                self.rare_fields.extend_from_slice(cursor.bytes(field));
                Ok(())
            }
            15 => cursor.skip_delimited(key),
            _ => cursor.skip(key, FIELDS_DEEP_MAX),
        }
    }

    #[cold]
    fn read_rare_fields(&mut self) -> Result<(), Malformed> {
        // Fields of one message may be concatenated, those left out in between do not matter:
        // so prost makes of these what it would have made of them in the datagram.
        let fields = self.rare_fields.as_slice();
        self.rare = v1::Frame::decode(fields).map_err(|_| Malformed::Control)?;
        Ok(())
    }
}

/// Reads a stamp's fields over those that an earlier stamp of the frame may have set.
#[inline]
fn merge_stamp(stamp: &mut v1::Stamp, mut cursor: Cursor<'_>) -> Result<(), Malformed> {
    while !cursor.is_at_end() {
        match cursor.key()? {
            key::STAMP_SENDER => stamp.sender = cursor.fixed64()?,
            key::STAMP_SEQUENCE => stamp.sequence = cursor.varint()?,
            key::STAMP_DROPPED => stamp.dropped = cursor.varint()?,
            key::STAMP_HOPS => stamp.hops = low_32_bits(cursor.varint()?),
            key::STAMP_WEIGHT => stamp.weight = f64::from_bits(cursor.fixed64()?),
            other => match field_number(other)? {
                1..=5 => return Err(Malformed::WireType),
                _ => cursor.skip(other, FIELDS_DEEP_MAX - 1)?,
            },
        }
    }
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "as protobuf reads a uint32 that is too large"
)]
fn low_32_bits(value: u64) -> u32 {
    value as u32
}

/// Where an event lies in its datagram, and its fields within.
#[derive(Clone, Copy, Debug)]
struct EventSpans {
    whole: Span,
    topic: Span,
    payload: Span,
    key: Span,
    time_unix_nano: u64,
}

impl EventSpans {
    #[inline(always)]
    fn read(whole: Span, mut cursor: Cursor<'_>) -> Result<Self, Malformed> {
        let none = Span::default();
        let mut spans = EventSpans {
            whole,
            topic: none,
            payload: none,
            key: none,
            time_unix_nano: 0,
        };
        while !cursor.is_at_end() {
            match cursor.key()? {
                key::EVENT_TOPIC => spans.topic = cursor.text()?,
                key::EVENT_PAYLOAD => spans.payload = cursor.delimited()?,
                key::EVENT_KEY => spans.key = cursor.delimited()?,
                key::EVENT_TIME => spans.time_unix_nano = cursor.fixed64()?,
                other => read_other_event_field(other, &mut cursor)?,
            }
        }
        Ok(spans)
    }
}

/// Attributes, which are checked and found again when asked for, and unknown fields.
#[inline(never)]
fn read_other_event_field(key: u32, cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
    match field_number(key)? {
        1..=4 => Err(Malformed::WireType),
        EVENT_ATTRIBUTES_NUMBER => {
            // Whatever the wire type says: prost does not look at it for a map.
            let entry = cursor.delimited()?;
            Attribute::read(cursor.within(entry)).map(drop)
        }
        _ => cursor.skip(key, FIELDS_DEEP_MAX - 1),
    }
}

/// Where an attribute's name and value lie.
#[derive(Clone, Copy, Default)]
struct Attribute {
    name: Span,
    value: Span,
}

impl Attribute {
    fn read(mut cursor: Cursor<'_>) -> Result<Self, Malformed> {
        let mut attribute = Attribute::default();
        while !cursor.is_at_end() {
            match cursor.key()? {
                key::ATTRIBUTE_NAME => attribute.name = cursor.text()?,
                key::ATTRIBUTE_VALUE => attribute.value = cursor.text()?,
                other => match field_number(other)? {
                    1 | 2 => return Err(Malformed::WireType),
                    _ => cursor.skip(other, FIELDS_DEEP_MAX - 2)?,
                },
            }
        }
        Ok(attribute)
    }
}

/// A frame, as it lies in its datagram. Valid as long as the datagram and the decoder are left
/// alone.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    datagram: &'a [u8],
    events: &'a [EventSpans],
    stamp: Option<v1::Stamp>,
    rare: Option<&'a v1::Frame>,
}

impl<'a> FrameView<'a> {
    /// The events, in the order of the datagram.
    #[inline]
    pub fn events(&self) -> impl ExactSizeIterator<Item = EventView<'a>> + Clone + use<'a> {
        let datagram = self.datagram;
        self.events
            .iter()
            .map(move |spans| EventView::new(datagram, spans))
    }

    /// Who sent the frame, and how much went before it.
    #[must_use]
    #[inline]
    pub fn stamp(&self) -> Option<v1::Stamp> {
        self.stamp
    }

    /// The control message, of several the last.
    #[must_use]
    #[inline]
    pub fn control(&self) -> Option<&'a v1::frame::Control> {
        self.rare.and_then(|frame| frame.control.as_ref())
    }

    /// The seal, as it was read: not yet checked against the frame's bytes.
    #[must_use]
    #[inline]
    pub fn seal(&self) -> Option<&'a v1::Seal> {
        self.rare.and_then(|frame| frame.seal.as_ref())
    }
}

/// An event, as it lies in its datagram.
#[derive(Clone, Copy, Debug)]
pub struct EventView<'a> {
    slice: &'a [u8],
    topic: &'a [u8],
    payload: &'a [u8],
    key: &'a [u8],
    time_unix_nano: u64,
}

impl<'a> EventView<'a> {
    #[inline]
    fn new(datagram: &'a [u8], spans: &EventSpans) -> Self {
        EventView {
            slice: spans.whole.of(datagram),
            topic: spans.topic.of(datagram),
            payload: spans.payload.of(datagram),
            key: spans.key.of(datagram),
            time_unix_nano: spans.time_unix_nano,
        }
    }

    /// The whole event field, key and length included: copied into another frame, it is the same
    /// event there.
    #[must_use]
    #[inline]
    pub fn slice(&self) -> &'a [u8] {
        self.slice
    }

    /// The topic: UTF-8, nothing more is known of it.
    #[must_use]
    #[inline]
    pub fn topic_bytes(&self) -> &'a [u8] {
        self.topic
    }

    /// The topic as text, which costs a look at every byte: prefer [`EventView::topic_bytes`]
    /// where bytes do.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        text(self.topic)
    }

    /// The payload, opaque.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// What groups and samples go by. Empty: no key.
    #[must_use]
    #[inline]
    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    /// When the event was made, in nanoseconds of Unix time. 0: not told.
    #[must_use]
    #[inline]
    pub fn time_unix_nano(&self) -> u64 {
        self.time_unix_nano
    }

    /// Names and values of the attributes, in the order of the datagram. A name may come several
    /// times: its last value is the one that counts.
    pub fn attributes(&self) -> impl Iterator<Item = (&'a str, &'a str)> + Clone + use<'a> {
        Attributes {
            fields: Cursor::inside_field(self.slice),
        }
    }
}

/// Walks an event once more, for its attributes alone.
#[derive(Clone)]
struct Attributes<'a> {
    fields: Cursor<'a>,
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (&'a str, &'a str);

    /// The event has been checked, so no field of it fails; if one did, the walk would end.
    fn next(&mut self) -> Option<Self::Item> {
        while !self.fields.is_at_end() {
            let key = self.fields.key().ok()?;
            if field_number(key).ok()? != EVENT_ATTRIBUTES_NUMBER {
                self.fields.skip(key, FIELDS_DEEP_MAX - 1).ok()?;
                continue;
            }
            let entry = self.fields.delimited().ok()?;
            let attribute = Attribute::read(self.fields.within(entry)).ok()?;
            let name = text(self.fields.bytes(attribute.name));
            return Some((name, text(self.fields.bytes(attribute.value))));
        }
        None
    }
}

/// Text of bytes that were found to be UTF-8 when the frame was decoded.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
