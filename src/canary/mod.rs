//! The canary: probes that the bus sends itself, so that the path of an idle application's events
//! is watched too.
//!
//! Each listener gets a stream of probes from a socket of the canary's own. They are events like
//! any others, of a topic of the bus's own, and come back to a static subscriber that is the
//! canary too. So they pass the whole path (the kernel's buffer, the data thread, the fan-out, the
//! way to a subscriber) and count in all metrics. Where several data threads share a port, the
//! kernel deals a stream out to one of them, as it does any publisher's flow.
//!
//! All this is done by one thread, which sleeps but for its probes; without a canary there is
//! neither thread nor socket. It shows its counts on a [`Board`] and tells the data threads
//! nothing. Streams begin and end while it works, as listeners open and close; what a stream has
//! counted stays.
//!
//! It is the one publisher of reserved topics, and is known by the address of its sockets: a port
//! that it holds, or a path beside the listener's, where whoever may not create files cannot take
//! its place. Whatever else comes to its subscriber's address is no probe of its own and is not
//! counted.

mod probes;

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use hailmary_proto::v1::Frame;
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token, Waker};
use prost::Message;
use tracing::{info, warn};

use crate::bus::StaticSubscriber;
use crate::bus::address::Address;
use crate::bus::limits::NETWORK_FRAME_BYTES;
use crate::bus::subscribers::Terms;
use crate::bus::tally::Histogram;
use crate::net::event_loop::unix_nano;
use crate::net::listener::{ListenAddress, Listener, reachable};

use probes::Probes;

/// What the canary's subscriber is called, and how its topics begin: a listener's number follows.
const NAME: &str = "_hailmary.canary";

/// What follows a Unix listener's path in that of its stream's socket.
pub const PATH_SUFFIX: &str = ".canary";

/// The receive buffer of sockets that only send, in bytes: nobody has anything to tell them.
const UNUSED_BUFFER_BYTES: usize = 4_096;

/// Datagrams taken before the clock is looked at again, so that whoever floods the subscriber's
/// address does not stop the probes.
const DATAGRAMS_MAX: usize = 64;

/// The poll's token for the subscriber's socket.
const RETURNED: Token = Token(0);

/// The poll's token for changes and the end.
const CHANGED: Token = Token(1);

/// What became of one stream's probes.
#[derive(Clone, Debug, Default)]
pub struct StreamCounts {
    /// Probes sent, those included that the kernel refused.
    pub sent: u64,
    /// Probes that did not come back in time.
    pub lost: u64,
    /// From publishing to receipt, of those that came back.
    pub latency: Histogram,
}

/// What the canary shows.
#[derive(Debug, Default)]
pub struct Board(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    interval: Option<Duration>,
    streams: Vec<Option<StreamCounts>>,
}

impl Board {
    /// The time from one probe of a stream to the next. None while there is no canary.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        self.lock().interval
    }

    /// What became of each stream's probes, by the listeners' places. None of those that never
    /// had a stream.
    #[must_use]
    pub fn streams(&self) -> Vec<Option<StreamCounts>> {
        self.lock().streams.clone()
    }

    fn set_interval(&self, interval: Option<Duration>) {
        self.lock().interval = interval;
    }

    fn change(&self, stream: usize, change: impl FnOnce(&mut StreamCounts)) {
        let streams = &mut self.lock().streams;
        if streams.len() <= stream {
            streams.resize(stream + 1, None);
        }
        if let Some(counts) = streams.get_mut(stream) {
            change(counts.get_or_insert_default());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        // Integers are whole whatever happened to the thread that wrote them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Probes through one listener.
#[derive(Debug)]
pub struct Stream {
    /// The listener's place.
    number: usize,
    socket: Listener,
    source: Address,
    to: Address,
    topic: String,
    probes: Probes,
}

impl Stream {
    /// Opens a socket to the listener in this place, which has this address. `id` is random and
    /// never 0.
    ///
    /// # Errors
    ///
    /// What the system refuses.
    pub fn open(number: usize, listener: &Address, id: u64) -> anyhow::Result<Self> {
        let to = match listener {
            Address::Ip(ip) => Address::Ip(reachable(*ip)),
            Address::Unix(_) => listener.clone(),
        };
        let socket = Listener::bind(&beside(&to), UNUSED_BUFFER_BYTES)?;
        Ok(Self {
            number,
            source: socket.address()?,
            socket,
            to,
            topic: format!("{NAME}.{number}"),
            probes: Probes::new(id),
        })
    }

    /// The place of the listener that it probes.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Where its probes come from.
    #[must_use]
    pub fn source(&self) -> &Address {
        &self.source
    }

    /// Sends the next probe.
    fn send(&mut self, now: Duration) {
        let probe = self.probes.begin(now, &self.topic, unix_nano());
        // What the kernel refuses does not come back: it is counted as lost like the others.
        let _ = self.socket.answer(&self.to, &probe.encode_to_vec());
    }
}

/// What a canary is to do otherwise.
#[derive(Debug)]
pub struct Change {
    /// Time from one probe of a stream to the next.
    pub interval: Duration,
    /// Streams that begin.
    pub begin: Vec<Stream>,
}

/// What the canary's thread is told.
#[derive(Debug)]
enum Order {
    Change(Change),
    /// That the streams of the listeners in these places end, and where that is awaited.
    End(Vec<usize>, SyncSender<()>),
}

/// A canary. It stops when it is dropped.
#[derive(Debug)]
pub struct Canary {
    orders: Option<Sender<Order>>,
    waker: Arc<Waker>,
    subscriber: SocketAddr,
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl Canary {
    /// Opens its subscriber's socket and starts its thread, which sleeps till there are streams.
    ///
    /// # Errors
    ///
    /// What the system refuses.
    pub fn start(board: Arc<Board>) -> anyhow::Result<Self> {
        let mut subscriber = bind_subscriber()?;
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut subscriber, RETURNED, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), CHANGED)?);
        let (orders, ordered) = mpsc::channel();
        let address = subscriber.local_addr()?;
        let watch = Watch {
            streams: Vec::new(),
            ended: Vec::new(),
            interval: Duration::ZERO,
            next_probe: None,
            orders: ordered,
            board: Arc::clone(&board),
            started: Instant::now(),
            subscriber,
            poll,
        };
        let run = move || {
            if let Err(error) = watch.run() {
                warn!(%error, "the canary has ended");
            }
        };
        let thread = thread::Builder::new().name("canary".to_owned()).spawn(run);
        Ok(Self {
            orders: Some(orders),
            subscriber: address,
            thread: Some(thread.context("cannot start the canary")?),
            waker,
            board,
        })
    }

    /// The subscriber that its probes go to.
    #[must_use]
    pub fn subscriber(&self) -> StaticSubscriber {
        StaticSubscriber {
            name: NAME.to_owned(),
            address: Address::Ip(self.subscriber),
            topics: vec![format!("{NAME}.*")],
            frame_bytes_max: Some(NETWORK_FRAME_BYTES),
            terms: Terms::default(),
        }
    }

    /// Has it do otherwise, with a probe of all streams at once.
    pub fn change(&self, change: Change) {
        self.board.set_interval(Some(change.interval));
        for stream in &change.begin {
            // Shown before its first probe, too.
            self.board.change(stream.number, |_| {});
        }
        // It fails only where the thread has ended, which was told then.
        let _ = self.order(Order::Change(change));
    }

    /// Ends the streams of the listeners in these places, which have sent their last probe when
    /// this returns. What is under way is still counted when it comes back, or is lost.
    pub fn end(&self, places: Vec<usize>) {
        let (done, is_done) = mpsc::sync_channel(1);
        if self.order(Order::End(places, done)).is_ok() {
            // Cut off where the thread has ended: then nothing is sent any more, either.
            let _ = is_done.recv();
        }
    }

    /// Wakes the thread for this.
    fn order(&self, order: Order) -> io::Result<()> {
        // Where the thread has ended nobody takes it.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
        self.waker.wake()
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        drop(self.orders.take());
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It has failed only if the thread panicked, which was told then.
            let _ = thread.join();
        }
        self.board.set_interval(None);
    }
}

/// What the canary's thread has for itself.
#[derive(Debug)]
struct Watch {
    streams: Vec<Stream>,
    /// What is left of streams that have ended, by their places: probes under way.
    ended: Vec<(usize, Probes)>,
    interval: Duration,
    /// None without streams.
    next_probe: Option<Duration>,
    orders: Receiver<Order>,
    subscriber: UdpSocket,
    poll: Poll,
    board: Arc<Board>,
    started: Instant,
}

impl Watch {
    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(2);
        let mut has_more = false;
        loop {
            let now = self.now();
            if self.next_probe.is_some_and(|at| at <= now) {
                self.send(now);
                self.next_probe = Some(now.saturating_add(self.interval));
            }
            let wait = match has_more {
                true => Some(Duration::ZERO),
                false => self.next_end().map(|end| end.saturating_sub(self.now())),
            };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if events.iter().any(|event| event.token() == CHANGED) && !self.take_orders() {
                return Ok(());
            }
            // What was late by now is given up after what had come is taken: so a canary that was
            // held up itself does not call that a loss.
            let now = self.now();
            has_more = self.receive();
            self.give_up(now);
        }
    }

    /// Does what it was told, and says whether it is to go on.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Change(Change { interval, begin })) => {
                    self.streams.extend(begin);
                    self.interval = interval;
                    self.next_probe = (!self.streams.is_empty()).then(|| self.now());
                    info!(?interval, streams = self.streams.len(), "canary watches");
                }
                Ok(Order::End(places, done)) => {
                    self.end(&places);
                    // Who has gone does not wait.
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Ends streams. Their addresses are free from then on.
    fn end(&mut self, places: &[usize]) {
        let is_over = |stream: &mut Stream| places.contains(&stream.number);
        let over = self.streams.extract_if(.., is_over);
        self.ended
            .extend(over.map(|stream| (stream.number, stream.probes)));
        if self.streams.is_empty() {
            self.next_probe = None;
        }
        info!(streams = self.streams.len(), "canary watches");
    }

    /// The probes of all streams by their places, also of those that have ended.
    fn probes(&mut self) -> impl Iterator<Item = (usize, &mut Probes)> {
        let streams = self.streams.iter_mut();
        let streams = streams.map(|stream| (stream.number, &mut stream.probes));
        let ended = self.ended.iter_mut();
        streams.chain(ended.map(|(number, probes)| (*number, probes)))
    }

    fn send(&mut self, now: Duration) {
        for stream in &mut self.streams {
            self.board.change(stream.number, |counts| counts.sent += 1);
            stream.send(now);
        }
    }

    fn give_up(&mut self, now: Duration) {
        let board = Arc::clone(&self.board);
        for (number, probes) in self.probes() {
            match probes.give_up(now) {
                0 => {}
                lost => board.change(number, |counts| counts.lost += lost),
            }
        }
        self.ended.retain(|(_, probes)| probes.next_end().is_some());
    }

    fn next_end(&self) -> Option<Duration> {
        let streams = self.streams.iter().map(|stream| &stream.probes);
        let all = streams.chain(self.ended.iter().map(|(_, probes)| probes));
        let ends = all.filter_map(Probes::next_end);
        ends.chain(self.next_probe).min()
    }

    /// Takes what has come back, and says whether there may be more: the poll tells only once.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; NETWORK_FRAME_BYTES as usize];
        for _ in 0..DATAGRAMS_MAX {
            match self.subscriber.recv(&mut buffer) {
                Ok(length) => self.take(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // Of an earlier datagram, or a signal: the next call tells.
                Err(_) => {}
            }
        }
        true
    }

    fn take(&mut self, datagram: &[u8]) {
        let now = self.now();
        let Ok(frame) = Frame::decode(datagram) else {
            return;
        };
        let board = Arc::clone(&self.board);
        for event in &frame.events {
            for (number, probes) in self.probes() {
                if let Some(latency) = probes.end(now, &event.payload) {
                    let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
                    board.change(number, |counts| counts.latency.record(ns, 1));
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The path of the socket that probes the listener of another path.
#[must_use]
pub fn path_beside(listener: &Path) -> PathBuf {
    let mut path = OsString::from(listener);
    path.push(PATH_SUFFIX);
    path.into()
}

/// Where the socket of a stream to there is bound: to the very IP address that it probes, which no
/// other host can claim, or beside the path.
fn beside(to: &Address) -> ListenAddress {
    match to {
        Address::Ip(ip) => {
            let mut own = *ip;
            own.set_port(0);
            ListenAddress::Udp(own)
        }
        Address::Unix(path) => ListenAddress::Unix(path_beside(Path::new(OsStr::from_bytes(path)))),
    }
}

/// On loopback of whatever family this host has, also where the bus has Unix listeners alone.
fn bind_subscriber() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0).into())
        .or_else(|_| UdpSocket::bind((Ipv6Addr::LOCALHOST, 0).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long any one condition may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// An hour and no less.
    const INTERVAL: Duration = Duration::from_secs(3_600);

    /// To these listeners, from their first place on.
    fn streams(listeners: &[Listener]) -> Vec<Stream> {
        let open = |(listener, number): (&Listener, u64)| {
            let address = listener.address().unwrap();
            Stream::open(usize::try_from(number).unwrap(), &address, number + 1).unwrap()
        };
        listeners.iter().zip(0..).map(open).collect()
    }

    fn begin(streams: Vec<Stream>) -> Change {
        Change {
            interval: INTERVAL,
            begin: streams,
        }
    }

    fn udp(address: &str) -> Listener {
        Listener::bind(&ListenAddress::Udp(address.parse().unwrap()), 1 << 16).unwrap()
    }

    fn wait_for(board: &Board, is_wanted: impl Fn(&[StreamCounts]) -> bool) -> Vec<StreamCounts> {
        let start = Instant::now();
        loop {
            let streams: Vec<_> = board.streams().into_iter().flatten().collect();
            if is_wanted(&streams) {
                return streams;
            }
            assert!(start.elapsed() < PATIENCE, "{streams:?}");
            thread::yield_now();
        }
    }

    fn returned(counts: &StreamCounts) -> u64 {
        counts.latency.buckets().map(|(_, count)| count).sum()
    }

    #[test]
    fn a_path_that_nobody_serves_shows_as_loss() {
        // Both are bound, so that the kernel takes the probes, and never read: one probe is sent
        // back from here, twice, among what is none.
        let (dead, alive) = (udp("127.0.0.1:0"), udp("0.0.0.0:0"));
        let board = Arc::new(Board::default());
        let canary = Canary::start(Arc::clone(&board)).unwrap();
        let subscriber = canary.subscriber;
        let probe = Probes::new(2).begin(Duration::ZERO, "x", 1).encode_to_vec();
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        canary.change(begin(streams(&[dead, alive])));
        wait_for(&board, |streams| {
            streams.len() == 2 && streams.iter().all(|counts| counts.sent == 1)
        });
        for noise in [&b""[..], b"\xff", &[0; 5_000], &probe, &probe] {
            stranger.send_to(noise, subscriber).unwrap();
        }
        let streams = wait_for(&board, |streams| streams[0].lost > 0);
        assert_eq!(
            (streams[0].sent, streams[0].lost, returned(&streams[0])),
            (1, 1, 0)
        );
        assert_eq!(
            (streams[1].sent, streams[1].lost, returned(&streams[1])),
            (1, 0, 1)
        );
        assert_eq!(board.interval(), Some(INTERVAL));
        drop(canary);
        assert_eq!(board.interval(), None);
    }

    #[test]
    fn streams_end_and_begin_again_and_counts_go_on() {
        let board = Arc::new(Board::default());
        let canary = Canary::start(Arc::clone(&board)).unwrap();
        let listeners = [udp("127.0.0.1:0"), udp("127.0.0.1:0")];
        canary.change(begin(streams(&listeners)));
        let sent = |streams: &[StreamCounts]| streams.iter().map(|it| it.sent).collect::<Vec<_>>();
        wait_for(&board, |streams| sent(streams) == [1, 1]);
        canary.end(vec![0]);
        canary.change(begin(Vec::new()));
        wait_for(&board, |streams| sent(streams) == [1, 2]);
        let [first, _] = listeners;
        canary.change(begin(streams(&[first])));
        wait_for(&board, |streams| sent(streams) == [2, 3]);
    }

    #[test]
    fn what_is_under_way_when_its_stream_ends_is_counted() {
        let board = Arc::new(Board::default());
        let canary = Canary::start(Arc::clone(&board)).unwrap();
        let [back, never] = [udp("127.0.0.1:0"), udp("127.0.0.1:0")];
        canary.change(begin(streams(&[back, never])));
        wait_for(&board, |streams| {
            streams.len() == 2 && streams.iter().all(|counts| counts.sent == 1)
        });
        canary.end(vec![0, 1]);
        let probe = Probes::new(1).begin(Duration::ZERO, "x", 1).encode_to_vec();
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.send_to(&probe, canary.subscriber).unwrap();
        let streams = wait_for(&board, |streams| {
            returned(&streams[0]) == 1 && streams[1].lost == 1
        });
        assert!(streams.iter().all(|counts| counts.sent == 1));
        assert_eq!((streams[0].lost, returned(&streams[1])), (0, 0));
    }

    #[test]
    fn a_stream_has_an_address_of_its_own_where_its_listener_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus.sock");
        let unix = Listener::bind(&ListenAddress::Unix(path), 1 << 16).unwrap();
        let beside = directory.path().join("bus.sock.canary");
        let streams = streams(&[unix, udp("127.0.0.1:0"), udp("0.0.0.0:0")]);
        let sources: Vec<_> = streams.iter().map(|it| it.source().clone()).collect();
        assert_eq!(
            sources[0],
            Address::Unix(beside.as_os_str().as_bytes().into())
        );
        for source in &sources[1..] {
            assert!(source.to_string().starts_with("udp://127.0.0.1:"));
        }
        assert_ne!(sources[1], sources[2]);
        assert!(beside.exists());
        drop(streams);
        assert!(!beside.exists(), "removed at the end");
    }
}
