//! Subscribing: a socket, a lease that is kept alive, and the events that come.
//!
//! Owns the socket's loop around [`Subscription`](crate::lease::Subscription),
//! which decides what is said and believed. There is no thread: renewals happen
//! within the calls that receive. An application that does not receive for
//! longer than its lease loses it, and asks anew when it does.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use hailmary_proto::decode::{Decoder, EventView, FrameView};
use hailmary_proto::topic::{TopicError, check_pattern};
use hailmary_proto::v1;
use hailmary_proto::write::{COOKIE_BYTES_MAX, DATAGRAM_BYTES_MAX};
use prost::Message;

use crate::address::{Address, Target};
use crate::endpoint::{Arrival, BUFFER_BYTES, Endpoint};
use crate::flow::FlowCounts;
use crate::lease::{LeaseState, Refusal, Subscription, SubscriptionCounts, Verdict};
use crate::random::random_id;

/// The receive buffer that a subscriber asks for, in bytes: some tens of the
/// largest datagrams, or a few thousand small ones, while the application is busy.
pub const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// How many datagrams without events a call looks at once its time is over, so
/// that an answer of the bus does not hide events behind it, and a flood of
/// strangers' datagrams does not hold the caller.
const IDLE_TURNS_MAX: u32 = 64;

/// What a request has beside what the caller asks for, at most, in bytes: cookie,
/// report, nonce, and the keys and lengths around them.
const RENEWAL_BYTES_MAX: usize = COOKIE_BYTES_MAX + 80;

/// The longest name of a subscriber or a group, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Why there is no subscription.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// A pattern is illegal, or there is none at all.
    #[error("pattern {pattern:?}: {error}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        error: TopicError,
    },
    /// The name is not 1 to 64 bytes of `[A-Za-z0-9._-]`.
    #[error("a subscriber's name is 1 to 64 of A-Z a-z 0-9 . _ and -")]
    BadName,
    /// The group's name is longer than 64 bytes, or not of `[A-Za-z0-9._-]` alone.
    #[error("a group's name is up to 64 of A-Z a-z 0-9 . _ and -")]
    BadGroup,
    /// The share is not above 0 and at most 1.
    #[error("a sample is a share above 0 and at most 1")]
    BadSample,
    /// Patterns, group and name together exceed a datagram.
    #[error("the request does not fit into a datagram")]
    TooLarge,
    /// The bus refused; for [`Refusal::Full`], to the end of the time.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No lease was granted in time.
    #[error("no answer from the bus{}", describe(.unsent))]
    TimedOut {
        /// Why the newest request was not even sent, if it was not.
        unsent: Option<io::ErrorKind>,
    },
    /// The name is unknown, or there is no socket or randomness to be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn describe(unsent: &Option<io::ErrorKind>) -> String {
    unsent.map_or_else(String::new, |kind| {
        format!(" (the request was not sent: {kind})")
    })
}

/// Why no more events can be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The bus refused the lease for good.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An event that was received, with all that belongs to it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReceivedEvent {
    /// The topic.
    pub topic: String,
    /// Opaque to the bus.
    pub payload: Vec<u8>,
    /// Empty: no key.
    pub key: Vec<u8>,
    /// When the publisher made it, in nanoseconds of Unix time. 0: not told.
    pub time_unix_nano: u64,
    /// Names and values, as they came. Of a name that comes twice the last counts.
    pub attributes: Vec<(String, String)>,
    /// How many events it stands for: at least 1, more where the bus sampled. Where the
    /// number of events is wanted, the sum of weights estimates it.
    pub weight: f64,
}

impl ReceivedEvent {
    fn copy(event: &EventView<'_>, weight: f64) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            topic: event.topic().to_owned(),
            payload: event.payload().to_owned(),
            key: event.key().to_owned(),
            time_unix_nano: event.time_unix_nano(),
            attributes: event.attributes().map(own).collect(),
            weight,
        }
    }
}

/// The events of one datagram, borrowed from it.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedFrame<'a> {
    view: FrameView<'a>,
    weight: f64,
}

impl<'a> ReceivedFrame<'a> {
    /// The events, oldest first. There is at least one.
    pub fn events(&self) -> impl ExactSizeIterator<Item = EventView<'a>> + Clone + use<'a> {
        self.view.events()
    }

    /// How many events each of them stands for: more than 1 where the bus sampled.
    #[must_use]
    pub fn weight(&self) -> f64 {
        self.weight
    }
}

/// Events that do not come any more: of the stream, what is not in it.
///
/// The events that the bus had for this subscriber and that did not arrive, since
/// the last notice. An event is in one of the two counts and in one notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Events that the bus sent and that were lost on the way or in this socket's
    /// full buffer.
    pub lost: u64,
    /// Events that the bus dropped itself: for a limit that was asked for, or a
    /// full buffer.
    pub dropped_by_bus: u64,
}

impl Loss {
    /// Both together.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.lost.saturating_add(self.dropped_by_bus)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (events, dropped) = (self.events(), self.dropped_by_bus);
        write!(
            f,
            "{events} events lost, {dropped} of them dropped by the bus"
        )
    }
}

/// What a subscriber that wants to hear of losses receives.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An event.
    Event(ReceivedEvent),
    /// Word of events that do not come.
    Loss(Loss),
}

/// What a subscriber has seen since it began. No count but `awaited` ever falls.
///
/// An event that is missing is `awaited` for 3 seconds, for datagrams overtake each
/// other, and till there is nothing left to read; only then is it `lost`. So of the
/// events that the bus sent or dropped for this subscriber, up to the newest stamp
/// that came from it, each is `received`, `lost`, `dropped_by_bus` or `awaited`. The bus tells what went
/// after the newest event when it next renews the lease, 2 seconds later at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriberStats {
    /// Events that arrived, each counted once.
    pub received: u64,
    /// Events that the bus sent and that did not arrive.
    pub lost: u64,
    /// Events that the bus dropped for this subscriber.
    pub dropped_by_bus: u64,
    /// Events that arrived again, or after they had been counted as lost. They are
    /// handed out all the same, and are not among `received`.
    pub duplicates: u64,
    /// Events that are missing and may still come. This one count also falls.
    pub awaited: u64,
    /// Datagrams that were malformed, another sender's, or answers to nothing asked.
    pub ignored_frames: u64,
    /// How often another run of the bus took over.
    pub bus_restarts: u64,
    /// How often the lease ended before it was renewed. What the bus had for this
    /// subscriber in between is told by nobody.
    pub lapses: u64,
}

impl From<SubscriptionCounts> for SubscriberStats {
    fn from(counts: SubscriptionCounts) -> Self {
        Self {
            received: counts.flow.received,
            lost: counts.flow.lost,
            dropped_by_bus: counts.flow.dropped,
            duplicates: counts.flow.duplicates,
            awaited: counts.awaited,
            ignored_frames: counts.ignored_frames,
            bus_restarts: counts.bus_restarts,
            lapses: counts.lapses,
        }
    }
}

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
    /// others and counts them in `dropped_by_bus` of the [stats](SubscriberStats).
    ///
    /// Events with equal keys are kept or dropped together: kept are those whose key's
    /// XXH3-64 (no seed) is below `share` x 2^64. So all buses keep the same keys, and
    /// a smaller share is part of a larger one. Events without a key are kept at random.
    /// Each event that comes has the [`weight`](ReceivedEvent::weight) 1 / `share`.
    pub fn sample(mut self, share: f64) -> Self {
        self.request.sample = share;
        self
    }

    /// Asks the bus to drop what exceeds so many events a second. 0: no limit.
    ///
    /// In any time come at most one second's worth of events and what the rate gives in
    /// that time. The others are dropped, never delayed, and counted in `dropped_by_bus`
    /// of the [stats](SubscriberStats). They are in nobody's weight: unlike a sample, a
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
    /// As [`open`](Self::open); and if the bus refused, or did not answer in time.
    pub fn connect(self, timeout: Duration) -> Result<Subscriber, SubscribeError> {
        let mut subscriber = self.open()?;
        subscriber.await_lease(timeout)?;
        Ok(subscriber)
    }

    /// Opens the socket and asks for the lease without waiting: it is granted
    /// while the subscriber receives, whenever a bus is there.
    ///
    /// # Errors
    ///
    /// The request is illegal, the name is unknown, or there is no socket or
    /// randomness to be had.
    pub fn open(self) -> Result<Subscriber, SubscribeError> {
        self.check()?;
        let endpoint = Endpoint::open(&Target::resolve(&self.address)?)?;
        endpoint.ask_receive_buffer(self.receive_buffer_bytes)?;
        let mut subscriber = Subscriber {
            endpoint,
            subscription: Subscription::new(self.request, random_id()?, Duration::ZERO),
            began: Instant::now(),
            decoder: Decoder::new(),
            buffer: vec![0; BUFFER_BYTES],
            queue: VecDeque::new(),
            told: FlowCounts::default(),
            unsent: None,
        };
        subscriber.transmit(Duration::ZERO);
        Ok(subscriber)
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

/// Receives the events that its patterns call for.
///
/// As an iterator it blocks for the next event, for ever, and ends only if the
/// bus refuses the lease for good or the socket fails; [`recv`](Self::recv) then
/// tells why. A bus that is gone is waited for. Dropping a subscriber tells the bus.
///
/// ```no_run
/// use std::time::Duration;
/// use hailmary_client::{Address, Subscriber};
///
/// let subscriber = Subscriber::builder(&Address::from_env()?)
///     .pattern("search.>")
///     .name("indexer")
///     .connect(Duration::from_secs(5))?;
/// for event in subscriber {
///     println!("{}: {} bytes", event.topic, event.payload.len());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Subscriber {
    endpoint: Endpoint,
    subscription: Subscription,
    /// What the subscription's times are counted from.
    began: Instant,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Events of a frame that was received and not handed out wholly.
    queue: VecDeque<ReceivedEvent>,
    /// The losses that notices have told of.
    told: FlowCounts,
    /// Why the newest request was not sent.
    unsent: Option<io::ErrorKind>,
}

/// What one turn of the loop brought.
enum Turn<R> {
    Events(R),
    /// A datagram without events for the application.
    Other,
    Silence,
}

impl Subscriber {
    /// Begins to describe a subscription at the bus at `address`.
    pub fn builder(address: &Address) -> SubscriberBuilder {
        SubscriberBuilder {
            address: address.clone(),
            request: v1::Subscribe {
                sample: 1.0,
                ..v1::Subscribe::default()
            },
            named: false,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        }
    }

    /// The next event, waited for as long as it takes.
    ///
    /// # Errors
    ///
    /// The bus refused the lease for good, or the socket failed.
    pub fn recv(&mut self) -> Result<ReceivedEvent, RecvError> {
        loop {
            if let Some(event) = self.recv_until(None)? {
                return Ok(event);
            }
        }
    }

    /// The next event, waited for at most so long; `None` if none came. With no
    /// time at all it takes what is there.
    ///
    /// # Errors
    ///
    /// The bus refused the lease for good, or the socket failed.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<ReceivedEvent>, RecvError> {
        self.recv_until(Some(self.now().saturating_add(timeout)))
    }

    /// The next event or the next word of events that do not come, waited for as
    /// long as it takes. See [`items`](Self::items).
    ///
    /// # Errors
    ///
    /// The bus refused the lease for good, or the socket failed.
    pub fn recv_item(&mut self) -> Result<Item, RecvError> {
        loop {
            if let Some(item) = self.recv_item_until(None)? {
                return Ok(item);
            }
        }
    }

    /// Like [`recv_item`](Self::recv_item), waiting at most so long; `None` if
    /// nothing came. With no time at all it takes what is there.
    ///
    /// # Errors
    ///
    /// The bus refused the lease for good, or the socket failed.
    pub fn recv_item_timeout(&mut self, timeout: Duration) -> Result<Option<Item>, RecvError> {
        self.recv_item_until(Some(self.now().saturating_add(timeout)))
    }

    /// The events, and between them word of those that do not come. Blocks and ends
    /// as the iterator of events does.
    ///
    /// A [`Loss`] comes as soon as it is known, before the next event, and also
    /// while there are no events. What the bus dropped is known by the next frame or
    /// renewal; what is missing for another reason is awaited for 3 seconds first, so
    /// its notice comes that much later than the events around the gap. One notice
    /// tells of all losses since the one before, however they were spread; there is
    /// none for no loss. All notices together make `lost` and `dropped_by_bus` of
    /// [`stats`](Self::stats), once there is none left to be had.
    ///
    /// ```no_run
    /// # use hailmary_client::{Address, Item, Subscriber};
    /// # let mut subscriber = Subscriber::builder(&Address::from_env()?).pattern(">").open()?;
    /// for item in subscriber.items() {
    ///     match item {
    ///         Item::Event(event) => println!("{}", event.topic),
    ///         Item::Loss(loss) => println!("{loss}"),
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn items(&mut self) -> impl Iterator<Item = Item> {
        std::iter::from_fn(|| self.recv_item().ok())
    }

    /// Takes the notice that [`recv_item`](Self::recv_item) would give next, if
    /// there is one: for whoever receives by [`recv_frame`](Self::recv_frame). It
    /// neither waits nor reads from the socket.
    pub fn take_loss(&mut self) -> Option<Loss> {
        let total = self.subscription.counts().flow;
        let news = total.since(self.told);
        let loss = Loss {
            lost: news.lost,
            dropped_by_bus: news.dropped,
        };
        self.told = total;
        (loss.events() > 0).then_some(loss)
    }

    /// Hands the next frame's events to `take` without copying them, and returns
    /// what it makes of them; `None` if no frame came in time. What
    /// [`recv`](Self::recv) has left of an earlier frame stays for `recv`.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use hailmary_client::{Address, Subscriber};
    /// # let mut subscriber = Subscriber::builder(&Address::from_env()?).pattern(">").open()?;
    /// let bytes = subscriber.recv_frame(Duration::from_secs(1), |frame| {
    ///     frame.events().map(|event| event.payload().len()).sum::<usize>()
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The bus refused the lease for good, or the socket failed.
    pub fn recv_frame<R>(
        &mut self,
        timeout: Duration,
        take: impl FnMut(ReceivedFrame<'_>) -> R,
    ) -> Result<Option<R>, RecvError> {
        self.recv_frame_until(Some(self.now().saturating_add(timeout)), take)
    }

    /// Whether a lease stands at this moment, as far as is known here.
    #[must_use]
    pub fn is_subscribed(&self) -> bool {
        self.subscription.state() == LeaseState::Held
    }

    /// Why the bus granted no lease when it was last asked, where it is asked again:
    /// [`Refusal::Full`] may pass. `None` while a lease stands, and while no bus answered.
    /// Of a refusal that is final the receiving calls tell.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.subscription.refusal()
    }

    /// What was seen since the subscription began. It is counted within the
    /// receiving calls; this one reads no clock and no socket.
    #[must_use]
    pub fn stats(&self) -> SubscriberStats {
        self.subscription.counts().into()
    }

    /// What the kernel granted as receive buffer. Linux grants twice of what was
    /// asked for, for its own bookkeeping, if it allows as much (socket(7)).
    ///
    /// # Errors
    ///
    /// The kernel did not tell.
    pub fn receive_buffer_bytes(&self) -> io::Result<usize> {
        self.endpoint.receive_buffer_bytes()
    }

    /// Tells the bus that it is over, and returns the final counts. All that is
    /// missing now is lost, of which no notice tells any more. Dropping does the
    /// same without them.
    pub fn close(mut self) -> SubscriberStats {
        self.unsubscribe();
        self.stats()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn await_lease(&mut self, timeout: Duration) -> Result<(), SubscribeError> {
        let deadline = Some(self.now().saturating_add(timeout));
        match self.turn_until(deadline, |subscriber| subscriber.lease_turn(deadline)) {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(match self.subscription.refusal() {
                Some(reason) => SubscribeError::Refused(reason),
                None => SubscribeError::TimedOut {
                    unsent: self.unsent,
                },
            }),
            Err(RecvError::Refused(reason)) => Err(SubscribeError::Refused(reason)),
            Err(RecvError::Io(error)) => Err(SubscribeError::Io(error)),
        }
    }

    /// One turn, which brings something once the lease stands. Events that come
    /// with the lease itself wait in the queue.
    fn lease_turn(&mut self, deadline: Option<Duration>) -> Result<Turn<()>, RecvError> {
        let turn = self.queue_turn(deadline)?;
        Ok(match turn {
            _ if self.is_subscribed() => Turn::Events(()),
            Turn::Silence => Turn::Silence,
            _ => Turn::Other,
        })
    }

    fn recv_until(
        &mut self,
        deadline: Option<Duration>,
    ) -> Result<Option<ReceivedEvent>, RecvError> {
        if self.queue.is_empty() {
            self.turn_until(deadline, |subscriber| subscriber.queue_turn(deadline))?;
        } else {
            // A frame may hold enough to outlast the lease.
            self.transmit(self.now());
        }
        Ok(self.queue.pop_front())
    }

    fn recv_item_until(&mut self, deadline: Option<Duration>) -> Result<Option<Item>, RecvError> {
        if self.queue.is_empty() {
            self.turn_until(deadline, |subscriber| subscriber.item_turn(deadline))?;
        } else {
            self.transmit(self.now());
        }
        let loss = self.take_loss().map(Item::Loss);
        Ok(loss.or_else(|| self.queue.pop_front().map(Item::Event)))
    }

    /// One turn, which also brings something once there is word of a loss.
    fn item_turn(&mut self, deadline: Option<Duration>) -> Result<Turn<()>, RecvError> {
        if self.knows_of_loss() {
            return Ok(Turn::Events(()));
        }
        match self.queue_turn(deadline)? {
            _ if self.knows_of_loss() => Ok(Turn::Events(())),
            turn => Ok(turn),
        }
    }

    fn knows_of_loss(&self) -> bool {
        let total = self.subscription.counts().flow;
        (total.lost, total.dropped) != (self.told.lost, self.told.dropped)
    }

    fn recv_frame_until<R>(
        &mut self,
        deadline: Option<Duration>,
        mut take: impl FnMut(ReceivedFrame<'_>) -> R,
    ) -> Result<Option<R>, RecvError> {
        self.turn_until(deadline, |subscriber| subscriber.turn(deadline, &mut take))
    }

    /// Turns until there are events or the time is over.
    fn turn_until<R>(
        &mut self,
        deadline: Option<Duration>,
        mut turn: impl FnMut(&mut Self) -> Result<Turn<R>, RecvError>,
    ) -> Result<Option<R>, RecvError> {
        let mut idle_turns = 0;
        loop {
            let silent = match turn(self)? {
                Turn::Events(taken) => return Ok(Some(taken)),
                Turn::Other => false,
                Turn::Silence => true,
            };
            if deadline.is_some_and(|deadline| self.now() >= deadline) {
                idle_turns += 1;
                if silent || idle_turns >= IDLE_TURNS_MAX {
                    return Ok(None);
                }
            }
        }
    }

    /// One turn, with the events copied into the queue.
    fn queue_turn(&mut self, deadline: Option<Duration>) -> Result<Turn<()>, RecvError> {
        let mut queue = std::mem::take(&mut self.queue);
        let turn = self.turn(deadline, &mut |frame| {
            let weight = frame.weight();
            queue.extend(
                frame
                    .events()
                    .map(|event| ReceivedEvent::copy(&event, weight)),
            );
        });
        self.queue = queue;
        turn
    }

    /// Sends what is due, waits for one datagram till the deadline or the next
    /// request, whichever comes first, and handles it.
    fn turn<R>(
        &mut self,
        deadline: Option<Duration>,
        take: &mut impl FnMut(ReceivedFrame<'_>) -> R,
    ) -> Result<Turn<R>, RecvError> {
        let now = self.now();
        self.transmit(now);
        let wait = self.wait(now, deadline)?;
        match self.endpoint.receive(&mut self.buffer, wait)? {
            Some(arrival) => Ok(self.handle_datagram(arrival, take)),
            None => {
                self.subscription.handle_timeout(self.began.elapsed());
                Ok(Turn::Silence)
            }
        }
    }

    fn wait(&self, now: Duration, deadline: Option<Duration>) -> Result<Duration, Refusal> {
        if let LeaseState::Refused(reason) = self.subscription.state() {
            return Err(reason);
        }
        let due = self.subscription.poll_timeout();
        let until = [due, deadline].into_iter().flatten().min();
        Ok(until.unwrap_or(now).saturating_sub(now))
    }

    fn handle_datagram<R>(
        &mut self,
        arrival: Arrival,
        take: &mut impl FnMut(ReceivedFrame<'_>) -> R,
    ) -> Turn<R> {
        let datagram = match self.buffer.get(..arrival.bytes) {
            Some(datagram) if arrival.bytes <= DATAGRAM_BYTES_MAX => datagram,
            _ => return self.ignore_datagram(),
        };
        let Ok(view) = self.decoder.decode(datagram) else {
            return self.ignore_datagram();
        };
        let now = self.began.elapsed();
        match self.subscription.handle_frame(now, arrival.origin, &view) {
            Verdict::Deliver { weight } => Turn::Events(take(ReceivedFrame { view, weight })),
            Verdict::Consumed | Verdict::Ignored => Turn::Other,
        }
    }

    fn ignore_datagram<R>(&mut self) -> Turn<R> {
        self.subscription.ignore_datagram();
        Turn::Other
    }

    /// What cannot be sent is as good as lost, and asked for again by the timer.
    fn transmit(&mut self, now: Duration) {
        while let Some(datagram) = self.subscription.poll_transmit(now) {
            self.unsent = self.endpoint.send(datagram).err().map(|error| error.kind());
        }
    }

    fn unsubscribe(&mut self) {
        if let Some(datagram) = self.subscription.close() {
            // If it gets lost, the lease lapses.
            let _ = self.endpoint.send(datagram);
        }
    }
}

impl Iterator for Subscriber {
    type Item = ReceivedEvent;

    /// The next event; `None` where [`recv`](Subscriber::recv) gives an error.
    fn next(&mut self) -> Option<ReceivedEvent> {
        self.recv().ok()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.unsubscribe();
    }
}
