//! What control messages bring about: leases, and answers.
//!
//! One registrar serves the whole bus, whichever data thread a message came to. It alone changes
//! the [`Directory`], and it alone says how much strangers are answered.

use std::collections::VecDeque;
use std::time::Duration;

use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use prost::Message;

use super::access::Rights;
use super::address::Address;
use super::cookie::CookieJar;
use super::directory::{Directory, Reconfigured};
use super::forwarder::ControlMessage;
use super::leases::{LeaseEvent, LeaseLimits, Leases, Request};
use super::publishers::Heard;
use super::throttle::Throttle;
use super::{Random, Settings, nonzero};

/// A control message for one address, to be sent from the listener that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The listener that the request came to.
    pub listener: usize,
    /// Where it goes.
    pub to: Address,
    /// The whole datagram.
    pub datagram: Vec<u8>,
}

/// Grants and ends leases, and answers.
pub struct Registrar {
    bus: u64,
    random: Random,
    leases: Leases,
    answers: VecDeque<Answer>,
}

impl std::fmt::Debug for Registrar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registrar")
            .field("bus", &self.bus)
            .finish_non_exhaustive()
    }
}

impl Registrar {
    /// Of the bus with this sender id.
    #[must_use]
    pub fn new(bus: u64, limits: LeaseLimits, now: Duration, mut random: Random) -> Self {
        let cookies = CookieJar::new(now, random());
        let throttle = Throttle::new(nonzero(&mut random));
        Self {
            bus,
            leases: Leases::new(bus, limits, cookies, throttle),
            answers: VecDeque::new(),
            random,
        }
    }

    /// Acts on a control message. What became of it is added to `events`. Of a publisher that
    /// pings, `flow` is given the stamp and says what came of its flow.
    pub fn handle_control(
        &mut self,
        now: Duration,
        message: ControlMessage,
        flow: impl FnOnce(&v1::Stamp) -> Heard,
        directory: &mut Directory,
        events: &mut Vec<LeaseEvent>,
    ) {
        if matches!(&message.from, Address::Unix(path) if path.is_empty()) {
            return; // Nowhere to answer to.
        }
        self.leases.rotate_key(now, &mut self.random);
        let request = Request {
            from: &message.from,
            peer: message.peer,
            bytes: message.datagram_bytes,
        };
        let answer = match &message.control {
            Control::Subscribe(subscribe) => {
                let (event, answer) = self.leases.subscribe(now, &request, subscribe, directory);
                events.push(event);
                answer
            }
            Control::Unsubscribe(unsubscribe) => {
                let (event, answer) =
                    self.leases
                        .unsubscribe(now, &request, unsubscribe, directory);
                events.push(event);
                answer
            }
            Control::Ping(ping) => {
                let rights = directory.access().publish.rights(message.peer);
                let stamp = message.stamp.as_ref();
                let stamp = stamp.filter(|_| !matches!(rights, Rights::Nothing));
                let flow = || stamp.map(flow).unwrap_or_default();
                self.pong(now, &request, flow, ping)
            }
            // What only a bus sends: of no use here, and answered it could go round for ever.
            Control::Challenge(_) | Control::Lease(_) | Control::Refusal(_) | Control::Pong(_) => {
                None
            }
        };
        directory.set_next_end(self.leases.next_end());
        self.answers.extend(answer.map(|frame| Answer {
            listener: message.listener,
            datagram: frame.encode_to_vec(),
            to: message.from,
        }));
    }

    fn pong(
        &mut self,
        now: Duration,
        request: &Request<'_>,
        flow: impl FnOnce() -> Heard,
        ping: &v1::Ping,
    ) -> Option<v1::Frame> {
        if !self.leases.permit_answer(now, request.from) {
            return None;
        }
        let flow = flow();
        let frame = v1::Frame {
            control: Some(Control::Pong(v1::Pong {
                nonce: ping.nonce,
                bus: self.bus,
                received: flow.received,
                lost: flow.missing,
            })),
            ..v1::Frame::default()
        };
        (frame.encoded_len() <= request.bytes).then_some(frame)
    }

    /// Ends the leases whose time is over.
    pub fn handle_timeout(
        &mut self,
        now: Duration,
        directory: &mut Directory,
        events: &mut Vec<LeaseEvent>,
    ) {
        while let Some(event) = self.leases.expire(now, directory) {
            events.push(event);
        }
        directory.set_next_end(self.leases.next_end());
    }

    /// Puts other settings in the place of those before. Leases stay, but for those whose holders
    /// may subscribe to nothing any more: their ends are added to `events`.
    pub fn reconfigure(
        &mut self,
        settings: &Settings,
        directory: &mut Directory,
        events: &mut Vec<LeaseEvent>,
    ) -> Reconfigured {
        let changes = directory.reconfigure(settings);
        self.leases.reconfigure(settings.leases);
        self.leases.revoke(directory, events);
        directory.set_next_end(self.leases.next_end());
        changes
    }

    /// When [`Registrar::handle_timeout`] is to be called next, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.leases.next_end()
    }

    /// The next answer to send.
    pub fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    /// The bus's own sender id, new at each start.
    #[must_use]
    pub fn bus(&self) -> u64 {
        self.bus
    }
}
