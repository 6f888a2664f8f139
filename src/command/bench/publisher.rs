//! A publisher: the client that applications use, at a rate or as fast as it can.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, bail};
use hailmary_client::{Address, Batch, Event, PublishError};
use hailmary_proto::write::DATAGRAM_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::PATIENCE;
use super::child::{Message, Order, await_order, tell};
use super::latency::{Counts, Times};
use super::pace::{Schedule, nanos, sleep_till, unix_nano, wake_on_time};
use super::workload::Workload;

/// How long past its end a publisher may go on with what became due before.
const OVERTIME: Duration = Duration::from_secs(1);

/// The bus's count of a flow is final once it is the same after so long.
const STILL_FOR: Duration = Duration::from_millis(50);

/// What a publisher does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Publish {
    /// Where the bus is.
    pub bus: String,
    /// What all publishers do together.
    pub workload: Workload,
    /// Which of them it is.
    pub index: u32,
}

/// What became of a publisher's events.
#[derive(Debug, Serialize, Deserialize)]
pub struct Published {
    /// Events that were handed to the kernel, or that it refused.
    pub events: u64,
    /// Those that it refused.
    pub dropped: u64,
    /// Events that the rate called for and that there was no time left for.
    pub missed: u64,
    /// Those that the bus says it received.
    pub bus_received: u64,
    /// When the last was handed over, in ns of Unix time.
    pub end_unix_nano: u64,
    /// How late datagrams were handed over, where there was a rate to keep.
    pub late: Counts,
}

/// Publishes when it is told to.
pub(super) fn run(task: &Publish, orders: &Receiver<Order>) -> anyhow::Result<Published> {
    wake_on_time();
    let mut publisher = Publisher::open(task)?;
    // From here on the bus follows the flow, so that a loss of its first events shows, too.
    publisher.ask_received()?;
    tell(&Message::Ready)?;
    let Order::Start(start) = await_order(orders)? else {
        bail!("not told when to start");
    };
    let missed = match Schedule::new(&task.workload, task.index, start) {
        Some(schedule) => publisher.keep(&schedule),
        None => publisher.flood(start, task.workload.duration()),
    };
    let end_unix_nano = unix_nano();
    let stats = publisher.client.stats();
    Ok(Published {
        events: stats.sent + stats.dropped(),
        dropped: stats.dropped(),
        missed,
        bus_received: publisher.final_received()?,
        end_unix_nano,
        late: publisher.late.counts(),
    })
}

struct Publisher<'a> {
    client: hailmary_client::Publisher,
    batch: Batch,
    workload: &'a Workload,
    topics: Vec<String>,
    payload: Vec<u8>,
    /// Of the next event.
    number: usize,
    late: Times,
}

impl<'a> Publisher<'a> {
    fn open(task: &'a Publish) -> anyhow::Result<Self> {
        let bus: Address = task.bus.parse()?;
        let client = hailmary_client::Publisher::connect(&bus)?;
        let workload = &task.workload;
        Ok(Self {
            batch: client.batch_of(DATAGRAM_BYTES_MAX),
            client,
            topics: (0..workload.topics).map(|n| workload.topic(n)).collect(),
            payload: vec![0; workload.payload_bytes.max],
            workload,
            number: 0,
            late: Times::new()?,
        })
    }

    /// Publishes by a schedule, and says how many events it had no time for. What is late goes
    /// out at once, as of when it was due.
    fn keep(&mut self, schedule: &Schedule) -> u64 {
        let stop = schedule.end().saturating_add(nanos(OVERTIME));
        for number in 0..schedule.datagrams() {
            let due = schedule.due(number);
            let mut now = unix_nano();
            while now < due {
                sleep_till(due, now);
                now = unix_nano();
            }
            if now > stop {
                return (schedule.datagrams() - number) * self.events_per_datagram();
            }
            self.late.record(now - due, 1);
            // Counted by the client.
            let _ = self.send(due);
        }
        0
    }

    /// Publishes all it can, for so long, and misses nothing. Where there is no room it lets others
    /// go first, and tries at once: a bus empties a Unix socket's usual queue, of ten datagrams, in
    /// less time than a sleep takes.
    fn flood(&mut self, start: u64, duration: Duration) -> u64 {
        sleep_till(start, unix_nano());
        let stop = unix_nano().saturating_add(nanos(duration));
        loop {
            let now = unix_nano();
            if now >= stop {
                return 0;
            }
            if self.send(now).is_err_and(PublishError::is_full) {
                std::thread::yield_now();
            }
        }
    }

    /// Sends one datagram, whose events are of this time.
    fn send(&mut self, time_unix_nano: u64) -> Result<(), PublishError> {
        for _ in 0..self.workload.events_per_datagram {
            let size = self.workload.payload_bytes.size(self.number);
            let topic = self.topics.get(self.number % self.topics.len());
            let payload = self.payload.get(..size).unwrap_or_default();
            let event = Event::new(topic.map_or("", String::as_str), payload);
            self.batch.try_push(&event.time_unix_nano(time_unix_nano))?;
            self.number = self.number.wrapping_add(1);
        }
        self.batch.try_flush()
    }

    fn events_per_datagram(&self) -> u64 {
        self.workload.events_per_datagram.into()
    }

    /// How many events the bus received, once that stands still: with several data threads the
    /// one that answers may be ahead of the one that has the events.
    fn final_received(&self) -> anyhow::Result<u64> {
        let mut received = self.ask_received()?;
        loop {
            std::thread::sleep(STILL_FOR);
            let before = std::mem::replace(&mut received, self.ask_received()?);
            if received == before {
                return Ok(received);
            }
        }
    }

    fn ask_received(&self) -> anyhow::Result<u64> {
        let pong = self.client.ping(PATIENCE);
        Ok(pong.context("the bus does not answer a ping")?.received)
    }
}
