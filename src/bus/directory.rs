//! Who may do what and who gets what: what all data threads read and one of them changes.
//!
//! Owns the rules of access, the subscribers and their patterns. Every change begins another
//! [generation](Directory::generation), by which whoever remembers something of it sees that it
//! is out of date.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::access::Access;
use super::address::{Address, Peer, Source};
use super::groups::{Groups, Seed};
use super::patterns::{LookUp, Patterns};
use super::policies::Policies;
use super::series::{Series, SeriesId};
use super::subscribers::{
    Flow, FrameBytes, Standing, Subscriber, SubscriberId, Subscribers, Tenure, Terms, Wanted,
    bucket,
};
use super::{Settings, StaticSubscriber};

/// What became of the static subscribers when the directory was configured anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconfigured {
    /// Those who went. Their places may be others' by now.
    pub removed: Vec<SubscriberId>,
    /// Those who kept their place and flow, and want something else now.
    pub changed: Vec<SubscriberId>,
    /// Those who came.
    pub added: Vec<SubscriberId>,
}

/// The tables.
#[derive(Debug)]
pub struct Directory {
    access: Access,
    own_sources: Vec<Address>,
    subscribers: Subscribers,
    patterns: Patterns,
    policies: Policies,
    groups: Groups,
    series: Series,
    generation: u64,
    next_end: Option<Duration>,
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
            groups: Groups::default(),
            series: Series::new(names, settings.leased_series_max),
            generation: 1,
            next_end: None,
        };
        for subscriber in &settings.subscribers {
            directory.insert_static(subscriber);
        }
        directory
    }

    /// Puts other settings in the place of those before, in one go. A static subscriber of the
    /// same name and address keeps its place and its flow. Leases and the series of names stay.
    pub(super) fn reconfigure(&mut self, settings: &Settings) -> Reconfigured {
        let wanted = &settings.subscribers;
        self.access = settings.access.clone();
        self.own_sources.clone_from(&settings.own_sources);
        self.policies.replace(&settings.topic_policies);
        let names = wanted.iter().map(|subscriber| subscriber.name.as_str());
        self.series.reconfigure(names, settings.leased_series_max);
        // Also where no subscriber changes: rights and policies are remembered by it, too.
        self.generation += 1;
        let (kept, removed) = self.sort_statics(wanted);
        for id in &removed {
            self.remove(*id);
        }
        let mut changes = Reconfigured {
            removed,
            ..Reconfigured::default()
        };
        for subscriber in wanted {
            match kept.get(subscriber.name.as_str()) {
                Some(id) if self.change(*id, &wanted_by(subscriber)) => changes.changed.push(*id),
                Some(_) => {}
                None => changes.added.push(self.insert_static(subscriber)),
            }
        }
        changes
    }

    /// The static subscribers there are: those who stay, by name, and those who are to go.
    fn sort_statics<'a>(
        &self,
        wanted: &'a [StaticSubscriber],
    ) -> (HashMap<&'a str, SubscriberId>, Vec<SubscriberId>) {
        let by_name = wanted.iter().map(|one| (one.name.as_str(), one));
        let by_name: HashMap<_, _> = by_name.collect();
        let (mut kept, mut removed) = (HashMap::new(), Vec::new());
        let all = self.subscribers.iter();
        for (id, subscriber) in all.filter(|(_, one)| matches!(one.tenure, Tenure::Static)) {
            match by_name.get(&*subscriber.name) {
                Some(one) if one.address == subscriber.address => {
                    kept.insert(one.name.as_str(), id);
                }
                _ => removed.push(id),
            }
        }
        (kept, removed)
    }

    fn insert_static(&mut self, subscriber: &StaticSubscriber) -> SubscriberId {
        let Wanted {
            name,
            topics,
            frame_bytes,
            terms,
        } = wanted_by(subscriber);
        let subscriber = Subscriber {
            series: self.series.assign(&name),
            address: subscriber.address.clone(),
            name,
            topics,
            frame_bytes,
            terms,
            tenure: Tenure::Static,
            flow: Flow::default(),
            standing: Standing::default(),
        };
        self.insert(subscriber)
    }

    /// Adds a subscriber and says where.
    pub(super) fn insert(&mut self, mut subscriber: Subscriber) -> SubscriberId {
        subscriber.standing = Standing {
            seed: self.join(&subscriber.terms, &subscriber.name, &subscriber.address),
            bucket: bucket(&subscriber.terms),
        };
        let topics = subscriber.topics.clone();
        let id = self.subscribers.insert(subscriber);
        self.insert_patterns(&topics, id);
        id
    }

    /// Removes a subscriber.
    pub(super) fn remove(&mut self, id: SubscriberId) -> Option<Subscriber> {
        let subscriber = self.subscribers.remove(id)?;
        self.remove_patterns(&subscriber.topics, id);
        self.leave(&subscriber.terms, &subscriber.standing);
        Some(subscriber)
    }

    /// Gives a subscriber other patterns and terms, another name, and datagrams of another size,
    /// and says whether anything of it is new.
    pub(super) fn change(&mut self, id: SubscriberId, wanted: &Wanted) -> bool {
        let series = self.series.assign(&wanted.name);
        let Some(subscriber) = self.subscribers.get_mut(id) else {
            return false;
        };
        if wanted.is_what(subscriber) && subscriber.series == series {
            return false;
        }
        let address = subscriber.address.clone();
        let is_renamed = subscriber.name != wanted.name;
        let topics = std::mem::replace(&mut subscriber.topics, wanted.topics.clone());
        let terms = std::mem::replace(&mut subscriber.terms, wanted.terms.clone());
        let mut standing = std::mem::take(&mut subscriber.standing);
        subscriber.name = Arc::clone(&wanted.name);
        subscriber.series = series;
        subscriber.frame_bytes = wanted.frame_bytes;
        if is_renamed || terms.group != wanted.terms.group {
            self.leave(&terms, &standing);
            standing.seed = self.join(&wanted.terms, &wanted.name, &address);
        }
        if terms.events_per_second != wanted.terms.events_per_second {
            standing.bucket = bucket(&wanted.terms);
        }
        if let Some(subscriber) = self.subscribers.get_mut(id) {
            subscriber.standing = standing;
        }
        self.remove_patterns(&topics, id);
        self.insert_patterns(&wanted.topics, id);
        true
    }

    /// Notes who holds a lease now, and says whether it was another before.
    pub(super) fn hold(&mut self, id: SubscriberId, peer: Peer) -> bool {
        let subscriber = self.subscribers.get_mut(id);
        let is_another = subscriber.is_some_and(|subscriber| subscriber.hold(peer));
        self.generation += u64::from(is_another);
        is_another
    }

    fn join(&mut self, terms: &Terms, name: &str, address: &Address) -> Option<Seed> {
        let group = terms.group.as_ref()?;
        Some(self.groups.join(group, name, address))
    }

    fn leave(&mut self, terms: &Terms, standing: &Standing) {
        if let (Some(group), Some(seed)) = (&terms.group, standing.seed) {
            self.groups.leave(group, seed);
        }
    }

    /// How many members a group has.
    #[must_use]
    pub fn members(&self, group: &str) -> usize {
        self.groups.members(group)
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

    /// Notes when the next lease ends.
    pub(super) fn set_next_end(&mut self, next_end: Option<Duration>) {
        self.next_end = next_end;
    }

    /// Whether a lease is still here that has ended by now, whose address may be another's.
    #[must_use]
    #[inline]
    pub fn is_overdue(&self, now: Duration) -> bool {
        self.next_end.is_some_and(|end| end <= now)
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

fn wanted_by(subscriber: &StaticSubscriber) -> Wanted {
    let topics = subscriber.topics.iter();
    Wanted {
        name: subscriber.name.as_str().into(),
        topics: topics.map(|topic| topic.as_str().into()).collect(),
        frame_bytes: FrameBytes::choose(subscriber.frame_bytes_max, &subscriber.address),
        terms: subscriber.terms.clone(),
    }
}
