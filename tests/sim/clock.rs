//! Time: the world's, and what the nodes make of it.

use std::time::Duration;

/// The world's time, in ns since the history began.
pub type Nanos = u64;

pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000 * MS;

/// Unix time at which every history begins, in ns.
const EPOCH_UNIX_NANO: u64 = 1_700_000_000 * SECOND;

/// A node's clocks: one that goes too fast or too slow, and leaps ahead at times, and the wall's, which
/// jumps.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began: Nanos,
    /// How much too fast it goes, in millionths.
    skew_ppm: i64,
    /// How far it has leapt.
    ahead: Duration,
    /// How far the wall clock is off, in ns.
    pub wall_off: i64,
}

impl Clock {
    /// One that begins at 0 now, as that of a process.
    pub fn start(began: Nanos, skew_ppm: i64, wall_off: i64) -> Self {
        Self {
            began,
            skew_ppm,
            ahead: Duration::ZERO,
            wall_off,
        }
    }

    /// Leaps ahead.
    pub fn leap(&mut self, by: Duration) {
        self.ahead += by;
    }

    /// The time since it began, by itself.
    pub fn local(&self, at: Nanos) -> Duration {
        let passed = i128::from(at.saturating_sub(self.began));
        let local = passed + passed * i128::from(self.skew_ppm) / 1_000_000;
        Duration::from_nanos(local as u64) + self.ahead
    }

    /// The world's first time at which this one shows `local` or later.
    pub fn world(&self, local: Duration) -> Nanos {
        let local = local.saturating_sub(self.ahead);
        let target = local + self.ahead;
        let local = i128::try_from(local.as_nanos()).unwrap_or(i128::from(i64::MAX));
        let estimate = local * 1_000_000 / (1_000_000 + i128::from(self.skew_ppm));
        let mut at = self.began.saturating_add(estimate as u64).saturating_sub(2);
        while self.local(at) < target {
            at += 1;
        }
        at.max(self.began)
    }

    /// The wall clock, in ns of Unix time.
    pub fn unix_nano(&self, at: Nanos) -> u64 {
        (EPOCH_UNIX_NANO + at).saturating_add_signed(self.wall_off)
    }
}
