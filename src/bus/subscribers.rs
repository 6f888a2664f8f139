//! Who gets events: static subscribers from the configuration and those that hold a lease.
//!
//! Owns the table and each subscriber's flow (what went to it so far). It does not decide who
//! gets in: that is [`leases`](super::leases).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hailmary_proto::v1::Stamp;
use hailmary_proto::write::DATAGRAM_BYTES_MAX;

use super::address::{Address, Peer};
use super::bucket::Bucket;
use super::groups::Seed;
use super::limits::{FRAME_BYTES_TARGETS, LOCAL_FRAME_BYTES, NETWORK_FRAME_BYTES};
use super::sample::{Sample, Weight};
use super::series::SeriesId;

/// A subscriber's place in the table. A place is used again once its subscriber has gone, never
/// within a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriberId(u32);

impl SubscriberId {
    #[cfg(test)]
    pub(crate) fn new(index: u32) -> Self {
        Self(index)
    }

    /// The place as an index, dense from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How large a subscriber's datagrams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameBytes {
    /// Frames are filled up to here: one of [`FRAME_BYTES_TARGETS`] where the subscriber asked.
    pub target: u32,
    /// An event that does not fit the target alone may go alone up to here.
    pub max: u32,
}

impl FrameBytes {
    /// What the subscriber asked for, or what suits the way to it.
    #[must_use]
    pub fn choose(asked: Option<u32>, address: &Address) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "a constant of 16 bits")]
        const DATAGRAM_MAX: u32 = DATAGRAM_BYTES_MAX as u32;
        let suits = match address.is_local() {
            true => LOCAL_FRAME_BYTES,
            false => NETWORK_FRAME_BYTES,
        };
        let max = asked.unwrap_or(DATAGRAM_MAX).min(DATAGRAM_MAX);
        let fitting = FRAME_BYTES_TARGETS.iter().rev();
        let fitting = fitting.copied().find(|target| *target <= max);
        Self {
            target: match asked {
                Some(_) => fitting.unwrap_or(max),
                None => suits,
            },
            max,
        }
    }
}

/// On what terms a subscriber gets the events of its topics. By default it gets all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Of the members of a group, one gets each event. `None`: it is in none.
    pub group: Option<Arc<str>>,
    /// The share of events that it gets.
    pub sample: Sample,
    /// How many events it gets at most, a second. `None`: no limit.
    pub events_per_second: Option<u32>,
}

/// What went to one subscriber so far, for its stamps. All data threads count on one flow, so a
/// subscriber sees one, whichever thread a frame comes by.
#[derive(Debug, Default)]
pub struct Flow {
    events: AtomicU64,
    dropped: AtomicU64,
}

impl Flow {
    /// The stamp of the next frame, which has so many events, and counts them.
    #[inline]
    pub fn stamp(&self, bus: u64, events: u32, hops: u32, weight: Weight) -> Stamp {
        Stamp {
            sender: bus,
            sequence: self.events.fetch_add(events.into(), Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            hops,
            weight: weight.to_stamp(),
        }
    }

    /// A report's news, less what cannot be true: nothing is lost that was not sent.
    #[must_use]
    pub fn credible(&self, news: Reported) -> Reported {
        let events = self.events.load(Ordering::Relaxed);
        Reported {
            lost: news.lost.min(events),
            dropped: news.dropped.min(events),
        }
    }

    /// Counts events for which there is no frame, and that they are not sent.
    pub fn skip(&self, events: u32) {
        self.events.fetch_add(events.into(), Ordering::Relaxed);
        self.drop(events);
    }

    /// Notes that events counted by [`Flow::stamp`] were not sent.
    pub fn drop(&self, events: u32) {
        self.dropped.fetch_add(events.into(), Ordering::Relaxed);
    }
}

/// How long a subscriber stays.
#[derive(Clone, Debug)]
pub enum Tenure {
    /// As the configuration says.
    Static,
    /// Till the lease ends.
    Lease(Lease),
}

/// A standing lease.
#[derive(Clone, Debug)]
pub struct Lease {
    /// When it ends, unless renewed.
    pub expires: Duration,
    /// The subscriber's own, by which it is known from another one on its address.
    pub nonce: u64,
    /// Who asked for it, or renewed it last.
    pub peer: Peer,
    /// What the subscriber last reported as lost on the way and as dropped on its own side.
    pub reported: Reported,
}

/// The counts of a subscriber's report that the bus passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Events lost between the bus and the subscriber.
    pub lost: u64,
    /// Events that arrived and that the subscriber's own side then dropped.
    pub dropped: u64,
}

impl Reported {
    /// What is new since an earlier report.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            lost: self.lost.saturating_sub(earlier.lost),
            dropped: self.dropped.saturating_sub(earlier.dropped),
        }
    }
}

/// One member of subscriber sets.
#[derive(Debug)]
pub struct Subscriber {
    /// What it calls itself; may be empty.
    pub name: Arc<str>,
    /// Where its datagrams go.
    pub address: Address,
    /// What it wants: checked patterns.
    pub topics: Vec<Box<str>>,
    /// Where it is counted.
    pub series: SeriesId,
    /// How large its datagrams are.
    pub frame_bytes: FrameBytes,
    /// Which events of its topics it gets.
    pub terms: Terms,
    /// How long it stays.
    pub tenure: Tenure,
    /// What went to it so far.
    pub flow: Flow,
    /// What the directory keeps for its terms.
    pub(super) standing: Standing,
}

/// What a subscriber wants to get, and how.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What it calls itself; may be empty.
    pub name: Arc<str>,
    /// Checked patterns.
    pub topics: Vec<Box<str>>,
    /// How large its datagrams are to be.
    pub frame_bytes: FrameBytes,
    /// Which of its topics' events it is to get.
    pub terms: Terms,
}

impl Wanted {
    /// Whether a subscriber has all of it already.
    pub(super) fn is_what(&self, subscriber: &Subscriber) -> bool {
        self.name == subscriber.name
            && self.topics == subscriber.topics
            && self.frame_bytes == subscriber.frame_bytes
            && self.terms == subscriber.terms
    }
}

/// A full bucket where the terms have a rate.
pub(super) fn bucket(terms: &Terms) -> Option<Mutex<Bucket>> {
    terms.events_per_second.map(Bucket::full).map(Mutex::new)
}

/// What comes of a subscriber's terms. Made by the directory.
#[derive(Debug, Default)]
pub struct Standing {
    /// Its seed in its group.
    pub seed: Option<Seed>,
    /// What is left of its rate, for all data threads.
    pub bucket: Option<Mutex<Bucket>>,
}

impl Subscriber {
    /// How many of so many events its rate lets pass.
    pub(super) fn permit(&self, now: Duration, events: u64) -> u64 {
        let Some(bucket) = &self.standing.bucket else {
            return events;
        };
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(now, events)
    }
}

impl Subscriber {
    /// Notes who holds its lease now, and says whether it was another before, who may have been
    /// allowed to see other topics.
    pub(super) fn hold(&mut self, peer: Peer) -> bool {
        match &mut self.tenure {
            Tenure::Lease(lease) => std::mem::replace(&mut lease.peer, peer) != peer,
            Tenure::Static => false,
        }
    }
}

/// All subscribers, by place and by address.
#[derive(Debug, Default)]
pub struct Subscribers {
    places: Vec<Option<Subscriber>>,
    unused: Vec<SubscriberId>,
    leased: HashMap<Address, SubscriberId>,
}

impl Subscribers {
    /// Adds one and says where.
    pub fn insert(&mut self, subscriber: Subscriber) -> SubscriberId {
        let id = self.unused.pop().unwrap_or_else(|| {
            self.places.push(None);
            // Bounded by the cap on leases and by the configuration.
            SubscriberId(u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX))
        });
        if let Tenure::Lease(_) = subscriber.tenure {
            self.leased.insert(subscriber.address.clone(), id);
        }
        if let Some(place) = self.places.get_mut(id.index()) {
            *place = Some(subscriber);
        }
        id
    }

    /// Removes one, whose place may be used again.
    pub fn remove(&mut self, id: SubscriberId) -> Option<Subscriber> {
        let subscriber = self.places.get_mut(id.index())?.take()?;
        self.unused.push(id);
        if let Tenure::Lease(_) = subscriber.tenure {
            self.leased.remove(&subscriber.address);
        }
        Some(subscriber)
    }

    /// The one in this place.
    #[must_use]
    pub fn get(&self, id: SubscriberId) -> Option<&Subscriber> {
        self.places.get(id.index())?.as_ref()
    }

    /// The one in the place with this [index](SubscriberId::index).
    #[must_use]
    pub fn at(&self, index: usize) -> Option<&Subscriber> {
        self.places.get(index)?.as_ref()
    }

    /// The one in this place.
    pub fn get_mut(&mut self, id: SubscriberId) -> Option<&mut Subscriber> {
        self.places.get_mut(id.index())?.as_mut()
    }

    /// The one that holds a lease for this address.
    #[must_use]
    pub fn leased(&self, address: &Address) -> Option<SubscriberId> {
        self.leased.get(address).copied()
    }

    /// How many hold a lease.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.leased.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (SubscriberId, &Subscriber)> {
        self.places.iter().zip(0..).filter_map(|(place, index)| {
            place
                .as_ref()
                .map(|subscriber| (SubscriberId(index), subscriber))
        })
    }
}
