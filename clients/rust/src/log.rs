//! What is said of errors, with the feature `tracing`; without it, nothing.
//!
//! Owns how seldom: the first of each kind at once, then one a minute at most,
//! with the number of those that were not told. It decides nothing and counts
//! nothing that anybody relies on: that is what `stats` are for.

#[cfg(feature = "tracing")]
pub(crate) use on::{PublisherLog, SubscriberLog};

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{PublisherLog, SubscriberLog};

#[cfg(not(feature = "tracing"))]
mod off {
    use crate::counters::PublishError;
    use crate::lease::SubscriptionCounts;

    #[derive(Debug)]
    pub(crate) struct PublisherLog;

    impl PublisherLog {
        pub(crate) fn new() -> Self {
            Self
        }

        pub(crate) fn dropped(&self, _: PublishError) {}
    }

    #[derive(Debug)]
    pub(crate) struct SubscriberLog;

    impl SubscriberLog {
        pub(crate) fn new() -> Self {
            Self
        }

        #[inline]
        pub(crate) fn look(&mut self, _: SubscriptionCounts) {}
    }
}

#[cfg(feature = "tracing")]
mod on {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use crate::counters::PublishError;
    use crate::lease::SubscriptionCounts;

    /// The shortest time between two messages of one kind.
    const INTERVAL: Duration = Duration::from_secs(60);

    /// What the messages are filed under.
    const TARGET: &str = "hailmary";

    /// One kind of message.
    #[derive(Debug, Default)]
    struct Kind {
        /// In milliseconds since the log began.
        due_ms: AtomicU64,
        suppressed: AtomicU64,
    }

    impl Kind {
        /// Whether to tell of it now, and if so, how many times it was not told.
        /// The claim comes first: should telling lead to the same error again, as
        /// where logs are published, that one is kept quiet.
        fn admit(&self, now: Duration) -> Option<u64> {
            let now_ms = millis(now);
            let due_ms = self.due_ms.load(Ordering::Relaxed);
            let next_ms = now_ms.saturating_add(millis(INTERVAL));
            let order = Ordering::Relaxed;
            let is_claimed = now_ms >= due_ms
                && (self.due_ms)
                    .compare_exchange(due_ms, next_ms, order, order)
                    .is_ok();
            if is_claimed {
                return Some(self.suppressed.swap(0, Ordering::Relaxed));
            }
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }

    fn millis(duration: Duration) -> u64 {
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
    }

    #[derive(Debug)]
    pub(crate) struct PublisherLog {
        began: Instant,
        invalid: Kind,
        too_large: Kind,
        would_block: Kind,
        no_buffer: Kind,
        refused: Kind,
        unreachable: Kind,
        failed: Kind,
    }

    impl PublisherLog {
        pub(crate) fn new() -> Self {
            Self {
                began: Instant::now(),
                invalid: Kind::default(),
                too_large: Kind::default(),
                would_block: Kind::default(),
                no_buffer: Kind::default(),
                refused: Kind::default(),
                unreachable: Kind::default(),
                failed: Kind::default(),
            }
        }

        pub(crate) fn dropped(&self, reason: PublishError) {
            let kind = match reason {
                PublishError::Invalid(_) => &self.invalid,
                PublishError::TooLarge => &self.too_large,
                PublishError::WouldBlock => &self.would_block,
                PublishError::NoBuffer => &self.no_buffer,
                PublishError::Refused => &self.refused,
                PublishError::Unreachable => &self.unreachable,
                PublishError::Failed(_) => &self.failed,
            };
            if let Some(suppressed) = kind.admit(self.began.elapsed()) {
                tracing::warn!(target: TARGET, %reason, suppressed, "event dropped");
            }
        }
    }

    /// What was told of a subscription so far.
    #[derive(Debug)]
    pub(crate) struct SubscriberLog {
        began: Instant,
        lapses: u64,
        bus_restarts: u64,
        lapse: Kind,
        restart: Kind,
    }

    impl SubscriberLog {
        pub(crate) fn new() -> Self {
            Self {
                began: Instant::now(),
                lapses: 0,
                bus_restarts: 0,
                lapse: Kind::default(),
                restart: Kind::default(),
            }
        }

        /// Tells of what has happened since it last looked.
        pub(crate) fn look(&mut self, counts: SubscriptionCounts) {
            if counts.lapses != self.lapses {
                self.lapses = counts.lapses;
                if let Some(suppressed) = self.lapse.admit(self.began.elapsed()) {
                    tracing::warn!(target: TARGET, suppressed, "lease lapsed");
                }
            }
            if counts.bus_restarts != self.bus_restarts {
                self.bus_restarts = counts.bus_restarts;
                if let Some(suppressed) = self.restart.admit(self.began.elapsed()) {
                    tracing::info!(target: TARGET, suppressed, "bus restarted");
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_first_is_told_and_then_one_a_minute_with_the_rest_as_a_number() {
            let kind = Kind::default();
            let secs = Duration::from_secs;
            let told = [0, 1, 59, 60, 61, 200].map(|now| kind.admit(secs(now)));
            assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
        }
    }
}
