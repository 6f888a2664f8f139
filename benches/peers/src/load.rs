//! One run: a system, a load on it, and what came of it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::{env, fmt};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::publisher::Published;
use crate::resources::Memory;
use crate::server::{Programs, Server};
use crate::subscriber::{DIGITS, Ending, LATENCY_NANO_MAX, READY, Received};
use crate::system::System;

/// How long a subscriber waits beside the load itself: for the way to open before it, and behind
/// it for what the broker has stored up.
const SLACK_SECONDS: f64 = 30.0;

/// What a system has to do.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Load {
    /// Events in one write.
    pub batch: u32,
    /// Subscribers, each of which wants all.
    pub fan_out: u32,
    /// Events a second; 0: all that the publisher can.
    pub rate: u64,
    /// For how long.
    pub seconds: f64,
}

impl fmt::Display for Load {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate {
            0 => write!(out, "Full speed")?,
            rate => write!(out, "{rate} events/s")?,
        }
        match self.batch {
            1 => write!(out, ", one event a write")?,
            several => write!(out, ", {several} events a write")?,
        }
        match self.fan_out {
            1 => write!(out, ", 1 subscriber"),
            several => write!(out, ", {several} subscribers"),
        }
    }
}

/// What came of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Of which system.
    pub system: System,
    /// Under which load.
    pub load: Load,
    /// Events that the kernel took from the publisher.
    pub sent: u64,
    /// Of them, per second of sending.
    pub sent_per_second: f64,
    /// Copies that all subscribers received.
    pub delivered: u64,
    /// Of them, per second from the first event's sending to the last one's reading.
    pub delivered_per_second: f64,
    /// The share of the copies of what was sent that did not come.
    pub lost: f64,
    /// Copies that came behind one with a higher number.
    pub disordered: u64,
    /// Subscribers that the broker hung up on.
    pub cut_off: u64,
    /// CPU of the broker for each delivered copy, in ns.
    pub broker_cpu_nano: f64,
    /// CPU of the publisher for each event, in ns.
    pub publisher_cpu_nano: f64,
    /// CPU of the subscribers for each delivered copy, in ns.
    pub subscriber_cpu_nano: f64,
    /// Resident memory of the broker at the end, in bytes.
    pub resident_bytes: u64,
    /// At most, in bytes.
    pub peak_bytes: u64,
    /// From when an event was to be sent to its reading; where there was a rate.
    pub latency: Option<Latency>,
}

/// Latency of all copies, in µs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half of them were faster.
    pub p50_micros: f64,
    /// All but one in a hundred were.
    pub p99_micros: f64,
    /// All but one in a thousand were.
    pub p999_micros: f64,
}

/// Puts a load on a new run of a system.
///
/// # Errors
///
/// A process could not be started, failed, or no event reached a subscriber.
pub fn run(system: System, load: Load, programs: &Programs) -> anyhow::Result<Outcome> {
    let server = Server::start(system, programs)?;
    let mut subscribers = (0..load.fan_out)
        .map(|_| Client::start(&subscribe(&server, system, load)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut publisher = Client::start(&publish(&server, system, load))?;
    for subscriber in &mut subscribers {
        subscriber.await_ready()?;
    }
    let cpu_before = server.cpu_nano()?;
    publisher.go()?;
    let published: Published = publisher.report()?;
    let received = subscribers
        .iter_mut()
        .map(Client::report)
        .collect::<anyhow::Result<Vec<Received>>>()?;
    let broker = Broker {
        cpu_nano: server.cpu_nano()? - cpu_before,
        memory: server.memory()?,
    };
    if let Some(late) = received.iter().find(|one| one.ending == Ending::Deadline) {
        bail!("no end came through behind {} events", late.events);
    }
    outcome(system, load, &published, &received, &broker)
}

struct Broker {
    cpu_nano: u64,
    memory: Memory,
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn outcome(
    system: System,
    load: Load,
    published: &Published,
    received: &[Received],
    broker: &Broker,
) -> anyhow::Result<Outcome> {
    let delivered: u64 = received.iter().map(|one| one.events).sum();
    let copies = published.events * u64::from(load.fan_out);
    let last_nano = received.iter().map(|one| one.last_nano).max().unwrap_or(0);
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
    let cpu: u64 = received.iter().map(|one| one.cpu_nano).sum();
    if published.events == 0 || delivered == 0 {
        bail!("nothing was delivered");
    }
    Ok(Outcome {
        system,
        load,
        sent: published.events,
        sent_per_second: published.events as f64
            / seconds(published.start_nano, published.end_nano),
        delivered,
        delivered_per_second: delivered as f64 / seconds(published.start_nano, last_nano),
        lost: copies.saturating_sub(delivered) as f64 / copies as f64,
        disordered: received.iter().map(|one| one.disordered).sum(),
        cut_off: count(received, Ending::CutOff),
        broker_cpu_nano: broker.cpu_nano as f64 / delivered as f64,
        publisher_cpu_nano: published.cpu_nano as f64 / published.events as f64,
        subscriber_cpu_nano: cpu as f64 / delivered as f64,
        resident_bytes: broker.memory.resident_bytes,
        peak_bytes: broker.memory.peak_bytes,
        latency: Latency::of(received)?,
    })
}

fn count(received: &[Received], ending: Ending) -> u64 {
    received
        .iter()
        .map(|one| u64::from(one.ending == ending))
        .sum()
}

impl Latency {
    /// Of all subscribers together; nothing where none told.
    fn of(received: &[Received]) -> anyhow::Result<Option<Self>> {
        let mut all = Histogram::<u64>::new_with_max(LATENCY_NANO_MAX, DIGITS)?;
        for (nanos, count) in received.iter().flat_map(|one| &one.latency) {
            all.saturating_record_n(*nanos, *count);
        }
        #[expect(clippy::cast_precision_loss, reason = "ns of seconds, far below 2^53")]
        let micros = |share| all.value_at_quantile(share) as f64 / 1e3;
        Ok((!all.is_empty()).then(|| Self {
            p50_micros: micros(0.5),
            p99_micros: micros(0.99),
            p999_micros: micros(0.999),
        }))
    }
}

fn subscribe(server: &Server, system: System, load: Load) -> Vec<String> {
    let deadline = load.seconds + SLACK_SECONDS;
    let mut arguments = vec![
        "subscribe".to_owned(),
        format!("--system={}", system.argument()),
        format!("--address={}", server.subscribe),
        format!("--deadline-seconds={deadline}"),
    ];
    if load.rate > 0 {
        arguments.push("--latency".to_owned());
    }
    arguments
}

fn publish(server: &Server, system: System, load: Load) -> Vec<String> {
    vec![
        "publish".to_owned(),
        format!("--system={}", system.argument()),
        format!("--address={}", server.publish),
        format!("--batch={}", load.batch),
        format!("--rate={}", load.rate),
        format!("--seconds={}", load.seconds),
    ]
}

/// A publisher or subscriber: this program, in a process of its own. It ends with this value.
struct Client {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Client {
    fn start(arguments: &[String]) -> anyhow::Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let says = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, says })
    }

    /// It has a deadline of its own, so this ends.
    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.says.read_line(&mut line)? == 0 {
            bail!("a publisher or subscriber ended early");
        }
        Ok(line)
    }

    fn await_ready(&mut self) -> anyhow::Result<()> {
        match self.line()?.trim_end() {
            READY => Ok(()),
            other => bail!("no event reached a subscriber: {other}"),
        }
    }

    fn go(&mut self) -> anyhow::Result<()> {
        let orders = self.child.stdin.as_mut().context("no standard input")?;
        Ok(orders.write_all(b"go\n")?)
    }

    fn report<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        Ok(serde_json::from_str(&self.line()?)?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // All that counts has been said.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(events: u64, last_nano: u64, latency: Vec<(u64, u64)>) -> Received {
        Received {
            ending: Ending::Complete,
            events,
            disordered: 0,
            last_nano,
            cpu_nano: events * 100,
            latency,
        }
    }

    #[test]
    fn rates_last_until_the_last_copy_is_read() {
        let load = Load {
            batch: 1,
            fan_out: 2,
            rate: 0,
            seconds: 1.0,
        };
        let published = Published {
            events: 1_000,
            refused: 0,
            start_nano: 1_000_000_000,
            end_nano: 2_000_000_000,
            cpu_nano: 50_000,
        };
        let received = [
            received(1_000, 5_000_000_000, vec![(100_000, 999), (900_000, 1)]),
            received(800, 3_000_000_000, vec![(100_000, 800)]),
        ];
        let memory = Memory {
            resident_bytes: 1,
            peak_bytes: 2,
        };
        let broker = Broker {
            cpu_nano: 1_800_000,
            memory,
        };
        let outcome = outcome(System::Nats, load, &published, &received, &broker).unwrap();
        assert!((outcome.sent_per_second - 1_000.0).abs() < 1e-6);
        assert!((outcome.delivered_per_second - 450.0).abs() < 1e-6);
        assert!((outcome.lost - 0.1).abs() < 1e-9);
        assert!((outcome.broker_cpu_nano - 1_000.0).abs() < 1e-6);
        let latency = outcome.latency.unwrap();
        assert!((latency.p999_micros - 100.0).abs() < 0.2);
    }
}
