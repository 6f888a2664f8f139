//! Subscribing: a socket, a lease that is kept alive, and the events that come.
//!
//! Owns the blocking loop around a [`Session`]. There is no thread but a short-lived
//! one that looks a lost bus up: renewals happen within the calls that receive. An
//! application that does not receive for longer than its lease loses it, and asks
//! anew when it does.

use std::io;
use std::time::Duration;

use crate::address::Address;
use crate::builder::SubscriberBuilder;
use crate::endpoint::{Arrival, Endpoint};
use crate::lease::Refusal;
use crate::received::{
    Item, Loss, ReceivedEvent, ReceivedFrame, RecvError, SubscribeError, SubscriberStats,
};
use crate::session::{Session, Turn};

/// How many datagrams without events a call looks at once its time is over, so
/// that an answer of the bus does not hide events behind it, and a flood of
/// strangers' datagrams does not hold the caller.
const IDLE_TURNS_MAX: u32 = 64;

/// Receives the events that its patterns call for.
///
/// As an iterator it blocks for the next event, for ever, and ends only if the
/// bus refuses the lease for good or the socket fails; [`recv`](Self::recv) then
/// tells why. A bus that is gone is waited for, and looked for anew by its name if it
/// has one: once the lease has lapsed and nobody answered for some seconds, a thread
/// that lives no longer than that asks the name server, as often as every 10 seconds.
/// Dropping a subscriber tells the bus.
///
/// Should something else in the process close the socket, the call that meets this
/// fails, and the next one goes on by a new socket and asks for a lease anew.
///
/// After a `fork` it is the parent's: in the child it receives nothing any more but
/// [`RecvError::Forked`], and dropping it tells nobody.
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
    session: Session,
    endpoint: Endpoint,
}

impl Subscriber {
    /// Begins to describe a subscription at the bus at `address`.
    pub fn builder(address: &Address) -> SubscriberBuilder {
        SubscriberBuilder::new(address.clone())
    }

    pub(crate) fn new(session: Session, endpoint: Endpoint) -> Self {
        Self { session, endpoint }
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
        self.recv_until(Some(self.session.now().saturating_add(timeout)))
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
        self.recv_item_until(Some(self.session.now().saturating_add(timeout)))
    }

    /// The events, and between them word of those that do not come. Blocks and ends
    /// as the iterator of events does.
    ///
    /// A [`Loss`] comes as soon as it is known, before the next event, and also
    /// while there are no events. What the bus dropped is known by the next frame or
    /// renewal, but for as many as were lost before, which may be the same; those, and
    /// what is missing for another reason, are awaited for 3 seconds first, so that
    /// their notice comes that much later than the events around the gap. One notice
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
    ///         _ => {}
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
        self.session.take_loss()
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
        self.recv_frame_until(Some(self.session.now().saturating_add(timeout)), take)
    }

    /// Whether a lease stands at this moment, as far as is known here.
    #[must_use]
    pub fn is_subscribed(&self) -> bool {
        self.session.is_subscribed()
    }

    /// Why the bus granted no lease when it was last asked, where it is asked again:
    /// [`Refusal::Full`] may pass. `None` while a lease stands, and while no bus answered.
    /// Of a refusal that is final the receiving calls tell.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.session.refusal()
    }

    /// What was seen since the subscription began. It is counted within the
    /// receiving calls; this one reads no clock and no socket.
    #[must_use]
    pub fn stats(&self) -> SubscriberStats {
        self.session.stats()
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
        self.session.close(&self.endpoint);
        self.stats()
    }

    pub(crate) fn await_lease(&mut self, timeout: Duration) -> Result<(), SubscribeError> {
        let deadline = Some(self.session.now().saturating_add(timeout));
        match self.turn_until(deadline, |subscriber| subscriber.lease_turn(deadline)) {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(self.session.no_lease()),
            Err(error) => Err(error.into()),
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
        if !self.session.has_queued(&self.endpoint)? {
            self.turn_until(deadline, |subscriber| subscriber.queue_turn(deadline))?;
        }
        Ok(self.session.pop_event())
    }

    fn recv_item_until(&mut self, deadline: Option<Duration>) -> Result<Option<Item>, RecvError> {
        if !self.session.has_queued(&self.endpoint)? {
            self.turn_until(deadline, |subscriber| subscriber.item_turn(deadline))?;
        }
        Ok(self.session.pop_item())
    }

    /// One turn, which also brings something once there is word of a loss.
    fn item_turn(&mut self, deadline: Option<Duration>) -> Result<Turn<()>, RecvError> {
        if self.session.knows_of_loss() {
            return Ok(Turn::Events(()));
        }
        match self.queue_turn(deadline)? {
            _ if self.session.knows_of_loss() => Ok(Turn::Events(())),
            turn => Ok(turn),
        }
    }

    fn recv_frame_until<R>(
        &mut self,
        deadline: Option<Duration>,
        mut take: impl FnMut(ReceivedFrame<'_>) -> R,
    ) -> Result<Option<R>, RecvError> {
        self.turn_until(deadline, |subscriber| {
            Ok(match subscriber.arrival(deadline)? {
                Some(arrival) => subscriber.session.handle_arrival(arrival, &mut take),
                None => Turn::Silence,
            })
        })
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
            if deadline.is_some_and(|deadline| self.session.now() >= deadline) {
                idle_turns += 1;
                if silent || idle_turns >= IDLE_TURNS_MAX {
                    return Ok(None);
                }
            }
        }
    }

    /// One turn, with the events copied into the queue.
    fn queue_turn(&mut self, deadline: Option<Duration>) -> Result<Turn<()>, RecvError> {
        Ok(match self.arrival(deadline)? {
            Some(arrival) => self.session.queue_arrival(arrival),
            None => Turn::Silence,
        })
    }

    /// Sends what is due, and waits for one datagram till the deadline or the next
    /// request, whichever comes first.
    fn arrival(&mut self, deadline: Option<Duration>) -> Result<Option<Arrival>, RecvError> {
        if let Some((target, moved)) = self.session.look_for_bus() {
            self.endpoint = moved;
            self.session.go_to(target);
        }
        let wait = self.session.begin_turn(&self.endpoint, deadline)?;
        let received = self.endpoint.receive(self.session.buffer(), wait);
        let arrival = received.map_err(|error| self.mend(error))?;
        if arrival.is_none() {
            self.session.handle_silence();
        }
        Ok(arrival)
    }

    /// Goes on by another socket where this one is lost.
    fn mend(&mut self, error: io::Error) -> io::Error {
        if let Some(endpoint) = self.session.replacement(&error) {
            self.endpoint = endpoint;
            self.session.rebind();
        }
        error
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
        self.session.close(&self.endpoint);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use hailmary_proto::v1;
    use hailmary_proto::v1::frame::Control;
    use prost::Message;

    use super::*;
    use crate::address::Target;

    /// Where the bus is found. The test that looks it up binds there.
    const MOVED_TO: &str = "127.0.77.9";

    fn request(bus: &UdpSocket) -> v1::Subscribe {
        let mut buffer = [0; 512];
        bus.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let bytes = bus.recv(&mut buffer).unwrap();
        let frame = v1::Frame::decode(&buffer[..bytes]).unwrap();
        match frame.control {
            Some(Control::Subscribe(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_bus_that_moved_is_found_by_its_name() {
        let old = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = old.local_addr().unwrap().port();
        let new = UdpSocket::bind((MOVED_TO, port)).unwrap();
        let address = format!("localhost:{port}").parse().unwrap();
        let mut subscriber = Subscriber::builder(&address).pattern(">").open().unwrap();
        subscriber.session.search().look_up_by(|address, _| {
            let Address::Udp { port, .. } = address else {
                return None;
            };
            let moved = format!("{MOVED_TO}:{port}").parse().unwrap();
            Some(Target::Udp(moved))
        });
        let first = request(&old);
        drop(old);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Longer than a bus may be silent, and the slowest pace of requests.
                subscriber.recv_timeout(Duration::from_secs(8)).unwrap();
            });
            assert_eq!(request(&new).nonce, first.nonce);
        });
    }
}
