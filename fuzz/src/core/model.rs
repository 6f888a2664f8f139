//! What must hold of the core, kept beside it as plainly as can be:
//!
//! - An address gets a lease only for a cookie that the bus had sent to this very address, with
//!   its nonce and not too old; it gets events only with a lease that stands, or by the settings.
//! - Whoever has not proven an address is answered with no more bytes than came from there, and
//!   at most once.
//! - Copies are frames within bounds, of events that their subscriber asked for. Its stamps count
//!   all that was sent and all that was not.
//! - Each request is granted, renewed, refused, challenged or left unanswered as it must be, for
//!   the one reason that it must be, by the rules of access and within the settings' bounds.
//! - Leases end in time, and with the right to them.
//! - The books balance, and tell of each of these and of each frame and event that was denied.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use hailmary::bus::address::{Address, Origin, Source};
use hailmary::bus::directory::Reconfigured;
use hailmary::bus::leases::{LeaseEvent, LeaseLimits};
use hailmary::bus::limits::{
    CHALLENGE_AGE_MAX, COOKIE_AGE_MAX, FRAME_BYTES_MIN, HOPS_MAX, LEASE_MS_MIN, NAME_BYTES_MAX,
};
use hailmary::bus::sample::Weight;
use hailmary::bus::subscribers::{SubscriberId, Tenure};
use hailmary::bus::{Directory, FrameCopy, FrameDrop, Settings, StaticSubscriber};
use hailmary::ledger::{Counts, LeaseCounts};
use hailmary_proto::decode::FrameView;
use hailmary_proto::topic::check_topic;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{Challenge, Frame, Pong, Refusal, Subscribe};
use hailmary_proto::write::COOKIE_BYTES_MAX;
use prost::Message;

use super::published::Fates;
use super::rules::Plain;
use crate::naive;

/// Bytes of a cookie: version, key id, time and code.
const COOKIE_BYTES: usize = 1 + 1 + 8 + 8;

/// A cookie that the bus sent somewhere.
#[derive(Clone, Debug)]
struct Sent {
    cookie: Vec<u8>,
    nonce: u64,
    at: Duration,
}

#[derive(Clone, Debug)]
struct Lease {
    id: SubscriberId,
    nonce: u64,
    ends: Duration,
    /// Who asked for it last.
    holder: Source<'static>,
    group: String,
}

/// A control message, and how it came.
pub(super) struct Request<'a> {
    pub(super) now: Duration,
    pub(super) source: Source<'static>,
    pub(super) bytes: usize,
    pub(super) control: &'a Control,
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing at all: it is no request, or there is nowhere to answer to.
    Nothing,
    Challenged,
    Granted,
    Renewed,
    Released,
    Refused(Reason),
    Unanswered,
    Pong,
}

/// What an input brought about: how often, and how far.
#[derive(Clone, Debug, Default)]
pub struct Reached {
    /// Events that the books tell of, as they are to tell of them.
    pub leases: LeaseCounts,
    /// Leases that went on.
    pub renewed: u64,
    /// Leases that were given back.
    pub released: u64,
    /// Requests refused because there were as many leases as there may be.
    pub full: u64,
    /// The same of one origin.
    pub full_of_origin: u64,
    /// The most leases at once.
    pub leases_max: usize,
    /// The most origins with leases at once.
    pub origins_max: usize,
    /// Whole frames denied.
    pub denied_frames: u64,
    /// Events denied of frames that were used.
    pub denied_events: u64,
    /// Events that somebody wanted.
    pub matched: u64,
    /// Copies that were made for who has a lease.
    pub copies: u64,
    /// Frames dropped, by [`FrameDrop`].
    pub dropped_frames: [u64; FrameDrop::ALL.len()],
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
    reached: Reached,
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
            reached: Reached::default(),
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

    /// Who has the lease of an address.
    pub(super) fn holder(&self, address: &Address) -> Source<'static> {
        self.leases.get(address).expect("it has a lease").holder
    }

    pub(super) fn note_frame(&mut self, result: Result<(), FrameDrop>, fates: Fates) {
        if let Err(reason) = result {
            self.reached.dropped_frames[reason as usize] += 1;
        }
        self.reached.denied_events += fates.not_allowed;
        self.reached.matched += fates.matched;
    }

    pub(super) fn reached(self) -> Reached {
        Reached {
            denied_frames: self.reached.dropped_frames[FrameDrop::NotAllowed as usize],
            ..self.reached
        }
    }

    pub(super) fn check_copy(
        &mut self,
        now: Duration,
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
            Tenure::Lease(_) => {
                let lease = self.leases.get(to);
                assert!(lease.is_some_and(|lease| lease.ends > now), "to {to}");
                self.reached.copies += 1;
            }
        }
        let is_within = datagram.len() <= subscriber.frame_bytes.max as usize;
        assert_eq!(copy.is_sendable, is_within);
        assert!(copy.events > 0);
        assert_eq!(frame.events().len(), copy.events as usize);
        assert!(frame.control().is_none());
        for event in frame.events() {
            assert_eq!(check_topic(event.topic_bytes()), Ok(()));
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

    /// What became of a request.
    pub(super) fn check_answer(
        &mut self,
        decided: (&Settings, &Plain),
        request: &Request<'_>,
        events: &[LeaseEvent],
        answer: Option<Vec<u8>>,
    ) {
        let expected = self.expect(decided, request);
        let frame = answer
            .as_deref()
            .map(|answer| Frame::decode(answer).expect("a frame"));
        let control = frame.and_then(|frame| frame.control);
        assert_eq!(answer.is_some(), control.is_some());
        assert!(events.len() <= 1, "{events:?}");
        let event = events.first();
        let outcome = match (event, &control) {
            (Some(LeaseEvent::Challenged), Some(Control::Challenge(_))) => Outcome::Challenged,
            (Some(LeaseEvent::Granted(_)), Some(Control::Lease(_))) => Outcome::Granted,
            (Some(LeaseEvent::Renewed { .. }), Some(Control::Lease(_))) => Outcome::Renewed,
            (Some(LeaseEvent::Released(_)), None) => Outcome::Released,
            (Some(LeaseEvent::Refused(reason)), Some(Control::Refusal(refusal))) => {
                assert_eq!(refusal.reason(), *reason);
                Outcome::Refused(*reason)
            }
            (Some(LeaseEvent::Unanswered), None) => Outcome::Unanswered,
            (None, Some(Control::Pong(_))) => Outcome::Pong,
            (None, None) => Outcome::Nothing,
            other => panic!("{other:?} to {:?}", request.control),
        };
        let told = (request.source, request.control);
        match (outcome, expected) {
            (Outcome::Nothing, Outcome::Pong) => assert!(is_short_for_pong(request), "{told:?}"),
            _ => assert_eq!(outcome, expected, "to {told:?}"),
        }
        let is_lease = matches!(outcome, Outcome::Granted | Outcome::Renewed);
        if let Some(answer) = answer.filter(|_| !is_lease && !self.is_proven(request)) {
            let (long, bytes) = (answer.len(), request.bytes);
            assert!(long <= bytes, "{long} bytes for {bytes}");
        }
        self.follow_event(decided, request, event, control.as_ref());
        self.note_outcome(decided, outcome);
    }

    /// What is to become of a request.
    fn expect(&self, decided: (&Settings, &Plain), request: &Request<'_>) -> Outcome {
        if matches!(request.source, Source::Unix { path: b"", .. }) {
            return Outcome::Nothing;
        }
        match request.control {
            Control::Subscribe(subscribe) => self.expect_lease(decided, request, subscribe),
            Control::Unsubscribe(unsubscribe) => {
                let is_leased = self.leases.contains_key(&request.source.to_address());
                if is_leased && self.is_proven(request) {
                    return Outcome::Released;
                }
                fitting(
                    request,
                    Outcome::Refused(Reason::UnknownLease),
                    unsubscribe.nonce,
                )
            }
            Control::Ping(ping) => fitting(request, Outcome::Pong, ping.nonce),
            _ => Outcome::Nothing,
        }
    }

    fn expect_lease(
        &self,
        (settings, plain): (&Settings, &Plain),
        request: &Request<'_>,
        subscribe: &Subscribe,
    ) -> Outcome {
        if plain.subscribe.shuts_out(request.source) {
            return match plain.is_untold(request.source) {
                // Who it is shows as soon as it asks again.
                true => Outcome::Unanswered,
                false => {
                    let refused = Outcome::Refused(Reason::NotAllowed);
                    fitting(request, refused, subscribe.nonce)
                }
            };
        }
        if !self.is_proven(request) {
            return fitting(request, Outcome::Challenged, subscribe.nonce);
        }
        if let Some(reason) = fault(subscribe, settings.leases.patterns_max) {
            return Outcome::Refused(reason);
        }
        let lease = self.leases.get(&request.source.to_address());
        let is_new_to_group = lease.is_none_or(|lease| lease.group != subscribe.group);
        let limits = &settings.leases;
        let is_full =
            lease.is_none() && (self.is_full(limits) || self.is_origin_full(limits, request));
        let is_group_full = is_new_to_group
            && !subscribe.group.is_empty()
            && self.members(settings, &subscribe.group) >= limits.group_members_max;
        match lease {
            _ if is_full || is_group_full => Outcome::Refused(Reason::Full),
            Some(_) => Outcome::Renewed,
            None => Outcome::Granted,
        }
    }

    fn is_full(&self, limits: &LeaseLimits) -> bool {
        self.leases.len() >= limits.leases_max
    }

    fn is_origin_full(&self, limits: &LeaseLimits, request: &Request<'_>) -> bool {
        let origin = request.source.to_address().origin();
        self.leases_of(origin) >= limits.leases_per_origin_max
    }

    fn members(&self, settings: &Settings, group: &str) -> usize {
        let is_in = |one: &&StaticSubscriber| one.terms.group.as_deref() == Some(group);
        let leases = self.leases.values();
        settings.subscribers.iter().filter(is_in).count()
            + leases.filter(|lease| lease.group == group).count()
    }

    /// Whether a request brings a cookie that the bus had sent there, with its nonce, and not too
    /// long ago: with a lease it may be older. Times in cookies are of whole milliseconds.
    fn is_proven(&self, request: &Request<'_>) -> bool {
        let (cookie, nonce) = match request.control {
            Control::Subscribe(subscribe) => (&subscribe.cookie, subscribe.nonce),
            Control::Unsubscribe(unsubscribe) => (&unsubscribe.cookie, unsubscribe.nonce),
            _ => return false,
        };
        let from = request.source.to_address();
        let age_max = match self.leases.contains_key(&from) {
            true => COOKIE_AGE_MAX,
            false => CHALLENGE_AGE_MAX,
        };
        let of_ms = |at: Duration| Duration::new(at.as_secs(), at.subsec_millis() * 1_000_000);
        let is_it = |sent: &Sent| {
            let age = request.now - of_ms(sent.at);
            sent.cookie == *cookie && sent.nonce == nonce && age <= age_max
        };
        self.cookies
            .get(&from)
            .is_some_and(|sent| sent.iter().any(is_it))
    }

    /// Changes what is known by what was said and done.
    fn follow_event(
        &mut self,
        (settings, plain): (&Settings, &Plain),
        request: &Request<'_>,
        event: Option<&LeaseEvent>,
        control: Option<&Control>,
    ) {
        let from = request.source.to_address();
        match (event, control) {
            (_, Some(Control::Challenge(challenge))) => {
                assert_eq!(challenge.nonce, nonce(request.control));
                self.note_cookie(request.now, &from, &challenge.cookie, challenge.nonce);
            }
            (_, Some(Control::Refusal(refusal))) => {
                assert_eq!(refusal.nonce, nonce(request.control));
            }
            (_, Some(Control::Pong(pong))) => {
                assert_eq!((pong.nonce, pong.bus), (nonce(request.control), self.bus));
                // Who may not publish is told of no flow.
                if plain.publish.shuts_out(request.source) {
                    assert_eq!((pong.received, pong.lost), (0, 0));
                }
            }
            (Some(LeaseEvent::Granted(id)), Some(Control::Lease(lease))) => {
                self.told.remove(id);
                assert!(self.note_lease(settings, request, *id, lease).is_none());
            }
            (Some(LeaseEvent::Renewed { id, .. }), Some(Control::Lease(lease))) => {
                let before = self.note_lease(settings, request, *id, lease);
                let before = before.expect("it was leased");
                assert_eq!(before.id, *id);
                if before.nonce != lease.nonce {
                    self.told.remove(id);
                }
            }
            (Some(LeaseEvent::Released(id)), _) => {
                let lease = self.leases.remove(&from).expect("it was leased");
                assert_eq!(lease.id, *id);
            }
            _ => {}
        }
    }

    fn note_outcome(&mut self, (settings, _): (&Settings, &Plain), outcome: Outcome) {
        let is_full = self.is_full(&settings.leases);
        let reached = &mut self.reached;
        match outcome {
            Outcome::Challenged => reached.leases.challenges += 1,
            Outcome::Granted => reached.leases.granted += 1,
            Outcome::Renewed => reached.renewed += 1,
            Outcome::Released => reached.released += 1,
            Outcome::Unanswered => reached.leases.unanswered += 1,
            Outcome::Refused(reason) => {
                reached.leases.refusals[reason as usize] += 1;
                reached.full += u64::from(reason == Reason::Full && is_full);
                reached.full_of_origin += u64::from(reason == Reason::Full && !is_full);
            }
            Outcome::Nothing | Outcome::Pong => {}
        }
        reached.leases_max = reached.leases_max.max(self.leases.len());
        let origins: HashSet<_> = self.leases.keys().map(Address::origin).collect();
        reached.origins_max = reached.origins_max.max(origins.len());
    }

    /// The books tell of all that happened to leases, and of all that was denied.
    pub(super) fn check_counts(&self, counts: &Counts) {
        let told = |leases: &LeaseCounts| {
            let ended = [leases.expired, leases.revoked];
            let unproven = [leases.challenges, leases.unanswered];
            (leases.granted, ended, unproven, leases.refusals)
        };
        assert_eq!(told(&counts.leases), told(&self.reached.leases));
        assert_eq!(counts.dropped_frames, self.reached.dropped_frames);
        assert_eq!(counts.events.not_allowed, self.reached.denied_events);
        assert_eq!(counts.events.matched, self.reached.matched);
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
        settings: &Settings,
        request: &Request<'_>,
        id: SubscriberId,
        lease: &hailmary_proto::v1::Lease,
    ) -> Option<Lease> {
        let Control::Subscribe(subscribe) = request.control else {
            panic!("a lease for {:?}", request.control);
        };
        let limits = &settings.leases;
        let granted = match subscribe.lease_ms {
            0 => limits.lease_ms,
            asked => asked.min(limits.lease_ms_max).max(LEASE_MS_MIN),
        };
        assert_eq!(lease.bus, self.bus);
        assert_eq!((lease.lease_ms, lease.nonce), (granted, subscribe.nonce));
        let to = request.source.to_address();
        self.note_cookie(request.now, &to, &lease.cookie, lease.nonce);
        let lease = Lease {
            id,
            nonce: lease.nonce,
            ends: request.now + Duration::from_millis(lease.lease_ms.into()),
            holder: request.source,
            group: subscribe.group.clone(),
        };
        self.leases.insert(to, lease)
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
            self.reached.leases.expired += 1;
        }
        assert!(self.leases.values().all(|lease| lease.ends > now));
    }

    /// Who may subscribe to nothing any more has no lease, and everybody else has.
    pub(super) fn check_reconfigured(
        &mut self,
        plain: &Plain,
        changes: &Reconfigured,
        events: &[LeaseEvent],
    ) {
        for id in changes.removed.iter().chain(&changes.added) {
            self.told.remove(id);
        }
        for event in events {
            let LeaseEvent::Revoked(id) = event else {
                panic!("{event:?}");
            };
            let holder = self.end(*id).holder;
            assert!(plain.subscribe.shuts_out(holder) && !plain.is_untold(holder));
            self.reached.leases.revoked += 1;
        }
        let mut holders = self.leases.values().map(|lease| lease.holder);
        let stays = |holder| !plain.subscribe.shuts_out(holder) || plain.is_untold(holder);
        assert!(holders.all(stays));
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

/// An outcome whose answer goes to an address that is not proven: none, where it is longer than
/// the request.
fn fitting(request: &Request<'_>, outcome: Outcome, nonce: u64) -> Outcome {
    let control = match outcome {
        Outcome::Challenged => Control::Challenge(Challenge {
            cookie: vec![0; COOKIE_BYTES],
            nonce,
        }),
        Outcome::Refused(reason) => Control::Refusal(Refusal {
            reason: reason.into(),
            nonce,
        }),
        other => return other,
    };
    let frame = Frame {
        control: Some(control),
        ..Frame::default()
    };
    match frame.encoded_len() <= request.bytes {
        true => outcome,
        false => Outcome::Unanswered,
    }
}

/// Whether not every answer to a ping is as short as the ping.
fn is_short_for_pong(request: &Request<'_>) -> bool {
    let longest = Control::Pong(Pong {
        nonce: u64::MAX,
        bus: u64::MAX,
        received: u64::MAX,
        lost: u64::MAX,
    });
    let frame = Frame {
        control: Some(longest),
        ..Frame::default()
    };
    frame.encoded_len() > request.bytes
}

/// What is wrong with a request, by the words of the contract.
fn fault(subscribe: &Subscribe, patterns_max: usize) -> Option<Reason> {
    let is_name = |name: &str| {
        let is_legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        name.len() <= NAME_BYTES_MAX && name.chars().all(is_legal)
    };
    let is_right = is_name(&subscribe.name)
        && is_name(&subscribe.group)
        // The bus's own.
        && !subscribe.name.starts_with("_hailmary")
        && (0.0..=1.0).contains(&subscribe.sample)
        && [0, FRAME_BYTES_MIN].contains(&subscribe.max_frame_bytes.min(FRAME_BYTES_MIN))
        && (1..=patterns_max).contains(&subscribe.topics.len());
    let mut patterns = subscribe.topics.iter();
    match is_right {
        false => Some(Reason::BadRequest),
        true if patterns.all(|pattern| naive::is_pattern(pattern.as_bytes())) => None,
        true => Some(Reason::BadTopic),
    }
}

fn nonce(request: &Control) -> u64 {
    match request {
        Control::Subscribe(subscribe) => subscribe.nonce,
        Control::Unsubscribe(unsubscribe) => unsubscribe.nonce,
        Control::Ping(ping) => ping.nonce,
        other => panic!("an answer to {other:?}"),
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
