//! The books balance in every scrape, while everything happens at once.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hailmary_client::{Address, Subscriber, SubscriberStats};
use hailmary_proto::v1::{Event, Frame, Stamp};
use prost::Message;

use super::support::{
    EndOnDrop, PATIENCE, Serving, assert_laws, datagram, event, sum, sum_of, value, wait_until,
};

/// How many scrapes must balance under load.
const SCRAPES: usize = 60;

/// How long a subscriber listens before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(10);

/// Numbers that look random and are the same each time (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    /// Legal topics and others.
    fn event(&mut self) -> Event {
        let topics = ["a", "a.b", "a.b.c", "b", "nobody", "", "a..b", "a.*", "é"];
        let mut event = event(self.pick(&topics));
        event.payload = vec![7; [0, 10, 100, 1_000, 5_000][self.below(5)]];
        event
    }
}

/// What was handed to the bus, by whoever did.
#[derive(Debug, Default)]
struct Handed {
    events: u64,
    malformed: u64,
    looped: u64,
}

/// Over a Unix socket, which loses nothing: it makes its senders wait.
fn send_everything(bus: &Path, is_over: &AtomicBool) -> Handed {
    let socket = UnixDatagram::unbound().unwrap();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut handed = Handed::default();
    while !is_over.load(Ordering::Relaxed) {
        let events: Vec<_> = (0..random.below(6)).map(|_| random.event()).collect();
        let count = events.len() as u64;
        let bytes = match random.below(10) {
            0 => {
                handed.malformed += 1;
                // Cut in its last field, or nothing but a key that has no value.
                let whole = datagram(vec![event("a")]);
                whole[..whole.len() - 1].to_vec()
            }
            1 => {
                handed.looped += 1;
                let stamp = Some(Stamp {
                    hops: 8,
                    ..Stamp::default()
                });
                Frame {
                    events,
                    stamp,
                    ..Frame::default()
                }
                .encode_to_vec()
            }
            _ => {
                handed.events += count;
                datagram(events)
            }
        };
        socket.send_to(&bytes, bus).unwrap();
    }
    handed
}

/// One publisher over UDP, one event a datagram, so that drops of the kernel are events, too.
struct Flow {
    socket: UdpSocket,
    sent: u64,
}

impl Flow {
    fn send(&mut self) {
        let stamp = Stamp {
            sender: 77,
            sequence: self.sent,
            ..Stamp::default()
        };
        let frame = Frame {
            events: vec![event("a.udp")],
            stamp: Some(stamp),
            ..Frame::default()
        };
        self.socket.send(&frame.encode_to_vec()).unwrap();
        self.sent += 1;
    }
}

fn flood(bus: SocketAddr, is_over: &AtomicBool) -> Flow {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(bus).unwrap();
    let mut flow = Flow { socket, sent: 0 };
    while !is_over.load(Ordering::Relaxed) {
        // More than the bus's small buffer holds at once.
        (0..50).for_each(|_| flow.send());
    }
    flow
}

/// Leases that begin and end all the time, some given back and some abandoned.
fn hop(bus: &Address, is_over: &AtomicBool) -> u64 {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut hops = 0;
    let mut abandoned = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let mut builder = Subscriber::builder(bus).lease(Duration::from_secs(1));
        for _ in 0..=random.below(2) {
            builder = builder.pattern(random.pick(&["a", "a.*", "a.>", ">", "*.b.c"]));
        }
        let name = random.pick(&["x", "y", "z"]);
        let mut subscriber = builder.name(name).connect(PATIENCE).unwrap();
        for _ in 0..random.below(20) {
            subscriber.recv_timeout(LOOK).unwrap();
        }
        if random.below(2) == 0 {
            subscriber.close();
        } else {
            abandoned.push(subscriber);
        }
        hops += 1;
    }
    hops
}

/// Takes everything that it gets.
fn listen(bus: &Address, received: &AtomicU64, is_over: &AtomicBool) -> SubscriberStats {
    let subscriber = Subscriber::builder(bus).pattern(">").name("listener");
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    while !is_over.load(Ordering::Relaxed) {
        subscriber.recv_timeout(LOOK).unwrap();
        received.store(subscriber.stats().received, Ordering::Relaxed);
    }
    subscriber.close()
}

/// Subscribers that cannot be reached, each in its own way, and a small buffer to lose from.
fn configuration(directory: &Path) -> String {
    // No other test is given a port of this address.
    let dead = UdpSocket::bind("127.0.88.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let unix = |name: &str| format!("unix://{}", directory.join(name).display());
    let addresses = [
        ("gone", unix("gone")),
        ("full", unix("full")),
        ("dead", dead.to_string()),
    ];
    let mut text = "[loop]\nreceive_buffer_bytes = 4096\n[[topic]]\nmatch = \"a.>\"\n".to_owned();
    for (name, address) in addresses {
        text += &format!(
            "[[subscriber]]\nname = \"{name}\"\naddress = \"{address}\"\ntopics = [\"a.>\", \"b\"]\n\
             max_frame_bytes = 2000\n"
        );
    }
    text
}

/// Scrapes, each of which must balance, till there were enough.
fn scrape_under_load(bus: &Serving) {
    let (mut busy, mut events) = (0, 0);
    wait_until("scrapes under load", || {
        let page = bus.get("/metrics");
        assert_laws(&page);
        let before = std::mem::replace(&mut events, sum(&page, "ingress_events_total"));
        assert!(events >= before, "a counter fell");
        busy += usize::from(events > before);
        let has_lapsed = value(&page, "leases_expired_total") > 0;
        (busy >= SCRAPES && has_lapsed).then_some(())
    });
}

fn dropped_frames(page: &str, reason: &str) -> u64 {
    let name = format!("ingress_dropped_frames_total{{reason=\"{reason}\"}}");
    value(page, &name)
}

/// Frames, each of one event, that the kernel had no room for.
fn lost(page: &str) -> u64 {
    dropped_frames(page, "kernel_buffer")
}

/// Events sent to the subscriber that takes everything.
fn listened(page: &str) -> u64 {
    value(page, "egress_events_total{subscriber=\"listener\"}")
}

/// What the bus says of itself is what those around it know.
fn assert_books(page: &str, handed: &Handed, listener: &SubscriberStats) {
    assert_laws(page);
    assert_eq!(dropped_frames(page, "malformed"), handed.malformed);
    assert_eq!(dropped_frames(page, "hops"), handed.looped);
    // The third law, on the hops before and behind the bus: sent = received + lost.
    assert!(lost(page) > 0, "the kernel was to lose some");
    assert_eq!(value(page, "ingress_lost_events_total"), lost(page));
    let dropped = |label: &str| sum_of(page, "egress_dropped_events_total", label);
    assert_eq!((listener.received, listener.lost), (listened(page), 0));
    assert_eq!(listener.dropped_by_bus, dropped("subscriber=\"listener\""));
    // Each of the unreachable ones was counted, in its own way.
    for (name, reason) in [
        ("gone", "refused"),
        ("full", "would_block"),
        ("dead", "too_large"),
        // Where the system tells of it.
        #[cfg(target_os = "linux")]
        ("dead", "refused"),
    ] {
        let dropped = dropped(&format!("subscriber=\"{name}\",reason=\"{reason}\""));
        assert!(dropped > 0, "{name}");
    }
}

#[test]
fn the_laws_hold_in_every_scrape_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    fs::write(&file, configuration(directory.path())).unwrap();
    let _full = UnixDatagram::bind(directory.path().join("full")).unwrap();
    let path = directory.path().join("events.sock");
    let unix = |name: &str| format!("unix://{}", directory.path().join(name).display());
    // Leases have a socket of their own, so that requests find room in its queue.
    let listeners = ["127.0.0.1:0", &unix("events.sock"), &unix("leases.sock")];
    let bus = Serving::start(&["--config", file.to_str().unwrap()], &listeners);
    let leases: Address = listeners[2].parse().unwrap();
    let (is_over, is_drained) = (AtomicBool::new(false), AtomicBool::new(false));
    let received = AtomicU64::new(0);
    let udp = bus.udp();

    std::thread::scope(|threads| {
        let _ends = [EndOnDrop(&is_over), EndOnDrop(&is_drained)];
        let listener = threads.spawn(|| listen(&leases, &received, &is_drained));
        bus.wait_for("/metrics", |page| value(page, "leases") == 1);
        let everything = threads.spawn(|| send_everything(&path, &is_over));
        let flood = threads.spawn(|| flood(udp, &is_over));
        let hopper = threads.spawn(|| hop(&leases, &is_over));
        scrape_under_load(&bus);
        is_over.store(true, Ordering::Relaxed);
        let mut handed = everything.join().unwrap();
        let mut flow = flood.join().unwrap();
        let hops = hopper.join().unwrap();

        let is_settled = |page: &str, handed: &Handed, flow: &Flow| {
            let taken = sum(page, "ingress_events_total");
            taken + lost(page) == handed.events + flow.sent
                && listened(page) == received.load(Ordering::Relaxed)
        };
        bus.wait_for("/metrics", |page| is_settled(page, &handed, &flow));
        // Into empty queues: whoever gets these learns of all that was lost before.
        flow.send();
        UnixDatagram::unbound()
            .unwrap()
            .send_to(&datagram(vec![event("a")]), &path)
            .unwrap();
        handed.events += 1;
        // What the kernel dropped is missing by the stamps, too, once it is no longer awaited.
        let page = bus.wait_for("/metrics", |page| {
            is_settled(page, &handed, &flow)
                && value(page, "ingress_lost_events_total") == lost(page)
        });
        is_drained.store(true, Ordering::Relaxed);
        let stats = listener.join().unwrap();

        assert_eq!(value(&page, "leases_granted_total"), hops + 1);
        assert_books(&page, &handed, &stats);
    });
}
