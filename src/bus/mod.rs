//! The core: what becomes of a datagram, without I/O.
//!
//! It opens no socket, reads no clock, writes no log, knows no thread and makes no randomness:
//! bytes, time and addresses come in as arguments, what is to be sent goes out through buffers
//! that the caller lends. The event loop, simulators, fuzzers and benches drive the same calls.
//!
//! The [`Directory`] says who gets what. A [`Forwarder`] brings events from datagrams to frames;
//! each data thread has one, and reads the directory. The [`Registrar`] alone changes it.
//!
//! # One turn
//!
//! 1. [`Registrar::handle_timeout`] where [`Directory::is_overdue`], whichever data thread's turn it
//!    is, so that nothing goes by a lease that has ended, however long the caller slept. Then
//!    [`Forwarder::begin_turn`]. From here to step 4 the directory must not change, so that sets
//!    and places stand still while frames are under construction.
//! 2. [`Forwarder::handle_datagram`] for each received datagram. Its events are copied into
//!    frames under construction, a control message waits. If [`Forwarder::is_full`], go to step 3
//!    before the next datagram.
//! 3. [`Forwarder::take_drops`], then [`Forwarder::poll_copies`] until it gives none. For each
//!    copy: send `[stamp, body]`, where [`is_sendable`](FrameCopy::is_sendable), and tell
//!    [`Forwarder::handle_dropped`] of each that was not. Then [`Forwarder::end_frames`].
//! 4. [`Registrar::handle_control`] for each of [`Forwarder::controls`], and where the operator has
//!    decided otherwise [`Registrar::reconfigure`]: the directory changes here, and before step 1,
//!    and nowhere else. Answers come out by [`Registrar::poll_answer`].
//! 5. Sleep till a datagram comes or [`Registrar::poll_timeout`] is reached.
//!
//! `now` is the time since any fixed moment, by a clock that does not jump.
#![forbid(unsafe_code)]
#![deny(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros
)]

pub mod access;
pub mod address;
mod bucket;
mod cookie;
pub mod directory;
mod fanout;
pub mod forwarder;
pub mod groups;
mod intake;
pub mod leases;
pub mod limits;
pub mod overload;
mod patterns;
pub mod policies;
pub mod publishers;
pub mod registrar;
mod routes;
pub mod sample;
pub mod seen;
mod selector;
pub mod series;
pub mod sketch;
pub mod subscribers;
pub mod tally;
mod throttle;

use std::time::Duration;

use access::Access;
use address::{Address, Source};
use leases::LeaseLimits;
use policies::TopicPolicy;
use publishers::Publishers;
use subscribers::Terms;

pub use directory::Directory;
pub use forwarder::{ControlMessage, Forwarder, FrameCopy};
pub use registrar::{Answer, Registrar};

/// What an operator decides, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may publish and subscribe.
    pub access: Access,
    /// Where the bus's own events come from: none but these publish reserved topics, and no rule
    /// of access speaks of them.
    pub own_sources: Vec<Address>,
    /// Bounds of leases.
    pub leases: LeaseLimits,
    /// Names that come by lease and have a series of their own.
    pub leased_series_max: usize,
    /// Members of subscriber sets from the start.
    pub subscribers: Vec<StaticSubscriber>,
    /// What is decided of topics: the first policy that matches counts.
    pub topic_policies: Vec<TopicPolicy>,
}

/// A subscriber that the configuration names.
#[derive(Clone, Debug)]
pub struct StaticSubscriber {
    /// A legal name.
    pub name: String,
    /// Where its datagrams go.
    pub address: Address,
    /// Checked patterns.
    pub topics: Vec<String>,
    /// The largest datagram it takes, in bytes. `None`: as suits the way.
    pub frame_bytes_max: Option<u32>,
    /// Which of its topics' events it gets.
    pub terms: Terms,
}

/// Where the core's randomness comes from.
pub type Random = Box<dyn FnMut() -> [u8; 16] + Send>;

/// Why a whole frame was not used. Its [`label`](FrameDrop::label) is the metric's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameDrop {
    /// Longer than the buffer it was received into.
    Truncated,
    /// No frame by protobuf's rules.
    Malformed,
    /// Its source may do nothing here.
    NotAllowed,
    /// It passed too many buses: [`limits::HOPS_MAX`].
    Hops,
}

impl FrameDrop {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [FrameDrop; 4] = [
        FrameDrop::Truncated,
        FrameDrop::Malformed,
        FrameDrop::NotAllowed,
        FrameDrop::Hops,
    ];

    /// The reason as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            FrameDrop::Truncated => "truncated",
            FrameDrop::Malformed => "malformed",
            FrameDrop::NotAllowed => "not_allowed",
            FrameDrop::Hops => "hops",
        }
    }
}

/// Why a copy was not sent. Its [`label`](CopyDrop::label) is the metric's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDrop {
    /// Not in the share that the subscriber asked for.
    Sampled,
    /// Over the rate that the subscriber asked for.
    RateLimit,
    /// Let go because the bus could not keep up.
    Overload,
    /// Larger than the subscriber's largest datagram, or the way's.
    TooLarge,
    /// The socket's send buffer, or the receiver's queue, was full.
    WouldBlock,
    /// The kernel had no memory or no room in the card's queue.
    NoBuffer,
    /// No way there, or over UDP: no host that took the copy before.
    Unreachable,
    /// Nobody listens there, or over UDP: nobody did when the copy before came there.
    Refused,
}

impl CopyDrop {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [CopyDrop; 8] = [
        CopyDrop::Sampled,
        CopyDrop::RateLimit,
        CopyDrop::Overload,
        CopyDrop::TooLarge,
        CopyDrop::WouldBlock,
        CopyDrop::NoBuffer,
        CopyDrop::Unreachable,
        CopyDrop::Refused,
    ];

    /// The first ones are decided before anything is sent.
    const DECIDED: usize = CopyDrop::Overload as usize + 1;

    /// The reason as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            CopyDrop::Sampled => "sampled",
            CopyDrop::RateLimit => "rate_limit",
            CopyDrop::Overload => "overload",
            CopyDrop::TooLarge => "too_large",
            CopyDrop::WouldBlock => "would_block",
            CopyDrop::NoBuffer => "no_buffer",
            CopyDrop::Unreachable => "unreachable",
            CopyDrop::Refused => "refused",
        }
    }
}

/// What a datagram came with.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Who sent it.
    pub source: Source<'a>,
    /// Which listener it came to.
    pub listener: usize,
    /// When, by the clock that does not jump.
    pub now: Duration,
    /// The wall clock, in ns of Unix time, for the age of events alone.
    pub unix_nano: u64,
}

/// The core's parts.
#[derive(Debug)]
pub struct Parts {
    /// Who gets what: one for all.
    pub directory: Directory,
    /// Who changes it: one for all.
    pub registrar: Registrar,
    /// For each data thread, its way of events and the publishers that it hears.
    pub workers: Vec<(Forwarder, Publishers)>,
}

/// Makes a bus for so many data threads.
#[must_use]
pub fn open(settings: &Settings, workers: usize, now: Duration, mut random: Random) -> Parts {
    let bus = nonzero(&mut random);
    let worker = |_| {
        let forwarder = Forwarder::new(bus, nonzero(&mut random));
        (forwarder, Publishers::new(nonzero(&mut random)))
    };
    Parts {
        workers: (0..workers).map(worker).collect(),
        directory: Directory::new(settings, nonzero(&mut random)),
        registrar: Registrar::new(bus, settings.leases, now, random),
    }
}

fn nonzero(random: &mut Random) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = random();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

#[cfg(test)]
mod tests;
