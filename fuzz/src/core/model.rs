//! What must hold of the core, kept beside it as plainly as can be:
//!
//! - An address gets a lease only for a cookie that the bus had sent to this very address, with
//!   its nonce and not too old; it gets events only with a lease that stands, or by the settings.
//! - Whoever has not proven an address is answered with no more bytes than came from there, and
//!   at most once.
//! - Copies are frames within bounds, of events that their subscriber asked for. Its stamps count
//!   all that was sent and all that was not.
//! - Leases stay within the settings' bounds, and end in time.
//! - The books balance.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use hailmary::bus::address::{Address, Origin};
use hailmary::bus::directory::Reconfigured;
use hailmary::bus::leases::{LeaseEvent, LeaseLimits};
use hailmary::bus::limits::{CHALLENGE_AGE_MAX, COOKIE_AGE_MAX, HOPS_MAX, LEASE_MS_MIN};
use hailmary::bus::sample::Weight;
use hailmary::bus::subscribers::{SubscriberId, Tenure};
use hailmary::bus::{Directory, FrameCopy, Settings};
use hailmary::ledger::Counts;
use hailmary_proto::decode::FrameView;
use hailmary_proto::topic::check_topic;
use hailmary_proto::v1::Frame;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::write::COOKIE_BYTES_MAX;
use prost::Message;

use crate::naive;

/// A cookie that the bus sent somewhere.
#[derive(Clone, Debug)]
struct Sent {
    cookie: Vec<u8>,
    nonce: u64,
    at: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: SubscriberId,
    nonce: u64,
    ends: Duration,
}

/// What a subscriber's copies told it.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Events up to the newest copy, dropped ones included.
    next: u64,
    /// Events of copies that were sent.
    sent: u64,
}

#[derive(Debug)]
pub(super) struct Model {
    bus: u64,
    cookies: HashMap<Address, Vec<Sent>>,
    leases: HashMap<Address, Lease>,
    statics: HashSet<Address>,
    told: HashMap<SubscriberId, Told>,
    /// Names that settings have had, and the most names by lease that they permitted.
    static_names: HashSet<String>,
    leased_series_max: usize,
}

impl Model {
    pub(super) fn new(bus: u64, settings: &Settings) -> Self {
        let mut model = Self {
            bus,
            cookies: HashMap::new(),
            leases: HashMap::new(),
            statics: HashSet::new(),
            told: HashMap::new(),
            static_names: HashSet::new(),
            leased_series_max: 0,
        };
        model.note_settings(settings);
        model
    }

    pub(super) fn bus(&self) -> u64 {
        self.bus
    }

    /// The newest cookie that was sent there but for so many, and its nonce.
    pub(super) fn cookie(&self, address: &Address, before: usize) -> (Vec<u8>, u64) {
        let sent = self.cookies.get(address);
        let sent = sent.and_then(|sent| sent.iter().rev().nth(before));
        sent.map_or((Vec::new(), 0), |sent| (sent.cookie.clone(), sent.nonce))
    }

    fn note_settings(&mut self, settings: &Settings) {
        let all = settings.subscribers.iter();
        self.statics = all.clone().map(|one| one.address.clone()).collect();
        self.static_names.extend(all.map(|one| one.name.clone()));
        self.leased_series_max = self.leased_series_max.max(settings.leased_series_max);
    }

    pub(super) fn follow(&mut self, directory: &Directory, settings: &Settings) {
        self.note_settings(settings);
        self.told
            .retain(|id, _| directory.subscribers().get(*id).is_some());
        let names = directory.series_names().len();
        let names_max = 1 + self.static_names.len() + self.leased_series_max;
        assert!(names <= names_max, "{names} series of {names_max}");
    }

    pub(super) fn check_copy(
        &mut self,
        directory: &Directory,
        copy: &FrameCopy,
        datagram: &[u8],
        frame: &FrameView<'_>,
    ) {
        let subscriber = directory.subscribers().get(copy.subscriber);
        let subscriber = subscriber.expect("copies are for subscribers");
        let to = &subscriber.address;
        match subscriber.tenure {
            Tenure::Static => assert!(self.statics.contains(to), "{to} is not in the settings"),
            Tenure::Lease(_) => assert!(self.leases.contains_key(to), "{to} has no lease"),
        }
        let is_within = datagram.len() <= subscriber.frame_bytes.max as usize;
        assert_eq!(copy.is_sendable, is_within);
        assert!(copy.events > 0);
        assert_eq!(frame.events().len(), copy.events as usize);
        assert!(frame.control().is_none());
        for event in frame.events() {
            assert_eq!(check_topic(event.topic_bytes()), Ok(()));
            let mut patterns = subscriber.topics.iter();
            assert!(patterns.any(|pattern| naive::matches(pattern, event.topic())));
        }
        let stamp = frame.stamp().expect("copies have stamps");
        assert_eq!(stamp.sender, self.bus);
        assert!((1..=HOPS_MAX).contains(&stamp.hops));
        assert!(stamp.weight == 0.0 || stamp.weight > 1.0 && stamp.weight.is_finite());
        let told = self.told.entry(copy.subscriber).or_default();
        assert!(stamp.sequence >= told.next, "{stamp:?} after {told:?}");
        assert!(stamp.dropped <= stamp.sequence);
        told.next = stamp.sequence + u64::from(copy.events);
    }

    pub(super) fn note_sent(&mut self, copy: &FrameCopy) {
        let told = self.told.entry(copy.subscriber).or_default();
        told.sent += u64::from(copy.events);
    }

    /// What became of a request of so many bytes from an address.
    pub(super) fn check_answer(
        &mut self,
        now: Duration,
        limits: &LeaseLimits,
        (from, bytes): (&Address, usize),
        request: &Control,
        events: &[LeaseEvent],
        answer: Option<Vec<u8>>,
    ) {
        assert!(events.len() <= 1, "{events:?}");
        let proof = self.proof(now, from, request);
        let frame = answer
            .as_deref()
            .map(|answer| Frame::decode(answer).expect("a frame"));
        let control = frame.and_then(|frame| frame.control);
        assert_eq!(answer.is_some(), control.is_some());
        let is_leased = self.leases.contains_key(from);
        match (events.first(), &control) {
            (Some(LeaseEvent::Challenged), Some(Control::Challenge(challenge))) => {
                self.note_cookie(now, from, &challenge.cookie, challenge.nonce);
            }
            (Some(LeaseEvent::Granted(id)), Some(Control::Lease(lease))) => {
                assert!(!is_leased && proof.is_some_and(|age| age <= CHALLENGE_AGE_MAX));
                self.told.remove(id);
                self.note_lease(now, from, *id, lease);
                assert!(self.leases.len() <= limits.leases_max);
                assert!(self.leases_of(from.origin()) <= limits.leases_per_origin_max);
            }
            (Some(LeaseEvent::Renewed { id, .. }), Some(Control::Lease(lease))) => {
                assert!(is_leased && proof.is_some_and(|age| age <= COOKIE_AGE_MAX));
                let before = self
                    .note_lease(now, from, *id, lease)
                    .expect("it was leased");
                assert_eq!(before.id, *id);
                if before.nonce != lease.nonce {
                    self.told.remove(id);
                }
            }
            (Some(LeaseEvent::Released(id)), None) => {
                assert!(is_leased && proof.is_some());
                let lease = self.leases.remove(from).expect("it was leased");
                assert_eq!(lease.id, *id);
            }
            (Some(LeaseEvent::Refused(_)), Some(Control::Refusal(_)))
            | (Some(LeaseEvent::Unanswered), None)
            | (None, Some(Control::Pong(_)) | None) => {}
            other => panic!("{other:?} to {request:?}"),
        }
        if let Some(Control::Lease(lease)) = &control {
            assert_eq!(lease.bus, self.bus);
            let asked = [limits.lease_ms, limits.lease_ms_max].into_iter().max();
            assert!((LEASE_MS_MIN..=asked.unwrap_or(0)).contains(&lease.lease_ms));
        } else if let Some(answer) = answer {
            assert!(answer.len() <= bytes, "{} bytes for {bytes}", answer.len());
        }
    }

    /// How old the cookie of a request is, if the bus had sent it there.
    fn proof(&self, now: Duration, from: &Address, request: &Control) -> Option<Duration> {
        let (cookie, nonce) = match request {
            Control::Subscribe(subscribe) => (&subscribe.cookie, subscribe.nonce),
            Control::Unsubscribe(unsubscribe) => (&unsubscribe.cookie, unsubscribe.nonce),
            _ => return None,
        };
        let is_it = |sent: &&Sent| sent.cookie == *cookie && sent.nonce == nonce;
        let sent = self.cookies.get(from)?.iter().find(is_it)?;
        Some(now - sent.at)
    }

    fn note_cookie(&mut self, at: Duration, to: &Address, cookie: &[u8], nonce: u64) {
        assert!((1..=COOKIE_BYTES_MAX).contains(&cookie.len()));
        self.cookies.entry(to.clone()).or_default().push(Sent {
            cookie: cookie.to_vec(),
            nonce,
            at,
        });
    }

    fn note_lease(
        &mut self,
        now: Duration,
        to: &Address,
        id: SubscriberId,
        lease: &hailmary_proto::v1::Lease,
    ) -> Option<Lease> {
        self.note_cookie(now, to, &lease.cookie, lease.nonce);
        let lease = Lease {
            id,
            nonce: lease.nonce,
            ends: now + Duration::from_millis(lease.lease_ms.into()),
        };
        self.leases.insert(to.clone(), lease)
    }

    fn leases_of(&self, origin: Origin) -> usize {
        self.leases
            .keys()
            .filter(|address| address.origin() == origin)
            .count()
    }

    /// The leases that are over, and no others, have ended.
    pub(super) fn check_expired(&mut self, now: Duration, events: &[LeaseEvent]) {
        for event in events {
            let LeaseEvent::Expired(id) = event else {
                panic!("{event:?}");
            };
            assert!(self.end(*id).ends <= now);
        }
        assert!(self.leases.values().all(|lease| lease.ends > now));
    }

    pub(super) fn check_reconfigured(&mut self, changes: &Reconfigured, events: &[LeaseEvent]) {
        for id in changes.removed.iter().chain(&changes.added) {
            self.told.remove(id);
        }
        for event in events {
            let LeaseEvent::Revoked(id) = event else {
                panic!("{event:?}");
            };
            self.end(*id);
        }
    }

    fn end(&mut self, id: SubscriberId) -> Lease {
        let mut all = self.leases.iter();
        let address = all.find_map(|(address, lease)| (lease.id == id).then(|| address.clone()));
        let lease = address.and_then(|address| self.leases.remove(&address));
        lease.expect("only a lease that stands ends")
    }

    /// The directory has whom the model has, and every stamp tells of all that went before.
    pub(super) fn check_directory(&self, directory: &Directory) {
        assert_eq!(directory.subscribers().leases(), self.leases.len());
        for (id, subscriber) in directory.subscribers().iter() {
            match &subscriber.tenure {
                Tenure::Static => assert!(self.statics.contains(&subscriber.address)),
                Tenure::Lease(lease) => {
                    let model = self.leases.get(&subscriber.address).expect("it stands");
                    assert_eq!((model.id, model.ends), (id, lease.expires));
                }
            }
            let stamp = subscriber.flow.stamp(self.bus, 0, 0, Weight::ONE);
            let told = self.told.get(&id).copied().unwrap_or_default();
            assert_eq!(
                stamp.sequence,
                told.sent + stamp.dropped,
                "{}",
                subscriber.address
            );
        }
    }
}

/// The two laws of the books.
pub(super) fn check_laws(counts: &Counts) {
    let events = &counts.events;
    let ends = events.dropped() + events.unmatched + events.matched;
    assert_eq!(events.events, ends);
    let sent: u64 = counts.series.iter().map(|series| series.events).sum();
    let dropped: u64 = counts.series.iter().flat_map(|series| series.dropped).sum();
    assert_eq!(events.copies, sent + dropped);
}
