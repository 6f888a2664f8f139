//! A subscriber: the client that applications use, taking all it can.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use hailmary_client::{Address, Subscriber};
use serde::{Deserialize, Serialize};

use super::PATIENCE;
use super::child::{Message, Order, tell};
use super::latency::{Counts, Times};
use super::pace::{unix_nano, wake_on_time};

/// How long one wait for a datagram lasts before orders are looked at.
const LOOK_UP_EVERY: Duration = Duration::from_millis(20);

/// After so long without a datagram nothing is on its way any more.
const QUIET: Duration = Duration::from_millis(100);

/// How long to wait for quiet.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// What a subscriber does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Subscribe {
    /// Where the bus is.
    pub bus: String,
    /// What the bus calls it.
    pub name: String,
    /// What it wants.
    pub pattern: String,
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
pub(super) fn run(task: &Subscribe, orders: &Receiver<Order>) -> anyhow::Result<Received> {
    wake_on_time();
    let bus: Address = task.bus.parse()?;
    let mut taking = Taking {
        subscriber: Subscriber::builder(&bus)
            .pattern(&task.pattern)
            .name(&task.name)
            .connect(PATIENCE)?,
        datagrams: 0,
        end_unix_nano: 0,
        latency: Times::new()?,
    };
    tell(&Message::Ready)?;
    while !matches!(orders.try_recv(), Ok(Order::Finish)) {
        taking.take(LOOK_UP_EVERY)?;
    }
    let told = Instant::now();
    while taking.take(QUIET)? && told.elapsed() < SETTLE_MAX {}
    Ok(taking.close())
}

struct Taking {
    subscriber: Subscriber,
    datagrams: u64,
    end_unix_nano: u64,
    latency: Times,
}

impl Taking {
    /// Takes the next datagram, if one comes in time.
    fn take(&mut self, wait: Duration) -> anyhow::Result<bool> {
        let (latency, end_unix_nano) = (&mut self.latency, &mut self.end_unix_nano);
        let taken = self.subscriber.recv_frame(wait, |frame| {
            *end_unix_nano = unix_nano();
            let mut times = frame.events().map(|e| e.time_unix_nano()).peekable();
            while let Some(time) = times.next() {
                // What was published in one datagram has one time, and is counted at once.
                let mut events = 1;
                while times.next_if_eq(&time).is_some() {
                    events += 1;
                }
                latency.record(end_unix_nano.saturating_sub(time), events);
            }
        })?;
        self.datagrams += u64::from(taken.is_some());
        Ok(taken.is_some())
    }

    fn close(self) -> Received {
        let stats = self.subscriber.close();
        Received {
            events: stats.received,
            datagrams: self.datagrams,
            lost: stats.lost,
            dropped_by_bus: stats.dropped_by_bus,
            lapses: stats.lapses,
            end_unix_nano: self.end_unix_nano,
            latency: self.latency.counts(),
        }
    }
}
