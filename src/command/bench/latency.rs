//! Times, counted by their size: an HdrHistogram, and how it passes from process to process.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest time told apart, in ns: what takes longer counts as this long.
const NS_MAX: u64 = 60_000_000_000;

/// Digits that are kept of each time: 200 KB a histogram.
const DIGITS: u8 = 3;

/// How often each time was seen: what is sent of a histogram.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counts(Vec<(u64, u64)>);

/// Times in ns, from 1 ns to 60 s, to three digits.
#[derive(Debug)]
pub struct Times(Histogram<u64>);

/// What is told of times, in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half took at most this long.
    pub p50: f64,
    /// 90 in 100 did.
    pub p90: f64,
    /// 99 in 100 did.
    pub p99: f64,
    /// 999 in 1,000 did.
    pub p99_9: f64,
    /// The longest.
    pub max: f64,
}

impl Times {
    /// None yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, NS_MAX, DIGITS)?))
    }

    /// Counts a time as often as it was seen.
    #[inline]
    pub fn record(&mut self, ns: u64, count: u64) {
        self.0.saturating_record_n(ns, count);
    }

    /// All that several processes counted.
    pub fn of_all<'a>(all: impl Iterator<Item = &'a Counts>) -> anyhow::Result<Self> {
        let mut times = Self::new()?;
        for (ns, count) in all.flat_map(|counts| &counts.0) {
            times.record(*ns, *count);
        }
        Ok(times)
    }

    /// All that was counted.
    pub fn counts(&self) -> Counts {
        let recorded = self.0.iter_recorded();
        Counts(
            recorded
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect(),
        )
    }

    /// What there is to tell; nothing of no times.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let us = |quantile| micros(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Quantiles {
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p99_9: us(0.999),
            max: micros(self.0.max()),
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "at most a minute of ns, to three digits"
)]
fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_pass_through_their_counts() {
        let mut times = Times::new().unwrap();
        (1..=1_000).for_each(|us| times.record(us * 1_000, 1));
        times.record(u64::MAX, 1);
        times.record(0, 1);
        let merged = Times::of_all([times.counts(), times.counts()].iter()).unwrap();
        assert_eq!(merged.0.len(), 2 * times.0.len());
        let quantiles = merged.quantiles().unwrap();
        assert_eq!(merged.quantiles(), times.quantiles());
        assert!((499.0..502.0).contains(&quantiles.p50), "{quantiles:?}");
        assert!((6e7..6.1e7).contains(&quantiles.max), "{quantiles:?}");
        assert_eq!(Times::new().unwrap().quantiles(), None);
    }
}
