//! From the core's copies to the kernel: which socket, which address, and what became of each.
//!
//! Egress sockets are apart from ingress. Whatever waits in the kernel is charged to the buffer of
//! the socket that sent it, so that who shares one with those that take nothing is held up with
//! them. So each Unix subscriber has a socket of its own, because one that does not read holds on
//! to its sender's buffer; and other hosts share `HOST_SOCKETS` by their addresses, because what
//! is for a host that is gone waits for as long as the kernel asks where it is. Over loopback
//! nothing waits: one socket for each address family serves all that is on this host.
//!
//! That a UDP port is nobody's shows only after a copy was sent there, and counted so. As with a
//! connected socket (udp(7)) the next copy pays for it: it is dropped as refused, and the one
//! after it tries again.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket};

use crate::bus::address::Address;
use crate::bus::subscribers::Subscribers;
use crate::bus::{CopyDrop, Directory, Forwarder, FrameCopy};
use crate::ledger::Ledger;

use super::address::{canonical, to_sockaddr};
use super::listener::{open_egress, resize_egress};
use super::sys::{
    NoSegments, Outgoing, Refusal, SEND_BATCH_MAX, SegmentRing, SendRing, takes_segments,
};

/// How long to wait before a socket that could not be had is asked for again.
const RETRY: Duration = Duration::from_secs(1);

/// Sockets that other hosts of one address family share: so many that a host has its own, or
/// shares it with few, and that the largest bus is a few descriptors. A power of two.
///
/// The kernel keeps some 200 KiB for a host that does not answer (`unres_qlen_bytes` of arp(7)), a
/// send buffer as configured by default holds that of 78 such hosts, and of one where the bus may
/// not have it.
const HOST_SOCKETS: u8 = 64;

/// Copies taken from the forwarder at a time where some may leave together: 16 for each of 64
/// subscribers, more of which save little more, in about a hundred kilobytes.
const WINDOW: usize = 1_024;

/// Where a subscriber's datagrams go, as the kernel takes it.
#[derive(Debug)]
struct Peer {
    of: Address,
    address: SockAddr,
    way: Way,
    departure: Departure,
    /// Whether a copy was refused there, for which the next one is dropped.
    is_refused: bool,
}

/// How the datagrams of a batch that are for one subscriber leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Departure {
    /// One by one: within this host, where they are few and large, and where the card or the
    /// kernel has refused segments, which is remembered as long as the way is.
    Apart,
    /// As segments of one message, where there are several.
    Together,
}

/// By which socket.
#[derive(Debug)]
enum Way {
    /// By the one in this place.
    Udp(usize),
    /// One of its own.
    Unix(Socket),
    /// By none: this host lacks the address family.
    Nowhere,
}

/// Who shares a UDP socket: an address family and, but for what stays on this host, the last bits
/// of the address. Hosts of one network differ in those first.
type Lane = (Domain, Option<u8>);

fn lane(address: &Address, ip: SocketAddr) -> Lane {
    let last = match ip.ip() {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    let is_elsewhere = !address.is_local();
    let hosts = is_elsewhere.then_some(last & (HOST_SOCKETS - 1));
    (Domain::for_address(ip), hosts)
}

/// Sockets and addresses: the ways to subscribers.
#[derive(Debug)]
struct Ways {
    /// Opened as they are needed, but for those of this host, and never closed.
    udp: Vec<(Lane, Socket)>,
    /// By [`SubscriberId::index`].
    peers: Vec<Option<Peer>>,
    /// Whether some subscriber's copies leave together.
    is_any_together: bool,
    /// How many peers have refused a copy.
    refused: usize,
    /// The peers by IP address, sorted. Made when a copy was refused, and empty till then.
    by_address: Vec<(SocketAddr, usize)>,
}

impl Ways {
    /// By which socket and where to a copy goes, if it goes at all.
    #[inline]
    fn to(&self, copy: &FrameCopy) -> Option<(BorrowedFd<'_>, &Peer)> {
        if !copy.is_sendable {
            return None;
        }
        let peer = self.peers.get(copy.subscriber.index())?.as_ref()?;
        Some((self.socket(&peer.way)?.as_fd(), peer))
    }

    #[inline]
    fn socket<'a>(&'a self, way: &'a Way) -> Option<&'a Socket> {
        match way {
            Way::Udp(place) => self.udp.get(*place).map(|(_, socket)| socket),
            Way::Unix(socket) => Some(socket),
            Way::Nowhere => None,
        }
    }

    fn place(&self, lane: Lane) -> Option<usize> {
        self.udp.iter().position(|(other, _)| *other == lane)
    }

    /// The way to an IP address. Where no further socket is to be had it is that of this host.
    fn udp_way(&mut self, lane: Lane, send_buffer_bytes: usize) -> Way {
        let (domain, _) = lane;
        if self.place(lane).is_none()
            && self.place((domain, None)).is_some()
            && let Ok(socket) = open_egress(domain, send_buffer_bytes)
        {
            self.udp.push((lane, socket));
        }
        let place = self.place(lane).or_else(|| self.place((domain, None)));
        place.map_or(Way::Nowhere, Way::Udp)
    }

    /// The first copies that share a call, and how they leave: those for one subscriber that has
    /// several, or else those that share a socket, or that have no way.
    fn first_run<'a>(&self, copies: &'a [FrameCopy]) -> (Departure, &'a [FrameCopy]) {
        let call = |(index, copy): (usize, &FrameCopy)| {
            let (socket, peer) = self.to(copy)?;
            let is_beside = |index: usize| {
                let other = copies.get(index);
                other.is_some_and(|other| other.subscriber == copy.subscriber)
            };
            let has_company = peer.departure == Departure::Together
                && (is_beside(index + 1) || is_beside(index.wrapping_sub(1)));
            let company = has_company.then_some(copy.subscriber);
            // Where one was refused it is not the next one's turn yet.
            Some((socket.as_raw_fd(), company, peer.is_refused))
        };
        let mut calls = copies.iter().enumerate().take(SEND_BATCH_MAX).map(call);
        let first = calls.next();
        let length = 1 + calls.take_while(|call| Some(*call) == first).count();
        let departure = match first {
            Some(Some((_, Some(_), _))) => Departure::Together,
            _ => Departure::Apart,
        };
        (departure, copies.get(..length).unwrap_or(copies))
    }

    /// Whether a copy is to be dropped because the one before it was refused, which is forgotten
    /// by that.
    #[inline]
    fn take_refused(&mut self, copy: &FrameCopy) -> bool {
        self.refused > 0 && self.forget_refused(copy)
    }

    #[cold]
    fn forget_refused(&mut self, copy: &FrameCopy) -> bool {
        match self.peers.get_mut(copy.subscriber.index()) {
            Some(Some(peer)) if peer.is_refused && copy.is_sendable => {
                peer.is_refused = false;
                self.refused -= 1;
                true
            }
            _ => false,
        }
    }

    /// Notes where copies were refused. Of those who share an address nobody has any of them.
    #[cold]
    fn note_refused(&mut self, refusals: impl Iterator<Item = Refusal>) {
        if self.by_address.is_empty() {
            let peers = self.peers.iter().enumerate();
            let by_address = peers.filter_map(|(index, peer)| match peer.as_ref()?.of {
                Address::Ip(ip) => Some((canonical(ip), index)),
                Address::Unix(_) => None,
            });
            self.by_address = by_address.collect();
            self.by_address.sort_unstable();
        }
        for Refusal { to, .. } in refusals {
            let start = self
                .by_address
                .partition_point(|(address, _)| *address < to);
            let there = self.by_address.iter().skip(start);
            for (_, index) in there.take_while(|(address, _)| *address == to) {
                if let Some(Some(peer)) = self.peers.get_mut(*index) {
                    self.refused += usize::from(!peer.is_refused);
                    peer.is_refused = true;
                }
            }
        }
    }

    /// From now on copies for the subscriber of these leave one by one.
    #[cold]
    fn part(&mut self, copies: &[FrameCopy]) {
        let index = copies.first().map(|copy| copy.subscriber.index());
        let place = index.and_then(|index| self.peers.get_mut(index));
        if let Some(Some(peer)) = place {
            peer.departure = Departure::Apart;
        }
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
    segments: SegmentRing,
    copies: Vec<FrameCopy>,
    outcomes: Vec<io::Result<usize>>,
    refusals: Vec<Refusal>,
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
        let families = match (ipv4, ipv6) {
            (Err(error), Err(_)) => return Err(error),
            (ipv4, ipv6) => [(Domain::IPV4, ipv4), (Domain::IPV6, ipv6)],
        };
        let udp = families.into_iter().filter_map(|(domain, socket)| {
            let socket = socket.ok()?;
            Some(((domain, None), socket))
        });
        Ok(Self {
            ways: Ways {
                udp: udp.collect(),
                peers: Vec::new(),
                is_any_together: false,
                refused: 0,
                by_address: Vec::new(),
            },
            generation: 0,
            retry_at: None,
            send_buffer_bytes,
            ring: SendRing::new(),
            segments: SegmentRing::new(),
            copies: Vec::with_capacity(SEND_BATCH_MAX),
            outcomes: Vec::with_capacity(SEND_BATCH_MAX),
            refusals: Vec::new(),
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

    /// Gives all sockets another send buffer, and those to come.
    ///
    /// # Errors
    ///
    /// What the system says of the first of those whose buffer is left as it was. All others have
    /// theirs.
    pub fn resize(&mut self, send_buffer_bytes: usize) -> io::Result<()> {
        if self.send_buffer_bytes == send_buffer_bytes {
            return Ok(());
        }
        self.send_buffer_bytes = send_buffer_bytes;
        let Ways { udp, peers, .. } = &self.ways;
        let unix = peers.iter().flatten().filter_map(|peer| match &peer.way {
            Way::Unix(socket) => Some(socket),
            Way::Udp(_) | Way::Nowhere => None,
        });
        let all = udp.iter().map(|(_, socket)| socket).chain(unix);
        let results = all.map(|socket| resize_egress(socket, send_buffer_bytes));
        results.fold(Ok(()), Result::and)
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
        let is_together = |peer: &Peer| peer.departure == Departure::Together;
        self.ways.is_any_together = peers.iter().flatten().any(is_together);
        self.ways.refused = peers
            .iter()
            .flatten()
            .filter(|peer| peer.is_refused)
            .count();
        self.ways.by_address.clear();
        self.ways.peers = peers;
        result
    }

    fn peer(&mut self, address: &Address) -> io::Result<Peer> {
        let bytes = self.send_buffer_bytes;
        let way = match address {
            Address::Ip(ip) => self.ways.udp_way(lane(address, *ip), bytes),
            Address::Unix(_) => Way::Unix(open_egress(Domain::UNIX, bytes)?),
        };
        let departure = match self.ways.socket(&way) {
            Some(socket) if !address.is_local() && takes_segments(socket.as_fd()) => {
                Departure::Together
            }
            _ => Departure::Apart,
        };
        Ok(Peer {
            of: address.clone(),
            address: to_sockaddr(address)?,
            way,
            departure,
            is_refused: false,
        })
    }

    /// Has all copies over UDP leave as those to other hosts do, for tests on one host.
    #[cfg(test)]
    pub fn gather(&mut self) {
        let peers = self.ways.peers.iter_mut().flatten();
        for peer in peers.filter(|peer| !matches!(peer.way, Way::Unix(_))) {
            peer.departure = Departure::Together;
            self.ways.is_any_together = true;
        }
    }

    /// Sends all of the forwarder's copies and counts what became of each.
    pub fn flush(&mut self, forwarder: &mut Forwarder, directory: &Directory, ledger: &mut Ledger) {
        forwarder.take_drops(directory, |series, reason, events| {
            ledger.count_dropped_copy(series, events, reason);
        });
        let mut copies = std::mem::take(&mut self.copies);
        loop {
            if self.ways.is_any_together {
                forwarder.poll_copies(directory, &mut copies, WINDOW);
                copies.sort_unstable_by_key(FrameCopy::by_subscriber);
            } else {
                forwarder.poll_copies(directory, &mut copies, SEND_BATCH_MAX);
            }
            if copies.is_empty() {
                break;
            }
            let drop = |copy: &FrameCopy, reason, ledger: &mut Ledger| {
                forwarder.handle_dropped(directory, copy);
                ledger.count_dropped_copy(copy.series, copy.events, reason);
            };
            let mut rest = copies.as_slice();
            while let Some((first, others)) = rest.split_first() {
                if self.ways.take_refused(first) {
                    drop(first, CopyDrop::Refused, ledger);
                    rest = others;
                    continue;
                }
                let (departure, run) = self.ways.first_run(rest);
                let done = self.send_run(departure, run, forwarder, ledger, drop);
                rest = rest.get(done..).unwrap_or_default();
            }
        }
        forwarder.end_frames();
        self.copies = copies;
    }

    /// Sends copies that share a call, and says how many of them are done with: at least one, and
    /// all unless copies were found to be refused.
    fn send_run(
        &mut self,
        departure: Departure,
        run: &[FrameCopy],
        forwarder: &Forwarder,
        ledger: &mut Ledger,
        drop: impl Fn(&FrameCopy, CopyDrop, &mut Ledger),
    ) -> usize {
        let Some((socket, peer)) = run.first().and_then(|copy| self.ways.to(copy)) else {
            for copy in run {
                let reason = if copy.is_sendable {
                    CopyDrop::Unreachable
                } else {
                    CopyDrop::TooLarge
                };
                drop(copy, reason, ledger);
            }
            return run.len();
        };
        let (outcomes, refusals) = (&mut self.outcomes, &mut self.refusals);
        match departure {
            Departure::Apart => {
                let datagrams = run.iter().filter_map(|copy| {
                    let (_, peer) = self.ways.to(copy)?;
                    Some(Outgoing {
                        to: &peer.address,
                        head: copy.stamp(),
                        body: forwarder.body(copy),
                    })
                });
                self.ring.send(socket, datagrams, outcomes, refusals);
            }
            Departure::Together => {
                let datagrams = run.iter().map(|copy| [copy.stamp(), forwarder.body(copy)]);
                let to = &peer.address;
                let result = self
                    .segments
                    .send(socket, to, datagrams, outcomes, refusals);
                if result == Err(NoSegments) {
                    self.ways.part(run);
                }
            }
        }
        for (copy, outcome) in run.iter().zip(&self.outcomes) {
            match outcome {
                Ok(bytes) => ledger.count_sent(copy.series, copy.events, *bytes),
                Err(error) => drop(copy, reason(error), ledger),
            }
        }
        if !self.refusals.is_empty() {
            let refusals = self.refusals.drain(..);
            let believed = refusals.filter(|refusal| forwarder.has_stamped(&refusal.quote));
            self.ways.note_refused(believed);
        }
        self.outcomes.len()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lane_of(ip: IpAddr, port: u16) -> Lane {
        let ip = SocketAddr::new(ip, port);
        lane(&Address::Ip(ip), ip)
    }

    #[test]
    fn neighbouring_hosts_share_no_socket_and_none_with_this_host() {
        type Host = fn(u16) -> IpAddr;
        let families: [(Host, IpAddr); 2] = [
            (
                |number| [10, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]].into(),
                [127, 0, 0, 1].into(),
            ),
            (
                |number| [0x2001, 0xdb8, 0, 0, 0, 0, 0, number].into(),
                [0, 0, 0, 0, 0, 0, 0, 1_u16].into(),
            ),
        ];
        for (host, here) in families {
            let mut lanes = vec![lane_of(here, 7)];
            for number in 1_000..1_000 + u16::from(HOST_SOCKETS) {
                let lane = lane_of(host(number), 7);
                assert!(!lanes.contains(&lane), "{lane:?}");
                assert_eq!(lane, lane_of(host(number), 8), "on any port");
                lanes.push(lane);
            }
        }
    }

    #[test]
    fn a_socket_is_opened_once_and_for_families_of_this_host_alone() {
        let mut egress = Egress::open(4_096).unwrap();
        let ways = &mut egress.ways;
        let own = (Domain::IPV4, None);
        // Where the host lacks a family it is not asked for more of it.
        let nowhere = (Domain::UNIX, Some(1));
        assert!(matches!(ways.udp_way(nowhere, 4_096), Way::Nowhere));
        let before = ways.udp.len();
        for _ in 0..2 {
            let way = ways.udp_way((Domain::IPV4, Some(1)), 4_096);
            assert!(matches!(way, Way::Udp(place) if place == before));
        }
        assert_eq!(ways.udp.len(), before + 1, "opened once");
        assert!(matches!(ways.udp_way(own, 4_096), Way::Udp(0)));
    }
}
