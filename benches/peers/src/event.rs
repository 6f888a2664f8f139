//! What every event of the comparison carries in its payload, whatever bus it takes.
//!
//! Owns the layout: what kind of event it is, when it was to be sent and which number it has. It
//! knows no bus's bytes around it.

/// The topic of all events. NATS and Hail Mary take the dots for levels, the others for letters.
pub const TOPIC: &str = "search.index.photo";

/// Bytes of an event's payload.
pub const PAYLOAD_BYTES: usize = 128;

/// Bytes of the payload that are in use: the kind, and the two numbers. The rest is filling.
const HEAD_BYTES: usize = 1 + 8 + 8;

/// What fills the payload up: a byte that no protocol here gives a meaning to.
const FILLING: u8 = b'x';

/// What an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sent until every subscriber has seen one: so the way is open, whatever the protocol says
    /// of it or does not.
    WarmUp,
    /// One of those that the figures are of.
    Counted,
    /// Sent behind the counted ones until every subscriber has seen one: so nothing that was
    /// counted is on its way any more.
    End,
}

/// What a payload says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the event is for.
    pub kind: Kind,
    /// When it was to be sent, in ns of the monotonic clock.
    pub due_nano: u64,
    /// Its number among the events of its kind.
    pub number: u64,
}

impl Head {
    /// Writes it at the beginning of a payload; one that is too short is left alone.
    #[inline]
    pub fn write(&self, payload: &mut [u8]) {
        let Some(head) = payload.first_chunk_mut::<HEAD_BYTES>() else {
            return;
        };
        let (kind, numbers) = head.split_at_mut(1);
        kind.fill(match self.kind {
            Kind::WarmUp => b'W',
            Kind::Counted => b'C',
            Kind::End => b'E',
        });
        let (due, number) = numbers.split_at_mut(8);
        due.copy_from_slice(&self.due_nano.to_le_bytes());
        number.copy_from_slice(&self.number.to_le_bytes());
    }

    /// Reads a payload; nothing if it is none of this comparison's.
    #[inline]
    pub fn read(payload: &[u8]) -> Option<Self> {
        if payload.len() != PAYLOAD_BYTES {
            return None;
        }
        let (kind, numbers) = payload.split_first()?;
        let (due, numbers) = numbers.split_first_chunk()?;
        Some(Self {
            kind: match kind {
                b'W' => Kind::WarmUp,
                b'C' => Kind::Counted,
                b'E' => Kind::End,
                _ => return None,
            },
            due_nano: u64::from_le_bytes(*due),
            number: u64::from_le_bytes(*numbers.first_chunk()?),
        })
    }
}

/// A payload that says nothing yet.
pub fn blank_payload() -> [u8; PAYLOAD_BYTES] {
    [FILLING; PAYLOAD_BYTES]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_what_was_written_and_others_say_nothing() {
        for kind in [Kind::WarmUp, Kind::Counted, Kind::End] {
            let head = Head {
                kind,
                due_nano: u64::MAX - 7,
                number: 1 << 40,
            };
            let mut payload = blank_payload();
            head.write(&mut payload);
            assert_eq!(Head::read(&payload), Some(head));
            assert_eq!(Head::read(&payload[1..]), None);
        }
        assert_eq!(Head::read(&blank_payload()), None);
    }
}
