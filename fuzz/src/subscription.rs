//! What a subscriber of the Rust client believes and says, whatever comes to its socket: from the
//! bus's address, from any other, at any time.
//!
//! What becomes of each frame, how the lease stands after it and which cookie it brings is what a
//! plain reading of what is believed says. No count ever falls, what it says fits a datagram and is
//! never more often than a timer permits, and whoever waits for its timer does not turn in a circle.

use std::time::Duration;

use hailmary_client::lease::{
    self, LeaseState, Origin, RENEWAL_MIN, RETRY_MIN, Subscription, SubscriptionCounts, Verdict,
};
use hailmary_proto::decode::{Decoder, FrameView};
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{self, Challenge, Event, Frame, Refusal, Stamp};
use hailmary_proto::write::{COOKIE_BYTES_MAX, DATAGRAM_BYTES_MAX, UNPROVEN_REQUEST_BYTES_MIN};
use prost::Message;

use crate::tape::Tape;

/// Steps of one input.
const STEPS_MAX: usize = 300;

/// Bytes that it holds at once, beside those of a datagram of 64 KiB and what is decoded of it.
const BYTES_MAX: u64 = 4 << 20;

const NONCE: u64 = 7;

const BUSES: [u64; 3] = [77, 78, 0];

/// Requests that may go out in each of the shortest waits: one by the timer, one for a challenge
/// and one for a lease that ended.
const REQUESTS_PER_WAIT: u128 = 3;

/// See the module.
pub fn run(data: &[u8]) {
    crate::within(BYTES_MAX, || drive(data));
}

fn drive(data: &[u8]) {
    let mut tape = Tape::new(data);
    let mut driver = Driver::new();
    for _ in 0..STEPS_MAX {
        if tape.is_at_end() {
            break;
        }
        driver.step(&mut tape);
        driver.check();
    }
}

/// What a subscriber is to believe.
struct Believed {
    /// The sender id that the newest lease named.
    bus: Option<u64>,
    state: LeaseState,
    /// When the lease that is held ends.
    until: Duration,
    cookie: Vec<u8>,
    /// Whether it has asked, and got no lease since.
    is_unanswered: bool,
    restarts: u64,
    lapses: u64,
    ignored: u64,
}

impl Believed {
    fn new() -> Self {
        Self {
            bus: None,
            state: LeaseState::Asking,
            until: Duration::ZERO,
            cookie: Vec::new(),
            is_unanswered: false,
            restarts: 0,
            lapses: 0,
            ignored: 0,
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, LeaseState::Refused(_) | LeaseState::Closed)
    }

    fn follow(&mut self, now: Duration) {
        if self.state == LeaseState::Held && now >= self.until {
            self.lose();
        }
    }

    /// Whatever it had, it has to ask anew.
    fn lose(&mut self) {
        self.lapses += u64::from(self.state == LeaseState::Held);
        self.state = LeaseState::Asking;
    }

    fn take(&mut self, now: Duration, origin: Origin, frame: &FrameView<'_>) -> Verdict {
        self.follow(now);
        let is_waiting = self.is_unanswered && !self.has_ended();
        let is_answer = match frame.control() {
            Some(control) if is_waiting && origin == Origin::Bus => self.take_answer(now, control),
            _ => false,
        };
        let stamp = frame.stamp().filter(|stamp| self.bus == Some(stamp.sender));
        let verdict = match stamp.filter(|_| !self.has_ended()) {
            Some(stamp) if frame.events().len() > 0 => Verdict::Deliver {
                weight: match stamp.weight > 1.0 && stamp.weight < f64::INFINITY {
                    true => stamp.weight,
                    false => 1.0,
                },
            },
            Some(_) => Verdict::Consumed,
            None if is_answer => Verdict::Consumed,
            None => Verdict::Ignored,
        };
        self.ignored += u64::from(verdict == Verdict::Ignored);
        verdict
    }

    /// Whether it is an answer to what was asked, and believed.
    fn take_answer(&mut self, now: Duration, control: &Control) -> bool {
        let is_cookie = |cookie: &[u8]| !cookie.is_empty() && cookie.len() <= COOKIE_BYTES_MAX;
        match control {
            Control::Challenge(challenge)
                if challenge.nonce == NONCE && is_cookie(&challenge.cookie) =>
            {
                self.cookie.clone_from(&challenge.cookie);
                self.lose();
            }
            Control::Lease(lease) if lease.nonce == NONCE && is_cookie(&lease.cookie) => {
                self.take_lease(now, lease);
            }
            Control::Refusal(refusal) if refusal.nonce == NONCE => {
                self.take_refusal(refusal.reason());
            }
            _ => return false,
        }
        true
    }

    fn take_lease(&mut self, now: Duration, lease: &v1::Lease) {
        let is_another = self.bus.is_some_and(|bus| bus != lease.bus);
        self.restarts += u64::from(is_another);
        self.bus = Some(lease.bus);
        self.cookie.clone_from(&lease.cookie);
        self.state = LeaseState::Held;
        self.is_unanswered = false;
        // However short, it is renewed before it ends, and may be twice more.
        self.until = now + Duration::from_millis(lease.lease_ms.into()).max(3 * RENEWAL_MIN);
    }

    fn take_refusal(&mut self, reason: Reason) {
        let refused = match reason {
            Reason::NotAllowed => lease::Refusal::NotAllowed,
            Reason::BadTopic => lease::Refusal::BadTopic,
            Reason::BadRequest => lease::Refusal::BadRequest,
            Reason::UnknownLease => {
                self.cookie.clear();
                return self.lose();
            }
            Reason::Full | Reason::Unspecified => return,
        };
        self.state = LeaseState::Refused(refused);
    }
}

struct Driver {
    subscription: Subscription,
    believed: Believed,
    decoder: Decoder,
    now: Duration,
    counts: SubscriptionCounts,
    requests: u128,
    /// How often its socket changed, which is asked for at once.
    rebinds: u128,
}

impl Driver {
    fn new() -> Self {
        let request = v1::Subscribe {
            topics: vec![">".to_owned(), "a.*".to_owned()],
            ..v1::Subscribe::default()
        };
        Self {
            subscription: Subscription::new(request, NONCE, Duration::ZERO),
            decoder: Decoder::new(),
            now: Duration::ZERO,
            counts: SubscriptionCounts::default(),
            believed: Believed::new(),
            requests: 0,
            rebinds: 0,
        }
    }

    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.below(16) {
            0 => self.now += tape.pause(),
            1 => {
                self.now = self
                    .subscription
                    .poll_timeout()
                    .unwrap_or(self.now)
                    .max(self.now)
            }
            2 => self.subscription.handle_timeout(self.now),
            3 => {
                let datagram = tape.datagram();
                self.hand(tape, &datagram);
            }
            4 if tape.one_in(8) => {
                self.subscription.rebind(self.now);
                self.rebinds += 1;
                if !self.believed.has_ended() {
                    self.believed.cookie.clear();
                    self.believed.lose();
                }
            }
            5 if tape.one_in(32) => self.close(),
            6..=10 => {
                let datagram = answer(tape);
                self.hand(tape, &datagram);
            }
            _ => {
                let datagram = events(tape);
                self.hand(tape, &datagram);
            }
        }
        self.transmit();
    }

    fn hand(&mut self, tape: &mut Tape<'_>, datagram: &[u8]) {
        let origin = match tape.one_in(4) {
            true => Origin::Elsewhere,
            false => Origin::Bus,
        };
        let Ok(frame) = self.decoder.decode(datagram) else {
            self.believed.ignored += 1;
            return self.subscription.ignore_datagram();
        };
        let before = self.believed.bus;
        let expected = self.believed.take(self.now, origin, &frame);
        let verdict = self.subscription.handle_frame(self.now, origin, &frame);
        assert_eq!(verdict, expected, "{origin:?} {:?}", frame.control());
        assert!(origin == Origin::Bus || self.believed.bus == before);
        self.check_belief();
    }

    /// It believes what it is to believe.
    fn check_belief(&self) {
        let (is, counts) = (&self.believed, self.subscription.counts());
        assert_eq!(self.subscription.state(), is.state);
        assert_eq!(self.subscription.bus(), is.bus);
        let told = (counts.bus_restarts, counts.lapses, counts.ignored_frames);
        assert_eq!(told, (is.restarts, is.lapses, is.ignored));
    }

    fn transmit(&mut self) {
        self.believed.follow(self.now);
        while let Some(datagram) = self.subscription.poll_transmit(self.now) {
            assert!(datagram.len() >= UNPROVEN_REQUEST_BYTES_MIN);
            assert!(datagram.len() <= DATAGRAM_BYTES_MAX.min(4 * UNPROVEN_REQUEST_BYTES_MIN));
            let frame = Frame::decode(datagram).expect("what is said is a frame");
            let Some(Control::Subscribe(request)) = frame.control else {
                panic!("{frame:?}");
            };
            assert_eq!(request.nonce, NONCE);
            assert_eq!(request.cookie, self.believed.cookie);
            assert_eq!(request.report.map(|report| report.bus), self.believed.bus);
            assert!(!self.believed.has_ended());
            self.believed.is_unanswered = true;
            self.requests += 1;
        }
        self.check_belief();
    }

    /// What it holds it gives back, by its cookie.
    fn close(&mut self) {
        let is_known = !self.believed.has_ended() && !self.believed.cookie.is_empty();
        let datagram = self.subscription.close();
        assert_eq!(datagram.is_some(), is_known);
        if let Some(datagram) = datagram {
            let frame = Frame::decode(datagram).expect("what is said is a frame");
            let Some(Control::Unsubscribe(unsubscribe)) = frame.control else {
                panic!("{frame:?}");
            };
            assert_eq!(unsubscribe.cookie, self.believed.cookie);
        }
        if !self.believed.has_ended() {
            self.believed.state = LeaseState::Closed;
        }
    }

    fn check(&mut self) {
        let counts = self.subscription.counts();
        let (is, was) = (counts.flow, self.counts.flow);
        assert_eq!(is, was.plus(is.since(was)), "no count falls");
        self.counts = counts;
        let waits = 1 + self.now.as_nanos() / RETRY_MIN.as_nanos();
        let requests_max = REQUESTS_PER_WAIT * (waits + self.rebinds);
        assert!(
            self.requests <= requests_max,
            "{} requests in {:?}",
            self.requests,
            self.now
        );
        let mut later = self.subscription.counts();
        if self
            .subscription
            .poll_timeout()
            .is_some_and(|due| due <= self.now)
        {
            self.subscription.handle_timeout(self.now);
            self.transmit();
            later = self.subscription.counts();
            let due = self.subscription.poll_timeout();
            assert!(
                due.is_none_or(|due| due > self.now),
                "{due:?} at {:?}",
                self.now
            );
        }
        self.counts = later;
    }
}

fn stamp(tape: &mut Tape<'_>) -> Stamp {
    let near = |tape: &mut Tape<'_>| match tape.below(4) {
        0 => tape.number(),
        _ => u64::from(tape.byte()),
    };
    Stamp {
        sender: *tape.pick(&BUSES),
        sequence: near(tape),
        dropped: near(tape),
        hops: 1,
        weight: *tape.pick(&[0.0, 1.0, 2.5, -1.0, f64::NAN, f64::INFINITY]),
    }
}

fn cookie(tape: &mut Tape<'_>) -> Vec<u8> {
    vec![b'c'; *tape.pick(&[18, 18, 18, 0, 1, 51, 52, 300])]
}

fn nonce(tape: &mut Tape<'_>) -> u64 {
    match tape.one_in(8) {
        true => tape.number(),
        false => NONCE,
    }
}

fn answer(tape: &mut Tape<'_>) -> Vec<u8> {
    let control = match tape.below(4) {
        0 => Control::Challenge(Challenge {
            cookie: cookie(tape),
            nonce: nonce(tape),
        }),
        1 | 2 => Control::Lease(v1::Lease {
            bus: *tape.pick(&BUSES),
            lease_ms: *tape.pick(&[30_000, 3_000, 0, 1, 300_000, u32::MAX]),
            cookie: cookie(tape),
            nonce: nonce(tape),
        }),
        _ => Control::Refusal(Refusal {
            // Most reasons end all.
            reason: *tape.pick(&[5, 5, 5, 4, 4, 0, 99, -1, 1, 2, 3]),
            nonce: nonce(tape),
        }),
    };
    let frame = Frame {
        control: Some(control),
        stamp: tape.one_in(2).then(|| stamp(tape)),
        ..Frame::default()
    };
    frame.encode_to_vec()
}

fn events(tape: &mut Tape<'_>) -> Vec<u8> {
    let event = Event {
        topic: "a.b".to_owned(),
        ..Event::default()
    };
    let frame = Frame {
        events: vec![event; tape.below(5)],
        stamp: (!tape.one_in(8)).then(|| stamp(tape)),
        ..Frame::default()
    };
    frame.encode_to_vec()
}
