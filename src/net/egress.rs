//! From the core's copies to the kernel: which socket, which address, and what became of each.
//!
//! Egress sockets are apart from ingress: one for each address family, and one for each Unix
//! subscriber, because a Unix receiver that does not read holds on to its sender's buffer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, SockAddr, Socket};

use crate::bus::address::Address;
use crate::bus::subscribers::SubscriberId;
use crate::bus::{Bus, CopyDrop, FrameCopy};
use crate::ledger::Ledger;

use super::address::to_sockaddr;
use super::listener::open_egress;
use super::sys::{BATCH, Outgoing, SendRing};

/// Where a subscriber's datagrams go, as the kernel takes it.
#[derive(Debug)]
struct Peer {
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
            send_buffer_bytes,
            ring: SendRing::new(),
            copies: Vec::with_capacity(BATCH),
            outcomes: Vec::with_capacity(BATCH),
        })
    }

    /// Learns where a subscriber's datagrams go.
    ///
    /// # Errors
    ///
    /// Where no socket can be had for it; its copies are then counted as unreachable.
    pub fn put(&mut self, id: SubscriberId, address: &Address) -> io::Result<()> {
        if self.ways.peers.len() <= id.index() {
            self.ways.peers.resize_with(id.index() + 1, || None);
        }
        let peer = self.peer(address);
        let Some(place) = self.ways.peers.get_mut(id.index()) else {
            return Ok(());
        };
        *place = None;
        peer.map(|peer| *place = Some(peer))
    }

    fn peer(&self, address: &Address) -> io::Result<Peer> {
        let way = match address {
            Address::Ip(ip) if ip.is_ipv4() => Way::Ipv4,
            Address::Ip(_) => Way::Ipv6,
            Address::Unix(_) => Way::Unix(open_egress(Domain::UNIX, self.send_buffer_bytes)?),
        };
        Ok(Peer {
            address: to_sockaddr(address)?,
            way,
        })
    }

    /// Whether there is a way to a subscriber.
    #[must_use]
    pub fn reaches(&self, id: SubscriberId) -> bool {
        matches!(self.ways.peers.get(id.index()), Some(Some(_)))
    }

    /// Forgets a subscriber.
    pub fn remove(&mut self, id: SubscriberId) {
        if let Some(peer) = self.ways.peers.get_mut(id.index()) {
            *peer = None;
        }
    }

    /// Sends all of the core's copies and counts what became of each.
    pub fn flush(&mut self, bus: &mut Bus, ledger: &mut Ledger) {
        let mut copies = std::mem::take(&mut self.copies);
        loop {
            bus.poll_copies(&mut copies, BATCH);
            if copies.is_empty() {
                break;
            }
            let mut rest = copies.as_slice();
            while !rest.is_empty() {
                let (run, after) = self.ways.split_run(rest);
                self.send_run(run, bus, ledger);
                rest = after;
            }
        }
        bus.end_frames();
        self.copies = copies;
    }

    fn send_run(&mut self, run: &[FrameCopy], bus: &mut Bus, ledger: &mut Ledger) {
        let Some((socket, _)) = run.first().and_then(|copy| self.ways.to(copy)) else {
            for copy in run {
                let is_too_large = !copy.is_sendable;
                let reason = if is_too_large {
                    CopyDrop::TooLarge
                } else {
                    CopyDrop::Unreachable
                };
                drop_copy(copy, reason, bus, ledger);
            }
            return;
        };
        let datagrams = run.iter().filter_map(|copy| {
            let (_, to) = self.ways.to(copy)?;
            Some(Outgoing {
                to,
                head: copy.stamp(),
                body: bus.body(copy),
            })
        });
        self.ring.send(socket, datagrams, &mut self.outcomes);
        for (copy, outcome) in run.iter().zip(&self.outcomes) {
            match outcome {
                Ok(()) => {
                    let bytes = copy.stamp().len() + bus.body(copy).len();
                    ledger.count_sent(copy.series, copy.events, bytes);
                }
                Err(error) => drop_copy(copy, reason(error), bus, ledger),
            }
        }
    }
}

fn drop_copy(copy: &FrameCopy, reason: CopyDrop, bus: &mut Bus, ledger: &mut Ledger) {
    bus.handle_dropped(copy);
    ledger.count_dropped_copy(copy.series, copy.events, reason);
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
