//! `hailmary pub`: events from the command line or from standard input.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use hailmary_client::{Address, Event, Publisher};

use super::{stop_flag, tell};

/// Publishes one event, or many.
#[derive(Debug, clap::Args)]
pub struct Publish {
    /// The topic: tokens of [A-Za-z0-9_:/-] joined by dots.
    #[arg(value_parser = super::topic)]
    topic: String,
    /// The payload; none is an empty one.
    #[arg(conflicts_with = "lines")]
    payload: Option<String>,
    /// Publish every line of standard input as an event.
    #[arg(long, conflicts_with = "count")]
    lines: bool,
    /// The bus: HOST:PORT, udp://HOST:PORT or unix:///PATH.
    #[arg(
        long,
        value_name = "ADDR",
        env = "HAILMARY_BUS",
        default_value = "127.0.0.1:7277"
    )]
    to: Address,
    /// Events with equal keys stay together.
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,
    /// A small fact beside the payload; may be given several times.
    #[arg(long = "attr", value_name = "NAME=VALUE", value_parser = attribute)]
    attributes: Vec<(String, String)>,
    /// When the events were made, in ns of Unix time; 0 leaves it out. Now, if it is not given.
    #[arg(long, value_name = "NS")]
    time_unix_nano: Option<u64>,
    /// Publish so many.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// At most so many events a second.
    #[arg(long, value_name = "EVENTS_PER_SECOND", value_parser = super::rate)]
    rate: Option<f64>,
}

impl Publish {
    /// Publishes, till all is or a signal comes.
    ///
    /// # Errors
    ///
    /// Where the address cannot be had, or the sender saw an event dropped.
    pub fn run(&self) -> anyhow::Result<()> {
        let publisher = Publisher::connect(&self.to)
            .with_context(|| format!("cannot publish to {}", self.to))?;
        let stop = stop_flag()?;
        let mut pace = Pace::new(self.rate);
        if self.lines {
            for line in io::stdin().lock().split(b'\n') {
                self.publish(&publisher, &line?, &mut pace);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        } else {
            self.repeat(&publisher, &mut pace, &stop);
        }
        self.report(&publisher)
    }

    fn repeat(&self, publisher: &Publisher, pace: &mut Pace, stop: &Arc<AtomicBool>) {
        let payload = self.payload.as_deref().unwrap_or_default();
        for _ in 0..self.count {
            self.publish(publisher, payload.as_bytes(), pace);
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }

    fn publish(&self, publisher: &Publisher, payload: &[u8], pace: &mut Pace) {
        pace.wait();
        let attributes: Vec<_> = self
            .attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let event = Event::new(&self.topic, payload)
            .key(&self.key)
            .attributes(&attributes);
        publisher.publish_event(&match self.time_unix_nano {
            Some(told) => event.time_unix_nano(told),
            None => event.time(SystemTime::now()),
        });
    }

    fn report(&self, publisher: &Publisher) -> anyhow::Result<()> {
        let stats = publisher.stats();
        if self.lines || self.count != 1 {
            tell(format_args!(
                "published {}, dropped {}",
                stats.sent,
                stats.dropped()
            ));
        }
        if stats.dropped() > 0 {
            bail!(
                "{} events were dropped before they left: {stats:?}",
                stats.dropped()
            );
        }
        ensure!(stats.bounced == 0, "no bus at {}", self.to);
        Ok(())
    }
}

/// Keeps events a fixed time apart, without falling behind by what sleeping takes too long.
struct Pace {
    gap: Option<Duration>,
    due: Instant,
}

impl Pace {
    fn new(rate: Option<f64>) -> Self {
        Self {
            gap: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            due: Instant::now(),
        }
    }

    fn wait(&mut self) {
        if let Some(gap) = self.gap {
            std::thread::sleep(self.due.saturating_duration_since(Instant::now()));
            self.due += gap;
        }
    }
}

fn attribute(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("an attribute is NAME=VALUE"),
    }
}
