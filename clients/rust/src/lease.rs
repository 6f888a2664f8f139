//! The subscriber's side of a lease: from the first Subscribe to the last. For programs
//! with a loop of their own, which speak in the types of `hailmary-proto`: this module
//! and [`flow`](crate::flow) follow that crate's version.
//!
//! Owns what is said to the bus and when, and what of the bus's answers and
//! frames is believed. It performs no I/O and reads no clock: time, the origin of
//! a datagram and the datagram come in as arguments, what is to be sent comes
//! out. The contract with whoever drives it:
//!
//! 1. Send what [`Subscription::poll_transmit`] gives until it gives nothing, to
//!    the bus, from the socket that the events shall come to. A datagram that
//!    could not be sent counts as one that was lost.
//! 2. Wait for a datagram, at most until [`Subscription::poll_timeout`].
//! 3. Decode it and hand it to [`Subscription::handle_frame`]; of
//!    [`Verdict::Deliver`], the events are for the application. If there was none,
//!    call [`Subscription::handle_timeout`]. Go to 1.
//!
//! All times are durations since one moment of the caller's choice; they must
//! come from a clock that does not jump.
//!
//! What is believed: answers only from the bus's own address, with the nonce of
//! this subscription, and while a request is unanswered; events only with the
//! sender id that the lease named, from wherever, since a bus sends them from a
//! socket of their own. What is said is bounded: one request at once for the
//! first challenge or for a lease that ended, all others by a timer of 100 ms or
//! more. So no peer can turn a subscriber into a fast one.

use std::time::Duration;

use hailmary_proto::decode::FrameView;
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::write::{COOKIE_BYTES_MAX, UNPROVEN_REQUEST_BYTES_MIN, pad};
use prost::Message;

use crate::flow::{FlowCounts, Ledger, Position};

/// How long to wait for an answer before asking again, at first: far above a
/// round trip in a data centre, below what a person notices.
pub const RETRY_MIN: Duration = Duration::from_millis(100);

/// The longest wait between two requests that get no answer: as often as a
/// standing lease is renewed.
pub const RETRY_MAX: Duration = Duration::from_secs(2);

/// The longest wait between two renewals. A bus that restarted learns of its
/// subscribers by them, so they are without events for this long at most.
pub const RENEWAL_MAX: Duration = Duration::from_secs(2);

/// The shortest wait between two renewals, whatever short lease a bus grants.
pub const RENEWAL_MIN: Duration = Duration::from_millis(100);

/// A lease is renewed after this part of it, so that two renewals may get lost.
const RENEWALS_PER_LEASE: u32 = 3;

/// Where a datagram came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The address that the requests go to.
    Bus,
    /// Any other, such as the socket that a bus sends events from.
    Elsewhere,
}

/// What to do with a frame that was handed in.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// Its events are the subscription's, each standing for this many.
    Deliver {
        /// At least 1; more where the bus sampled.
        weight: f64,
    },
    /// It was an answer, or told of the flow without bringing events.
    Consumed,
    /// It is none of this subscription's business.
    Ignored,
}

/// Why a bus refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// This source may not subscribe to these patterns.
    #[error("the bus does not allow this subscription from here")]
    NotAllowed,
    /// A pattern is illegal in the bus's eyes.
    #[error("the bus takes a topic pattern for illegal")]
    BadTopic,
    /// The request as a whole is.
    #[error("the bus takes the request for illegal")]
    BadRequest,
    /// The bus has as many subscribers as it may, or the group as many members; asking
    /// again may help.
    #[error("the bus has no place for another subscriber, or its group for another member")]
    Full,
    /// A reason that this client does not know; asking again may help.
    #[error("the bus refuses for a reason that this client does not know")]
    Other,
}

/// How a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseState {
    /// No lease stands; one is being asked for, after a first or a lapsed one alike.
    Asking,
    /// The bus sends events.
    Held,
    /// The bus refused for good; nothing more is sent.
    Refused(Refusal),
    /// The subscription was given up.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Wants a challenge, or a lease at once where an old cookie is still good.
    Asking,
    /// Has answered a challenge.
    Proving,
    Held {
        until: Duration,
    },
    Refused(Refusal),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// Answers are believed.
    Unanswered,
    Answered,
}

/// Totals of a subscription since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionCounts {
    /// Events received, lost on the way, dropped by the bus, and come twice. None of
    /// these ever falls.
    pub flow: FlowCounts,
    /// Events that are missing and may still come.
    pub awaited: u64,
    /// Frames and answers that were not believed; malformed datagrams too, where
    /// the driver told of them by [`Subscription::ignore_datagram`].
    pub ignored_frames: u64,
    /// How often a bus with another id granted the lease.
    pub bus_restarts: u64,
    /// How often a lease ended before it was renewed.
    pub lapses: u64,
}

/// One subscription: the handshake, the renewals and the books.
#[derive(Debug)]
pub struct Subscription {
    request: v1::Subscribe,
    phase: Phase,
    /// The sender id of the bus that granted the newest lease.
    bus: Option<u64>,
    pending: Request,
    /// When the next request is due.
    transmit_at: Duration,
    /// How long to wait after it, if there is no answer.
    retry_after: Duration,
    /// The newest refusal that is not final.
    refusal: Option<Refusal>,
    heard_at: Duration,
    ledger: Ledger,
    ignored_frames: u64,
    bus_restarts: u64,
    lapses: u64,
    datagram: Vec<u8>,
}

impl Subscription {
    /// Begins to ask for `request` at once. The nonce must be random and new; of
    /// the request, `cookie`, `report` and `nonce` are set here.
    #[must_use]
    pub fn new(mut request: v1::Subscribe, nonce: u64, now: Duration) -> Self {
        request.nonce = nonce;
        request.cookie.clear();
        request.report = None;
        Self {
            request,
            phase: Phase::Asking,
            bus: None,
            pending: Request::Answered,
            transmit_at: now,
            retry_after: RETRY_MIN,
            refusal: None,
            heard_at: now,
            ledger: Ledger::default(),
            ignored_frames: 0,
            bus_restarts: 0,
            lapses: 0,
            datagram: Vec::new(),
        }
    }

    /// The next datagram that is due, or nothing. Each call may give one more.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<&[u8]> {
        self.note_lapse(now);
        if self.has_ended() || now < self.transmit_at {
            return None;
        }
        if self.pending == Request::Answered {
            self.ledger.ask();
        }
        self.transmit_at = now.saturating_add(self.retry_after);
        self.retry_after = self.retry_after.saturating_mul(2).min(RETRY_MAX);
        self.pending = Request::Unanswered;
        self.request.report = self.report();
        Some(self.encode(Control::Subscribe(self.request.clone())))
    }

    /// When [`poll_transmit`](Self::poll_transmit) or
    /// [`handle_timeout`](Self::handle_timeout) has something next to do; `None` if
    /// never.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let transmit_at = (!self.has_ended()).then_some(self.transmit_at);
        [transmit_at, self.ledger.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes a frame that arrived.
    pub fn handle_frame(
        &mut self,
        now: Duration,
        origin: Origin,
        frame: &FrameView<'_>,
    ) -> Verdict {
        self.note_lapse(now);
        let answer = match frame.control() {
            Some(control) => self.handle_control(now, origin, control, frame.stamp()),
            None => Verdict::Ignored,
        };
        let verdict = match self.handle_events(now, frame) {
            Verdict::Ignored => answer,
            delivered => delivered,
        };
        if verdict == Verdict::Ignored {
            self.ignore_datagram();
        }
        verdict
    }

    /// Takes note that no datagram waits: what has been missing for longer than
    /// [`WINDOW`](crate::flow::WINDOW) is lost. (While datagrams do wait, what is
    /// missing may be among them, however long the application let them lie.)
    pub fn handle_timeout(&mut self, now: Duration) {
        self.ledger.settle(now);
    }

    /// The socket is another one from now on, with another address. A lease is of one
    /// address alone: it has ended, and another is asked for at once.
    pub fn rebind(&mut self, now: Duration) {
        if self.has_ended() {
            return;
        }
        self.request.cookie.clear();
        if matches!(self.phase, Phase::Held { .. }) {
            self.end_lease(Phase::Asking);
        }
        self.phase = Phase::Asking;
        self.transmit_at = now;
        self.retry_after = RETRY_MIN;
    }

    /// Counts a datagram that is no frame.
    pub fn ignore_datagram(&mut self) {
        self.ignored_frames = self.ignored_frames.saturating_add(1);
    }

    /// Gives the subscription up, and counts as lost what is still missing. What it
    /// returns is to be sent once; if it gets lost, the lease lapses by itself.
    /// Nothing if there is nothing to give up.
    pub fn close(&mut self) -> Option<&[u8]> {
        if self.has_ended() {
            return None;
        }
        self.end(Phase::Closed);
        let (cookie, nonce) = (self.request.cookie.clone(), self.request.nonce);
        (!cookie.is_empty())
            .then(|| self.encode(Control::Unsubscribe(v1::Unsubscribe { cookie, nonce })))
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> LeaseState {
        match self.phase {
            Phase::Asking | Phase::Proving => LeaseState::Asking,
            Phase::Held { .. } => LeaseState::Held,
            Phase::Refused(reason) => LeaseState::Refused(reason),
            Phase::Closed => LeaseState::Closed,
        }
    }

    /// The newest refusal after which it asks again, since the last lease.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// When the bus last answered; when the subscription began, if it never has.
    #[must_use]
    pub fn heard_at(&self) -> Duration {
        self.heard_at
    }

    /// The id of the bus that granted the newest lease.
    #[must_use]
    pub fn bus(&self) -> Option<u64> {
        self.bus
    }

    /// The totals so far.
    #[must_use]
    pub fn counts(&self) -> SubscriptionCounts {
        SubscriptionCounts {
            flow: self.ledger.total(),
            awaited: self.ledger.awaited(),
            ignored_frames: self.ignored_frames,
            bus_restarts: self.bus_restarts,
            lapses: self.lapses,
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Refused(_) | Phase::Closed)
    }

    fn report(&self) -> Option<v1::Report> {
        let counts = self.ledger.of_bus();
        self.bus.map(|bus| v1::Report {
            bus,
            received: counts.received,
            lost: counts.lost,
            // What arrives is handed out; nothing is dropped on this side.
            dropped: 0,
        })
    }

    /// Every request is padded, also one with a cookie: the bus may not know it
    /// any more, and then answers an unproven address.
    fn encode(&mut self, control: Control) -> &[u8] {
        let mut frame = v1::Frame {
            control: Some(control),
            ..v1::Frame::default()
        };
        pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
        self.datagram.clear();
        self.datagram.extend_from_slice(&frame.encode_to_vec());
        &self.datagram
    }

    /// The own clock says that the lease is over. The cookie is kept: with it,
    /// the bus may grant the next one without a challenge.
    fn note_lapse(&mut self, now: Duration) {
        if matches!(self.phase, Phase::Held { until } if now >= until) {
            self.end_lease(Phase::Asking);
        }
    }

    fn end_lease(&mut self, phase: Phase) {
        self.phase = phase;
        self.lapses = self.lapses.saturating_add(1);
        self.ledger.lapse();
    }

    /// For good: nothing that comes now is believed, so nothing is awaited.
    fn end(&mut self, phase: Phase) {
        self.phase = phase;
        self.ledger.settle_all();
    }

    /// Events that came before, or too late, are delivered all the same: the stamps
    /// are for the books, and a wrong one must not silence a bus.
    fn handle_events(&mut self, now: Duration, frame: &FrameView<'_>) -> Verdict {
        let Some(stamp) = frame.stamp().filter(|stamp| self.bus == Some(stamp.sender)) else {
            return Verdict::Ignored;
        };
        if self.has_ended() {
            return Verdict::Ignored;
        }
        let events = frame.events().len();
        let position = Position {
            sequence: stamp.sequence,
            dropped: stamp.dropped,
        };
        self.ledger.record(now, position, events as u64);
        match events {
            0 => Verdict::Consumed,
            _ => Verdict::Deliver {
                weight: event_weight(stamp.weight),
            },
        }
    }

    fn handle_control(
        &mut self,
        now: Duration,
        origin: Origin,
        control: &Control,
        stamp: Option<&v1::Stamp>,
    ) -> Verdict {
        let believed = origin == Origin::Bus
            && self.pending == Request::Unanswered
            && !self.has_ended()
            && answer_nonce(control) == Some(self.request.nonce);
        match control {
            Control::Challenge(challenge) if believed && carries(&challenge.cookie) => {
                self.handle_challenge(now, &challenge.cookie);
            }
            Control::Lease(lease) if believed && carries(&lease.cookie) => {
                self.handle_lease(now, lease, stamp);
            }
            Control::Refusal(refusal) if believed => self.handle_refusal(now, refusal.reason()),
            _ => return Verdict::Ignored,
        }
        self.heard_at = now;
        Verdict::Consumed
    }

    /// A challenge is answered at once, but the next ones before a lease only by
    /// the timer: a bus that takes no cookie must not be asked in a circle.
    fn handle_challenge(&mut self, now: Duration, cookie: &[u8]) {
        self.request.cookie.clear();
        self.request.cookie.extend_from_slice(cookie);
        match self.phase {
            Phase::Proving => return,
            // In answer to a renewal: the bus knows of no lease.
            Phase::Held { .. } => self.end_lease(Phase::Proving),
            _ => self.phase = Phase::Proving,
        }
        self.transmit_at = now;
    }

    fn handle_lease(&mut self, now: Duration, lease: &v1::Lease, stamp: Option<&v1::Stamp>) {
        if self.bus == Some(lease.bus) {
            let stamp = stamp.filter(|stamp| stamp.sender == lease.bus);
            self.ledger.resume(stamp.map(|stamp| stamp.sequence));
        } else {
            self.bus_restarts += u64::from(self.bus.is_some());
            self.ledger.begin_bus();
            self.bus = Some(lease.bus);
        }
        let granted = Duration::from_millis(lease.lease_ms.into());
        let renewal = (granted / RENEWALS_PER_LEASE).clamp(RENEWAL_MIN, RENEWAL_MAX);
        self.request.cookie.clone_from(&lease.cookie);
        self.phase = Phase::Held {
            until: now.saturating_add(granted.max(RENEWAL_MIN * RENEWALS_PER_LEASE)),
        };
        self.pending = Request::Answered;
        self.refusal = None;
        self.transmit_at = now.saturating_add(renewal);
        self.retry_after = RETRY_MIN;
    }

    fn handle_refusal(&mut self, now: Duration, reason: Reason) {
        match reason {
            Reason::NotAllowed => self.end(Phase::Refused(Refusal::NotAllowed)),
            Reason::BadTopic => self.end(Phase::Refused(Refusal::BadTopic)),
            Reason::BadRequest => self.end(Phase::Refused(Refusal::BadRequest)),
            Reason::UnknownLease => self.begin_again(now),
            Reason::Full => self.refusal = Some(Refusal::Full),
            Reason::Unspecified => self.refusal = Some(Refusal::Other),
        }
    }

    /// At once where a lease stood until now, else by the timer. Whoever has answered a challenge
    /// has had its one answer at once: another after this is no first one.
    fn begin_again(&mut self, now: Duration) {
        self.request.cookie.clear();
        if matches!(self.phase, Phase::Held { .. }) {
            self.end_lease(Phase::Asking);
            self.transmit_at = now;
        }
    }
}

/// A cookie as a bus makes them; a longer one would swell the renewals.
fn carries(cookie: &[u8]) -> bool {
    (1..=COOKIE_BYTES_MAX).contains(&cookie.len())
}

fn answer_nonce(control: &Control) -> Option<u64> {
    match control {
        Control::Challenge(challenge) => Some(challenge.nonce),
        Control::Lease(lease) => Some(lease.nonce),
        Control::Refusal(refusal) => Some(refusal.nonce),
        _ => None,
    }
}

/// Anything that is no number of at least one stands for one.
fn event_weight(weight: f64) -> f64 {
    if weight.is_finite() {
        weight.max(1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::WINDOW;
    use hailmary_proto::decode::Decoder;
    use proptest::prelude::*;

    const NONCE: u64 = 7;
    const BUS: u64 = 77;

    fn subscription() -> Subscription {
        let request = v1::Subscribe {
            topics: vec![">".to_owned()],
            ..v1::Subscribe::default()
        };
        Subscription::new(request, NONCE, Duration::ZERO)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn hand(
        subscription: &mut Subscription,
        now: u64,
        origin: Origin,
        frame: &v1::Frame,
    ) -> Verdict {
        let bytes = frame.encode_to_vec();
        let mut decoder = Decoder::new();
        let view = decoder.decode(&bytes).unwrap();
        subscription.handle_frame(ms(now), origin, &view)
    }

    fn answer(subscription: &mut Subscription, now: u64, control: Control) -> Verdict {
        hand(subscription, now, Origin::Bus, &control_frame(control))
    }

    fn control_frame(control: Control) -> v1::Frame {
        v1::Frame {
            control: Some(control),
            ..v1::Frame::default()
        }
    }

    fn challenge(cookie: &[u8]) -> Control {
        Control::Challenge(v1::Challenge {
            cookie: cookie.to_vec(),
            nonce: NONCE,
        })
    }

    fn lease(bus: u64, lease_ms: u32, cookie: &[u8]) -> Control {
        Control::Lease(v1::Lease {
            bus,
            lease_ms,
            cookie: cookie.to_vec(),
            nonce: NONCE,
        })
    }

    fn refusal(reason: Reason) -> Control {
        Control::Refusal(v1::Refusal {
            reason: reason.into(),
            nonce: NONCE,
        })
    }

    fn events(sender: u64, sequence: u64, count: usize) -> v1::Frame {
        v1::Frame {
            events: vec![v1::Event::default(); count],
            stamp: Some(v1::Stamp {
                sender,
                sequence,
                ..v1::Stamp::default()
            }),
            ..v1::Frame::default()
        }
    }

    /// The request that is due, which must be the only one.
    fn request(subscription: &mut Subscription, now: u64) -> v1::Subscribe {
        let bytes = subscription.poll_transmit(ms(now)).unwrap().to_vec();
        assert!(bytes.len() >= UNPROVEN_REQUEST_BYTES_MIN);
        assert_eq!(subscription.poll_transmit(ms(now)), None);
        match v1::Frame::decode(bytes.as_slice()).unwrap().control {
            Some(Control::Subscribe(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    /// A subscription that got a lease of 3 s at the moment 0.
    fn held() -> Subscription {
        let mut subscription = subscription();
        assert!(request(&mut subscription, 0).cookie.is_empty());
        answer(&mut subscription, 0, challenge(b"c"));
        assert_eq!(request(&mut subscription, 0).cookie, b"c");
        answer(&mut subscription, 0, lease(BUS, 3_000, b"l"));
        assert_eq!(subscription.state(), LeaseState::Held);
        assert_eq!(subscription.heard_at(), ms(0));
        subscription
    }

    #[test]
    fn asks_again_ever_more_slowly() {
        let mut subscription = subscription();
        let mut now = 0;
        for wait in [100, 200, 400, 800, 1_600, 2_000, 2_000, 2_000] {
            let asked = request(&mut subscription, now);
            assert_eq!((asked.nonce, asked.report), (NONCE, None));
            assert_eq!(subscription.poll_transmit(ms(now + wait - 1)), None);
            now += wait;
            assert_eq!(subscription.poll_timeout(), Some(ms(now)));
        }
    }

    #[test]
    fn renews_in_time_with_cookie_and_report() {
        let mut subscription = held();
        hand(&mut subscription, 1, Origin::Elsewhere, &events(BUS, 2, 3));
        assert_eq!(subscription.poll_timeout(), Some(ms(1_000)));
        let renewal = request(&mut subscription, 1_000);
        assert_eq!(renewal.cookie, b"l");
        let report = renewal.report.unwrap();
        assert_eq!((report.bus, report.received, report.lost), (BUS, 3, 0));
        answer(&mut subscription, 1_000, lease(BUS, 300_000, b"m"));
        assert_eq!(subscription.heard_at(), ms(1_000));
        // The loss is due a moment later, and is then reported with what is known.
        assert_eq!(subscription.poll_timeout(), Some(ms(3_000)));
        let renewal = request(&mut subscription, 3_000);
        assert_eq!(renewal.cookie, b"m");
        assert_eq!(renewal.report.unwrap().lost, 0);
        assert_eq!(subscription.poll_timeout(), Some(ms(1) + WINDOW));
        assert_eq!(subscription.poll_transmit(ms(1) + WINDOW), None);
        assert_eq!(subscription.counts().flow.lost, 0);
        subscription.handle_timeout(ms(1) + WINDOW);
        assert_eq!(subscription.counts().flow.lost, 2);
        assert_eq!(subscription.poll_timeout(), Some(ms(3_100)));
        let report = request(&mut subscription, 3_100).report.unwrap();
        assert_eq!((report.received, report.lost, report.dropped), (3, 2, 0));
    }

    #[test]
    fn the_stamp_of_a_lease_tells_of_the_tail() {
        let mut subscription = held();
        hand(&mut subscription, 1, Origin::Elsewhere, &events(BUS, 0, 3));
        request(&mut subscription, 1_000);
        let mut granted = control_frame(lease(BUS, 3_000, b"m"));
        granted.stamp = Some(v1::Stamp {
            sender: BUS,
            sequence: 10,
            dropped: 5,
            ..v1::Stamp::default()
        });
        hand(&mut subscription, 1_000, Origin::Bus, &granted);
        assert_eq!(subscription.state(), LeaseState::Held);
        let told = |subscription: &Subscription| {
            let flow = subscription.counts().flow;
            (flow.received, flow.lost, flow.dropped)
        };
        assert_eq!(told(&subscription), (3, 0, 5));
        subscription.close();
        assert_eq!(
            told(&subscription),
            (3, 2, 5),
            "nothing is awaited any more"
        );
        assert_eq!(subscription.poll_timeout(), None);
    }

    /// An application that was busy for longer than the window.
    #[test]
    fn what_lies_unread_is_not_lost() {
        let mut subscription = held();
        hand(&mut subscription, 1, Origin::Elsewhere, &events(BUS, 2, 3));
        subscription.poll_transmit(ms(60_000));
        for sequence in [5, 0] {
            let waited = events(BUS, sequence, 2);
            hand(&mut subscription, 60_000, Origin::Elsewhere, &waited);
        }
        subscription.handle_timeout(ms(60_000));
        let flow = subscription.counts().flow;
        assert_eq!((flow.received, flow.lost, flow.duplicates), (7, 0, 0));
    }

    #[test]
    fn a_refusal_ends_the_waiting() {
        let mut subscription = held();
        hand(&mut subscription, 1, Origin::Elsewhere, &events(BUS, 2, 3));
        request(&mut subscription, 1_000);
        answer(&mut subscription, 1_001, refusal(Reason::NotAllowed));
        assert_eq!(subscription.counts().flow.lost, 2);
        assert_eq!(subscription.poll_timeout(), None);
    }

    /// A stopped process: its lease is over, its socket full of what came before.
    #[test]
    fn a_stamped_lease_after_a_lapse_begins_the_flow() {
        let mut subscription = held();
        hand(&mut subscription, 1, Origin::Elsewhere, &events(BUS, 0, 9));
        assert_eq!(request(&mut subscription, 60_000).cookie, b"l");
        for sequence in [12, 9] {
            let old = events(BUS, sequence, 3);
            hand(&mut subscription, 60_000, Origin::Elsewhere, &old);
        }
        let mut granted = events(BUS, 0, 0);
        granted.control = Some(lease(BUS, 3_000, b"m"));
        hand(&mut subscription, 60_001, Origin::Bus, &granted);
        hand(
            &mut subscription,
            60_002,
            Origin::Elsewhere,
            &events(BUS, 0, 4),
        );
        let flow = subscription.counts().flow;
        assert_eq!((flow.received, flow.lost, flow.duplicates), (19, 0, 0));
        assert_eq!(subscription.counts().lapses, 1);
    }

    #[test]
    fn another_socket_asks_at_once_for_a_lease_of_its_own() {
        let mut subscription = held();
        assert!(request_is_due(&mut subscription, 1).is_none());
        subscription.rebind(ms(1));
        assert_eq!(subscription.state(), LeaseState::Asking);
        assert_eq!(subscription.counts().lapses, 1);
        assert!(request_is_due(&mut subscription, 1).is_some());
        let next = subscription.poll_timeout().unwrap();
        assert_eq!(next, ms(1) + RETRY_MIN);
        answer(&mut subscription, 2, lease(BUS, 3_000, b"y"));
        assert_eq!(subscription.state(), LeaseState::Held);
        subscription.close();
        subscription.rebind(ms(3));
        assert_eq!(subscription.state(), LeaseState::Closed);
        assert!(request_is_due(&mut subscription, 3).is_none());
    }

    fn request_is_due(subscription: &mut Subscription, now: u64) -> Option<Vec<u8>> {
        subscription.poll_transmit(ms(now)).map(<[u8]>::to_vec)
    }

    #[test]
    fn believes_answers_to_its_own_requests_alone() {
        let mut subscription = subscription();
        let early = answer(&mut subscription, 0, lease(BUS, 3_000, b"x"));
        assert_eq!(early, Verdict::Ignored);
        request(&mut subscription, 0);
        let foreign = Control::Challenge(v1::Challenge {
            cookie: b"x".to_vec(),
            nonce: NONCE + 1,
        });
        assert_eq!(answer(&mut subscription, 0, foreign), Verdict::Ignored);
        let elsewhere = control_frame(lease(BUS, 3_000, b"x"));
        let verdict = hand(&mut subscription, 0, Origin::Elsewhere, &elsewhere);
        assert_eq!(verdict, Verdict::Ignored);
        for cookie in [&[][..], &[0; COOKIE_BYTES_MAX + 1]] {
            assert_eq!(
                answer(&mut subscription, 0, challenge(cookie)),
                Verdict::Ignored
            );
        }
        assert_eq!(subscription.state(), LeaseState::Asking);
        assert_eq!(subscription.counts().ignored_frames, 5);
    }

    #[test]
    fn takes_events_by_their_sender_from_wherever() {
        let mut subscription = held();
        let deliver = |weight| Verdict::Deliver { weight };
        let mut frame = events(BUS, 0, 2);
        assert_eq!(
            hand(&mut subscription, 1, Origin::Elsewhere, &frame),
            deliver(1.0)
        );
        for (told, taken) in [
            (8.0, 8.0),
            (0.5, 1.0),
            (-1.0, 1.0),
            (f64::NAN, 1.0),
            (f64::INFINITY, 1.0),
        ] {
            frame.stamp.as_mut().unwrap().weight = told;
            assert_eq!(
                hand(&mut subscription, 1, Origin::Elsewhere, &frame),
                deliver(taken)
            );
        }
        let stranger = events(BUS + 1, 0, 2);
        assert_eq!(
            hand(&mut subscription, 1, Origin::Bus, &stranger),
            Verdict::Ignored
        );
        frame.stamp = None;
        assert_eq!(
            hand(&mut subscription, 1, Origin::Bus, &frame),
            Verdict::Ignored
        );
        let none = events(BUS, 20, 0);
        assert_eq!(
            hand(&mut subscription, 1, Origin::Elsewhere, &none),
            Verdict::Consumed
        );
        assert_eq!(subscription.counts().ignored_frames, 2);
        // Two came, and five times more.
        subscription.close();
        let flow = subscription.counts().flow;
        assert_eq!((flow.received, flow.duplicates, flow.lost), (2, 10, 18));
    }

    #[test]
    fn a_restarted_bus_is_asked_at_once_and_begins_a_flow() {
        let mut subscription = held();
        hand(&mut subscription, 1, Origin::Elsewhere, &events(BUS, 0, 9));
        request(&mut subscription, 1_000);
        answer(&mut subscription, 1_001, challenge(b"new"));
        assert_eq!(subscription.state(), LeaseState::Asking);
        assert_eq!(request(&mut subscription, 1_001).cookie, b"new");
        answer(&mut subscription, 1_002, lease(BUS + 1, 3_000, b"n"));
        assert_eq!(
            hand(
                &mut subscription,
                1_003,
                Origin::Elsewhere,
                &events(BUS, 9, 1)
            ),
            Verdict::Ignored
        );
        hand(
            &mut subscription,
            1_003,
            Origin::Elsewhere,
            &events(BUS + 1, 20, 1),
        );
        subscription.handle_timeout(ms(4_003));
        let report = request(&mut subscription, 4_003).report.unwrap();
        assert_eq!((report.bus, report.received, report.lost), (BUS + 1, 1, 20));
        let counts = subscription.counts();
        assert_eq!((counts.flow.received, counts.flow.lost), (10, 20));
        assert_eq!((counts.bus_restarts, counts.lapses), (1, 2));
    }

    #[test]
    fn a_lapse_by_the_own_clock_keeps_the_cookie_and_the_doubt() {
        let mut subscription = held();
        hand(&mut subscription, 1, Origin::Elsewhere, &events(BUS, 0, 9));
        assert_eq!(request(&mut subscription, 3_000).cookie, b"l");
        assert_eq!(subscription.state(), LeaseState::Asking);
        answer(&mut subscription, 3_001, lease(BUS, 3_000, b"m"));
        hand(
            &mut subscription,
            3_002,
            Origin::Elsewhere,
            &events(BUS, 1, 2),
        );
        subscription.close();
        let counts = subscription.counts();
        assert_eq!(
            (counts.flow.received, counts.flow.lost, counts.lapses),
            (11, 1, 1)
        );
    }

    #[test]
    fn final_refusals_end_it_and_the_others_wait() {
        for (reason, end) in [
            (Reason::NotAllowed, Refusal::NotAllowed),
            (Reason::BadTopic, Refusal::BadTopic),
            (Reason::BadRequest, Refusal::BadRequest),
        ] {
            let mut subscription = subscription();
            request(&mut subscription, 0);
            answer(&mut subscription, 1, refusal(reason));
            assert_eq!(subscription.state(), LeaseState::Refused(end));
            assert_eq!(subscription.poll_timeout(), None);
            assert_eq!(subscription.poll_transmit(ms(60_000)), None);
            assert_eq!(subscription.close(), None);
        }
        for (reason, told) in [
            (Reason::Full, Refusal::Full),
            (Reason::Unspecified, Refusal::Other),
        ] {
            let mut subscription = subscription();
            request(&mut subscription, 0);
            answer(&mut subscription, 1, refusal(reason));
            assert_eq!(subscription.refusal(), Some(told));
            assert_eq!(subscription.poll_timeout(), Some(ms(100)));
        }
    }

    #[test]
    fn an_unknown_lease_is_asked_for_from_the_beginning() {
        let mut subscription = held();
        request(&mut subscription, 1_000);
        answer(&mut subscription, 1_001, refusal(Reason::UnknownLease));
        assert!(request(&mut subscription, 1_001).cookie.is_empty());
        answer(&mut subscription, 1_002, refusal(Reason::UnknownLease));
        assert_eq!(subscription.poll_transmit(ms(1_002)), None);
    }

    #[test]
    fn challenges_and_refusals_in_turn_are_answered_by_the_timer() {
        let mut subscription = subscription();
        request(&mut subscription, 0);
        answer(&mut subscription, 1, challenge(b"c"));
        assert_eq!(request(&mut subscription, 1).cookie, b"c");
        for _ in 0..3 {
            answer(&mut subscription, 2, refusal(Reason::UnknownLease));
            answer(&mut subscription, 2, challenge(b"d"));
            assert_eq!(subscription.poll_transmit(ms(2)), None);
        }
        assert_eq!(subscription.poll_timeout(), Some(ms(201)));
        assert_eq!(request(&mut subscription, 201).cookie, b"d");
    }

    #[test]
    fn closes_with_the_cookie_once() {
        let mut subscription = held();
        let frame = v1::Frame::decode(subscription.close().unwrap()).unwrap();
        let expected = v1::Unsubscribe {
            cookie: b"l".to_vec(),
            nonce: NONCE,
        };
        assert_eq!(frame.control, Some(Control::Unsubscribe(expected)));
        assert_eq!(subscription.close(), None);
        assert_eq!(
            hand(&mut subscription, 1, Origin::Bus, &events(BUS, 0, 1)),
            Verdict::Ignored
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u16),
        Answer(u8, u8),
        Events(bool, u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<u16>().prop_map(Step::Wait),
            (0_u8..9, any::<u8>()).prop_map(|(kind, cookie)| Step::Answer(kind, cookie)),
            (any::<bool>(), any::<u64>(), 0_usize..4)
                .prop_map(|(ours, sequence, count)| Step::Events(ours, sequence, count)),
        ]
    }

    fn step_answer(kind: u8, cookie: u8) -> Control {
        match kind {
            0..3 => challenge(&[cookie]),
            3 => lease(BUS, 0, &[cookie]),
            4 => lease(BUS, u32::MAX, &[cookie]),
            5 => lease(BUS + u64::from(cookie), 900, &[]),
            6 => refusal(Reason::Full),
            7 => refusal(Reason::UnknownLease),
            _ => lease(BUS, 900, &[cookie]),
        }
    }

    proptest! {
        /// A hostile bus, with the right address and nonce, that answers at will.
        #[test]
        fn no_bus_makes_it_talk_fast(steps in prop::collection::vec(step(), 0..300)) {
            let mut subscription = subscription();
            let (mut now, mut sent) = (0_u64, 0_u64);
            for step in steps {
                match step {
                    Step::Wait(millis) => now += u64::from(millis % 500),
                    Step::Answer(kind, cookie) => {
                        answer(&mut subscription, now, step_answer(kind, cookie));
                    }
                    Step::Events(ours, sequence, count) => {
                        let sender = if ours { BUS } else { 1 };
                        hand(&mut subscription, now, Origin::Elsewhere, &events(sender, sequence, count));
                    }
                }
                while subscription.poll_transmit(ms(now)).is_some() {
                    sent += 1;
                }
                subscription.handle_timeout(ms(now));
                prop_assert!(subscription.poll_timeout().unwrap() > ms(now));
            }
            // By the timer, for a lease that ended, and for a challenge.
            prop_assert!(sent <= 3 * (now / 100 + 1), "{sent} in {now} ms");
        }

        #[test]
        fn no_bytes_make_it_panic(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
            let mut subscription = held();
            let mut decoder = Decoder::new();
            for datagram in datagrams {
                subscription.poll_transmit(Duration::MAX);
                if let Ok(view) = decoder.decode(&datagram) {
                    subscription.handle_frame(Duration::MAX, Origin::Bus, &view);
                }
            }
        }

        /// Through the whole path, what is told of loss is what was lost.
        #[test]
        fn loss_is_told_exactly(frames in prop::collection::vec((1_usize..9, 0_u8..3), 1..60)) {
            let mut subscription = held();
            let (mut sequence, mut lost, mut late) = (0, 0, Vec::new());
            for (count, fate) in frames {
                let frame = events(BUS, sequence, count);
                sequence += count as u64;
                match fate {
                    0 => lost += count as u64,
                    1 => late.push(frame),
                    _ => {
                        hand(&mut subscription, 1, Origin::Elsewhere, &frame);
                    }
                }
            }
            late.push(events(BUS, sequence, 0));
            for frame in late.iter().rev() {
                hand(&mut subscription, 2, Origin::Elsewhere, frame);
            }
            subscription.close();
            let told = subscription.counts().flow;
            prop_assert_eq!((told.received, told.lost), (sequence - lost, lost));
        }
    }
}
