//! The way of control messages from other data threads to the one with the registrar.
//!
//! Bounded: what does not fit is as good as lost on the way, and asked for again.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

use mio::{Poll, Token, Waker};

use crate::bus::ControlMessage;

/// Messages that may wait: one batch of each of 16 data threads.
pub const MESSAGES_MAX: usize = 1_024;

/// Where other data threads put control messages.
#[derive(Clone, Debug)]
pub struct ControlSender {
    messages: SyncSender<ControlMessage>,
    waker: Arc<Waker>,
}

impl ControlSender {
    /// Passes a message on and says whether there was room for it.
    #[must_use]
    pub fn send(&self, message: ControlMessage) -> bool {
        let has_room = self.messages.try_send(message).is_ok();
        // If it fails, the message waits till something else wakes the thread.
        let _ = self.waker.wake();
        has_room
    }
}

/// A queue, and the token by which `poll` tells of messages in it.
///
/// # Errors
///
/// Where the system has nothing to wake the poll by.
pub fn control_queue(
    poll: &Poll,
    token: Token,
) -> io::Result<(ControlSender, Receiver<ControlMessage>)> {
    let (messages, receiver) = mpsc::sync_channel(MESSAGES_MAX);
    let waker = Arc::new(Waker::new(poll.registry(), token)?);
    Ok((ControlSender { messages, waker }, receiver))
}
