//! Subscribing on tokio: the same session, waited for without a thread.
//!
//! Owns the async loop around a [`Session`]. It spawns no task: what is to be done,
//! renewing the lease included, is done while one of its futures is polled. No
//! future holds anything of its own across an await, so each may be dropped at any
//! moment: what arrived is in the session, or still in the socket.

use std::io;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::address::{Address, Target};
use crate::builder::SubscriberBuilder;
use crate::endpoint::{Arrival, Endpoint, Readiness, absent_as_none};
use crate::lease::Refusal;
use crate::received::{
    Item, Loss, ReceivedEvent, ReceivedFrame, RecvError, SubscribeError, SubscriberStats,
};
use crate::session::{Session, Turn};

/// How many calls may be answered at once, one after the other, before other tasks of
/// the thread are let go first: some tens of microseconds' worth.
const BURST_CALLS_MAX: u32 = 128;

/// Receives the events that its patterns call for, on tokio.
///
/// Like [`Subscriber`](crate::Subscriber), from a
/// [builder](AsyncSubscriber::builder) of the same options, by
/// [`connect_async`](SubscriberBuilder::connect_async) or
/// [`open_async`](SubscriberBuilder::open_async). Dropping it tells the bus.
///
/// There is no task behind it. The lease is renewed while one of the receiving
/// futures is polled, and so it is as long as a task does nothing but receive. Of a
/// subscriber that nobody polls, the events wait in the kernel's buffer; once that is
/// full the rest is lost, and once the lease is over the bus sends no more. The next
/// call goes on with what is in the buffer and asks for a lease anew, and the stats
/// tell of both. A handler that takes long belongs into another task, behind a bounded
/// channel.
///
/// **Cancellation**: every async method may be dropped at any await, as `select!`
/// does; no event, notice or count gets lost by it, and calling again goes on.
///
/// ```
/// # use std::net::UdpSocket;
/// use std::time::Duration;
/// use hailmary_client::AsyncSubscriber;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let bus = UdpSocket::bind("127.0.0.1:0")?;
/// # let address = bus.local_addr()?.to_string().parse()?;
/// let mut subscriber = AsyncSubscriber::builder(&address)
///     .pattern("search.>")
///     .open_async()
///     .await?;
/// let mut every_second = tokio::time::interval(Duration::from_secs(1));
/// loop {
///     tokio::select! {
///         event = subscriber.recv() => println!("{}", event?.topic),
///         _ = every_second.tick() => println!("{:?}", subscriber.stats()),
///     }
/// #   break;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncSubscriber {
    session: Session,
    endpoint: Endpoint,
    readiness: Readiness,
    /// Calls since other tasks were last let go first.
    burst: u32,
}

impl AsyncSubscriber {
    /// Begins to describe a subscription at the bus at `address`.
    pub fn builder(address: &Address) -> SubscriberBuilder {
        SubscriberBuilder::new(address.clone())
    }

    pub(crate) fn new(session: Session, endpoint: Endpoint) -> io::Result<Self> {
        Ok(Self {
            session,
            readiness: Readiness::of(&endpoint)?,
            endpoint,
            burst: 0,
        })
    }

    /// The next event, waited for as long as it takes. Safe to cancel.
    ///
    /// # Errors
    ///
    /// The bus refused the lease for good, the socket failed, or the runtime that this
    /// was last polled in has ended; the next call goes on in the present one.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time.
    pub async fn recv(&mut self) -> Result<ReceivedEvent, RecvError> {
        self.let_others_go().await;
        loop {
            self.session.has_queued(&self.endpoint)?;
            if let Some(event) = self.session.pop_event() {
                return Ok(event);
            }
            self.queue_turn(None).await?;
        }
    }

    /// The next event or the next word of events that do not come, waited for as
    /// long as it takes: see [`Subscriber::items`](crate::Subscriber::items). Safe to
    /// cancel.
    ///
    /// # Errors
    ///
    /// The bus refused the lease for good, the socket failed, or the runtime that this
    /// was last polled in has ended; the next call goes on in the present one.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time.
    pub async fn recv_item(&mut self) -> Result<Item, RecvError> {
        self.let_others_go().await;
        loop {
            self.session.has_queued(&self.endpoint)?;
            if let Some(item) = self.session.pop_item() {
                return Ok(item);
            }
            self.queue_turn(None).await?;
        }
    }

    /// Hands the next frame's events to `take` without copying them, and returns what
    /// it makes of them, waiting as long as it takes. What [`recv`](Self::recv) has
    /// left of an earlier frame stays for `recv`. Safe to cancel: once `take` was
    /// called, the future is done without another await.
    ///
    /// # Errors
    ///
    /// The bus refused the lease for good, the socket failed, or the runtime that this
    /// was last polled in has ended; the next call goes on in the present one.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time.
    pub async fn recv_frame<R>(
        &mut self,
        mut take: impl FnMut(ReceivedFrame<'_>) -> R,
    ) -> Result<R, RecvError> {
        self.let_others_go().await;
        loop {
            let Some(arrival) = self.arrival(None).await? else {
                continue;
            };
            if let Turn::Events(taken) = self.session.handle_arrival(arrival, &mut take) {
                return Ok(taken);
            }
        }
    }

    /// Takes the notice that [`recv_item`](Self::recv_item) would give next, if
    /// there is one. It neither waits nor reads from the socket.
    pub fn take_loss(&mut self) -> Option<Loss> {
        self.session.take_loss()
    }

    /// Whether a lease stands at this moment, as far as is known here.
    #[must_use]
    pub fn is_subscribed(&self) -> bool {
        self.session.is_subscribed()
    }

    /// Why the bus granted no lease when it was last asked, where it is asked again:
    /// see [`Subscriber::refusal`](crate::Subscriber::refusal).
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.session.refusal()
    }

    /// What was seen since the subscription began. It is counted while the receiving
    /// futures are polled.
    #[must_use]
    pub fn stats(&self) -> SubscriberStats {
        self.session.stats()
    }

    /// What the kernel granted as receive buffer: see
    /// [`Subscriber::receive_buffer_bytes`](crate::Subscriber::receive_buffer_bytes).
    ///
    /// # Errors
    ///
    /// The kernel did not tell.
    pub fn receive_buffer_bytes(&self) -> io::Result<usize> {
        self.endpoint.receive_buffer_bytes()
    }

    /// Tells the bus that it is over, which does not wait, and returns the final
    /// counts. Dropping does the same without them.
    pub fn close(mut self) -> SubscriberStats {
        self.session.close(&self.endpoint);
        self.stats()
    }

    pub(crate) async fn await_lease(&mut self, timeout: Duration) -> Result<(), SubscribeError> {
        let deadline = self.session.now().saturating_add(timeout);
        while !self.is_subscribed() {
            if self.session.now() >= deadline {
                return Err(self.session.no_lease());
            }
            self.queue_turn(Some(deadline)).await?;
        }
        Ok(())
    }

    /// One turn, with the events of the datagram that came copied into the queue.
    async fn queue_turn(&mut self, deadline: Option<Duration>) -> Result<(), RecvError> {
        if let Some(arrival) = self.arrival(deadline).await? {
            self.session.queue_arrival(arrival);
        }
        Ok(())
    }

    /// Sends what is due, and waits for one datagram till the deadline or the next
    /// request, whichever comes first. The datagram is taken from the socket by the
    /// poll that completes this.
    async fn arrival(&mut self, deadline: Option<Duration>) -> Result<Option<Arrival>, RecvError> {
        if let Some((target, moved)) = self.session.look_for_bus() {
            self.readiness = Readiness::of(&moved)?;
            self.endpoint = moved;
            self.session.go_to(target);
        }
        let wait = self.session.begin_turn(&self.endpoint, deadline)?;
        let (endpoint, buffer) = (&self.endpoint, self.session.buffer());
        let read = self.readiness.read(|| endpoint.receive_now(buffer));
        let outcome = match tokio::time::timeout(wait, read).await {
            Ok(outcome) => outcome,
            // The reactor may not know yet of what lies in the socket, and what lies
            // there is not missing.
            Err(_) => self.endpoint.receive_late(self.session.buffer()),
        };
        let arrival = absent_as_none(outcome).map_err(|error| self.mend(error))?;
        if arrival.is_none() {
            self.session.handle_silence();
        }
        Ok(arrival)
    }

    /// Goes on by another socket where this one is lost, and on another reactor where
    /// the runtime of the last one is no more.
    fn mend(&mut self, error: io::Error) -> io::Error {
        if let Some(endpoint) = self.session.replacement(&error)
            && let Ok(readiness) = Readiness::of(&endpoint)
        {
            self.readiness = readiness;
            self.endpoint = endpoint;
            self.session.rebind();
        } else if is_of_reactor(&error)
            && let Ok(readiness) = Readiness::of(&self.endpoint)
        {
            self.readiness = readiness;
        }
        error
    }

    /// A socket that always has something to read would else hold its thread.
    async fn let_others_go(&mut self) {
        self.burst += 1;
        if self.burst >= BURST_CALLS_MAX {
            self.burst = 0;
            yield_once().await;
        }
    }
}

impl Drop for AsyncSubscriber {
    fn drop(&mut self) {
        self.session.close(&self.endpoint);
    }
}

/// Whether it was not the kernel that failed.
fn is_of_reactor(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

async fn yield_once() {
    let mut has_yielded = false;
    std::future::poll_fn(|context| {
        if has_yielded {
            return Poll::Ready(());
        }
        has_yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Looks the name up without holding the thread; an address at once.
pub(crate) async fn resolve(address: &Address) -> io::Result<Target> {
    if !address.is_name() {
        return Target::resolve(address);
    }
    let (sender, receiver) = oneshot::channel();
    let address = address.clone();
    std::thread::Builder::new()
        .name("hailmary-lookup".to_owned())
        .spawn(move || {
            // Nobody waits any more if the future was dropped.
            let _ = sender.send(Target::resolve(&address));
        })?;
    receiver.await.map_err(io::Error::other)?
}
