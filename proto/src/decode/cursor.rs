//! The primitives of protobuf's encoding, read one behind the other: keys, varints, lengths, and
//! the skipping of fields that nobody asked for.
//!
//! Every read is checked against the end of the message it is in. What is common (keys of one
//! byte, lengths of one or two) is inlined, everything else is one call away.

use super::Malformed;

/// How deep messages and groups may nest, those around included. prost's limit, and that of most
/// implementations.
pub(super) const FIELDS_DEEP_MAX: usize = 100;

/// The most bytes of a varint: 64 bits, 7 a byte.
const VARINT_BYTES_MAX: u32 = 10;

/// A place in the datagram, in bytes from its start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    /// What lies there. The cursor makes spans that are within its datagram alone.
    #[inline]
    pub(super) fn of(self, datagram: &[u8]) -> &[u8] {
        datagram
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
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

impl WireType {
    fn of(key: u32) -> Result<Self, Malformed> {
        match key & 7 {
            0 => Ok(WireType::Varint),
            1 => Ok(WireType::Fixed64),
            2 => Ok(WireType::Delimited),
            3 => Ok(WireType::GroupStart),
            4 => Ok(WireType::GroupEnd),
            5 => Ok(WireType::Fixed32),
            _ => Err(Malformed::Key),
        }
    }
}

/// The field number of a key that is none of the common ones, once the key is known to be legal.
#[inline]
pub(super) fn field_number(key: u32) -> Result<u32, Malformed> {
    WireType::of(key)?;
    match key >> 3 {
        0 => Err(Malformed::Key),
        number => Ok(number),
    }
}

/// A position in the datagram, and the end of the message that it is in.
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

    /// At the first field inside the length-delimited `field`.
    pub(super) fn inside_field(field: &'a [u8]) -> Self {
        let mut cursor = Cursor::new(field);
        let inside = cursor.key().and_then(|_| cursor.delimited());
        cursor.within(inside.unwrap_or_default())
    }

    /// At the start of a message within this one.
    #[inline]
    pub(super) fn within(&self, message: Span) -> Self {
        let bytes = self.bytes.get(..message.end as usize).unwrap_or_default();
        Cursor {
            bytes,
            at: message.start as usize,
        }
    }

    #[inline]
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a datagram has less than 4 GiB"
    )]
    pub(super) fn at(&self) -> u32 {
        self.at as u32
    }

    /// The bytes at `span` of the datagram.
    #[inline]
    pub(super) fn bytes(&self, span: Span) -> &'a [u8] {
        span.of(self.bytes)
    }

    /// A field's key: its number times 8, plus its wire type. Not yet known to be legal.
    #[inline(always)]
    pub(super) fn key(&mut self) -> Result<u32, Malformed> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u32::from(byte))
            }
            _ => u32::try_from(self.long_varint()?).map_err(|_| Malformed::Key),
        }
    }

    /// A varint of 64 bits.
    #[inline(always)]
    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        match self.bytes.get(self.at..) {
            Some(&[byte, ..]) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            Some(&[low, high, ..]) if high < 0x80 => {
                self.at += 2;
                Ok(u64::from(low & 0x7F) | u64::from(high) << 7)
            }
            _ => self.long_varint(),
        }
    }

    /// A varint of any length, byte by byte.
    #[inline(never)]
    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for place in 0..VARINT_BYTES_MAX {
            let byte = *self.bytes.get(self.at).ok_or(Malformed::Truncated)?;
            self.at += 1;
            value |= u64::from(byte & 0x7F) << (7 * place);
            if byte < 0x80 {
                // The last byte has room for one bit.
                let overflows = place + 1 == VARINT_BYTES_MAX && byte > 1;
                return if overflows {
                    Err(Malformed::Varint)
                } else {
                    Ok(value)
                };
            }
        }
        Err(Malformed::Varint)
    }

    /// A 64-bit number in eight bytes, the lowest first.
    #[inline(always)]
    pub(super) fn fixed64(&mut self) -> Result<u64, Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let bytes = rest.first_chunk::<8>().ok_or(Malformed::Truncated)?;
        self.at += 8;
        Ok(u64::from_le_bytes(*bytes))
    }

    /// A length and the bytes that it counts.
    #[inline(always)]
    pub(super) fn delimited(&mut self) -> Result<Span, Malformed> {
        let length = self.varint()?;
        let start = self.at();
        self.advance(length)?;
        Ok(Span {
            start,
            end: self.at(),
        })
    }

    /// The same, where the bytes must be UTF-8.
    #[inline(always)]
    pub(super) fn text(&mut self) -> Result<Span, Malformed> {
        let span = self.delimited()?;
        let bytes = self.bytes(span);
        if is_ascii(bytes) || is_utf8(bytes) {
            Ok(span)
        } else {
            Err(Malformed::Utf8)
        }
    }

    #[inline(always)]
    fn advance(&mut self, length: u64) -> Result<(), Malformed> {
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(Malformed::Truncated);
        }
        // Not larger than a usize, as it is not larger than what is left.
        self.at += usize::try_from(length).unwrap_or_default();
        Ok(())
    }

    /// Skips a field that this protocol has length-delimited alone.
    pub(super) fn skip_delimited(&mut self, key: u32) -> Result<(), Malformed> {
        if WireType::of(key)? == WireType::Delimited {
            self.delimited().map(drop)
        } else {
            Err(Malformed::WireType)
        }
    }

    /// Skips an unknown field whose key has just been read. Groups may nest `deep` levels, their
    /// fields included.
    pub(super) fn skip(&mut self, key: u32, deep: usize) -> Result<(), Malformed> {
        match WireType::of(key)? {
            WireType::GroupStart => self.skip_group(key, deep),
            WireType::GroupEnd => Err(Malformed::Group),
            flat => self.skip_value(flat),
        }
    }

    fn skip_value(&mut self, wire_type: WireType) -> Result<(), Malformed> {
        match wire_type {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.advance(8),
            WireType::Fixed32 => self.advance(4),
            WireType::Delimited => self.delimited().map(drop),
            WireType::GroupStart | WireType::GroupEnd => Err(Malformed::Group),
        }
    }

    /// Skips the rest of a group, with what groups it holds on a stack of fixed size.
    #[cold]
    fn skip_group(&mut self, first: u32, deep: usize) -> Result<(), Malformed> {
        let mut open = OpenGroups::new(deep);
        open.push(first)?;
        while !open.is_empty() {
            let key = self.key()?;
            field_number(key)?;
            match WireType::of(key)? {
                WireType::GroupEnd => open.pop(key)?,
                WireType::GroupStart => open.push(key)?,
                _ if open.is_full() => return Err(Malformed::Group),
                flat => self.skip_value(flat)?,
            }
        }
        Ok(())
    }
}

/// The groups that have begun and not ended, outermost first.
struct OpenGroups {
    numbers: [u32; FIELDS_DEEP_MAX],
    deep: usize,
    deep_max: usize,
}

impl OpenGroups {
    fn new(deep_max: usize) -> Self {
        OpenGroups {
            numbers: [0; FIELDS_DEEP_MAX],
            deep: 0,
            deep_max,
        }
    }

    fn is_empty(&self) -> bool {
        self.deep == 0
    }

    fn is_full(&self) -> bool {
        self.deep >= self.deep_max
    }

    fn push(&mut self, key: u32) -> Result<(), Malformed> {
        match self.numbers.get_mut(self.deep) {
            Some(number) if self.deep < self.deep_max => *number = key >> 3,
            _ => return Err(Malformed::Group),
        }
        self.deep += 1;
        Ok(())
    }

    fn pop(&mut self, key: u32) -> Result<(), Malformed> {
        let innermost = self.deep.checked_sub(1).ok_or(Malformed::Group)?;
        if self.numbers.get(innermost) != Some(&(key >> 3)) {
            return Err(Malformed::Group);
        }
        self.deep = innermost;
        Ok(())
    }
}

/// Whether all bytes are ASCII: eight at a time, the last eight perhaps twice.
#[inline(always)]
fn is_ascii(bytes: &[u8]) -> bool {
    bytes.is_ascii()
}

#[cold]
fn is_utf8(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}
