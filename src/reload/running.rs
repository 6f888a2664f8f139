//! The configuration in use, and how another one takes its place.
//!
//! Owns what a reload compares with: the plan in use, which listener has which place, the canary.
//! First it [prepares](Running::prepare) all that can fail, without a change to what runs; then
//! the data threads are given their orders, each between two of its turns, in this order:
//!
//! 1. What only the old rules can judge ends under them: listeners that go are shut, emptied and
//!    closed, and where the new ones are the first to want to know who sends over a Unix socket,
//!    there is time for what was sent before that was asked.
//! 2. The directory is put in place, under its lock, in one go.
//! 3. New listeners are read, which have been bound before, and buffers resized.
//!
//! A listener keeps its socket where the same text stands in both plans. Its place, and with it
//! its counts, it keeps for ever: what closes and opens again under its name counts on.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use tracing::info;

use crate::bus::Settings;
use crate::bus::address::Address;
use crate::canary::{Canary, Change, Stream};
use crate::config::Plan;
use crate::net::control_queue::{Clear, Done, Equipment, Order, OrderSender};
use crate::net::listener::{ListenAddress, Listener};
use crate::net::sys::Ask;
use crate::state::State;

use super::sockets::{Opened, ask, open_streams, warn_if_small};
use super::{GIVEN_UP, ReloadError, Source};

/// How long after Unix sockets were first asked who sends the rules may want to know: far longer
/// than a datagram is under way that a process was about to send, or waited for room to.
const UNASKED_FOR: Duration = Duration::from_millis(100);

/// What a reload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Listeners that were not there before.
    pub listeners_opened: usize,
    /// Listeners that are gone.
    pub listeners_closed: usize,
    /// Static subscribers that were not there before.
    pub subscribers_added: usize,
    /// Static subscribers that want something else now.
    pub subscribers_changed: usize,
    /// Static subscribers that are gone.
    pub subscribers_removed: usize,
    /// Leases that ended as their holders may subscribe to nothing any more.
    pub leases_revoked: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "reloaded: {} listeners opened, {} closed; {} static subscribers added, {} changed, \
             {} removed; {} leases ended",
            self.listeners_opened,
            self.listeners_closed,
            self.subscribers_added,
            self.subscribers_changed,
            self.subscribers_removed,
            self.leases_revoked
        )
    }
}

/// A listener that is open.
#[derive(Clone, Debug)]
struct Listening {
    /// What the configuration calls it.
    wanted: ListenAddress,
    /// Its address with the real port.
    address: Address,
    place: usize,
}

/// The bus as it runs.
#[derive(Debug)]
pub struct Running {
    plan: Plan,
    state: Arc<State>,
    threads: Vec<OrderSender>,
    listening: Vec<Listening>,
    canary: Option<Canary>,
    /// Where the canary's probes come from, by the listener's place.
    sources: BTreeMap<usize, Address>,
}

/// What a plan takes, with nothing changed yet.
struct Prepared {
    kept: Vec<Listening>,
    /// Places.
    closed: Vec<usize>,
    opened: Vec<(Listening, Opened)>,
    /// Where there was none before.
    canary: Option<Canary>,
    streams: Vec<Stream>,
}

impl Running {
    /// With this plan, these listeners by their place, and the canary's streams to them. The data
    /// threads' senders are in their order.
    #[must_use]
    pub fn new<'a>(
        plan: Plan,
        state: Arc<State>,
        threads: Vec<OrderSender>,
        listeners: impl Iterator<Item = (&'a ListenAddress, Address)>,
        probes: Option<(Canary, Vec<Stream>)>,
    ) -> Self {
        let listening = listeners.zip(0..);
        let listening = listening.map(|((wanted, address), place)| Listening {
            wanted: wanted.clone(),
            address,
            place,
        });
        let mut running = Self {
            listening: listening.collect(),
            canary: None,
            sources: BTreeMap::new(),
            plan,
            state,
            threads,
        };
        if let Some((canary, streams)) = probes {
            running.canary = Some(canary);
            running.probe(streams);
        }
        running
    }

    /// Whether the admin is to offer reloads.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        self.plan.admin_reload
    }

    /// Puts another plan in use.
    ///
    /// # Errors
    ///
    /// Why the old one still is, wholly. The end of the bus may come in between, alone.
    pub fn reload(&mut self, plan: Plan) -> Result<Summary, ReloadError> {
        let prepared = self.prepare(&plan)?;
        self.apply(plan, prepared)
    }

    /// Does all that can fail.
    fn prepare(&self, plan: &Plan) -> Result<Prepared, ReloadError> {
        self.check(plan)?;
        let (kept, closed, new) = self.sort_listeners(&plan.listen);
        let opened = self.open(&new, plan)?;
        let canary = match (plan.canary_interval, &self.canary) {
            (Some(_), None) => Some(Canary::start(Arc::clone(&self.state.canary))?),
            _ => None,
        };
        let streams = match plan.canary_interval {
            Some(_) => {
                let before = kept.iter().filter(|_| canary.is_some());
                let all = before.chain(opened.iter().map(|(listening, _)| listening));
                open_streams(all.map(|one| (one.place, &one.address)))?
            }
            None => Vec::new(),
        };
        Ok(Prepared {
            kept,
            closed,
            opened,
            canary,
            streams,
        })
    }

    /// Refuses what a running bus cannot become.
    fn check(&self, plan: &Plan) -> Result<(), ReloadError> {
        let mut changes = Vec::new();
        if plan.workers != self.plan.workers {
            let (now, then) = (self.plan.workers, plan.workers);
            changes.push(format!("loop.workers is {now} and would be {then}"));
        }
        if plan.admin != self.plan.admin {
            let say = |plan: &Plan| plan.admin.map_or("off".to_owned(), |it| it.to_string());
            let (now, then) = (say(&self.plan), say(plan));
            changes.push(format!("listen.admin is {now} and would be {then}"));
        }
        if plan.confine != self.plan.confine {
            let (now, then) = (self.plan.confine.name(), plan.confine.name());
            changes.push(format!("confine.mode is {now} and would be {then}"));
        }
        changes.extend(self.out_of_reach(plan));
        if changes.is_empty() {
            return Ok(());
        }
        let changes = changes.join(", ");
        Err(ReloadError::NeedsRestart(format!(
            "{changes}: that takes a restart, and nothing else of the file is put in use before"
        )))
    }

    /// Unix sockets that a bus cannot put where they are wanted, as it is confined.
    fn out_of_reach(&self, plan: &Plan) -> impl Iterator<Item = String> {
        let (_, _, new) = self.sort_listeners(&plan.listen);
        let refused = new.into_iter().filter(|address| match address {
            ListenAddress::Unix(path) => !self.state.confinement.reaches(path),
            ListenAddress::Udp(_) => false,
        });
        refused.map(|address| {
            format!("{address} would be in a directory that this bus gave up when it started")
        })
    }

    /// Whether the configuration may be out of reach as the bus is confined.
    pub fn is_cut_off_from(&self, source: &Source) -> bool {
        // What is no file is not waited for.
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let opened = source.file().map(|file| options.open(file));
        let confinement = &self.state.confinement;
        matches!(opened, Some(Err(error)) if confinement.may_deny(&error))
    }

    /// Says why a socket may not be had where it is wanted, if it is that the bus is confined.
    fn explain(&self, address: &ListenAddress, error: anyhow::Error) -> anyhow::Error {
        let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
        let is_denied = causes.any(|cause| self.state.confinement.may_deny(cause));
        match address {
            ListenAddress::Unix(_) if is_denied => anyhow!("{error:#}: {GIVEN_UP}"),
            _ => error,
        }
    }

    /// Of the listeners that are open those that stay, the places of those that go, and the
    /// addresses that are new. The same text is the same listener, also where its port is 0.
    fn sort_listeners(
        &self,
        wanted: &[ListenAddress],
    ) -> (Vec<Listening>, Vec<usize>, Vec<ListenAddress>) {
        let mut open = self.listening.clone();
        let (mut kept, mut new) = (Vec::new(), Vec::new());
        for address in wanted {
            match open.iter().position(|one| one.wanted == *address) {
                Some(index) => kept.push(open.remove(index)),
                None => new.push(address.clone()),
            }
        }
        let closed = open.iter().map(|listening| listening.place);
        (kept, closed.collect(), new)
    }

    /// Binds listeners, and has each data thread's poll watch its own socket.
    fn open(
        &self,
        addresses: &[ListenAddress],
        plan: &Plan,
    ) -> anyhow::Result<Vec<(Listening, Opened)>> {
        let places = self.state.listeners();
        let mut next = places.len();
        let mut all = Vec::new();
        for address in addresses {
            let opened = Opened::open(address, plan);
            let opened = opened.map_err(|error| self.explain(address, error))?;
            // One of its name has closed before, or two would have one address.
            let before = places.iter().position(|info| info.name == opened.name);
            let place = before.unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            for (thread, socket) in self.threads.iter().zip(&opened.sockets) {
                if let Some(socket) = socket {
                    thread.watch(place, socket)?;
                }
            }
            let listening = Listening {
                wanted: opened.wanted.clone(),
                address: opened.address.clone(),
                place,
            };
            all.push((listening, opened));
        }
        Ok(all)
    }

    /// Gives the data threads their orders. Nothing of it fails but by the bus's end.
    fn apply(&mut self, plan: Plan, prepared: Prepared) -> Result<Summary, ReloadError> {
        let Prepared {
            kept,
            closed,
            opened,
            canary,
            streams,
        } = prepared;
        let mut summary = Summary {
            listeners_opened: opened.len(),
            listeners_closed: closed.len(),
            ..Summary::default()
        };
        self.sources.retain(|place, _| !closed.contains(place));
        if plan.canary_interval.is_none() {
            // It has sent its last probe when this returns. One that still waits is nobody's.
            self.canary = None;
            self.sources.clear();
        }
        if let Some(canary) = &self.canary
            && !closed.is_empty()
        {
            // Before they are shut: a probe that found nobody would be no loss of the bus's.
            canary.end(closed.clone());
        }
        self.canary = canary.or(self.canary.take());
        let settings = self.settings(&plan, &streams);
        self.clear(&plan, &closed)?;
        self.plan = plan;
        self.listening = kept;

        let done = self.order_first(Order::Reconfigure(Box::new(settings)))?;
        summary.subscribers_added = done.subscribers.added.len();
        summary.subscribers_changed = done.subscribers.changed.len();
        summary.subscribers_removed = done.subscribers.removed.len();
        summary.leases_revoked = done.leases_revoked;
        self.equip(opened)?;
        self.probe(streams);
        Ok(summary)
    }

    /// The plan's settings, with the canary's part in them.
    fn settings(&self, plan: &Plan, streams: &[Stream]) -> Settings {
        let new = streams.iter().map(Stream::source);
        let mut settings = plan.settings.clone();
        settings.own_sources = self.sources.values().chain(new).cloned().collect();
        let subscriber = self.canary.as_ref().map(Canary::subscriber);
        settings.subscribers.extend(subscriber);
        settings
    }

    fn clear(&self, plan: &Plan, closed: &[usize]) -> Result<(), ReloadError> {
        let clear = Clear {
            close: closed.to_vec(),
            ask: ask(&plan.settings.access),
        };
        self.order(|_| Order::Clear(clear.clone()))?;
        if clear.ask == Ask::Credentials && ask(&self.plan.settings.access) == Ask::Source {
            thread::sleep(UNASKED_FOR);
        }
        let infos = self.state.listeners();
        for place in closed {
            self.state.close_listener(*place);
            if let Some(info) = infos.get(*place) {
                info!(address = info.name, "listening no more");
            }
        }
        Ok(())
    }

    fn equip(&mut self, opened: Vec<(Listening, Opened)>) -> Result<(), ReloadError> {
        let mut shares: Vec<Vec<(usize, Listener)>> = Vec::new();
        shares.resize_with(self.threads.len(), Vec::new);
        for (listening, opened) in opened {
            let place = listening.place;
            self.state
                .open_listener(place, &opened.name, opened.buffer, opened.handles);
            info!(address = opened.name, "listening");
            for (share, socket) in shares.iter_mut().zip(opened.sockets) {
                share.extend(socket.map(|socket| (place, socket)));
            }
            self.listening.push(listening);
        }
        let mut shares = shares.into_iter();
        let plan = &self.plan;
        let done = self.order(|_| {
            Order::Equip(Equipment {
                listeners: shares.next().unwrap_or_default(),
                linger: plan.linger,
                receive_buffer_bytes: plan.receive_buffer_bytes,
                send_buffer_bytes: plan.send_buffer_bytes,
                ask: ask(&plan.settings.access),
            })
        })?;
        self.note_buffers(&done);
        Ok(())
    }

    /// Shows the smallest receive buffer of each listener where it is another now.
    fn note_buffers(&self, done: &[Done]) {
        let mut smallest = BTreeMap::new();
        for (place, buffer) in done.iter().flat_map(|done| &done.buffers) {
            let least = smallest.entry(*place).or_insert(*buffer);
            if buffer.granted < least.granted {
                *least = *buffer;
            }
        }
        let infos = self.state.listeners();
        for (place, buffer) in smallest {
            if let Some(info) = infos.get(place)
                && info.buffer() != Some(buffer)
            {
                self.state.resize_listener(place, buffer);
                warn_if_small(&info.name, buffer);
            }
        }
    }

    /// Has the canary's streams begin, where anything is new to it.
    fn probe(&mut self, begin: Vec<Stream>) {
        let (Some(canary), Some(interval)) = (&self.canary, self.plan.canary_interval) else {
            return;
        };
        for stream in &begin {
            let source = stream.source().clone();
            self.sources.insert(stream.number(), source);
        }
        let is_same = self.state.canary.interval() == Some(interval);
        if !is_same || !begin.is_empty() {
            canary.change(Change { interval, begin });
        }
    }

    /// Gives an order to the data thread with the registrar and waits for its end.
    fn order_first(&self, order: Order) -> Result<Done, ReloadError> {
        let done = self.threads.first().map(|thread| thread.give(order));
        done.and_then(|done| done.recv().ok())
            .ok_or(ReloadError::Stopping)
    }

    /// Gives each data thread an order and waits for all of them.
    fn order(&self, mut order: impl FnMut(usize) -> Order) -> Result<Vec<Done>, ReloadError> {
        let threads = self.threads.iter().enumerate();
        let given = threads.map(|(number, thread)| thread.give(order(number)));
        let given: Vec<Receiver<Done>> = given.collect();
        let done = given.into_iter().map(|done| done.recv());
        done.collect::<Result<_, _>>()
            .map_err(|_| ReloadError::Stopping)
    }
}
