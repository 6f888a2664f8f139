//! The counts in Prometheus' text format.
//!
//! Made straight from one set of books: what is printed together was true together.

use hailmary_proto::v1::refusal::Reason;
use prometheus::proto::{Bucket, Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use crate::bus::tally::Histogram;
use crate::bus::{CopyDrop, FrameDrop};
use crate::ledger::{Counts, LeaseCounts, SeriesCounts};
use crate::state::{Kind, State};

/// All metrics.
pub(super) fn render(counts: &Counts, state: &State) -> prometheus::Result<Vec<u8>> {
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
    let build = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", revision()),
    ];
    page.gauges(
        "build_info",
        "What was built, as labels.",
        [(&build[..], 1)],
    );
    let mut text = Vec::new();
    TextEncoder::new().encode(&page.families, &mut text)?;
    Ok(text)
}

fn revision() -> &'static str {
    option_env!("HAILMARY_REVISION").unwrap_or("unknown")
}

fn ingress(page: &mut Page, counts: &Counts, state: &State) {
    let accounts: Vec<_> = state.accounts().collect();
    let listeners = || state.listeners.iter().zip(&counts.listeners);
    page.counters(
        "ingress_frames_total",
        "Frames taken from the kernel.",
        listeners().map(|(info, counts)| ([("listener", info.name.as_str())], counts.frames)),
    );
    page.counters(
        "ingress_bytes_total",
        "Bytes of the frames taken from the kernel.",
        listeners().map(|(info, counts)| ([("listener", info.name.as_str())], counts.bytes)),
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
    let buffers = || {
        let listeners = state.listeners.iter().zip(&accounts);
        listeners.filter_map(|(info, account)| Some((info.name.as_str(), (*account)?)))
    };
    page.gauges(
        "ingress_buffer_bytes",
        "What the kernel lets wait for a listener, by its own account.",
        buffers().map(|(name, account)| ([("listener", name)], account.size_bytes)),
    );
    page.gauges(
        "ingress_buffer_used_bytes",
        "What waits for a listener, by the kernel's account.",
        buffers().map(|(name, account)| ([("listener", name)], account.used_bytes)),
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
            ("not_allowed", events.not_allowed),
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
    let topics = state
        .topic_policies
        .iter()
        .map(String::as_str)
        .chain(["other"]);
    page.counters(
        "topic_events_total",
        "Events by topic policy.",
        topics
            .zip(&events.by_policy)
            .map(|(topic, n)| ([("topic", topic)], *n)),
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
        "challenges_total",
        "Addresses asked to prove themselves.",
        leases.challenges,
    );
    page.counter(
        "lease_requests_unanswered_total",
        "Requests shorter than their answer, or too many of one origin.",
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

/// Label names and values.
type Label<'a> = (&'a str, &'a str);

/// What is to be printed.
#[derive(Default)]
struct Page {
    families: Vec<MetricFamily>,
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
        let metrics = counts.into_iter().map(|(labels, count)| {
            let mut counter = Counter::default();
            counter.set_value(float(count));
            let mut metric = labelled(labels.as_ref());
            metric.set_counter(counter);
            metric
        });
        self.family(name, help, MetricType::COUNTER, metrics.collect());
    }

    fn gauges<'a, L: AsRef<[Label<'a>]>>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u32)>,
    ) {
        let metrics = values.into_iter().map(|(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value.into());
            let mut metric = labelled(labels.as_ref());
            metric.set_gauge(gauge);
            metric
        });
        self.family(name, help, MetricType::GAUGE, metrics.collect());
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        let mut count = 0;
        let mut buckets = Vec::new();
        for (end_ns, in_bucket) in histogram.buckets() {
            count += in_bucket;
            if let Some(end_ns) = end_ns {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(seconds(end_ns));
                bucket.set_cumulative_count(count);
                buckets.push(bucket);
            }
        }
        let mut printed = prometheus::proto::Histogram::default();
        printed.set_bucket(buckets);
        printed.set_sample_count(count);
        printed.set_sample_sum(seconds(histogram.sum_ns()));
        let mut metric = Metric::default();
        metric.set_histogram(printed);
        self.family(name, help, MetricType::HISTOGRAM, vec![metric]);
    }

    /// The encoder refuses families without metrics, such as one of a system without figures.
    fn family(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(format!("hailmary_{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }
}

fn labelled(labels: &[Label<'_>]) -> Metric {
    let pair = |(name, value): &Label<'_>| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

/// Exact up to 2^53, which is what Prometheus itself keeps.
#[expect(
    clippy::cast_precision_loss,
    reason = "the format's numbers are floats"
)]
fn float(count: u64) -> f64 {
    count as f64
}

fn seconds(ns: u64) -> f64 {
    float(ns) / 1e9
}
