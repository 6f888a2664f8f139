//! What is let go when there is more than the bus can take: which topics, and how much of them.
//!
//! The bus cannot keep up when turn after turn it does not empty its sockets, and what waits in
//! them fills half of a buffer and grows. It then keeps a smaller share of the events of topics
//! with low priority, step by step; when hardly any of these are left, of those with normal
//! priority; never of those with high priority. So what is lost is chosen, by key, and the stamp's
//! weight says how much: what meets a full buffer is anybody's.
//!
//! Half a buffer that shrinks is no reason for a step: the bus was held up, and is catching up.
//! Steps down are small, and taken while sockets are emptied. Where no topic has a
//! priority there is nothing to choose by, and no step is taken.

use std::time::Duration;

use super::policies::Priority;
use super::sample::{Sample, Weight};

/// Turns on end that leave something in a socket before it is looked how much: so few that a
/// buffer of the default size does not fill up in between.
const TURNS_BEHIND: u32 = 8;

/// How long after a step up the next one may be taken: by then the one before shows.
const PAUSE: Duration = Duration::from_millis(10);

/// How long after a step a bus that is not behind takes one down.
const CALM: Duration = Duration::from_millis(50);

/// A step down is this part of the level, and at least 1: from the highest level it takes a
/// second, and about a low one it changes the load by little.
const DOWN: u32 = 8;

/// Each step keeps seven eighths of what the one before kept.
const STEP_SHARE: f64 = 0.875;

/// Steps by which one priority's topics are thinned out: the last one keeps 1 event of 72.
const STEPS: u32 = 32;

/// Steps taken at once where a buffer is half full, and where it is nearly full.
const STRIDE: u32 = 2;
const LONG_STRIDE: u32 = 6;

/// How full the fullest buffer of a data thread is, in 256ths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fill(u8);

impl Fill {
    const QUARTER: Fill = Fill(64);
    const HALF: Fill = Fill(128);
    const NEARLY_FULL: Fill = Fill(224);

    /// So much of so much. Where the system does not tell, all of it: then being behind is all
    /// that is known.
    #[must_use]
    pub fn of(used: u32, size: u32) -> Self {
        let parts = u64::from(used) * 256 / u64::from(size.max(1));
        Self(u8::try_from(parts).unwrap_or(u8::MAX))
    }
}

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

    /// The level with this number, or the highest where there is none.
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

    /// Which topics are thinned out.
    #[must_use]
    pub fn reach(self) -> Reach {
        match self.0 {
            0 => Reach::None,
            1..=STEPS => Reach::Low,
            _ => Reach::Normal,
        }
    }
}

/// Which topics are thinned out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// None.
    #[default]
    None,
    /// Those of low priority.
    Low,
    /// Those of normal priority, too.
    Normal,
}

impl Reach {
    /// Whether topics of this priority are among them.
    #[must_use]
    pub fn includes(self, priority: Priority) -> bool {
        match priority {
            Priority::Low => self != Reach::None,
            Priority::Normal => self == Reach::Normal,
            Priority::High => false,
        }
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
#[derive(Debug)]
pub struct Overload {
    level: Level,
    /// The level from which on something goes: see [`base`].
    base: u32,
    turns_behind: u32,
    /// As of the last look, since the sockets were empty.
    fill: Fill,
    /// When the last step up was taken.
    stepped_up: Duration,
    /// Since when there has been no step, and not much in the buffers.
    calm_since: Duration,
}

impl Default for Overload {
    fn default() -> Self {
        Self {
            level: Level::default(),
            base: 0,
            turns_behind: 0,
            fill: Fill(0),
            stepped_up: Duration::ZERO,
            calm_since: Duration::ZERO,
        }
    }
}

impl Overload {
    /// The level as it is.
    #[must_use]
    #[inline]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Notes a turn, which left something in a socket or did not, and says whether the level is
    /// another one now. `lowest` is the priority of the topics that go first, if there are any to
    /// choose by. `fill` is asked for once in some turns that left something.
    #[inline]
    pub fn note_turn(
        &mut self,
        now: Duration,
        is_behind: bool,
        lowest: Option<Priority>,
        fill: impl FnOnce() -> Fill,
    ) -> bool {
        match lowest {
            Some(lowest) if is_behind => {
                self.turns_behind += 1;
                self.turns_behind >= TURNS_BEHIND && self.note_fill(now, base(lowest), fill())
            }
            _ => {
                let was_behind = std::mem::take(&mut self.turns_behind) > 0;
                let was_behind = std::mem::replace(&mut self.fill, Fill(0)) > Fill(0) || was_behind;
                if was_behind {
                    // No steps are owed for the time in which something waited, but one.
                    self.calm_since = self.calm_since.max(now.saturating_sub(CALM));
                }
                self.level > Level::default() && self.step_down(now)
            }
        }
    }

    #[cold]
    fn note_fill(&mut self, now: Duration, base: u32, fill: Fill) -> bool {
        self.turns_behind = 0;
        let before = std::mem::replace(&mut self.fill, fill);
        if fill >= Fill::QUARTER {
            self.calm_since = now;
        }
        // One that stays full cannot grow.
        let is_growing = fill > before || (fill == before && fill >= Fill::NEARLY_FULL);
        let is_early = self.level > Level::default() && now.saturating_sub(self.stepped_up) < PAUSE;
        if fill < Fill::HALF || !is_growing || is_early || self.level == Level::MAX {
            return false;
        }
        let stride = match fill >= Fill::NEARLY_FULL {
            true => LONG_STRIDE,
            false => STRIDE,
        };
        self.base = base;
        self.level = Level::new(self.level.0.max(base) + stride);
        self.stepped_up = now;
        true
    }

    /// One step for each time of calm that has passed: some may have while the thread slept.
    #[cold]
    fn step_down(&mut self, now: Duration) -> bool {
        let before = self.level;
        while self.level > Level::default() && now.saturating_sub(self.calm_since) >= CALM {
            self.calm_since += CALM;
            let over = self.level.0.saturating_sub(self.base);
            self.level = match over - over.div_ceil(DOWN) {
                0 => Level::default(),
                over => Level(self.base + over),
            };
        }
        self.level != before
    }

    /// When to look again though nothing comes: so that a level does not outlast its load.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.level > Level::default()).then(|| self.calm_since + CALM)
    }
}

/// The level that lets nothing go yet where topics of this priority go first.
fn base(lowest: Priority) -> u32 {
    match lowest {
        Priority::Low => 0,
        Priority::Normal | Priority::High => STEPS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_micros(200);

    /// What a turn takes out of the buffer, and how much the buffer holds: 50 turns' worth.
    const BATCH: u32 = 128;
    const BUFFER: u32 = 50 * BATCH;

    /// A bus whose turn takes 200 us whatever it finds, with a buffer of its own, under a load of
    /// which as much comes as is let pass. Real ones lose the time of what they let go, too.
    struct Model {
        overload: Overload,
        now: Duration,
        /// Parts of a datagram that are still to come.
        due: f64,
        waiting: u32,
        lost: u32,
        levels: Vec<u32>,
        /// Priority of the topics that go first.
        lowest: Priority,
    }

    impl Model {
        fn new() -> Self {
            Self {
                lowest: Priority::Low,
                overload: Overload::default(),
                now: Duration::ZERO,
                due: 0.0,
                waiting: 0,
                lost: 0,
                levels: Vec::new(),
            }
        }

        /// So many turns, in each of which so many datagrams of low priority and of high come.
        fn run(&mut self, turns: u32, low: f64, high: f64) {
            for _ in 0..turns {
                self.now += TURN;
                let kept = 1.0
                    / Thinning::at(self.overload.level())
                        .of(self.lowest)
                        .weight
                        .to_stamp()
                        .max(1.0);
                self.due += low * kept + high;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "some thousands"
                )]
                let came = self.due as u32;
                self.due -= f64::from(came);
                self.waiting += came;
                self.lost += self.waiting.saturating_sub(BUFFER);
                self.waiting = self.waiting.min(BUFFER);
                let is_behind = self.waiting >= BATCH;
                self.waiting = self.waiting.saturating_sub(BATCH);
                let fill = Fill::of(self.waiting, BUFFER);
                self.overload
                    .note_turn(self.now, is_behind, Some(self.lowest), || fill);
                self.levels.push(self.overload.level().get());
            }
        }
    }

    #[test]
    fn whoever_keeps_up_or_catches_up_lets_nothing_go() {
        let mut model = Model::new();
        for _ in 0..20 {
            // Held up till the buffer is full, and behind till that is gone.
            model.waiting = BUFFER;
            model.run(5_000, 60.0, 60.0);
        }
        let most = model.levels.iter().max().unwrap();
        assert!(
            *most <= LONG_STRIDE,
            "at most one step for each time that it was held up: {most}"
        );
        assert!(model.levels.ends_with(&[0; 1_000]), "and soon none");
        assert!(
            !Overload::default().note_turn(TURN, true, Some(Priority::Low), || Fill::of(1, 1)),
            "one turn is none"
        );
    }

    #[test]
    fn finds_what_is_enough_and_stays_about_it() {
        for (low, high) in [(300.0, 20.0), (200.0, 100.0), (150.0, 0.0), (4_000.0, 20.0)] {
            let mut model = Model::new();
            let pause = PAUSE.as_secs_f64() / TURN.as_secs_f64();
            model.run(2_000, low, high);
            let at_first = std::mem::take(&mut model.lost);
            assert!(
                f64::from(at_first) < f64::from(STEPS / LONG_STRIDE) * pause * (low + high),
                "{low}, {high}: {at_first} lost at first"
            );
            model.levels.clear();
            model.run(50_000, low, high);
            assert_eq!(model.lost, 0, "{low}, {high}");
            // What passes is what the bus can take, but for a tenth.
            let passing = model.levels.iter().map(|level| {
                let kept = Level::new(*level).sample(Priority::Low).share();
                (low * kept + high).min(BATCH.into())
            });
            let mean = passing.sum::<f64>() / model.levels.len() as f64;
            assert!(
                mean > 0.9 * f64::from(BATCH),
                "{low}, {high}: {mean} of {BATCH}"
            );
        }
    }

    #[test]
    fn falls_in_small_steps_while_much_comes() {
        // Hardly more than the bus can take, most of it high: the buffer is half full for long.
        let mut model = Model::new();
        model.run(50_000, 10.0, 122.0);
        let falls = model
            .levels
            .windows(2)
            .map(|two| two[0].saturating_sub(two[1]));
        assert_eq!(falls.max(), Some(1));
        assert_eq!(model.lost, 0);
    }

    #[test]
    fn where_nothing_is_low_the_first_step_is_felt() {
        let mut model = Model::new();
        model.lowest = Priority::Normal;
        model.run(2_000, 200.0, 30.0);
        let first = model.levels.iter().find(|level| **level > 0).unwrap();
        assert_eq!(*first, STEPS + STRIDE);
        let pauses = 2.0 * PAUSE.as_secs_f64() / TURN.as_secs_f64();
        assert!(f64::from(model.lost) < pauses * 230.0, "{}", model.lost);
        model.run(20_000, 10.0, 10.0);
        assert!(model.levels.ends_with(&[0; 1_000]));
    }

    #[test]
    fn comes_down_with_time_though_nothing_comes() {
        let mut model = Model::new();
        model.run(1_000, 1_000.0, 0.0);
        let (mut overload, first) = (model.overload, *model.levels.last().unwrap());
        assert!(first > 8, "{first}");
        let mut looks = 0;
        while let Some(at) = overload.poll_timeout() {
            model.now = model.now.max(at);
            overload.note_turn(model.now, false, Some(Priority::Low), || Fill(0));
            looks += 1;
        }
        assert_eq!(overload.level(), Level(0));
        assert!(
            looks <= 2 * first.ilog2() * DOWN,
            "{looks} looks for level {first}"
        );
        let mut overload = Overload {
            level: Level(20),
            ..Overload::default()
        };
        overload.note_turn(100 * CALM, false, Some(Priority::Low), || Fill(0));
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
