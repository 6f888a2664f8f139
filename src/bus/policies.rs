//! What an operator decides of topics: how many events, how old, and which go first when there
//! are too many.
//!
//! Owns the policies and the labels that their events are counted under. A label stays when its
//! policy goes, so sums hold.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hailmary_proto::topic;
use serde::{Deserialize, Serialize};

use super::bucket::Bucket;
use super::series::{Series, SeriesId};

/// Which topics' events go first when the bus cannot keep up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// The first to be thinned out.
    Low,
    /// Thinned out when that is not enough. Topics without a policy have it.
    #[default]
    Normal,
    /// Never thinned out.
    High,
}

/// What is decided of the topics that a pattern matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicPolicy {
    /// Which topics: a checked pattern.
    pub pattern: String,
    /// How many of their events pass, all topics of the policy together. `None`: no limit.
    pub events_per_second: Option<u32>,
    /// What becomes of them when the bus cannot keep up.
    pub priority: Priority,
    /// How old an event may be, by the time that it tells of itself. `None`: as old as it likes.
    pub age_max: Option<Duration>,
}

/// A policy in force.
#[derive(Debug)]
pub struct Policy {
    /// Where its topics' events are counted.
    pub label: SeriesId,
    decided: TopicPolicy,
    /// What is left of its rate, for all data threads.
    bucket: Option<Mutex<Bucket>>,
}

impl Policy {
    fn new(decided: &TopicPolicy, label: SeriesId) -> Self {
        Self {
            label,
            decided: decided.clone(),
            bucket: decided.events_per_second.map(Bucket::full).map(Mutex::new),
        }
    }

    /// What becomes of its topics' events when the bus cannot keep up.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.decided.priority
    }

    /// Whether it decides of each event, whatever the load.
    #[must_use]
    pub fn is_selective(&self) -> bool {
        self.bucket.is_some() || self.decided.age_max.is_some()
    }

    /// Whether an event is too old to be of use. One that does not tell its time is not.
    #[must_use]
    pub fn is_stale(&self, now_unix_nano: u64, made_unix_nano: u64) -> bool {
        let age = now_unix_nano.saturating_sub(made_unix_nano);
        let too_old = |most: Duration| u128::from(age) > most.as_nanos();
        made_unix_nano != 0 && self.decided.age_max.is_some_and(too_old)
    }

    /// How many of so many events pass.
    #[must_use]
    pub fn permit(&self, now: Duration, events: u64) -> u64 {
        let Some(bucket) = &self.bucket else {
            return events;
        };
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(now, events)
    }
}

/// A policy's place among those in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyId(usize);

/// The policies, in order: the first that matches a topic counts.
#[derive(Debug)]
pub struct Policies {
    all: Vec<Policy>,
    lowest: Option<Priority>,
    labels: Series,
}

impl Policies {
    /// These policies.
    #[must_use]
    pub fn new(decided: &[TopicPolicy]) -> Self {
        let mut labels = Series::new([], usize::MAX);
        let policy = |decided| labeled(decided, &mut labels);
        Self {
            all: decided.iter().map(policy).collect(),
            lowest: lowest(decided),
            labels,
        }
    }

    /// Puts these policies in the place of those before. What is left of a rate stays where the
    /// policy is the same.
    pub fn replace(&mut self, decided: &[TopicPolicy]) {
        let mut before = std::mem::take(&mut self.all);
        let mut policy = |decided: &TopicPolicy| {
            let same = before.iter().position(|policy| policy.decided == *decided);
            match same {
                Some(index) => before.swap_remove(index),
                None => labeled(decided, &mut self.labels),
            }
        };
        self.all = decided.iter().map(&mut policy).collect();
        self.lowest = lowest(decided);
    }

    /// The policy of a topic, if it has one.
    #[must_use]
    pub fn of(&self, topic: &[u8]) -> Option<PolicyId> {
        let matches = |policy: &Policy| topic::matches(policy.decided.pattern.as_bytes(), topic);
        self.all.iter().position(matches).map(PolicyId)
    }

    /// The policy in this place.
    #[must_use]
    pub fn get(&self, id: PolicyId) -> Option<&Policy> {
        self.all.get(id.0)
    }

    /// The priority of the topics that go first when the bus cannot keep up. None where all have
    /// the same.
    #[must_use]
    #[inline]
    pub fn lowest_priority(&self) -> Option<Priority> {
        self.lowest
    }

    /// The labels, by [`SeriesId::index`]. It only grows.
    #[must_use]
    pub fn labels(&self) -> &[Arc<str>] {
        self.labels.names()
    }
}

fn lowest(decided: &[TopicPolicy]) -> Option<Priority> {
    let has = |priority| decided.iter().any(|policy| policy.priority == priority);
    match (has(Priority::Low), has(Priority::High)) {
        (true, _) => Some(Priority::Low),
        (false, true) => Some(Priority::Normal),
        (false, false) => None,
    }
}

fn labeled(decided: &TopicPolicy, labels: &mut Series) -> Policy {
    Policy::new(decided, labels.assign(&decided.pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(pattern: &str, events_per_second: Option<u32>) -> TopicPolicy {
        TopicPolicy {
            pattern: pattern.to_owned(),
            events_per_second,
            age_max: Some(Duration::from_millis(5)),
            ..TopicPolicy::default()
        }
    }

    #[test]
    fn an_event_is_stale_once_it_is_older_than_it_may_be() {
        const MS: u64 = 1_000_000;
        let policies = Policies::new(&[decided("a", None)]);
        let policy = policies.get(policies.of(b"a").unwrap()).unwrap();
        let now = 100 * MS;
        assert!(!policy.is_stale(now, 95 * MS) && policy.is_stale(now, 95 * MS - 1));
        assert!(!policy.is_stale(now, 0), "its time is not told");
        assert!(!policy.is_stale(now, now + 1) && !policy.is_stale(now, u64::MAX));
        assert!(policy.is_stale(u64::MAX, 1));
    }

    #[test]
    fn what_is_left_of_a_rate_and_all_labels_outlast_a_change() {
        let now = Duration::from_secs(1);
        let mut policies = Policies::new(&[decided("a", Some(10)), decided("b", Some(10))]);
        let permit = |policies: &Policies, topic: &[u8], events| {
            let policy = policies.of(topic).and_then(|id| policies.get(id));
            policy.unwrap().permit(now, events)
        };
        assert_eq!(permit(&policies, b"a", 9), 9);
        assert_eq!(permit(&policies, b"b", 9), 9);
        policies.replace(&[
            decided("c", None),
            decided("b", Some(10)),
            decided("a", Some(11)),
        ]);
        assert_eq!(permit(&policies, b"b", 9), 1, "as it was");
        assert_eq!(permit(&policies, b"a", 20), 11, "another one");
        assert_eq!(permit(&policies, b"c", 20), 20);
        let labels: Vec<&str> = policies.labels().iter().map(|label| &**label).collect();
        assert_eq!(labels, ["other", "a", "b", "c"]);
        policies.replace(&[]);
        assert_eq!((policies.of(b"a"), policies.labels().len()), (None, 4));
    }
}
