//! What a subscriber is given: events, word of lost ones, counts and errors.

use std::fmt;
use std::io;

use hailmary_proto::decode::{EventView, FrameView};
use hailmary_proto::topic::TopicError;

use crate::lease::{Refusal, SubscriptionCounts};

/// Why there is no subscription.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// A pattern is illegal, or there is none at all.
    #[error("pattern {pattern:?}: {error}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        error: TopicError,
    },
    /// The name is not 1 to 64 bytes of `[A-Za-z0-9._-]`.
    #[error("a subscriber's name is 1 to 64 of A-Z a-z 0-9 . _ and -")]
    BadName,
    /// The group's name is longer than 64 bytes, or not of `[A-Za-z0-9._-]` alone.
    #[error("a group's name is up to 64 of A-Z a-z 0-9 . _ and -")]
    BadGroup,
    /// The share is not above 0 and at most 1.
    #[error("a sample is a share above 0 and at most 1")]
    BadSample,
    /// Patterns, group and name together exceed a datagram.
    #[error("the request does not fit into a datagram")]
    TooLarge,
    /// The bus refused; for [`Refusal::Full`], to the end of the time.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No lease was granted in time.
    #[error("no answer from the bus{}", describe(.unsent))]
    TimedOut {
        /// Why the newest request was not even sent, if it was not.
        unsent: Option<io::ErrorKind>,
    },
    /// The name is unknown, or there is no socket or randomness to be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn describe(unsent: &Option<io::ErrorKind>) -> String {
    unsent.map_or_else(String::new, |kind| {
        format!(" (the request was not sent: {kind})")
    })
}

/// Why no more events can be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The bus refused the lease for good.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This process is a forked child, and the subscription its parent's: let it
    /// make one of its own.
    #[error("the subscription is the parent process's")]
    Forked,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<RecvError> for SubscribeError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Refused(reason) => Self::Refused(reason),
            RecvError::Io(error) => Self::Io(error),
            // A child that was forked while its parent waited for the lease.
            RecvError::Forked => Self::Io(io::Error::other(error)),
        }
    }
}

/// An event that was received, with all that belongs to it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReceivedEvent {
    /// The topic.
    pub topic: String,
    /// Opaque to the bus.
    pub payload: Vec<u8>,
    /// Empty: no key.
    pub key: Vec<u8>,
    /// When the publisher made it, in nanoseconds of Unix time. 0: not told.
    pub time_unix_nano: u64,
    /// Names and values, as they came. Of a name that comes twice the last counts.
    pub attributes: Vec<(String, String)>,
    /// How many events it stands for: at least 1, more where the bus sampled. Where the
    /// number of events is wanted, the sum of weights estimates it.
    pub weight: f64,
}

impl ReceivedEvent {
    /// The current context with the span that published this event as its remote
    /// parent: see [`remote_context`](crate::remote_context).
    #[cfg(feature = "opentelemetry")]
    #[must_use]
    pub fn context(&self) -> opentelemetry::Context {
        let attributes = self.attributes.iter();
        crate::remote_context(attributes.map(|(name, value)| (name.as_str(), value.as_str())))
    }

    pub(crate) fn copy(event: &EventView<'_>, weight: f64) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            topic: event.topic().to_owned(),
            payload: event.payload().to_owned(),
            key: event.key().to_owned(),
            time_unix_nano: event.time_unix_nano(),
            attributes: event.attributes().map(own).collect(),
            weight,
        }
    }
}

/// The events of one datagram, borrowed from it.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedFrame<'a> {
    pub(crate) view: FrameView<'a>,
    pub(crate) weight: f64,
}

impl<'a> ReceivedFrame<'a> {
    /// The events, oldest first. There is at least one.
    pub fn events(&self) -> impl ExactSizeIterator<Item = EventView<'a>> + Clone + use<'a> {
        self.view.events()
    }

    /// How many events each of them stands for: more than 1 where the bus sampled.
    #[must_use]
    pub fn weight(&self) -> f64 {
        self.weight
    }
}

/// Events that do not come any more: of the stream, what is not in it.
///
/// The events that the bus had for this subscriber and that did not arrive, since
/// the last notice. An event is in one of the two counts and in one notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Events that the bus sent and that were lost on the way or in this socket's
    /// full buffer.
    pub lost: u64,
    /// Events that the bus dropped itself: for a limit that was asked for, or a
    /// full buffer.
    pub dropped_by_bus: u64,
}

impl Loss {
    /// Both together.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.lost.saturating_add(self.dropped_by_bus)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (events, dropped) = (self.events(), self.dropped_by_bus);
        write!(
            f,
            "{events} events lost, {dropped} of them dropped by the bus"
        )
    }
}

/// What a subscriber that wants to hear of losses receives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Item {
    /// An event.
    Event(ReceivedEvent),
    /// Word of events that do not come.
    Loss(Loss),
}

/// What a subscriber has seen since it began. No count but `awaited` ever falls.
///
/// An event that is missing is `awaited` for 3 seconds, for datagrams overtake each
/// other, and till there is nothing left to read; only then is it `lost`. So of the
/// events that the bus sent or dropped for this subscriber, up to the newest stamp
/// that came from it, each is `received`, `lost`, `dropped_by_bus` or `awaited`. The bus tells what went
/// after the newest event when it next renews the lease, 2 seconds later at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriberStats {
    /// Events that arrived, each counted once.
    pub received: u64,
    /// Events that the bus sent and that did not arrive.
    pub lost: u64,
    /// Events that the bus dropped for this subscriber.
    pub dropped_by_bus: u64,
    /// Events that arrived again, or after they had been counted as lost. They are
    /// handed out all the same, and are not among `received`.
    pub duplicates: u64,
    /// Events that are missing and may still come. This one count also falls.
    pub awaited: u64,
    /// Datagrams that were malformed, another sender's, or answers to nothing asked.
    pub ignored_frames: u64,
    /// How often another run of the bus took over.
    pub bus_restarts: u64,
    /// How often the lease ended before it was renewed. What the bus had for this
    /// subscriber in between is told by nobody.
    pub lapses: u64,
}

impl From<SubscriptionCounts> for SubscriberStats {
    fn from(counts: SubscriptionCounts) -> Self {
        Self {
            received: counts.flow.received,
            lost: counts.flow.lost,
            dropped_by_bus: counts.flow.dropped,
            duplicates: counts.flow.duplicates,
            awaited: counts.awaited,
            ignored_frames: counts.ignored_frames,
            bus_restarts: counts.bus_restarts,
            lapses: counts.lapses,
        }
    }
}
