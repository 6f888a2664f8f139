//! What a run came to: books that balance for every subscriber, as JSON or a table.

use std::fmt;

use serde::Serialize;

use super::latency::{Quantiles, Times};
use super::pace::nanos;
use super::publisher::Published;
use super::subscriber::Received;
use super::target::{Counts, Egress, Memory, Reasons};
use super::workload::Workload;

/// Everything that was found out.
#[derive(Debug)]
pub struct Findings {
    /// What was published.
    pub workload: Workload,
    /// Where.
    pub bus: String,
    /// When publishers began, in ns of Unix time.
    pub start_unix_nano: u64,
    /// What became of each publisher's events.
    pub published: Vec<Published>,
    /// Names of the subscribers, and what they saw.
    pub received: Vec<(String, Received)>,
    /// Of how many events the latency of one was told.
    pub sample_every: u64,
    /// What the bus counted, if its admin was known.
    pub counts: Option<Counts>,
    /// The bus's time on the processor, if it was the bench's own.
    pub cpu_ns: Option<u64>,
    /// Its memory, likewise.
    pub memory: Option<Memory>,
}

/// The result, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    workload: WorkloadReport,
    published: PublishedReport,
    received: ReceivedReport,
    lost: Lost,
    latency: LatencyReport,
    bus: BusReport,
    subscribers: Vec<SubscriberReport>,
}

#[derive(Debug, Serialize)]
struct WorkloadReport {
    payload_bytes_min: usize,
    payload_bytes_max: usize,
    topics: u32,
    publishers: u32,
    fan_out: usize,
    events_per_datagram: u32,
    /// `null`: as many as the publishers can.
    rate_events_per_second: Option<f64>,
    duration_seconds: f64,
}

#[derive(Debug, Serialize)]
struct PublishedReport {
    events: u64,
    events_per_second: f64,
    /// How long after its time an event was handed over: the publishers' own share of latency.
    late_us: Option<Quantiles>,
}

#[derive(Debug, Serialize)]
struct ReceivedReport {
    events: u64,
    events_per_second: f64,
    datagrams: u64,
    events_per_datagram: Option<f64>,
}

/// Losses by hop: up to the bus in events, from there on in copies, over all subscribers.
#[derive(Debug, Serialize)]
struct Lost {
    by_publishers: u64,
    before_bus: u64,
    in_bus: Option<Reasons>,
    to_subscribers: u64,
    /// Frames that the bus did not use, whoever sent them.
    dropped_frames: Option<Reasons>,
}

#[derive(Debug, Serialize)]
struct LatencyReport {
    /// What it is measured from: `intended` or, at the most that can be sent, `saturation`.
    kind: &'static str,
    samples: u64,
    sample_every: u64,
    us: Option<Quantiles>,
}

#[derive(Debug, Serialize)]
struct BusReport {
    address: String,
    cpu_seconds: Option<f64>,
    cpu_ns_per_copy: Option<f64>,
    copies: Option<u64>,
    #[serde(flatten)]
    memory: Option<Memory>,
}

/// One subscriber's books: what was published is what it received and what was lost.
#[derive(Debug, Serialize)]
struct SubscriberReport {
    name: String,
    published: u64,
    received: u64,
    datagrams: u64,
    lost_by_publishers: u64,
    lost_before_bus: u64,
    /// By the bus's metrics, or the stamps where they are not known.
    lost_in_bus: u64,
    lost_to_subscriber: u64,
    /// What no hop tells of: 0, unless others load the bus, too, or only stamps tell, which say
    /// nothing of what was lost after the last frame that came.
    unaccounted: i128,
    /// Lost to the subscriber and dropped by the bus, by the stamps alone.
    told_lost: u64,
    told_dropped: u64,
    lease_lapses: u64,
}

impl Findings {
    /// Draws it all together.
    ///
    /// # Errors
    ///
    /// Where there is no memory for a histogram.
    pub fn report(&self) -> anyhow::Result<Report> {
        let subscribers: Vec<_> = (0..self.received.len())
            .filter_map(|index| self.subscriber(index))
            .collect();
        Ok(Report {
            workload: self.workload(),
            published: self.published()?,
            received: self.received(),
            lost: self.lost(&subscribers),
            latency: self.latency()?,
            bus: self.bus(),
            subscribers,
        })
    }

    fn workload(&self) -> WorkloadReport {
        WorkloadReport {
            payload_bytes_min: self.workload.payload.min,
            payload_bytes_max: self.workload.payload.max,
            topics: self.workload.topics,
            publishers: self.workload.publishers,
            fan_out: self.received.len(),
            events_per_datagram: self.workload.events_per_datagram,
            rate_events_per_second: self.workload.rate,
            duration_seconds: self.workload.duration.as_secs_f64(),
        }
    }

    fn published(&self) -> anyhow::Result<PublishedReport> {
        let mut late = Times::new()?;
        for publisher in &self.published {
            late.add(&publisher.late);
        }
        let ends = self
            .published
            .iter()
            .map(|publisher| publisher.end_unix_nano);
        let events = self.sum_published(|publisher| publisher.events);
        Ok(PublishedReport {
            events,
            events_per_second: float(events) / self.seconds_till(ends.max()),
            late_us: late.quantiles(),
        })
    }

    fn received(&self) -> ReceivedReport {
        let sum = |count: fn(&Received) -> u64| self.received.iter().map(|(_, r)| count(r)).sum();
        let events: u64 = sum(|received| received.events);
        let datagrams: u64 = sum(|received| received.datagrams);
        let ends = self.received.iter().map(|(_, r)| r.end_unix_nano);
        ReceivedReport {
            events,
            events_per_second: float(events) / self.seconds_till(ends.max()),
            datagrams,
            events_per_datagram: (datagrams > 0).then(|| float(events) / float(datagrams)),
        }
    }

    /// From the start to the end, or for as long as it was to last if that is longer.
    fn seconds_till(&self, end_unix_nano: Option<u64>) -> f64 {
        let end = end_unix_nano.unwrap_or_default();
        let taken = end.saturating_sub(self.start_unix_nano);
        float(taken.max(nanos(self.workload.duration))) / 1e9
    }

    fn sum_published(&self, count: fn(&Published) -> u64) -> u64 {
        self.published.iter().map(count).sum()
    }

    fn egress(&self, index: usize) -> Option<&Egress> {
        self.counts.as_ref()?.egress.get(index)?.as_ref()
    }

    fn subscriber(&self, index: usize) -> Option<SubscriberReport> {
        let (name, received) = self.received.get(index)?;
        let published = self.sum_published(|publisher| publisher.events);
        let by_publishers = self.sum_published(|publisher| publisher.dropped);
        let reached = self.sum_published(|publisher| publisher.bus_received);
        let before_bus = published
            .saturating_sub(by_publishers)
            .saturating_sub(reached);
        let (in_bus, to_subscriber) = match (&self.counts, self.egress(index)) {
            (Some(counts), Some(egress)) => (
                counts.not_routed.values().sum::<u64>() + egress.dropped.values().sum::<u64>(),
                egress.sent.saturating_sub(received.events),
            ),
            _ => (received.dropped_by_bus, received.lost),
        };
        let told = [
            by_publishers,
            before_bus,
            in_bus,
            to_subscriber,
            received.events,
        ];
        Some(SubscriberReport {
            name: name.clone(),
            published,
            received: received.events,
            datagrams: received.datagrams,
            lost_by_publishers: by_publishers,
            lost_before_bus: before_bus,
            lost_in_bus: in_bus,
            lost_to_subscriber: to_subscriber,
            unaccounted: i128::from(published) - told.map(i128::from).iter().sum::<i128>(),
            told_lost: received.lost,
            told_dropped: received.dropped_by_bus,
            lease_lapses: received.lapses,
        })
    }

    fn lost(&self, subscribers: &[SubscriberReport]) -> Lost {
        let first = subscribers.first();
        Lost {
            by_publishers: first.map_or(0, |books| books.lost_by_publishers),
            before_bus: first.map_or(0, |books| books.lost_before_bus),
            in_bus: self.counts.as_ref().map(lost_in_bus),
            to_subscribers: subscribers
                .iter()
                .map(|books| books.lost_to_subscriber)
                .sum(),
            dropped_frames: self
                .counts
                .as_ref()
                .map(|counts| counts.dropped_frames.clone()),
        }
    }

    fn latency(&self) -> anyhow::Result<LatencyReport> {
        let mut times = Times::new()?;
        for (_, received) in &self.received {
            times.add(&received.latency);
        }
        Ok(LatencyReport {
            kind: self.workload.rate.map_or("saturation", |_| "intended"),
            samples: times.len(),
            sample_every: self.sample_every,
            us: times.quantiles(),
        })
    }

    fn bus(&self) -> BusReport {
        let copies = self.counts.as_ref().map(|counts| counts.copies);
        let per_copy = |cpu_ns, copies: Option<u64>| {
            let copies = copies.filter(|copies| *copies > 0)?;
            Some(float(cpu_ns) / float(copies))
        };
        BusReport {
            address: self.bus.clone(),
            cpu_seconds: self.cpu_ns.map(|ns| float(ns) / 1e9),
            cpu_ns_per_copy: self.cpu_ns.and_then(|ns| per_copy(ns, copies)),
            copies,
            memory: self.memory,
        }
    }
}

/// Copies lost in the bus by reason; an event that was not routed is lost to every subscriber.
fn lost_in_bus(counts: &Counts) -> Reasons {
    let mut reasons = Reasons::new();
    for egress in &counts.egress {
        let dropped = egress.iter().flat_map(|egress| &egress.dropped);
        for (reason, count) in counts.not_routed.iter().chain(dropped) {
            *reasons.entry(reason.clone()).or_default() += count;
        }
    }
    reasons
}

/// Exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(count: u64) -> f64 {
    count as f64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.workload)?;
        writeln!(f, "bus at {}\n", self.bus.address)?;
        self.fmt_flow(f)?;
        self.fmt_losses(f)?;
        self.fmt_latency(f)?;
        self.fmt_bus(f)
    }
}

impl fmt::Display for WorkloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            payload_bytes_min: min,
            payload_bytes_max: max,
            ..
        } = self;
        match min == max {
            true => write!(f, "payload {min} B")?,
            false => write!(f, "payload {min}-{max} B")?,
        }
        write!(
            f,
            ", topics {}, publishers {}, fan-out {}, events per datagram {}, for {} s, ",
            self.topics,
            self.publishers,
            self.fan_out,
            self.events_per_datagram,
            self.duration_seconds
        )?;
        match self.rate_events_per_second {
            Some(rate) => write!(f, "at {rate} events/s"),
            None => write!(f, "as many as can be"),
        }
    }
}

impl Report {
    fn fmt_flow(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let published = &self.published;
        line(f, "published", published.events, "events")?;
        writeln!(f, "  {:>14}/s", Grouped::rate(published.events_per_second))?;
        line(f, "received", self.received.events, "events")?;
        write!(
            f,
            "  {:>14}/s",
            Grouped::rate(self.received.events_per_second)
        )?;
        match self.received.events_per_datagram {
            Some(events) => writeln!(f, "  {events:.1} in a datagram")?,
            None => writeln!(f)?,
        }
        match self.shortfall() {
            Some(rate) => writeln!(
                f,
                "fell short: offered {} events/s, achieved {}",
                Grouped::rate(rate),
                Grouped::rate(published.events_per_second)
            ),
            None => Ok(()),
        }
    }

    /// The rate that was wanted, where the publishers did not keep it.
    fn shortfall(&self) -> Option<f64> {
        /// What counts as kept: the last datagram may make it a little more or less.
        const KEPT: f64 = 0.99;
        let rate = self.workload.rate_events_per_second?;
        let wanted = rate * self.workload.duration_seconds;
        (float(self.published.events) < KEPT * wanted).then_some(rate)
    }

    fn fmt_losses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = &self.lost;
        writeln!(f, "\nlost")?;
        line(f, "  by publishers", lost.by_publishers, "events\n")?;
        line(f, "  before the bus", lost.before_bus, "events\n")?;
        let nonzero = |reasons: &Option<Reasons>| {
            let all = reasons.clone().unwrap_or_default();
            all.into_iter().filter(|(_, count)| *count > 0)
        };
        for (reason, count) in nonzero(&lost.dropped_frames) {
            line(f, &format!("    {reason}"), count, "frames\n")?;
        }
        match &lost.in_bus {
            Some(reasons) => line(f, "  in the bus", reasons.values().sum(), "copies\n")?,
            None => {
                let told = self.subscribers.iter().map(|books| books.told_dropped);
                line(f, "  in the bus", told.sum(), "copies, by stamps\n")?;
            }
        }
        for (reason, count) in nonzero(&lost.in_bus) {
            line(f, &format!("    {reason}"), count, "copies\n")?;
        }
        line(f, "  to subscribers", lost.to_subscribers, "copies\n")?;
        let unaccounted: i128 = self.subscribers.iter().map(|books| books.unaccounted).sum();
        match unaccounted {
            0 => Ok(()),
            copies => writeln!(f, "  no hop tells of {copies} copies"),
        }
    }

    fn fmt_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["50 %", "90 %", "99 %", "99.9 %", "most"];
        write!(f, "\n{:<16}", "µs")?;
        head.iter().try_for_each(|name| write!(f, "{name:>12}"))?;
        writeln!(f)?;
        match self.latency.kind {
            "saturation" => quantiles(f, "at saturation", self.latency.us)?,
            _ => quantiles(f, "latency", self.latency.us)?,
        }
        match self.published.late_us {
            None => Ok(()),
            late => quantiles(f, "of it sent late", late),
        }
    }

    fn fmt_bus(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1_048_576.0;
        let (Some(cpu), Some(memory)) = (self.bus.cpu_seconds, self.bus.memory) else {
            return Ok(());
        };
        write!(f, "\nbus: {cpu:.3} s of CPU")?;
        if let Some(ns) = self.bus.cpu_ns_per_copy {
            write!(f, ", {ns:.1} ns a copy")?;
        }
        writeln!(
            f,
            "; {:.1} MiB resident, {:.1} at most",
            float(memory.resident_bytes) / MIB,
            float(memory.resident_bytes_max) / MIB
        )
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, count: u64, unit: &str) -> fmt::Result {
    write!(f, "{name:<20}{:>16} {unit}", Grouped(count))
}

fn quantiles(f: &mut fmt::Formatter<'_>, name: &str, quantiles: Option<Quantiles>) -> fmt::Result {
    let Some(q) = quantiles else {
        return writeln!(f, "{name:<16}{:>12}", "none");
    };
    write!(f, "{name:<16}")?;
    [q.p50, q.p90, q.p99, q.p99_9, q.max]
        .iter()
        .try_for_each(|us| write!(f, "{us:>12.1}"))?;
    writeln!(f)
}

/// A number with its digits in groups of three.
struct Grouped(u64);

impl Grouped {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is not negative and far from 2^64"
    )]
    fn rate(rate: f64) -> Self {
        Self(rate.round() as u64)
    }
}

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::latency;
    use super::super::workload::Payload;
    use super::*;
    use std::time::Duration;

    fn reasons(reason: &str, count: u64) -> Reasons {
        Reasons::from([(reason.to_owned(), count)])
    }

    fn findings() -> Findings {
        let publisher = |events, dropped, bus_received| Published {
            events,
            dropped,
            bus_received,
            end_unix_nano: 2_000_000_000,
            late: latency::Counts::default(),
        };
        let subscriber = |events, lost| Received {
            events,
            datagrams: 10,
            lost,
            dropped_by_bus: 3,
            lapses: 0,
            end_unix_nano: 2_000_000_000,
            latency: latency::Counts::default(),
        };
        let egress = |sent| {
            Some(Egress {
                sent,
                dropped: reasons("would_block", 5),
            })
        };
        Findings {
            workload: Workload {
                prefix: String::new(),
                topics: 1,
                payload: Payload { min: 1, max: 2 },
                events_per_datagram: 1,
                publishers: 2,
                rate: Some(2_000.0),
                duration: Duration::from_secs(1),
            },
            bus: "udp://127.0.0.1:7277".to_owned(),
            start_unix_nano: 0,
            published: vec![publisher(600, 10, 580), publisher(600, 0, 600)],
            received: vec![
                ("a".to_owned(), subscriber(1_100, 50)),
                ("b".to_owned(), subscriber(1_168, 0)),
            ],
            sample_every: 1,
            counts: Some(Counts {
                copies: 2_346,
                dropped_frames: reasons("kernel_buffer", 10),
                not_routed: reasons("rate_limit", 7),
                egress: vec![egress(1_168), egress(1_168)],
            }),
            cpu_ns: Some(2_346_000),
            memory: None,
        }
    }

    #[test]
    fn books_balance_by_metrics() {
        let report = findings().report().unwrap();
        let books: Vec<_> = report
            .subscribers
            .iter()
            .map(|b| (b.lost_in_bus, b.lost_to_subscriber, b.unaccounted))
            .collect();
        assert_eq!(books, [(12, 68, 0), (12, 0, 0)]);
        assert_eq!(
            (report.lost.by_publishers, report.lost.before_bus),
            (10, 10)
        );
        let in_bus = report.lost.in_bus.unwrap();
        assert_eq!((in_bus["rate_limit"], in_bus["would_block"]), (14, 10));
        assert_eq!(report.bus.cpu_ns_per_copy, Some(1_000.0));
        assert_eq!(report.published.events_per_second, 600.0);
    }

    #[test]
    fn without_metrics_the_stamps_tell_what_they_can() {
        let mut findings = findings();
        findings.counts = None;
        let report = findings.report().unwrap();
        let books = &report.subscribers[0];
        assert_eq!((books.lost_in_bus, books.lost_to_subscriber), (3, 50));
        assert_eq!(books.unaccounted, 1_180 - 3 - 50 - 1_100);
        assert_eq!(report.bus.cpu_ns_per_copy, None);
    }

    #[test]
    fn a_table_says_what_fell_short() {
        let table = findings().report().unwrap().to_string();
        assert!(
            table.contains("offered 2,000 events/s, achieved 600"),
            "{table}"
        );
        assert!(table.contains("kernel_buffer"), "{table}");
        assert!(!table.contains("no hop tells"), "{table}");
    }

    #[test]
    fn digits_are_grouped() {
        let text = [0, 999, 1_000, 1_234_567].map(|n| Grouped(n).to_string());
        assert_eq!(text, ["0", "999", "1,000", "1,234,567"]);
    }
}
