//! The bus under load, as seen from outside: its metrics, its time on the processor, its memory.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Context;

use crate::command::admin_client::{AdminClient, Sample, Scrape};

use super::PATIENCE;

/// Counts by reason.
pub type Reasons = BTreeMap<String, u64>;

/// How long counts must stand still to be final, and how often that is tried: a bus hands its
/// counts over within 50 ms.
const STILL_FOR: Duration = Duration::from_millis(60);
const SCRAPES_MAX: u32 = 50;

/// What a bus counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// One for each event and subscriber, whoever it is.
    pub copies: u64,
    /// Whole frames not used, the kernel's buffer included.
    pub dropped_frames: Reasons,
    /// Events that went to no subscriber.
    pub not_routed: Reasons,
    /// Of each subscriber of the bench; nothing of one without a series of its own.
    pub egress: Vec<Option<Egress>>,
}

/// What became of a subscriber's copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// Events handed to the kernel.
    pub sent: u64,
    /// Copies not sent.
    pub dropped: Reasons,
}

impl Counts {
    fn read(scrape: &Scrape, subscribers: &[String]) -> Self {
        let mut not_routed = by_reason(scrape.samples("ingress_dropped_events_total"));
        not_routed.insert("unmatched".to_owned(), scrape.sum("unmatched_events_total"));
        let egress = |name: &String| {
            let sent = scrape
                .samples("egress_events_total")
                .find(|sample| sample.is_of(name))?;
            let dropped = scrape
                .samples("egress_dropped_events_total")
                .filter(|sample| sample.is_of(name));
            Some(Egress {
                sent: sent.value,
                dropped: by_reason(dropped),
            })
        };
        Self {
            copies: scrape.sum("copies_total"),
            dropped_frames: by_reason(scrape.samples("ingress_dropped_frames_total")),
            not_routed,
            egress: subscribers.iter().map(egress).collect(),
        }
    }

    /// The copies for a subscriber that were dropped, and how many were sent, if it has a series
    /// of its own. An event that was not routed is lost to every subscriber.
    pub fn of_subscriber(&self, index: usize) -> Option<(Reasons, u64)> {
        let egress = self.egress.get(index)?.as_ref()?;
        let mut dropped = self.not_routed.clone();
        for (reason, count) in &egress.dropped {
            *dropped.entry(reason.clone()).or_default() += count;
        }
        Some((dropped, egress.sent))
    }

    /// What was counted since. Subscribers of a bench are new to the bus.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        self.copies = self.copies.saturating_sub(before.copies);
        subtract(&mut self.dropped_frames, &before.dropped_frames);
        subtract(&mut self.not_routed, &before.not_routed);
        self
    }
}

/// What has not grown is left out.
fn subtract(counts: &mut Reasons, before: &Reasons) {
    for (reason, count) in counts.iter_mut() {
        *count = count.saturating_sub(before.get(reason).copied().unwrap_or_default());
    }
    counts.retain(|_, count| *count > 0);
}

/// Counts by their label `reason`.
fn by_reason<'a>(samples: impl Iterator<Item = &'a Sample>) -> Reasons {
    let reason = |sample: &Sample| Some((sample.label("reason")?.to_owned(), sample.value));
    samples.filter_map(reason).collect()
}

/// A bus's admin listener.
#[derive(Debug)]
pub struct Admin(AdminClient);

impl Admin {
    /// The one at this address.
    pub fn new(address: &str) -> Self {
        Self(AdminClient::new(address, PATIENCE))
    }

    /// What the bus has counted by now.
    pub fn counts(&self, subscribers: &[String]) -> anyhow::Result<Counts> {
        let page = self
            .0
            .get("/metrics")
            .with_context(|| format!("cannot read metrics at {}", self.0.address()))?;
        Ok(Counts::read(&Scrape::parse(&page), subscribers))
    }

    /// What the bus has counted once the copies for these subscribers stand still.
    pub fn final_counts(&self, subscribers: &[String]) -> anyhow::Result<Counts> {
        let mut counts = self.counts(subscribers)?;
        for _ in 0..SCRAPES_MAX {
            std::thread::sleep(STILL_FOR);
            let before = std::mem::replace(&mut counts, self.counts(subscribers)?);
            if before.egress == counts.egress {
                break;
            }
        }
        Ok(counts)
    }
}

/// A process's memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident now.
    pub resident_bytes: u64,
    /// The most that was resident.
    pub resident_bytes_max: u64,
}

/// A process's time on the processor, in ns, over the threads that it has; nothing where it has
/// ended, or the system has no `schedstat` (proc(5)).
pub fn cpu_ns(process: u32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let of_thread = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    // A thread may end between being listed and being read.
    let of_threads: Vec<_> = threads
        .filter_map(Result::ok)
        .filter_map(of_thread)
        .collect();
    (!of_threads.is_empty()).then(|| of_threads.iter().sum())
}

/// A process's memory; nothing where the system does not tell.
pub fn memory(process: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1_024)
    };
    Some(Memory {
        resident_bytes: bytes("VmRSS:")?,
        resident_bytes_max: bytes("VmHWM:")?,
    })
}

/// Counts by reason, written down.
#[cfg(test)]
pub fn reasons(pairs: &[(&str, u64)]) -> Reasons {
    let own = |(reason, count): &(&str, u64)| ((*reason).to_owned(), *count);
    pairs.iter().map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# HELP hailmary_copies_total One for each.
hailmary_copies_total 30
hailmary_unmatched_events_total 4
hailmary_ingress_dropped_events_total{reason=\"bad_topic\"} 1
hailmary_ingress_dropped_frames_total{reason=\"kernel_buffer\"} 2
hailmary_egress_events_total{subscriber=\"a\"} 20
hailmary_egress_events_total{subscriber=\"ab\"} 5
hailmary_egress_dropped_events_total{subscriber=\"a\",reason=\"refused\"} 3
hailmary_egress_dropped_events_total{reason=\"refused\",subscriber=\"ab\"} 2
hailmary_event_age_seconds_sum 0.25
process_cpu_seconds_total 9
";

    #[test]
    fn metrics_become_counts() {
        let names = ["ab", "a", "absent"].map(str::to_owned);
        let counts = Counts::read(&Scrape::parse(PAGE), &names);
        let egress = |sent, dropped| {
            Some(Egress {
                sent,
                dropped: reasons(&[("refused", dropped)]),
            })
        };
        assert_eq!(counts.egress, [egress(5, 2), egress(20, 3), None]);
        assert_eq!(
            counts.not_routed,
            reasons(&[("bad_topic", 1), ("unmatched", 4)])
        );
        let mut before = counts.clone();
        before.copies = 10;
        before.dropped_frames = reasons(&[("kernel_buffer", 1)]);
        let since = counts.since(&before);
        assert_eq!(since.copies, 20);
        assert_eq!(since.dropped_frames, reasons(&[("kernel_buffer", 1)]));
        assert_eq!(since.not_routed, Reasons::new());
        let dropped = reasons(&[("refused", 3)]);
        assert_eq!(since.of_subscriber(1), Some((dropped, 20)));
        assert_eq!(since.of_subscriber(2), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_time_and_memory() {
        let own = std::process::id();
        let before = cpu_ns(own).unwrap();
        while cpu_ns(own).unwrap() == before {}
        let memory = memory(own).unwrap();
        assert!(memory.resident_bytes > 0 && memory.resident_bytes <= memory.resident_bytes_max);
        assert_eq!(cpu_ns(u32::MAX), None);
    }
}
