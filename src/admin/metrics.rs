//! The counts in Prometheus' text format, version 0.0.4.
//!
//! Made straight from one set of books: what is printed together was true together. It is written
//! as it is to be sent, without a model of it in between: of ten thousand subscribers that would
//! be half a million small allocations, and the time on a processor that events wait for.

use std::fmt::{Display, Write};
use std::sync::Arc;

use hailmary_proto::v1::refusal::Reason;

use crate::bus::seen::EventDrop;
use crate::bus::tally::Histogram;
use crate::bus::{CopyDrop, FrameDrop};
use crate::confine::Hold;
use crate::ledger::{Counts, LeaseCounts, SeriesCounts};
use crate::logging;
use crate::net::account::Reading;
use crate::reload::Outcome;
use crate::state::{Kind, ListenerInfo, State};

/// All metrics.
pub(super) fn render(counts: &Counts, state: &State) -> String {
    let mut page = Page::default();
    ingress(&mut page, counts, state);
    events(&mut page, counts, state);
    egress(&mut page, counts, state);
    leases(&mut page, counts, state);
    page.histogram(
        "forward_latency_seconds",
        "From a frame's arrival in user space to its copies' hand-over to the kernel.",
        &counts.forward_latency,
    );
    page.histogram(
        "event_age_seconds",
        "From the time that an event tells of itself to its routing.",
        &counts.events.age,
    );
    page.gauges(
        "overload",
        "How much is let go because the bus cannot keep up: 0 is nothing, up to 32 events of topics \
         with low priority, up to 64 of those with normal priority, too.",
        [([("", ""); 0], state.overload().get())],
    );
    canary(&mut page, state);
    let holds = state.confinement.holds();
    page.gauges(
        "confined",
        "What the bus gave up once its sockets were bound: 1 where that is enforced wholly.",
        holds.map(|(fence, hold)| {
            let is_whole = *hold == Hold::Enforced;
            ([("fence", fence.label())], u32::from(is_whole))
        }),
    );
    page.counters(
        "reloads_total",
        "Configurations read anew: ok where one is in use now, failed where the old one stayed.",
        Outcome::ALL.map(|it| ([("outcome", it.label())], state.reloads.count(it))),
    );
    page.counter(
        "log_lines_lost_total",
        "Log lines that standard error did not take, or not soon enough.",
        logging::lost_lines(),
    );
    let build = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", revision()),
    ];
    page.gauges(
        "build_info",
        "What was built, as labels.",
        [(&build[..], 1)],
    );
    page.text
}

fn revision() -> &'static str {
    option_env!("HAILMARY_REVISION").unwrap_or("unknown")
}

fn ingress(page: &mut Page, counts: &Counts, state: &State) {
    let infos = state.listeners();
    let accounts: Vec<_> = infos.iter().map(|info| info.account.read()).collect();
    // Those that have closed, too: what was counted stays. Those that opened may have none yet.
    let listeners = || {
        infos.iter().enumerate().map(|(place, info)| {
            let counts = counts.listeners.get(place).copied().unwrap_or_default();
            ([("listener", info.name.as_str())], counts)
        })
    };
    page.counters(
        "ingress_frames_total",
        "Frames taken from the kernel.",
        listeners().map(|(label, counts)| (label, counts.frames)),
    );
    page.counters(
        "ingress_bytes_total",
        "Bytes of the frames taken from the kernel.",
        listeners().map(|(label, counts)| (label, counts.bytes)),
    );
    // Nothing is said of what the system does not tell.
    let drops = accounts.iter().flatten().map(|account| account.drops);
    let by_kernel = drops
        .reduce(u64::saturating_add)
        .map(|drops| ([("reason", "kernel_buffer")], drops));
    let by_bus = FrameDrop::ALL.iter().zip(counts.dropped_frames);
    page.counters(
        "ingress_dropped_frames_total",
        "Whole frames not used.",
        by_kernel
            .into_iter()
            .chain(by_bus.map(|(reason, n)| ([("reason", reason.label())], n))),
    );
    buffers(page, &accounts, &infos);
}

/// Of the listeners that are open.
fn buffers(page: &mut Page, accounts: &[Option<Reading>], infos: &[Arc<ListenerInfo>]) {
    let listeners = infos.iter().zip(accounts);
    let listeners = listeners.filter_map(|(info, account)| {
        Some((info.name.as_str(), (*account)?, info.buffer_wanted_bytes()?))
    });
    let listeners: Vec<_> = listeners.collect();
    let mut gauge = |name: &str, help: &str, bytes: fn(Reading, u32) -> u32| {
        let values = listeners.iter();
        let values =
            values.map(|(name, account, wanted)| ([("listener", *name)], bytes(*account, *wanted)));
        page.gauges(name, help, values);
    };
    gauge(
        "ingress_buffer_bytes",
        "What the kernel lets wait for a listener, by its own account.",
        |account, _| account.size_bytes,
    );
    gauge(
        "ingress_buffer_wanted_bytes",
        "What the kernel would let wait had it granted what the configuration wants.",
        |_, wanted| wanted,
    );
    gauge(
        "ingress_buffer_used_bytes",
        "What waits for a listener, by the kernel's account.",
        |account, _| account.used_bytes,
    );
}

fn events(page: &mut Page, counts: &Counts, state: &State) {
    let events = &counts.events;
    page.counter(
        "ingress_events_total",
        "Events in the frames used.",
        events.events,
    );
    page.counters(
        "ingress_dropped_events_total",
        "Events not routed.",
        [
            ("bad_topic", events.bad_topic),
            (EventDrop::NotAllowed.label(), events.not_allowed),
            (EventDrop::RateLimit.label(), events.rate_limit),
            (EventDrop::Stale.label(), events.stale),
        ]
        .map(|(reason, n)| ([("reason", reason)], n)),
    );
    page.counter(
        "ingress_lost_events_total",
        "Events lost before the bus, by the senders' stamps.",
        events.lost,
    );
    page.counter(
        "ingress_sender_dropped_events_total",
        "Events dropped by the senders themselves, by their stamps.",
        events.sender_dropped,
    );
    page.counter(
        "ingress_duplicate_events_total",
        "Events that came again, or after they had been counted as lost, by the senders' stamps.",
        events.duplicates,
    );
    page.counter(
        "unmatched_events_total",
        "Events that no subscriber wanted.",
        events.unmatched,
    );
    page.counter(
        "matched_events_total",
        "Events that at least one wanted.",
        events.matched,
    );
    page.counter(
        "copies_total",
        "One for each event and subscriber it is for.",
        events.copies,
    );
    let labels = state.topic_labels();
    let by_label = labels.iter().enumerate();
    page.counters(
        "topic_events_total",
        "Events by topic policy.",
        by_label.map(|(index, topic)| {
            let count = events.by_label.get(index).copied().unwrap_or(0);
            ([("topic", &**topic)], count)
        }),
    );
}

fn egress(page: &mut Page, counts: &Counts, state: &State) {
    let names = state.series();
    let none = SeriesCounts::default();
    let all: Vec<(&str, &SeriesCounts)> = names
        .iter()
        .enumerate()
        .map(|(index, name)| (&**name, counts.series.get(index).unwrap_or(&none)))
        .collect();
    let mut by_subscriber = |name: &str, help: &str, count: fn(&SeriesCounts) -> u64| {
        let counts = all
            .iter()
            .map(|(name, series)| ([("subscriber", *name)], count(series)));
        page.counters(name, help, counts);
    };
    by_subscriber(
        "egress_events_total",
        "Events handed to the kernel.",
        |series| series.events,
    );
    by_subscriber(
        "egress_frames_total",
        "Frames handed to the kernel.",
        |series| series.frames,
    );
    by_subscriber(
        "egress_bytes_total",
        "Bytes handed to the kernel.",
        |series| series.bytes,
    );
    by_subscriber(
        "subscriber_lost_events_total",
        "Events lost on the way, as the subscriber reports.",
        |series| series.reported.lost,
    );
    by_subscriber(
        "subscriber_dropped_events_total",
        "Events dropped on the subscriber's own side, as it reports.",
        |series| series.reported.dropped,
    );
    let dropped = all.iter().flat_map(|(name, series)| {
        let by_reason = CopyDrop::ALL.iter().zip(series.dropped);
        by_reason.map(move |(reason, n)| ([("subscriber", *name), ("reason", reason.label())], n))
    });
    page.counters("egress_dropped_events_total", "Copies not sent.", dropped);
}

fn leases(page: &mut Page, counts: &Counts, state: &State) {
    let standing = state
        .subscribers()
        .iter()
        .filter(|info| info.kind == Kind::Lease)
        .count();
    let standing = u32::try_from(standing).unwrap_or(u32::MAX);
    page.gauges("leases", "Leases that stand.", [([("", ""); 0], standing)]);
    let leases = &counts.leases;
    page.counter("leases_granted_total", "Leases granted.", leases.granted);
    page.counter(
        "leases_expired_total",
        "Leases not renewed in time.",
        leases.expired,
    );
    page.counter(
        "leases_revoked_total",
        "Leases ended by a reload, as their holders may subscribe to nothing any more.",
        leases.revoked,
    );
    page.counter(
        "challenges_total",
        "Addresses asked to prove themselves.",
        leases.challenges,
    );
    page.counter(
        "lease_requests_unanswered_total",
        "Requests shorter than their answer, too many of one origin, from somebody on a Unix \
         socket of whom the kernel did not tell what the rules want to know, or more than fit \
         between two workers.",
        leases.unanswered,
    );
    let reasons = (1..LeaseCounts::REASONS).filter_map(|number| {
        let reason = Reason::try_from(i32::try_from(number).ok()?).ok()?;
        Some((reason_label(reason), *leases.refusals.get(number)?))
    });
    page.counters(
        "lease_refusals_total",
        "Requests refused.",
        reasons.map(|(reason, n)| ([("reason", reason)], n)),
    );
}

fn canary(page: &mut Page, state: &State) {
    let (infos, streams) = (state.listeners(), state.canary.streams());
    let by_listener = || {
        let streams = infos.iter().zip(&streams);
        streams.filter_map(|(info, stream)| {
            Some(([("listener", info.name.as_str())], stream.as_ref()?))
        })
    };
    page.counters(
        "canary_sent_total",
        "Probes that the bus sent itself.",
        by_listener().map(|(label, stream)| (label, stream.sent)),
    );
    page.counters(
        "canary_lost_total",
        "Probes that did not come back in time.",
        by_listener().map(|(label, stream)| (label, stream.lost)),
    );
    page.histograms(
        "canary_latency_seconds",
        "From a probe's publishing to its receipt.",
        by_listener().map(|(label, stream)| (label, &stream.latency)),
    );
}

fn reason_label(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "unspecified",
        Reason::NotAllowed => "not_allowed",
        Reason::BadTopic => "bad_topic",
        Reason::BadRequest => "bad_request",
        Reason::Full => "full",
        Reason::UnknownLease => "unknown_lease",
    }
}

/// A label's name and value.
type Label<'a> = (&'a str, &'a str);

/// What is to be printed.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn counter(&mut self, name: &str, help: &str, count: u64) {
        self.counters(name, help, [([("", ""); 0], count)]);
    }

    fn counters<'a, L: AsRef<[Label<'a>]>>(
        &mut self,
        name: &str,
        help: &str,
        counts: impl IntoIterator<Item = (L, u64)>,
    ) {
        self.family(name, help, "counter", counts);
    }

    fn gauges<'a, L: AsRef<[Label<'a>]>>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u32)>,
    ) {
        self.family(name, help, "gauge", values);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.histograms(name, help, [([("", ""); 0], histogram)]);
    }

    fn histograms<'a, L: AsRef<[Label<'a>]>>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = (L, &'a Histogram)>,
    ) {
        let mut histograms = histograms.into_iter().peekable();
        if histograms.peek().is_some() {
            self.head(name, help, "histogram");
        }
        for (labels, histogram) in histograms {
            self.buckets(name, labels.as_ref(), histogram);
        }
    }

    fn buckets(&mut self, name: &str, labels: &[Label<'_>], histogram: &Histogram) {
        let mut count = 0;
        for (end_ns, in_bucket) in histogram.buckets() {
            count += in_bucket;
            let end = end_ns.map_or("+Inf".to_owned(), |end_ns| {
                seconds(end_ns.into()).to_string()
            });
            let labels = [labels, &[("le", &end)]].concat();
            self.sample(name, "_bucket", &labels, count);
        }
        self.sample(name, "_sum", labels, seconds(histogram.sum_ns()));
        self.sample(name, "_count", labels, count);
    }

    /// Nothing at all without values, such as of a system that has no such figures.
    fn family<'a, L: AsRef<[Label<'a>]>>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        values: impl IntoIterator<Item = (L, impl Display)>,
    ) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_some() {
            self.head(name, help, kind);
        }
        for (labels, value) in values {
            self.sample(name, "", labels.as_ref(), value);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.push(&["# HELP hailmary_", name, " ", help, "\n"]);
        self.push(&["# TYPE hailmary_", name, " ", kind, "\n"]);
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &[Label<'_>], value: impl Display) {
        self.push(&["hailmary_", name, suffix]);
        let mut before = "{";
        for (name, value) in labels {
            self.push(&[before, name, "=\""]);
            self.push_escaped(value);
            self.push(&["\""]);
            before = ",";
        }
        if !labels.is_empty() {
            self.push(&["}"]);
        }
        // A String takes all that there is memory for.
        let _ = writeln!(self.text, " {value}");
    }

    fn push(&mut self, parts: &[&str]) {
        self.text.extend(parts.iter().copied());
    }

    /// A path may have any character.
    fn push_escaped(&mut self, value: &str) {
        if !value.contains(['\\', '"', '\n']) {
            return self.text.push_str(value);
        }
        for character in value.chars() {
            match character {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                plain => self.text.push(plain),
            }
        }
    }
}

/// Exact up to 2^53 ns, which is a hundred days.
#[expect(
    clippy::cast_precision_loss,
    reason = "the format's numbers are floats"
)]
fn seconds(ns: u128) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_told_as_the_format_has_them() {
        let mut page = Page::default();
        page.counter("a_total", "A.", 1 << 60);
        page.gauges("b", "B.", [([("x", "1"), ("y", "")], 7)]);
        page.counters("none_total", "None.", [([("", ""); 0], 0); 0]);
        let path = "a\"\\\n\"\"é\\";
        page.counters("c_total", "C.", [([("path", path)], 0)]);
        let mut times = Histogram::default();
        times.record(20_000, 3);
        times.record(u64::MAX, 1);
        page.histogram("d_seconds", "D.", &times);
        let buckets = page.text.split_once("D.").unwrap().1.to_owned();
        let expected = "# HELP hailmary_a_total A.\n\
            # TYPE hailmary_a_total counter\n\
            hailmary_a_total 1152921504606846976\n\
            # HELP hailmary_b B.\n\
            # TYPE hailmary_b gauge\n\
            hailmary_b{x=\"1\",y=\"\"} 7\n\
            # HELP hailmary_c_total C.\n\
            # TYPE hailmary_c_total counter\n\
            hailmary_c_total{path=\"a\\\"\\\\\\n\\\"\\\"é\\\\\"} 0\n\
            # HELP hailmary_d_seconds D.";
        assert_eq!(page.text.strip_suffix(&buckets).unwrap(), expected);
        let lines: Vec<_> = buckets.lines().collect();
        assert_eq!(lines[1], "# TYPE hailmary_d_seconds histogram");
        assert_eq!(lines[2], "hailmary_d_seconds_bucket{le=\"0.000016384\"} 0");
        assert_eq!(lines[3], "hailmary_d_seconds_bucket{le=\"0.000065536\"} 3");
        assert_eq!(lines[14], "hailmary_d_seconds_bucket{le=\"+Inf\"} 4");
        assert!(lines[15].starts_with("hailmary_d_seconds_sum 1844674407"));
        assert_eq!(lines[16..], ["hailmary_d_seconds_count 4"]);
    }
}
