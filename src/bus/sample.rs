//! Which events are kept where not all are.
//!
//! Each event has a [`Point`]: with a key it is the key's hash, without one a throw of dice. A
//! share of the events are those whose points lie below a threshold. So events with equal keys
//! are kept or not together, a smaller share is part of a larger one, and as the hash has no
//! secret, every bus keeps the same keys, across restarts, too.
//!
//! What is kept stands for more than itself, by its weight: so sums of weights estimate what
//! there was. An event that has a weight already is one of those that another bus kept, and the
//! share is taken of these.
//!
//! Who chooses keys can choose which of them are kept: that is so with every rule by which other
//! buses keep the same ones. And who publishes can stamp its own events with any weight.

use xxhash_rust::xxh3::xxh3_64;

/// How many points there are: 2^64.
const POINTS: f64 = 18_446_744_073_709_551_616.0;

/// The largest weight: past 2^53 a double does not tell neighbouring counts apart.
const WEIGHT_MAX: f64 = 9_007_199_254_740_992.0;

/// How many events one stands for: at least 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Weight(f64);

impl Weight {
    /// Itself alone.
    pub const ONE: Weight = Weight(1.0);

    /// As a stamp tells it: what makes no sense there is 1.
    #[must_use]
    #[inline]
    pub fn of_stamp(weight: f64) -> Self {
        match weight > 1.0 {
            true => Self(weight.min(WEIGHT_MAX)),
            false => Self::ONE,
        }
    }

    /// As it goes into a stamp, which leaves 1 out.
    #[must_use]
    #[inline]
    pub fn to_stamp(self) -> f64 {
        match self == Self::ONE {
            true => 0.0,
            false => self.0,
        }
    }

    /// Of an event that is kept of others which have this one.
    #[must_use]
    #[inline]
    pub fn times(self, other: Self) -> Self {
        Self((self.0 * other.0).min(WEIGHT_MAX))
    }

    /// The larger one.
    #[must_use]
    #[inline]
    pub fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }
}

/// Where an event lies among all, evenly spread over 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point(u64);

impl Point {
    /// That of an event without a key, by an even throw of dice.
    #[must_use]
    #[inline]
    pub fn of_throw(throw: u64) -> Self {
        Self(throw)
    }

    /// That of an event with a key of this hash. Of the events of such a weight only those came
    /// whose points lie below a threshold: among these it lies here.
    #[must_use]
    #[inline]
    pub fn of_key(hash: KeyHash, weight: Weight) -> Self {
        if weight == Weight::ONE {
            return Self(hash.0);
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates at both ends; the last bits tell no shares apart"
        )]
        Self((hash.0 as f64 * weight.0) as u64)
    }
}

/// The hash of a key: XXH3 with 64 bits and no seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(u64);

impl KeyHash {
    /// That of this key.
    #[must_use]
    #[inline]
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }

    /// As a number.
    #[must_use]
    #[inline]
    pub fn get(self) -> u64 {
        self.0
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
        if share.is_nan() || share <= 0.0 || share > 1.0 {
            return None;
        }
        if share == 1.0 {
            return Some(Self::ALL);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "over 0 and under 2^64"
        )]
        let points = (share * POINTS) as u64;
        Some(Self {
            last: points.saturating_sub(1),
        })
    }

    /// Whether it is every event.
    #[must_use]
    #[inline]
    pub fn is_all(self) -> bool {
        self == Self::ALL
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
        ((last + 1.0) / POINTS).min(1.0)
    }

    /// How many events each one stands for that is kept.
    #[must_use]
    pub fn weight(self) -> Weight {
        Weight((1.0 / self.share()).min(WEIGHT_MAX))
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Even throws, always the same ones.
    fn throws() -> impl Iterator<Item = u64> {
        (0..u64::MAX).map(|number| KeyHash::of(&number.to_le_bytes()).get())
    }

    #[test]
    fn a_share_is_over_nothing_and_at_most_all() {
        for wrong in [
            f64::NAN,
            f64::INFINITY,
            -f64::INFINITY,
            -0.1,
            0.0,
            -0.0,
            1.1,
            7.0,
        ] {
            assert_eq!(Sample::of_share(wrong), None, "{wrong}");
        }
        assert_eq!(Sample::of_share(1.0), Some(Sample::ALL));
        for least in [f64::MIN_POSITIVE, 1e-300, 5e-324] {
            let sample = Sample::of_share(least).unwrap();
            assert!(sample.keeps(Point(0)) && !sample.keeps(Point(1)));
            assert_eq!(sample.weight(), Weight(WEIGHT_MAX));
        }
        let almost_all = Sample::of_share(1.0 - f64::EPSILON).unwrap();
        assert!(!almost_all.is_all() && !almost_all.keeps(Point(u64::MAX)));
        for share in [0.5, 0.25, 0.1, 1.0 / 3.0, 0.001] {
            let weight = Sample::of_share(share).unwrap().weight();
            assert!((weight.0 * share - 1.0).abs() < 1e-9, "{share}");
        }
        assert_eq!(Sample::ALL.weight(), Weight::ONE);
    }

    #[test]
    fn a_smaller_share_is_part_of_a_larger_one() {
        let shares = [0.001, 0.1, 0.5, 0.9, 1.0].map(|share| Sample::of_share(share).unwrap());
        for throw in throws().take(10_000).map(Point) {
            let kept: Vec<_> = shares.iter().map(|sample| sample.keeps(throw)).collect();
            assert!(kept.is_sorted(), "{kept:?}");
        }
    }

    #[test]
    fn a_weight_that_makes_no_sense_is_one() {
        for told in [f64::NAN, -1.0, 0.0, 0.5, 1.0, f64::NEG_INFINITY] {
            assert_eq!(Weight::of_stamp(told), Weight::ONE, "{told}");
        }
        assert_eq!(Weight::of_stamp(f64::INFINITY), Weight(WEIGHT_MAX));
        let most = Weight::of_stamp(1e300);
        assert_eq!(most.times(most), Weight(WEIGHT_MAX));
        assert_eq!(Weight::ONE.to_stamp(), 0.0);
        assert_eq!(Weight::of_stamp(2.5).to_stamp(), 2.5);
    }

    #[test]
    fn the_hash_of_a_key_is_that_of_every_bus() {
        // What the library of XXH3's author gives (`XXH3_64bits` of xxHash 0.8, by Python's
        // binding of it).
        for (key, hash) in [
            (&b""[..], 0x2d06_8005_38d3_94c2),
            (b"user-42", 0x50fe_4b21_cf7b_09cd),
            (&[b'a'; 300], 0xc1d1_7581_d8eb_7e21),
        ] {
            assert_eq!(KeyHash::of(key).get(), hash, "{key:?}");
        }
    }

    /// What a chain of buses keeps of keys, and how much it says that there was.
    #[test]
    fn a_share_of_a_share_of_keys_is_the_product_and_its_weights_tell_the_truth() {
        const KEYS: u32 = 200_000;
        let (first, second) = (0.2, 0.3);
        let [first, second] = [first, second].map(|share| Sample::of_share(share).unwrap());
        let (mut kept, mut estimate) = (0, 0.0);
        for hash in throws().take(KEYS as usize).map(KeyHash) {
            if !first.keeps(Point::of_key(hash, Weight::ONE)) {
                continue;
            }
            let weight = first.weight();
            if second.keeps(Point::of_key(hash, weight)) {
                kept += 1;
                estimate += weight.times(second.weight()).0;
            }
        }
        // Six standard deviations of a binomial count.
        let expected = f64::from(KEYS) * 0.06;
        assert!(
            (f64::from(kept) - expected).abs() < 6.0 * expected.sqrt(),
            "{kept}"
        );
        let error = estimate / f64::from(KEYS) - 1.0;
        assert!(error.abs() < 6.0 / expected.sqrt(), "{estimate}");
    }
}
