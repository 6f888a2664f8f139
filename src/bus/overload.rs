//! What is let go when there is more than the bus can take: which topics, and how much of them.
//!
//! The bus is behind when turn after turn it does not empty its sockets. It then keeps a smaller
//! share of the events of topics with low priority, step by step; when hardly any of these are
//! left, of those with normal priority; never of those with high priority. So what is lost is
//! chosen, by key, and the stamp's weight says how much: what meets a full buffer is anybody's.
//!
//! Steps up are quick, and quicker while they do not suffice; steps down are single ones and
//! slow. Where no topic has a priority there is nothing to choose by, and no step is taken.

use std::time::Duration;

use super::policies::Priority;
use super::sample::{Sample, Weight};

/// Turns on end that leave something in a socket before the bus counts as behind: what a full
/// buffer of the default size holds takes more, a burst that is soon over fewer.
const TURNS_BEHIND: u32 = 16;

/// How long the bus is not behind before it takes a step down.
const CALM: Duration = Duration::from_millis(100);

/// Each step keeps seven eighths of what the one before kept.
const STEP_SHARE: f64 = 0.875;

/// Steps by which one priority's topics are thinned out: the last one keeps 1 event of 72.
const STEPS: u32 = 32;

/// The most steps taken at once.
const STRIDE_MAX: u32 = 8;

/// How much is let go: 0 is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u32);

impl Level {
    /// The highest.
    pub const MAX: Level = Level(2 * STEPS);

    /// As a number, for people: 0 to 32 while only topics of low priority are thinned out, up to
    /// 64 where those of normal priority are, too.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// The level with this number, if there is one.
    #[must_use]
    pub fn new(number: u32) -> Self {
        Self(number).min(Self::MAX)
    }

    /// What is kept of topics of this priority.
    #[must_use]
    pub fn sample(self, priority: Priority) -> Sample {
        let steps = match priority {
            Priority::Low => self.0.min(STEPS),
            Priority::Normal => self.0.saturating_sub(STEPS),
            Priority::High => 0,
        };
        let share = (0..steps).fold(1.0, |share, _| share * STEP_SHARE);
        Sample::of_share(share).unwrap_or(Sample::ALL)
    }

    /// Whether topics that have no priority of their own are thinned out.
    #[must_use]
    pub fn reaches_normal(self) -> bool {
        self.0 > STEPS
    }
}

/// What is kept at one level, by priority.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thinning {
    low: Kept,
    normal: Kept,
}

/// A share, and what each event stands for that is in it.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Which events are kept.
    pub sample: Sample,
    /// How many events each of these stands for.
    pub weight: Weight,
}

impl Kept {
    /// Every event.
    pub const ALL: Kept = Kept {
        sample: Sample::ALL,
        weight: Weight::ONE,
    };
}

impl Default for Kept {
    fn default() -> Self {
        Self::ALL
    }
}

impl Thinning {
    /// What is kept at this level.
    #[must_use]
    pub fn at(level: Level) -> Self {
        let kept = |priority| {
            let sample = level.sample(priority);
            Kept {
                weight: sample.weight(),
                sample,
            }
        };
        Self {
            low: kept(Priority::Low),
            normal: kept(Priority::Normal),
        }
    }

    /// What is kept of topics of this priority.
    #[must_use]
    #[inline]
    pub fn of(&self, priority: Priority) -> Kept {
        match priority {
            Priority::Low => self.low,
            Priority::Normal => self.normal,
            Priority::High => Kept::ALL,
        }
    }
}

/// One data thread's level, turn by turn.
#[derive(Debug, Default)]
pub struct Overload {
    level: Level,
    turns_behind: u32,
    stride: u32,
    /// Since when it is not behind, or has been at this level.
    calm_since: Duration,
}

impl Overload {
    /// The level as it is.
    #[must_use]
    #[inline]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Notes a turn, which left something in a socket or did not, and says whether the level is
    /// another one now.
    #[inline]
    pub fn note_turn(&mut self, now: Duration, is_behind: bool) -> bool {
        if !is_behind && self.level == Level::default() {
            self.turns_behind = 0;
            return false;
        }
        self.step(now, is_behind)
    }

    #[cold]
    fn step(&mut self, now: Duration, is_behind: bool) -> bool {
        let before = self.level;
        if is_behind {
            self.turns_behind += 1;
        } else {
            self.turns_behind = 0;
        }
        if self.turns_behind >= TURNS_BEHIND {
            self.turns_behind = 0;
            self.stride = (2 * self.stride).clamp(1, STRIDE_MAX);
            self.level = Level::new(self.level.0 + self.stride);
            self.calm_since = now;
        } else if !is_behind {
            self.step_down(now);
        }
        self.level != before
    }

    /// One step for each time of calm that has passed: some may have while the thread slept.
    fn step_down(&mut self, now: Duration) {
        while self.level > Level::default() && now.saturating_sub(self.calm_since) >= CALM {
            self.calm_since += CALM;
            self.level.0 -= 1;
            self.stride = 0;
        }
    }

    /// When to look again though nothing comes: so that a level does not outlast its load.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.level > Level::default()).then(|| self.calm_since + CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_micros(200);

    /// A bus that keeps up with what is left at a level, and is behind with more.
    fn settle(
        overload: &mut Overload,
        mut now: Duration,
        enough: u32,
        turns: u32,
    ) -> (Duration, Vec<u32>) {
        let mut levels = Vec::new();
        for _ in 0..turns {
            now += TURN;
            let is_behind = overload.level().get() < enough;
            overload.note_turn(now, is_behind);
            levels.push(overload.level().get());
        }
        (now, levels)
    }

    #[test]
    fn a_burst_is_no_overload() {
        let mut overload = Overload::default();
        for turn in 0..1_000 {
            let is_behind = turn % TURNS_BEHIND != 0;
            assert!(!overload.note_turn(TURN * turn, is_behind));
        }
        assert_eq!(
            (overload.level(), overload.poll_timeout()),
            (Level(0), None)
        );
    }

    #[test]
    fn finds_the_level_that_is_enough_and_stays_about_it() {
        for enough in [1, 5, 20, 40, 64] {
            let mut overload = Overload::default();
            let (now, levels) = settle(&mut overload, Duration::ZERO, enough, 20 * TURNS_BEHIND);
            assert!(
                levels.iter().any(|level| *level >= enough),
                "{enough}: {levels:?}"
            );
            let (now, _) = settle(&mut overload, now, enough, 20_000);
            let (_, levels) = settle(&mut overload, now, enough, 20_000);
            let (least, most) = (levels.iter().min().unwrap(), levels.iter().max().unwrap());
            assert!(
                enough - least <= 1 && most - enough <= 1,
                "{enough}: {least} to {most}"
            );
            let behind = levels.iter().filter(|level| **level < enough).count();
            // A step down is tried once in each time of calm, and taken back in some turns.
            assert!(behind < 20_000 / 10, "{behind}");
        }
    }

    #[test]
    fn comes_down_with_time_though_nothing_comes() {
        let mut overload = Overload::default();
        let (mut now, _) = settle(&mut overload, Duration::ZERO, 30, 1_000);
        let first = overload.level().get();
        assert!(first >= 30);
        let mut looks = 0;
        while let Some(at) = overload.poll_timeout() {
            now = now.max(at);
            overload.note_turn(now, false);
            looks += 1;
        }
        assert_eq!(overload.level(), Level(0));
        assert!(looks <= first, "{looks} looks for {first} steps");
        let mut overload = Overload::default();
        settle(&mut overload, Duration::ZERO, 30, 1_000);
        overload.note_turn(now + 100 * CALM, false);
        assert_eq!(
            overload.level(),
            Level(0),
            "all steps at once after a long sleep"
        );
    }

    #[test]
    fn low_goes_first_then_normal_and_high_never() {
        let at = |level, priority| Level::new(level).sample(priority);
        assert!(at(0, Priority::Low).is_all());
        assert!(!at(1, Priority::Low).is_all() && at(32, Priority::Normal).is_all());
        assert!(!at(33, Priority::Normal).is_all());
        assert!(at(64, Priority::High).is_all() && at(1_000, Priority::High).is_all());
        assert_eq!(at(32, Priority::Low), at(64, Priority::Low));
        assert_eq!(at(64, Priority::Low), at(64, Priority::Normal));
        let shares = (0..=64).map(|level| at(level, Priority::Low));
        assert!(shares.is_sorted_by(|one, next| one >= next));
    }
}
