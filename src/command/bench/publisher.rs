//! A publisher: datagrams made beforehand, handed to the kernel when they are due.
//!
//! It sends by a connected socket, one datagram a call: nothing is faster (only such a socket
//! keeps its route, and batched calls save next to nothing).

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::bail;
use hailmary_proto::decode::Decoder;
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::write::{UNPROVEN_REQUEST_BYTES_MIN, pad};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use super::child::{Message, Order, await_order, tell};
use super::latency::{Counts, Times};
use super::pace::{Schedule, nanos, sleep_till, unix_nano, wake_on_time};
use super::template::Templates;
use super::way::Way;
use super::{PATIENCE, random_id};
use crate::net::address::to_sockaddr;
use crate::net::listener::Listener;
use crate::net::sys;

/// How long an answer may take before the bus is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long past its end a publisher may go on with what became due before.
const OVERTIME: Duration = Duration::from_millis(50);

/// More than an answer has, in bytes.
const ANSWER_BYTES: usize = 2_048;

/// What a publisher does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Publish {
    /// To the bus.
    pub way: Way,
    /// What all publishers do together.
    pub workload: super::workload::Workload,
    /// Which of them it is.
    pub index: u32,
}

/// What became of a publisher's events.
#[derive(Debug, Serialize, Deserialize)]
pub struct Published {
    /// Events that were due and handed to the kernel, or that the kernel refused.
    pub events: u64,
    /// Those that the kernel refused.
    pub dropped: u64,
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
    match task.workload.rate {
        Some(rate) => {
            let schedule = Schedule::new(&task.workload, rate, task.index, start);
            publisher.keep(
                &schedule,
                start.saturating_add(nanos(task.workload.duration)),
            );
        }
        None => publisher.flood(start, nanos(task.workload.duration))?,
    }
    let end_unix_nano = unix_nano();
    Ok(Published {
        events: publisher.sequence,
        dropped: publisher.dropped,
        bus_received: publisher.ask_received()?,
        end_unix_nano,
        late: publisher.late.counts(),
    })
}

struct Publisher {
    listener: Listener,
    templates: Templates,
    events_per_datagram: u64,
    sender: u64,
    sequence: u64,
    dropped: u64,
    late: Times,
}

impl Publisher {
    fn open(task: &Publish) -> anyhow::Result<Self> {
        let listener = task.way.open()?;
        SockRef::from(&listener).connect(&to_sockaddr(&task.way.bus())?)?;
        Ok(Self {
            listener,
            templates: Templates::new(&task.workload),
            events_per_datagram: task.workload.events_per_datagram.into(),
            sender: random_id()?,
            sequence: 0,
            dropped: 0,
            late: Times::new()?,
        })
    }

    /// Publishes by a schedule. What is late goes out at once, as of when it was due.
    fn keep(&mut self, schedule: &Schedule, end_unix_nano: u64) {
        let stop = end_unix_nano.saturating_add(nanos(OVERTIME));
        let mut number = 0;
        while let Some(due) = schedule.due(number) {
            let now = unix_nano();
            if now < due {
                sleep_till(due, now);
            } else if now > stop {
                break;
            } else {
                self.late.record(now - due);
                self.send(due);
                number += 1;
            }
        }
    }

    /// Publishes all it can. The one case in which a publisher waits for room.
    fn flood(&mut self, start: u64, duration_ns: u64) -> anyhow::Result<()> {
        sleep_till(start, unix_nano());
        SockRef::from(&self.listener).set_nonblocking(false)?;
        let stop = unix_nano().saturating_add(duration_ns);
        loop {
            let now = unix_nano();
            if now >= stop {
                break;
            }
            self.send(now);
        }
        SockRef::from(&self.listener).set_nonblocking(true)?;
        Ok(())
    }

    fn send(&mut self, time_unix_nano: u64) {
        let stamp = self.stamp();
        let datagram = self.templates.next(time_unix_nano, &stamp);
        self.sequence += self.events_per_datagram;
        if SockRef::from(&self.listener).send(datagram).is_err() {
            self.dropped += self.events_per_datagram;
        }
    }

    fn stamp(&self) -> v1::Stamp {
        v1::Stamp {
            sender: self.sender,
            sequence: self.sequence,
            dropped: self.dropped,
            ..v1::Stamp::default()
        }
    }

    /// How many events of this flow the bus received. By the time it answers it has handed on
    /// all that came before the question.
    fn ask_received(&self) -> anyhow::Result<u64> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let nonce = random_id()?;
            // What is not sent is as good as lost, and asked again.
            let _ = SockRef::from(&self.listener).send(&self.ping(nonce));
            if let Some(pong) = self.await_pong(nonce) {
                return Ok(pong.received);
            }
        }
        bail!("the bus does not answer a ping");
    }

    fn ping(&self, nonce: u64) -> Vec<u8> {
        let mut frame = v1::Frame {
            stamp: Some(self.stamp()),
            control: Some(Control::Ping(v1::Ping { nonce })),
            ..v1::Frame::default()
        };
        pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
        frame.encode_to_vec()
    }

    fn await_pong(&self, nonce: u64) -> Option<v1::Pong> {
        let began = Instant::now();
        let mut buffer = [0; ANSWER_BYTES];
        loop {
            let left = ASK_AGAIN_AFTER.checked_sub(began.elapsed())?;
            sys::wait_readable(self.listener.as_fd(), left);
            let socket = SockRef::from(&self.listener);
            while let Ok(bytes) = (&*socket).read(&mut buffer) {
                let pong = buffer
                    .get(..bytes)
                    .and_then(|bytes| read_pong(bytes, nonce));
                if pong.is_some() {
                    return pong;
                }
            }
        }
    }
}

fn read_pong(datagram: &[u8], nonce: u64) -> Option<v1::Pong> {
    match Decoder::new().decode(datagram).ok()?.control()? {
        Control::Pong(pong) if pong.nonce == nonce => Some(*pong),
        _ => None,
    }
}
