//! Millions of first Subscribes under forged addresses: they cost no memory and aim the bus at
//! nobody.
//!
//! What they do cost: the bus answers so many strangers a second and no more, and its receive
//! buffer holds so much. Who is new shares both with them. So how long a new subscriber waits is
//! told of a flood that is twice what strangers are answered.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hailmary_client::{Address, Publisher, Subscriber};
use socket2::{Domain, Protocol, Socket, Type};

use super::long_or;
use crate::support::evidence::{figure, tell};
use crate::support::hosts::{counted, ip, is_inside};
use crate::support::{
    EndOnDrop, PATIENCE, Serving, assert_laws, request, subscribe, sum, value, wait_until,
};

/// Requests that are sent, at least.
const REQUESTS: (u64, u64) = (10_000_000, 100_000);

/// Every address of 10.0.0.0/8 may subscribe, so that each is answered if any is.
const CONFIGURATION: &str = "[access]\n\
    publish = [{ from = [\"10.0.0.1\"], topics = [\">\"] }]\n\
    subscribe = [{ from = [\"10.0.0.0/8\"], topics = [\">\"] }]\n";

/// Twice as many as are answered.
const PACE: Pace = Pace::PerMs(20);

/// Events published while the flood lasts.
const EVENTS: u64 = 300;

/// How long an event is waited for before the next.
const LOOK: Duration = Duration::from_millis(2);

/// How long the last ones are waited for.
const LATE: Duration = Duration::from_secs(2);

/// How far the bus's memory may move, in bytes: what its first full batch touches.
const GROWTH_BYTES: u64 = 8 << 20;

/// The packet of a first Subscribe (RFC 791, RFC 768). The kernel fills in lengths and checksums
/// of IP, and UDP goes without one.
fn packet(bus: SocketAddrV4) -> Vec<u8> {
    let payload = request(subscribe(7, b""));
    let udp_bytes = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 17;
    packet[16..20].copy_from_slice(&bus.ip().octets());
    packet.extend([0, 0]);
    packet.extend(bus.port().to_be_bytes());
    packet.extend(udp_bytes.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// How a flood comes.
#[derive(Clone, Copy, PartialEq)]
enum Pace {
    /// As fast as one thread can.
    Full,
    /// At most so many a ms.
    PerMs(u64),
}

/// Sends requests under another address each till enough are sent and all is over.
fn flood(bus: SocketAddrV4, pace: Pace, enough: u64, sent: &AtomicU64, is_over: &AtomicBool) {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    let to = SocketAddr::from((*bus.ip(), 0)).into();
    let mut packet = packet(bus);
    for number in 0_u64.. {
        if number >= enough && is_over.load(Ordering::Relaxed) {
            return;
        }
        if let Pace::PerMs(burst) = pace
            && number % burst == 0
        {
            thread::sleep(Duration::from_millis(1));
        }
        // All over the network, and never the bus's own.
        let [.., a, b, c, d, e] = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes();
        let source = Ipv4Addr::new(10, a.max(1), b, c);
        packet[12..16].copy_from_slice(&source.octets());
        packet[20..22].copy_from_slice(&[d | 0x80, e]);
        if socket.send_to(&packet, &to).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Does something while a flood comes, and gives what came of it.
fn during<T>(
    bus: SocketAddrV4,
    pace: Pace,
    enough: u64,
    sent: &AtomicU64,
    work: impl FnOnce() -> T,
) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|threads| {
        let flooding = threads.spawn(|| flood(bus, pace, enough, sent, &is_over));
        let end = EndOnDrop(&is_over);
        let worked = work();
        drop(end);
        flooding.join().unwrap();
        worked
    })
}

fn subscriber(bus: &Serving, name: &str) -> Subscriber {
    let address: Address = bus.address().parse().unwrap();
    let subscriber = Subscriber::builder(&address).pattern("a").name(name);
    subscriber.connect(PATIENCE).unwrap()
}

/// Datagrams that came to ports of this host that are nobody's: the answers to forged addresses,
/// all of which are here.
fn misdirected() -> u64 {
    counted("Udp", "NoPorts")
}

fn publisher(bus: &Serving) -> Publisher {
    Publisher::connect(&bus.address().parse().unwrap()).unwrap()
}

/// How many of the events a subscriber receives.
fn publish(publisher: &Publisher, subscriber: &mut Subscriber) -> u64 {
    let mut received = 0;
    for _ in 0..EVENTS {
        publisher.publish("a", b"x");
        received += u64::from(subscriber.recv_timeout(LOOK).unwrap().is_some());
    }
    // What is late is not lost.
    while received < EVENTS && subscriber.recv_timeout(LATE).unwrap().is_some() {
        received += 1;
    }
    received
}

/// What became of a flood, and of those who wanted events meanwhile.
struct Outcome {
    sent: u64,
    per_second: f64,
    /// To forged addresses.
    answers: u64,
    growth_bytes: u64,
    /// By the subscriber that had its lease before, at full speed.
    received: u64,
    lapses: u64,
    /// Till a new subscriber had its lease, at a moderate speed, and what it received then.
    waited: Duration,
    received_then: u64,
    /// Events that found no room in the bus's buffer then, as it told their publisher.
    lost_then: u64,
    page: String,
}

/// Floods a bus at full speed and then at a moderate one.
fn flooded(bus: &Serving) -> Outcome {
    let SocketAddr::V4(address) = bus.udp() else {
        panic!("it is of IPv4");
    };
    let sent = AtomicU64::new(0);
    let misdirected_before = misdirected();
    // The bus has the memory of its buffers once they have been full.
    flood(address, Pace::Full, 30_000, &sent, &AtomicBool::new(true));
    bus.wait_for_metric("challenges_total", 1);
    let mut first = subscriber(bus, "first");
    let resident_before = bus.resident_bytes();

    let start = Instant::now();
    let enough = long_or(REQUESTS.0, REQUESTS.1);
    let sent_before = sent.load(Ordering::Relaxed);
    let received = during(address, Pace::Full, enough, &sent, || {
        let received = publish(&publisher(bus), &mut first);
        // It holds its lease by listening.
        while sent.load(Ordering::Relaxed) < enough {
            let _ = first.recv_timeout(LOOK).unwrap();
        }
        received
    });
    let sent_fast = sent.load(Ordering::Relaxed) - sent_before;
    let per_second = sent_fast as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let publisher = publisher(bus);
    let (waited, received_then) = during(address, PACE, 0, &sent, || {
        let mut second = subscriber(bus, "second");
        (start.elapsed(), publish(&publisher, &mut second))
    });
    let pong = wait_until("an answer", || publisher.ping(LATE).ok());
    assert_eq!(pong.received + pong.lost, EVENTS);
    let sent = sent.into_inner();
    let asked =
        |page: &str| sum(page, "challenges_total") + sum(page, "lease_requests_unanswered_total");
    let lost = "ingress_dropped_frames_total{reason=\"kernel_buffer\"}";
    let (answers, page) = wait_until("the end of the flood", || {
        // When this has been counted, so has all that came before it. Of what was lost and asked
        // some was no stranger's, so that their sum alone does not tell.
        publisher.publish("end", b"x");
        let answers = misdirected() - misdirected_before;
        let page = bus.get("/metrics");
        let is_over = asked(&page) + value(&page, lost) >= sent;
        (is_over && value(&page, "unmatched_events_total") > 0).then_some((answers, page))
    });
    Outcome {
        sent,
        per_second,
        answers,
        growth_bytes: bus.resident_bytes().saturating_sub(resident_before),
        received,
        lapses: first.stats().lapses,
        waited,
        received_then,
        lost_then: pong.lost,
        page,
    }
}

fn tell_of(outcome: &Outcome, percent: f64) {
    let hundredths = (percent * 100.0).round() / 100.0;
    let waited_ms = u64::try_from(outcome.waited.as_millis()).unwrap();
    let (answers, received_then) = (outcome.answers, outcome.received_then);
    let figures = [
        figure("requests sent", outcome.sent, "datagrams"),
        figure(
            "requests a second",
            outcome.per_second.round(),
            "datagrams/s",
        ),
        figure(
            "answers that came to forged addresses",
            answers,
            "datagrams",
        ),
        figure("bytes out for bytes in", hundredths, "%"),
        figure(
            "growth of the bus's memory",
            outcome.growth_bytes >> 10,
            "KiB",
        ),
        figure("events published at full flood", EVENTS, "events"),
        figure("events received", outcome.received, "events"),
        figure("lapses of a lease from before", outcome.lapses, "lapses"),
        figure(
            "until a new subscriber has its lease, at 20,000 requests/s",
            waited_ms,
            "ms",
        ),
        figure("events published then", EVENTS, "events"),
        figure("events received then", received_then, "events"),
        figure(
            "events for which the bus's buffer had no room then, as it told",
            outcome.lost_then,
            "events",
        ),
    ];
    tell(
        "forged_subscribes",
        "First Subscribes flood the bus, each under another forged address of sixteen million.",
        "They cost no memory and bring no lease; the bus sends less than it gets; who \
         has a lease keeps it.",
        &figures,
    );
}

#[test]
#[ignore = "needs namespaces of users and of networks"]
fn millions_of_forged_requests_cost_no_memory_and_aim_at_nobody() {
    let test = "faults::strangers::millions_of_forged_requests_cost_no_memory_and_aim_at_nobody";
    if !is_inside(test) {
        return;
    }
    ip("link set lo up");
    ip("address add 10.0.0.1/32 dev lo");
    ip("route add local 10.0.0.0/8 dev lo");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    std::fs::write(&file, CONFIGURATION).unwrap();
    let bus = Serving::start(&["--config", file.to_str().unwrap()], &["10.0.0.1:0"]);
    let outcome = flooded(&bus);
    let page = &outcome.page;
    assert_laws(page);
    assert_eq!(value(page, "leases_granted_total"), 2, "of the real ones");
    assert_eq!(outcome.lapses, 0);
    assert!(outcome.growth_bytes < GROWTH_BYTES);

    // One answer is as long as any other.
    let length = answer_bytes(&bus);
    let request_bytes = request(subscribe(7, b"")).len() as u64;
    assert!(length <= request_bytes);
    let answers = outcome.answers;
    let challenges = value(page, "challenges_total");
    assert!(0 < answers && answers <= challenges, "{answers} of {page}");
    let percent = 100.0 * (answers * length) as f64 / (outcome.sent * request_bytes) as f64;
    assert!(percent < 100.0);
    assert!(outcome.received > 0);
    // A bus that gets no processor for some ms has no room for them, and says so.
    assert_eq!(outcome.received_then + outcome.lost_then, EVENTS);
    tell_of(&outcome, percent);
}

/// Bytes of the answer to a stranger, once strangers are answered again.
fn answer_bytes(bus: &Serving) -> u64 {
    let stranger = UdpSocket::bind("10.0.0.1:0").unwrap();
    stranger.set_read_timeout(Some(LOOK)).unwrap();
    wait_until("an answer", || {
        let request = request(subscribe(7, b""));
        stranger.send_to(&request, bus.udp()).unwrap();
        Some(stranger.recv(&mut [0; 1_500]).ok()? as u64)
    })
}
