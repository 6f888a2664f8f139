//! The primitives of protobuf's encoding, read one behind the other: keys, varints, lengths, and
//! the skipping of fields that nobody asked for.
//!
//! Every read is checked against the end of the message it is in. What is common (keys of one
//! byte, lengths of one or two) is inlined, everything else is one call away.

use std::ops::Range;

use super::Malformed;

/// How many levels of messages and groups may nest in a frame, a field in the innermost one being
/// a level of its own. prost's limit, and nearly that of most implementations.
pub(super) const LEVELS_MAX: usize = 100;

/// The most bytes of a varint: 64 bits, 7 a byte.
const VARINT_BYTES_MAX: usize = 10;

/// The most bytes of a key or a length: 32 bits, 7 a byte. prost takes longer ones, padded with
/// zeros, where upb (Python, PHP, Ruby) refuses the frame. What the bus passes on must be a frame
/// to all, or one publisher's event costs a subscriber the others' in the same datagram.
const SHORT_VARINT_BYTES_MAX: usize = 5;

/// A place in the datagram, in bytes from its start: half the size of a slice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a datagram has less than 4 GiB"
    )]
    pub(super) fn new(start: usize, end: usize) -> Self {
        Span {
            start: start as u32,
            end: end as u32,
        }
    }

    #[inline]
    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// From the start of this one to the end of a later one.
    #[inline]
    pub(super) fn up_to(self, last: Span) -> Self {
        Span {
            end: last.end,
            ..self
        }
    }

    /// What lies there, in the datagram that the span was made for.
    #[inline]
    pub(super) fn of(self, datagram: &[u8]) -> &[u8] {
        datagram.get(self.range()).unwrap_or_default()
    }
}

/// How a field's value is laid out, by the lowest three bits of its key.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum WireType {
    Varint,
    Fixed64,
    Delimited,
    GroupStart,
    GroupEnd,
    Fixed32,
}

/// Takes a field's key apart, which until then may be any varint.
pub(super) fn field(key: u64) -> Result<(u32, WireType), Malformed> {
    let key = u32::try_from(key).map_err(|_| Malformed::Key)?;
    let wire_type = match key & 7 {
        0 => WireType::Varint,
        1 => WireType::Fixed64,
        2 => WireType::Delimited,
        3 => WireType::GroupStart,
        4 => WireType::GroupEnd,
        5 => WireType::Fixed32,
        _ => return Err(Malformed::Key),
    };
    match key >> 3 {
        0 => Err(Malformed::Key),
        number => Ok((number, wire_type)),
    }
}

/// A position in the datagram, and the end of the message that it is in.
///
/// What is read moves the position. The hot functions are always inlined and pass the cursor to
/// others by value, so that it stays in registers.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    /// The datagram up to the end of the message: so positions in it are those in the datagram.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of a datagram, which has less than 4 GiB.
    #[inline]
    pub(super) fn new(datagram: &'a [u8]) -> Self {
        Cursor {
            bytes: datagram,
            at: 0,
        }
    }

    #[inline(always)]
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    #[inline(always)]
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// From here to the end of the message.
    #[inline(always)]
    pub(super) fn span(&self) -> Span {
        Span::new(self.at, self.bytes.len())
    }

    /// The bytes of [`Cursor::span`].
    #[inline(always)]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The bytes from `start` to here.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.at).unwrap_or_default()
    }

    /// A key (a field's number times 8, plus its wire type) or a length.
    #[inline(always)]
    pub(super) fn short_varint(&mut self) -> Result<u64, Malformed> {
        self.varint_of(SHORT_VARINT_BYTES_MAX)
    }

    /// A varint of 64 bits.
    #[inline(always)]
    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        self.varint_of(VARINT_BYTES_MAX)
    }

    #[inline(always)]
    fn varint_of(&mut self, bytes_max: usize) -> Result<u64, Malformed> {
        let low = *self.bytes.get(self.at).ok_or(Malformed::Truncated)?;
        if low < 0x80 {
            self.at += 1;
            return Ok(u64::from(low));
        }
        let high = *self.bytes.get(self.at + 1).ok_or(Malformed::Truncated)?;
        if high < 0x80 {
            self.at += 2;
            return Ok(u64::from(low & 0x7F) | u64::from(high) << 7);
        }
        let (value, bytes) = long_varint(self.rest());
        self.at += bytes;
        match bytes {
            0 => Err(Malformed::Varint),
            _ if bytes > bytes_max => Err(Malformed::Padded),
            _ => Ok(value),
        }
    }

    /// The next byte: of a key of one byte, all of it.
    #[inline(always)]
    pub(super) fn peek(&self) -> Option<u64> {
        self.bytes.get(self.at).copied().map(u64::from)
    }

    /// Goes past the byte that [`Cursor::peek`] has shown.
    #[inline(always)]
    pub(super) fn after_key(&mut self) -> &mut Self {
        self.at += 1;
        self
    }

    /// A 64-bit number in eight bytes, the lowest first.
    #[inline(always)]
    pub(super) fn fixed64(&mut self) -> Result<u64, Malformed> {
        let bytes: &[u8; 8] = self
            .bytes
            .get(self.at..)
            .and_then(<[u8]>::first_chunk)
            .ok_or(Malformed::Truncated)?;
        self.at += 8;
        Ok(u64::from_le_bytes(*bytes))
    }

    /// A length and the bytes that it counts, as the message that they may be.
    #[inline(always)]
    pub(super) fn delimited(&mut self) -> Result<Self, Malformed> {
        let length = self.short_varint()?;
        let start = self.at;
        self.advance(length)?;
        let bytes = self.bytes.get(..self.at).ok_or(Malformed::Truncated)?;
        Ok(Cursor { bytes, at: start })
    }

    /// The same, where the bytes must be UTF-8.
    #[inline(always)]
    pub(super) fn text(&mut self) -> Result<Self, Malformed> {
        let text = self.delimited()?;
        let bytes = text.bytes.get(text.at..).ok_or(Malformed::Truncated)?;
        if is_utf8(bytes) {
            Ok(text)
        } else {
            Err(Malformed::Utf8)
        }
    }

    #[inline(always)]
    fn advance(&mut self, length: u64) -> Result<(), Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed::Truncated)?;
        match self.at.checked_add(length) {
            Some(end) if end <= self.bytes.len() => self.at = end,
            _ => return Err(Malformed::Truncated),
        }
        Ok(())
    }

    /// Goes to where a function that was given this cursor has read to.
    #[inline(always)]
    pub(super) fn go_on_at(&mut self, at: usize) {
        self.at = at;
    }

    /// Skips the value of an unknown field. Groups may nest `levels` deep, their fields included.
    pub(super) fn skip(
        &mut self,
        number: u32,
        wire_type: WireType,
        levels: usize,
    ) -> Result<(), Malformed> {
        match wire_type {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.advance(8),
            WireType::Fixed32 => self.advance(4),
            WireType::Delimited => self.delimited().map(drop),
            WireType::GroupStart => self.skip_group(number, levels),
            WireType::GroupEnd => Err(Malformed::Group),
        }
    }

    /// Skips the rest of a group, with what groups it holds on a stack of fixed size.
    #[cold]
    fn skip_group(&mut self, first: u32, levels: usize) -> Result<(), Malformed> {
        let mut open = OpenGroups::new(levels);
        open.push(first)?;
        while !open.is_empty() {
            match field(self.short_varint()?)? {
                (number, WireType::GroupEnd) => open.pop(number)?,
                (number, WireType::GroupStart) => open.push(number)?,
                _ if open.is_full() => return Err(Malformed::Group),
                (number, flat) => self.skip(number, flat, 0)?,
            }
        }
        Ok(())
    }
}

/// The groups that have begun and not ended, outermost first.
struct OpenGroups {
    numbers: [u32; LEVELS_MAX],
    open: usize,
    open_max: usize,
}

impl OpenGroups {
    fn new(open_max: usize) -> Self {
        OpenGroups {
            numbers: [0; LEVELS_MAX],
            open: 0,
            open_max,
        }
    }

    fn is_empty(&self) -> bool {
        self.open == 0
    }

    fn is_full(&self) -> bool {
        self.open >= self.open_max
    }

    fn push(&mut self, number: u32) -> Result<(), Malformed> {
        match self.numbers.get_mut(self.open) {
            Some(place) if self.open < self.open_max => *place = number,
            _ => return Err(Malformed::Group),
        }
        self.open += 1;
        Ok(())
    }

    fn pop(&mut self, number: u32) -> Result<(), Malformed> {
        let innermost = self.open.checked_sub(1).ok_or(Malformed::Group)?;
        if self.numbers.get(innermost) != Some(&number) {
            return Err(Malformed::Group);
        }
        self.open = innermost;
        Ok(())
    }
}

/// A varint of any length, and how many bytes it has: 0 where there is none.
#[inline(never)]
fn long_varint(bytes: &[u8]) -> (u64, usize) {
    let mut value = 0;
    for (place, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * place);
        if byte < 0x80 {
            // The last of ten bytes has room for one bit.
            let overflows = place + 1 == VARINT_BYTES_MAX && byte > 1;
            return (value, if overflows { 0 } else { place + 1 });
        }
    }
    (0, 0)
}

/// Whether bytes are UTF-8. Of as many as most topics have, the first and the last eight or
/// sixteen are looked at in one go, those in the middle perhaps twice: topics are ASCII.
#[inline(always)]
fn is_utf8(bytes: &[u8]) -> bool {
    let is_ascii = match bytes.len() {
        8..=16 => ends(bytes).is_some_and(|(first, last)| {
            (u64::from_ne_bytes(first) | u64::from_ne_bytes(last)) & HIGH_BITS_8 == 0
        }),
        17..=32 => ends(bytes).is_some_and(|(first, last)| {
            (u128::from_ne_bytes(first) | u128::from_ne_bytes(last)) & HIGH_BITS_16 == 0
        }),
        _ => false,
    };
    is_ascii || is_other_utf8(bytes)
}

const HIGH_BITS_8: u64 = u64::from_ne_bytes([0x80; 8]);
const HIGH_BITS_16: u128 = u128::from_ne_bytes([0x80; 16]);

#[inline(always)]
fn ends<const N: usize>(bytes: &[u8]) -> Option<([u8; N], [u8; N])> {
    Some((*bytes.first_chunk()?, *bytes.last_chunk()?))
}

#[inline(never)]
fn is_other_utf8(bytes: &[u8]) -> bool {
    bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()
}
