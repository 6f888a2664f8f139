//! Who asks for what, and what must be answered.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hailmary::bus::Answer;
use hailmary::bus::leases::LeaseEvent;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{Frame, Stamp, Subscribe};
use prost::Message;

use super::super::bus::{Acted, PASSED_ON_MAX, socket_address};
use super::super::law::{Broken, Kept, law};
use super::super::plan::{self, Asked, Right};
use super::super::wire;
use super::{Flow, Key, Lease, Member, Oracle};

const CHALLENGE_AGE_MAX: Duration = Duration::from_secs(10);
const COOKIE_AGE_MAX: Duration = Duration::from_secs(300);
const COOKIE_KEY_AGE: Duration = Duration::from_secs(3_600);
const COOKIE_BYTES: usize = 18;
const LEASE_MS_MIN: u32 = 1_000;
const ANSWERS_PER_SECOND: usize = 1_000;

/// What is noted where it is seen.
const RENEWED: &str = "lease renewed";
const RELEASED: &str = "lease given back";
const PONG: &str = "pong";
const NO_ROOM: &str = "message between data threads lost";
const TOO_MANY: &str = "request of one too many";
const EARLIER_KEY: &str = "lease renewed by a cookie of the key before";
pub(super) const KINDS: [&str; 6] = [RENEWED, RELEASED, PONG, NO_ROOM, TOO_MANY, EARLIER_KEY];

/// A control message that a data thread has read.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) from: SocketAddr,
    pub(super) bytes: usize,
    pub(super) control: Control,
    pub(super) stamp: Option<Stamp>,
}

/// What a cookie proves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof {
    address: SocketAddr,
    nonce: u64,
    made_ms: u128,
}

impl Oracle {
    /// Holds what the registrar did against what was asked of it.
    pub fn check_acted(&mut self, acted: &Acted) -> Kept {
        let own = std::mem::take(&mut self.own_messages);
        let others = std::mem::take(&mut self.passed_on);
        let messages: Vec<Request> = own.into_iter().chain(others).collect();
        law!(
            messages.len() == acted.messages.len(),
            "each control message is acted on once",
            "{} of {}",
            acted.messages.len(),
            messages.len()
        );
        self.is_changed |= !messages.is_empty();
        for (message, (events, answers)) in messages.iter().zip(&acted.messages) {
            law!(
                answers.len() <= 1 && events.len() <= 1,
                "one message has one answer at most",
                "{answers:?} {events:?}"
            );
            let answer = answers.first();
            let (event, answer) = self.check_answer(acted.now, message, events.first(), answer)?;
            self.check_message(acted.now, message, event, answer)?;
        }
        self.check_ended(acted.now, &acted.ended)
    }

    /// Messages to another data thread are lost where too many wait, and where no others are.
    pub fn check_passed_on(&mut self, lost: usize) -> Kept {
        let left = self.passed_on.len().min(PASSED_ON_MAX);
        law!(
            lost == self.passed_on.len() - left,
            "a message between data threads is lost only where there is no room",
            "{lost} of {}",
            self.passed_on.len()
        );
        self.passed_on.truncate(left);
        self.books.unanswered += lost as u64;
        self.seen.note(NO_ROOM, lost as u64);
        Ok(())
    }

    /// Holds the leases that ended by time against those that had to.
    pub fn check_ended(&mut self, now: Duration, told: &[LeaseEvent]) -> Kept {
        let before = self.members.len();
        self.members.retain(|_, member| {
            member
                .lease
                .as_ref()
                .is_none_or(|lease| lease.expires > now)
        });
        let ended = before - self.members.len();
        self.is_changed |= ended > 0 || !told.is_empty();
        let all_expired = told
            .iter()
            .all(|event| matches!(event, LeaseEvent::Expired(_)));
        law!(
            all_expired && told.len() == ended,
            "a lease ends when its time is over",
            "{} instead of {ended} at {now:?}",
            told.len()
        );
        self.books.expired += ended as u64;
        if ended > 0 {
            self.owners.clear();
        }
        Ok(())
    }

    fn check_answer<'a>(
        &mut self,
        now: Duration,
        message: &Request,
        event: Option<&'a LeaseEvent>,
        answer: Option<&Answer>,
    ) -> Result<(Option<&'a LeaseEvent>, Option<Frame>), Broken> {
        let Some(answer) = answer else {
            return Ok((event, None));
        };
        law!(
            socket_address(&answer.to) == message.from && answer.listener == 0,
            "an answer goes where the question came from",
            "{:?}",
            answer.to
        );
        let frame = Frame::decode(&answer.datagram[..]);
        law!(
            frame.is_ok(),
            "an answer is a frame",
            "{:02x?}",
            answer.datagram
        );
        let frame = frame.unwrap_or_default();
        law!(
            frame.events.is_empty(),
            "an answer brings no events",
            "{frame:?}"
        );
        let is_lease = matches!(frame.control, Some(Control::Lease(_)));
        let is_proven = self.is_proven(now, message);
        law!(
            is_proven || !is_lease,
            "a lease takes a proven address",
            "{frame:?} to {}",
            message.from
        );
        law!(
            is_proven || answer.datagram.len() <= message.bytes,
            "an unproven address is never answered with more bytes than it sent",
            "{} to {}",
            answer.datagram.len(),
            message.bytes
        );
        if !is_proven {
            self.note_answered(now, message.from.ip())?;
        }
        Ok((event, Some(frame)))
    }

    fn note_answered(&mut self, now: Duration, ip: IpAddr) -> Kept {
        self.forget_answered(now);
        self.answered.push_back((now, ip));
        let of_host = self
            .answered
            .iter()
            .filter(|(_, other)| *other == ip)
            .count();
        law!(
            of_host <= 2 * ANSWERS_PER_SECOND,
            "unproven addresses are answered so often a second and no more",
            "{of_host} to {ip}"
        );
        Ok(())
    }

    fn forget_answered(&mut self, now: Duration) {
        let is_old = |at: Duration| now.saturating_sub(at) > Duration::from_secs(1);
        while self.answered.front().is_some_and(|(at, _)| is_old(*at)) {
            self.answered.pop_front();
        }
    }

    /// Whether a message brings a cookie that was given to its address and nonce, in time.
    fn is_proven(&self, now: Duration, message: &Request) -> bool {
        let (cookie, nonce) = match &message.control {
            Control::Subscribe(subscribe) => (&subscribe.cookie, subscribe.nonce),
            Control::Unsubscribe(unsubscribe) => (&unsubscribe.cookie, unsubscribe.nonce),
            _ => return false,
        };
        let age_max = match self.leased(message.from) {
            Some(_) => COOKIE_AGE_MAX,
            None => CHALLENGE_AGE_MAX,
        };
        self.cookies.get(cookie).is_some_and(|proof| {
            let made = Duration::from_millis(proof.made_ms as u64);
            proof.address == message.from
                && proof.nonce == nonce
                && now.checked_sub(made).is_some_and(|age| age <= age_max)
        })
    }

    fn check_message(
        &mut self,
        now: Duration,
        message: &Request,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        match &message.control {
            Control::Subscribe(subscribe) => {
                let due = self.due(now, message, subscribe);
                self.check_subscribe(now, message, subscribe, due, event, answer)
            }
            Control::Unsubscribe(unsubscribe) => {
                if self.is_proven(now, message) && self.leased(message.from).is_some() {
                    law!(
                        matches!(event, Some(LeaseEvent::Released(_))) && answer.is_none(),
                        "a lease is given back by its holder",
                        "{event:?} {answer:?}"
                    );
                    self.members.remove(&Key::Lease(message.from));
                    self.owners.clear();
                    self.seen.note(RELEASED, 1);
                    return Ok(());
                }
                self.check_refusal(
                    now,
                    message,
                    Reason::UnknownLease,
                    unsubscribe.nonce,
                    event,
                    answer,
                )
            }
            Control::Ping(ping) => self.check_pong(now, message, ping.nonce, event, answer),
            _ => {
                law!(
                    event.is_none() && answer.is_none(),
                    "what only a bus says is not answered",
                    "{answer:?}"
                );
                Ok(())
            }
        }
    }

    /// What is due to a request for a lease: none where the address is to be proven first.
    fn due(
        &self,
        now: Duration,
        message: &Request,
        subscribe: &Subscribe,
    ) -> Option<Result<(), Reason>> {
        let ip = message.from.ip();
        if plan::right(&self.plan.subscribe, ip) == Right::Nothing {
            return Some(Err(Reason::NotAllowed));
        }
        if !self.is_proven(now, message) {
            return None;
        }
        Some(self.is_due(message.from, subscribe))
    }

    fn is_due(&self, from: SocketAddr, subscribe: &Subscribe) -> Result<(), Reason> {
        let limits = &self.plan.limits;
        let share = subscribe.sample;
        let has_share = share == 0.0 || (share > 0.0 && share <= 1.0);
        let is_legal = is_name(&subscribe.group)
            && is_name(&subscribe.name)
            && !subscribe.name.starts_with("_hailmary")
            && has_share
            && !(1..508).contains(&subscribe.max_frame_bytes)
            && (1..=limits.patterns_max).contains(&subscribe.topics.len());
        if !is_legal {
            return Err(Reason::BadRequest);
        }
        if !subscribe
            .topics
            .iter()
            .all(|pattern| wire::is_pattern(pattern))
        {
            return Err(Reason::BadTopic);
        }
        let standing = self.leased(from);
        let of_origin = self
            .members
            .values()
            .filter(|member| {
                member.lease.is_some() && is_same_origin(member.address.ip(), from.ip())
            })
            .count();
        if standing.is_none()
            && (self.leases() >= limits.leases_max || of_origin >= limits.leases_per_origin_max)
        {
            return Err(Reason::Full);
        }
        let is_member = standing.is_some_and(|member| member.terms.group == subscribe.group);
        let members = self
            .members
            .values()
            .filter(|member| member.terms.group == subscribe.group)
            .count();
        if !subscribe.group.is_empty() && !is_member && members >= limits.group_members_max {
            return Err(Reason::Full);
        }
        Ok(())
    }

    fn check_subscribe(
        &mut self,
        now: Duration,
        message: &Request,
        subscribe: &Subscribe,
        due: Option<Result<(), Reason>>,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        let nonce = subscribe.nonce;
        let Some(due) = due else {
            return self.check_challenge(now, message, nonce, event, answer);
        };
        if let Err(reason) = due {
            return self.check_refusal(now, message, reason, nonce, event, answer);
        }
        let key = Key::Lease(message.from);
        let stood = self.members.remove(&key);
        let stood_for = stood.as_ref().and_then(|member| member.lease.as_ref());
        if stood_for.is_none_or(|lease| lease.nonce != nonce) {
            *self.flows.entry(message.from).or_default() += 1;
        }
        let news = self.put_lease(now, message.from, subscribe, stood.clone());
        let member = self.members[&key].clone();
        match stood {
            None => {
                self.books.granted += 1;
                let is_granted = matches!(event, Some(LeaseEvent::Granted(_)));
                law!(
                    is_granted,
                    "a lease is granted",
                    "{event:?} to {}",
                    message.from
                );
            }
            Some(_) => {
                let proof = self.cookies.get(&subscribe.cookie);
                let made_ms = proof.map_or(0, |proof| proof.made_ms);
                let is_earlier = (made_ms..now.as_millis()).contains(&COOKIE_KEY_AGE.as_millis());
                self.seen.note(EARLIER_KEY, u64::from(is_earlier));
                self.check_renewed(event, member.series, news)?;
            }
        }
        let frame = answer.unwrap_or_default();
        let Some(Control::Lease(lease)) = frame.control else {
            law!(false, "a proven address gets its lease", "{frame:?}");
            return Ok(());
        };
        let granted = (lease.bus, lease.nonce, lease.lease_ms);
        law!(
            granted == (self.bus, nonce, self.lease_ms(subscribe)),
            "a lease is as long as was asked for, within bounds",
            "{lease:?}"
        );
        let stamp = frame.stamp.unwrap_or_default();
        let flow = Flow {
            events: stamp.sequence,
            dropped: stamp.dropped,
        };
        law!(
            stamp.sender == self.bus && flow == member.flow,
            "a lease's stamp tells the flow as it is",
            "{stamp:?} instead of {:?}",
            member.flow
        );
        self.keep_cookie(now, lease.cookie, message.from, nonce);
        Ok(())
    }

    fn check_challenge(
        &mut self,
        now: Duration,
        message: &Request,
        nonce: u64,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        if self.is_unanswered(now, message, challenge_bytes(nonce), event, &answer)? {
            return Ok(());
        }
        let Some(Control::Challenge(challenge)) = answer.and_then(|frame| frame.control) else {
            law!(false, "an unproven address is challenged", "{event:?}");
            return Ok(());
        };
        law!(
            event == Some(&LeaseEvent::Challenged) && challenge.nonce == nonce,
            "a challenge is counted and bears the nonce",
            "{event:?} {challenge:?}"
        );
        self.books.challenges += 1;
        self.keep_cookie(now, challenge.cookie, message.from, nonce);
        Ok(())
    }

    /// Holds what a renewal's report brought against what it had to.
    fn check_renewed(
        &mut self,
        event: Option<&LeaseEvent>,
        index: usize,
        expected: (u64, u64),
    ) -> Kept {
        let Some(LeaseEvent::Renewed { series, news, .. }) = event else {
            law!(false, "a lease is renewed", "{event:?}");
            return Ok(());
        };
        law!(
            series.index() == index && (news.lost, news.dropped) == expected,
            "a report's news is counted, within what was sent",
            "{news:?} instead of {expected:?}"
        );
        let series = self.books.series(index);
        series.lost += news.lost;
        series.dropped_there += news.dropped;
        self.seen.note(RENEWED, 1);
        Ok(())
    }

    fn keep_cookie(&mut self, now: Duration, cookie: Vec<u8>, address: SocketAddr, nonce: u64) {
        let made_ms = now.as_millis();
        self.cookies.insert(
            cookie,
            Proof {
                address,
                nonce,
                made_ms,
            },
        );
    }

    /// Puts a lease in the place of the one that stood, and says what its report brings.
    fn put_lease(
        &mut self,
        now: Duration,
        from: SocketAddr,
        subscribe: &Subscribe,
        stood: Option<Member>,
    ) -> (u64, u64) {
        let terms = Asked {
            group: subscribe.group.clone(),
            sample: subscribe.sample,
            events_per_second: subscribe.events_per_second,
        };
        let asked = (subscribe.max_frame_bytes > 0).then_some(subscribe.max_frame_bytes);
        let mut member = self.member(from, &subscribe.name, &subscribe.topics, &terms, asked);
        let report = subscribe
            .report
            .as_ref()
            .filter(|report| report.bus == self.bus);
        let told = report.map(|report| (report.lost, report.dropped));
        let expires = now + Duration::from_millis(u64::from(self.lease_ms(subscribe)));
        let (lost, dropped) = told.unwrap_or_default();
        let mut lease = Lease {
            expires,
            nonce: subscribe.nonce,
            lost,
            dropped,
        };
        let mut news = (0, 0);
        if let Some(stood) = stood {
            let before = stood
                .lease
                .as_ref()
                .map_or((0, 0, 0), |lease| (lease.nonce, lease.lost, lease.dropped));
            let before = match before {
                (nonce, lost, dropped) if nonce == subscribe.nonce => {
                    member.flow = stood.flow;
                    (lost, dropped)
                }
                _ => (0, 0),
            };
            if told.is_some() {
                let bound = |count: u64| count.min(member.flow.events);
                news = (
                    bound(lost.saturating_sub(before.0)),
                    bound(dropped.saturating_sub(before.1)),
                );
            } else {
                (lease.lost, lease.dropped) = before;
            }
            if stood.terms.events_per_second == terms.events_per_second {
                member.rate = stood.rate;
            }
        }
        member.lease = Some(lease);
        self.owners.clear();
        self.members.insert(Key::Lease(from), member);
        news
    }

    fn lease_ms(&self, subscribe: &Subscribe) -> u32 {
        match subscribe.lease_ms {
            0 => self.plan.limits.lease_ms,
            asked => asked.clamp(LEASE_MS_MIN, self.plan.limits.lease_ms_max),
        }
    }

    fn check_refusal(
        &mut self,
        now: Duration,
        message: &Request,
        reason: Reason,
        nonce: u64,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        if !self.is_proven(now, message)
            || reason == Reason::NotAllowed
            || reason == Reason::UnknownLease
        {
            let bytes = refusal_bytes(reason, nonce);
            if self.is_unanswered(now, message, bytes, event, &answer)? {
                return Ok(());
            }
        }
        let told = match answer.and_then(|frame| frame.control) {
            Some(Control::Refusal(refusal)) if refusal.nonce == nonce => Some(refusal.reason()),
            _ => None,
        };
        law!(
            told == Some(reason) && event == Some(&LeaseEvent::Refused(reason)),
            "who is refused is told why",
            "{event:?} {told:?} instead of {reason:?}"
        );
        self.books.refusals[reason as usize] += 1;
        Ok(())
    }

    fn check_pong(
        &mut self,
        now: Duration,
        message: &Request,
        nonce: u64,
        event: Option<&LeaseEvent>,
        answer: Option<Frame>,
    ) -> Kept {
        law!(event.is_none(), "a ping changes no lease", "{event:?}");
        let Some(frame) = answer else {
            // Its length depends on its counts, so the shortest one is what is certain.
            let least = pong_bytes(nonce, self.bus);
            self.forget_answered(now);
            let may = message.bytes < least + 22 || self.answered.len() >= ANSWERS_PER_SECOND - 1;
            law!(may, "a ping is answered", "of {} bytes", message.bytes);
            return Ok(());
        };
        let Some(Control::Pong(pong)) = frame.control else {
            law!(false, "a ping is answered by a pong", "{frame:?}");
            return Ok(());
        };
        let may = plan::right(&self.plan.publish, message.from.ip()) == Right::Something;
        let sender = message
            .stamp
            .as_ref()
            .filter(|_| may)
            .map_or(0, |stamp| stamp.sender);
        let arrived = self.arrived(sender).events;
        law!(
            (pong.nonce, pong.bus) == (nonce, self.bus),
            "a pong bears the nonce",
            "{pong:?}"
        );
        law!(
            pong.received <= arrived,
            "a pong tells of no event that did not come",
            "{pong:?}, {arrived} came"
        );
        self.seen.note(PONG, 1);
        Ok(())
    }

    /// Whether no answer was given, which takes a reason.
    fn is_unanswered(
        &mut self,
        now: Duration,
        message: &Request,
        answer_bytes: usize,
        event: Option<&LeaseEvent>,
        answer: &Option<Frame>,
    ) -> Result<bool, Broken> {
        let is_too_long = answer_bytes > message.bytes;
        if event != Some(&LeaseEvent::Unanswered) {
            law!(
                !is_too_long,
                "an unproven address is never answered with more bytes than it sent",
                "{answer_bytes} to {}",
                message.bytes
            );
            return Ok(false);
        }
        self.forget_answered(now);
        let may = is_too_long || self.answered.len() >= ANSWERS_PER_SECOND - 1;
        law!(
            may && answer.is_none(),
            "a request is left unanswered only where it is too short or one of too many",
            "{} bytes, {} answered",
            message.bytes,
            self.answered.len()
        );
        self.books.unanswered += 1;
        self.seen.note(TOO_MANY, u64::from(!is_too_long));
        Ok(true)
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_same_origin(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V6(one), IpAddr::V6(other)) => one.segments()[..4] == other.segments()[..4],
        (one, other) => one == other,
    }
}

fn bytes_of(control: Control) -> usize {
    let frame = Frame {
        control: Some(control),
        ..Frame::default()
    };
    frame.encoded_len()
}

fn challenge_bytes(nonce: u64) -> usize {
    let cookie = vec![0; COOKIE_BYTES];
    bytes_of(Control::Challenge(hailmary_proto::v1::Challenge {
        cookie,
        nonce,
    }))
}

fn refusal_bytes(reason: Reason, nonce: u64) -> usize {
    let reason = reason.into();
    bytes_of(Control::Refusal(hailmary_proto::v1::Refusal {
        reason,
        nonce,
    }))
}

fn pong_bytes(nonce: u64, bus: u64) -> usize {
    let pong = hailmary_proto::v1::Pong {
        nonce,
        bus,
        received: 0,
        lost: 0,
    };
    bytes_of(Control::Pong(pong))
}
