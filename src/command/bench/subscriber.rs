//! A subscriber: takes all it can, counts, and tells the latency of some or all.
//!
//! To count events it walks a frame's fields and decodes none of them, which takes a quarter of
//! a full decode: on two cores its time is the bus's. An event that its latency is told of is
//! decoded by itself.

use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::bail;
use hailmary_client::lease::{LeaseState, Origin, Subscription, Verdict};
use hailmary_proto::decode::Decoder;
use hailmary_proto::v1;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::child::{Message, Order, tell};
use super::latency::{Counts, Times};
use super::pace::{unix_nano, wake_on_time};
use super::way::Way;
use super::{PATIENCE, random_id, walk};
use crate::bus::address::{Address, Source};
use crate::net::listener::Listener;
use crate::net::sys::{self, BATCH, ReceiveRing};

/// How long one wait for a datagram lasts before orders are looked at.
const LOOK_UP_EVERY: Duration = Duration::from_millis(20);

/// After so long without a datagram nothing is on its way any more.
const QUIET: Duration = Duration::from_millis(100);

/// How long to wait for quiet.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// What a subscriber does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Subscribe {
    /// To the bus.
    pub way: Way,
    /// What the bus calls it.
    pub name: String,
    /// What it wants.
    pub pattern: String,
    /// Of how many events the latency of one is told.
    pub sample_every: u64,
}

/// What a subscriber saw.
#[derive(Debug, Serialize, Deserialize)]
pub struct Received {
    /// Events that came.
    pub events: u64,
    /// Datagrams that they came in.
    pub datagrams: u64,
    /// Events lost between the bus and this subscriber, as far as a later frame's stamp told.
    pub lost: u64,
    /// Events that the bus dropped, as far as a later frame's stamp told.
    pub dropped_by_bus: u64,
    /// How often its lease ended before its time.
    pub lapses: u64,
    /// When the last datagram was taken, in ns of Unix time.
    pub end_unix_nano: u64,
    /// From the time that an event was to be sent to its arrival here.
    pub latency: Counts,
}

/// Subscribes, and takes what comes till it is told to finish.
pub(super) fn run(task: Subscribe, orders: &Receiver<Order>) -> anyhow::Result<Received> {
    wake_on_time();
    let mut subscriber = Subscriber::open(task)?;
    let deadline = Instant::now() + PATIENCE;
    while subscriber.books.subscription.state() != LeaseState::Held {
        if let LeaseState::Refused(reason) = subscriber.books.subscription.state() {
            bail!(reason);
        }
        if Instant::now() > deadline {
            match subscriber.books.subscription.refusal() {
                Some(reason) => bail!(reason),
                None => bail!("the bus grants no lease"),
            }
        }
        subscriber.turn()?;
    }
    tell(&Message::Ready)?;
    while !matches!(orders.try_recv(), Ok(Order::Finish)) {
        subscriber.turn()?;
    }
    let told = Instant::now();
    while subscriber.quiet_since.max(told).elapsed() < QUIET && told.elapsed() < SETTLE_MAX {
        subscriber.turn()?;
    }
    Ok(subscriber.close())
}

struct Subscriber {
    listener: Listener,
    bus: Address,
    ring: ReceiveRing,
    /// Whether the socket had more than a batch at the last look.
    is_readable: bool,
    /// What the subscription's times are counted from.
    began: Instant,
    quiet_since: Instant,
    books: Books,
}

impl Subscriber {
    fn open(task: Subscribe) -> anyhow::Result<Self> {
        let request = v1::Subscribe {
            topics: vec![task.pattern],
            name: task.name,
            ..v1::Subscribe::default()
        };
        let began = Instant::now();
        Ok(Self {
            listener: task.way.open()?,
            bus: task.way.bus(),
            ring: ReceiveRing::new(),
            is_readable: false,
            began,
            quiet_since: began,
            books: Books {
                subscription: Subscription::new(request, random_id()?, Duration::ZERO),
                decoder: Decoder::new(),
                datagrams: 0,
                end_unix_nano: 0,
                samples: Samples::new(task.sample_every)?,
            },
        })
    }

    /// Says what is due, and takes one batch of datagrams if it comes in time.
    fn turn(&mut self) -> anyhow::Result<()> {
        let now = self.began.elapsed();
        let subscription = &mut self.books.subscription;
        while let Some(request) = subscription.poll_transmit(now) {
            // What is not sent is as good as lost, and sent again.
            let _ = self.listener.answer(&self.bus, request);
        }
        if !self.is_readable {
            sys::wait_readable(self.listener.as_fd(), LOOK_UP_EVERY);
        }
        let taken = self.ring.receive(self.listener.as_fd())?;
        self.is_readable = taken == BATCH;
        if taken > 0 {
            self.quiet_since = Instant::now();
            let moment = Moment {
                now: self.began.elapsed(),
                unix_nano: unix_nano(),
            };
            for datagram in self.ring.datagrams() {
                let origin = origin(datagram.source, &self.bus);
                self.books.take(moment, origin, datagram.bytes);
            }
        }
        Ok(())
    }

    fn close(mut self) -> Received {
        if let Some(farewell) = self.books.subscription.close() {
            // If it gets lost, the lease lapses.
            let _ = self.listener.answer(&self.bus, farewell);
        }
        let counts = self.books.subscription.counts();
        Received {
            events: counts.flow.received,
            datagrams: self.books.datagrams,
            lost: counts.flow.lost,
            dropped_by_bus: counts.flow.dropped_by_bus,
            lapses: counts.lapses,
            end_unix_nano: self.books.end_unix_nano,
            latency: self.books.samples.latency.counts(),
        }
    }
}

/// A Unix socket may bear another name here than where the bus is: there the nonce must do.
fn origin(source: Source<'_>, bus: &Address) -> Origin {
    match (source, bus) {
        (Source::Ip(source), Address::Ip(bus)) if source == *bus => Origin::Bus,
        (Source::Unix(_), Address::Unix(_)) => Origin::Bus,
        _ => Origin::Elsewhere,
    }
}

/// When a batch was taken: by the subscription's clock, and by that of events.
#[derive(Clone, Copy)]
struct Moment {
    now: Duration,
    unix_nano: u64,
}

struct Books {
    subscription: Subscription,
    decoder: Decoder,
    datagrams: u64,
    end_unix_nano: u64,
    samples: Samples,
}

impl Books {
    fn take(&mut self, moment: Moment, origin: Origin, datagram: &[u8]) {
        let verdict = match self.take_plain(moment, datagram) {
            Some(verdict) => verdict,
            None => self.take_decoded(moment, origin, datagram),
        };
        if matches!(verdict, Verdict::Deliver { .. }) {
            self.datagrams += 1;
            self.end_unix_nano = moment.unix_nano;
        }
    }

    /// A frame as a bus makes them: its stamp, then nothing but events.
    #[inline]
    fn take_plain(&mut self, moment: Moment, datagram: &[u8]) -> Option<Verdict> {
        let (stamp, events) = walk::split_stamp(datagram)?;
        let stamp = v1::Stamp::decode(stamp).ok()?;
        if self.subscription.bus() != Some(stamp.sender) {
            return None;
        }
        let samples = &mut self.samples;
        let count = walk::count_events(events, |event| samples.offer(moment.unix_nano, event))?;
        Some(self.subscription.handle_tally(&stamp, count))
    }

    /// Any other: the bus's answers, mostly.
    fn take_decoded(&mut self, moment: Moment, origin: Origin, datagram: &[u8]) -> Verdict {
        match self.decoder.decode(datagram) {
            Ok(view) => self.subscription.handle_frame(moment.now, origin, &view),
            Err(_) => Verdict::Ignored,
        }
    }
}

/// The latency of every so many-th event.
struct Samples {
    every: u64,
    till_next: u64,
    decoder: Decoder,
    latency: Times,
}

impl Samples {
    fn new(every: u64) -> anyhow::Result<Self> {
        Ok(Self {
            every,
            till_next: 1,
            decoder: Decoder::new(),
            latency: Times::new()?,
        })
    }

    #[inline]
    fn offer(&mut self, unix_nano: u64, event: &[u8]) {
        self.till_next -= 1;
        if self.till_next == 0 {
            self.till_next = self.every;
            self.record(unix_nano, event);
        }
    }

    /// An event field alone is a frame, too.
    fn record(&mut self, unix_nano: u64, event: &[u8]) {
        if let Ok(frame) = self.decoder.decode(event) {
            for event in frame.events() {
                self.latency
                    .record(unix_nano.saturating_sub(event.time_unix_nano()));
            }
        }
    }
}
