//! How the topics seen come from the data threads to whoever asks for them.
//!
//! As with the [ledger](crate::ledger), a data thread adds what is new of its own to a
//! [`Mailbox`], and taking the mail exchanges two pointers, so that it never holds up a data
//! thread. What is in the mail is bounded, taken or not.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bus::seen::TopicsSeen;

fn empty() -> Box<TopicsSeen> {
    Box::new(TopicsSeen::new(RandomState::new().hash_one(0)))
}

/// The topics that data threads have seen and nobody has taken yet.
#[derive(Debug)]
pub struct Mailbox(Mutex<Box<TopicsSeen>>);

impl Default for Mailbox {
    fn default() -> Self {
        Self(Mutex::new(empty()))
    }
}

impl Mailbox {
    /// Takes over what a data thread has seen, and leaves it with nothing.
    pub fn hand_over(&self, seen: &mut TopicsSeen) {
        if !seen.is_empty() {
            self.lock().merge(seen);
            seen.clear();
        }
    }

    /// Adds what has come since the last time to `totals`.
    pub fn take_into(&self, totals: &mut Totals) {
        totals.spare.clear();
        std::mem::swap(&mut *self.lock(), &mut totals.spare);
        totals.seen.merge(&totals.spare);
    }

    fn lock(&self) -> MutexGuard<'_, Box<TopicsSeen>> {
        // Whatever happened to the thread that wrote them, these are estimates for people.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The topics seen since the start, and the mail's next bag.
#[derive(Debug)]
pub struct Totals {
    /// As of the last taking.
    pub seen: Box<TopicsSeen>,
    spare: Box<TopicsSeen>,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            seen: empty(),
            spare: empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::limits::SEEN_TOPICS_MAX;

    fn events(totals: &Totals) -> Vec<u64> {
        let counters = totals.seen.busiest.counters().iter();
        let mut events: Vec<_> = counters.map(|counter| counter.events()).collect();
        events.sort_unstable();
        events
    }

    #[test]
    fn nothing_is_told_twice_or_left_behind() {
        let (mailbox, mut totals) = (Mailbox::default(), Totals::default());
        let mut workers = [1, 2].map(TopicsSeen::new);
        for round in 1..=5 {
            for (seen, topic) in workers.iter_mut().zip(["a", "b"]) {
                seen.count_routed(topic.as_bytes(), 1, 1);
                seen.count_routed(b"both", 2, 1);
                mailbox.hand_over(seen);
                mailbox.hand_over(seen);
            }
            if round % 2 == 1 {
                mailbox.take_into(&mut totals);
                mailbox.take_into(&mut totals);
                assert_eq!(events(&totals), [round, round, 4 * round]);
            }
        }
    }

    #[test]
    fn mail_that_nobody_takes_is_bounded() {
        let (mailbox, mut seen) = (Mailbox::default(), TopicsSeen::new(1));
        for number in 0..4 * SEEN_TOPICS_MAX {
            seen.count_routed(format!("a.{number}").as_bytes(), 1, 0);
            if number % 100 == 0 {
                mailbox.hand_over(&mut seen);
            }
        }
        let mut totals = Totals::default();
        mailbox.take_into(&mut totals);
        assert!(totals.seen.unmatched.counters().len() <= SEEN_TOPICS_MAX);
        assert!(totals.seen.unmatched.error() > 0);
    }
}
