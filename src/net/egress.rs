//! From the core's copies to the kernel: which socket, which address, and what became of each.
//!
//! Egress sockets are apart from ingress: one for each address family, and one for each Unix
//! subscriber, because a Unix receiver that does not read holds on to its sender's buffer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket};

use crate::bus::address::Address;
use crate::bus::subscribers::Subscribers;
use crate::bus::{CopyDrop, Directory, Forwarder, FrameCopy};
use crate::ledger::Ledger;

use super::address::to_sockaddr;
use super::listener::open_egress;
use super::sys::{Outgoing, SEND_BATCH_MAX, SendRing};

/// How long to wait before a socket that could not be had is asked for again.
const RETRY: Duration = Duration::from_secs(1);

/// Where a subscriber's datagrams go, as the kernel takes it.
#[derive(Debug)]
struct Peer {
    of: Address,
    address: SockAddr,
    way: Way,
}

/// By which socket.
#[derive(Debug)]
enum Way {
    Ipv4,
    Ipv6,
    /// One of its own.
    Unix(Socket),
}

/// Sockets and addresses: the ways to subscribers.
#[derive(Debug)]
struct Ways {
    ipv4: Option<Socket>,
    ipv6: Option<Socket>,
    /// By [`SubscriberId::index`].
    peers: Vec<Option<Peer>>,
}

impl Ways {
    /// By which socket and where to a copy goes, if it goes at all.
    #[inline]
    fn to(&self, copy: &FrameCopy) -> Option<(BorrowedFd<'_>, &SockAddr)> {
        if !copy.is_sendable {
            return None;
        }
        let peer = self.peers.get(copy.subscriber.index())?.as_ref()?;
        let socket = match &peer.way {
            Way::Ipv4 => self.ipv4.as_ref()?,
            Way::Ipv6 => self.ipv6.as_ref()?,
            Way::Unix(socket) => socket,
        };
        Some((socket.as_fd(), &peer.address))
    }

    /// Splits off the first copies that share a socket, or that have none.
    fn split_run<'a>(&self, copies: &'a [FrameCopy]) -> (&'a [FrameCopy], &'a [FrameCopy]) {
        let socket = |copy: &FrameCopy| self.to(copy).map(|(socket, _)| socket.as_raw_fd());
        let first = copies.first().map(socket);
        let length = copies
            .iter()
            .take_while(|copy| Some(socket(copy)) == first)
            .count();
        copies.split_at(length)
    }
}

/// What copies leave by.
#[derive(Debug)]
pub struct Egress {
    ways: Ways,
    /// The directory's generation that the ways were made for.
    generation: u64,
    /// When to try again to reach those for whom no socket was to be had.
    retry_at: Option<Duration>,
    send_buffer_bytes: usize,
    ring: SendRing,
    copies: Vec<FrameCopy>,
    outcomes: Vec<io::Result<()>>,
}

impl Egress {
    /// Opens a socket for each address family that this host has.
    ///
    /// # Errors
    ///
    /// Where it has neither.
    pub fn open(send_buffer_bytes: usize) -> io::Result<Self> {
        let ipv4 = open_egress(Domain::IPV4, send_buffer_bytes);
        let ipv6 = open_egress(Domain::IPV6, send_buffer_bytes);
        let (ipv4, ipv6) = match (ipv4, ipv6) {
            (Err(error), Err(_)) => return Err(error),
            (ipv4, ipv6) => (ipv4.ok(), ipv6.ok()),
        };
        Ok(Self {
            ways: Ways {
                ipv4,
                ipv6,
                peers: Vec::new(),
            },
            generation: 0,
            retry_at: None,
            send_buffer_bytes,
            ring: SendRing::new(),
            copies: Vec::with_capacity(SEND_BATCH_MAX),
            outcomes: Vec::with_capacity(SEND_BATCH_MAX),
        })
    }

    /// Makes ways to all subscribers of the directory, and to nobody else.
    ///
    /// # Errors
    ///
    /// Which subscriber cannot be reached, the last one of several, and why. Its copies are
    /// counted as unreachable till the next try, a second later.
    #[inline]
    pub fn follow(
        &mut self,
        directory: &Directory,
        now: Duration,
    ) -> Result<(), (Address, io::Error)> {
        let is_due = self.retry_at.is_some_and(|at| at <= now);
        if self.generation == directory.generation() && !is_due {
            return Ok(());
        }
        self.generation = directory.generation();
        let result = self.open_and_close(directory.subscribers());
        self.retry_at = result.is_err().then(|| now + RETRY);
        result
    }

    /// When to [`follow`](Self::follow) again, though the directory has not changed.
    #[must_use]
    pub fn retry_at(&self) -> Option<Duration> {
        self.retry_at
    }

    #[cold]
    fn open_and_close(&mut self, subscribers: &Subscribers) -> Result<(), (Address, io::Error)> {
        let mut result = Ok(());
        let mut peers = std::mem::take(&mut self.ways.peers);
        for (index, peer) in peers.iter_mut().enumerate() {
            let address = subscribers.at(index).map(|subscriber| &subscriber.address);
            peer.take_if(|peer| Some(&peer.of) != address);
        }
        for (id, subscriber) in subscribers.iter() {
            if peers.len() <= id.index() {
                peers.resize_with(id.index() + 1, || None);
            }
            if let Some(place @ None) = peers.get_mut(id.index()) {
                match self.peer(&subscriber.address) {
                    Ok(peer) => *place = Some(peer),
                    Err(error) => result = Err((subscriber.address.clone(), error)),
                }
            }
        }
        self.ways.peers = peers;
        result
    }

    fn peer(&self, address: &Address) -> io::Result<Peer> {
        let way = match address {
            Address::Ip(ip) if ip.is_ipv4() => Way::Ipv4,
            Address::Ip(_) => Way::Ipv6,
            Address::Unix(_) => Way::Unix(open_egress(Domain::UNIX, self.send_buffer_bytes)?),
        };
        Ok(Peer {
            of: address.clone(),
            address: to_sockaddr(address)?,
            way,
        })
    }

    /// Sends all of the forwarder's copies and counts what became of each.
    pub fn flush(&mut self, forwarder: &mut Forwarder, directory: &Directory, ledger: &mut Ledger) {
        let mut copies = std::mem::take(&mut self.copies);
        loop {
            forwarder.poll_copies(directory, &mut copies, SEND_BATCH_MAX);
            if copies.is_empty() {
                break;
            }
            let drop = |copy: &FrameCopy, reason, ledger: &mut Ledger| {
                forwarder.handle_dropped(directory, copy);
                ledger.count_dropped_copy(copy.series, copy.events, reason);
            };
            let mut rest = copies.as_slice();
            while !rest.is_empty() {
                let (run, after) = self.ways.split_run(rest);
                self.send_run(run, forwarder, ledger, drop);
                rest = after;
            }
        }
        forwarder.end_frames();
        self.copies = copies;
    }

    fn send_run(
        &mut self,
        run: &[FrameCopy],
        forwarder: &Forwarder,
        ledger: &mut Ledger,
        drop: impl Fn(&FrameCopy, CopyDrop, &mut Ledger),
    ) {
        let Some((socket, _)) = run.first().and_then(|copy| self.ways.to(copy)) else {
            for copy in run {
                let reason = if copy.is_sendable {
                    CopyDrop::Unreachable
                } else {
                    CopyDrop::TooLarge
                };
                drop(copy, reason, ledger);
            }
            return;
        };
        let datagrams = run.iter().filter_map(|copy| {
            let (_, to) = self.ways.to(copy)?;
            Some(Outgoing {
                to,
                head: copy.stamp(),
                body: forwarder.body(copy),
            })
        });
        self.ring.send(socket, datagrams, &mut self.outcomes);
        for (copy, outcome) in run.iter().zip(&self.outcomes) {
            match outcome {
                Ok(()) => {
                    let bytes = copy.stamp().len() + forwarder.body(copy).len();
                    ledger.count_sent(copy.series, copy.events, bytes);
                }
                Err(error) => drop(copy, reason(error), ledger),
            }
        }
    }
}

/// The reason that an error of a send is counted under.
fn reason(error: &io::Error) -> CopyDrop {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => CopyDrop::WouldBlock,
        Some(libc::ENOBUFS | libc::ENOMEM) => CopyDrop::NoBuffer,
        Some(libc::EMSGSIZE) => CopyDrop::TooLarge,
        Some(libc::ECONNREFUSED | libc::ENOENT) => CopyDrop::Refused,
        _ => CopyDrop::Unreachable,
    }
}
