//! `hailmary sub`: prints events as they come.

use std::io::{self, BufWriter, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use hailmary_client::{Address, Item, Loss, ReceivedEvent, Subscriber, SubscriberStats};
use serde_json::{Map, Value, json};

use crate::bus::leases::is_legal_name;
use crate::printable::printable;

use super::{stop_flag, tell};

/// How long one wait for an event lasts before signals are looked at.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Topic and payload, with what a terminal should not see escaped.
    Text,
    /// One JSON object a line.
    Json,
    /// The payload and a newline.
    Raw,
}

/// Prints events till enough came, the time is over, or a signal comes.
#[derive(Debug, clap::Args)]
pub struct Subscribe {
    /// What to subscribe to: '*' stands for one token, a last '>' for one or more.
    #[arg(required = true, value_name = "PATTERN", value_parser = super::pattern)]
    patterns: Vec<String>,
    /// The bus: HOST:PORT, udp://HOST:PORT or unix:///PATH.
    #[arg(
        long,
        value_name = "ADDR",
        env = "HAILMARY_BUS",
        default_value = "127.0.0.1:7277"
    )]
    from: Address,
    /// Share the events with the other members of this group: each goes to one of them, those with
    /// equal keys to the same one.
    #[arg(long, value_parser = name)]
    group: Option<String>,
    /// What the bus calls this subscriber in its metrics, and by which it has its keys in a group.
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Take this share of the events, over 0 and at most 1; those with equal keys together. Each
    /// stands for 1 / SHARE: the weight with --format json.
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    sample: Option<f64>,
    /// Take at most so many events a second, and one second's worth at once; the bus drops the
    /// others.
    #[arg(long, value_name = "EVENTS_PER_SECOND", value_parser = rate, allow_negative_numbers = true)]
    max_rate: Option<u32>,
    /// How events are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Tell of losses where they are known: on standard error, or as objects among the events
    /// with --format json.
    #[arg(long)]
    notices: bool,
    /// End after so many events.
    #[arg(long)]
    count: Option<u64>,
    /// End after so long; with --count, exit 1 if they have not come by then.
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    timeout: Option<Duration>,
}

impl Subscribe {
    /// Subscribes and prints.
    ///
    /// # Errors
    ///
    /// Where the bus refuses (for want of room only before the first lease), or fewer events than
    /// wanted came in time.
    pub fn run(&self) -> anyhow::Result<()> {
        let stop = stop_flag()?;
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut subscriber = self.open()?;
        let mut printer = Printer::new(self);
        let mut is_announced = false;
        let mut written = Ok(());
        let is_over = |now: Instant| deadline.is_some_and(|deadline| now >= deadline);
        while self.count.is_none_or(|count| printer.printed < count)
            && written.is_ok()
            && !stop.load(Ordering::Relaxed)
            && !is_over(Instant::now())
        {
            if subscriber.is_subscribed() && !is_announced {
                is_announced = true;
                tell("subscribed");
            }
            if let (false, Some(refusal)) = (is_announced, subscriber.refusal()) {
                return Err(refusal).with_context(|| format!("cannot subscribe at {}", self.from));
            }
            // Waits only when nothing is left to take, and by then all is printed.
            let item = match subscriber.recv_item_timeout(Duration::ZERO)? {
                Some(item) => Some(item),
                None => {
                    written = printer.out.flush();
                    if written.is_err() {
                        break;
                    }
                    let rest = deadline.map_or(LOOK_UP_EVERY, |deadline| {
                        deadline.saturating_duration_since(Instant::now())
                    });
                    subscriber.recv_item_timeout(rest.min(LOOK_UP_EVERY))?
                }
            };
            if let Some(item) = item {
                written = printer.print(&item);
            }
        }
        let printed = printer.printed;
        let finished = printer.finish(subscriber);
        unless_nobody_reads(written.and(finished)).context("cannot print the events")?;
        match self.count {
            Some(count) if printed < count && is_over(Instant::now()) => {
                bail!("{printed} of {count} events came in time")
            }
            _ => Ok(()),
        }
    }

    fn open(&self) -> anyhow::Result<Subscriber> {
        let mut builder = Subscriber::builder(&self.from);
        for pattern in &self.patterns {
            builder = builder.pattern(pattern);
        }
        if let Some(group) = &self.group {
            builder = builder.group(group);
        }
        if let Some(name) = &self.name {
            builder = builder.name(name);
        }
        if let Some(share) = self.sample {
            builder = builder.sample(share);
        }
        if let Some(rate) = self.max_rate {
            builder = builder.rate(rate);
        }
        builder
            .open()
            .with_context(|| format!("cannot subscribe at {}", self.from))
    }
}

/// A name as the bus takes it.
fn name(text: &str) -> Result<String, &'static str> {
    match is_legal_name(text) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err("a name is 1 to 64 of A-Z a-z 0-9 . _ and -"),
    }
}

fn share(text: &str) -> Result<f64, &'static str> {
    super::number(text, |share| share > 0.0 && share <= 1.0)
        .ok_or("a share is over 0 and at most 1; to take all events, leave the flag out")
}

fn rate(text: &str) -> Result<u32, String> {
    let rate = text.parse().ok().filter(|rate| *rate > 0);
    rate.ok_or_else(|| {
        let most = u32::MAX;
        format!("a rate is 1 to {most} events a second; for no limit, leave the flag out")
    })
}

/// What is printed, and where.
struct Printer {
    format: Format,
    tells_losses: bool,
    out: BufWriter<io::StdoutLock<'static>>,
    /// Events so far.
    printed: u64,
    /// What notices have told so far.
    told: Loss,
}

impl Printer {
    fn new(command: &Subscribe) -> Self {
        Self {
            format: command.format,
            tells_losses: command.notices,
            out: BufWriter::new(io::stdout().lock()),
            printed: 0,
            told: Loss::default(),
        }
    }

    fn print(&mut self, item: &Item) -> io::Result<()> {
        match item {
            Item::Event(event) => self.print_event(event),
            Item::Loss(loss) => self.print_loss(loss),
            _ => Ok(()),
        }
    }

    fn print_event(&mut self, event: &ReceivedEvent) -> io::Result<()> {
        self.printed += 1;
        let out = &mut self.out;
        match self.format {
            Format::Text => writeln!(out, "{}\t{}", event.topic, as_text(&event.payload)),
            Format::Json => writeln!(out, "{}", as_json(event)),
            Format::Raw => {
                out.write_all(&event.payload)?;
                out.write_all(b"\n")
            }
        }
    }

    /// In its place also where both streams go to one terminal.
    fn print_loss(&mut self, loss: &Loss) -> io::Result<()> {
        self.told.lost += loss.lost;
        self.told.dropped_by_bus += loss.dropped_by_bus;
        if !self.tells_losses || loss.events() == 0 {
            return Ok(());
        }
        if self.format == Format::Json {
            let (lost, dropped_by_bus) = (loss.lost, loss.dropped_by_bus);
            let notice = json!({"lost": lost, "dropped_by_bus": dropped_by_bus});
            return writeln!(self.out, "{notice}");
        }
        self.out.flush()?;
        tell(loss);
        Ok(())
    }

    /// Gives the lease back, prints what is not yet printed, and says what came of the events.
    fn finish(mut self, subscriber: Subscriber) -> io::Result<()> {
        let stats = subscriber.close();
        let mut untold = Loss::default();
        untold.lost = stats.lost.saturating_sub(self.told.lost);
        untold.dropped_by_bus = stats
            .dropped_by_bus
            .saturating_sub(self.told.dropped_by_bus);
        let noticed = self.print_loss(&untold);
        let printed = self.out.flush();
        // Also where nothing can be printed any more.
        tell(summary(&stats));
        noticed.and(printed)
    }
}

/// Who reads may have had enough, as `head` has. A full disk is another matter.
fn unless_nobody_reads(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Duplicates are rare, and named only where there are any.
fn summary(stats: &SubscriberStats) -> String {
    let (received, lost, dropped) = (stats.received, stats.lost, stats.dropped_by_bus);
    let mut line =
        format!("received {received}, lost {lost} on the way, dropped {dropped} by the bus");
    if stats.duplicates > 0 {
        line.push_str(&format!(", {} duplicates", stats.duplicates));
    }
    line
}

/// A payload as text, with escapes for what is no text, too.
fn as_text(payload: &[u8]) -> String {
    let mut text = String::new();
    for chunk in payload.utf8_chunks() {
        text.push_str(&printable(chunk.valid()));
        text.push_str(&chunk.invalid().escape_ascii().to_string());
    }
    text
}

fn as_json(event: &ReceivedEvent) -> Value {
    let attributes: Map<String, Value> = event
        .attributes
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let mut object = Map::new();
    object.insert("topic".to_owned(), json!(event.topic));
    put_bytes(&mut object, "key", &event.key);
    put_bytes(&mut object, "payload", &event.payload);
    object.insert("time_unix_nano".to_owned(), json!(event.time_unix_nano));
    object.insert("attributes".to_owned(), Value::Object(attributes));
    object.insert("weight".to_owned(), json!(event.weight));
    Value::Object(object)
}

fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), json!(text)),
        Err(_) => object.insert(format!("{name}_base64"), json!(STANDARD.encode(bytes))),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_does_not_steer_the_terminal() {
        assert_eq!(as_text("é\u{1b}[2J\n".as_bytes()), "é\\u{1b}[2J\\n");
        assert_eq!(as_text(b"a\xffb"), "a\\xffb");
    }

    #[test]
    fn bytes_that_are_no_text_are_base64() {
        let mut object = Map::new();
        put_bytes(&mut object, "key", b"k");
        put_bytes(&mut object, "payload", b"\xff");
        assert_eq!(
            Value::Object(object),
            json!({"key": "k", "payload_base64": "/w=="})
        );
    }
}
