//! What became of events, in plain integers that the caller lends and adds up.

use hailmary_proto::flow::FlowCounts;

use super::series::SeriesId;

/// What became of the events of frames.
#[derive(Clone, Debug, Default)]
pub struct EventTally {
    /// Events in the frames used.
    pub events: u64,
    /// Not routed: the topic is not one.
    pub bad_topic: u64,
    /// Not routed: its source may not publish it.
    pub not_allowed: u64,
    /// Not routed: over the rate of its topic's policy.
    pub rate_limit: u64,
    /// Not routed: older than its topic's policy permits.
    pub stale: u64,
    /// Wanted by nobody.
    pub unmatched: u64,
    /// Wanted by somebody.
    pub matched: u64,
    /// One for each event and subscriber it is for.
    pub copies: u64,
    /// Lost before the bus, by the publishers' stamps.
    pub lost: u64,
    /// Dropped by the publishers themselves, by their stamps.
    pub sender_dropped: u64,
    /// Came again, or after they had been counted as lost, by the publishers' stamps.
    pub duplicates: u64,
    /// Events by the label of their topic's policy, see [`SeriesId::index`].
    pub by_label: Vec<u64>,
    /// Age of the events that tell their time.
    pub age: Histogram,
}

impl EventTally {
    #[inline]
    pub(super) fn age(&mut self, now_unix_nano: u64, made_unix_nano: u64) {
        if made_unix_nano != 0 {
            self.age
                .record(now_unix_nano.saturating_sub(made_unix_nano), 1);
        }
    }

    /// Counts events under a label.
    #[inline]
    pub(super) fn count_label(&mut self, label: SeriesId, events: u64) {
        match self.by_label.get_mut(label.index()) {
            Some(count) => *count += events,
            None => add_at(&mut self.by_label, label.index(), events),
        }
    }

    /// Events that were not routed.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.bad_topic + self.not_allowed + self.rate_limit + self.stale
    }

    /// Adds what is new of publishers' flows.
    #[inline]
    pub fn add_flow(&mut self, news: FlowCounts) {
        self.lost += news.lost;
        self.sender_dropped += news.dropped;
        self.duplicates += news.duplicates;
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, other: &EventTally) {
        self.events += other.events;
        self.bad_topic += other.bad_topic;
        self.not_allowed += other.not_allowed;
        self.rate_limit += other.rate_limit;
        self.stale += other.stale;
        self.unmatched += other.unmatched;
        self.matched += other.matched;
        self.copies += other.copies;
        self.lost += other.lost;
        self.sender_dropped += other.sender_dropped;
        self.duplicates += other.duplicates;
        for (label, events) in other.by_label.iter().enumerate() {
            add_at(&mut self.by_label, label, *events);
        }
        self.age.add(&other.age);
    }

    /// Back to nothing, with the same labels.
    pub fn clear(&mut self) {
        let mut by_label = std::mem::take(&mut self.by_label);
        by_label.fill(0);
        *self = Self {
            by_label,
            ..Self::default()
        };
    }
}

/// Adds to one of many counts, of which there are as many as have been needed so far.
#[cold]
fn add_at(counts: &mut Vec<u64>, index: usize, more: u64) {
    if counts.len() <= index {
        counts.resize(index + 1, 0);
    }
    if let Some(count) = counts.get_mut(index) {
        *count += more;
    }
}

/// Durations in buckets that each reach four times as far as the one before: 16 µs to 69 s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Counts by bucket; the last one has no end.
    counts: [u64; Histogram::BUCKETS],
    /// So wide that it goes on whatever is added: eleven events that claim to be of 1970, or that
    /// a clock on a wrong date has met, would fill 64 bits for good.
    sum_ns: u128,
}

impl Histogram {
    /// How many buckets there are, the one without end included.
    pub const BUCKETS: usize = 13;
    /// The end of the first bucket, as a power of two in ns.
    const FIRST_BITS: u32 = 14;

    /// Counts a duration so many times.
    #[inline]
    pub fn record(&mut self, ns: u64, times: u64) {
        // The bits of ns - 1, so that a bucket holds its own end.
        let bits = u64::BITS - ns.saturating_sub(1).leading_zeros();
        let bucket = bits.saturating_sub(Self::FIRST_BITS).div_ceil(2) as usize;
        if let Some(count) = self.counts.get_mut(bucket.min(Self::BUCKETS - 1)) {
            *count += times;
        }
        self.sum_ns += u128::from(ns) * u128::from(times);
    }

    /// Each bucket's end in ns (none for the last) and how many are in it.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let ends = (0..Self::BUCKETS - 1).map(|n| Some(1 << (Self::FIRST_BITS as usize + 2 * n)));
        ends.chain([None]).zip(self.counts)
    }

    /// All durations together, in ns.
    #[must_use]
    pub fn sum_ns(&self) -> u128 {
        self.sum_ns
    }

    /// Adds another histogram to this one.
    pub fn add(&mut self, other: &Histogram) {
        for (sum, more) in self.counts.iter_mut().zip(other.counts) {
            *sum += more;
        }
        self.sum_ns += other.sum_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_own_end_and_the_last_has_none() {
        let ends: Vec<_> = Histogram::default()
            .buckets()
            .filter_map(|(end, _)| end)
            .collect();
        assert_eq!((ends[0], ends[11]), (1 << 14, 1 << 36));
        for (n, end) in ends.iter().enumerate() {
            let mut histogram = Histogram::default();
            histogram.record(*end, 1);
            histogram.record(*end + 1, 2);
            let counts: Vec<_> = histogram.buckets().map(|(_, count)| count).collect();
            assert_eq!(counts[n..n + 2], [1, 2], "around {end}");
        }
        let mut histogram = Histogram::default();
        histogram.record(0, 1);
        histogram.record(u64::MAX, 1);
        let counts: Vec<_> = histogram.buckets().map(|(_, count)| count).collect();
        assert_eq!((counts[0], counts[12]), (1, 1));
    }

    #[test]
    fn a_sum_goes_on_past_the_longest_durations() {
        let (mut histogram, mut other) = (Histogram::default(), Histogram::default());
        histogram.record(u64::MAX, 20);
        let long = histogram.sum_ns();
        histogram.record(7, 3);
        assert_eq!(histogram.sum_ns(), long + 21);
        other.add(&histogram);
        other.add(&histogram);
        assert_eq!(other.sum_ns(), 2 * (long + 21));
    }
}
