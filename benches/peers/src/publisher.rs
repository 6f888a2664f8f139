//! The publisher: a process that sends preformatted events as fast as it can or by a schedule.
//!
//! The same for every system but for the bytes of an event and the way out. It warms the way up
//! until it is told to go, sends what counts, says what it did, and sends ends until its standard
//! input closes.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use hailmary_proto::v1;
use hailmary_proto::write::StampBytes;
use serde::{Deserialize, Serialize};

use crate::clock::{now_nano, own_cpu_nano, sleep_till, wake_on_time};
use crate::event::{Head, Kind, blank_payload};
use crate::system::System;
use crate::wire::{Greet, Role, Wire, hailmary, mqtt, nats, resp, zmtp};

/// How long a write, or the answer to a greeting, may take before the broker is given up.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The time between two events that are not counted.
const REPEAT_EVERY: Duration = Duration::from_millis(5);

/// How long a publisher that its broker holds up may go on behind the end of its schedule, in ns.
const OVERTIME_NANO: u64 = 10_000_000_000;

/// The most events of a run, whatever the time: what no system here reaches.
const EVENTS_MAX: u64 = 1_000_000_000;

/// What a publisher does.
#[derive(Clone, Debug, clap::Args)]
pub struct Publish {
    /// To what.
    #[arg(long, value_enum)]
    pub system: System,
    /// Where that is.
    #[arg(long)]
    pub address: SocketAddr,
    /// Events in one write.
    #[arg(long)]
    pub batch: u32,
    /// Events a second; 0: all it can.
    #[arg(long)]
    pub rate: u64,
    /// For how long.
    #[arg(long)]
    pub seconds: f64,
}

/// What a publisher did, in times of the monotonic clock.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Published {
    /// Counted events that the kernel took.
    pub events: u64,
    /// Counted events that it did not take.
    pub refused: u64,
    /// When the first was begun to be sent.
    pub start_nano: u64,
    /// When the last had been handed over.
    pub end_nano: u64,
    /// CPU used between the two.
    pub cpu_nano: u64,
}

impl Publish {
    /// Publishes, and says what became of it as a line of JSON.
    ///
    /// # Errors
    ///
    /// There is no broker, it hung up, or it took nothing for too long.
    pub fn run(&self) -> anyhow::Result<()> {
        wake_on_time();
        match self.system {
            System::HailMary | System::HailMaryPrompt => {
                self.publish::<hailmary::HailMary>(Outlet::datagrams(self.address)?)
            }
            System::Nats => self.publish_stream::<nats::Nats>(),
            System::Redis => self.publish_stream::<resp::Redis>(),
            System::Mosquitto => self.publish_stream::<mqtt::Mqtt>(),
            System::ZeroMq => self.publish_stream::<zmtp::Zmtp>(),
        }
    }

    fn publish_stream<W: Greet>(&self) -> anyhow::Result<()> {
        self.publish::<W>(Outlet::stream::<W>(self.address)?)
    }

    fn publish<W: Wire>(&self, mut outlet: Outlet) -> anyhow::Result<()> {
        let orders = Orders::listen();
        let mut single = Batch::new::<W>(1);
        repeat(&mut outlet, &mut single, Kind::WarmUp, || orders.went())?;
        let mut batch = Batch::new::<W>(self.batch);
        let published = self.send_counted(&mut outlet, &mut batch)?;
        println!("{}", serde_json::to_string(&published)?);
        repeat(&mut outlet, &mut single, Kind::End, || orders.ended())
    }

    fn send_counted(&self, outlet: &mut Outlet, batch: &mut Batch) -> anyhow::Result<Published> {
        let (start_cpu, start_nano) = (own_cpu_nano(), now_nano());
        let schedule = Schedule::new(self, start_nano);
        let (mut events, mut refused) = (0, 0);
        while let Some(due_nano) = schedule.wait(events + refused) {
            batch.fill(Head {
                kind: Kind::Counted,
                due_nano,
                number: events + refused,
            });
            match outlet.send(batch).context("while sending")? {
                Sent::Taken => events += batch.events(),
                Sent::Refused => refused += batch.events(),
            }
        }
        Ok(Published {
            events,
            refused,
            start_nano,
            end_nano: now_nano(),
            cpu_nano: own_cpu_nano() - start_cpu,
        })
    }
}

/// When each event is due.
struct Schedule {
    start_nano: u64,
    end_nano: u64,
    rate: u64,
}

impl Schedule {
    fn new(task: &Publish, start_nano: u64) -> Self {
        let length = Duration::from_secs_f64(task.seconds).as_nanos();
        Self {
            start_nano,
            end_nano: start_nano.saturating_add(u64::try_from(length).unwrap_or(u64::MAX)),
            rate: task.rate,
        }
    }

    /// Waits till the event of this number is due, says when that is, or that the time is over.
    /// Being late once delays nothing behind it.
    #[inline]
    fn wait(&self, number: u64) -> Option<u64> {
        let now = now_nano();
        let due = self.due(number).unwrap_or(now);
        let is_too_late = now >= self.end_nano.saturating_add(OVERTIME_NANO);
        if due >= self.end_nano || is_too_late || number >= EVENTS_MAX {
            return None;
        }
        if due > now {
            sleep_till(due, now);
        }
        Some(due)
    }

    /// Nothing where there is no rate.
    fn due(&self, number: u64) -> Option<u64> {
        let after = u128::from(number) * 1_000_000_000;
        let after = after.checked_div(u128::from(self.rate))?;
        Some(
            self.start_nano
                .saturating_add(u64::try_from(after).unwrap_or(u64::MAX)),
        )
    }
}

/// Sends single events of a kind, some at a time, until it is enough.
fn repeat(
    outlet: &mut Outlet,
    single: &mut Batch,
    kind: Kind,
    is_enough: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let mut number = 0;
    while !is_enough() {
        single.fill(Head {
            kind,
            due_nano: now_nano(),
            number,
        });
        outlet.send(single)?;
        number += 1;
        std::thread::sleep(REPEAT_EVERY);
    }
    Ok(())
}

/// The bytes of one write, in which only the payloads' heads change.
struct Batch {
    bytes: Vec<u8>,
    payloads: Vec<Range<usize>>,
}

impl Batch {
    fn new<W: Wire>(events: u32) -> Self {
        let mut bytes = Vec::new();
        let payload = blank_payload();
        let payloads = (0..events)
            .map(|_| W::put_event(&mut bytes, &payload))
            .collect();
        Self { bytes, payloads }
    }

    fn events(&self) -> u64 {
        u64::try_from(self.payloads.len()).unwrap_or(u64::MAX)
    }

    /// Writes this head into the first event, and into the others with the numbers that follow.
    #[inline]
    fn fill(&mut self, first: Head) {
        for (number, place) in (first.number..).zip(&self.payloads) {
            if let Some(payload) = self.bytes.get_mut(place.clone()) {
                Head { number, ..first }.write(payload);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Sent {
    Taken,
    Refused,
}

/// The way out.
enum Outlet {
    Stream(TcpStream),
    Datagrams { socket: UdpSocket, flow: v1::Stamp },
}

impl Outlet {
    fn stream<W: Greet>(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        W::greet(&mut stream, Role::Publisher)?;
        Ok(Self::Stream(stream))
    }

    fn datagrams(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(address)?;
        let flow = v1::Stamp {
            // Its keys are random.
            sender: RandomState::new().hash_one(std::process::id()),
            ..v1::Stamp::default()
        };
        Ok(Self::Datagrams { socket, flow })
    }

    /// Hands all bytes over in one call, where the kernel takes them in one. A stream waits for
    /// room; a datagram goes or does not.
    #[inline]
    fn send(&mut self, batch: &mut Batch) -> io::Result<Sent> {
        match self {
            Self::Stream(stream) => stream.write_all(&batch.bytes).map(|()| Sent::Taken),
            Self::Datagrams { socket, flow } => send_frame(socket, flow, batch),
        }
    }
}

/// Sends the events with the flow's stamp behind them, as the project's own clients do.
fn send_frame(socket: &UdpSocket, flow: &mut v1::Stamp, batch: &mut Batch) -> io::Result<Sent> {
    let events = batch.events();
    let events_bytes = batch.bytes.len();
    batch
        .bytes
        .extend_from_slice(StampBytes::new(flow).as_slice());
    let outcome = socket.send(&batch.bytes);
    batch.bytes.truncate(events_bytes);
    flow.sequence += events;
    match outcome {
        Ok(_) => Ok(Sent::Taken),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(error),
        Err(_) => {
            flow.dropped += events;
            Ok(Sent::Refused)
        }
    }
}

/// What the standard input said: a line means go, its end means end.
struct Orders {
    went: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Orders {
    fn listen() -> Self {
        let orders = Self {
            went: Arc::default(),
            ended: Arc::default(),
        };
        let (went, ended) = (Arc::clone(&orders.went), Arc::clone(&orders.ended));
        std::thread::spawn(move || {
            for _ in io::stdin().lock().lines().map_while(Result::ok) {
                went.store(true, Ordering::Release);
            }
            ended.store(true, Ordering::Release);
        });
        orders
    }

    fn went(&self) -> bool {
        self.went.load(Ordering::Acquire) || self.ended()
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::scan;

    #[test]
    fn a_batch_numbers_its_events() {
        let mut batch = Batch::new::<nats::Nats>(3);
        let head = Head {
            kind: Kind::Counted,
            due_nano: 9,
            number: 40,
        };
        batch.fill(head);
        let mut numbers = Vec::new();
        for place in &batch.payloads {
            numbers.push(Head::read(&batch.bytes[place.clone()]).unwrap().number);
        }
        assert_eq!(numbers, [40, 41, 42]);
    }

    #[test]
    fn a_schedule_is_absolute_and_ends() {
        let schedule = Schedule {
            start_nano: now_nano(),
            end_nano: now_nano() + 1_000_000_000,
            rate: 1_000_000,
        };
        assert_eq!(schedule.wait(10), Some(schedule.start_nano + 10_000));
        assert_eq!(schedule.wait(2_000_000), None);
        let held_up = Schedule {
            start_nano: schedule.start_nano - OVERTIME_NANO - 2_000_000_000,
            end_nano: schedule.start_nano - OVERTIME_NANO - 1_000_000_000,
            ..schedule
        };
        assert_eq!(held_up.wait(10), None);
        let unpaced = Schedule {
            rate: 0,
            ..schedule
        };
        assert!(unpaced.wait(7).unwrap() >= schedule.start_nano);
        assert_eq!(unpaced.wait(EVENTS_MAX), None);
    }

    #[test]
    fn frames_carry_the_flow() {
        let bus = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut outlet = Outlet::datagrams(bus.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new::<hailmary::HailMary>(2);
        let mut buffer = [0; 1024];
        for sequence in [0, 2] {
            assert!(matches!(outlet.send(&mut batch).unwrap(), Sent::Taken));
            let bytes = bus.recv(&mut buffer).unwrap();
            let mut decoder = hailmary_proto::decode::Decoder::new();
            let frame = decoder.decode(&buffer[..bytes]).unwrap();
            assert_eq!(frame.events().len(), 2);
            assert_eq!(frame.stamp().unwrap().sequence, sequence);
            let mut seen = 0;
            scan::<hailmary::HailMary>(&buffer[..bytes], |_| seen += 1).unwrap();
            assert_eq!(seen, 2);
        }
    }
}
