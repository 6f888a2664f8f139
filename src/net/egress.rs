//! From the core's copies to the kernel: which socket, which address, and what became of each.
//!
//! Egress sockets are apart from ingress. Whatever waits in the kernel is charged to the buffer of
//! the socket that sent it, so that who shares one with those that take nothing is held up with
//! them. So each Unix subscriber has a socket of its own, because one that does not read holds on
//! to its sender's buffer; and other hosts share `HOST_LANES` sockets by their addresses, because
//! what is for a host that is gone waits for as long as the kernel asks where it is. Over loopback
//! nothing waits: one socket for each address family serves all that is on this host. All but the
//! Unix subscribers' are opened at the start, as long as the program may have large buffers, and
//! stay.
//!
//! That a UDP port is nobody's shows only after a copy was sent there, and counted so. As with a
//! connected socket (udp(7)) the next copy pays for it: it is dropped as refused, and the one
//! after it tries again. So it is with a host that is gone, as unreachable: but of that the kernel
//! tells seconds later, of all copies together that waited till then, and one pays for them all.

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

/// Lanes that other hosts of one address family share, each with a socket of its own. A power of
/// two.
///
/// The kernel keeps some 200 KiB for a host that does not answer (`unres_qlen_bytes` of arp(7)). A
/// send buffer as configured by default holds that of 78 such hosts, so that these hold that of a
/// thousand, and where the bus may not have it each holds that of one and has room beside it. More
/// would cost descriptors, of which a data thread has 34 for these and for what stays on this
/// host, over both families; and calls, as what leaves by several sockets shares none: an event for
/// 64 neighbours takes 16, where one socket would take 1 and a socket for each 64.
const HOST_LANES: u8 = 16;

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
    /// Why a copy that was sent did not arrive, for which the next one is dropped.
    refused: Option<CopyDrop>,
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

/// Who shares a UDP socket: an address family and, but for what stays on this host, some bits of
/// the address.
type Lane = (Domain, Option<u8>);

fn lane(address: &Address, ip: SocketAddr) -> Lane {
    let hosts = (!address.is_local()).then(|| match ip.ip() {
        IpAddr::V4(v4) => fold(&v4.octets()),
        IpAddr::V6(v6) => fold(&v6.octets()),
    });
    (Domain::for_address(ip), hosts)
}

/// Neighbours in one network differ in this, and so do hosts of the same number in networks that
/// are neighbours.
fn fold(octets: &[u8]) -> u8 {
    octets.iter().fold(0, |all, octet| all ^ octet) & (HOST_LANES - 1)
}

/// The sockets of an address family: none where this host lacks it.
///
/// # Errors
///
/// Where there is no descriptor left, or no memory: not a lack of the family.
fn open_family(domain: Domain, send_buffer_bytes: usize) -> io::Result<Vec<(Lane, Socket)>> {
    let lanes = std::iter::once(None).chain((0..HOST_LANES).map(Some));
    let open = |hosts| Ok(((domain, hosts), open_egress(domain, send_buffer_bytes)?));
    let sockets: io::Result<Vec<_>> = lanes.map(open).collect();
    sockets.or_else(|error| match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Err(error),
        _ => Ok(Vec::new()),
    })
}

/// Sockets and addresses: the ways to subscribers.
#[derive(Debug)]
struct Ways {
    /// Those of each address family that this host has.
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

    /// The way to an IP address.
    fn udp_way(&self, lane: Lane) -> Way {
        let place = self.udp.iter().position(|(other, _)| *other == lane);
        place.map_or(Way::Nowhere, Way::Udp)
    }

    /// What brings those copies together, when they are sorted by it, which may share a call, and
    /// keeps each subscriber's in their order.
    fn by_call(&self, copy: &FrameCopy) -> (usize, (usize, usize)) {
        let peer = self.peers.get(copy.subscriber.index());
        let socket = match peer.and_then(Option::as_ref).map(|peer| &peer.way) {
            Some(Way::Udp(place)) => *place,
            _ => usize::MAX,
        };
        (socket, copy.by_subscriber())
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
            Some((socket.as_raw_fd(), company, peer.refused))
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

    /// Why a copy is to be dropped, if the one before it was refused, which is forgotten by that.
    #[inline]
    fn take_refused(&mut self, copy: &FrameCopy) -> Option<CopyDrop> {
        if self.refused == 0 {
            return None;
        }
        self.forget_refused(copy)
    }

    #[cold]
    fn forget_refused(&mut self, copy: &FrameCopy) -> Option<CopyDrop> {
        let place = self.peers.get_mut(copy.subscriber.index());
        let peer = place?.as_mut().filter(|_| copy.is_sendable)?;
        let reason = peer.refused.take()?;
        self.refused -= 1;
        Some(reason)
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
        for Refusal { to, number, .. } in refusals {
            let reason = reason(&io::Error::from_raw_os_error(number));
            let start = self
                .by_address
                .partition_point(|(address, _)| *address < to);
            let there = self.by_address.iter().skip(start);
            for (_, index) in there.take_while(|(address, _)| *address == to) {
                if let Some(Some(peer)) = self.peers.get_mut(*index) {
                    self.refused += usize::from(peer.refused.is_none());
                    peer.refused = Some(reason);
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
    /// Opens all UDP sockets of each address family that this host has.
    ///
    /// # Errors
    ///
    /// Where it has neither, or no descriptor left.
    pub fn open(send_buffer_bytes: usize) -> io::Result<Self> {
        let mut udp = open_family(Domain::IPV4, send_buffer_bytes)?;
        udp.extend(open_family(Domain::IPV6, send_buffer_bytes)?);
        if udp.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        Ok(Self {
            ways: Ways {
                udp,
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
            .filter(|peer| peer.refused.is_some())
            .count();
        self.ways.by_address.clear();
        self.ways.peers = peers;
        result
    }

    fn peer(&mut self, address: &Address) -> io::Result<Peer> {
        let way = match address {
            Address::Ip(ip) => self.ways.udp_way(lane(address, *ip)),
            Address::Unix(_) => Way::Unix(open_egress(Domain::UNIX, self.send_buffer_bytes)?),
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
            refused: None,
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
                copies.sort_unstable_by_key(|copy| self.ways.by_call(copy));
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
                if let Some(reason) = self.ways.take_refused(first) {
                    drop(first, reason, ledger);
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
    use std::collections::HashSet;

    use hailmary_proto::v1::{Event, Frame};
    use prost::Message;

    use super::*;
    use crate::bus::access::{Access, Effect, Rule, Rules};
    use crate::bus::address::Source;
    use crate::bus::leases::LeaseLimits;
    use crate::bus::subscribers::Terms;
    use crate::bus::tally::EventTally;
    use crate::bus::{self, Arrival, Settings, StaticSubscriber};

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
            for number in 1_000..1_000 + u16::from(HOST_LANES) {
                let lane = lane_of(host(number), 7);
                assert!(!lanes.contains(&lane), "{lane:?}");
                assert_eq!(lane, lane_of(host(number), 8), "on any port");
                lanes.push(lane);
            }
        }
    }

    #[test]
    fn hosts_of_one_number_in_neighbouring_networks_share_no_socket() {
        let of = |network| lane_of([10, network, 0, 10].into(), 7).1;
        let lanes: HashSet<_> = (0..HOST_LANES).map(of).collect();
        assert_eq!(lanes.len(), usize::from(HOST_LANES));
    }

    #[test]
    fn every_host_has_a_way_from_the_start_and_by_families_of_this_host_alone() {
        let egress = Egress::open(4_096).unwrap();
        let own = (Domain::IPV4, None);
        assert!(matches!(egress.ways.udp_way(own), Way::Udp(0)));
        for hosts in 0..HOST_LANES {
            let lane = (Domain::IPV4, Some(hosts));
            let way = egress.ways.udp_way(lane);
            assert!(matches!(way, Way::Udp(place) if place == 1 + usize::from(hosts)));
        }
        let nowhere = (Domain::UNIX, Some(1));
        assert!(matches!(egress.ways.udp_way(nowhere), Way::Nowhere));
    }

    /// Static subscribers, each of one topic.
    fn settings(addresses: &[&str]) -> Settings {
        let subscriber = |(number, address): (usize, &&str)| StaticSubscriber {
            name: format!("s{number}"),
            address: Address::Ip(address.parse().unwrap()),
            topics: vec!["a".to_owned()],
            frame_bytes_max: None,
            terms: Terms::default(),
        };
        Settings {
            access: Access {
                publish: Rules(vec![Rule {
                    from: vec!["127.0.0.1/32".parse().unwrap()],
                    topics: vec![">".to_owned()],
                    effect: Effect::Allow,
                }]),
                subscribe: Rules(Vec::new()),
            },
            own_sources: Vec::new(),
            leases: LeaseLimits {
                leases_max: 1,
                leases_per_origin_max: 1,
                patterns_max: 1,
                group_members_max: 1,
                lease_ms: 1_000,
                lease_ms_max: 1_000,
            },
            leased_series_max: 1,
            subscribers: addresses.iter().enumerate().map(subscriber).collect(),
            topic_policies: Vec::new(),
        }
    }

    #[test]
    fn copies_for_hosts_that_share_a_socket_share_a_call() {
        // By turns of two sockets, and one of this host.
        let addresses = [
            "10.0.0.1:7",
            "10.0.0.2:7",
            "127.0.0.1:7",
            "10.0.0.17:7",
            "10.0.0.18:7",
            "10.0.0.33:7",
        ];
        let settings = settings(&addresses);
        let mut parts = bus::open(&settings, 1, Duration::ZERO, Box::new(|| [7; 16]));
        let (forwarder, publishers) = &mut parts.workers[0];
        let mut egress = Egress::open(4_096).unwrap();
        egress.follow(&parts.directory, Duration::ZERO).unwrap();
        forwarder.begin_turn(&parts.directory);
        let frame = Frame {
            events: vec![Event {
                topic: "a".to_owned(),
                ..Event::default()
            }],
            ..Frame::default()
        };
        let source = "127.0.0.1:9".parse().unwrap();
        let arrival = Arrival {
            source: Source::Ip(source),
            listener: 0,
            now: Duration::ZERO,
            unix_nano: 0,
        };
        let datagram = frame.encode_to_vec();
        let tally = &mut EventTally::default();
        let taken =
            forwarder.handle_datagram(&parts.directory, publishers, arrival, &datagram, tally);
        taken.unwrap();
        let mut copies = Vec::new();
        forwarder.poll_copies(&parts.directory, &mut copies, WINDOW);
        copies.sort_unstable_by_key(|copy| egress.ways.by_call(copy));
        let mut rest = copies.as_slice();
        let mut calls = Vec::new();
        while !rest.is_empty() {
            let (_, run) = egress.ways.first_run(rest);
            calls.push(
                run.iter()
                    .map(|copy| copy.subscriber.index())
                    .collect::<Vec<_>>(),
            );
            rest = &rest[run.len()..];
        }
        calls.sort();
        assert_eq!(calls, [vec![0, 3, 5], vec![1, 4], vec![2]]);
    }
}
