//! How long a busy loop waits for a fuller batch, as a network card moderates interrupts.
//!
//! Decides and does not wait. Traffic that comes alone is never held up: only turns that keep
//! finding several datagrams, and have taken them all, are followed by a wait. It is halved where
//! a listener's buffer was found half full, and grows back slowly, so that no wait is so long
//! that the buffer overflows meanwhile.

use std::time::Duration;

/// Turns in a row that find several datagrams before the loop lingers: one such turn is chance, a
/// few are load.
const AFTER_TURNS: u32 = 4;

/// A wait grows by this part of the longest one.
const GROWTH: u32 = 64;

/// Less is not worth a system call.
const WAIT_MIN: Duration = Duration::from_micros(20);

/// Datagrams of one turn, as far as lingering goes by them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// How many there were.
    pub frames: usize,
    /// Whether some listener's buffer was half full.
    pub is_crowded: bool,
}

/// The present wait.
#[derive(Debug)]
pub struct Linger {
    longest: Duration,
    wait: Duration,
    busy_turns: u32,
}

impl Linger {
    /// Waits of at most so long. Zero: never.
    #[must_use]
    pub fn new(longest: Duration) -> Self {
        Self {
            longest,
            wait: longest,
            busy_turns: 0,
        }
    }

    /// How long to wait after a turn that found this, if it took all there was.
    pub fn after(&mut self, found: Found) -> Option<Duration> {
        self.busy_turns = match found.frames {
            0 | 1 => 0,
            _ => self.busy_turns.saturating_add(1),
        };
        self.wait = if found.is_crowded {
            self.wait / 2
        } else {
            self.longest.min(self.wait + self.longest / GROWTH)
        };
        let is_load = self.busy_turns >= AFTER_TURNS;
        (is_load && self.wait >= WAIT_MIN).then_some(self.wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(500);

    fn found(frames: usize) -> Found {
        Found {
            frames,
            is_crowded: false,
        }
    }

    fn crowded(frames: usize) -> Found {
        Found {
            frames,
            is_crowded: true,
        }
    }

    #[test]
    fn several_in_turns_on_end_are_load_and_one_alone_is_not() {
        let mut linger = Linger::new(LONGEST);
        let waits: Vec<_> = (0..5).map(|_| linger.after(found(2))).collect();
        assert_eq!(waits, [None, None, None, Some(LONGEST), Some(LONGEST)]);
        assert_eq!(linger.after(found(1)), None);
        assert_eq!(linger.after(found(2)), None, "as at first");
    }

    #[test]
    fn never_means_never() {
        let mut linger = Linger::new(Duration::ZERO);
        assert!((0..100).all(|_| linger.after(found(9)).is_none()));
    }

    #[test]
    fn a_wait_gives_way_to_a_full_buffer_at_once_and_comes_back_slowly() {
        let mut linger = Linger::new(LONGEST);
        for _ in 0..4 {
            linger.after(found(9));
        }
        assert_eq!(linger.after(crowded(9)), Some(LONGEST / 2));
        assert_eq!(linger.after(crowded(9)), Some(LONGEST / 4));
        let next = linger.after(found(9));
        assert_eq!(next, Some(LONGEST / 4 + LONGEST / GROWTH));
        for _ in 0..9 {
            linger.after(crowded(9));
        }
        assert_eq!(linger.after(crowded(9)), None, "too short");
        let back = (0..).take_while(|_| linger.after(found(9)) != Some(LONGEST));
        assert!(back.count() < 2 * GROWTH as usize);
    }
}
