//! The core as its event loop drives it: datagrams of every kind from every source, times, reloads
//! and overload in, copies and answers out, for one data thread or two. At the end of every turn
//! the laws of the books are checked; with every answer, what was to be answered ([`model`]); with
//! every frame and copy, who may publish what and who is to get it ([`rules`], [`published`]).

mod make;
mod model;
mod published;
mod rules;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hailmary::bus::address::Source;
use hailmary::bus::leases::LeaseEvent;
use hailmary::bus::overload::Level;
use hailmary::bus::publishers::{Heard, Publishers};
use hailmary::bus::{
    Arrival, ControlMessage, CopyDrop, Directory, Forwarder, FrameDrop, Registrar, Settings, open,
};
use hailmary::ledger::{Ledger, Mailbox, Totals};
use hailmary_proto::decode::Decoder;
use hailmary_proto::flow::FlowCounts;
use hailmary_proto::v1::Stamp;

use crate::tape::Tape;
use make::SOURCES;
use model::{Model, Request};
use published::{Fates, Got, Intake, Published};
use rules::Plain;

pub use model::Reached;

/// Steps of one input.
const STEPS_MAX: usize = 200;

/// Cookies of one input that are forged in each place: so few that the bus never finds that its
/// strangers ask too often, which the model does not know of.
const FORGED_MAX: usize = 8;

/// Bytes that the core holds at once, for inputs of at most so many steps: two data threads with
/// their tables of topics seen, frames of several subscribers up to what is pending at most, and
/// buffers as large as the largest datagrams.
const BYTES_MAX: u64 = 48 << 20;

/// Wall clock, in ns of Unix time.
const UNIX_NANO: u64 = 1_700_000_000_000_000_000;

/// See the module.
pub fn run(data: &[u8]) {
    reach(data);
}

/// What an input brought about, so that it can be told whether inputs bring about anything.
pub fn reach(data: &[u8]) -> Reached {
    crate::within(BYTES_MAX, || drive(data))
}

fn drive(data: &[u8]) -> Reached {
    let mut tape = Tape::new(data);
    let plain = make::plain(&mut tape);
    let settings = make::settings(&mut tape, &plain);
    let mut world = World::open(plain, settings, 1 + tape.below(2));
    for _ in 0..STEPS_MAX {
        if tape.is_at_end() {
            break;
        }
        world.step(&mut tape);
    }
    world.end()
}

struct World {
    plain: Plain,
    settings: Settings,
    directory: Directory,
    registrar: Registrar,
    workers: Vec<(Forwarder, Publishers)>,
    ledger: Ledger,
    mailbox: Arc<Mailbox>,
    totals: Totals,
    now: Duration,
    is_in_turn: bool,
    /// Control messages under way, by worker: who sent them and how many bytes.
    asked: Vec<VecDeque<(Source<'static>, usize)>>,
    /// Events under way, by worker.
    published: Vec<Published>,
    /// What is let go, by worker.
    levels: Vec<Level>,
    forged: usize,
    /// Which copies the kernel refuses, by bit.
    refused: u8,
    decoder: Decoder,
    model: Model,
}

impl World {
    fn open(plain: Plain, settings: Settings, workers: usize) -> Self {
        let mut counter = 0_u8;
        let random = move || {
            counter = counter.wrapping_add(1);
            [counter; 16]
        };
        let now = Duration::from_secs(1_000);
        let parts = open(&settings, workers, now, Box::new(random));
        Self {
            model: Model::new(parts.registrar.bus(), &settings),
            plain,
            settings,
            directory: parts.directory,
            registrar: parts.registrar,
            workers: parts.workers,
            ledger: Ledger::new(1),
            mailbox: Mailbox::new(1),
            totals: Totals::new(1),
            now,
            is_in_turn: false,
            asked: vec![VecDeque::new(); workers],
            published: vec![Published::default(); workers],
            levels: vec![Level::default(); workers],
            forged: 0,
            refused: 0,
            decoder: Decoder::new(),
        }
    }

    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.below(20) {
            0 => {
                self.end_turn();
                self.now += tape.pause();
                self.time_out();
            }
            1 => self.end_turn(),
            2 => {
                self.end_turn();
                self.plain = make::plain(tape);
                self.settings = make::settings(tape, &self.plain);
                self.reconfigure();
            }
            3 => {
                self.end_turn();
                let level = Level::new(tape.byte().into());
                let worker = tape.below(self.workers.len());
                self.workers[worker].0.set_level(level);
                self.levels[worker] = level;
            }
            4 => self.refused = tape.byte(),
            5..=6 => {
                let datagram = tape.datagram();
                self.hand(tape, &datagram);
            }
            7..=10 => {
                let datagram = make::events(tape);
                self.hand(tape, &datagram);
            }
            16 => {
                let (source, lease_ms) = self.lease(tape);
                self.ask(source, make::plain_subscribe(Vec::new(), source, lease_ms));
                let cookie = self.cookie(source);
                self.ask(source, make::plain_subscribe(cookie, source, lease_ms));
            }
            17 => {
                let (source, lease_ms) = self.lease(tape);
                let cookie = self.cookie(source);
                self.ask(source, make::plain_subscribe(cookie, source, lease_ms));
            }
            18 => {
                let source = tape.below(SOURCES.len());
                let cookie = self.cookie(source);
                self.ask(source, make::plain_unsubscribe(cookie, source));
            }
            19 => self.forge(tape),
            other => {
                let source = tape.below(SOURCES.len());
                let control = match other {
                    11..=13 => make::subscribe(tape, source, &self.model),
                    14 => make::unsubscribe(tape, source, &self.model),
                    _ => make::ping(tape),
                };
                let worker = tape.below(self.workers.len());
                self.receive(worker, SOURCES[source], &control);
                // Most of the time a request is alone in its turn.
                if !tape.one_in(4) {
                    self.end_turn();
                }
            }
        }
    }

    /// Who asks, and for how long.
    fn lease(&mut self, tape: &mut Tape<'_>) -> (usize, u32) {
        (tape.below(SOURCES.len()), *tape.pick(&[0, 2_000, 60_000]))
    }

    /// What a source was last sent.
    fn cookie(&self, source: usize) -> Vec<u8> {
        self.model.cookie(&SOURCES[source].to_address(), 0).0
    }

    /// A request, alone in its turn.
    fn ask(&mut self, source: usize, request: Vec<u8>) {
        self.end_turn();
        self.receive(0, SOURCES[source], &request);
        self.end_turn();
    }

    /// What a source was last sent, with another bit in one place after the other, without its
    /// end, and with more behind it: no such cookie proves anything.
    fn forge(&mut self, tape: &mut Tape<'_>) {
        let (source, lease_ms) = self.lease(tape);
        let (bit, is_leaving) = (tape.below(8), tape.one_in(2));
        let cookie = self.cookie(source);
        if self.forged == FORGED_MAX || cookie.is_empty() {
            return;
        }
        self.forged += 1;
        let flipped = (0..cookie.len()).map(|place| {
            let mut cookie = cookie.clone();
            cookie[place] ^= 1 << bit;
            cookie
        });
        let cut = cookie[..cookie.len() - 1].to_vec();
        let long = [&cookie[..], &[0]].concat();
        for cookie in flipped.chain([cut, long]) {
            let request = match is_leaving {
                true => make::plain_unsubscribe(cookie, source),
                false => make::plain_subscribe(cookie, source, lease_ms),
            };
            self.ask(source, request);
        }
    }

    fn hand(&mut self, tape: &mut Tape<'_>, datagram: &[u8]) {
        let worker = tape.below(self.workers.len());
        let source = *tape.pick(&SOURCES);
        self.receive(worker, source, datagram);
    }

    fn receive(&mut self, worker: usize, source: Source<'static>, datagram: &[u8]) {
        if !self.is_in_turn {
            self.is_in_turn = true;
            for (forwarder, _) in &mut self.workers {
                forwarder.begin_turn(&self.directory);
            }
        }
        let frame = self.decoder.decode(datagram);
        let is_request = frame.as_ref().is_ok_and(|frame| frame.control().is_some());
        let intake = Intake {
            plain: &self.plain,
            settings: &self.settings,
            directory: &self.directory,
            model: &self.model,
        };
        let mut expected = match &frame {
            Ok(frame) => intake.expect(source, frame, &mut self.published[worker]),
            Err(_) => Err(FrameDrop::Malformed),
        };
        let arrival = Arrival {
            source,
            listener: 0,
            now: self.now,
            unix_nano: UNIX_NANO,
        };
        self.ledger.count_frames(0, 1, datagram.len());
        let before = Fates::of(self.ledger.events());
        let (forwarder, publishers) = &mut self.workers[worker];
        let tally = self.ledger.events();
        let result =
            forwarder.handle_datagram(&self.directory, publishers, arrival, datagram, tally);
        let fates = Fates::of(tally).since(before);
        if let Ok(expected) = &mut expected
            && !self.settings.topic_policies.is_empty()
        {
            // Some may be let go before it is asked who wants them.
            expected.matched = expected.matched.min(fates.matched);
        }
        assert_eq!(result.map(|()| fates), expected, "{source:?}");
        match result {
            Ok(()) if is_request => self.asked[worker].push_back((source, datagram.len())),
            Ok(()) => {}
            Err(reason) => {
                assert_eq!(fates, Fates::default());
                self.ledger.count_dropped_frame(reason);
            }
        }
        self.model.note_frame(result, fates);
        if self.workers[worker].0.is_full() {
            self.flush(worker);
        }
    }

    fn flush(&mut self, worker: usize) {
        let (forwarder, _) = &mut self.workers[worker];
        forwarder.take_drops(&self.directory, |series, reason, events| {
            assert!(matches!(
                reason,
                CopyDrop::Sampled | CopyDrop::RateLimit | CopyDrop::Overload
            ));
            self.ledger.count_dropped_copy(series, events, reason);
        });
        let mut copies = Vec::new();
        let mut got = Got::default();
        let mut number = 0;
        loop {
            forwarder.poll_copies(&self.directory, &mut copies, 5);
            if copies.is_empty() {
                break;
            }
            for copy in &copies {
                let datagram = [copy.stamp(), forwarder.body(copy)].concat();
                let frame = self.decoder.decode(&datagram).expect("copies are frames");
                self.model
                    .check_copy(self.now, &self.directory, copy, &datagram, &frame);
                got.note(copy.subscriber, &frame);
                let is_refused = self.refused >> (number % 8) & 1 == 1;
                let reason = match (copy.is_sendable, is_refused) {
                    (false, _) => Some(CopyDrop::TooLarge),
                    (true, true) => Some(CopyDrop::WouldBlock),
                    (true, false) => None,
                };
                number += 1;
                match reason {
                    Some(reason) => {
                        forwarder.handle_dropped(&self.directory, copy);
                        self.ledger
                            .count_dropped_copy(copy.series, copy.events, reason);
                    }
                    None => {
                        self.model.note_sent(copy);
                        self.ledger
                            .count_sent(copy.series, copy.events, datagram.len());
                    }
                }
            }
        }
        forwarder.end_frames();
        let intake = Intake {
            plain: &self.plain,
            settings: &self.settings,
            directory: &self.directory,
            model: &self.model,
        };
        let published = std::mem::take(&mut self.published[worker]);
        let is_all_kept = self.levels[worker] == Level::default();
        intake.check_got(&published, &got, is_all_kept);
    }

    /// What is asked for changes nothing before all threads have forwarded by what was.
    fn end_turn(&mut self) {
        if self.is_in_turn {
            (0..self.workers.len()).for_each(|worker| self.flush(worker));
        }
        for worker in 0..self.workers.len() {
            let messages: Vec<_> = self.workers[worker].0.controls().collect();
            for message in messages {
                let (source, bytes) = self.asked[worker].pop_front().expect("it was sent");
                let from = source.to_address();
                assert_eq!((&message.from, message.datagram_bytes), (&from, bytes));
                assert_eq!(message.peer, source.peer());
                self.act_on(source, message);
            }
            assert!(self.asked[worker].is_empty(), "each reaches the registrar");
        }
        self.is_in_turn = false;
        self.time_out();
        self.check_books();
    }

    fn act_on(&mut self, source: Source<'static>, message: ControlMessage) {
        let mut events = Vec::new();
        let (now, control) = (self.now, message.control.clone());
        let (from, bytes) = (message.from.clone(), message.datagram_bytes);
        let mut news = FlowCounts::default();
        let workers = &mut self.workers;
        let flow = |stamp: &Stamp| heard(workers, now, stamp, &mut news);
        self.registrar
            .handle_control(now, message, flow, &mut self.directory, &mut events);
        self.ledger.count_flow(news);
        let answer = self.registrar.poll_answer();
        assert_eq!(self.registrar.poll_answer(), None, "one answer at most");
        if let Some(answer) = &answer {
            assert_eq!((answer.listener, &answer.to), (0, &from));
        }
        let answer = answer.map(|answer| answer.datagram);
        let request = Request {
            now,
            source,
            bytes,
            control: &control,
        };
        let decided = (&self.settings, &self.plain);
        self.model.check_answer(decided, &request, &events, answer);
        self.note(&events);
    }

    fn time_out(&mut self) {
        let mut events = Vec::new();
        self.registrar
            .handle_timeout(self.now, &mut self.directory, &mut events);
        self.model.check_expired(self.now, &events);
        self.note(&events);
        let due = self.registrar.poll_timeout();
        assert!(
            due.is_none_or(|due| due > self.now),
            "no turning in a circle"
        );
        for (_, publishers) in &mut self.workers {
            self.ledger.count_flow(publishers.handle_timeout(self.now));
            let due = publishers.poll_timeout();
            assert!(
                due.is_none_or(|due| due > self.now),
                "no turning in a circle"
            );
        }
    }

    fn reconfigure(&mut self) {
        let mut events = Vec::new();
        let changes = self
            .registrar
            .reconfigure(&self.settings, &mut self.directory, &mut events);
        self.model
            .check_reconfigured(&self.plain, &changes, &events);
        self.note(&events);
        self.model.follow(&self.directory, &self.settings);
        self.check_books();
    }

    fn note(&mut self, events: &[LeaseEvent]) {
        for event in events {
            self.ledger.count_lease(event);
        }
    }

    fn check_books(&mut self) {
        self.ledger.hand_over(&self.mailbox);
        self.mailbox.take_into(&mut self.totals);
        model::check_laws(&self.totals.counts);
        self.model.check_counts(&self.totals.counts);
        self.model.follow(&self.directory, &self.settings);
        self.model.check_directory(&self.directory);
    }

    /// When all leases are over, only the static subscribers are left.
    fn end(mut self) -> Reached {
        self.end_turn();
        for (forwarder, publishers) in &mut self.workers {
            let seen = forwarder.topics_seen(self.now);
            assert!(seen.busiest.counters().len() <= hailmary::bus::limits::SEEN_TOPICS_MAX);
            self.ledger.count_flow(publishers.settle_all());
        }
        self.now += Duration::from_secs(301);
        self.end_turn();
        assert_eq!(self.directory.subscribers().leases(), 0);
        let all = self.directory.subscribers().iter().count();
        assert_eq!(all, self.settings.subscribers.len());
        self.settings.subscribers.clear();
        self.reconfigure();
        assert_eq!(self.directory.subscribers().iter().count(), 0);
        self.model.reached()
    }
}

/// What came of a publisher, whichever data thread heard it.
fn heard(
    workers: &mut [(Forwarder, Publishers)],
    now: Duration,
    stamp: &Stamp,
    news: &mut FlowCounts,
) -> Heard {
    let next = |publishers: &Publishers| publishers.get(stamp.sender).map(|flow| flow.next());
    let last = workers
        .iter_mut()
        .max_by_key(|(_, publishers)| next(publishers));
    if let Some((_, publishers)) = last {
        *news = news.plus(publishers.observe_aside(now, stamp));
    }
    let known = workers
        .iter()
        .filter_map(|(_, publishers)| publishers.get(stamp.sender));
    known.map(Heard::of).fold(Heard::default(), Heard::plus)
}
