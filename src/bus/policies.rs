//! What an operator decides of topics: how many events, how old, and which go first when there
//! are too many.
//!
//! Owns the policies and the labels that their events are counted under. A label stays when its
//! policy goes, so sums hold.

use std::sync::Arc;
use std::time::Duration;

use hailmary_proto::topic;
use serde::{Deserialize, Serialize};

use super::series::{Series, SeriesId};

/// Which topics' events go first when the bus cannot keep up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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
#[derive(Clone, Debug)]
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

/// The policies, in order: the first that matches a topic counts.
#[derive(Debug)]
pub struct Policies {
    all: Vec<(TopicPolicy, SeriesId)>,
    labels: Series,
}

impl Policies {
    /// These policies.
    #[must_use]
    pub fn new(policies: &[TopicPolicy]) -> Self {
        let mut new = Self {
            all: Vec::new(),
            labels: Series::new([], usize::MAX),
        };
        new.reconfigure(policies);
        new
    }

    /// These policies from now on, each with the label that its pattern had before.
    pub fn reconfigure(&mut self, policies: &[TopicPolicy]) {
        let labels = &mut self.labels;
        let label = |policy: &TopicPolicy| (policy.clone(), labels.assign(&policy.pattern));
        self.all = policies.iter().map(label).collect();
    }

    /// Where a topic's events are counted, and what is decided of it.
    #[must_use]
    pub fn of(&self, topic: &[u8]) -> (SeriesId, Option<&TopicPolicy>) {
        let covers = |policy: &TopicPolicy| topic::matches(policy.pattern.as_bytes(), topic);
        let first = self.all.iter().find(|(policy, _)| covers(policy));
        first.map_or((SeriesId::OTHER, None), |(policy, label)| {
            (*label, Some(policy))
        })
    }

    /// The labels, by [`SeriesId::index`]. It only grows.
    #[must_use]
    pub fn labels(&self) -> &[Arc<str>] {
        self.labels.names()
    }
}
