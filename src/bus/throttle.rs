//! How often strangers are answered.
//!
//! Token buckets in integers, one over all and one for each origin. Origins share a fixed number
//! of buckets by keyed hash, so an attacker with many addresses costs no memory, and one with a
//! single address silences at most the few origins that share its bucket.

use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::FixedState;

use super::address::Origin;
use super::bucket::Bucket;
use super::limits::{ANSWERS_IN_ALL, ANSWERS_PER_ORIGIN, ORIGIN_BUCKETS};

/// The buckets.
#[derive(Debug)]
pub struct Throttle {
    all: Bucket,
    origins: Vec<Bucket>,
    hasher: FixedState,
}

impl Throttle {
    /// Full buckets.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            all: Bucket::full(ANSWERS_IN_ALL),
            origins: vec![Bucket::full(ANSWERS_PER_ORIGIN); ORIGIN_BUCKETS],
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Whether a stranger of this origin may be answered now.
    pub fn permit(&mut self, now: Duration, origin: Origin) -> bool {
        let place = self.hasher.hash_one(origin) % ORIGIN_BUCKETS as u64;
        let bucket = usize::try_from(place)
            .ok()
            .and_then(|place| self.origins.get_mut(place));
        bucket.is_some_and(|bucket| bucket.take(now, 1) > 0) && self.all.take(now, 1) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_one_second_at_once() {
        let mut throttle = Throttle::new(1);
        let mut permits = |now| {
            (0..3 * ANSWERS_PER_ORIGIN)
                .filter(|_| throttle.permit(now, Origin::Network(1)))
                .count()
        };
        assert_eq!(permits(Duration::ZERO), ANSWERS_PER_ORIGIN as usize);
        assert_eq!(
            permits(Duration::from_millis(100)),
            ANSWERS_PER_ORIGIN as usize / 10
        );
        assert_eq!(
            permits(Duration::from_secs(1 << 40)),
            ANSWERS_PER_ORIGIN as usize
        );
    }

    #[test]
    fn many_origins_share_the_bound_over_all() {
        let mut throttle = Throttle::new(1);
        let asked = u64::from(ANSWERS_IN_ALL) * 4;
        let permits = (0..asked).filter(|n| throttle.permit(Duration::ZERO, Origin::Network(*n)));
        assert_eq!(permits.count(), ANSWERS_IN_ALL as usize);
    }
}
