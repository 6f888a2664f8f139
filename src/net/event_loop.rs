//! A data thread: waits for datagrams, drives the core through its turns, sends what it says.
//!
//! Owns its sockets, the clock and its books, and decides nothing about events. One error of one
//! socket or peer never ends it. Where there are several, the kernel deals publishers out among
//! them; all read one directory. The first acts on control messages, which others pass on to it;
//! any of them ends the leases whose time is over before it forwards. What the operator changes
//! while it runs comes as orders, carried out between two turns.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hailmary_proto::flow::{FlowCounts, Tracker};
use hailmary_proto::v1::Stamp;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tracing::warn;

use crate::bus::leases::LeaseEvent;
use crate::bus::overload::{Fill, Overload};
use crate::bus::publishers::{Heard, Publishers};
use crate::bus::subscribers::{Subscriber, SubscriberId, Tenure};
use crate::bus::{Arrival, ControlMessage, Directory, Forwarder, FrameDrop, Registrar, Settings};
use crate::ledger::Ledger;
use crate::logging::{Recurring, Suppressor};
use crate::state::{Kind, Phase, State, SubscriberInfo};

use super::batch_size::BatchSize;
use super::control_queue::{
    Clear, ControlSender, Done, Equipment, MESSAGES_MAX, Order, OrderSender, Task, control_queue,
    order_queue,
};
use super::egress::Egress;
use super::linger::{Found, Linger};
use super::listener::{Buffer, Listener};
use super::sys::{self, Ask, ReceiveRing};

/// Turns between two looks at the poll while datagrams keep coming: a signal, and a listener
/// that was idle, wait no longer than this many batches.
const TURNS_PER_WAKE_UP: usize = 16;

/// How long counts may stay with the data thread under load.
const HAND_OVER_EVERY: Duration = Duration::from_millis(50);

/// How often a busy data thread looks at the kernel's counts of drops: long before they wrap.
const ACCOUNT_EVERY: Duration = Duration::from_secs(1);

/// Turns that a stop may take to empty the sockets: four times what the largest buffer holds of
/// the smallest datagrams is more than anybody sent before the stop.
const DRAIN_TURNS_MAX: usize = 8_192;

/// The poll's token for signals; listeners have their index.
const SIGNALS: Token = Token(usize::MAX);

/// The poll's token for control messages from other data threads, and for orders.
const WOKEN: Token = Token(usize::MAX - 1);

/// What a data thread has for itself.
#[derive(Debug)]
pub struct Parts {
    /// Which of the data threads it is, from 0.
    pub worker: usize,
    /// Its way of events.
    pub forwarder: Forwarder,
    /// Bound sockets, by their place among the state's listeners: none where it has closed, or is
    /// another data thread's alone.
    pub listeners: Vec<Option<Listener>>,
    /// Sockets to send by.
    pub egress: Egress,
    /// Becomes readable when the process is to stop.
    pub stop: UnixStream,
    /// How long a busy loop waits for a fuller batch.
    pub linger: Duration,
    /// What it shows of itself.
    pub state: Arc<State>,
}

/// What all data threads share. Whoever takes several of its locks, and the registrar's, takes the
/// registrar's first, then the directory's, then the publishers'.
#[derive(Debug)]
pub struct Shared {
    /// Who gets what. Each reads it for a turn, who has the registrar changes it in between.
    pub directory: RwLock<Directory>,
    /// The publishers that each hears, by its number. Held for a turn, and by the registrar where
    /// a publisher asks what came.
    pub publishers: Vec<Mutex<Publishers>>,
}

impl Shared {
    fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn directory_to_change(&self) -> RwLockWriteGuard<'_, Directory> {
        self.directory
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The publishers that one data thread hears, alone in a slice.
    fn own_publishers(&self, worker: usize) -> &[Mutex<Publishers>] {
        self.publishers.get(worker..=worker).unwrap_or_default()
    }

    /// What came of a publisher, whichever data threads heard it. Its stamp may tell of events
    /// that have not come: what that adds to the counts is in `news`, and until when they are
    /// awaited in `settle_at`.
    fn flow(
        &self,
        now: Duration,
        stamp: &Stamp,
        news: &mut FlowCounts,
        settle_at: &mut Option<Duration>,
    ) -> Heard {
        let mut all: Vec<_> = self.publishers.iter().map(lock).collect();
        let next = |publishers: &MutexGuard<'_, Publishers>| {
            publishers.get(stamp.sender).map(Tracker::next)
        };
        // The one that heard it last: a publisher may have opened another socket.
        if let Some(last) = all.iter_mut().max_by_key(|publishers| next(publishers)) {
            *news = news.plus(last.observe_aside(now, stamp));
            *settle_at = earliest(*settle_at, last.poll_timeout());
        }
        let known = all
            .iter()
            .filter_map(|publishers| publishers.get(stamp.sender));
        known.map(Heard::of).fold(Heard::default(), Heard::plus)
    }
}

/// Of two times that may be, the first.
fn earliest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    [one, other].into_iter().flatten().min()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where control messages go.
#[derive(Debug)]
enum Controls {
    /// To the registrar, by this data thread.
    Registrar {
        others: Receiver<ControlMessage>,
        sender: ControlSender,
    },
    /// To the data thread that does so.
    Elsewhere(ControlSender),
}

/// A data thread's loop.
#[derive(Debug)]
pub struct EventLoop {
    parts: Parts,
    /// All data threads' own. Only the end of a lease has it wait for another one.
    registrar: Arc<Mutex<Registrar>>,
    controls: Controls,
    poll: Poll,
    orders: Receiver<Task>,
    order_sender: OrderSender,
    /// Whether there may be orders.
    is_woken: bool,
    /// Whether a listener may have more, by place: the poll tells only once.
    readable: Vec<bool>,
    ring: ReceiveRing,
    batch_size: BatchSize,
    ledger: Ledger,
    lease_events: Vec<LeaseEvent>,
    /// The time since the start of the program, as of the last look at the clock: after each
    /// sleep, and when what a turn found has been sent.
    now: Duration,
    handed_over: Duration,
    /// The last second in which the topics seen were handed over, or of the start.
    topics_handed_over_s: u64,
    /// When they are to be again: none where no event came since.
    hand_topics_over_at: Option<Duration>,
    /// When the kernel's accounts were read last.
    accounts_read: Duration,
    /// When events that publishers' flows still await are lost.
    settle_at: Option<Duration>,
    linger: Linger,
    overload: Overload,
    logs: Suppressor,
}

impl EventLoop {
    /// The data thread that acts on control messages.
    ///
    /// # Errors
    ///
    /// Where the system has no poll to give.
    pub fn with_registrar(parts: Parts, registrar: Registrar) -> io::Result<Self> {
        let (poll, waker) = poll()?;
        let (sender, others) = control_queue(&waker);
        let registrar = Arc::new(Mutex::new(registrar));
        let controls = Controls::Registrar { others, sender };
        Self::new(parts, poll, &waker, registrar, controls)
    }

    /// Another data thread, which passes control messages on to this one.
    ///
    /// # Errors
    ///
    /// Where the system has no poll to give.
    pub fn beside(&self, parts: Parts) -> io::Result<Self> {
        let (Controls::Registrar { sender, .. } | Controls::Elsewhere(sender)) = &self.controls;
        let (poll, waker) = poll()?;
        let registrar = Arc::clone(&self.registrar);
        let controls = Controls::Elsewhere(sender.clone());
        Self::new(parts, poll, &waker, registrar, controls)
    }

    fn new(
        parts: Parts,
        poll: Poll,
        waker: &Arc<Waker>,
        registrar: Arc<Mutex<Registrar>>,
        controls: Controls,
    ) -> io::Result<Self> {
        let (order_sender, orders) = order_queue(&poll, waker)?;
        for (place, listener) in parts.listeners.iter().enumerate() {
            if let Some(listener) = listener {
                order_sender.watch(place, listener)?;
            }
        }
        parts.stop.set_nonblocking(true)?;
        let stop = parts.stop.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&stop), SIGNALS, Interest::READABLE)?;
        let ledger = Ledger::new(parts.listeners.len());
        Ok(Self {
            orders,
            order_sender,
            is_woken: false,
            readable: vec![true; parts.listeners.len()],
            ring: ReceiveRing::new(),
            batch_size: BatchSize::default(),
            ledger,
            lease_events: Vec::new(),
            now: parts.state.started.elapsed(),
            handed_over: Duration::ZERO,
            topics_handed_over_s: 0,
            hand_topics_over_at: None,
            accounts_read: Duration::ZERO,
            settle_at: None,
            linger: Linger::new(parts.linger),
            overload: Overload::default(),
            logs: Suppressor::default(),
            parts,
            registrar,
            controls,
            poll,
        })
    }

    /// Where its orders are to be given.
    ///
    /// # Errors
    ///
    /// Where the system has no descriptor left.
    pub fn orders(&self) -> io::Result<OrderSender> {
        self.order_sender.try_clone()
    }

    /// Runs till it is to stop, then takes what is in the sockets, and hands its books over.
    ///
    /// # Errors
    ///
    /// Where the poll itself fails, which no peer can bring about.
    pub fn run(mut self, shared: &Shared) -> io::Result<()> {
        let mut events = Events::with_capacity(self.parts.listeners.len() + 2);
        while !self.sleep(&mut events)? {
            if std::mem::take(&mut self.is_woken) {
                self.obey(shared);
            }
            for _ in 0..TURNS_PER_WAKE_UP {
                self.turn(shared);
                if !self.is_readable() {
                    break;
                }
            }
        }
        self.parts.state.set_phase(Phase::Stopping);
        self.drain(shared);
        Ok(())
    }

    /// Waits for something to do and says whether it is to stop.
    fn sleep(&mut self, events: &mut Events) -> io::Result<bool> {
        self.hand_topics_over();
        let wait = if self.is_readable() {
            Some(Duration::ZERO)
        } else {
            let end = self.next_deadline();
            end.map(|end| end.saturating_sub(self.now))
        };
        if wait != Some(Duration::ZERO) {
            self.hand_over();
            self.parts.state.end_turn(self.parts.worker);
        } else if self.now.saturating_sub(self.handed_over) >= HAND_OVER_EVERY {
            self.hand_over();
        }
        match self.poll.poll(events, wait) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.look_at_the_clock();
        self.parts.state.begin_turn(self.parts.worker, self.now);
        let mut is_to_stop = false;
        for event in events.iter() {
            match self.readable.get_mut(event.token().0) {
                Some(readable) => *readable = true,
                None if event.token() == SIGNALS => {
                    is_to_stop |= matches!(self.parts.stop.read(&mut [0; 64]), Ok(1..));
                }
                // Messages of other data threads are looked for in every turn. A listener that
                // is yet to come is looked at when it has.
                None => self.is_woken |= event.token() == WOKEN,
            }
        }
        Ok(is_to_stop)
    }

    /// When something is to be done though nothing comes.
    fn next_deadline(&self) -> Option<Duration> {
        let lease_end = match &self.controls {
            Controls::Registrar { .. } => lock(&self.registrar).poll_timeout(),
            Controls::Elsewhere(_) => None,
        };
        let retry = self.parts.egress.retry_at();
        let calm = self.overload.poll_timeout();
        let own = earliest(calm, self.hand_topics_over_at);
        earliest(earliest(lease_end, retry), earliest(self.settle_at, own))
    }

    /// One batch from each listener that has any, and everything that follows from it.
    fn turn(&mut self, shared: &Shared) {
        let found = self.work(shared);
        self.linger(found);
    }

    fn work(&mut self, shared: &Shared) -> Found {
        let found = self.forward(shared);
        match &self.controls {
            Controls::Registrar { .. } => self.act_on_controls(shared),
            Controls::Elsewhere(_) => self.pass_controls_on(),
        }
        found
    }

    /// Carries out what orders there are.
    #[cold]
    fn obey(&mut self, shared: &Shared) {
        while let Ok(Task { order, done }) = self.orders.try_recv() {
            let result = match order {
                Order::Clear(clear) => self.clear(&clear, shared),
                Order::Reconfigure(settings) => self.reconfigure(&settings, shared),
                Order::Equip(equipment) => self.equip(equipment),
            };
            // Nobody waits where the reload was given up, as when the bus stops.
            let _ = done.send(result);
        }
    }

    /// See [`Order::Clear`].
    fn clear(&mut self, clear: &Clear, shared: &Shared) -> Done {
        for (place, listener) in self.parts.listeners.iter_mut().enumerate() {
            let Some(listener) = listener else {
                continue;
            };
            if clear.close.contains(&place) {
                listener.shut();
            } else if clear.ask == Ask::Credentials {
                ask(listener, clear.ask);
            }
        }
        self.empty(&clear.close, shared);
        for place in &clear.close {
            let listener = self.parts.listeners.get_mut(*place);
            if let Some(listener) = listener.and_then(Option::take) {
                let socket = listener.as_fd().as_raw_fd();
                // Closing does not do it while the socket has other handles. It can only fail
                // where it is not watched.
                let _ = self.poll.registry().deregister(&mut SourceFd(&socket));
            }
        }
        Done::default()
    }

    /// Takes all that waits in these listeners' buffers now.
    fn empty(&mut self, places: &[usize], shared: &Shared) {
        if places.is_empty() {
            return;
        }
        // An error takes the place of a batch once: only twice nothing is nothing.
        let mut quiet_turns = 0;
        for _ in 0..DRAIN_TURNS_MAX {
            for place in places {
                if let Some(readable) = self.readable.get_mut(*place) {
                    *readable = true;
                }
            }
            self.work(shared);
            let mut readable = places.iter().filter_map(|place| self.readable.get(*place));
            quiet_turns = match readable.any(|readable| *readable) {
                true => 0,
                false => quiet_turns + 1,
            };
            if quiet_turns == 2 {
                break;
            }
        }
    }

    /// See [`Order::Reconfigure`].
    fn reconfigure(&mut self, settings: &Settings, shared: &Shared) -> Done {
        let Controls::Registrar { .. } = &self.controls else {
            return Done::default();
        };
        let state = Arc::clone(&self.parts.state);
        let registrar = Arc::clone(&self.registrar);
        let mut registrar = lock(&registrar);
        let mut directory = shared.directory_to_change();
        let events = &mut self.lease_events;
        let changes = registrar.reconfigure(settings, &mut directory, events);
        state.put_topic_labels(directory.policies().labels());
        for id in &changes.removed {
            state.remove_subscriber(*id);
        }
        let leases_revoked = events.len();
        self.tell_lease_events(&directory);
        // Last, as they may have the places of those who went.
        for id in changes.changed.iter().chain(&changes.added) {
            show_one(&state, &directory, *id);
        }
        Done {
            subscribers: changes,
            leases_revoked,
            ..Done::default()
        }
    }

    /// See [`Order::Equip`].
    fn equip(&mut self, equipment: Equipment) -> Done {
        let Equipment {
            listeners,
            linger,
            receive_buffer_bytes,
            send_buffer_bytes,
            ask: asked,
        } = equipment;
        let places = listeners.iter().map(|(place, _)| place + 1);
        let places = places.fold(self.parts.listeners.len(), usize::max);
        self.parts.listeners.resize_with(places, || None);
        self.readable.resize(places, false);
        for (place, listener) in listeners {
            if let Some(free) = self.parts.listeners.get_mut(place) {
                *free = Some(listener);
            }
        }
        // The poll may have told of what waits in the new ones too early.
        self.readable.fill(true);
        if self.parts.linger != linger {
            self.parts.linger = linger;
            self.linger = Linger::new(linger);
        }
        if let Err(error) = self.parts.egress.resize(send_buffer_bytes) {
            warn!(%error, "cannot change a send buffer");
        }
        let mut buffers = Vec::new();
        for (place, listener) in self.parts.listeners.iter_mut().enumerate() {
            if let Some(listener) = listener {
                ask(listener, asked);
                resize(listener, receive_buffer_bytes);
                buffers.push((place, listener.buffer()));
            }
        }
        Done {
            buffers,
            ..Done::default()
        }
    }

    fn forward(&mut self, shared: &Shared) -> Found {
        let arrived = self.now;
        self.settle(shared);
        let directory = &*self.directory_of_now(shared);
        self.parts.forwarder.begin_turn(directory);
        self.follow(directory);
        let found = match shared.own_publishers(self.parts.worker) {
            [publishers] => self.receive(directory, &mut lock(publishers)),
            _ => Found::default(),
        };
        self.flush(directory);
        self.follow_load(directory);
        if found.frames > 0 {
            if arrived.saturating_sub(self.accounts_read) >= ACCOUNT_EVERY {
                self.accounts_read = arrived;
                // Each reading is added up there, for whoever wants to know.
                self.parts.state.accounts().for_each(drop);
            }
            self.look_at_the_clock();
            let taken = self.now.saturating_sub(arrived);
            let ns = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
            self.ledger.count_forwarded(found.frames as u64, ns);
        }
        found
    }

    /// Counts as lost what publishers' flows have awaited long enough. The one with the registrar
    /// does so for all, as a ping may have told it of others' flows.
    fn settle(&mut self, shared: &Shared) {
        if self.settle_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.settle_at = None;
        let heard = match &self.controls {
            Controls::Registrar { .. } => shared.publishers.as_slice(),
            Controls::Elsewhere(_) => shared.own_publishers(self.parts.worker),
        };
        for mut publishers in heard.iter().map(lock) {
            self.ledger.count_flow(publishers.handle_timeout(self.now));
            self.settle_at = earliest(self.settle_at, publishers.poll_timeout());
        }
    }

    /// Opens the ways to subscribers that came, and closes those to subscribers that went.
    fn follow(&mut self, directory: &Directory) {
        if let Err((address, error)) = self.parts.egress.follow(directory, self.now) {
            self.logs.warn(Recurring::Reach, || {
                warn!(%address, %error, "cannot reach a subscriber");
            });
        }
    }

    /// Lets more go, or less, by whether this turn emptied the sockets.
    fn follow_load(&mut self, directory: &Directory) {
        let is_behind = self.is_readable();
        let lowest = directory.policies().lowest_priority();
        let listeners = &self.parts.listeners;
        let fill = || {
            let all = listeners.iter().flatten().map(Listener::fill);
            all.max().unwrap_or(Fill::of(0, 1))
        };
        if self.overload.note_turn(self.now, is_behind, lowest, fill) {
            let level = self.overload.level();
            self.parts.forwarder.set_level(level);
            self.parts.state.set_overload(self.parts.worker, level);
        }
    }

    fn flush(&mut self, directory: &Directory) {
        let forwarder = &mut self.parts.forwarder;
        self.parts
            .egress
            .flush(forwarder, directory, &mut self.ledger);
    }

    fn receive(&mut self, directory: &Directory, publishers: &mut Publishers) -> Found {
        let unix_nano = unix_nano();
        let mut found = Found::default();
        for index in 0..self.parts.listeners.len() {
            if self.readable.get(index).copied().unwrap_or(false) {
                let taken = self.receive_batch(directory, publishers, index, unix_nano);
                let listener = self.parts.listeners.get(index);
                found.frames += taken;
                let listener = listener.and_then(Option::as_ref);
                found.is_crowded |= listener.is_some_and(|it| it.is_crowded(taken));
            }
        }
        self.settle_at = earliest(self.settle_at, publishers.poll_timeout());
        found
    }

    fn receive_batch(
        &mut self,
        directory: &Directory,
        publishers: &mut Publishers,
        index: usize,
        unix_nano: u64,
    ) -> usize {
        let Some(Some(listener)) = self.parts.listeners.get(index) else {
            if let Some(readable) = self.readable.get_mut(index) {
                *readable = false;
            }
            return 0;
        };
        let asked = self.batch_size.get();
        let taken = self.ring.receive(listener.as_fd(), asked, listener.ask());
        let taken = taken.unwrap_or_else(|error| {
            self.logs.warn(
                Recurring::Receive,
                || warn!(listener = listener.name(), %error, "cannot receive"),
            );
            0
        });
        if let Some(readable) = self.readable.get_mut(index) {
            *readable = taken == asked;
        }
        let now = self.now;
        let Parts {
            forwarder, egress, ..
        } = &mut self.parts;
        let mut bytes = 0;
        for datagram in self.ring.datagrams() {
            bytes += datagram.bytes.len();
            let arrival = Arrival {
                source: datagram.source,
                listener: index,
                now,
                unix_nano,
            };
            let tally = self.ledger.events();
            let result = if datagram.is_truncated {
                Err(FrameDrop::Truncated)
            } else {
                forwarder.handle_datagram(directory, publishers, arrival, datagram.bytes, tally)
            };
            if let Err(reason) = result {
                self.ledger.count_dropped_frame(reason);
            }
            if forwarder.is_full() {
                egress.flush(forwarder, directory, &mut self.ledger);
            }
        }
        self.ledger.count_frames(index, taken, bytes);
        self.batch_size.learn(taken, bytes);
        taken
    }

    fn pass_controls_on(&mut self) {
        let Controls::Elsewhere(sender) = &self.controls else {
            return;
        };
        for message in self.parts.forwarder.controls() {
            if !sender.send(message) {
                self.ledger.count_lease(&LeaseEvent::Unanswered);
            }
        }
    }

    /// The directory to forward by, without the leases whose time is over: in a process that stood
    /// still they may be over for long, and their addresses others' by now.
    #[inline]
    fn directory_of_now<'a>(&mut self, shared: &'a Shared) -> RwLockReadGuard<'a, Directory> {
        let directory = shared.directory();
        if !directory.is_overdue(self.now) {
            return directory;
        }
        drop(directory);
        self.end_leases(shared);
        shared.directory()
    }

    #[cold]
    fn end_leases(&mut self, shared: &Shared) {
        let registrar = Arc::clone(&self.registrar);
        let mut registrar = lock(&registrar);
        let mut directory = shared.directory_to_change();
        registrar.handle_timeout(self.now, &mut directory, &mut self.lease_events);
        self.tell_lease_events(&directory);
    }

    /// Counts what became of leases, and shows it before any data thread counts by it.
    fn tell_lease_events(&mut self, directory: &Directory) {
        for event in self.lease_events.drain(..) {
            self.ledger.count_lease(&event);
            show(&self.parts.state, directory, &event);
        }
    }

    /// Leases begin here, between turns' frames.
    fn act_on_controls(&mut self, shared: &Shared) {
        let now = self.now;
        let Controls::Registrar { others, .. } = &self.controls else {
            return;
        };
        let own = self.parts.forwarder.controls();
        let mut messages = own.chain(others.try_iter().take(MESSAGES_MAX)).peekable();
        if messages.peek().is_none() {
            return;
        }
        let mut news = FlowCounts::default();
        let registrar = Arc::clone(&self.registrar);
        let mut registrar = lock(&registrar);
        let mut directory = shared.directory_to_change();
        for message in messages {
            let settle_at = &mut self.settle_at;
            let flow = |stamp: &Stamp| shared.flow(now, stamp, &mut news, settle_at);
            let events = &mut self.lease_events;
            registrar.handle_control(now, message, flow, &mut directory, events);
        }
        self.tell_lease_events(&directory);
        drop(directory);
        self.ledger.count_flow(news);
        while let Some(answer) = registrar.poll_answer() {
            // It may have closed meanwhile.
            let listener = self.parts.listeners.get(answer.listener);
            let listener = listener.and_then(Option::as_ref);
            let result = listener.map_or(Ok(()), |l| l.answer(&answer.to, &answer.datagram));
            if let Err(error) = result {
                // The subscriber will ask again.
                self.logs.warn(
                    Recurring::Answer,
                    || warn!(to = %answer.to, %error, "cannot answer"),
                );
            }
        }
        drop(registrar);
        // The next turn may be long in coming, and this thread's own sockets for those who are gone
        // are not kept for it. Other data threads close theirs in their next turns.
        self.follow(&shared.directory());
    }

    /// Waits for a fuller batch under load.
    fn linger(&mut self, found: Found) {
        let wait = self.linger.after(found).filter(|_| !self.is_readable());
        if let Some(wait) = wait {
            sys::wait_readable(self.parts.stop.as_fd(), wait);
            self.look_at_the_clock();
            // Whatever came meanwhile is found without asking the poll.
            self.readable.fill(true);
        }
    }

    /// Takes what is in the sockets, once and bounded: whoever goes on sending is not waited for.
    fn drain(&mut self, shared: &Shared) {
        self.linger = Linger::new(Duration::ZERO);
        self.readable.fill(true);
        for _ in 0..DRAIN_TURNS_MAX {
            self.turn(shared);
            if !self.is_readable() {
                break;
            }
        }
        for publishers in shared.own_publishers(self.parts.worker) {
            self.ledger.count_flow(lock(publishers).settle_all());
        }
        self.hand_over();
    }

    fn hand_over(&mut self) {
        self.ledger.hand_over(&self.parts.state.mailbox);
        self.handed_over = self.now;
    }

    /// Hands the topics seen over, in each second once: where no event came, there is nothing to
    /// do, nor to wake up for.
    fn hand_topics_over(&mut self) {
        if self.ledger.events().events > 0 {
            self.hand_topics_over_at = Some(Duration::from_secs(self.topics_handed_over_s + 1));
        }
        if self.hand_topics_over_at.is_some_and(|at| at <= self.now) {
            let seen = self.parts.forwarder.topics_seen(self.now);
            self.parts.state.topics_seen.hand_over(seen);
            self.topics_handed_over_s = self.now.as_secs();
            self.hand_topics_over_at = None;
        }
    }

    fn is_readable(&self) -> bool {
        self.readable.contains(&true)
    }

    fn look_at_the_clock(&mut self) {
        self.now = self.parts.state.started.elapsed();
    }
}

/// A poll, and what wakes it.
fn poll() -> io::Result<(Poll, Arc<Waker>)> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WOKEN)?);
    Ok((poll, waker))
}

/// Says what a listener's datagrams are to be asked.
fn ask(listener: &mut Listener, ask: Ask) {
    if let Err(error) = listener.set_ask(ask) {
        // Whoever it does not tell of is denied what only some are allowed.
        warn!(listener = listener.name(), %error, "cannot have the system tell who sends");
    }
}

/// Asks for another receive buffer, or once more for one that was not granted.
fn resize(listener: &mut Listener, receive_buffer_bytes: usize) {
    let Buffer { wanted, granted } = listener.buffer();
    if wanted == receive_buffer_bytes && granted >= wanted {
        return;
    }
    if let Err(error) = listener.resize(receive_buffer_bytes) {
        warn!(listener = listener.name(), %error, "cannot change its receive buffer");
    }
}

/// Shows the static subscribers and the labels of topics.
pub fn show_all(state: &State, directory: &Directory) {
    state.put_topic_labels(directory.policies().labels());
    for (id, _) in directory.subscribers().iter() {
        show_one(state, directory, id);
    }
}

/// Shows what a lease's event changes.
fn show(state: &State, directory: &Directory, event: &LeaseEvent) {
    match event {
        LeaseEvent::Granted(id)
        | LeaseEvent::Renewed {
            id,
            is_changed: true,
            ..
        } => show_one(state, directory, *id),
        LeaseEvent::Released(id) | LeaseEvent::Expired(id) | LeaseEvent::Revoked(id) => {
            state.remove_subscriber(*id);
        }
        LeaseEvent::Renewed { .. }
        | LeaseEvent::Challenged
        | LeaseEvent::Refused(_)
        | LeaseEvent::Unanswered => {}
    }
}

fn show_one(state: &State, directory: &Directory, id: SubscriberId) {
    if let Some(subscriber) = directory.subscribers().get(id) {
        state.put_series(directory.series_names());
        state.put_subscriber(id, info(subscriber));
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
        terms: subscriber.terms.clone(),
    }
}

/// The wall clock, in ns of Unix time.
pub(crate) fn unix_nano() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
