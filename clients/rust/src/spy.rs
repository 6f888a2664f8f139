//! What a publisher for tests has published.
//!
//! Owns the recording and its bound. The frames are those that a bus would have
//! got, and are decoded as a subscriber decodes them. Unlike all other publishing
//! it takes a lock and allocates.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hailmary_proto::decode::Decoder;

use crate::received::ReceivedEvent;

/// How many events a [`Spy`] keeps. Those beyond are dropped as
/// [`would_block`](crate::PublisherStats::would_block), as by a bus that does not
/// read: a test that publishes without end then shows it.
pub const SPY_EVENTS_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Recording {
    events: Mutex<Vec<ReceivedEvent>>,
}

/// Sees what a [publisher made for a test](crate::Publisher::spy) publishes.
#[derive(Clone, Debug)]
pub struct Spy {
    recording: Arc<Recording>,
}

impl Spy {
    pub(crate) fn new(recording: Arc<Recording>) -> Self {
        Self { recording }
    }

    /// The events published so far, oldest first, as a subscriber would have
    /// received them.
    #[must_use]
    pub fn events(&self) -> Vec<ReceivedEvent> {
        self.recording.lock().clone()
    }

    /// Takes the events published so far, so that the next call gives only those
    /// that came after.
    #[must_use]
    pub fn take(&self) -> Vec<ReceivedEvent> {
        std::mem::take(&mut *self.recording.lock())
    }
}

impl Recording {
    /// Takes a frame, wholly or not at all.
    pub(crate) fn record(&self, datagram: &[u8]) -> io::Result<()> {
        let mut decoder = Decoder::new();
        let Ok(frame) = decoder.decode(datagram) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut events = self.lock();
        if events.len() + frame.events().len() > SPY_EVENTS_MAX {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        events.extend(frame.events().map(|event| ReceivedEvent::copy(&event, 1.0)));
        Ok(())
    }

    /// A test that failed while it held the lock left whole events behind.
    fn lock(&self) -> MutexGuard<'_, Vec<ReceivedEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
