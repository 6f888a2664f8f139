//! What a subscriber of the Rust client believes and says, whatever comes to its socket: from the
//! bus's address, from any other, at any time.
//!
//! No count ever falls, events are delivered only under the sender id that a lease named, what it
//! says fits a datagram and is never more often than a timer permits, and whoever waits for its
//! timer does not turn in a circle.

use std::time::Duration;

use hailmary_client::lease::{
    LeaseState, Origin, RETRY_MIN, Subscription, SubscriptionCounts, Verdict,
};
use hailmary_proto::decode::Decoder;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{self, Challenge, Event, Frame, Refusal, Stamp};
use hailmary_proto::write::{DATAGRAM_BYTES_MAX, UNPROVEN_REQUEST_BYTES_MIN};
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

struct Driver {
    subscription: Subscription,
    decoder: Decoder,
    now: Duration,
    counts: SubscriptionCounts,
    /// Sender ids that a lease named.
    named: Vec<u64>,
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
            named: Vec::new(),
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
            return self.subscription.ignore_datagram();
        };
        let was = self.subscription.state();
        let verdict = self.subscription.handle_frame(self.now, origin, &frame);
        if let (Some(Control::Lease(lease)), Origin::Bus) = (frame.control(), origin)
            && lease.nonce == NONCE
        {
            self.named.push(lease.bus);
        }
        match verdict {
            Verdict::Deliver { weight } => {
                assert!(frame.events().len() > 0 && weight >= 1.0 && weight.is_finite());
                let sender = frame.stamp().map(|stamp| stamp.sender);
                assert!(sender.is_some_and(|sender| self.named.contains(&sender)));
                assert!(matches!(was, LeaseState::Asking | LeaseState::Held));
            }
            Verdict::Consumed => {}
            Verdict::Ignored => {
                let ignored = self.subscription.counts().ignored_frames;
                assert_eq!(ignored, self.counts.ignored_frames + 1);
            }
            other => panic!("{other:?}"),
        }
        if origin == Origin::Elsewhere {
            // Nobody else changes how it stands, but for a lease that has ended by the clock.
            let is = self.subscription.state();
            assert!(was == is || (was, is) == (LeaseState::Held, LeaseState::Asking));
        }
    }

    fn transmit(&mut self) {
        while let Some(datagram) = self.subscription.poll_transmit(self.now) {
            assert!(datagram.len() >= UNPROVEN_REQUEST_BYTES_MIN);
            assert!(datagram.len() <= DATAGRAM_BYTES_MAX.min(4 * UNPROVEN_REQUEST_BYTES_MIN));
            let frame = Frame::decode(datagram).expect("what is said is a frame");
            let Some(Control::Subscribe(request)) = frame.control else {
                panic!("{frame:?}");
            };
            assert_eq!(request.nonce, NONCE);
            self.requests += 1;
        }
    }

    fn close(&mut self) {
        if let Some(datagram) = self.subscription.close() {
            let frame = Frame::decode(datagram).expect("what is said is a frame");
            assert!(matches!(frame.control, Some(Control::Unsubscribe(_))));
        }
    }

    fn check(&mut self) {
        let counts = self.subscription.counts();
        let (is, was) = (counts.flow, self.counts.flow);
        assert_eq!(is, was.plus(is.since(was)), "no count falls");
        assert!(counts.ignored_frames >= self.counts.ignored_frames);
        assert!(counts.lapses >= self.counts.lapses);
        assert!(counts.bus_restarts >= self.counts.bus_restarts);
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
