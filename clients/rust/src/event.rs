//! An event as an application gives it, borrowed from wherever its parts are.
//!
//! Owns the check of what can be sent at all. It copies nothing and allocates
//! nothing; writing the bytes is the wire crate's.

use std::time::{SystemTime, UNIX_EPOCH};

use hailmary_proto::topic::check_topic;
use hailmary_proto::write::{EVENT_BYTES_MAX, EventParts, event_bytes};

use crate::counters::PublishError;

/// An event to publish. It borrows its parts, and costs nothing to make.
///
/// ```
/// use std::time::SystemTime;
/// use hailmary_client::Event;
///
/// let event = Event::new("search.index", "document 42")
///     .key(b"42")
///     .time(SystemTime::now())
///     .attributes(&[("content-type", "text/plain")]);
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "an event does nothing until it is published"]
pub struct Event<'a> {
    parts: EventParts<'a>,
}

impl<'a> Event<'a> {
    /// An event with this topic and payload alone.
    ///
    /// A topic is 1 to 255 bytes: up to 16 tokens of `[A-Za-z0-9_:/-]+`, joined by
    /// single dots. It is checked when the event is published. The payload is
    /// opaque to the bus; event and stamp must fit into one datagram of 65,507 bytes.
    pub fn new<P: AsRef<[u8]> + ?Sized>(topic: &'a str, payload: &'a P) -> Self {
        let payload = payload.as_ref();
        Self {
            parts: EventParts {
                topic,
                payload,
                ..EventParts::default()
            },
        }
    }

    /// Events with equal keys go to the same member of a group, and are sampled
    /// together. Empty: no key.
    pub fn key<K: AsRef<[u8]> + ?Sized>(mut self, key: &'a K) -> Self {
        self.parts.key = key.as_ref();
        self
    }

    /// When the event was made, to the nanosecond. A time before 1970 or after
    /// 2554 counts as not told.
    pub fn time(self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.time_unix_nano(u64::try_from(since.as_nanos()).unwrap_or(0))
    }

    /// When the event was made, in nanoseconds of Unix time. 0: not told.
    pub fn time_unix_nano(mut self, time_unix_nano: u64) -> Self {
        self.parts.time_unix_nano = time_unix_nano;
        self
    }

    /// Small facts beside the payload, as names and values. Of a name that comes
    /// twice, the last value counts.
    pub fn attributes(mut self, attributes: &'a [(&'a str, &'a str)]) -> Self {
        self.parts.attributes = attributes;
        self
    }

    pub(crate) fn parts(&self) -> &EventParts<'a> {
        &self.parts
    }

    /// How many bytes it takes in a frame, if it can be sent.
    pub(crate) fn check(&self) -> Result<usize, PublishError> {
        check_topic(self.parts.topic.as_bytes()).map_err(PublishError::Invalid)?;
        match event_bytes(&self.parts) {
            bytes if bytes <= EVENT_BYTES_MAX => Ok(bytes),
            _ => Err(PublishError::TooLarge),
        }
    }
}
