//! The life of leases: challenge, grant, renew, expire, give back, refuse.
//!
//! Owns the cookies, the caps and the ends of leases; the subscribers themselves are in the
//! directory that every call is lent. Until an address is proven by a cookie nothing is kept of it,
//! and it is never answered with more bytes than it sent.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hailmary_proto::topic;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{self, Challenge, Refusal, Subscribe, Unsubscribe};

use super::access::Rights;
use super::address::{Address, Origin, Peer};
use super::cookie::CookieJar;
use super::directory::Directory;
use super::limits::{
    CHALLENGE_AGE_MAX, COOKIE_AGE_MAX, FRAME_BYTES_MIN, LEASE_MS_MIN, NAME_BYTES_MAX,
};
use super::sample::{Sample, Weight};
use super::series::SeriesId;
use super::subscribers::{
    Flow, FrameBytes, Lease, Reported, Standing, Subscriber, SubscriberId, Tenure, Terms, Wanted,
};
use super::throttle::Throttle;

/// What an operator may change.
#[derive(Clone, Copy, Debug)]
pub struct LeaseLimits {
    /// Leases in all.
    pub leases_max: usize,
    /// Leases of one [`Origin`].
    pub leases_per_origin_max: usize,
    /// Patterns of one subscriber.
    pub patterns_max: usize,
    /// Members of one group.
    pub group_members_max: usize,
    /// What is granted where the subscriber does not say, in ms.
    pub lease_ms: u32,
    /// What is granted at most, in ms.
    pub lease_ms_max: u32,
}

/// What became of a lease or of a request for one, to be counted and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The address is to be proven.
    Challenged,
    /// A lease stands that did not before.
    Granted(SubscriberId),
    /// A lease goes on.
    Renewed {
        /// Whose it is.
        id: SubscriberId,
        /// Where it is counted.
        series: SeriesId,
        /// What the subscriber reported since the last time.
        news: Reported,
        /// Whether it calls itself something else now, or wants something else.
        is_changed: bool,
    },
    /// Given back by its subscriber.
    Released(SubscriberId),
    /// Not renewed in time.
    Expired(SubscriberId),
    /// Ended, because its holder may subscribe to nothing any more.
    Revoked(SubscriberId),
    /// Refused.
    Refused(Reason),
    /// Not answered: the request was shorter than its answer, its origin asks too often, nobody
    /// told who sent it where the rules want to know, or there was no room to pass it on.
    Unanswered,
}

/// A request, and where it came from.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Where it came from.
    pub from: &'a Address,
    /// Who sent it.
    pub peer: Peer,
    /// Bytes of its datagram.
    pub bytes: usize,
}

/// The leases.
#[derive(Debug)]
pub struct Leases {
    bus: u64,
    limits: LeaseLimits,
    cookies: CookieJar,
    throttle: Throttle,
    ends: BTreeSet<(Duration, SubscriberId)>,
    per_origin: HashMap<Origin, usize>,
}

/// An event to count, and an answer if there is one.
pub type Answered = (LeaseEvent, Option<v1::Frame>);

impl Leases {
    /// No leases.
    #[must_use]
    pub fn new(bus: u64, limits: LeaseLimits, cookies: CookieJar, throttle: Throttle) -> Self {
        Self {
            bus,
            limits,
            cookies,
            throttle,
            ends: BTreeSet::new(),
            per_origin: HashMap::new(),
        }
    }

    /// Puts a new cookie key in use where the old one has served its time.
    pub fn rotate_key(&mut self, now: Duration, secret: impl FnOnce() -> [u8; 16]) {
        self.cookies.rotate(now, secret);
    }

    /// When the next lease ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Duration> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Whether a stranger of this origin may be answered now.
    pub fn permit_answer(&mut self, now: Duration, from: &Address) -> bool {
        self.throttle.permit(now, from.origin())
    }

    /// Removes one lease that has ended.
    pub fn expire(&mut self, now: Duration, directory: &mut Directory) -> Option<LeaseEvent> {
        let (end, id) = self.ends.first().copied()?;
        if end > now {
            return None;
        }
        self.remove(id, directory);
        Some(LeaseEvent::Expired(id))
    }

    /// Other bounds from now on. A lease that is past them stays till it ends.
    pub fn reconfigure(&mut self, limits: LeaseLimits) {
        self.limits = limits;
    }

    /// Ends the leases of those who may subscribe to nothing any more.
    ///
    /// Whose a lease over a Unix socket is that was taken before any rule named users shows at its
    /// next renewal. Till then it stays, and gets only what its holder may see whoever it is.
    pub fn revoke(&mut self, directory: &mut Directory, events: &mut Vec<LeaseEvent>) {
        let access = directory.access();
        let is_untold = |peer| peer == Peer::Unix(None) && access.names_users();
        let is_forbidden = |subscriber: &Subscriber| match &subscriber.tenure {
            Tenure::Static => false,
            Tenure::Lease(lease) => {
                let rights = access.subscribe.rights(lease.peer);
                matches!(rights, Rights::Nothing) && !is_untold(lease.peer)
            }
        };
        let all = directory.subscribers().iter();
        let forbidden = all.filter(|(_, subscriber)| is_forbidden(subscriber));
        let forbidden: Vec<_> = forbidden.map(|(id, _)| id).collect();
        for id in forbidden {
            self.remove(id, directory);
            events.push(LeaseEvent::Revoked(id));
        }
    }

    /// A request for a lease, or for more of it.
    pub fn subscribe(
        &mut self,
        now: Duration,
        request: &Request<'_>,
        subscribe: &Subscribe,
        directory: &mut Directory,
    ) -> Answered {
        let nonce = subscribe.nonce;
        let access = directory.access();
        if let Rights::Nothing = access.subscribe.rights(request.peer) {
            if request.peer == Peer::Unix(None) && access.names_users() {
                // Sent before the kernel was asked who sends: a refusal would be for good, and
                // whoever asks again will be known.
                return (LeaseEvent::Unanswered, None);
            }
            return self.answer_unproven(now, request, refused(Reason::NotAllowed, nonce));
        }
        let standing = directory.subscribers().leased(request.from);
        if !self.is_proven(now, request.from, subscribe, standing) {
            let cookie = self.cookies.bake(now, request.from, nonce).to_vec();
            let challenge = Control::Challenge(Challenge { cookie, nonce });
            return self.answer_unproven(
                now,
                request,
                (LeaseEvent::Challenged, Some(frame(challenge))),
            );
        }
        if let Err(reason) = self.check(subscribe) {
            return refused(reason, nonce);
        }
        let outcome = match standing {
            Some(id) => self
                .renew(now, id, request.peer, subscribe, directory)
                .map(|event| (id, event)),
            None => self
                .grant(now, request, subscribe, directory)
                .map(|id| (id, LeaseEvent::Granted(id))),
        };
        let (id, event) = match outcome {
            Ok(outcome) => outcome,
            Err(reason) => return refused(reason, nonce),
        };
        let lease = Control::Lease(v1::Lease {
            bus: self.bus,
            lease_ms: self.lease_ms(subscribe),
            cookie: self.cookies.bake(now, request.from, nonce).to_vec(),
            nonce,
        });
        // So that the subscriber knows of what went to it since the last frame that it saw.
        let subscriber = directory.subscribers().get(id);
        let stamp = subscriber.map(|subscriber| subscriber.flow.stamp(self.bus, 0, 0, Weight::ONE));
        let answer = v1::Frame {
            stamp,
            ..frame(lease)
        };
        (event, Some(answer))
    }

    /// A lease that is given back.
    pub fn unsubscribe(
        &mut self,
        now: Duration,
        request: &Request<'_>,
        unsubscribe: &Unsubscribe,
        directory: &mut Directory,
    ) -> Answered {
        let Unsubscribe { cookie, nonce } = unsubscribe;
        let age = self.cookies.age(now, cookie, request.from, *nonce);
        match directory.subscribers().leased(request.from) {
            Some(id) if age.is_some_and(|age| age <= COOKIE_AGE_MAX) => {
                self.remove(id, directory);
                (LeaseEvent::Released(id), None)
            }
            _ => self.answer_unproven(now, request, refused(Reason::UnknownLease, *nonce)),
        }
    }

    fn is_proven(
        &self,
        now: Duration,
        from: &Address,
        subscribe: &Subscribe,
        standing: Option<SubscriberId>,
    ) -> bool {
        let age_max = if standing.is_some() {
            COOKIE_AGE_MAX
        } else {
            CHALLENGE_AGE_MAX
        };
        self.cookies
            .age(now, &subscribe.cookie, from, subscribe.nonce)
            .is_some_and(|age| age <= age_max)
    }

    fn check(&self, subscribe: &Subscribe) -> Result<(), Reason> {
        let has_terms = is_legal_name(&subscribe.group) && sample(subscribe).is_some();
        let is_too_small = (1..FRAME_BYTES_MIN).contains(&subscribe.max_frame_bytes);
        // The bus's own subscribers are the configuration's alone.
        let is_legal =
            is_legal_name(&subscribe.name) && !subscribe.name.starts_with(topic::RESERVED_TOKEN);
        if !has_terms || is_too_small || !is_legal {
            return Err(Reason::BadRequest);
        }
        if subscribe.topics.is_empty() || subscribe.topics.len() > self.limits.patterns_max {
            return Err(Reason::BadRequest);
        }
        let mut patterns = subscribe.topics.iter();
        if patterns.all(|pattern| topic::check_pattern(pattern.as_bytes()).is_ok()) {
            Ok(())
        } else {
            Err(Reason::BadTopic)
        }
    }

    fn grant(
        &mut self,
        now: Duration,
        request: &Request<'_>,
        subscribe: &Subscribe,
        directory: &mut Directory,
    ) -> Result<SubscriberId, Reason> {
        let from = request.from;
        let of_origin = self.per_origin.get(&from.origin()).copied().unwrap_or(0);
        if directory.subscribers().leases() >= self.limits.leases_max
            || of_origin >= self.limits.leases_per_origin_max
        {
            return Err(Reason::Full);
        }
        let expires = self.end(now, subscribe);
        let lease = Lease {
            expires,
            nonce: subscribe.nonce,
            peer: request.peer,
            reported: self.reported(subscribe).unwrap_or_default(),
        };
        let wanted = wanted(subscribe, from);
        self.check_group(&wanted.terms, directory)?;
        let subscriber = Subscriber {
            series: directory.assign_series(&wanted.name),
            name: wanted.name,
            address: from.clone(),
            topics: wanted.topics,
            frame_bytes: wanted.frame_bytes,
            terms: wanted.terms,
            tenure: Tenure::Lease(lease),
            flow: Flow::default(),
            standing: Standing::default(),
        };
        let id = directory.insert(subscriber);
        self.ends.insert((expires, id));
        *self.per_origin.entry(from.origin()).or_default() += 1;
        Ok(id)
    }

    fn renew(
        &mut self,
        now: Duration,
        id: SubscriberId,
        peer: Peer,
        subscribe: &Subscribe,
        directory: &mut Directory,
    ) -> Result<LeaseEvent, Reason> {
        let subscriber = directory.subscribers().get(id);
        let subscriber = subscriber.ok_or(Reason::UnknownLease)?;
        let wanted = wanted(subscribe, &subscriber.address);
        if subscriber.terms.group != wanted.terms.group {
            self.check_group(&wanted.terms, directory)?;
        }
        let is_another = directory.hold(id, peer);
        let is_changed = directory.change(id, &wanted) || is_another;
        let subscriber = directory.subscriber_mut(id);
        let subscriber = subscriber.ok_or(Reason::UnknownLease)?;
        Ok(LeaseEvent::Renewed {
            news: self.extend(now, id, subscriber, subscribe),
            series: subscriber.series,
            is_changed,
            id,
        })
    }

    /// Refuses whoever would be one member too many.
    fn check_group(&self, terms: &Terms, directory: &Directory) -> Result<(), Reason> {
        let members = |group: &Arc<str>| directory.members(group);
        match terms.group.as_ref().map(members) {
            Some(members) if members >= self.limits.group_members_max => Err(Reason::Full),
            _ => Ok(()),
        }
    }

    /// Puts the end of a lease off, and says what its subscriber reports that is new.
    fn extend(
        &mut self,
        now: Duration,
        id: SubscriberId,
        subscriber: &mut Subscriber,
        subscribe: &Subscribe,
    ) -> Reported {
        let expires = self.end(now, subscribe);
        let report = self.reported(subscribe);
        let Tenure::Lease(lease) = &mut subscriber.tenure else {
            return Reported::default();
        };
        if lease.nonce != subscribe.nonce {
            // Another subscriber on the same address, which has had nothing yet.
            lease.nonce = subscribe.nonce;
            lease.reported = Reported::default();
            subscriber.flow = Flow::default();
        }
        self.ends.remove(&(lease.expires, id));
        self.ends.insert((expires, id));
        lease.expires = expires;
        let Some(report) = report else {
            return Reported::default();
        };
        let news = report.since(lease.reported);
        lease.reported = report;
        subscriber.flow.credible(news)
    }

    fn remove(&mut self, id: SubscriberId, directory: &mut Directory) {
        let Some(subscriber) = directory.remove(id) else {
            return;
        };
        if let Tenure::Lease(lease) = &subscriber.tenure {
            self.ends.remove(&(lease.expires, id));
        }
        let origin = subscriber.address.origin();
        if let Some(count) = self.per_origin.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.per_origin.remove(&origin);
            }
        }
    }

    fn end(&self, now: Duration, subscribe: &Subscribe) -> Duration {
        now.saturating_add(Duration::from_millis(u64::from(self.lease_ms(subscribe))))
    }

    fn lease_ms(&self, subscribe: &Subscribe) -> u32 {
        match subscribe.lease_ms {
            0 => self.limits.lease_ms,
            asked => asked.clamp(LEASE_MS_MIN, self.limits.lease_ms_max),
        }
    }

    fn reported(&self, subscribe: &Subscribe) -> Option<Reported> {
        let report = subscribe.report.as_ref()?;
        (report.bus == self.bus).then_some(Reported {
            lost: report.lost,
            dropped: report.dropped,
        })
    }

    /// Holds back an answer that its address has not earned.
    fn answer_unproven(
        &mut self,
        now: Duration,
        request: &Request<'_>,
        answered: Answered,
    ) -> Answered {
        let answer_bytes = answered.1.as_ref().map_or(0, prost::Message::encoded_len);
        if answer_bytes <= request.bytes && self.permit_answer(now, request.from) {
            answered
        } else {
            (LeaseEvent::Unanswered, None)
        }
    }
}

fn frame(control: Control) -> v1::Frame {
    v1::Frame {
        control: Some(control),
        ..v1::Frame::default()
    }
}

fn refused(reason: Reason, nonce: u64) -> Answered {
    let refusal = Control::Refusal(Refusal {
        reason: reason.into(),
        nonce,
    });
    (LeaseEvent::Refused(reason), Some(frame(refusal)))
}

/// What a checked request asks for.
fn wanted(subscribe: &Subscribe, address: &Address) -> Wanted {
    let asked = (subscribe.max_frame_bytes > 0).then_some(subscribe.max_frame_bytes);
    let rate = subscribe.events_per_second;
    let patterns = subscribe.topics.iter();
    Wanted {
        name: subscribe.name.as_str().into(),
        topics: patterns.map(|pattern| pattern.as_str().into()).collect(),
        frame_bytes: FrameBytes::choose(asked, address),
        terms: Terms {
            group: (!subscribe.group.is_empty()).then(|| subscribe.group.as_str().into()),
            sample: sample(subscribe).unwrap_or_default(),
            events_per_second: (rate > 0).then_some(rate),
        },
    }
}

/// The share of events that is asked for, if it is one. 0 asks for all.
fn sample(subscribe: &Subscribe) -> Option<Sample> {
    match subscribe.sample {
        0.0 => Some(Sample::ALL),
        share => Sample::of_share(share),
    }
}

/// Whether a name may be shown and be a label: [A-Za-z0-9._-]{1,64}, or none at all.
#[must_use]
pub fn is_legal_name(name: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.len() <= NAME_BYTES_MAX && name.bytes().all(is_legal)
}
