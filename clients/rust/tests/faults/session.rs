//! A subscription without sockets, and a clock that is told what to say.

use std::time::Duration;

use hailmary_client::lease::{LeaseState, Origin, Subscription};
use hailmary_proto::decode::Decoder;
use hailmary_proto::v1;
use prost::Message;

use crate::bus::{Script, kind_of};
use crate::subscriber::{Driver, NamedCounts, counts_of};

/// No step makes a client talk more often without time passing.
const EXCHANGES_MAX: u32 = 100;

/// A day's renewals are fewer.
const WAKE_UPS_MAX: u32 = 100_000;

pub(crate) struct SessionDriver {
    subscription: Subscription,
    now: Duration,
    is_bus_there: bool,
    requests: Vec<&'static str>,
}

impl SessionDriver {
    pub(crate) fn new() -> Self {
        let request = v1::Subscribe {
            topics: vec![">".to_owned()],
            ..v1::Subscribe::default()
        };
        // Late enough for a clock that jumps back.
        let now = Duration::from_secs(1_000);
        Self {
            subscription: Subscription::new(request, 1, now),
            now,
            is_bus_there: false,
            requests: vec![],
        }
    }

    /// Says what is due, and takes the answers, which come at once.
    fn exchange(&mut self, bus: &mut Script) {
        for _ in 0..EXCHANGES_MAX {
            let Some(request) = self.subscription.poll_transmit(self.now) else {
                return;
            };
            let request = v1::Frame::decode(request).unwrap();
            self.requests.push(kind_of(&request));
            if !self.is_bus_there {
                continue;
            }
            if let Some(answer) = bus.answer(&request) {
                self.hand_over(Origin::Bus, &answer);
            }
        }
        panic!("it talks without end");
    }

    fn hand_over(&mut self, origin: Origin, datagram: &[u8]) {
        match Decoder::new().decode(datagram) {
            Ok(frame) => {
                self.subscription.handle_frame(self.now, origin, &frame);
            }
            Err(_) => self.subscription.ignore_datagram(),
        }
    }

    fn wake(&mut self, at: Duration, bus: &mut Script) {
        self.now = self.now.max(at);
        self.exchange(bus);
        self.subscription.handle_timeout(self.now);
    }
}

impl Driver for SessionDriver {
    fn subscribe(&mut self) {
        // It begins by itself.
    }

    fn start(&mut self) {
        self.is_bus_there = true;
    }

    fn stop(&mut self) {
        self.is_bus_there = false;
    }

    fn relocate(&mut self) {
        panic!("a session has no address");
    }

    fn await_lease(&mut self, bus: &mut Script) {
        self.exchange(bus);
        for _ in 0..EXCHANGES_MAX {
            if bus.has_granted {
                assert_eq!(self.subscription.state(), LeaseState::Held);
                return;
            }
            self.wake(self.subscription.poll_timeout().unwrap(), bus);
        }
        panic!("no lease, however long it waits");
    }

    fn deliver(&mut self, datagram: &[u8]) {
        self.hand_over(Origin::Elsewhere, datagram);
    }

    fn pass_time(&mut self, ms: u64, bus: &mut Script) {
        let until = self.now + Duration::from_millis(ms);
        self.exchange(bus);
        for _ in 0..WAKE_UPS_MAX {
            match self.subscription.poll_timeout() {
                Some(at) if at <= until => self.wake(at, bus),
                _ => return self.wake(until, bus),
            }
        }
        panic!("it turns in a circle");
    }

    fn jump(&mut self, ms: i64) {
        let distance = Duration::from_millis(ms.unsigned_abs());
        self.now = if ms < 0 {
            self.now - distance
        } else {
            self.now + distance
        };
    }

    fn close(&mut self) {
        if let Some(farewell) = self.subscription.close() {
            let farewell = v1::Frame::decode(farewell).unwrap();
            self.requests.push(kind_of(&farewell));
        }
    }

    fn close_descriptor(&mut self) {
        panic!("a session has no socket");
    }

    fn receive_fails(&mut self) {
        panic!("a session has no socket");
    }

    fn counts(&self) -> NamedCounts {
        counts_of(&self.subscription.counts().into())
    }

    fn requests(&self) -> Option<&[&'static str]> {
        Some(&self.requests)
    }
}
