//! What the data threads show of themselves to the admin thread.
//!
//! All hold it by `Arc`. A data thread stores a number a turn and takes a lock only where a
//! lease begins or ends; readers hold that lock for as long as it takes to exchange a pointer.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::bus::address::Address;
use crate::bus::overload::Level;
use crate::bus::subscribers::{SubscriberId, Terms};
use crate::canary::Board;
use crate::confine::Confinement;
use crate::ledger::Mailbox;
use crate::net::account::{Account, Reading};
use crate::net::listener::Buffer;
use crate::reload::Reloads;
use crate::topics_seen;

/// What the bus is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its sockets are not read yet.
    Starting,
    /// It takes events.
    Ready,
    /// It takes what is in its sockets and then no more.
    Stopping,
}

/// How a subscriber came by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By the configuration.
    Static,
    /// By a lease.
    Lease,
}

/// A subscriber as shown to people.
#[derive(Clone, Debug)]
pub struct SubscriberInfo {
    /// What it calls itself; may be empty.
    pub name: Arc<str>,
    /// Where its datagrams go.
    pub address: Address,
    /// What it wants.
    pub topics: Vec<Box<str>>,
    /// How it came by its place.
    pub kind: Kind,
    /// Its datagrams' size, in bytes.
    pub frame_bytes: u32,
    /// Which of its topics' events it gets.
    pub terms: Terms,
}

/// A listener as shown to people. Its place and counts stay when it closes, and are its own again
/// when it opens once more.
#[derive(Debug)]
pub struct ListenerInfo {
    /// Its address with scheme, as in the metrics' label.
    pub name: String,
    /// The kernel's account of its sockets.
    pub account: Account,
    /// The receive buffer of each of its sockets, the smallest of them. None while it is closed.
    buffer: Mutex<Option<Buffer>>,
}

impl ListenerInfo {
    /// One that is open, with these sockets.
    #[must_use]
    pub fn new(name: &str, buffer: Buffer, account: Account) -> Self {
        Self {
            name: name.to_owned(),
            account,
            buffer: Mutex::new(Some(buffer)),
        }
    }

    /// The receive buffer of each of its sockets, the smallest of them. None while it is closed.
    #[must_use]
    pub fn buffer(&self) -> Option<Buffer> {
        *self.lock()
    }

    fn set_buffer(&self, buffer: Option<Buffer>) {
        *self.lock() = buffer;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Buffer>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far what waits in its buffers would go had the kernel granted what the configuration
    /// wants, by the kernel's account, in bytes. None while it is closed.
    #[must_use]
    pub fn buffer_wanted_bytes(&self) -> Option<u32> {
        let wanted = self.buffer()?.wanted_by_account();
        let all = wanted.saturating_mul(self.account.sockets());
        Some(u32::try_from(all).unwrap_or(u32::MAX))
    }
}

/// What the data threads show.
#[derive(Debug)]
pub struct State {
    /// The bus's sender id.
    pub bus: u64,
    /// When the program started.
    pub started: Instant,
    /// What it has counted.
    pub mailbox: Arc<Mailbox>,
    /// The topics that it has seen.
    pub topics_seen: topics_seen::Mailbox,
    /// What the canary shows.
    pub canary: Arc<Board>,
    /// What became of reloads.
    pub reloads: Reloads,
    /// What the bus gave up.
    pub confinement: Confinement,
    /// In the order of the counts' listeners. It only grows, by what an operator opens under
    /// names that were not there before.
    listeners: RwLock<Vec<Arc<ListenerInfo>>>,
    phase: AtomicU8,
    /// For each data thread, when the turn began that is under way, in ms since `started`, plus
    /// 1; 0 while it sleeps.
    turning_since_ms: Vec<AtomicU64>,
    /// How much each data thread lets go: see [`Level::get`].
    overload: Vec<AtomicU32>,
    changes: Mutex<Changes>,
    /// Readers' own: no data thread takes this lock.
    shown: Mutex<Shown>,
}

/// What has changed since a reader last looked: one entry for each subscriber's place at most,
/// and for each name of a series or topic label.
#[derive(Debug, Default)]
struct Changes {
    /// None where it went.
    subscribers: BTreeMap<SubscriberId, Option<Arc<SubscriberInfo>>>,
    series: NewNames,
    topic_labels: NewNames,
}

/// What has been added to names that only grow.
#[derive(Debug, Default)]
struct NewNames {
    names: Vec<Arc<str>>,
    /// Names that readers have been told of, or will be by these.
    known: usize,
}

impl NewNames {
    /// These are all names by now.
    fn put(&mut self, all: &[Arc<str>]) {
        self.names.extend(all.iter().skip(self.known).cloned());
        self.known = all.len();
    }
}

/// What readers know, as of the last look.
#[derive(Debug, Default)]
struct Shown {
    subscribers: BTreeMap<SubscriberId, Arc<SubscriberInfo>>,
    series: Vec<Arc<str>>,
    topic_labels: Vec<Arc<str>>,
}

impl State {
    /// A bus that is starting.
    #[must_use]
    pub fn new(bus: u64, listeners: Vec<ListenerInfo>, workers: usize) -> Self {
        Self {
            bus,
            started: Instant::now(),
            mailbox: Mailbox::new(listeners.len()),
            topics_seen: topics_seen::Mailbox::default(),
            canary: Arc::default(),
            reloads: Reloads::default(),
            confinement: Confinement::default(),
            listeners: RwLock::new(listeners.into_iter().map(Arc::new).collect()),
            phase: AtomicU8::new(Phase::Starting as u8),
            turning_since_ms: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            overload: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            changes: Mutex::default(),
            shown: Mutex::default(),
        }
    }

    /// What the bus is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Stopping,
        }
    }

    /// Says what the bus is doing.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// A data thread is awake as of `now` (since [`State::started`]).
    pub fn begin_turn(&self, worker: usize, now: Duration) {
        let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.set_turning(worker, ms.saturating_add(1));
    }

    /// A data thread is about to sleep.
    pub fn end_turn(&self, worker: usize) {
        self.set_turning(worker, 0);
    }

    fn set_turning(&self, worker: usize, since_ms: u64) {
        if let Some(since) = self.turning_since_ms.get(worker) {
            since.store(since_ms, Ordering::Relaxed);
        }
    }

    /// How long the longest turn under way has taken; nothing while all data threads sleep.
    #[must_use]
    pub fn turning_for(&self) -> Duration {
        let since = self.turning_since_ms.iter();
        let since = since.map(|since| since.load(Ordering::Relaxed));
        let earliest = since.filter(|since| *since > 0).min();
        earliest.map_or(Duration::ZERO, |since| {
            let elapsed = self.started.elapsed();
            elapsed.saturating_sub(Duration::from_millis(since - 1))
        })
    }

    /// A data thread lets so much go from now on.
    pub fn set_overload(&self, worker: usize, level: Level) {
        if let Some(overload) = self.overload.get(worker) {
            overload.store(level.get(), Ordering::Relaxed);
        }
    }

    /// How much the data thread lets go that lets most go.
    #[must_use]
    pub fn overload(&self) -> Level {
        let levels = self.overload.iter();
        let levels = levels.map(|level| level.load(Ordering::Relaxed));
        Level::new(levels.max().unwrap_or(0))
    }

    /// The kernel's account of each listener, where the system keeps one.
    pub fn accounts(&self) -> impl Iterator<Item = Option<Reading>> {
        let listeners = self.listeners().into_iter();
        listeners.map(|listener| listener.account.read())
    }

    /// All listeners, also those that have closed, by their place.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<ListenerInfo>> {
        let listeners = self.listeners.read();
        listeners.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A listener opens in this place: that of a closed one of its name, or else the next one.
    pub fn open_listener(&self, place: usize, name: &str, buffer: Buffer, sockets: Vec<OwnedFd>) {
        let listeners = self.listeners.write();
        let mut listeners = listeners.unwrap_or_else(PoisonError::into_inner);
        match listeners.get(place) {
            Some(closed) => {
                closed.account.reopen(sockets);
                closed.set_buffer(Some(buffer));
            }
            None => {
                let info = ListenerInfo::new(name, buffer, Account::open(sockets));
                listeners.push(Arc::new(info));
            }
        }
    }

    /// The receive buffer of the listener in this place is another.
    pub fn resize_listener(&self, place: usize, buffer: Buffer) {
        if let Some(listener) = self.listeners().get(place) {
            listener.set_buffer(Some(buffer));
        }
    }

    /// The listener in this place has closed.
    pub fn close_listener(&self, place: usize) {
        if let Some(listener) = self.listeners().get(place) {
            listener.account.close();
            listener.set_buffer(None);
        }
    }

    /// A subscriber came, or changed.
    pub fn put_subscriber(&self, id: SubscriberId, info: SubscriberInfo) {
        self.changes().subscribers.insert(id, Some(Arc::new(info)));
    }

    /// A subscriber went.
    pub fn remove_subscriber(&self, id: SubscriberId) {
        self.changes().subscribers.insert(id, None);
    }

    /// All subscribers there are now.
    #[must_use]
    pub fn subscribers(&self) -> Vec<Arc<SubscriberInfo>> {
        self.shown().subscribers.values().cloned().collect()
    }

    /// Series have been added: these are all their names.
    pub fn put_series(&self, names: &[Arc<str>]) {
        self.changes().series.put(names);
    }

    /// Labels of topics have been added: these are all of them.
    pub fn put_topic_labels(&self, labels: &[Arc<str>]) {
        self.changes().topic_labels.put(labels);
    }

    /// The names of the series, in the order of the counts' series. It only grows.
    #[must_use]
    pub fn series(&self) -> Vec<Arc<str>> {
        self.shown().series.clone()
    }

    /// The labels that events are counted under by their topic, in the order of the counts. It
    /// only grows.
    #[must_use]
    pub fn topic_labels(&self) -> Vec<Arc<str>> {
        self.shown().topic_labels.clone()
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is now, for readers.
    fn shown(&self) -> MutexGuard<'_, Shown> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = self.changes();
        let subscribers = std::mem::take(&mut changes.subscribers);
        let series = std::mem::take(&mut changes.series.names);
        let topic_labels = std::mem::take(&mut changes.topic_labels.names);
        drop(changes);
        for (id, info) in subscribers {
            match info {
                Some(info) => shown.subscribers.insert(id, info),
                None => shown.subscribers.remove(&id),
            };
        }
        shown.series.extend(series);
        shown.topic_labels.extend(topic_labels);
        shown
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn state() -> State {
        State::new(1, Vec::new(), 1)
    }

    fn info(name: &str) -> SubscriberInfo {
        SubscriberInfo {
            name: name.into(),
            address: Address::Unix(Box::default()),
            topics: Vec::new(),
            kind: Kind::Lease,
            frame_bytes: 508,
            terms: Terms::default(),
        }
    }

    fn names(state: &State) -> Vec<String> {
        let all = state.subscribers();
        all.iter().map(|info| info.name.to_string()).collect()
    }

    #[test]
    fn readers_see_the_last_of_all_changes() {
        let state = state();
        let [a, b] = [0, 1].map(SubscriberId::new);
        state.put_subscriber(a, info("a"));
        state.put_subscriber(b, info("b"));
        state.remove_subscriber(b);
        assert_eq!(names(&state), ["a"]);
        state.remove_subscriber(a);
        state.put_subscriber(a, info("a again"));
        state.put_subscriber(b, info("b"));
        assert_eq!(names(&state), ["a again", "b"]);
        state.remove_subscriber(a);
        assert_eq!(names(&state), ["b"]);
        assert_eq!(names(&state), ["b"], "nothing changed");
    }

    #[test]
    fn each_series_is_told_of_once() {
        let state = state();
        let names: Vec<Arc<str>> = ["other", "x", "y"].map(Into::into).into();
        state.put_series(&names[..1]);
        state.put_series(&names[..2]);
        assert_eq!(state.series(), names[..2]);
        state.put_series(&names[..2]);
        state.put_series(&names);
        assert_eq!(state.series(), names);
    }

    #[test]
    fn a_reader_in_the_middle_of_its_reading_holds_up_no_change() {
        let state = state();
        let reading = state.shown();
        let (done, is_done) = mpsc::channel();
        thread::scope(|scope| {
            let data_thread = || {
                state.put_series(&["other".into()]);
                state.put_subscriber(SubscriberId::new(0), info("a"));
                state.remove_subscriber(SubscriberId::new(0));
                done.send(()).unwrap();
            };
            scope.spawn(data_thread);
            // Far more than it takes.
            let result = is_done.recv_timeout(Duration::from_secs(60));
            drop(reading);
            result.unwrap();
        });
    }
}
