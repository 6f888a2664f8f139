//! What a run came to: books that balance for every subscriber, as JSON or a table.

use std::fmt;

use anyhow::ensure;
use serde::Serialize;

use crate::command::grouped::Grouped;

use super::latency::{Quantiles, Times};
use super::pace::nanos;
use super::publisher::Published;
use super::subscriber::Received;
use super::target::{Counts, Memory, Reasons};
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
    /// What the bus counted, if its admin was known.
    pub counts: Option<Counts>,
    /// The bus's time on the processor, if it was the bench's own.
    pub cpu_ns: Option<u64>,
    /// Its memory, likewise.
    pub memory: Option<Memory>,
}

/// The result, as `--json` prints it. What could not be found out is `null`.
#[derive(Debug, Serialize)]
pub struct Report {
    workload: Workload,
    published: PublishedReport,
    received: ReceivedReport,
    lost: Lost,
    /// From the time that an event was to be sent to its arrival.
    latency_us: Option<Quantiles>,
    bus: BusReport,
    subscribers: Vec<Books>,
}

#[derive(Debug, Serialize)]
struct PublishedReport {
    events: u64,
    events_per_second: f64,
    /// Events that the rate called for and that publishers had no time left for.
    missed: u64,
    /// How long after its time a datagram was handed over: the publishers' own share of latency.
    late_us: Option<Quantiles>,
}

#[derive(Debug, Serialize)]
struct ReceivedReport {
    events: u64,
    events_per_second: f64,
    datagrams: u64,
}

/// Losses by hop: up to the bus in events, from there on in copies, over all subscribers.
#[derive(Debug, Serialize)]
struct Lost {
    by_publishers: u64,
    before_bus: u64,
    in_bus: u64,
    in_bus_by_reason: Option<Reasons>,
    to_subscribers: u64,
    unaccounted: i128,
    /// Frames that the bus did not use, whoever sent them.
    dropped_frames: Option<Reasons>,
}

#[derive(Debug, Serialize)]
struct BusReport {
    address: String,
    copies: Option<u64>,
    cpu_seconds: Option<f64>,
    cpu_ns_per_copy: Option<f64>,
    resident_bytes: Option<u64>,
    resident_bytes_max: Option<u64>,
}

/// One subscriber's books. What it received and all its losses, those up to the bus with them,
/// are the events that were published.
#[derive(Debug, Serialize)]
struct Books {
    name: String,
    received: u64,
    /// By the bus's metrics, or by the stamps where they are not known.
    lost_in_bus: u64,
    lost_to_subscriber: u64,
    /// What no hop tells of: 0, unless others load the bus, too, or only stamps tell, which say
    /// nothing of what was lost after the last frame that came.
    unaccounted: i128,
    lease_lapses: u64,
}

impl Findings {
    /// Draws it all together.
    ///
    /// # Errors
    ///
    /// Where there is no memory for a histogram.
    pub fn report(self) -> anyhow::Result<Report> {
        let late = self.published.iter().map(|published| &published.late);
        let latency = self.received.iter().map(|(_, received)| &received.latency);
        let subscribers: Vec<_> = (0..self.received.len())
            .filter_map(|index| self.books(index))
            .collect();
        Ok(Report {
            published: self.published(Times::of_all(late)?.quantiles()),
            received: self.received(),
            lost: self.lost(&subscribers),
            latency_us: Times::of_all(latency)?.quantiles(),
            bus: self.bus(),
            subscribers,
            workload: self.workload,
        })
    }

    fn published(&self, late_us: Option<Quantiles>) -> PublishedReport {
        let events = self.sum(|published| published.events);
        let ends = self.published.iter().map(|p| p.end_unix_nano);
        PublishedReport {
            events,
            events_per_second: float(events) / self.seconds_till(ends.max()),
            missed: self.sum(|published| published.missed),
            late_us,
        }
    }

    fn received(&self) -> ReceivedReport {
        let events = self.received.iter().map(|(_, r)| r.events).sum();
        let ends = self.received.iter().map(|(_, r)| r.end_unix_nano);
        ReceivedReport {
            events,
            events_per_second: float(events) / self.seconds_till(ends.max()),
            datagrams: self.received.iter().map(|(_, r)| r.datagrams).sum(),
        }
    }

    /// From the start to the end, or for as long as it was to last if that is longer.
    fn seconds_till(&self, end_unix_nano: Option<u64>) -> f64 {
        let end = end_unix_nano.unwrap_or_default();
        let taken = end.saturating_sub(self.start_unix_nano);
        float(taken.max(nanos(self.workload.duration()))) / 1e9
    }

    /// Over all publishers.
    fn sum(&self, count: fn(&Published) -> u64) -> u64 {
        self.published.iter().map(count).sum()
    }

    /// Events that the publishers' kernel took and that the bus did not get.
    fn lost_before_bus(&self) -> u64 {
        let sent = self.sum(|published| published.events - published.dropped);
        sent.saturating_sub(self.sum(|published| published.bus_received))
    }

    fn books(&self, index: usize) -> Option<Books> {
        let (name, received) = self.received.get(index)?;
        let counts = self.counts.as_ref();
        let by_metrics = counts.and_then(|counts| counts.of_subscriber(index));
        let (lost_in_bus, lost_to_subscriber) = match by_metrics {
            Some((dropped, sent)) => (dropped.values().sum(), sent.saturating_sub(received.events)),
            None => (received.dropped_by_bus, received.lost),
        };
        let told = [
            self.sum(|published| published.dropped),
            self.lost_before_bus(),
            lost_in_bus,
            lost_to_subscriber,
            received.events,
        ];
        let published = i128::from(self.sum(|published| published.events));
        Some(Books {
            name: name.clone(),
            received: received.events,
            lost_in_bus,
            lost_to_subscriber,
            unaccounted: published - told.map(i128::from).iter().sum::<i128>(),
            lease_lapses: received.lapses,
        })
    }

    fn lost(&self, subscribers: &[Books]) -> Lost {
        let counts = self.counts.as_ref();
        Lost {
            by_publishers: self.sum(|published| published.dropped),
            before_bus: self.lost_before_bus(),
            in_bus: subscribers.iter().map(|books| books.lost_in_bus).sum(),
            in_bus_by_reason: counts.map(|counts| self.lost_by_reason(counts)),
            to_subscribers: subscribers.iter().map(|b| b.lost_to_subscriber).sum(),
            unaccounted: subscribers.iter().map(|books| books.unaccounted).sum(),
            dropped_frames: counts.map(|counts| counts.dropped_frames.clone()),
        }
    }

    fn lost_by_reason(&self, counts: &Counts) -> Reasons {
        let mut reasons = Reasons::new();
        for index in 0..self.received.len() {
            let (dropped, _) = counts.of_subscriber(index).unwrap_or_default();
            for (reason, count) in dropped {
                *reasons.entry(reason).or_default() += count;
            }
        }
        reasons.retain(|_, count| *count > 0);
        reasons
    }

    fn bus(&self) -> BusReport {
        let copies = self.counts.as_ref().map(|counts| counts.copies);
        let per_copy = |(cpu_ns, copies)| float(cpu_ns) / float(copies);
        BusReport {
            address: self.bus.clone(),
            copies,
            cpu_seconds: self.cpu_ns.map(|ns| float(ns) / 1e9),
            cpu_ns_per_copy: self
                .cpu_ns
                .zip(copies.filter(|copies| *copies > 0))
                .map(per_copy),
            resident_bytes: self.memory.map(|memory| memory.resident_bytes),
            resident_bytes_max: self.memory.map(|memory| memory.resident_bytes_max),
        }
    }
}

/// Exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(count: u64) -> f64 {
    count as f64
}

impl Report {
    /// Says so where the publishers could not keep the rate.
    ///
    /// # Errors
    ///
    /// Then.
    pub fn check_rate(&self) -> anyhow::Result<()> {
        ensure!(
            self.published.missed == 0,
            "the rate is more than the publishers could send: {} of {} events were left",
            Grouped(self.published.missed),
            Grouped(self.published.missed + self.published.events),
        );
        Ok(())
    }

    fn fmt_flow(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            published,
            received,
            ..
        } = self;
        line(f, "published", published.events, "events")?;
        writeln!(f, "{:>14}/s", grouped_rate(published.events_per_second))?;
        line(f, "received", received.events, "events")?;
        write!(f, "{:>14}/s", grouped_rate(received.events_per_second))?;
        match received.datagrams {
            0 => writeln!(f),
            datagrams => {
                let events = float(received.events) / float(datagrams);
                writeln!(f, ", {events:.1} in a datagram")
            }
        }
    }

    fn fmt_losses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = &self.lost;
        writeln!(f, "\nlost")?;
        line(f, "  by publishers", lost.by_publishers, "events\n")?;
        line(f, "  up to the bus", lost.before_bus, "events\n")?;
        for (reason, count) in lost.dropped_frames.iter().flatten() {
            line(f, &format!("    {reason}"), *count, "frames\n")?;
        }
        line(f, "  in the bus", lost.in_bus, "copies\n")?;
        for (reason, count) in lost.in_bus_by_reason.iter().flatten() {
            line(f, &format!("    {reason}"), *count, "copies\n")?;
        }
        line(f, "  to subscribers", lost.to_subscribers, "copies\n")?;
        match lost.unaccounted {
            0 => Ok(()),
            copies => writeln!(f, "  no hop tells of {copies} copies"),
        }
    }

    fn fmt_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["50 %", "90 %", "99 %", "99.9 %", "most"];
        write!(f, "\n{:<16}", "µs")?;
        heads.iter().try_for_each(|head| write!(f, "{head:>12}"))?;
        writeln!(f)?;
        quantiles(f, "latency", self.latency_us)?;
        match self.published.late_us {
            None => Ok(()),
            late => quantiles(f, "of it sent late", late),
        }
    }

    fn fmt_bus(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1_048_576.0;
        let Some(cpu) = self.bus.cpu_seconds else {
            return Ok(());
        };
        write!(f, "\nbus: {cpu:.3} s of CPU")?;
        if let Some(ns) = self.bus.cpu_ns_per_copy {
            write!(f, ", {ns:.1} ns a copy")?;
        }
        if let (Some(now), Some(most)) = (self.bus.resident_bytes, self.bus.resident_bytes_max) {
            let (now, most) = (float(now) / MIB, float(most) / MIB);
            write!(f, "; {now:.1} MiB resident, {most:.1} at most")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.bus.address)?;
        writeln!(f, "{}\n", self.workload)?;
        self.fmt_flow(f)?;
        self.fmt_losses(f)?;
        self.fmt_latency(f)?;
        self.fmt_bus(f)
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, count: u64, unit: &str) -> fmt::Result {
    write!(f, "{name:<18}{:>15} {unit}", Grouped(count))
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

/// A rate's digits, in groups of three.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is not negative and far from 2^64"
)]
fn grouped_rate(rate: f64) -> Grouped {
    Grouped(rate.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::super::latency;
    use super::super::target::{Egress, reasons};
    use super::super::workload::example;
    use super::*;

    fn findings() -> Findings {
        let publisher = |events, dropped, bus_received| Published {
            events,
            dropped,
            missed: 400,
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
        let egress = Some(Egress {
            sent: 1_168,
            dropped: reasons(&[("would_block", 5)]),
        });
        Findings {
            workload: Workload {
                publishers: 2,
                events_per_second: Some(2_000.0),
                ..example()
            },
            bus: "udp://127.0.0.1:7277".to_owned(),
            start_unix_nano: 0,
            published: vec![publisher(600, 10, 580), publisher(600, 0, 600)],
            received: vec![
                ("a".to_owned(), subscriber(1_100, 50)),
                ("b".to_owned(), subscriber(1_168, 0)),
            ],
            counts: Some(Counts {
                copies: 2_346,
                dropped_frames: reasons(&[("kernel_buffer", 10)]),
                not_routed: reasons(&[("rate_limit", 7), ("unmatched", 0)]),
                egress: vec![egress.clone(), egress],
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
        let lost = report.lost;
        assert_eq!((lost.by_publishers, lost.before_bus), (10, 10));
        assert_eq!((lost.in_bus, lost.to_subscribers), (24, 68));
        let by_reason = reasons(&[("rate_limit", 14), ("would_block", 10)]);
        assert_eq!(lost.in_bus_by_reason, Some(by_reason));
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
        assert_eq!(report.lost.in_bus_by_reason, None);
        assert_eq!(report.bus.cpu_ns_per_copy, None);
    }

    #[test]
    fn what_was_not_sent_is_an_error() {
        let report = findings().report().unwrap();
        let error = report.check_rate().unwrap_err().to_string();
        assert!(error.contains("800 of 2,000 events"), "{error}");
    }

    #[test]
    fn a_table_fits_a_terminal_whatever_the_figures() {
        let mut findings = findings();
        findings.workload = Workload {
            topics: 100_000,
            payload_bytes: "10000-60000".parse().unwrap(),
            events_per_datagram: 2_000,
            publishers: 64,
            fan_out: 256,
            events_per_second: Some(999_999_999.0),
            duration_seconds: 3_599.25,
            ..example()
        };
        findings.published[0].events = 90_000_000_000;
        findings.received[0].1.events = 90_000_000_000;
        findings.received[0].1.datagrams = 45_000_000;
        let table = findings.report().unwrap().to_string();
        assert!(table.contains("kernel_buffer"), "{table}");
        assert!(table.contains("no hop tells"), "{table}");
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn digits_are_grouped() {
        let text = [0, 999, 1_000, 1_234_567].map(|n| Grouped(n).to_string());
        assert_eq!(text, ["0", "999", "1,000", "1,234,567"]);
    }
}
