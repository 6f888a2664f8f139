//! Who may do what and who gets what: what all data threads read and one of them changes.
//!
//! Owns the rules of access, the subscribers and their patterns. Every change begins another
//! [generation](Directory::generation), by which whoever remembers something of it sees that it
//! is out of date.

use std::sync::Arc;

use super::access::Access;
use super::address::{Address, Source};
use super::patterns::{LookUp, Patterns};
use super::policies::Policies;
use super::series::{Series, SeriesId};
use super::subscribers::{Flow, FrameBytes, Subscriber, SubscriberId, Subscribers, Tenure};
use super::{Settings, StaticSubscriber};

/// The tables.
#[derive(Debug)]
pub struct Directory {
    access: Access,
    own_sources: Vec<Address>,
    subscribers: Subscribers,
    patterns: Patterns,
    policies: Policies,
    series: Series,
    generation: u64,
}

impl Directory {
    /// The static subscribers. `seed` keeps strangers from choosing patterns that collide.
    #[must_use]
    pub fn new(settings: &Settings, seed: u64) -> Self {
        let names = settings
            .subscribers
            .iter()
            .map(|subscriber| subscriber.name.as_str());
        let mut directory = Self {
            access: settings.access.clone(),
            own_sources: settings.own_sources.clone(),
            subscribers: Subscribers::default(),
            patterns: Patterns::new(seed),
            policies: Policies::new(&settings.topic_policies),
            series: Series::new(names, settings.leased_series_max),
            generation: 1,
        };
        for subscriber in &settings.subscribers {
            directory.insert_static(subscriber);
        }
        directory
    }

    fn insert_static(&mut self, subscriber: &StaticSubscriber) {
        let topics = subscriber.topics.iter().map(|topic| topic.as_str().into());
        let subscriber = Subscriber {
            name: subscriber.name.as_str().into(),
            series: self.series.assign(&subscriber.name),
            frame_bytes: FrameBytes::choose(subscriber.frame_bytes_max, &subscriber.address),
            address: subscriber.address.clone(),
            topics: topics.collect(),
            tenure: Tenure::Static,
            flow: Flow::default(),
        };
        self.insert(subscriber);
    }

    /// Adds a subscriber and says where.
    pub(super) fn insert(&mut self, subscriber: Subscriber) -> SubscriberId {
        let topics = subscriber.topics.clone();
        let id = self.subscribers.insert(subscriber);
        self.insert_patterns(&topics, id);
        id
    }

    /// Removes a subscriber.
    pub(super) fn remove(&mut self, id: SubscriberId) -> Option<Subscriber> {
        let subscriber = self.subscribers.remove(id)?;
        self.remove_patterns(&subscriber.topics, id);
        Some(subscriber)
    }

    /// Gives a subscriber other patterns, and datagrams of another size.
    pub(super) fn change(&mut self, id: SubscriberId, topics: Vec<Box<str>>, size: FrameBytes) {
        let Some(subscriber) = self.subscribers.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut subscriber.topics, topics.clone());
        subscriber.frame_bytes = size;
        self.remove_patterns(&before, id);
        self.insert_patterns(&topics, id);
    }

    /// Changes what is nobody's but the subscriber's own, such as its lease.
    pub(super) fn subscriber_mut(&mut self, id: SubscriberId) -> Option<&mut Subscriber> {
        self.subscribers.get_mut(id)
    }

    /// The series of a name, see [`Series::assign`].
    pub(super) fn assign_series(&mut self, name: &str) -> SeriesId {
        self.series.assign(name)
    }

    fn insert_patterns(&mut self, patterns: &[Box<str>], id: SubscriberId) {
        for pattern in patterns {
            self.patterns.insert(pattern, id);
        }
        self.generation += 1;
    }

    fn remove_patterns(&mut self, patterns: &[Box<str>], id: SubscriberId) {
        for pattern in patterns {
            self.patterns.remove(pattern, id);
        }
        self.generation += 1;
    }

    /// Changes with every change of who gets what. Never 0.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Who may publish and subscribe.
    #[must_use]
    #[inline]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// What is decided of topics.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Whether this is the bus itself: the only one that publishes reserved topics.
    #[must_use]
    pub fn is_own(&self, source: Source<'_>) -> bool {
        self.own_sources.iter().any(|own| own.is_source(source))
    }

    /// Who gets events now.
    #[must_use]
    #[inline]
    pub fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// Under which names subscribers are counted, by [`SeriesId::index`].
    #[must_use]
    pub fn series_names(&self) -> &[Arc<str>] {
        self.series.names()
    }

    /// Finds who gets a legal topic: of those who want it, those who may see it.
    pub(super) fn find(&self, topic: &[u8], look_up: &mut LookUp) {
        self.patterns.find(topic, look_up);
        look_up.found.retain(|id| self.may_see(*id, topic));
    }

    /// A subscriber by lease gets only what its holder may see, whatever its patterns match.
    fn may_see(&self, id: SubscriberId, topic: &[u8]) -> bool {
        let subscriber = self.subscribers.get(id);
        subscriber.is_some_and(|subscriber| match &subscriber.tenure {
            Tenure::Static => true,
            Tenure::Lease(lease) => self.access.subscribe.rights(lease.peer).permit(topic),
        })
    }
}
