//! What to subscribe to: the request, checked before anything is sent.
//!
//! Owns the limits of a request, and how a subscriber begins.

use std::time::Duration;
#[cfg(feature = "tokio")]
use std::time::Instant;

use hailmary_proto::topic::{TopicError, check_pattern};
use hailmary_proto::v1;
use hailmary_proto::write::{COOKIE_BYTES_MAX, DATAGRAM_BYTES_MAX};
use prost::Message;

use crate::address::{Address, Target};
#[cfg(feature = "tokio")]
use crate::asynchronous::AsyncSubscriber;
use crate::endpoint::Endpoint;
use crate::fork;
use crate::lease::Subscription;
use crate::random::random_id;
use crate::received::SubscribeError;
use crate::search::Search;
use crate::session::Session;
use crate::subscriber::Subscriber;

/// The receive buffer that a subscriber asks for, in bytes: some tens of the
/// largest datagrams, or a few thousand small ones, while the application is busy.
pub const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// What a request has beside what the caller asks for, at most, in bytes: cookie,
/// report, nonce, and the keys and lengths around them.
const RENEWAL_BYTES_MAX: usize = COOKIE_BYTES_MAX + 80;

/// The longest name of a subscriber or a group, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// What to subscribe to, and how.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked for until `connect` or `open`"]
pub struct SubscriberBuilder {
    address: Address,
    request: v1::Subscribe,
    named: bool,
    receive_buffer_bytes: usize,
}

impl SubscriberBuilder {
    pub(crate) fn new(address: Address) -> Self {
        Self {
            address,
            request: v1::Subscribe {
                sample: 1.0,
                ..v1::Subscribe::default()
            },
            named: false,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        }
    }

    /// Adds a pattern of topics: `*` stands for one token, a last `>` for one or
    /// more. At least one pattern is needed.
    pub fn pattern(mut self, pattern: impl Into<String>) -> Self {
        self.request.topics.push(pattern.into());
        self
    }

    /// What the bus calls this subscriber in its metrics: 1 to 64 bytes of
    /// `[A-Za-z0-9._-]`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.request.name = name.into();
        self.named = true;
        self
    }

    /// Joins a group: of its members that want an event's topic, one gets the event.
    /// The name is up to 64 bytes of `[A-Za-z0-9._-]`; empty is no group.
    ///
    /// Events with equal keys go to the same member, chosen by rendezvous hashing over
    /// the members' names. Who joins takes its share of the keys from the others, who
    /// goes leaves its own to them; no other key moves. A member whose lease ends is
    /// gone at once. Events without a key are dealt out evenly.
    ///
    /// Give each member a [`name`](Self::name) of its own: by it, it has the same keys
    /// again after a restart, its own or the bus's. Members without a name, and those
    /// that join under one that another member still has, are told apart by their
    /// addresses: so one that died and is back before its old lease has ended has other
    /// keys till it next joins.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.request.group = group.into();
        self
    }

    /// Asks for this share of the events, above 0 and at most 1; the bus drops the
    /// others and counts them in `dropped_by_bus` of the [stats](crate::SubscriberStats).
    ///
    /// Events with equal keys are kept or dropped together: kept are those whose key's
    /// XXH3-64 (no seed) is below `share` x 2^64. So all buses keep the same keys, and
    /// a smaller share is part of a larger one. Events without a key are kept at random.
    /// Each event that comes has the [`weight`](crate::ReceivedEvent::weight) 1 / `share`.
    pub fn sample(mut self, share: f64) -> Self {
        self.request.sample = share;
        self
    }

    /// Asks the bus to drop what exceeds so many events a second. 0: no limit.
    ///
    /// In any time come at most one second's worth of events and what the rate gives in
    /// that time. The others are dropped, never delayed, and counted in `dropped_by_bus`
    /// of the [stats](crate::SubscriberStats). They are in nobody's weight: unlike a sample, a
    /// rate keeps what comes first.
    pub fn rate(mut self, events_per_second: u32) -> Self {
        self.request.events_per_second = events_per_second;
        self
    }

    /// Asks for a lease this long; the bus may grant less. Zero, as without this:
    /// what the bus usually grants. To be had in milliseconds.
    pub fn lease(mut self, lease: Duration) -> Self {
        let millis = lease.as_nanos().div_ceil(1_000_000);
        self.request.lease_ms = u32::try_from(millis).unwrap_or(u32::MAX);
        self
    }

    /// Asks for datagrams of at most so many bytes. 0: as the bus chooses.
    pub fn max_frame_bytes(mut self, bytes: u32) -> Self {
        self.request.max_frame_bytes = bytes;
        self
    }

    /// Asks the kernel for a receive buffer of so many bytes, 4 MiB unless told.
    /// It grants no more than it allows (`net.core.rmem_max` on Linux), without a
    /// word: see [`Subscriber::receive_buffer_bytes`].
    pub fn receive_buffer_bytes(mut self, bytes: usize) -> Self {
        self.receive_buffer_bytes = bytes;
        self
    }

    /// Subscribes, and returns once the lease stands: an event that is published
    /// from then on is for this subscriber.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), at once; and if the bus refused, or did not answer in
    /// time. The time is the bus's: a name's look-up takes as long as the name server
    /// does, and a name that is unknown is not waited for.
    pub fn connect(self, timeout: Duration) -> Result<Subscriber, SubscribeError> {
        let mut subscriber = self.open()?;
        subscriber.await_lease(timeout)?;
        Ok(subscriber)
    }

    /// Opens the socket and asks for the lease without waiting: it is granted
    /// while the subscriber receives, whenever a bus is there. Only a name's
    /// look-up may take its time.
    ///
    /// # Errors
    ///
    /// The request is illegal, the name is unknown, or there is no socket or
    /// randomness to be had.
    pub fn open(self) -> Result<Subscriber, SubscribeError> {
        let target = Target::resolve(&self.address)?;
        let (session, endpoint) = self.begin(target)?;
        Ok(Subscriber::new(session, endpoint))
    }

    /// As [`connect`](Self::connect), without blocking the thread.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time.
    #[cfg(feature = "tokio")]
    pub async fn connect_async(self, timeout: Duration) -> Result<AsyncSubscriber, SubscribeError> {
        let began = Instant::now();
        let opening = tokio::time::timeout(timeout, self.open_async());
        let opened = opening.await;
        let mut subscriber = opened.map_err(|_| SubscribeError::TimedOut { unsent: None })??;
        let left = timeout.saturating_sub(began.elapsed());
        subscriber.await_lease(left).await?;
        Ok(subscriber)
    }

    /// As [`open`](Self::open), without blocking the thread: a name is looked up in
    /// a thread of its own, which ends with that.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time.
    #[cfg(feature = "tokio")]
    pub async fn open_async(self) -> Result<AsyncSubscriber, SubscribeError> {
        let target = crate::asynchronous::resolve(&self.address).await?;
        let (session, endpoint) = self.begin(target)?;
        Ok(AsyncSubscriber::new(session, endpoint)?)
    }

    /// Opens the socket and makes the first request.
    fn begin(self, target: Target) -> Result<(Session, Endpoint), SubscribeError> {
        fork::watch()?;
        self.check()?;
        let endpoint = Endpoint::open(&target, self.receive_buffer_bytes)?;
        let search = Search::new(self.address, target);
        let subscription = Subscription::new(self.request, random_id()?, Duration::ZERO);
        let mut session = Session::new(subscription, search, self.receive_buffer_bytes);
        session.transmit(&endpoint);
        Ok((session, endpoint))
    }

    fn check(&self) -> Result<(), SubscribeError> {
        let request = &self.request;
        let bad = |pattern: &str, error| SubscribeError::BadPattern {
            pattern: pattern.to_owned(),
            error,
        };
        if request.topics.is_empty() {
            return Err(bad("", TopicError::Empty));
        }
        for pattern in &request.topics {
            check_pattern(pattern.as_bytes()).map_err(|error| bad(pattern, error))?;
        }
        if self.named && !is_name(&request.name) {
            return Err(SubscribeError::BadName);
        }
        if !request.group.is_empty() && !is_name(&request.group) {
            return Err(SubscribeError::BadGroup);
        }
        // Not a number is in no range.
        if !(request.sample > 0.0 && request.sample <= 1.0) {
            return Err(SubscribeError::BadSample);
        }
        if request.encoded_len() + RENEWAL_BYTES_MAX > DATAGRAM_BYTES_MAX {
            return Err(SubscribeError::TooLarge);
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}
