//! Both implementations, held to the same: what the kernel does to datagrams, seen from here.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use hailmary_proto::v1::Frame;
use prost::Message;
use socket2::{Domain, SockRef, Socket, Type};

use super::*;
use crate::bus::address::Address;

/// How long any one condition may take, for machines under load.
const PATIENCE: Duration = Duration::from_secs(60);

const IPV4: &str = "127.0.0.1:0";
const IPV6: &str = "[::1]:0";

/// The loopback addresses that this machine has.
fn loopbacks() -> Vec<&'static str> {
    let mut all = vec![IPV4, IPV6];
    all.retain(|address| UdpSocket::bind(address).is_ok());
    all
}

fn udp(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A socket as the bus sends by: it hears of dead ports and full queues.
fn egress(address: SocketAddr) -> Socket {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
    enable_error_queue(socket.as_fd(), domain).unwrap();
    socket
}

fn copied(ring: &ReceiveRing) -> Vec<(Vec<u8>, Address)> {
    let own = |datagram: Received<'_>| (datagram.bytes.to_vec(), datagram.source.to_address());
    ring.datagrams().map(own).collect()
}

/// Takes as many datagrams as there must be.
fn receive(
    ring: &mut ReceiveRing,
    socket: BorrowedFd<'_>,
    count: usize,
) -> Vec<(Vec<u8>, Address)> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        let taken = ring
            .receive(socket, RECEIVE_BATCH_MAX, Ask::Source)
            .unwrap();
        let datagrams = copied(ring);
        assert_eq!(datagrams.len(), taken);
        all.extend(datagrams);
        assert!(start.elapsed() < PATIENCE, "{} of {count} came", all.len());
    }
    assert_eq!(all.len(), count);
    all
}

fn send(
    ring: &mut SendRing,
    socket: BorrowedFd<'_>,
    datagrams: &[(&SockAddr, &[u8])],
) -> Vec<io::Result<usize>> {
    send_and_hear(ring, socket, datagrams).0
}

/// Sends them, the rest again wherever it stops because some were refused.
fn send_and_hear(
    ring: &mut SendRing,
    socket: BorrowedFd<'_>,
    datagrams: &[(&SockAddr, &[u8])],
) -> (Vec<io::Result<usize>>, Vec<Refusal>) {
    let outgoing = datagrams.iter().map(|(to, bytes)| {
        let (head, body) = bytes.split_at(bytes.len().min(1));
        Outgoing { to, head, body }
    });
    let (mut all, mut heard) = (Vec::new(), Vec::new());
    loop {
        let (mut outcomes, mut refusals) = (vec![Ok(0)], Vec::new());
        let rest = outgoing.clone().skip(all.len());
        ring.send(socket, rest, &mut outcomes, &mut refusals);
        assert_eq!(outcomes.is_empty(), datagrams.is_empty());
        all.append(&mut outcomes);
        if refusals.is_empty() || all.len() >= datagrams.len() {
            heard.append(&mut refusals);
            return (all, heard);
        }
        heard.append(&mut refusals);
    }
}

/// What became of one: the bytes sent, or the error's number.
type Verdict = Result<usize, Option<i32>>;

fn verdicts(outcomes: &[io::Result<usize>]) -> Vec<Verdict> {
    let number = |error: &io::Error| error.raw_os_error();
    outcomes
        .iter()
        .map(|outcome| outcome.as_ref().copied().map_err(number))
        .collect()
}

#[test]
fn a_udp_datagram_tells_its_true_source() {
    let mut ring = ReceiveRing::new();
    for address in loopbacks() {
        let (receiver, to) = udp(address);
        let senders = [udp(address), udp(address)];
        for turn in [0_u8, 1, 1, 0] {
            let (sender, _) = &senders[usize::from(turn)];
            sender.send_to(&[turn], to).unwrap();
        }
        let expected =
            [0, 1, 1, 0].map(|turn: u8| (vec![turn], Address::Ip(senders[usize::from(turn)].1)));
        assert_eq!(receive(&mut ring, receiver.as_fd(), 4), expected);
    }
}

#[test]
fn ipv4_through_an_ipv6_socket_is_ipv4() {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    if socket.set_only_v6(false).is_err() || !loopbacks().contains(&IPV6) {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let any: SocketAddr = "[::]:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let (sender, from) = udp(IPV4);
    sender.send_to(b"x", ("127.0.0.1", port)).unwrap();
    let received = receive(&mut ReceiveRing::new(), socket.as_fd(), 1);
    assert_eq!(received, [(b"x".to_vec(), Address::Ip(from))]);
}

#[test]
fn a_unix_datagram_tells_its_true_source_whatever_was_received_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let to = path("receiver");
    let receiver = UnixDatagram::bind(&to).unwrap();
    let long = path("sender-with-a-long-name");
    let named = UnixDatagram::bind(&long).unwrap();
    let short = path("s");
    let also_named = UnixDatagram::bind(&short).unwrap();
    let unnamed = UnixDatagram::unbound().unwrap();
    let (ip_receiver, ip) = udp(IPV4);

    // One ring serves all listeners, so each place has held another kind of source before.
    let mut ring = ReceiveRing::new();
    let unix = |bytes: &[u8]| Address::Unix(bytes.into());
    let bytes = |path: &std::path::Path| path.to_str().unwrap().as_bytes().to_vec();
    for (sender, source) in [
        (&named, bytes(&long)),
        (&unnamed, Vec::new()),
        (&also_named, bytes(&short)),
        (&named, bytes(&long)),
    ] {
        sender.send_to(b"unix", &to).unwrap();
        let received = receive(&mut ring, receiver.as_fd(), 1);
        assert_eq!(received, [(b"unix".to_vec(), unix(&source))]);
        ip_receiver.send_to(b"udp", ip).unwrap();
        let received = receive(&mut ring, ip_receiver.as_fd(), 1);
        assert_eq!(received, [(b"udp".to_vec(), Address::Ip(ip))]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_abstract_name_begins_with_a_0_byte() {
    use std::os::linux::net::SocketAddrExt;
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("receiver");
    let receiver = UnixDatagram::bind(&to).unwrap();
    // It may end with one, too, or be one.
    for suffix in ["", "\0", "\0x\0\0"] {
        let name = format!("{}{suffix}", directory.path().display());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let sender = UnixDatagram::bind_addr(&address).unwrap();
        sender.send_to(b"x", &to).unwrap();
        let expected = Address::Unix(format!("\0{name}").into_bytes().into());
        let received = receive(&mut ReceiveRing::new(), receiver.as_fd(), 1);
        assert_eq!(received, [(b"x".to_vec(), expected)]);
    }
}

#[test]
fn a_datagram_longer_than_its_place_is_marked_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("receiver");
    let receiver = UnixDatagram::bind(&to).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    let mut ring = ReceiveRing::new();
    let longest = DATAGRAM_BUFFER_BYTES;
    // Twice, so that each place has held something else before.
    for lengths in [[1, longest + 1, longest], [longest + 9, longest, 1]] {
        for length in lengths {
            sender.send_to(&vec![7; length], &to).unwrap();
        }
        assert_eq!(
            ring.receive(receiver.as_fd(), RECEIVE_BATCH_MAX, Ask::Source)
                .unwrap(),
            lengths.len()
        );
        let received: Vec<_> = ring
            .datagrams()
            .map(|datagram| (datagram.bytes.len(), datagram.is_truncated))
            .collect();
        assert_eq!(
            received,
            lengths.map(|length| (length.min(longest), length > longest))
        );
    }
}

#[test]
fn a_batch_is_bounded_and_an_empty_datagram_is_one() {
    const MORE: usize = 9;
    const COUNT_MAX: usize = 16;
    let (receiver, to) = udp(IPV4);
    let mut ring = ReceiveRing::new();
    assert_eq!(
        ring.receive(receiver.as_fd(), RECEIVE_BATCH_MAX, Ask::Source)
            .unwrap(),
        0,
        "none there"
    );
    let sockaddr = SockAddr::from(to);
    let datagrams = vec![(&sockaddr, &b""[..]); SEND_BATCH_MAX + MORE];
    let (sender, _) = udp(IPV4);
    let mut sending = SendRing::new();
    let outcomes = send(&mut sending, sender.as_fd(), &datagrams);
    assert_eq!(verdicts(&outcomes), [Ok(0); SEND_BATCH_MAX]);
    let outcomes = send(&mut sending, sender.as_fd(), &datagrams[..MORE]);
    assert_eq!(verdicts(&outcomes), [Ok(0); MORE]);
    assert_eq!(send(&mut sending, sender.as_fd(), &[]).len(), 0);

    let mut taken = Vec::new();
    while taken.iter().sum::<usize>() < SEND_BATCH_MAX + MORE {
        taken.push(
            ring.receive(receiver.as_fd(), COUNT_MAX, Ask::Source)
                .unwrap(),
        );
        assert!(ring.datagrams().all(|datagram| datagram.bytes.is_empty()));
    }
    assert!(taken.iter().all(|taken| *taken <= COUNT_MAX), "{taken:?}");
    assert_eq!(
        ring.receive(receiver.as_fd(), RECEIVE_BATCH_MAX, Ask::Source)
            .unwrap(),
        0
    );
    assert_eq!(ring.datagrams().count(), 0, "of the last call alone");
}

#[test]
fn a_datagram_that_is_too_large_is_the_only_one_lost() {
    for address in loopbacks() {
        let (receiver, to) = udp(address);
        let to = SockAddr::from(to);
        let socket = egress(to.as_socket().unwrap());
        // The first is over what UDP takes, the second over what its length field could say.
        let (large, larger) = (vec![0; 65_536 - 8], vec![0; 70_000]);
        let datagrams =
            [&b"a"[..], &large, b"bc", &larger, &large, b"def"].map(|bytes| (&to, bytes));
        let mut ring = SendRing::new();
        for _ in 0..3 {
            let outcomes = send(&mut ring, socket.as_fd(), &datagrams);
            let too_large = Err(Some(libc::EMSGSIZE));
            assert_eq!(
                verdicts(&outcomes),
                [Ok(1), too_large, Ok(2), too_large, too_large, Ok(3)]
            );
            let received = receive(&mut ReceiveRing::new(), receiver.as_fd(), 3);
            let bytes: Vec<_> = received.into_iter().map(|(bytes, _)| bytes).collect();
            assert_eq!(bytes, [&b"a"[..], b"bc", b"def"]);
        }
    }
}

#[test]
fn a_dead_port_fails_no_send_to_a_live_one() {
    const ROUNDS: usize = 200;
    for address in loopbacks() {
        let live = [udp(address), udp(address), udp(address)];
        // Nobody else is given a port that is held, though nobody listens at its end.
        let holders = [connected(address), connected(address)];
        let dead = holders
            .each_ref()
            .map(|holder| SockAddr::from(holder.local_addr().unwrap()));
        let to = live.each_ref().map(|(_, to)| SockAddr::from(*to));
        let socket = egress(live[0].1);
        let mut sending = SendRing::new();
        let mut receiving = ReceiveRing::new();
        for round in 0..ROUNDS {
            // The dead ones take turns, and are the last of a batch, too.
            let a_dead_one = &dead[round % 2];
            let order = [
                &to[0], a_dead_one, &to[1], &dead[0], &dead[1], &to[2], a_dead_one,
            ];
            let payload = round.to_be_bytes();
            let datagrams = order.map(|to| (to, &payload[..]));
            let outcomes = send(&mut sending, socket.as_fd(), &datagrams);
            assert_eq!(outcomes.len(), order.len());
            for index in [0, 2, 5] {
                assert!(
                    outcomes[index].is_ok(),
                    "round {round}, {index}: {outcomes:?}"
                );
            }
            for (receiver, _) in &live {
                let received = receive(&mut receiving, receiver.as_fd(), 1);
                assert_eq!(received[0].0, payload);
            }
        }
    }
}

/// Whether dead ports are told of, and nobody else: `order` is what is sent, again and again.
#[cfg(target_os = "linux")]
fn assert_heard(order: &[&SockAddr], dead: &[&SockAddr]) {
    let socket = egress(order[0].as_socket().unwrap());
    let mut ring = SendRing::new();
    let mut missing: Vec<_> = dead.iter().map(|to| to.as_socket().unwrap()).collect();
    let dead = missing.clone();
    let start = Instant::now();
    while !missing.is_empty() {
        assert!(start.elapsed() < PATIENCE, "{missing:?} of {dead:?}");
        let payload = b"hello, is anybody there?";
        let datagrams: Vec<_> = order.iter().map(|to| (*to, &payload[..])).collect();
        let (outcomes, refusals) = send_and_hear(&mut ring, socket.as_fd(), &datagrams);
        assert_eq!(verdicts(&outcomes), vec![Ok(payload.len()); order.len()]);
        for Refusal { to, quote, number } in refusals {
            assert_eq!(number, libc::ECONNREFUSED);
            assert!(dead.contains(&to), "{to}");
            assert_eq!(Some(&quote), payload.first_chunk());
            missing.retain(|address| *address != to);
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn dead_ports_are_told_of_in_whatever_order_they_stand() {
    for address in loopbacks() {
        let holders = [connected(address), connected(address)];
        let (receiver, live) = udp(address);
        let live = SockAddr::from(live);
        let dead = holders
            .each_ref()
            .map(|holder| SockAddr::from(holder.local_addr().unwrap()));
        let [one, other] = dead.each_ref();
        for order in [
            &[one][..],
            &[one, &live],
            &[&live, one],
            &[one, &live, &live],
            &[one, one, one, other],
            &[&live, one, &live, other, &live],
        ] {
            let dead: Vec<_> = dead.iter().filter(|dead| order.contains(dead)).collect();
            assert_heard(order, &dead);
        }
        drop(receiver);
    }
}

/// A socket that takes datagrams from none but itself: to all others its port is dead.
fn connected(address: &str) -> UdpSocket {
    let (socket, itself) = udp(address);
    socket.connect(itself).unwrap();
    socket
}

#[test]
fn a_full_unix_queue_is_its_receivers_alone() {
    let directory = tempfile::tempdir().unwrap();
    let bind = |name: &str| {
        let path = directory.path().join(name);
        (
            UnixDatagram::bind(&path).unwrap(),
            SockAddr::unix(&path).unwrap(),
        )
    };
    let ((full, to_full), (live, to_live)) = (bind("full"), bind("live"));
    let nobody = SockAddr::unix(directory.path().join("nobody")).unwrap();
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
    let mut ring = SendRing::new();
    let mut queued = 0;
    while send(&mut ring, socket.as_fd(), &[(&to_full, b"x")])[0].is_ok() {
        queued += 1;
    }
    assert!(queued > 0);
    for _ in 0..3 {
        let order = [&to_full, &to_live, &nobody, &to_full, &to_live];
        let outcomes = send(&mut ring, socket.as_fd(), &order.map(|to| (to, &b"y"[..])));
        let kinds: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.as_ref().map_err(io::Error::kind))
            .collect();
        let (blocked, absent) = (Err(ErrorKind::WouldBlock), Err(ErrorKind::NotFound));
        assert_eq!(kinds, [blocked, Ok(&1), absent, blocked, Ok(&1)]);
        receive(&mut ReceiveRing::new(), live.as_fd(), 2);
    }
    receive(&mut ReceiveRing::new(), full.as_fd(), queued);
    assert!(
        send(&mut ring, socket.as_fd(), &[(&to_full, b"z")])[0].is_ok(),
        "as soon as it reads"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernel_counts_every_datagram_that_it_drops() {
    const SENT: u32 = 1_000;
    let (receiver, to) = udp(IPV4);
    SockRef::from(&receiver)
        .set_recv_buffer_size(4_096)
        .unwrap();
    let memory = || socket_memory(receiver.as_fd()).unwrap();
    let before = memory();
    assert_eq!(before.drops, 0);
    let granted = SockRef::from(&receiver).recv_buffer_size().unwrap();
    assert_eq!(before.receive_buffer_bytes as usize, granted);
    let (sender, _) = udp(IPV4);
    for _ in 0..SENT {
        sender.send_to(&[0; 100], to).unwrap();
    }
    assert!(memory().receive_used_bytes > 0, "some wait");
    let mut ring = ReceiveRing::new();
    let mut received = 0;
    let start = Instant::now();
    while received + memory().drops < SENT {
        received += u32::try_from(
            ring.receive(receiver.as_fd(), RECEIVE_BATCH_MAX, Ask::Source)
                .unwrap(),
        )
        .unwrap();
        assert!(start.elapsed() < PATIENCE);
    }
    let drops = memory().drops;
    assert_eq!(received + drops, SENT);
    assert!(
        received > 0 && drops > 0,
        "{received} received, {drops} dropped"
    );
}

#[test]
fn a_wait_ends_when_something_is_there() {
    let (socket, address) = udp(IPV4);
    socket.send_to(b"x", address).unwrap();
    let far_more_than_a_test_may_take = Duration::from_secs(3_600);
    wait_readable(socket.as_fd(), far_more_than_a_test_may_take);
    // And without anything there, when its time is over.
    receive(&mut ReceiveRing::new(), socket.as_fd(), 1);
    wait_readable(socket.as_fd(), Duration::from_micros(1));
}

/// Frames of so many bytes, each of a letter of its own.
fn lettered(lengths: &[usize]) -> Vec<Vec<u8>> {
    let letters = (b'a'..=b'z').cycle();
    let frame = |(length, letter)| vec![letter; length];
    lengths.iter().copied().zip(letters).map(frame).collect()
}

/// Sends them to one destination as segments.
fn send_segments(
    ring: &mut SegmentRing,
    socket: BorrowedFd<'_>,
    to: &SockAddr,
    frames: &[Vec<u8>],
) -> (Result<(), NoSegments>, Vec<Verdict>) {
    let parts = frames.iter().map(|frame| {
        let (head, body) = frame.split_at(frame.len().min(20));
        [head, body]
    });
    let (mut outcomes, mut refusals) = (vec![Ok(7)], Vec::new());
    let result = ring.send(socket, to, parts, &mut outcomes, &mut refusals);
    if !refusals.is_empty() {
        let rest = frames.get(outcomes.len()..).unwrap();
        let more = send_segments(ring, socket, to, rest).1;
        return (result, [verdicts(&outcomes), more].concat());
    }
    (result, verdicts(&outcomes))
}

fn received(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let all = receive(&mut ReceiveRing::new(), socket.as_fd(), count);
    all.into_iter().map(|(bytes, _)| bytes).collect()
}

#[test]
fn segments_arrive_as_the_datagrams_that_they_were() {
    let many: Vec<usize> = (0..SEND_BATCH_MAX)
        .map(|index| 1_400 - index % 7 * 20)
        .collect();
    for lengths in [
        &[1_400; 5][..],
        &[1_400, 1_400, 30],
        // All but the last of a message are padded, by the least, by one length's limit, by most.
        &[1_398, 1_271, 1_270, 1_269, 1_144, 1_400, 9],
        // By 1 cannot be padded, nor by more than it saves.
        &[1_399, 1_400, 1_000, 1_400, 0, 0, 5, 5],
        // Of more bytes than a message has.
        &[60_000, 60_000, 30_000, 30_000, 30_000],
        &many,
    ] {
        for address in loopbacks() {
            let (receiver, to) = udp(address);
            SockRef::from(&receiver)
                .set_recv_buffer_size(1 << 20)
                .unwrap();
            let to = SockAddr::from(to);
            let socket = egress(to.as_socket().unwrap());
            let frames = lettered(lengths);
            let mut ring = SegmentRing::new();
            for _ in 0..2 {
                let (result, outcomes) = send_segments(&mut ring, socket.as_fd(), &to, &frames);
                let is_known = takes_segments(socket.as_fd());
                assert_eq!(result, if is_known { Ok(()) } else { Err(NoSegments) });
                let datagrams = received(&receiver, frames.len());
                for ((datagram, frame), outcome) in datagrams.iter().zip(&frames).zip(outcomes) {
                    assert_eq!(outcome, Ok(datagram.len()));
                    let (bytes, padding) = datagram.split_at(frame.len());
                    assert_eq!(bytes, frame);
                    let rest = Frame::decode(padding).unwrap();
                    assert!(rest.events.is_empty() && rest.stamp.is_none());
                    assert!(padding.len() <= 256, "{}", padding.len());
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_refused_as_segments_goes_as_datagrams_once() {
    let (receiver, to) = udp(IPV4);
    let to = SockAddr::from(to);
    let socket = egress(to.as_socket().unwrap());
    // The kernel sends no segments without checksums.
    set_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    let frames = lettered(&[100, 90, 100, 20, 500, 70_000, 500, 30]);
    let mut ring = SegmentRing::new();
    for _ in 0..2 {
        let (result, outcomes) = send_segments(&mut ring, socket.as_fd(), &to, &frames);
        assert_eq!(result, Err(NoSegments));
        let outcome = |frame: &Vec<u8>| match frame.len() {
            70_000 => Err(Some(libc::EMSGSIZE)),
            length => Ok(length),
        };
        assert!(outcomes.into_iter().eq(frames.iter().map(outcome)));
        let sent: Vec<_> = frames
            .iter()
            .filter(|frame| frame.len() < 70_000)
            .cloned()
            .collect();
        assert_eq!(received(&receiver, sent.len()), sent);
    }
    assert_eq!(
        ReceiveRing::new()
            .receive(receiver.as_fd(), RECEIVE_BATCH_MAX, Ask::Source)
            .unwrap(),
        0
    );
}

#[cfg(target_os = "linux")]
#[test]
fn an_error_of_segments_is_that_of_their_message() {
    let socket = egress(([127, 0, 0, 1], 9).into());
    let mut ring = SegmentRing::new();
    // The second is in no message with others.
    let frames = lettered(&[100, 70_000, 100, 100, 100]);
    // Broadcasts take a permission that the socket does not have.
    let to = SockAddr::from(SocketAddr::from(([255, 255, 255, 255], 9)));
    let (result, outcomes) = send_segments(&mut ring, socket.as_fd(), &to, &frames);
    let is_known = takes_segments(socket.as_fd());
    assert_eq!(result, if is_known { Ok(()) } else { Err(NoSegments) });
    let (denied, too_large) = (Err(Some(libc::EACCES)), Err(Some(libc::EMSGSIZE)));
    assert_eq!(outcomes, [denied, too_large, denied, denied, denied]);
}

#[test]
fn a_dead_port_fails_no_segments_to_a_live_one() {
    for address in loopbacks() {
        let (receiver, to) = udp(address);
        let to = SockAddr::from(to);
        let holder = connected(address);
        let dead = SockAddr::from(holder.local_addr().unwrap());
        let socket = egress(to.as_socket().unwrap());
        let mut ring = SegmentRing::new();
        let frames = lettered(&[50, 50, 40]);
        for _ in 0..100 {
            let (_, outcomes) = send_segments(&mut ring, socket.as_fd(), &dead, &frames);
            assert_eq!(outcomes.len(), 3);
            let (_, outcomes) = send_segments(&mut ring, socket.as_fd(), &to, &frames);
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            assert_eq!(received(&receiver, 3).len(), 3);
        }
    }
}

/// What lets so many datagrams of a batch through, and no more.
#[cfg(target_os = "linux")]
fn through(count: usize) -> Vec<Answer> {
    match count {
        0 => Vec::new(),
        _ if cfg!(feature = "portable") => vec![Answer::Through; count],
        _ => vec![Answer::Most(count)],
    }
}

/// Sends seven datagrams while calls fail as told: what was said of them, and what came of it.
#[cfg(target_os = "linux")]
fn send_seven(answers: Vec<Answer>) -> (Vec<Verdict>, Vec<Vec<u8>>) {
    let (receiver, to) = udp(IPV4);
    let to = SockAddr::from(to);
    let socket = egress(to.as_socket().unwrap());
    let frames = lettered(&[1, 2, 3, 4, 5, 6, 7]);
    let datagrams: Vec<_> = frames.iter().map(|frame| (&to, &frame[..])).collect();
    script([], answers);
    let outcomes = verdicts(&send(&mut SendRing::new(), socket.as_fd(), &datagrams));
    assert_eq!(unused(), (0, 0));
    let sent = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let came = received(&receiver, sent);
    receiver.set_nonblocking(true).unwrap();
    let more = receiver.recv(&mut [0]).map_err(|error| error.kind());
    assert_eq!(more, Err(ErrorKind::WouldBlock), "none twice");
    (outcomes, came)
}

#[cfg(target_os = "linux")]
#[test]
fn an_error_is_that_of_one_datagram_wherever_it_stands() {
    for number in [
        libc::EAGAIN,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EPERM,
        libc::EMSGSIZE,
        libc::ENETDOWN,
        libc::EIO,
        libc::ECONNREFUSED,
        libc::EHOSTUNREACH,
    ] {
        for place in 0..7 {
            let mut answers = through(place);
            answers.push(Answer::Fail(number));
            let (outcomes, came) = send_seven(answers);
            let mut expected: Vec<Verdict> = (1..=7).map(Ok).collect();
            expected[place] = Err(Some(number));
            assert_eq!(outcomes, expected, "{number} of {place}");
            let mut frames = lettered(&[1, 2, 3, 4, 5, 6, 7]);
            frames.remove(place);
            assert_eq!(came, frames);
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_no_error_of_a_datagram_costs_none() {
    for place in 0..7 {
        for answer in [
            Answer::Fail(libc::EINTR),
            Answer::Late(libc::ECONNREFUSED),
            Answer::Late(libc::EHOSTUNREACH),
        ] {
            let mut answers = through(place);
            answers.push(answer);
            let (outcomes, came) = send_seven(answers);
            assert_eq!(outcomes, (1..=7).map(Ok).collect::<Vec<_>>());
            assert_eq!(came, lettered(&[1, 2, 3, 4, 5, 6, 7]));
        }
    }
}
