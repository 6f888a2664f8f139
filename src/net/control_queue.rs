//! What others put to a data thread: control messages that came to another one, for the one with
//! the registrar, and orders of the thread that reloads. Either wakes it.
//!
//! Control messages are bounded: what does not fit is as good as lost on the way, and asked for
//! again. Orders come one at a time: who gives one waits for its end.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Registry, Token, Waker};

use crate::bus::directory::Reconfigured;
use crate::bus::{ControlMessage, Settings};

use super::listener::{Buffer, Listener};
use super::sys::Ask;

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

/// A queue for the data thread that this wakes.
#[must_use]
pub fn control_queue(waker: &Arc<Waker>) -> (ControlSender, Receiver<ControlMessage>) {
    let (messages, receiver) = mpsc::sync_channel(MESSAGES_MAX);
    let waker = Arc::clone(waker);
    (ControlSender { messages, waker }, receiver)
}

/// What a data thread is to do between two turns. All of it is done: where the system refuses a
/// socket another buffer, or will not have its datagrams asked otherwise, that socket stays as it
/// was, it is warned of, and the rest is done.
#[derive(Debug)]
pub enum Order {
    /// Finish under the old rules what the new ones would spoil.
    Clear(Clear),
    /// Put these settings in the directory. For the data thread with the registrar alone.
    Reconfigure(Box<Settings>),
    /// Work with these from now on.
    Equip(Equipment),
}

/// See [`Order::Clear`].
#[derive(Clone, Debug)]
pub struct Clear {
    /// Listeners, by place, to let nobody in any more, to empty and to close.
    pub close: Vec<usize>,
    /// What datagrams are to be asked from now on, where that is more than till now. Those that
    /// were sent unasked can be taken before the new rules want to know.
    pub ask: Ask,
}

/// See [`Order::Equip`].
#[derive(Debug)]
pub struct Equipment {
    /// Bound listeners by place, which the poll knows already.
    pub listeners: Vec<(usize, Listener)>,
    /// How long a busy loop waits for a fuller batch.
    pub linger: Duration,
    /// Receive buffer of each listener, in bytes.
    pub receive_buffer_bytes: usize,
    /// Send buffer of each egress socket, in bytes.
    pub send_buffer_bytes: usize,
    /// What datagrams are asked.
    pub ask: Ask,
}

/// What an order brought about.
#[derive(Debug, Default)]
pub struct Done {
    /// What became of the static subscribers.
    pub subscribers: Reconfigured,
    /// How many leases ended.
    pub leases_revoked: usize,
    /// The receive buffers of all listeners, by place.
    pub buffers: Vec<(usize, Buffer)>,
}

/// An order, and where its end is awaited.
#[derive(Debug)]
pub struct Task {
    /// What is to be done.
    pub order: Order,
    /// Who waits for it.
    pub done: SyncSender<Done>,
}

/// Where a data thread gets its orders from.
#[derive(Debug)]
pub struct OrderSender {
    tasks: SyncSender<Task>,
    waker: Arc<Waker>,
    registry: Registry,
}

impl OrderSender {
    /// Another one to the same data thread.
    ///
    /// # Errors
    ///
    /// Where the system has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            tasks: self.tasks.clone(),
            waker: Arc::clone(&self.waker),
            registry: self.registry.try_clone()?,
        })
    }

    /// Has the thread's poll watch a listener that an order is going to bring it. Till then what
    /// it tells of it is ignored; it forgets a listener that is closed instead.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn watch(&self, place: usize, listener: &Listener) -> io::Result<()> {
        let socket = listener.as_fd().as_raw_fd();
        let mut source = SourceFd(&socket);
        self.registry
            .register(&mut source, Token(place), Interest::READABLE)
    }

    /// Gives an order. What comes back tells of its end, or is cut off where the thread has ended.
    #[must_use]
    pub fn give(&self, order: Order) -> Receiver<Done> {
        let (done, is_done) = mpsc::sync_channel(1);
        // Where the thread has ended, the end of `done` tells.
        let _ = self.tasks.send(Task { order, done });
        let _ = self.waker.wake();
        is_done
    }
}

/// A way for orders to the data thread that has this poll and is woken by this.
///
/// # Errors
///
/// Where the system has no descriptor left.
pub fn order_queue(poll: &Poll, waker: &Arc<Waker>) -> io::Result<(OrderSender, Receiver<Task>)> {
    let (tasks, receiver) = mpsc::sync_channel(1);
    let sender = OrderSender {
        tasks,
        waker: Arc::clone(waker),
        registry: poll.registry().try_clone()?,
    };
    Ok((sender, receiver))
}
