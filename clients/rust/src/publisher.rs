//! Publishing: an event becomes a datagram and is forgotten.
//!
//! Owns the sender's id, the count of its events and what became of them. It
//! refuses to wait: there is no lock, no queue and no thread, and each event
//! costs one system call that returns at once, or two after a failure.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hailmary_proto::topic::TopicError;
use hailmary_proto::v1;
use hailmary_proto::write::{DATAGRAM_BYTES_MAX, STAMP_BYTES_MAX, StampBytes, write_event};

use crate::address::{Address, Target};
use crate::event::Event;
use crate::link::Link;
use crate::ping::{Pong, ping_target};
use crate::random::random_id;

/// How large a batch grows over a network, in bytes: what passes an Ethernet of
/// 1,500 bytes and usual tunnels in one piece. A datagram in pieces is lost if
/// any of them is.
pub const BATCH_BYTES_NETWORK: usize = 1_400;

/// How large a batch grows on this host, in bytes. Most of what is to be gained
/// by few, large datagrams is gained here, and a socket with the kernel's usual
/// buffer still holds ten of them.
pub const BATCH_BYTES_HOST: usize = 16_384;

thread_local! {
    /// The datagram under construction. Each thread that publishes keeps one,
    /// as large as the largest that it sent, so publishing allocates nothing.
    static DATAGRAM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Why an event was not handed to the kernel. Each of these is also counted in
/// [`PublisherStats`], under the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The topic is illegal: the program's mistake.
    #[error("{0}")]
    Invalid(TopicError),
    /// Event and stamp exceed a datagram, or the kernel takes none so long.
    #[error("the event is too large for a datagram")]
    TooLarge,
    /// The socket's buffer, or the queue of the bus's Unix socket, is full.
    #[error("the way to the bus is full")]
    WouldBlock,
    /// The kernel has no memory, or the queue of a network card is full.
    #[error("the kernel has no buffer for the datagram")]
    NoBuffer,
    /// Nobody listens at the bus's address.
    #[error("nobody listens at the bus's address")]
    Refused,
    /// There is no way to the bus's host.
    #[error("there is no way to the bus's host")]
    Unreachable,
    /// The kernel refused for another reason, such as a packet filter's.
    #[error("the kernel did not take the datagram: {0}")]
    Failed(io::ErrorKind),
}

impl PublishError {
    /// Whether there was no room now, and may be soon.
    #[must_use]
    pub fn is_full(self) -> bool {
        matches!(self, Self::WouldBlock | Self::NoBuffer)
    }
}

/// What became of a publisher's events. Each event that was given to it is in
/// one of the counts but the last; they are of all clones together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherStats {
    /// Events handed to the kernel. One that another thread is handing over at
    /// this moment counts already.
    pub sent: u64,
    /// Events dropped for an illegal topic.
    pub invalid: u64,
    /// Events dropped because no datagram takes them.
    pub too_large: u64,
    /// Events dropped because the socket's buffer or the bus's queue was full.
    pub would_block: u64,
    /// Events dropped because the kernel had no memory, or a card's queue was full.
    pub no_buffer: u64,
    /// Events dropped because nobody listened. Over UDP, see `bounced`.
    pub refused: u64,
    /// Events dropped because there was no way to the bus's host.
    pub unreachable: u64,
    /// Events dropped for other reasons of the kernel.
    pub failed: u64,
    /// How often the kernel said that an earlier datagram had found nobody. The
    /// events in it count as sent: which datagram it was, it does not say.
    pub bounced: u64,
}

impl PublisherStats {
    /// Events dropped here, for whatever reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.invalid
            + self.too_large
            + self.would_block
            + self.no_buffer
            + self.refused
            + self.unreachable
            + self.failed
    }

    /// All events that were given to the publisher: sent or dropped.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.sent + self.dropped()
    }
}

/// Sends events to a bus and forgets them.
///
/// It never blocks, and a full, dead, missing or restarting bus costs it a
/// failed system call; it finds a bus that comes later by itself. It is cheap to
/// clone and may be used from all threads at once: clones share the socket, the
/// sender's id and the counts.
///
/// After a `fork` the child must make a publisher of its own. Parent and child
/// would else count one flow twice, and the bus would tell losses that are none.
/// (To notice a fork here would cost a system call for each event.)
///
/// ```no_run
/// use hailmary_client::{Address, Event, Publisher};
///
/// let publisher = Publisher::connect(&Address::from_env()?)?;
/// publisher.publish("search.index", "document 42");
/// publisher.publish_event(&Event::new("search.index", "document 43").key("43"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    link: Link,
    flow: Flow,
}

/// The flow from this publisher to the bus. The dropped ones are among `sequence`.
#[derive(Debug)]
struct Flow {
    sender: u64,
    sequence: AtomicU64,
    invalid: AtomicU64,
    too_large: AtomicU64,
    would_block: AtomicU64,
    no_buffer: AtomicU64,
    refused: AtomicU64,
    unreachable: AtomicU64,
    failed: AtomicU64,
}

impl Publisher {
    /// Opens a socket towards a bus, whether or not one is there. A name is
    /// looked up now and never again.
    ///
    /// # Errors
    ///
    /// The name is unknown, there is no randomness or no socket to be had, or
    /// the bus's Unix socket may not be written to.
    pub fn connect(address: &Address) -> io::Result<Self> {
        let link = Link::open(Target::resolve(address)?)?;
        let flow = Flow::new(random_id()?);
        Ok(Self {
            shared: Arc::new(Shared { link, flow }),
        })
    }

    /// Sends an event, or drops and counts it.
    pub fn publish<P: AsRef<[u8]> + ?Sized>(&self, topic: &str, payload: &P) {
        self.publish_event(&Event::new(topic, payload));
    }

    /// Sends an event, or drops and counts it.
    pub fn publish_event(&self, event: &Event<'_>) {
        // Counted already; the quiet way is to say no more.
        let _ = self.try_publish(event);
    }

    /// Sends an event, or says why it was dropped; it is counted all the same.
    ///
    /// # Errors
    ///
    /// Where the event was not handed to the kernel. That it was is no promise:
    /// it may be lost anywhere behind.
    pub fn try_publish(&self, event: &Event<'_>) -> Result<(), PublishError> {
        if let Err(reason) = event.check() {
            return self.shared.drop_unsent(reason);
        }
        let mut datagram = DATAGRAM.try_with(Cell::take).unwrap_or_default();
        datagram.clear();
        write_event(&mut datagram, event.parts());
        let outcome = self.shared.send(&mut datagram, 1);
        // Only a thread about to end has no place for it any more.
        let _ = DATAGRAM.try_with(|place| place.set(datagram));
        outcome
    }

    /// Begins a batch: several events in one datagram, which costs everybody far
    /// less than one for each. It grows to 1,400 bytes over a network and to
    /// 16,384 on this host.
    #[must_use]
    pub fn batch(&self) -> Batch {
        let bytes_max = match self.shared.link.target() {
            Target::Udp(bus) if !bus.ip().is_loopback() => BATCH_BYTES_NETWORK,
            _ => BATCH_BYTES_HOST,
        };
        self.batch_of(bytes_max)
    }

    /// Begins a batch that grows to `bytes_max`, at most to a datagram of 65,507 bytes.
    #[must_use]
    pub fn batch_of(&self, bytes_max: usize) -> Batch {
        Batch {
            publisher: self.clone(),
            datagram: Vec::new(),
            events: 0,
            bytes_max: bytes_max.min(DATAGRAM_BYTES_MAX),
        }
    }

    /// What became of the events so far, as far as this side knows. It reads a few
    /// counters: no system call, no lock. [`ping`](Self::ping) asks the bus.
    #[must_use]
    pub fn stats(&self) -> PublisherStats {
        PublisherStats {
            bounced: self.shared.link.bounced(),
            ..self.shared.flow.stats()
        }
    }

    /// Asks the bus what it received from this publisher, and waits for the
    /// answer: the one call here that blocks. It opens a socket of its own and
    /// asks again, as datagrams may get lost, until the time is over. See [`Pong`]
    /// for how the answer stands to [`stats`](Self::stats).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use hailmary_client::{Address, Publisher};
    /// # let publisher = Publisher::connect(&Address::from_env()?)?;
    /// let sent = publisher.stats().sent;
    /// let pong = publisher.ping(Duration::from_secs(1))?;
    /// println!("{} of {sent} arrived, {} are lost", pong.received, pong.lost);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `TimedOut` if there was no answer, else what the kernel said.
    pub fn ping(&self, timeout: Duration) -> io::Result<Pong> {
        let stamp = self.shared.flow.stamp(0);
        ping_target(self.shared.link.target(), Some(stamp), timeout)
    }
}

impl Shared {
    /// Puts the stamp behind the events, which is as good a place as before them
    /// and needs no copying, and sends.
    fn send(&self, datagram: &mut Vec<u8>, events: u64) -> Result<(), PublishError> {
        let stamp = StampBytes::new(&self.flow.stamp(events));
        datagram.extend_from_slice(stamp.as_slice());
        let outcome = self.link.send(datagram);
        if let Err(reason) = outcome {
            self.flow.count_dropped(reason, events);
        }
        outcome
    }

    #[cold]
    fn drop_unsent(&self, reason: PublishError) -> Result<(), PublishError> {
        self.flow.sequence.fetch_add(1, Ordering::Relaxed);
        self.flow.count_dropped(reason, 1);
        Err(reason)
    }
}

impl Flow {
    fn new(sender: u64) -> Self {
        Self {
            sender,
            sequence: AtomicU64::new(0),
            invalid: AtomicU64::new(0),
            too_large: AtomicU64::new(0),
            would_block: AtomicU64::new(0),
            no_buffer: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unreachable: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Takes the next numbers for `events`. The drops are read first, so that
    /// all of them are of events with lower numbers (each took its number before
    /// it was counted, and `Release` with `Acquire` keeps that order).
    fn stamp(&self, events: u64) -> v1::Stamp {
        let dropped = self.stats_without_sent().dropped();
        v1::Stamp {
            sender: self.sender,
            sequence: self.sequence.fetch_add(events, Ordering::Relaxed),
            dropped,
            ..v1::Stamp::default()
        }
    }

    #[cold]
    fn count_dropped(&self, reason: PublishError, events: u64) {
        let count = match reason {
            PublishError::Invalid(_) => &self.invalid,
            PublishError::TooLarge => &self.too_large,
            PublishError::WouldBlock => &self.would_block,
            PublishError::NoBuffer => &self.no_buffer,
            PublishError::Refused => &self.refused,
            PublishError::Unreachable => &self.unreachable,
            PublishError::Failed(_) => &self.failed,
        };
        count.fetch_add(events, Ordering::Release);
    }

    fn stats(&self) -> PublisherStats {
        let stats = self.stats_without_sent();
        let given = self.sequence.load(Ordering::Relaxed);
        PublisherStats {
            sent: given.saturating_sub(stats.dropped()),
            ..stats
        }
    }

    fn stats_without_sent(&self) -> PublisherStats {
        PublisherStats {
            sent: 0,
            invalid: self.invalid.load(Ordering::Acquire),
            too_large: self.too_large.load(Ordering::Acquire),
            would_block: self.would_block.load(Ordering::Acquire),
            no_buffer: self.no_buffer.load(Ordering::Acquire),
            refused: self.refused.load(Ordering::Acquire),
            unreachable: self.unreachable.load(Ordering::Acquire),
            failed: self.failed.load(Ordering::Acquire),
            bounced: 0,
        }
    }
}

/// Events on their way into one datagram, of one thread.
///
/// A batch that is full sends itself; [`flush`](Self::flush) sends what there is,
/// and so does dropping it. Nothing else does: who waits for more events decides
/// how long.
///
/// ```no_run
/// # use hailmary_client::{Address, Event, Publisher};
/// # let publisher = Publisher::connect(&Address::from_env()?)?;
/// let mut batch = publisher.batch();
/// for id in ["42", "43", "44"] {
///     batch.push(&Event::new("search.index", id));
/// }
/// batch.flush();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Batch {
    publisher: Publisher,
    datagram: Vec<u8>,
    events: u64,
    bytes_max: usize,
}

impl Batch {
    /// Adds an event, or drops and counts it. Sends what is there if the event
    /// does not fit beside it; one larger than the batch may be goes alone.
    pub fn push(&mut self, event: &Event<'_>) {
        let _ = self.try_push(event);
    }

    /// Like [`push`](Self::push), but says what went wrong.
    ///
    /// # Errors
    ///
    /// The event itself is illegal, and is not in the batch; or what was there
    /// before had to be sent and was dropped, while the event is in the batch.
    pub fn try_push(&mut self, event: &Event<'_>) -> Result<(), PublishError> {
        let bytes = match event.check() {
            Ok(bytes) => bytes,
            Err(reason) => return self.publisher.shared.drop_unsent(reason),
        };
        let outcome = if self.datagram.len() + bytes + STAMP_BYTES_MAX > self.bytes_max {
            self.try_flush()
        } else {
            Ok(())
        };
        write_event(&mut self.datagram, event.parts());
        self.events += 1;
        outcome
    }

    /// Sends what there is, or drops and counts it.
    pub fn flush(&mut self) {
        let _ = self.try_flush();
    }

    /// Sends what there is, or says why it was dropped.
    ///
    /// # Errors
    ///
    /// Where the datagram was not handed to the kernel. The batch is empty then, too.
    pub fn try_flush(&mut self) -> Result<(), PublishError> {
        if self.events == 0 {
            return Ok(());
        }
        let events = std::mem::take(&mut self.events);
        let outcome = self.publisher.shared.send(&mut self.datagram, events);
        self.datagram.clear();
        outcome
    }

    /// Events that wait to be sent.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.flush();
    }
}
