//! A borrowed view of a frame: every datagram that arrives is read by this.
//!
//! [`Decoder::decode`] walks a datagram once, checks it wholly and notes where each event and its
//! fields lie; nothing is copied, and nothing allocated once the decoder's table has grown to the
//! size of the frames that come. Its values are those of prost's `v1::Frame::decode`: fields in
//! any order, unknown fields skipped, the last of a repeated scalar field, repeated stamps merged.
//! Control messages and seals are rare; their fields are gathered and left to prost.
//!
//! Its verdict is prost's, too, but for two things that it refuses and prost does not: 4 GiB or
//! more, and keys and lengths padded past 5 bytes ([`Malformed::Padded`]), which other libraries,
//! upb for one, do not read. Events are passed on as they came, so whoever gets them must be able
//! to. Within control messages and seals, which are not passed on, such padding is let through.
//!
//! This module refuses to judge: an event with an illegal topic is shown as it is. It never
//! recurses into what a datagram nests, and no datagram makes it panic.

mod cursor;

use std::ops::Range;

use crate::{key, topic, v1};
use cursor::{Cursor, LEVELS_MAX, Span, WireType, field};
use prost::Message;
use thiserror::Error;

/// Why a datagram is no frame.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
pub enum Malformed {
    /// It ends, or the message around a field ends, before the field does.
    #[error("a field reaches past the end of what it is in")]
    Truncated,
    /// A varint does not end, or has more than 64 bits.
    #[error("a varint does not end, or has more than 64 bits")]
    Varint,
    /// A key or a length has more than 5 bytes, which not every protobuf library reads.
    #[error("a key or a length is padded to more than 5 bytes")]
    Padded,
    /// A field's key has the number 0, a wire type that does not exist, or more than 32 bits.
    #[error("a field's key has no number, no known wire type or too many bits")]
    Key,
    /// A field of this protocol has the wire type of another.
    #[error("a field has the wrong wire type")]
    WireType,
    /// A group ends that was not begun, or groups nest too deeply.
    #[error("groups do not pair, or nest too deeply")]
    Group,
    /// A topic or attribute is not UTF-8.
    #[error("a topic or attribute is not UTF-8")]
    Utf8,
    /// A control message or seal does not decode.
    #[error("a control message or seal does not decode")]
    Control,
    /// It has 4 GiB or more, which no datagram has.
    #[error("a frame has less than 4 GiB")]
    TooLong,
}

/// The number of `Event.attributes`. prost reads it as a map's entry whatever its wire type says.
const ATTRIBUTE_NUMBER: u32 = 5;

/// Reads datagrams, one after the other, into memory that it keeps.
///
/// What it keeps is bounded by the largest frame so far: 40 bytes for each event, of which a
/// datagram of 65,507 bytes has at most 32,753 (so 1.3 MB), and the newest control message.
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
    /// How many events lie before the first other field that has any before it; 0 if none has.
    events_before_gap: usize,
    /// The raw fields that prost decodes.
    rare_fields: Vec<u8>,
    rare: v1::Frame,
    stamp: Option<v1::Stamp>,
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
    /// Where prost would not decode it, where a key or a length outside of control messages and
    /// seals is padded to more than 5 bytes, and where it has 4 GiB or more. The whole datagram is
    /// then to be dropped: what had been read of it until then is not shown.
    pub fn decode<'a>(&'a mut self, datagram: &'a [u8]) -> Result<FrameView<'a>, Malformed> {
        if u32::try_from(datagram.len()).is_err() {
            return Err(Malformed::TooLong);
        }
        self.events.clear();
        self.events_before_gap = 0;
        self.rare_fields.clear();
        self.stamp = None;
        self.read_fields(datagram)?;
        let rare = if self.rare_fields.is_empty() {
            None
        } else {
            self.read_rare_fields()?;
            Some(&self.rare)
        };
        Ok(FrameView {
            datagram,
            events: &self.events,
            is_dense: self.is_dense(),
            stamp: self.stamp.as_ref(),
            rare,
        })
    }

    #[inline(always)]
    fn read_fields(&mut self, datagram: &[u8]) -> Result<(), Malformed> {
        let mut cursor = Cursor::new(datagram);
        while !cursor.is_at_end() {
            let start = cursor.at();
            match cursor.short_varint()? {
                key::FRAME_EVENT => self.read_event(start, &mut cursor)?,
                key::FRAME_STAMP => {
                    self.note_gap();
                    let fields = cursor.delimited()?;
                    merge_stamp(self.stamp.get_or_insert_default(), fields)?;
                }
                other => cursor.go_on_at(self.read_other_field(start, other, cursor)?),
            }
        }
        Ok(())
    }

    #[inline]
    fn note_gap(&mut self) {
        if self.events_before_gap == 0 {
            self.events_before_gap = self.events.len();
        }
    }

    fn is_dense(&self) -> bool {
        self.events_before_gap == 0 || self.events_before_gap == self.events.len()
    }

    #[inline(always)]
    fn read_event(&mut self, start: usize, cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
        let fields = cursor.delimited()?;
        let whole = Span::new(start, cursor.at());
        self.events.push(EventSpans {
            whole,
            ..EventSpans::default()
        });
        // Filled where it is: built elsewhere and then moved, it would cost twice.
        self.events
            .last_mut()
            .map_or(Ok(()), |event| event.read(fields))
    }

    /// Control messages, seals, padding, and what this version does not know.
    #[cold]
    fn read_other_field(
        &mut self,
        start: usize,
        key: u64,
        mut cursor: Cursor<'_>,
    ) -> Result<usize, Malformed> {
        self.note_gap();
        match field(key)? {
            (3..=9 | 14, WireType::Delimited) => {
                cursor.delimited()?;
                self.rare_fields.extend_from_slice(cursor.since(start));
            }
            (15, WireType::Delimited) => {
                cursor.delimited()?;
            }
            (1..=9 | 14 | 15, _) => return Err(Malformed::WireType),
            (number, wire_type) => cursor.skip(number, wire_type, LEVELS_MAX)?,
        }
        Ok(cursor.at())
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
#[inline(always)]
fn merge_stamp(stamp: &mut v1::Stamp, mut fields: Cursor<'_>) -> Result<(), Malformed> {
    while !fields.is_at_end() {
        match fields.short_varint()? {
            key::STAMP_SENDER => stamp.sender = fields.fixed64()?,
            key::STAMP_SEQUENCE => stamp.sequence = fields.varint()?,
            key::STAMP_DROPPED => stamp.dropped = fields.varint()?,
            key::STAMP_HOPS => stamp.hops = low_32_bits(fields.varint()?),
            key::STAMP_WEIGHT => stamp.weight = f64::from_bits(fields.fixed64()?),
            other => fields.go_on_at(skip_unknown(other, fields, 5, LEVELS_MAX - 1)?),
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

/// Skips a field of a message whose known fields are numbered 1 to `known_max`, and refuses one
/// of those: with its own wire type it would not have come here.
#[cold]
fn skip_unknown(
    key: u64,
    mut fields: Cursor<'_>,
    known_max: u32,
    levels: usize,
) -> Result<usize, Malformed> {
    let (number, wire_type) = field(key)?;
    if number <= known_max {
        return Err(Malformed::WireType);
    }
    fields.skip(number, wire_type, levels)?;
    Ok(fields.at())
}

/// Where an event lies in its datagram, and its fields within.
#[derive(Clone, Copy, Debug, Default)]
struct EventSpans {
    whole: Span,
    topic: Span,
    payload: Span,
    key: Span,
    time_unix_nano: u64,
}

impl EventSpans {
    /// Fields mostly come in the order of their numbers, so each is looked for in its turn: that
    /// takes a third of a choice between all of them.
    #[inline(always)]
    fn read(&mut self, mut fields: Cursor<'_>) -> Result<(), Malformed> {
        let mut next = fields.peek();
        while next.is_some() {
            if next == Some(key::EVENT_TOPIC) {
                self.topic = fields.after_key().text()?.span();
                next = fields.peek();
            }
            if next == Some(key::EVENT_PAYLOAD) {
                self.payload = fields.after_key().delimited()?.span();
                next = fields.peek();
            }
            if next == Some(key::EVENT_KEY) {
                self.key = fields.after_key().delimited()?.span();
                next = fields.peek();
            }
            if next == Some(key::EVENT_TIME) {
                self.time_unix_nano = fields.after_key().fixed64()?;
                next = fields.peek();
            }
            while next == Some(key::EVENT_ATTRIBUTE) {
                read_attribute(fields.after_key().delimited()?)?;
                next = fields.peek();
            }
            if next.is_some() {
                fields.go_on_at(self.read_field(fields)?);
                next = fields.peek();
            }
        }
        Ok(())
    }

    /// Reads one field, whichever it is.
    #[cold]
    fn read_field(&mut self, mut fields: Cursor<'_>) -> Result<usize, Malformed> {
        match field(fields.short_varint()?)? {
            (1, WireType::Delimited) => self.topic = fields.text()?.span(),
            (2, WireType::Delimited) => self.payload = fields.delimited()?.span(),
            (3, WireType::Delimited) => self.key = fields.delimited()?.span(),
            (4, WireType::Fixed64) => self.time_unix_nano = fields.fixed64()?,
            (1..=4, _) => return Err(Malformed::WireType),
            (ATTRIBUTE_NUMBER, _) => {
                read_attribute(fields.delimited()?)?;
            }
            (number, wire_type) => fields.skip(number, wire_type, LEVELS_MAX - 1)?,
        }
        Ok(fields.at())
    }
}

/// Reads one entry of the map: its name and value, of which either may be left out.
#[inline(never)]
fn read_attribute(mut fields: Cursor<'_>) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut name, mut value) = Default::default();
    while !fields.is_at_end() {
        match fields.short_varint()? {
            key::ATTRIBUTE_NAME => name = fields.text()?.rest(),
            key::ATTRIBUTE_VALUE => value = fields.text()?.rest(),
            other => fields.go_on_at(skip_unknown(other, fields, 2, LEVELS_MAX - 2)?),
        }
    }
    Ok((name, value))
}

/// A frame, as it lies in its datagram. Valid as long as the datagram and the decoder are left
/// alone.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    datagram: &'a [u8],
    events: &'a [EventSpans],
    is_dense: bool,
    stamp: Option<&'a v1::Stamp>,
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

    /// The events in runs: neighbours with the same topic.
    #[inline]
    pub fn runs(&self) -> Runs<'a> {
        Runs {
            datagram: self.datagram,
            rest: self.events,
            is_dense: self.is_dense,
        }
    }

    /// Whether the events lie one behind the other, so that any neighbours make a run. It is so
    /// but where a stamp or what this version does not know lies between two of them.
    #[must_use]
    #[inline]
    pub fn is_dense(&self) -> bool {
        self.is_dense
    }

    /// Neighbours by their indices, of a frame that [is dense](Self::is_dense): else what lies
    /// between them is part of the run's bytes.
    #[must_use]
    #[inline]
    pub fn run(&self, events: Range<usize>) -> EventRun<'a> {
        EventRun {
            datagram: self.datagram,
            events: self.events.get(events).unwrap_or_default(),
        }
    }

    /// Who sent the frame, and how much went before it.
    #[must_use]
    #[inline]
    pub fn stamp(&self) -> Option<&'a v1::Stamp> {
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

/// Neighbouring events of a frame.
#[derive(Clone, Copy, Debug)]
pub struct EventRun<'a> {
    datagram: &'a [u8],
    events: &'a [EventSpans],
}

impl<'a> EventRun<'a> {
    /// How many events they are.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are none.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The topic of the first one: of all, in a run that [`FrameView::runs`] gave.
    #[must_use]
    #[inline]
    pub fn topic_bytes(&self) -> &'a [u8] {
        let first = self.events.first();
        first.map_or(&[], |first| first.topic.of(self.datagram))
    }

    /// The first one.
    #[must_use]
    #[inline]
    pub fn first(&self) -> Option<EventView<'a>> {
        let first = self.events.first();
        first.map(|spans| EventView::new(self.datagram, spans))
    }

    /// Each of them as a run of its own.
    pub fn singles(&self) -> impl Iterator<Item = EventRun<'a>> {
        let datagram = self.datagram;
        let events = self.events.chunks(1);
        events.map(move |events| EventRun { datagram, events })
    }

    /// Their bytes: copied into another frame, they are the same events there.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        match self.events {
            [] => &[],
            [first, .., last] => first.whole.up_to(last.whole).of(self.datagram),
            [only] => only.whole.of(self.datagram),
        }
    }

    /// The first ones, as many as have at most `bytes_max` together, and the others.
    #[must_use]
    pub fn split_at_bytes(self, bytes_max: usize) -> (Self, Self) {
        let start = self.events.first().map_or(0, |e| e.whole.range().start);
        let fits = |event: &EventSpans| event.whole.range().end - start <= bytes_max;
        self.split_at(self.events.partition_point(fits))
    }

    /// The first `count`, or all if they are fewer, and the others.
    #[must_use]
    pub fn split_at(self, count: usize) -> (Self, Self) {
        let (first, others) = self.events.split_at(count.min(self.events.len()));
        let part = |events| EventRun { events, ..self };
        (part(first), part(others))
    }
}

/// The runs of a frame, see [`FrameView::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    datagram: &'a [u8],
    rest: &'a [EventSpans],
    is_dense: bool,
}

impl<'a> Runs<'a> {
    /// Whether there are no more.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline(never)]
    fn next_of_several(&mut self) -> Option<EventRun<'a>> {
        let (first, others) = self.rest.split_first()?;
        let topic = first.topic.of(self.datagram);
        let goes_on = |event: &&EventSpans| {
            self.is_dense && topic::is_same(topic, event.topic.of(self.datagram))
        };
        let count = 1 + others.iter().take_while(goes_on).count();
        let (events, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(EventRun {
            datagram: self.datagram,
            events,
        })
    }
}

impl<'a> Iterator for Runs<'a> {
    type Item = EventRun<'a>;

    /// Most frames have one event.
    #[inline(always)]
    fn next(&mut self) -> Option<EventRun<'a>> {
        if self.rest.len() != 1 {
            return self.next_of_several();
        }
        Some(EventRun {
            datagram: self.datagram,
            events: std::mem::take(&mut self.rest),
        })
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
        let mut field = Cursor::new(self.slice);
        let fields = field.short_varint().and_then(|_| field.delimited());
        Attributes {
            fields: fields.unwrap_or(field),
        }
    }
}

/// Walks an event once more, for its attributes alone. The event has been checked, so no field
/// of it fails; if one did, the walk would end.
#[derive(Clone)]
struct Attributes<'a> {
    fields: Cursor<'a>,
}

impl<'a> Attributes<'a> {
    fn read_next(&mut self) -> Result<Option<(&'a str, &'a str)>, Malformed> {
        while !self.fields.is_at_end() {
            let (number, wire_type) = field(self.fields.short_varint()?)?;
            if number == ATTRIBUTE_NUMBER {
                let (name, value) = read_attribute(self.fields.delimited()?)?;
                return Ok(Some((text(name), text(value))));
            }
            self.fields.skip(number, wire_type, LEVELS_MAX - 1)?;
        }
        Ok(None)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.read_next().ok().flatten()
    }
}

/// Text of bytes that were found to be UTF-8 when the frame was decoded.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
