//! The subscriber's side of a lease: from the first Subscribe to the last.
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
//!    [`Verdict::Deliver`], the events are for the application. Go to 1.
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
use hailmary_proto::write::{UNPROVEN_REQUEST_BYTES_MIN, pad};
use prost::Message;

use crate::flow::{FlowCounts, FrameTally, Ledger};

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

/// The longest cookie that is carried back, in bytes. A bus's own are far
/// shorter; without a bound, a stranger's would swell the renewals.
pub const COOKIE_BYTES_MAX: usize = 256;

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
    /// The bus has as many subscribers as it may; asking again may help.
    #[error("the bus has no place for another subscriber")]
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
    /// Events received, lost on the way, and dropped by the bus.
    pub flow: FlowCounts,
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
        self.transmit_at = now.saturating_add(self.retry_after);
        self.retry_after = self.retry_after.saturating_mul(2).min(RETRY_MAX);
        self.pending = Request::Unanswered;
        self.request.report = self.report();
        Some(self.encode(Control::Subscribe(self.request.clone())))
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something next; `None` if never.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        (!self.has_ended()).then_some(self.transmit_at)
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
            Some(control) => self.handle_control(now, origin, control),
            None => Verdict::Ignored,
        };
        let verdict = match self.handle_events(frame) {
            Verdict::Ignored => answer,
            delivered => delivered,
        };
        if verdict == Verdict::Ignored {
            self.ignore_datagram();
        }
        verdict
    }

    /// Counts a datagram that is no frame.
    pub fn ignore_datagram(&mut self) {
        self.ignored_frames = self.ignored_frames.saturating_add(1);
    }

    /// Gives the subscription up. What it returns is to be sent once; if it gets
    /// lost, the lease lapses by itself. Nothing if there is nothing to give up.
    pub fn close(&mut self) -> Option<&[u8]> {
        if self.has_ended() {
            return None;
        }
        self.phase = Phase::Closed;
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
        self.ledger.doubt_flow();
    }

    fn handle_events(&mut self, frame: &FrameView<'_>) -> Verdict {
        let Some(stamp) = frame.stamp().filter(|stamp| self.bus == Some(stamp.sender)) else {
            return Verdict::Ignored;
        };
        if self.has_ended() {
            return Verdict::Ignored;
        }
        let events = frame.events().len();
        self.ledger.record(FrameTally {
            sequence: stamp.sequence,
            dropped: stamp.dropped,
            events: events as u64,
        });
        match events {
            0 => Verdict::Consumed,
            _ => Verdict::Deliver {
                weight: event_weight(stamp.weight),
            },
        }
    }

    fn handle_control(&mut self, now: Duration, origin: Origin, control: &Control) -> Verdict {
        let believed = origin == Origin::Bus
            && self.pending == Request::Unanswered
            && !self.has_ended()
            && answer_nonce(control) == Some(self.request.nonce);
        match control {
            Control::Challenge(challenge) if believed && carries(&challenge.cookie) => {
                self.handle_challenge(now, &challenge.cookie);
            }
            Control::Lease(lease) if believed && carries(&lease.cookie) => {
                self.handle_lease(now, lease);
            }
            Control::Refusal(refusal) if believed => self.handle_refusal(now, refusal.reason()),
            _ => return Verdict::Ignored,
        }
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

    fn handle_lease(&mut self, now: Duration, lease: &v1::Lease) {
        if self.bus != Some(lease.bus) {
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
            Reason::NotAllowed => self.phase = Phase::Refused(Refusal::NotAllowed),
            Reason::BadTopic => self.phase = Phase::Refused(Refusal::BadTopic),
            Reason::BadRequest => self.phase = Phase::Refused(Refusal::BadRequest),
            Reason::UnknownLease => self.begin_again(now),
            Reason::Full => self.refusal = Some(Refusal::Full),
            Reason::Unspecified => self.refusal = Some(Refusal::Other),
        }
    }

    /// At once where a lease stood until now, else by the timer.
    fn begin_again(&mut self, now: Duration) {
        self.request.cookie.clear();
        if matches!(self.phase, Phase::Held { .. }) {
            self.end_lease(Phase::Asking);
            self.transmit_at = now;
        }
        self.phase = Phase::Asking;
    }
}

/// A cookie that can be carried back.
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
