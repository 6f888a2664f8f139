//! What a flow keeps, whatever route its datagrams take.
//!
//! Owns the flow's counters, what is told of its drops, and how seldom a route that
//! fails is tried anew. It opens nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::log::PublisherLog;

/// The shortest time between two looks whether another route helps: far rarer than
/// events may come, and soon enough for a bus or an address that has changed.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) counters: Counters,
    pub(crate) log: PublisherLog,
    pub(crate) pace: Pace,
}

impl Account {
    pub(crate) fn new(sender: u64) -> Self {
        Self {
            counters: Counters::new(sender),
            log: PublisherLog::new(),
            pace: Pace::new(),
        }
    }
}

/// Says yes at most once a second, to one thread.
#[derive(Debug)]
pub(crate) struct Pace {
    began: Instant,
    /// In milliseconds since then.
    due_ms: AtomicU64,
}

impl Pace {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            due_ms: AtomicU64::new(0),
        }
    }

    /// A yes is a claim: the next one is due an interval later.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due_at(self.began.elapsed())
    }

    fn is_due_at(&self, now: Duration) -> bool {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (now_ms, order) = (millis(now), Ordering::Relaxed);
        let due_ms = self.due_ms.load(order);
        let next_ms = now_ms.saturating_add(millis(INTERVAL));
        now_ms >= due_ms
            && (self.due_ms)
                .compare_exchange(due_ms, next_ms, order, order)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_route_is_tried_once_a_second() {
        let pace = Pace::new();
        let ms = Duration::from_millis;
        let due = [0, 1, 999, 1_000, 1_001, 5_000].map(|now| pace.is_due_at(ms(now)));
        assert_eq!(due, [true, false, false, true, false, true]);
    }
}
