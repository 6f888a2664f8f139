//! A bus: the core and the ledger as they ship, driven as the event loop drives them. In the place
//! of sockets are bounded queues, whose overflow is counted as the kernel counts it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use hailmary::bus::address::{Address, Source};
use hailmary::bus::leases::LeaseEvent;
use hailmary::bus::overload::{Fill, Overload};
use hailmary::bus::publishers::{Heard, Publishers};
use hailmary::bus::sample::Weight;
use hailmary::bus::subscribers::{Subscriber, Tenure};
use hailmary::bus::{
    self, Answer, Arrival, ControlMessage, CopyDrop, Directory, Forwarder, FrameDrop, Registrar,
};
use hailmary::ledger::{Ledger, Mailbox, Totals};
use hailmary_proto::flow::{FlowCounts, Tracker};
use hailmary_proto::v1::Stamp;

use super::oracle::Key;
use super::plan::Plan;
use super::rng::Rng;

/// Messages that data threads pass on, as `net::control_queue` has it.
pub const PASSED_ON_MAX: usize = 1_024;

/// The largest datagram that a receive buffer takes whole.
pub const RECEIVE_BYTES_MAX: usize = 65_507;

/// A datagram in a receive buffer.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
}

/// A copy that was polled, and what became of it.
#[derive(Debug)]
pub struct Sent {
    pub key: Key,
    pub to: SocketAddr,
    pub series: usize,
    pub events: u32,
    pub bytes: Vec<u8>,
    pub dropped: Option<CopyDrop>,
}

/// Copies that the bus decided not to make.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    pub series: usize,
    pub reason: CopyDrop,
    pub events: u32,
}

/// A subscriber's flow after a turn.
#[derive(Clone, Debug)]
pub struct FlowRead {
    pub key: Key,
    pub sequence: u64,
    pub dropped: u64,
}

/// What one data thread did with one batch.
#[derive(Debug)]
pub struct Turn {
    pub worker: usize,
    pub now: Duration,
    pub unix_nano: u64,
    /// The level of overload that held.
    pub level: u32,
    pub inputs: Vec<(Datagram, Result<(), FrameDrop>)>,
    pub sends: Vec<Sent>,
    pub decided: Vec<Decided>,
    pub flows: Vec<FlowRead>,
}

impl Turn {
    /// What became of its datagrams, and the level, as one number.
    pub fn verdicts(&self) -> u64 {
        let results = self.inputs.iter().map(|(_, result)| result);
        let verdicts = results.map(|result| result.map_or_else(|reason| reason as u64 + 1, |()| 0));
        verdicts.fold(self.level.into(), |sum: u64, verdict| {
            sum.wrapping_mul(7).wrapping_add(verdict)
        })
    }
}

/// What the registrar did.
#[derive(Debug)]
pub struct Acted {
    pub now: Duration,
    /// Of each message, its events and answers.
    pub messages: Vec<(Vec<LeaseEvent>, Vec<Answer>)>,
    /// What ended by time.
    pub ended: Vec<LeaseEvent>,
}

#[derive(Debug)]
struct Worker {
    forwarder: Forwarder,
    publishers: Publishers,
    ledger: Ledger,
    overload: Overload,
    buffer: VecDeque<Datagram>,
}

/// How the host of a bus behaves.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub workers: usize,
    /// Datagrams that a receive buffer holds.
    pub buffer_max: usize,
    /// Datagrams taken at once.
    pub batch_max: usize,
    /// How many sends in a million fail.
    pub send_fails: u32,
}

/// A running bus.
#[derive(Debug)]
pub struct Bus {
    pub host: Host,
    directory: Directory,
    registrar: Registrar,
    workers: Vec<Worker>,
    passed_on: VecDeque<ControlMessage>,
    mailbox: Arc<Mailbox>,
    totals: Totals,
    /// Datagrams that found their buffer full.
    pub overflowed: u64,
    rng: Rng,
}

impl Bus {
    /// A process that begins at time 0 of its own clock.
    pub fn start(plan: &Plan, host: Host, mut rng: Rng) -> Self {
        let mut random = rng.split();
        let random = Box::new(move || random.block());
        let parts = bus::open(&plan.settings(), host.workers, Duration::ZERO, random);
        let worker = |(forwarder, publishers)| Worker {
            forwarder,
            publishers,
            ledger: Ledger::new(1),
            overload: Overload::default(),
            buffer: VecDeque::new(),
        };
        Self {
            host,
            directory: parts.directory,
            registrar: parts.registrar,
            workers: parts.workers.into_iter().map(worker).collect(),
            passed_on: VecDeque::new(),
            mailbox: Mailbox::new(1),
            totals: Totals::new(1),
            overflowed: 0,
            rng,
        }
    }

    /// The id that its stamps bear.
    pub fn id(&self) -> u64 {
        self.registrar.bus()
    }

    /// A datagram comes: to the data thread that the kernel chooses by where it is from.
    pub fn arrive(&mut self, datagram: Datagram) {
        let flow = super::trace::fact(datagram.from.to_string().as_bytes());
        let worker = flow as usize % self.workers.len();
        let buffer = &mut self.workers[worker].buffer;
        match buffer.len() < self.host.buffer_max {
            true => buffer.push_back(datagram),
            false => self.overflowed += 1,
        }
    }

    /// Whether a data thread has something to read.
    pub fn is_readable(&self, worker: usize) -> bool {
        !self.workers[worker].buffer.is_empty()
    }

    /// Whether messages wait for the one with the registrar.
    pub fn has_passed_on(&self) -> bool {
        !self.passed_on.is_empty()
    }

    /// How many data threads there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// When there is something to do though nothing comes.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let of_worker = |worker: &Worker| {
            let settle = worker.publishers.poll_timeout();
            [settle, worker.overload.poll_timeout()]
                .into_iter()
                .flatten()
                .min()
        };
        let workers = self.workers.iter().filter_map(of_worker);
        workers.chain(self.registrar.poll_timeout()).min()
    }

    /// Whether any data thread would have to end leases before it forwards.
    pub fn is_overdue(&self, now: Duration) -> bool {
        self.directory.is_overdue(now)
    }

    /// Ends the leases whose time is over, before anything is forwarded by them.
    pub fn end_leases(&mut self, now: Duration) -> Vec<LeaseEvent> {
        let mut ended = Vec::new();
        self.registrar
            .handle_timeout(now, &mut self.directory, &mut ended);
        for event in &ended {
            self.workers[0].ledger.count_lease(event);
        }
        ended
    }

    /// Steps 1 to 3 of a turn: one batch of one data thread.
    pub fn forward(&mut self, index: usize, now: Duration, unix_nano: u64) -> Turn {
        self.settle(index, now);
        let Self {
            directory,
            workers,
            rng,
            host,
            ..
        } = self;
        let worker = &mut workers[index];
        let level = worker.overload.level().get();
        worker.forwarder.begin_turn(directory);
        let mut turn = Turn {
            worker: index,
            now,
            unix_nano,
            level,
            inputs: Vec::new(),
            sends: Vec::new(),
            decided: Vec::new(),
            flows: Vec::new(),
        };
        let mut bytes = 0;
        for _ in 0..host.batch_max {
            let Some(datagram) = worker.buffer.pop_front() else {
                break;
            };
            bytes += datagram.bytes.len();
            let result = take(worker, directory, now, unix_nano, &datagram);
            if let Err(reason) = result {
                worker.ledger.count_dropped_frame(reason);
            }
            turn.inputs.push((datagram, result));
            if worker.forwarder.is_full() {
                flush(worker, directory, host.send_fails, rng, &mut turn);
            }
        }
        worker.ledger.count_frames(0, turn.inputs.len(), bytes);
        flush(worker, directory, host.send_fails, rng, &mut turn);
        follow_load(worker, directory, now, host.buffer_max);
        turn.flows = directory
            .subscribers()
            .iter()
            .map(|(_, one)| flow_of(one))
            .collect();
        turn
    }

    fn settle(&mut self, index: usize, now: Duration) {
        let publishers = match index {
            0 => 0..self.workers.len(),
            _ => index..index + 1,
        };
        for heard in publishers {
            let is_due = self.workers[heard].publishers.poll_timeout();
            if is_due.is_some_and(|at| at <= now) {
                let news = self.workers[heard].publishers.handle_timeout(now);
                self.workers[index].ledger.count_flow(news);
            }
        }
    }

    /// Passes a data thread's control messages on to the one with the registrar, and says how many
    /// there was no room for.
    pub fn pass_controls_on(&mut self, index: usize) -> usize {
        let worker = &mut self.workers[index];
        let mut lost = 0;
        for message in worker.forwarder.controls() {
            if self.passed_on.len() < PASSED_ON_MAX {
                self.passed_on.push_back(message);
            } else {
                worker.ledger.count_lease(&LeaseEvent::Unanswered);
                lost += 1;
            }
        }
        lost
    }

    /// Step 4 of a turn, by the data thread that has the registrar.
    pub fn act_on_controls(&mut self, now: Duration) -> Acted {
        let own: Vec<_> = self.workers[0].forwarder.controls().collect();
        let messages: Vec<_> = own.into_iter().chain(self.passed_on.drain(..)).collect();
        let mut acted = Acted {
            now,
            messages: Vec::new(),
            ended: Vec::new(),
        };
        let mut news = FlowCounts::default();
        for message in messages {
            let mut events = Vec::new();
            let workers = &mut self.workers;
            let flow = |stamp: &Stamp| heard(workers, now, stamp, &mut news);
            self.registrar
                .handle_control(now, message, flow, &mut self.directory, &mut events);
            let mut answers = Vec::new();
            while let Some(answer) = self.registrar.poll_answer() {
                answers.push(answer);
            }
            acted.messages.push((events, answers));
        }
        self.registrar
            .handle_timeout(now, &mut self.directory, &mut acted.ended);
        let ledger = &mut self.workers[0].ledger;
        ledger.count_flow(news);
        let events = acted.messages.iter().flat_map(|(events, _)| events);
        for event in events.chain(&acted.ended) {
            ledger.count_lease(event);
        }
        acted
    }

    /// The operator decides otherwise. Returns whose leases it ended.
    pub fn reload(&mut self, plan: &Plan) -> Vec<LeaseEvent> {
        let mut events = Vec::new();
        self.registrar
            .reconfigure(&plan.settings(), &mut self.directory, &mut events);
        for event in &events {
            self.workers[0].ledger.count_lease(event);
        }
        events
    }

    /// Who gets what, for the oracle to compare with.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// When the next lease ends, by the bus.
    pub fn next_end(&self) -> Option<Duration> {
        self.registrar.poll_timeout()
    }

    /// Everything counted since it started.
    pub fn counts(&mut self) -> &hailmary::ledger::Counts {
        for worker in &mut self.workers {
            worker.ledger.hand_over(&self.mailbox);
        }
        self.mailbox.take_into(&mut self.totals);
        &self.totals.counts
    }

    /// Ends it, and says what it held. What waits in buffers is the kernel's.
    pub fn end(self) -> Held {
        let mut held = Held::default();
        for worker in self.workers {
            held.to_forward += freed(worker.forwarder);
            held.to_know += freed((worker.publishers, worker.ledger, worker.overload));
        }
        held.to_know += freed((self.directory, self.registrar));
        held
    }

    /// What data threads heard of a publisher.
    pub fn trackers(&self, sender: u64) -> impl Iterator<Item = &Tracker> {
        let workers = self.workers.iter();
        workers.filter_map(move |worker| worker.publishers.get(sender))
    }
}

/// What a bus holds, in bytes of the heap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// What its data threads forward with: frames and routes.
    pub to_forward: u64,
    /// What it knows of others: subscribers, publishers, counts.
    pub to_know: u64,
}

fn freed(what: impl Sized) -> u64 {
    let freed = measure(move || drop(what)).bytes_current;
    freed.unsigned_abs()
}

fn take(
    worker: &mut Worker,
    directory: &Directory,
    now: Duration,
    unix_nano: u64,
    datagram: &Datagram,
) -> Result<(), FrameDrop> {
    if datagram.bytes.len() > RECEIVE_BYTES_MAX {
        return Err(FrameDrop::Truncated);
    }
    let arrival = Arrival {
        source: Source::Ip(datagram.from),
        listener: 0,
        now,
        unix_nano,
    };
    let Worker {
        forwarder,
        publishers,
        ledger,
        ..
    } = worker;
    forwarder.handle_datagram(
        directory,
        publishers,
        arrival,
        &datagram.bytes,
        ledger.events(),
    )
}

/// Polls, sends and counts as `net::egress` does; what fails is told after its batch was polled.
fn flush(worker: &mut Worker, directory: &Directory, fails: u32, rng: &mut Rng, turn: &mut Turn) {
    let Worker {
        forwarder, ledger, ..
    } = worker;
    forwarder.take_drops(directory, |series, reason, events| {
        ledger.count_dropped_copy(series, events, reason);
        turn.decided.push(Decided {
            series: series.index(),
            reason,
            events,
        });
    });
    let mut copies = Vec::new();
    loop {
        forwarder.poll_copies(directory, &mut copies, 1 + rng.index(64));
        if copies.is_empty() {
            break;
        }
        for copy in &copies {
            let bytes = [copy.stamp(), forwarder.body(copy)].concat();
            let dropped = match copy.is_sendable {
                false => Some(CopyDrop::TooLarge),
                true if rng.chance(fails) => Some(*rng.pick(&[
                    CopyDrop::WouldBlock,
                    CopyDrop::NoBuffer,
                    CopyDrop::Unreachable,
                    CopyDrop::Refused,
                ])),
                true => None,
            };
            match dropped {
                Some(reason) => {
                    forwarder.handle_dropped(directory, copy);
                    ledger.count_dropped_copy(copy.series, copy.events, reason);
                }
                None => ledger.count_sent(copy.series, copy.events, bytes.len()),
            }
            if let Some(subscriber) = directory.subscribers().get(copy.subscriber) {
                turn.sends.push(Sent {
                    key: key_of(subscriber),
                    to: socket_address(&subscriber.address),
                    series: copy.series.index(),
                    events: copy.events,
                    bytes,
                    dropped,
                });
            }
        }
    }
    forwarder.end_frames();
}

fn follow_load(worker: &mut Worker, directory: &Directory, now: Duration, buffer_max: usize) {
    let waiting = worker.buffer.len();
    let lowest = directory.policies().lowest_priority();
    let fill = || Fill::of(waiting as u32, buffer_max as u32);
    if worker.overload.note_turn(now, waiting > 0, lowest, fill) {
        worker.forwarder.set_level(worker.overload.level());
    }
}

fn heard(workers: &mut [Worker], now: Duration, stamp: &Stamp, news: &mut FlowCounts) -> Heard {
    let next = |worker: &&mut Worker| worker.publishers.get(stamp.sender).map(Tracker::next);
    if let Some(last) = workers.iter_mut().max_by_key(next) {
        *news = news.plus(last.publishers.observe_aside(now, stamp));
    }
    let known = workers
        .iter()
        .filter_map(|worker| worker.publishers.get(stamp.sender));
    known.map(Heard::of).fold(Heard::default(), Heard::plus)
}

/// By what the oracle knows a subscriber.
pub fn key_of(subscriber: &Subscriber) -> Key {
    match subscriber.tenure {
        Tenure::Static => Key::Static(subscriber.name.to_string()),
        Tenure::Lease(_) => Key::Lease(socket_address(&subscriber.address)),
    }
}

pub fn socket_address(address: &Address) -> SocketAddr {
    match address {
        Address::Ip(address) => *address,
        Address::Unix(_) => unreachable!("the world has no Unix sockets"),
    }
}

/// Reads a flow without counting anything on it.
fn flow_of(subscriber: &Subscriber) -> FlowRead {
    let stamp = subscriber.flow.stamp(0, 0, 0, Weight::ONE);
    FlowRead {
        key: key_of(subscriber),
        sequence: stamp.sequence,
        dropped: stamp.dropped,
    }
}
