//! Publishing: an event becomes a datagram and is forgotten.
//!
//! Owns the flow that a publisher's clones share, and what takes its place after a
//! fork, a look-up of the bus's name, or the loss of the socket. It refuses to
//! wait: there is no lock, no queue and no thread, and each event costs one system
//! call that returns at once, or two or three where there is no bus.
//!
//! All that is shared is in one value that is never changed but replaced as a
//! whole, without a lock, so that a fork at any moment leaves the child something
//! that it can use.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use hailmary_proto::write::{DATAGRAM_BYTES_MAX, STAMP_BYTES_MAX, StampBytes, write_event};

use crate::account::Account;
use crate::address::{Address, AddressError, Target, is_disabled};
use crate::counters::{PublishError, PublisherStats};
use crate::event::Event;
use crate::fork;
use crate::link::Link;
use crate::ping::{Pong, ping_target};
use crate::random::{random_id, random_id_or};
use crate::route::Route;
use crate::spy::{Recording, Spy};
use crate::trace_context::with_context;

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

/// Sends events to a bus and forgets them.
///
/// It never blocks, and a full, dead, missing or restarting bus costs it a
/// failed system call or two; it finds a bus that comes later by itself. It is cheap to
/// clone and may be used from all threads at once, and from async code as it is:
/// clones share the socket, the sender's id and the counts. Dropping the last
/// clone closes the socket; nothing is left to be sent then.
///
/// After a `fork`, the child's first event begins a flow of its own, with a new
/// sender id, counts at zero and a socket of its own. The child then closes what it
/// was left of the parent's socket, unless that number is another's by now, as in
/// daemons that close all that they were left.
///
/// Should something else in the process close the socket or shut it down, the event
/// that meets it is dropped as `failed`, and the next one goes by a new socket. Whatever
/// bears the old number then is not closed, and nothing is written into a file, a pipe
/// or a TCP connection. A connected datagram socket, or a connection over Unix, that
/// was given the number gets what is published until the next send fails: no send can
/// tell.
///
/// ```
/// # let bus = std::net::UdpSocket::bind("127.0.0.1:0")?;
/// # let address = bus.local_addr()?.to_string();
/// use hailmary_client::{Event, Publisher};
///
/// let publisher = Publisher::connect(&address.parse()?)?;
/// publisher.publish("search.index", "document 42");
/// publisher.publish_event(&Event::new("search.index", "document 43").key("43"));
/// assert_eq!(publisher.stats().sent, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// None where there is no bus to look up.
    address: Option<Address>,
    flow: ArcSwap<Flow>,
}

/// What sends the events of one process.
#[derive(Debug)]
struct Flow {
    generation: usize,
    account: Arc<Account>,
    route: Route,
}

impl Publisher {
    /// Opens a socket towards a bus, whether or not one is there. A name is
    /// looked up now, which waits for the name server, and again only by
    /// [`resolve`](Self::resolve).
    ///
    /// # Errors
    ///
    /// The name is unknown, there is no randomness or no socket to be had, or
    /// the bus's Unix socket may not be written to.
    pub fn connect(address: &Address) -> io::Result<Self> {
        let link = Link::open(Target::resolve(address)?)?;
        Self::new(Some(address.clone()), Route::Link(link))
    }

    /// A publisher as the environment says: to the bus that `HAILMARY_BUS` names,
    /// or to 127.0.0.1:7277; with `HAILMARY_DISABLE=1`, [to nowhere](Self::nop).
    ///
    /// What the network does is no error here: while the bus's name has no address,
    /// or there is no socket to be had, events are dropped and counted.
    /// [`resolve`](Self::resolve) looks the name up again. As there, a name is waited
    /// for.
    ///
    /// ```
    /// use hailmary_client::Publisher;
    ///
    /// let publisher = Publisher::from_env()?;
    /// publisher.publish("signup.completed", "user 42");
    /// # Ok::<(), hailmary_client::AddressError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `HAILMARY_BUS` is no address.
    pub fn from_env() -> Result<Self, AddressError> {
        if is_disabled() {
            return Ok(Self::nop());
        }
        let address = Address::from_env()?;
        let route = Target::resolve(&address).map_or(Route::Unknown, Route::to);
        Ok(Self::of_way(Some(address), route, random_id_or(0)))
    }

    /// A publisher that sends nothing, for tests and for programs that shall run
    /// without a bus. Events are checked as by any other, so that an illegal one is
    /// an error here as well; of the legal ones nothing is kept or counted.
    #[must_use]
    pub fn nop() -> Self {
        Self::of_way(None, Route::Nowhere, random_id_or(0))
    }

    /// A publisher for tests, and what sees all that it publishes. It keeps the
    /// rules and counts of any other; as it keeps the events too, it takes a lock
    /// and allocates, and drops those beyond
    /// [`SPY_EVENTS_MAX`](crate::SPY_EVENTS_MAX). In a forked child it sends nothing.
    ///
    /// ```
    /// use hailmary_client::Publisher;
    ///
    /// fn sign_up(name: &str, publisher: &Publisher) {
    ///     publisher.publish("signup.completed", name);
    /// }
    ///
    /// let (publisher, spy) = Publisher::spy();
    /// sign_up("ada", &publisher);
    /// let events = spy.take();
    /// assert_eq!(events[0].topic, "signup.completed");
    /// assert_eq!(events[0].payload, b"ada");
    /// ```
    #[must_use]
    pub fn spy() -> (Self, Spy) {
        let recording = Arc::new(Recording::default());
        let route = Route::Spy(Arc::clone(&recording));
        (
            Self::of_way(None, route, random_id_or(0)),
            Spy::new(recording),
        )
    }

    fn new(address: Option<Address>, route: Route) -> io::Result<Self> {
        fork::watch()?;
        Ok(Self::of_way(address, route, random_id()?))
    }

    fn of_way(address: Option<Address>, route: Route, sender: u64) -> Self {
        // Out of memory for one list entry, it is as if there were no forks.
        let _ = fork::watch();
        let flow = Flow {
            generation: fork::generation(),
            account: Arc::new(Account::new(sender)),
            route,
        };
        let shared = Shared {
            address,
            flow: ArcSwap::from_pointee(flow),
        };
        Self {
            shared: Arc::new(shared),
        }
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
        with_context(event, |event| self.shared.publish(event))
    }

    /// Begins a batch: several events in one datagram, which costs everybody far
    /// less than one for each. It grows to 1,400 bytes over a network and to
    /// 16,384 on this host. It keeps its size where [`resolve`](Self::resolve) finds
    /// the bus elsewhere.
    #[must_use]
    pub fn batch(&self) -> Batch {
        let bytes_max = match self.shared.flow.load().route.target() {
            Some(Target::Udp(bus)) if !bus.ip().is_loopback() => BATCH_BYTES_NETWORK,
            _ => BATCH_BYTES_HOST,
        };
        self.batch_of(bytes_max)
    }

    /// Begins a batch that grows to `bytes_max`, at most to a datagram of 65,507 bytes.
    #[must_use]
    pub fn batch_of(&self, bytes_max: usize) -> Batch {
        Batch {
            publisher: self.clone(),
            generation: fork::generation(),
            datagram: Vec::new(),
            events: 0,
            bytes_max: bytes_max.min(DATAGRAM_BYTES_MAX),
        }
    }

    /// Looks the bus's name up again and sends all later events there, of all
    /// clones, by a new socket; the flow and its counts go on. It waits for the name
    /// server, so it is for a thread that may: the publisher never does this by
    /// itself. It also helps where this host's own addresses have changed.
    ///
    /// Other threads may publish meanwhile. What they publish at this moment goes to
    /// the old address or the new one. A publisher without a bus, as for tests, has
    /// nothing to look up.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect); all stays as it was then.
    pub fn resolve(&self) -> io::Result<()> {
        let Some(address) = &self.shared.address else {
            return Ok(());
        };
        let link = Link::open(Target::resolve(address)?)?;
        self.shared.take(Route::Link(link));
        Ok(())
    }

    /// What became of the events so far, in this process and as far as this side
    /// knows. It reads a few counters: no system call, no lock.
    /// [`ping`](Self::ping) asks the bus.
    #[must_use]
    pub fn stats(&self) -> PublisherStats {
        self.shared.flow().account.counters.stats()
    }

    /// Asks the bus what it received from this publisher, and waits for the
    /// answer: beside [`resolve`](Self::resolve) the one call here that blocks. It
    /// opens a socket of its own and asks again, as datagrams may get lost, until
    /// the time is over. See [`Pong`] for how the answer stands to
    /// [`stats`](Self::stats).
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
    /// `TimedOut` if there was no answer, `NotConnected` for a publisher without a
    /// bus, else what the kernel said.
    pub fn ping(&self, timeout: Duration) -> io::Result<Pong> {
        // The flow itself is not held on to while this waits.
        let (target, stamp) = {
            let flow = self.shared.flow();
            (flow.route.target().cloned(), flow.account.counters.stamp(0))
        };
        let target = target.ok_or(io::ErrorKind::NotConnected)?;
        ping_target(&target, Some(stamp), timeout)
    }
}

impl Shared {
    /// The flow of this process.
    #[inline]
    fn flow(&self) -> Guard<Arc<Flow>> {
        let flow = self.flow.load();
        if flow.generation == fork::generation() {
            flow
        } else {
            self.begin_flow(flow)
        }
    }

    /// In a child: leaves the parent's flow to the parent. Of several threads at once,
    /// one's new flow is everybody's.
    #[cold]
    fn begin_flow(&self, parents: Guard<Arc<Flow>>) -> Guard<Arc<Flow>> {
        let new = Arc::new(parents.of_child());
        self.flow.compare_and_swap(&parents, new);
        self.flow.load()
    }

    fn publish(&self, event: &Event<'_>) -> Result<(), PublishError> {
        if let Err(reason) = event.check() {
            return self.drop_unsent(reason);
        }
        let mut datagram = DATAGRAM.try_with(Cell::take).unwrap_or_default();
        datagram.clear();
        write_event(&mut datagram, event.parts());
        let outcome = self.send(&mut datagram, 1);
        // Only a thread about to end has no place for it any more.
        let _ = DATAGRAM.try_with(|place| place.set(datagram));
        outcome
    }

    /// Puts the stamp behind the events, which is as good a place as before them
    /// and needs no copying, and sends.
    fn send(&self, datagram: &mut Vec<u8>, events: u64) -> Result<(), PublishError> {
        let flow = self.flow();
        if matches!(flow.route, Route::Nowhere) {
            return Ok(());
        }
        let stamp = StampBytes::new(&flow.account.counters.stamp(events));
        datagram.extend_from_slice(stamp.as_slice());
        match flow.route.send(datagram, &flow.account) {
            Ok(()) => Ok(()),
            Err(_) if matches!(flow.route, Route::Unopened(..)) => {
                self.send_anew(&flow, datagram, events)
            }
            Err(error) => self.drop_events(&flow, &error, events),
        }
    }

    /// Where no socket was to be had, there may be one now.
    #[cold]
    fn send_anew(
        &self,
        unopened: &Guard<Arc<Flow>>,
        datagram: &[u8],
        events: u64,
    ) -> Result<(), PublishError> {
        self.mend(unopened);
        let flow = self.flow();
        match flow.route.send(datagram, &flow.account) {
            Ok(()) => Ok(()),
            Err(error) => self.drop_events(&flow, &error, events),
        }
    }

    #[cold]
    fn drop_unsent(&self, reason: PublishError) -> Result<(), PublishError> {
        let flow = self.flow();
        flow.account.counters.count_unsent(reason);
        flow.account.log.dropped(reason);
        Err(reason)
    }

    #[cold]
    fn drop_events(
        &self,
        flow: &Guard<Arc<Flow>>,
        error: &io::Error,
        events: u64,
    ) -> Result<(), PublishError> {
        let (account, reason) = (&flow.account, flow.route.failure(error));
        account.counters.count_dropped(reason, events);
        account.log.dropped(reason);
        if flow.route.is_to_be_replaced(error, account) {
            self.mend(flow);
        }
        Err(reason)
    }

    /// Goes on by a new socket, unless another thread was faster.
    fn mend(&self, flow: &Guard<Arc<Flow>>) {
        if let Some(target) = flow.route.target().cloned() {
            let new = flow.by(Route::to(target));
            self.flow.compare_and_swap(flow, Arc::new(new));
        }
    }

    /// Goes on by another route, and closes the old socket once no thread sends by it.
    fn take(&self, route: Route) {
        let flow = self.flow();
        self.flow.store(Arc::new(flow.by(route)));
    }
}

impl Flow {
    /// The same flow by another route.
    fn by(&self, route: Route) -> Self {
        Self {
            generation: self.generation,
            account: Arc::clone(&self.account),
            route,
        }
    }

    fn of_child(&self) -> Self {
        Self {
            generation: fork::generation(),
            account: Arc::new(Account::new(random_id_or(self.account.counters.sender()))),
            route: self.route.of_child(),
        }
    }
}

/// Events on their way into one datagram, of one thread.
///
/// A batch that is full sends itself; [`flush`](Self::flush) sends what there is,
/// and so does dropping it: without waiting, like any publishing, and counting what
/// cannot be sent. Nothing else sends it: who waits for more events decides how long.
/// Events are counted when they are sent or dropped. What a batch holds at a `fork` is
/// the parent's, and is forgotten in the child.
///
/// ```
/// # use hailmary_client::{Event, Publisher};
/// # let (publisher, spy) = Publisher::spy();
/// let mut batch = publisher.batch();
/// for id in ["42", "43", "44"] {
///     batch.push(&Event::new("search.index", id));
/// }
/// assert_eq!((batch.events(), publisher.stats().sent), (3, 0));
/// batch.flush();
/// assert_eq!((batch.events(), publisher.stats().sent), (0, 3));
/// ```
#[derive(Debug)]
pub struct Batch {
    publisher: Publisher,
    /// The process that the events were pushed in.
    generation: usize,
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
        with_context(event, |event| self.put(event))
    }

    fn put(&mut self, event: &Event<'_>) -> Result<(), PublishError> {
        let bytes = match event.check() {
            Ok(bytes) => bytes,
            Err(reason) => return self.publisher.shared.drop_unsent(reason),
        };
        self.forget_parents();
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
        self.forget_parents();
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

    /// In a child, what is there is the parent's to send.
    #[inline]
    fn forget_parents(&mut self) {
        if self.generation != fork::generation() {
            self.generation = fork::generation();
            self.datagram.clear();
            self.events = 0;
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_socket_that_was_not_to_be_had_is_opened_for_the_next_event() {
        let bus = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = Target::Udp(bus.local_addr().unwrap());
        let kind = io::ErrorKind::PermissionDenied;
        let publisher = Publisher::of_way(None, Route::Unopened(target, kind), 7);
        publisher.try_publish(&Event::new("a", "")).unwrap();
        assert_eq!((publisher.stats().sent, publisher.stats().failed), (1, 0));
        assert!(bus.recv(&mut [0; 64]).is_ok());
    }

    #[test]
    fn a_bus_that_moved_gets_what_comes_after() {
        let buses = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [old, new] = buses.each_ref().map(|bus| bus.local_addr().unwrap());
        let publisher = Publisher::of_way(None, Route::to(Target::Udp(old)), 7);
        let clone = publisher.clone();
        clone.publish("a", "");
        publisher.shared.take(Route::to(Target::Udp(new)));
        clone.publish("a", "");
        for bus in buses {
            assert!(bus.recv(&mut [0; 64]).is_ok());
            bus.set_nonblocking(true).unwrap();
            assert!(bus.recv(&mut [0; 64]).is_err());
        }
    }
}
