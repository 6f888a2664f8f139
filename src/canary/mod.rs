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
//! nothing.
//!
//! It is the one publisher of reserved topics, and is known by the address of its sockets: a port
//! that it holds, or a path beside the listener's, where whoever may not create files cannot take
//! its place. Whatever else comes to its subscriber's address is no probe of its own and is not
//! counted.

mod probes;

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
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
use crate::net::listener::{ListenAddress, Listener};

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

/// The poll's token for the end.
const STOP: Token = Token(1);

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
#[derive(Debug)]
pub struct Board {
    interval: Duration,
    streams: Mutex<Vec<StreamCounts>>,
}

impl Board {
    /// The time from one probe of a stream to the next.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// What became of each stream's probes, in the order of the listeners.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamCounts> {
        self.lock().clone()
    }

    fn change(&self, stream: usize, change: impl FnOnce(&mut StreamCounts)) {
        if let Some(counts) = self.lock().get_mut(stream) {
            change(counts);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<StreamCounts>> {
        // Integers are whole whatever happened to the thread that wrote them.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Probes through one listener.
#[derive(Debug)]
struct Stream {
    socket: Listener,
    source: Address,
    to: Address,
    topic: String,
    probes: Probes,
}

impl Stream {
    fn open(number: usize, listener: &Listener, id: u64) -> anyhow::Result<Self> {
        let to = reachable(listener.address()?);
        let socket = Listener::bind(&beside(&to), UNUSED_BUFFER_BYTES)?;
        Ok(Self {
            source: socket.address()?,
            socket,
            to,
            topic: format!("{NAME}.{number}"),
            probes: Probes::new(id),
        })
    }

    /// Sends the next probe.
    fn send(&mut self, now: Duration) {
        let probe = self.probes.begin(now, &self.topic, unix_nano());
        // What the kernel refuses does not come back: it is counted as lost like the others.
        let _ = self.socket.answer(&self.to, &probe.encode_to_vec());
    }
}

/// A canary with its sockets, not yet at work.
#[derive(Debug)]
pub struct Canary {
    streams: Vec<Stream>,
    subscriber: UdpSocket,
    subscriber_address: SocketAddr,
    poll: Poll,
    waker: Arc<Waker>,
    board: Arc<Board>,
    started: Instant,
}

impl Canary {
    /// Opens its sockets: one to each listener, and one for the way back. `id` gives random
    /// numbers, never 0.
    ///
    /// # Errors
    ///
    /// What the system refuses.
    pub fn open(
        listeners: &[Listener],
        interval: Duration,
        mut id: impl FnMut() -> anyhow::Result<u64>,
    ) -> anyhow::Result<Self> {
        let streams = listeners.iter().enumerate();
        let streams = streams.map(|(number, listener)| Stream::open(number, listener, id()?));
        let streams = streams.collect::<anyhow::Result<Vec<_>>>()?;
        let mut subscriber = bind_subscriber()?;
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut subscriber, RETURNED, Interest::READABLE)?;
        Ok(Self {
            board: Arc::new(Board {
                interval,
                streams: Mutex::new(vec![StreamCounts::default(); streams.len()]),
            }),
            subscriber_address: subscriber.local_addr()?,
            waker: Arc::new(Waker::new(poll.registry(), STOP)?),
            started: Instant::now(),
            streams,
            subscriber,
            poll,
        })
    }

    /// Where its probes come from.
    #[must_use]
    pub fn sources(&self) -> Vec<Address> {
        let sources = self.streams.iter().map(|stream| stream.source.clone());
        sources.collect()
    }

    /// The subscriber that its probes go to.
    #[must_use]
    pub fn subscriber(&self) -> StaticSubscriber {
        StaticSubscriber {
            name: NAME.to_owned(),
            address: Address::Ip(self.subscriber_address),
            topics: vec![format!("{NAME}.*")],
            frame_bytes_max: Some(NETWORK_FRAME_BYTES),
            terms: Terms::default(),
        }
    }

    /// What it shows.
    #[must_use]
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Sends probes from a thread of its own till it is dropped.
    ///
    /// # Errors
    ///
    /// Where the system has no thread to give.
    pub fn start(self) -> anyhow::Result<Running> {
        let waker = Arc::clone(&self.waker);
        info!(interval = ?self.board.interval, "canary watches");
        let run = move || {
            if let Err(error) = self.run() {
                warn!(%error, "the canary has ended");
            }
        };
        let thread = thread::Builder::new().name("canary".to_owned()).spawn(run);
        let thread = thread.context("cannot start the canary")?;
        Ok(Running {
            waker,
            thread: Some(thread),
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(2);
        let mut next_probe = Duration::ZERO;
        let mut has_more = false;
        loop {
            let now = self.now();
            if next_probe <= now {
                self.send(now);
                next_probe = now.saturating_add(self.board.interval);
            }
            let wait = match has_more {
                true => Duration::ZERO,
                false => self.next_end(next_probe).saturating_sub(self.now()),
            };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if events.iter().any(|event| event.token() == STOP) {
                return Ok(());
            }
            // What was late by now is given up after what had come is taken: so a canary that was
            // held up itself does not call that a loss.
            let now = self.now();
            has_more = self.receive();
            self.give_up(now);
        }
    }

    fn send(&mut self, now: Duration) {
        for (number, stream) in self.streams.iter_mut().enumerate() {
            self.board.change(number, |counts| counts.sent += 1);
            stream.send(now);
        }
    }

    fn give_up(&mut self, now: Duration) {
        for (number, stream) in self.streams.iter_mut().enumerate() {
            match stream.probes.give_up(now) {
                0 => {}
                lost => self.board.change(number, |counts| counts.lost += lost),
            }
        }
    }

    fn next_end(&self, next_probe: Duration) -> Duration {
        let ends = self.streams.iter().filter_map(|it| it.probes.next_end());
        ends.fold(next_probe, Duration::min)
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
        for event in &frame.events {
            for (number, stream) in self.streams.iter_mut().enumerate() {
                if let Some(latency) = stream.probes.end(now, &event.payload) {
                    let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
                    self.board
                        .change(number, |counts| counts.latency.record(ns, 1));
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A canary at work. It stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It has failed only if the thread panicked, which was told then.
            let _ = thread.join();
        }
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

/// A listener's address as one that can be sent to.
fn reachable(listener: Address) -> Address {
    match listener {
        Address::Ip(ip) if ip.ip().is_unspecified() => {
            let loopback = match ip {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            Address::Ip(SocketAddr::new(loopback, ip.port()))
        }
        other => other,
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

    fn canary(listeners: &[Listener]) -> Canary {
        let mut ids = 1..;
        let id = || ids.next().context("there are enough");
        Canary::open(listeners, Duration::from_secs(3_600), id).unwrap()
    }

    fn udp(address: &str) -> Listener {
        Listener::bind(&ListenAddress::Udp(address.parse().unwrap()), 1 << 16).unwrap()
    }

    fn wait_for(board: &Board, is_wanted: impl Fn(&[StreamCounts]) -> bool) -> Vec<StreamCounts> {
        let start = Instant::now();
        loop {
            let streams = board.streams();
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
        let canary = canary(&[dead, alive]);
        let (board, subscriber) = (canary.board(), canary.subscriber_address);
        let probe = Probes::new(2).begin(Duration::ZERO, "x", 1).encode_to_vec();
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let running = canary.start().unwrap();
        wait_for(&board, |streams| {
            streams.iter().all(|counts| counts.sent == 1)
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
        drop(running);
    }

    #[test]
    fn a_stream_has_an_address_of_its_own_where_its_listener_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus.sock");
        let unix = Listener::bind(&ListenAddress::Unix(path), 1 << 16).unwrap();
        let beside = directory.path().join("bus.sock.canary");
        let canary = canary(&[unix, udp("127.0.0.1:0"), udp("0.0.0.0:0")]);
        let sources = canary.sources();
        assert_eq!(
            sources[0],
            Address::Unix(beside.as_os_str().as_bytes().into())
        );
        for source in &sources[1..] {
            assert!(source.to_string().starts_with("udp://127.0.0.1:"));
        }
        assert_ne!(sources[1], sources[2]);
        assert!(beside.exists());
        drop(canary);
        assert!(!beside.exists(), "removed at the end");
    }
}
