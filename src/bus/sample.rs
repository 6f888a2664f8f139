//! Which events are kept where not all are.
//!
//! Each event has a [`Point`]: with a key it is the key's hash, without one a throw of dice. A
//! share of the events are those whose points lie below a threshold. So events with equal keys
//! are kept or not together, a smaller share is part of a larger one, and as the hash has no
//! secret, every bus keeps the same keys, across restarts, too.
//!
//! Who chooses keys can choose which of them are kept. That is so with every rule by which other
//! buses keep the same ones.

use xxhash_rust::xxh3::xxh3_64;

/// Where an event lies among all, evenly spread over 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point(u64);

impl Point {
    /// That of all events with this key: XXH3 with 64 bits and no seed.
    #[must_use]
    #[inline]
    pub fn of_key(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }
}

/// A share of the events, over 0 and at most 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    /// Points up to this one are kept.
    last: u64,
}

impl Sample {
    /// Every event.
    pub const ALL: Sample = Sample { last: u64::MAX };

    /// This share. `None` where it is not over 0 and at most 1.
    #[must_use]
    pub fn of_share(share: f64) -> Option<Self> {
        (share > 0.0 && share <= 1.0).then(|| {
            // Casts of floats saturate: 1.0 is all, and the least share keeps one point.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "over 0 and at most 2^64, where it saturates"
            )]
            let points = (share * POINTS) as u64;
            let last = if share < 1.0 {
                points.saturating_sub(1)
            } else {
                u64::MAX
            };
            Self { last }
        })
    }

    /// Whether it is every event.
    #[must_use]
    #[inline]
    pub fn is_all(self) -> bool {
        self.last == u64::MAX
    }

    /// Whether an event is among those kept.
    #[must_use]
    #[inline]
    pub fn keeps(self, point: Point) -> bool {
        point.0 <= self.last
    }

    /// The share, over 0 and at most 1.
    #[must_use]
    pub fn share(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share has no more digits")]
        let last = self.last as f64;
        (last + 1.0) / POINTS
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self::ALL
    }
}

/// How many points there are.
const POINTS: f64 = 18_446_744_073_709_551_616.0;
