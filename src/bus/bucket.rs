//! A token bucket, in integers: so many events a second, and at most one second's worth at once.

use std::time::Duration;

/// Parts of a permit in which a bucket counts: one for each ns of one permit a second.
const NANOS: u64 = 1_000_000_000;

/// Permits that come back with time.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_second: u32,
    /// What is left, in billionths of a permit.
    nano_permits: u64,
    filled: Duration,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn full(per_second: u32) -> Self {
        Self {
            per_second,
            nano_permits: u64::from(per_second) * NANOS,
            filled: Duration::ZERO,
        }
    }

    /// Takes as many permits as are wanted and there, and says how many.
    pub fn take(&mut self, now: Duration, wanted: u64) -> u64 {
        self.fill(now);
        let taken = wanted.min(self.nano_permits / NANOS);
        self.nano_permits -= taken * NANOS;
        taken
    }

    fn fill(&mut self, now: Duration) {
        // Data threads look at the clock each for itself, so one may be behind.
        let passed = now.saturating_sub(self.filled);
        let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let gained = passed.saturating_mul(u64::from(self.per_second));
        let most = u64::from(self.per_second) * NANOS;
        self.nano_permits = self.nano_permits.saturating_add(gained).min(most);
        self.filled = self.filled.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Steps of up to a quarter of a second, at which up to 10,000 permits are asked for.
        #[test]
        fn gives_its_rate_and_at_most_one_second_more(
            per_second in prop_oneof![1..=5_u32, 1..=100_000_u32, Just(u32::MAX)],
            steps in prop::collection::vec((0..250_000_000_u64, 0..10_000_u64), 1..100),
        ) {
            let mut bucket = Bucket::full(per_second);
            let start = Duration::from_secs(1_000);
            let (mut now, mut taken, mut wanted) = (start, 0_u64, 0_u64);
            let mut never_short = true;
            for (ns, more) in steps {
                now += Duration::from_nanos(ns);
                let got = bucket.take(now, more);
                prop_assert!(got <= more);
                never_short &= got == more;
                wanted += more;
                taken += got;
                let rate = u128::from(per_second);
                let earned = (now - start).as_nanos() * rate / u128::from(NANOS);
                prop_assert!(u128::from(taken) <= rate + earned);
                if !never_short {
                    // Whoever was refused has been given all that there was.
                    prop_assert!(u128::from(taken) >= rate.min(u128::from(wanted)));
                }
            }
            prop_assert!(never_short || taken < wanted);
        }
    }

    #[test]
    fn a_clock_that_is_behind_gives_nothing_twice() {
        let mut bucket = Bucket::full(10);
        let at = Duration::from_millis;
        assert_eq!(bucket.take(at(1_000), 20), 10);
        assert_eq!(bucket.take(at(1_100), 20), 1);
        assert_eq!(bucket.take(at(1_000), 20), 0);
        assert_eq!(bucket.take(at(1_100), 20), 0);
        assert_eq!(bucket.take(Duration::MAX, 20), 10);
    }
}
