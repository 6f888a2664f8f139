//! What became of a publisher's events: one flow's sender id, sequence and counts.
//!
//! Owns the reasons of a drop and the order in which threads count. It knows no
//! socket, takes no lock, and counts each event once.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use hailmary_proto::topic::TopicError;
use hailmary_proto::v1;

/// Why an event was not handed to the kernel. Each of these is also counted in
/// [`PublisherStats`], under the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The topic is illegal: the program's mistake.
    #[error("{0}")]
    Invalid(TopicError),
    /// Event and stamp exceed a datagram, or the kernel takes none so long.
    #[error("the event is too large for a datagram")]
    TooLarge,
    /// The socket's buffer, or the queue of the bus's Unix socket, is full.
    #[error("the way to the bus is full")]
    WouldBlock,
    /// The kernel has no memory, or the queue of a network card is full.
    #[error("the kernel has no buffer for the datagram")]
    NoBuffer,
    /// Nobody listens at the bus's address.
    #[error("nobody listens at the bus's address")]
    Refused,
    /// There is no way to the bus's host.
    #[error("there is no way to the bus's host")]
    Unreachable,
    /// The kernel refused for another reason, such as a packet filter's.
    #[error("the kernel did not take the datagram: {0}")]
    Failed(io::ErrorKind),
}

impl PublishError {
    /// Whether there was no room now, and may be soon.
    #[must_use]
    pub fn is_full(self) -> bool {
        matches!(self, Self::WouldBlock | Self::NoBuffer)
    }
}

/// What became of a publisher's events. Each event that was given to it is in
/// one of the counts but the last; they are of all clones together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherStats {
    /// Events handed to the kernel. One that another thread is handing over at
    /// this moment counts already.
    pub sent: u64,
    /// Events dropped for an illegal topic.
    pub invalid: u64,
    /// Events dropped because no datagram takes them.
    pub too_large: u64,
    /// Events dropped because the socket's buffer or the bus's queue was full.
    pub would_block: u64,
    /// Events dropped because the kernel had no memory, or a card's queue was full.
    pub no_buffer: u64,
    /// Events dropped because nobody listened. Over UDP, see `bounced`.
    pub refused: u64,
    /// Events dropped because there was no way to the bus's host.
    pub unreachable: u64,
    /// Events dropped for other reasons of the kernel.
    pub failed: u64,
    /// How often the kernel said that an earlier datagram had found nobody. The
    /// events in it count as sent: which datagram it was, it does not say.
    pub bounced: u64,
}

impl PublisherStats {
    /// Events dropped here, for whatever reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.invalid
            + self.too_large
            + self.would_block
            + self.no_buffer
            + self.refused
            + self.unreachable
            + self.failed
    }

    /// All events that were given to the publisher: sent or dropped.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.sent + self.dropped()
    }
}

/// The counters of the flow from this publisher to the bus. What was dropped is among
/// `sequence`.
#[derive(Debug)]
pub(crate) struct Counters {
    sender: u64,
    sequence: AtomicU64,
    invalid: AtomicU64,
    too_large: AtomicU64,
    would_block: AtomicU64,
    no_buffer: AtomicU64,
    refused: AtomicU64,
    unreachable: AtomicU64,
    failed: AtomicU64,
    bounced: AtomicU64,
}

impl Counters {
    pub(crate) fn new(sender: u64) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            sender,
            sequence: zero(),
            invalid: zero(),
            too_large: zero(),
            would_block: zero(),
            no_buffer: zero(),
            refused: zero(),
            unreachable: zero(),
            failed: zero(),
            bounced: zero(),
        }
    }

    pub(crate) fn sender(&self) -> u64 {
        self.sender
    }

    /// Takes the next numbers for `events`. The drops are read first, so that
    /// all of them are of events with lower numbers (each took its number before
    /// it was counted, and `Release` with `Acquire` keeps that order).
    pub(crate) fn stamp(&self, events: u64) -> v1::Stamp {
        let dropped = self.drops().dropped();
        v1::Stamp {
            sender: self.sender,
            sequence: self.sequence.fetch_add(events, Ordering::Relaxed),
            dropped,
            ..v1::Stamp::default()
        }
    }

    /// Counts an event that was never to be sent.
    #[cold]
    pub(crate) fn count_unsent(&self, reason: PublishError) {
        self.sequence.fetch_add(1, Ordering::Relaxed);
        self.count_dropped(reason, 1);
    }

    /// Counts events that have had their numbers.
    #[cold]
    pub(crate) fn count_dropped(&self, reason: PublishError, events: u64) {
        let count = match reason {
            PublishError::Invalid(_) => &self.invalid,
            PublishError::TooLarge => &self.too_large,
            PublishError::WouldBlock => &self.would_block,
            PublishError::NoBuffer => &self.no_buffer,
            PublishError::Refused => &self.refused,
            PublishError::Unreachable => &self.unreachable,
            PublishError::Failed(_) => &self.failed,
        };
        count.fetch_add(events, Ordering::Release);
    }

    pub(crate) fn count_bounced(&self) {
        self.bounced.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> PublisherStats {
        let drops = self.drops();
        let given = self.sequence.load(Ordering::Relaxed);
        PublisherStats {
            sent: given.saturating_sub(drops.dropped()),
            bounced: self.bounced.load(Ordering::Relaxed),
            ..drops
        }
    }

    fn drops(&self) -> PublisherStats {
        PublisherStats {
            sent: 0,
            invalid: self.invalid.load(Ordering::Acquire),
            too_large: self.too_large.load(Ordering::Acquire),
            would_block: self.would_block.load(Ordering::Acquire),
            no_buffer: self.no_buffer.load(Ordering::Acquire),
            refused: self.refused.load(Ordering::Acquire),
            unreachable: self.unreachable.load(Ordering::Acquire),
            failed: self.failed.load(Ordering::Acquire),
            bounced: 0,
        }
    }
}
