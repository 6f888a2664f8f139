//! Asking a bus whether it is there, and what it received.
//!
//! Owns the one exchange that waits for an answer.

use std::io;
use std::time::{Duration, Instant};

use hailmary_proto::decode::Decoder;
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::write::{UNPROVEN_REQUEST_BYTES_MIN, pad};
use prost::Message;

use crate::address::{Address, Target};
use crate::endpoint::{BUFFER_BYTES, Endpoint};
use crate::lease::{Origin, RETRY_MAX, RETRY_MIN};
use crate::random::random_id;

/// Room for some answers beside the strangers' datagrams that come, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 64 << 10;

/// What a bus answered to a ping.
///
/// Of the events that a publisher had handed to the kernel when it asked, which its
/// `stats` call `sent`, each is counted here or in flight:
///
/// ```text
/// sent = received + lost + in flight
/// ```
///
/// In flight is what the ping overtook, or what lies in the bus's buffer. What the
/// publisher dropped itself is in none of these. A bus that was started later, or has
/// forgotten a publisher that was silent for long, counts from the first event on
/// that it heard then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pong {
    /// The bus's sender id. Another one than before: the bus restarted.
    pub bus: u64,
    /// Events that the bus received from the publisher that asked, each counted
    /// once; 0 for [`ping`].
    pub received: u64,
    /// Events of that publisher that the bus knows to be missing, lost in the
    /// bus's own full buffer included; 0 for [`ping`].
    pub lost: u64,
    /// From the ping that was answered to its answer.
    pub round_trip: Duration,
}

/// Asks the bus at `address` whether it is there, and waits for the answer. Asks
/// again, as datagrams may get lost, until the time is over.
///
/// # Errors
///
/// `TimedOut` if there was no answer; else the name is unknown, or there is no
/// socket to be had.
pub fn ping(address: &Address, timeout: Duration) -> io::Result<Pong> {
    ping_target(&Target::resolve(address)?, None, timeout)
}

/// The stamp tells the bus whose flow is asked for.
pub(crate) fn ping_target(
    target: &Target,
    stamp: Option<v1::Stamp>,
    timeout: Duration,
) -> io::Result<Pong> {
    let mut exchange = Exchange {
        endpoint: Endpoint::open(target, RECEIVE_BUFFER_BYTES)?,
        buffer: vec![0; BUFFER_BYTES],
        stamp,
    };
    let began = Instant::now();
    let mut wait = RETRY_MIN;
    loop {
        let left = timeout.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if let Some(pong) = exchange.ask(random_id()?, wait.min(left))? {
            return Ok(pong);
        }
        wait = wait.saturating_mul(2).min(RETRY_MAX);
    }
}

struct Exchange {
    endpoint: Endpoint,
    buffer: Vec<u8>,
    stamp: Option<v1::Stamp>,
}

impl Exchange {
    /// Sends one ping and waits so long for its answer.
    fn ask(&mut self, nonce: u64, wait: Duration) -> io::Result<Option<Pong>> {
        let asked = Instant::now();
        // If it cannot be sent now, it is as if it were lost.
        let _ = self.endpoint.send(&encode(self.stamp, nonce));
        loop {
            let left = wait.saturating_sub(asked.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let arrival = self.endpoint.receive(&mut self.buffer, left)?;
            let Some(arrival) = arrival.filter(|arrival| arrival.origin == Origin::Bus) else {
                continue;
            };
            let datagram = self.buffer.get(..arrival.bytes).unwrap_or_default();
            if let Some(pong) = read_pong(datagram, nonce) {
                return Ok(Some(Pong {
                    bus: pong.bus,
                    received: pong.received,
                    lost: pong.lost,
                    round_trip: asked.elapsed(),
                }));
            }
        }
    }
}

fn encode(stamp: Option<v1::Stamp>, nonce: u64) -> Vec<u8> {
    let mut frame = v1::Frame {
        stamp,
        control: Some(Control::Ping(v1::Ping { nonce })),
        ..v1::Frame::default()
    };
    pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
    frame.encode_to_vec()
}

fn read_pong(datagram: &[u8], nonce: u64) -> Option<v1::Pong> {
    match Decoder::new().decode(datagram).ok()?.control()? {
        Control::Pong(pong) if pong.nonce == nonce => Some(*pong),
        _ => None,
    }
}
