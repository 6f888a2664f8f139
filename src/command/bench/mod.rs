//! `hailmary bench`: loads a bus and says throughput, loss by hop, latency and cost.
//!
//! Publishers and subscribers are processes of their own, started from this very program, and so
//! is the bus where none is named. The bench itself only tells them when and adds up what they
//! tell: nothing of it runs while events flow.
//!
//! An event bears the time at which it was to be sent by an absolute schedule, and its latency
//! counts from there: a publisher that is held up makes the latency larger and not the sample
//! smaller (it is corrected for coordinated omission). That time is the wall clock's, which all
//! processes of a machine read alike; a clock that is set during the run spoils the latency.

pub mod child;
mod crew;
mod latency;
mod pace;
mod publisher;
mod report;
mod subscriber;
mod target;
mod workload;

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::{Args, ValueEnum, value_parser};
use hailmary_client::Address;
use toml::Spanned;

use self::child::{Message, Order, Task};
use self::crew::{Crew, MemberId};
use self::pace::{nanos, unix_nano};
use self::publisher::{Publish, Published};
use self::report::Findings;
use self::subscriber::{Received, Subscribe};
use self::target::{Admin, cpu_ns, memory};
use self::workload::{
    DURATION_S_MAX, DURATION_S_MIN, EVENTS_PER_DATAGRAM_MAX, PUBLISHERS_MAX, Payload,
    SUBSCRIBERS_MAX, TOPICS_MAX, Workload,
};
use super::stop_flag;
use crate::config::{Config, ConfigError};

/// How long anything may take that takes milliseconds: far more, for machines under load.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a bus that somebody else runs may take to answer.
const PING_PATIENCE: Duration = Duration::from_secs(2);

/// From the order to start till the start: more than the order takes to every publisher.
const LEAD: Duration = Duration::from_millis(50);

/// What a bench's own bus listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Over {
    /// UDP on loopback.
    Udp,
    /// A Unix datagram socket.
    Unix,
}

/// Loads a bus and says throughput, loss by hop, latency, and what it costs the bus.
///
/// Starts a bus of its own unless --against names one. Publishers and subscribers are processes
/// of their own; all end with the bench. Topics are the bench's own (`bench.RUN.NUMBER`), so
/// nobody else's subscribers get its events unless they want all there are.
///
/// Latency is from the time at which an event was to be sent to its arrival in the subscriber;
/// without --rate it is that of full buffers.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hailmary bench
  hailmary bench --fan-out 4 --rate 50000 --duration 10
  hailmary bench --payload 64-1024 --topics 1000 --events-per-datagram 9 --json
  hailmary bench --against 10.0.0.5:7277 --admin 10.0.0.5:7278 --rate 10000

Exit status: 0 done, however much was lost; 1 failed, or could not send at the rate;
2 wrong usage; 78 bad configuration.")]
pub struct Bench {
    /// Bytes of a payload, or the spread of them.
    #[arg(long, value_name = "BYTES|MIN-MAX", default_value = "128")]
    payload: Payload,
    /// How many topics take turns; at most 100,000.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=i64::from(TOPICS_MAX)))]
    topics: u32,
    /// How many subscribers get every event, each by one wildcard pattern; at most 256.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=i64::from(SUBSCRIBERS_MAX)))]
    fan_out: u32,
    /// How many publishers share the rate; at most 64.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=i64::from(PUBLISHERS_MAX)))]
    publishers: u32,
    /// How many events a publisher puts into a datagram; at most 2,000, and what a datagram of
    /// 65,507 bytes holds.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=i64::from(EVENTS_PER_DATAGRAM_MAX)))]
    events_per_datagram: u32,
    /// Events a second of all publishers together; as many as can be if left out.
    #[arg(long, value_name = "EVENTS_PER_SECOND", value_parser = super::rate)]
    rate: Option<f64>,
    /// How long events are published, in seconds: 0.01 to 3,600.
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = duration)]
    duration: f64,
    /// Print one JSON object in place of a table.
    #[arg(long)]
    json: bool,
    /// What the bench's own bus listens on.
    #[arg(long, value_enum, default_value_t = Over::Udp)]
    over: Over,
    /// Configuration of the bench's own bus; where it listens is left out of account.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Load this running bus: HOST:PORT, udp://HOST:PORT or unix:///PATH. Its events count among
    /// its own, and its CPU is not known.
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["over", "config"])]
    against: Option<Address>,
    /// The running bus's admin, HOST:PORT, to have the loss in the bus from its metrics.
    #[arg(long, value_name = "ADDR", requires = "against")]
    admin: Option<String>,
}

impl Bench {
    /// Runs the workload and prints the report.
    ///
    /// # Errors
    ///
    /// A [`clap::Error`] where the flags do not go together, a [`ConfigError`] where the bus's
    /// configuration is at fault; else what went wrong. All processes have ended then.
    pub fn run(&self) -> anyhow::Result<()> {
        let id = format!("{:08x}", getrandom::u32()?);
        let workload = self.workload(&id);
        workload.check().map_err(usage)?;
        let report = Run::new(self, workload, id)?.run()?.report()?;
        if self.json {
            writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
        } else {
            write!(io::stdout(), "{report}")?;
        }
        report.check_rate()
    }

    fn workload(&self, id: &str) -> Workload {
        Workload {
            topic_prefix: format!("bench.{id}"),
            topics: self.topics,
            payload_bytes: self.payload,
            events_per_datagram: self.events_per_datagram,
            publishers: self.publishers,
            fan_out: self.fan_out,
            events_per_second: self.rate,
            duration_seconds: self.duration,
        }
    }

    /// The configuration of the bench's own bus.
    fn bus_config(&self, directory: Option<&SocketDirectory>) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(file) => Config::load(file)?.0,
            None => Config::default(),
        };
        let any_port = || Spanned::new(0..0, "127.0.0.1:0".to_owned());
        (config.listen.udp, config.listen.unix) = match directory {
            None => (vec![any_port()], Vec::new()),
            Some(directory) => (Vec::new(), vec![Spanned::new(0..0, directory.socket())]),
        };
        config.listen.admin = any_port();
        Ok(config)
    }
}

/// The bus under load.
struct Bus {
    address: Address,
    admin: Option<Admin>,
    /// The bench's own bus, by its process.
    process: Option<u32>,
}

/// One run. What it started ends with it: processes first, then the directory of the bus's socket.
struct Run<'a> {
    bench: &'a Bench,
    workload: Workload,
    crew: Crew,
    directory: Option<SocketDirectory>,
    id: String,
}

impl<'a> Run<'a> {
    fn new(bench: &'a Bench, workload: Workload, id: String) -> anyhow::Result<Self> {
        // Before there is anything that a signal must not leave behind.
        let stop = stop_flag()?;
        let directory = match bench.over {
            Over::Unix => Some(SocketDirectory::make(&id)?),
            Over::Udp => None,
        };
        Ok(Self {
            bench,
            workload,
            crew: Crew::new(stop),
            directory,
            id,
        })
    }

    fn run(&mut self) -> anyhow::Result<Findings> {
        let bus = match &self.bench.against {
            Some(address) => self.find_bus(address)?,
            None => self.start_bus()?,
        };
        let names: Vec<String> = (0..self.bench.fan_out)
            .map(|index| format!("bench-{}-{index}", self.id))
            .collect();
        let subscribers = self.start_subscribers(&bus, &names)?;
        let publishers = self.start_publishers(&bus)?;

        let count = |admin: &Admin| admin.counts(&names);
        let counts_before = bus.admin.as_ref().map(count).transpose()?;
        let cpu_before = bus.process.and_then(cpu_ns);
        let start_unix_nano = unix_nano().saturating_add(nanos(LEAD));
        let published = self.publish(&publishers, start_unix_nano)?;
        let received = self.finish(&subscribers)?;
        let cpu_after = bus.process.and_then(cpu_ns);
        let count = |admin: &Admin| admin.final_counts(&names);
        let counts_after = bus.admin.as_ref().map(count).transpose()?;

        Ok(Findings {
            workload: self.workload.clone(),
            bus: bus.address.to_string(),
            start_unix_nano,
            published,
            received: names.into_iter().zip(received).collect(),
            counts: counts_after
                .zip(counts_before)
                .map(|(after, before)| after.since(&before)),
            cpu_ns: cpu_after
                .zip(cpu_before)
                .map(|(after, before)| after.saturating_sub(before)),
            memory: bus.process.and_then(memory),
        })
    }

    /// A bus that somebody else runs.
    fn find_bus(&self, address: &Address) -> anyhow::Result<Bus> {
        hailmary_client::ping(address, PING_PATIENCE)
            .with_context(|| format!("no bus answers at {address}"))?;
        Ok(Bus {
            address: address.clone(),
            admin: self.bench.admin.as_deref().map(Admin::new),
            process: None,
        })
    }

    fn start_bus(&mut self) -> anyhow::Result<Bus> {
        let config = toml::to_string(&self.bench.bus_config(self.directory.as_ref())?)?;
        let id = self
            .crew
            .start("the bus".to_owned(), &Task::Serve(config))?;
        let deadline = Instant::now() + PATIENCE;
        let mut address = None;
        loop {
            match (self.crew.hear(deadline)?.1, &address) {
                (Message::Listening(listening), _) => address = Some(listening.parse()?),
                (Message::Admin(admin), Some(address)) => {
                    return Ok(Bus {
                        address: Address::clone(address),
                        admin: Some(Admin::new(&admin)),
                        process: self.crew.system_id(id),
                    });
                }
                _ => bail!("the bus does not say where it listens"),
            }
        }
    }

    fn start_subscribers(&mut self, bus: &Bus, names: &[String]) -> anyhow::Result<Vec<MemberId>> {
        let mut started = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let task = Task::Subscribe(Subscribe {
                bus: bus.address.to_string(),
                name: name.clone(),
                pattern: self.workload.pattern(),
            });
            started.push(self.crew.start(format!("subscriber {index}"), &task)?);
        }
        self.await_ready(started.len())?;
        Ok(started)
    }

    fn start_publishers(&mut self, bus: &Bus) -> anyhow::Result<Vec<MemberId>> {
        let mut started = Vec::new();
        for index in 0..self.workload.publishers {
            let task = Task::Publish(Publish {
                bus: bus.address.to_string(),
                workload: self.workload.clone(),
                index,
            });
            started.push(self.crew.start(format!("publisher {index}"), &task)?);
        }
        self.await_ready(started.len())?;
        Ok(started)
    }

    fn await_ready(&self, count: usize) -> anyhow::Result<()> {
        // The processes give up first and say why.
        self.crew.gather(count, PATIENCE * 2, |message| {
            matches!(message, Message::Ready).then_some(())
        })?;
        Ok(())
    }

    fn publish(&mut self, publishers: &[MemberId], start: u64) -> anyhow::Result<Vec<Published>> {
        for id in publishers {
            self.crew.tell(*id, Order::Start(start))?;
        }
        let patience = self.workload.duration() + PATIENCE * 2;
        self.crew
            .gather(publishers.len(), patience, |message| match message {
                Message::Published(published) => Some(published),
                _ => None,
            })
    }

    fn finish(&mut self, subscribers: &[MemberId]) -> anyhow::Result<Vec<Received>> {
        for id in subscribers {
            self.crew.tell(*id, Order::Finish)?;
        }
        self.crew
            .gather(subscribers.len(), PATIENCE * 2, |message| match message {
                Message::Received(received) => Some(received),
                _ => None,
            })
    }
}

/// An error of usage, which the program ends with as its command line's parser would.
fn usage(message: String) -> anyhow::Error {
    Bench::augment_args(clap::Command::new("hailmary bench"))
        .error(ErrorKind::ValueValidation, message)
        .into()
}

fn duration(text: &str) -> Result<f64, String> {
    super::number(text, |seconds| {
        (DURATION_S_MIN..=DURATION_S_MAX).contains(&seconds)
    })
    .ok_or_else(|| format!("a duration is {DURATION_S_MIN} to {DURATION_S_MAX} seconds"))
}

/// A directory for the socket of the bench's own bus, gone with this value.
#[derive(Debug)]
struct SocketDirectory(PathBuf);

impl SocketDirectory {
    /// Makes one for this user alone, as all processes of a bench are.
    fn make(id: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("hailmary-bench-{id}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("bus.sock")
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        // Nothing is left to be done where this fails.
        let _ = fs::remove_dir_all(&self.0);
    }
}
