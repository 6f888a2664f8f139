//! What is to become of the events of frames, by the settings' rules and the subscribers' patterns
//! alone: which are used, and who gets them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use hailmary::bus::address::Source;
use hailmary::bus::limits::HOPS_MAX;
use hailmary::bus::subscribers::{Subscriber, SubscriberId, Tenure, Terms};
use hailmary::bus::tally::EventTally;
use hailmary::bus::{Directory, FrameDrop, Settings};
use hailmary_proto::decode::{EventView, FrameView};

use super::model::Model;
use super::rules::Plain;
use crate::naive;

/// What became of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fates {
    pub(super) events: u64,
    pub(super) bad_topic: u64,
    pub(super) not_allowed: u64,
    pub(super) matched: u64,
}

impl Fates {
    pub(super) fn of(tally: &EventTally) -> Self {
        Self {
            events: tally.events,
            bad_topic: tally.bad_topic,
            not_allowed: tally.not_allowed,
            matched: tally.matched,
        }
    }

    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            events: self.events - earlier.events,
            bad_topic: self.bad_topic - earlier.bad_topic,
            not_allowed: self.not_allowed - earlier.not_allowed,
            matched: self.matched - earlier.matched,
        }
    }
}

#[derive(Clone, Copy)]
enum Fate {
    BadTopic,
    NotAllowed,
    Unmatched,
    Matched,
}

/// By what a frame is judged.
pub(super) struct Intake<'a> {
    pub(super) plain: &'a Plain,
    pub(super) settings: &'a Settings,
    pub(super) directory: &'a Directory,
    pub(super) model: &'a Model,
}

impl Intake<'_> {
    /// What is to become of a frame's events, those noted that somebody is to get. Without
    /// policies, that is: with some, fewer may match.
    pub(super) fn expect(
        &self,
        source: Source<'_>,
        frame: &FrameView<'_>,
        published: &mut Published,
    ) -> Result<Fates, FrameDrop> {
        // No rule speaks of the bus itself.
        let is_own = self.settings.own_sources.contains(&source.to_address());
        let events = frame.events().len() as u64;
        if events > 0 && !is_own && self.plain.publish.shuts_out(source) {
            return Err(FrameDrop::NotAllowed);
        }
        if frame.stamp().is_some_and(|stamp| stamp.hops >= HOPS_MAX) {
            return Err(FrameDrop::Hops);
        }
        let publisher = (!is_own).then_some(source);
        let mut fates = Fates {
            events,
            ..Fates::default()
        };
        let mut known = HashMap::new();
        for event in frame.events() {
            let topic = event.topic_bytes();
            let fate = known.entry(topic.to_vec());
            match fate.or_insert_with(|| self.fate(publisher, topic)) {
                Fate::BadTopic => fates.bad_topic += 1,
                Fate::NotAllowed => fates.not_allowed += 1,
                Fate::Unmatched => {}
                Fate::Matched => {
                    fates.matched += 1;
                    published.note(&event);
                }
            }
        }
        Ok(fates)
    }

    /// `publisher` is none where it is the bus itself.
    fn fate(&self, publisher: Option<Source<'_>>, topic: &[u8]) -> Fate {
        if publisher.is_some() && naive::is_reserved(topic) {
            return Fate::NotAllowed;
        }
        let text = std::str::from_utf8(topic).ok();
        let Some(topic) = text.filter(|_| naive::is_topic(topic)) else {
            return Fate::BadTopic;
        };
        if publisher.is_some_and(|source| !self.plain.publish.permits(source, topic)) {
            return Fate::NotAllowed;
        }
        let mut all = self.directory.subscribers().iter();
        match all.any(|(_, one)| self.gets(one, topic)) {
            true => Fate::Matched,
            false => Fate::Unmatched,
        }
    }

    /// Whether a topic is for a subscriber: it asked for it, and may see it.
    pub(super) fn gets(&self, subscriber: &Subscriber, topic: &str) -> bool {
        let mut patterns = subscriber.topics.iter();
        let may_see = match subscriber.tenure {
            Tenure::Static => true,
            Tenure::Lease(_) => {
                let holder = self.model.holder(&subscriber.address);
                self.plain.subscribe.permits(holder, topic)
            }
        };
        may_see && patterns.any(|pattern| naive::matches(pattern, topic))
    }

    /// Nobody got an event more often than it was published, or one that is not for it. Who is on
    /// no terms, where nothing is let go, got each.
    pub(super) fn check_got(&self, published: &Published, got: &Got, is_all_kept: bool) {
        let is_all_kept = is_all_kept && self.settings.topic_policies.is_empty();
        for (id, subscriber) in self.directory.subscribers().iter() {
            let is_exact = is_all_kept && subscriber.terms == Terms::default();
            let got = got.0.get(&id);
            let mut gotten = 0;
            for (event, (topic, times)) in &published.0 {
                let got = got.and_then(|got| got.get(event)).copied().unwrap_or(0);
                let times = match self.gets(subscriber, topic) {
                    true => *times,
                    false => 0,
                };
                let is_right = got == times || got < times && !is_exact;
                let to = &subscriber.address;
                assert!(is_right, "{got} of {times} events of {topic} to {to}");
                gotten += got;
            }
            let all: u32 = got.map_or(0, |got| got.values().sum());
            assert_eq!(gotten, all, "events that nobody may publish");
        }
    }
}

/// Events, by a hash of all their bytes.
fn hash(event: &EventView<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.slice().hash(&mut hasher);
    hasher.finish()
}

/// Events that somebody is to get: their topics, and how many are alike.
#[derive(Clone, Debug, Default)]
pub(super) struct Published(HashMap<u64, (String, u32)>);

impl Published {
    fn note(&mut self, event: &EventView<'_>) {
        let new = || (event.topic().to_owned(), 0);
        self.0.entry(hash(event)).or_insert_with(new).1 += 1;
    }
}

/// How many of which events each subscriber got.
#[derive(Debug, Default)]
pub(super) struct Got(HashMap<SubscriberId, HashMap<u64, u32>>);

impl Got {
    pub(super) fn note(&mut self, by: SubscriberId, frame: &FrameView<'_>) {
        let got = self.0.entry(by).or_default();
        for event in frame.events() {
            *got.entry(hash(&event)).or_default() += 1;
        }
    }
}
