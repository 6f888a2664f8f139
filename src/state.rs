//! What the data threads show of themselves to the admin thread.
//!
//! All hold it by `Arc`. A data thread stores a number a turn and takes a lock only where a
//! lease begins or ends; it never waits for a reader that is slow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::bus::address::Address;
use crate::bus::subscribers::SubscriberId;
use crate::ledger::Mailbox;
use crate::net::account::{Account, Reading};
use crate::net::listener::Buffer;

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
}

/// A listener as shown to people.
#[derive(Debug)]
pub struct ListenerInfo {
    /// Its address with scheme, as in the metrics' label.
    pub name: String,
    /// The receive buffer of each of its sockets, the smallest of them.
    pub buffer: Buffer,
    /// The kernel's account of its sockets.
    pub account: Account,
}

/// What the data threads show.
#[derive(Debug)]
pub struct State {
    /// The bus's sender id.
    pub bus: u64,
    /// When the program started.
    pub started: Instant,
    /// Its listeners, in the order of the counts' listeners.
    pub listeners: Vec<ListenerInfo>,
    /// Patterns of the topic policies, in the order of the counts.
    pub topic_policies: Vec<String>,
    /// What it has counted.
    pub mailbox: Arc<Mailbox>,
    phase: AtomicU8,
    /// For each data thread, when the turn began that is under way, in ms since `started`, plus
    /// 1; 0 while it sleeps.
    turning_since_ms: Vec<AtomicU64>,
    subscribers: Mutex<BTreeMap<SubscriberId, Arc<SubscriberInfo>>>,
    series: Mutex<Vec<Arc<str>>>,
}

impl State {
    /// A bus that is starting.
    #[must_use]
    pub fn new(
        bus: u64,
        listeners: Vec<ListenerInfo>,
        topic_policies: Vec<String>,
        workers: usize,
    ) -> Self {
        Self {
            bus,
            started: Instant::now(),
            mailbox: Mailbox::new(listeners.len(), topic_policies.len()),
            listeners,
            topic_policies,
            phase: AtomicU8::new(Phase::Starting as u8),
            turning_since_ms: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            subscribers: Mutex::default(),
            series: Mutex::default(),
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

    /// The kernel's account of each listener, where the system keeps one.
    pub fn accounts(&self) -> impl Iterator<Item = Option<Reading>> {
        self.listeners
            .iter()
            .map(|listener| listener.account.read())
    }

    /// A subscriber came, or changed.
    pub fn put_subscriber(&self, id: SubscriberId, info: SubscriberInfo) {
        let info = Arc::new(info);
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, info);
    }

    /// A subscriber went.
    pub fn remove_subscriber(&self, id: SubscriberId) {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    /// All subscribers there are now. Copies pointers alone under the lock.
    #[must_use]
    pub fn subscribers(&self) -> Vec<Arc<SubscriberInfo>> {
        let subscribers = self
            .subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        subscribers.values().cloned().collect()
    }

    /// Series have been added: these are all their names.
    pub fn put_series(&self, names: &[Arc<str>]) {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let known = series.len();
        series.extend(names.iter().skip(known).cloned());
    }

    /// The names of the series, in the order of the counts' series. It only grows.
    #[must_use]
    pub fn series(&self) -> Vec<Arc<str>> {
        self.series
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
