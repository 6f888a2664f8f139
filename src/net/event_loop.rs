//! The data thread: waits for datagrams, drives the core through its turns, sends what it says.
//!
//! Owns the sockets, the clock and the books, and decides nothing about events. One error of one
//! socket or peer never ends it.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use tracing::warn;

use crate::bus::leases::LeaseEvent;
use crate::bus::subscribers::{Subscriber, SubscriberId, Tenure};
use crate::bus::{Arrival, Bus, FrameDrop};
use crate::ledger::Ledger;
use crate::logging::{Recurring, Suppressor};
use crate::state::{Kind, Phase, State, SubscriberInfo};

use super::egress::Egress;
use super::listener::Listener;
use super::sys::{self, BATCH, ReceiveRing};

/// Turns between two looks at the poll while datagrams keep coming: a signal, and a listener
/// that was idle, wait no longer than this many batches.
const TURNS_PER_WAKE_UP: usize = 16;

/// How long counts may stay with the data thread under load.
const HAND_OVER_EVERY: Duration = Duration::from_millis(50);

/// Turns in a row that find several datagrams, but less than a batch, before the loop lingers:
/// one such turn is chance, a few are load.
const LINGER_AFTER_TURNS: u32 = 4;

/// Turns that a stop may take to empty the sockets: four times what the largest buffer holds of
/// the smallest datagrams is more than anybody sent before the stop.
const DRAIN_TURNS_MAX: usize = 8_192;

/// The poll's token for signals; listeners have their index.
const SIGNALS: Token = Token(usize::MAX);

/// What the loop is made of.
#[derive(Debug)]
pub struct Parts {
    /// The core.
    pub bus: Bus,
    /// Bound sockets.
    pub listeners: Vec<Listener>,
    /// Sockets to send by.
    pub egress: Egress,
    /// Becomes readable when the process is to stop.
    pub stop: UnixStream,
    /// What it shows of itself.
    pub state: Arc<State>,
    /// How long a busy loop waits for a fuller batch.
    pub linger: Duration,
}

/// The data thread's loop.
#[derive(Debug)]
pub struct EventLoop {
    parts: Parts,
    poll: Poll,
    /// Whether a listener may have more, by index: the poll tells only once.
    readable: Vec<bool>,
    ring: ReceiveRing,
    ledger: Ledger,
    lease_events: Vec<LeaseEvent>,
    handed_over: Duration,
    busy_turns: u32,
    logs: Suppressor,
}

impl EventLoop {
    /// Registers the sockets.
    ///
    /// # Errors
    ///
    /// Where the system has no poll to give.
    pub fn new(parts: Parts) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (index, listener) in parts.listeners.iter().enumerate() {
            let socket = listener.as_fd().as_raw_fd();
            poll.registry()
                .register(&mut SourceFd(&socket), Token(index), Interest::READABLE)?;
        }
        parts.stop.set_nonblocking(true)?;
        let stop = parts.stop.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&stop), SIGNALS, Interest::READABLE)?;
        let ledger = Ledger::new(parts.listeners.len(), parts.state.topic_policies.len());
        let mut this = Self {
            readable: vec![true; parts.listeners.len()],
            ring: ReceiveRing::new(),
            ledger,
            lease_events: Vec::new(),
            handed_over: Duration::ZERO,
            busy_turns: 0,
            logs: Suppressor::default(),
            parts,
            poll,
        };
        let ids: Vec<_> = this
            .parts
            .bus
            .subscribers()
            .iter()
            .map(|(id, _)| id)
            .collect();
        for id in ids {
            this.welcome(id);
        }
        Ok(this)
    }

    /// Runs till it is to stop, then takes what is in the sockets, and hands its books over.
    ///
    /// # Errors
    ///
    /// Where the poll itself fails, which no peer can bring about.
    pub fn run(mut self) -> io::Result<()> {
        self.parts.state.set_phase(Phase::Ready);
        let mut events = Events::with_capacity(self.parts.listeners.len() + 1);
        while !self.sleep(&mut events)? {
            for _ in 0..TURNS_PER_WAKE_UP {
                self.turn();
                if !self.is_readable() {
                    break;
                }
            }
        }
        self.parts.state.set_phase(Phase::Stopping);
        self.drain();
        Ok(())
    }

    /// Waits for something to do and says whether it is to stop.
    fn sleep(&mut self, events: &mut Events) -> io::Result<bool> {
        let now = self.now();
        let wait = if self.is_readable() {
            Some(Duration::ZERO)
        } else {
            self.parts
                .bus
                .poll_timeout()
                .map(|end| end.saturating_sub(now))
        };
        if wait != Some(Duration::ZERO) {
            self.hand_over(now);
            self.parts.state.end_turn();
        } else if now.saturating_sub(self.handed_over) >= HAND_OVER_EVERY {
            self.hand_over(now);
        }
        match self.poll.poll(events, wait) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.parts.state.begin_turn(self.now());
        let mut is_to_stop = false;
        for event in events.iter() {
            match self.readable.get_mut(event.token().0) {
                Some(readable) => *readable = true,
                None => is_to_stop |= matches!(self.parts.stop.read(&mut [0; 64]), Ok(1..)),
            }
        }
        Ok(is_to_stop)
    }

    /// One batch from each listener that has any, and everything that follows from it.
    fn turn(&mut self) {
        let arrived = self.now();
        let frames = self.receive();
        self.parts
            .egress
            .flush(&mut self.parts.bus, &mut self.ledger);
        if frames > 0 {
            let taken = self.now().saturating_sub(arrived);
            let ns = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
            self.ledger.count_forwarded(frames as u64, ns);
        }
        self.serve_leases(arrived);
        self.linger(frames);
    }

    fn receive(&mut self) -> usize {
        let unix_nano = unix_nano();
        let mut frames = 0;
        for index in 0..self.parts.listeners.len() {
            if self.readable.get(index).copied().unwrap_or(false) {
                frames += self.receive_batch(index, unix_nano);
            }
        }
        frames
    }

    fn receive_batch(&mut self, index: usize, unix_nano: u64) -> usize {
        let Some(listener) = self.parts.listeners.get(index) else {
            return 0;
        };
        let taken = self.ring.receive(listener.as_fd()).unwrap_or_else(|error| {
            self.logs.warn(
                Recurring::Receive,
                || warn!(listener = listener.name(), %error, "cannot receive"),
            );
            0
        });
        if let Some(readable) = self.readable.get_mut(index) {
            *readable = taken == BATCH;
        }
        for datagram in self.ring.datagrams() {
            self.ledger.count_frame(index, datagram.bytes.len());
            let arrival = Arrival {
                source: datagram.source,
                listener: index,
                unix_nano,
            };
            let result = if datagram.is_truncated {
                Err(FrameDrop::Truncated)
            } else {
                self.parts
                    .bus
                    .handle_datagram(arrival, datagram.bytes, self.ledger.events())
            };
            if let Err(reason) = result {
                self.ledger.count_dropped_frame(reason);
            }
            if self.parts.bus.is_full() {
                self.parts
                    .egress
                    .flush(&mut self.parts.bus, &mut self.ledger);
            }
        }
        taken
    }

    /// Leases begin and end here, between turns' frames.
    fn serve_leases(&mut self, now: Duration) {
        self.parts.bus.handle_controls(now, &mut self.lease_events);
        self.parts.bus.handle_timeout(now, &mut self.lease_events);
        let mut events = std::mem::take(&mut self.lease_events);
        for event in events.drain(..) {
            self.ledger.count_lease(&event);
            match event {
                LeaseEvent::Granted(id) => self.welcome(id),
                LeaseEvent::Renewed { id, is_changed, .. } => self.renew(id, is_changed),
                LeaseEvent::Released(id) | LeaseEvent::Expired(id) => self.hide(id),
                LeaseEvent::Challenged | LeaseEvent::Refused(_) | LeaseEvent::Unanswered => {}
            }
        }
        self.lease_events = events;
        while let Some(answer) = self.parts.bus.poll_answer() {
            let listener = self.parts.listeners.get(answer.listener);
            let result = listener.map_or(Ok(()), |l| l.answer(&answer.to, &answer.datagram));
            if let Err(error) = result {
                // The subscriber will ask again.
                self.logs.warn(
                    Recurring::Answer,
                    || warn!(to = %answer.to, %error, "cannot answer"),
                );
            }
        }
    }

    /// Waits for a fuller batch where turns keep finding some, but not many, datagrams.
    fn linger(&mut self, frames: usize) {
        match frames {
            0 | 1 => self.busy_turns = 0,
            _ => self.busy_turns = self.busy_turns.saturating_add(1),
        }
        let is_busy = self.busy_turns >= LINGER_AFTER_TURNS && frames < BATCH;
        if is_busy && !self.parts.linger.is_zero() && !self.is_readable() {
            sys::wait_readable(self.parts.stop.as_fd(), self.parts.linger);
            // Whatever came meanwhile is found without asking the poll.
            self.readable.fill(true);
        }
    }

    /// Takes what is in the sockets, once and bounded: whoever goes on sending is not waited for.
    fn drain(&mut self) {
        self.parts.linger = Duration::ZERO;
        self.readable.fill(true);
        for _ in 0..DRAIN_TURNS_MAX {
            self.turn();
            if !self.is_readable() {
                break;
            }
        }
        let now = self.now();
        self.hand_over(now);
    }

    /// A subscriber came.
    fn welcome(&mut self, id: SubscriberId) {
        self.show(id);
        self.reach(id);
    }

    /// A subscriber stays. Where there was no socket for it, there may be one now.
    fn renew(&mut self, id: SubscriberId, is_changed: bool) {
        if is_changed {
            self.show(id);
        }
        if !self.parts.egress.reaches(id) {
            self.reach(id);
        }
    }

    fn reach(&mut self, id: SubscriberId) {
        let Some(subscriber) = self.parts.bus.subscribers().get(id) else {
            return;
        };
        if let Err(error) = self.parts.egress.put(id, &subscriber.address) {
            let address = &subscriber.address;
            self.logs.warn(Recurring::Reach, || {
                warn!(%address, %error, "cannot reach a subscriber");
            });
        }
    }

    fn show(&self, id: SubscriberId) {
        if let Some(subscriber) = self.parts.bus.subscribers().get(id) {
            self.parts.state.put_series(self.parts.bus.series_names());
            self.parts.state.put_subscriber(id, info(subscriber));
        }
    }

    fn hide(&mut self, id: SubscriberId) {
        self.parts.egress.remove(id);
        self.parts.state.remove_subscriber(id);
    }

    fn hand_over(&mut self, now: Duration) {
        self.ledger.hand_over(&self.parts.state.mailbox);
        self.handed_over = now;
    }

    fn is_readable(&self) -> bool {
        self.readable.contains(&true)
    }

    fn now(&self) -> Duration {
        self.parts.state.started.elapsed()
    }
}

fn info(subscriber: &Subscriber) -> SubscriberInfo {
    SubscriberInfo {
        name: Arc::clone(&subscriber.name),
        address: subscriber.address.clone(),
        topics: subscriber.topics.clone(),
        kind: match subscriber.tenure {
            Tenure::Static => Kind::Static,
            Tenure::Lease(_) => Kind::Lease,
        },
        frame_bytes: subscriber.frame_bytes.target,
    }
}

fn unix_nano() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
