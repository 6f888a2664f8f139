//! Makes datagrams from a tape of random bytes: each decision (which field next, how long, how
//! broken) takes one byte off the tape. So a property test shrinks the tape, not the datagram, and
//! what it shrinks to is still built like a frame.

/// Whether what is made must be a frame.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Faults {
    /// Legal, however odd: any order, repeated and unknown fields, long varints, groups.
    None,
    /// Now and then something that is not.
    Some,
}

/// A message of the protocol, and how its fields are typed.
#[derive(Clone, Copy)]
enum Kind {
    Frame,
    Event,
    Attribute,
    Stamp,
    Subscribe,
    Report,
    Proof,
    Lease,
    Refusal,
    Ping,
    Pong,
    Seal,
}

#[derive(Clone, Copy)]
enum Type {
    Text,
    Bytes,
    Varint,
    Fixed64,
    Message(Kind),
}

impl Kind {
    fn fields(self) -> &'static [(u64, Type)] {
        use Type::{Bytes, Fixed64, Message, Text, Varint};
        match self {
            Kind::Frame => &[
                (1, Message(Kind::Event)),
                (1, Message(Kind::Event)),
                (1, Message(Kind::Event)),
                (1, Message(Kind::Event)),
                (2, Message(Kind::Stamp)),
                (2, Message(Kind::Stamp)),
                (3, Message(Kind::Subscribe)),
                (4, Message(Kind::Proof)),
                (5, Message(Kind::Proof)),
                (6, Message(Kind::Lease)),
                (7, Message(Kind::Refusal)),
                (8, Message(Kind::Ping)),
                (9, Message(Kind::Pong)),
                (14, Message(Kind::Seal)),
                (15, Bytes),
            ],
            Kind::Event => &[
                (1, Text),
                (2, Bytes),
                (3, Bytes),
                (4, Fixed64),
                (5, Message(Kind::Attribute)),
                (5, Message(Kind::Attribute)),
            ],
            Kind::Attribute => &[(1, Text), (2, Text)],
            Kind::Stamp => &[
                (1, Fixed64),
                (2, Varint),
                (3, Varint),
                (4, Varint),
                (5, Fixed64),
            ],
            Kind::Subscribe => &[
                (1, Text),
                (2, Text),
                (3, Text),
                (4, Varint),
                (5, Bytes),
                (6, Varint),
                (7, Fixed64),
                (8, Varint),
                (9, Message(Kind::Report)),
                (10, Fixed64),
            ],
            Kind::Report => &[(1, Fixed64), (2, Varint), (3, Varint), (4, Varint)],
            Kind::Proof => &[(1, Bytes), (2, Fixed64)],
            Kind::Lease => &[(1, Fixed64), (2, Varint), (3, Bytes), (4, Fixed64)],
            Kind::Refusal => &[(1, Varint), (2, Fixed64)],
            Kind::Ping => &[(1, Fixed64)],
            Kind::Pong => &[(1, Fixed64), (2, Fixed64), (3, Varint), (4, Varint)],
            Kind::Seal => &[(1, Varint), (2, Fixed64), (3, Bytes)],
        }
    }
}

const TEXTS: [&str; 6] = [
    "",
    "a",
    "search.index.photo",
    "Grüße.aus.Köln",
    "🦀",
    "content-type",
];

const NOT_UTF8: [&[u8]; 5] = [
    b"\xff",
    b"abcdefgh\x80",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"search.\xf4\x90\x80\x80",
];

/// Levels that messages and groups may nest, as prost counts them.
const LEVELS: usize = 100;

/// A datagram from `tape`.
pub(crate) fn datagram(tape: &[u8], faults: Faults) -> Vec<u8> {
    Maker {
        tape: tape.iter(),
        faults,
    }
    .message(Kind::Frame, LEVELS)
}

struct Maker<'a> {
    tape: std::slice::Iter<'a, u8>,
    faults: Faults,
}

impl Maker<'_> {
    /// The next byte of the tape, and when there is none, for ever 0.
    fn draw(&mut self) -> u8 {
        self.tape.next().copied().unwrap_or_default()
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.draw()) % end
    }

    /// Never where faults are not wanted.
    fn is_faulty(&mut self) -> bool {
        self.faults == Faults::Some && (77..80).contains(&self.draw())
    }

    fn message(&mut self, kind: Kind, levels: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..self.below(8) {
            self.field(kind, levels, &mut out);
        }
        out
    }

    fn field(&mut self, kind: Kind, levels: usize, out: &mut Vec<u8>) {
        if self.is_faulty() {
            return self.broken_field(kind, out);
        }
        if self.below(8) == 7 {
            return self.unknown_field(levels, out);
        }
        let fields = kind.fields();
        let (number, field_type) = fields[self.below(fields.len())];
        match field_type {
            Type::Varint => {
                self.key(number, 0, out);
                self.number(out);
            }
            Type::Fixed64 => {
                self.key(number, 1, out);
                self.fixed(8, out);
            }
            Type::Text => {
                let text = self.text();
                self.delimited(number, &text, out);
            }
            Type::Bytes => {
                let bytes = self.bytes();
                self.delimited(number, &bytes, out);
            }
            Type::Message(inner) => {
                let message = self.message(inner, levels - 1);
                self.delimited(number, &message, out);
            }
        }
    }

    /// A field number of the message or around it, any wire type, and not much care beyond.
    fn broken_field(&mut self, kind: Kind, out: &mut Vec<u8>) {
        let number = match self.below(4) {
            0 => self.below(20) as u64,
            1 => (1 << 29) - 1 + self.below(2) as u64,
            _ => kind.fields()[self.below(kind.fields().len())].0,
        };
        let wire_type = self.below(8) as u64;
        self.key(number, wire_type, out);
        match wire_type {
            0 => self.number(out),
            1 => self.fixed(8, out),
            2 => out.extend(self.bytes()),
            3 => self.group_rest(number, LEVELS, out),
            5 => self.fixed(4, out),
            _ => {}
        }
    }

    fn unknown_field(&mut self, levels: usize, out: &mut Vec<u8>) {
        let number = [11, 13, 16, 2047, 2048, (1 << 29) - 1][self.below(6)];
        match self.below(6) {
            0 => {
                self.key(number, 0, out);
                self.number(out);
            }
            1 => {
                self.key(number, 1, out);
                self.fixed(8, out);
            }
            2 => {
                self.key(number, 5, out);
                self.fixed(4, out);
            }
            3 => {
                let bytes = self.bytes();
                self.delimited(number, &bytes, out);
            }
            4 => self.group(number, levels, out),
            _ => self.deep_groups(number, levels, out),
        }
    }

    /// A group where `levels` more may nest, this one included.
    fn group(&mut self, number: u64, levels: usize, out: &mut Vec<u8>) {
        self.key(number, 3, out);
        self.group_rest(number, levels, out);
    }

    fn group_rest(&mut self, number: u64, levels: usize, out: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            // Within a group, no field is known, so a known one's number means nothing either.
            if levels > 1 && self.below(2) == 1 {
                self.unknown_field(levels - 1, out);
            }
        }
        let end = if self.is_faulty() { number + 1 } else { number };
        if !self.is_faulty() {
            self.key(end, 4, out);
        }
    }

    /// Groups down to the last level that there may be, or one deeper.
    fn deep_groups(&mut self, number: u64, levels: usize, out: &mut Vec<u8>) {
        let deeper = usize::from(self.faults == Faults::Some && self.below(2) == 1);
        let deep = levels - self.below(2).min(levels - 1) + deeper;
        for _ in 0..deep {
            self.key(number, 3, out);
        }
        // A field counts as a level of its own.
        if deep < levels || self.is_faulty() {
            self.key(7, 0, out);
            self.number(out);
        }
        for _ in 0..deep {
            self.key(number, 4, out);
        }
    }

    fn key(&mut self, number: u64, wire_type: u64, out: &mut Vec<u8>) {
        self.varint(number << 3 | wire_type, out);
    }

    fn delimited(&mut self, number: u64, bytes: &[u8], out: &mut Vec<u8>) {
        self.key(number, 2, out);
        let mut length = bytes.len() as u64;
        if self.is_faulty() {
            length = match self.below(4) {
                0 => length + 1,
                1 => length.saturating_sub(1),
                2 => u64::MAX - self.draw() as u64,
                _ => self.draw() as u64,
            };
        }
        self.varint(length, out);
        out.extend_from_slice(bytes);
    }

    fn number(&mut self, out: &mut Vec<u8>) {
        let value = match self.below(4) {
            0 => u64::from(self.draw()),
            1 => u64::MAX - u64::from(self.draw()),
            2 => 1 << self.below(64),
            _ => u64::from(self.draw()) << 28 | u64::from(self.draw()),
        };
        self.varint(value, out);
    }

    /// Mostly as short as can be, at times longer, up to ten bytes; or with a fault, past that.
    fn varint(&mut self, mut value: u64, out: &mut Vec<u8>) {
        let bytes_min = if self.below(16) == 15 {
            1 + self.below(10)
        } else {
            1
        };
        let mut bytes = 1;
        while value >= 0x80 || bytes < bytes_min {
            out.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
            bytes += 1;
        }
        out.push(value.to_le_bytes()[0]);
        if self.is_faulty() {
            // One byte of more, which ends the varint or does not.
            let last = out.len() - 1;
            out[last] |= 0x80;
            out.push(self.draw());
        }
    }

    fn fixed(&mut self, bytes: usize, out: &mut Vec<u8>) {
        let bytes = if self.is_faulty() {
            self.below(bytes)
        } else {
            bytes
        };
        for _ in 0..bytes {
            out.push(self.draw());
        }
    }

    fn text(&mut self) -> Vec<u8> {
        if self.is_faulty() {
            return NOT_UTF8[self.below(NOT_UTF8.len())].to_vec();
        }
        TEXTS[self.below(TEXTS.len())]
            .repeat(1 + self.below(4))
            .into_bytes()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = match self.below(8) {
            0 => 126 + self.below(4),
            1 => 16_382 + self.below(4),
            _ => self.below(24),
        };
        (0..length).map(|_| self.draw()).collect()
    }
}
