//! The proof of the ledger: every hop loses on purpose, and at the end each event that was offered
//! is delivered or in one count of losses, to the event.
//!
//! Two publishers, one of them over a way that loses, doubles and reorders, send to a bus with a
//! receive buffer far too small. Behind the bus one subscriber has such a way too, one stands
//! still, one is too small for what it is sent, one never reads. Half way through the bus is
//! restarted, while one publisher goes on.
//!
//! `HAILMARY_PROOF_EVENTS` makes it longer: so many events of each publisher in each half.

use std::cell::Cell;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hailmary_client::{Address, Event, Publisher, Subscriber, SubscriberStats};

use crate::support::way::{Lane, Way};
use crate::support::{
    EndOnDrop, PATIENCE, Serving, Subscribing, assert_laws, sum, sum_of, value, wait_until,
};

/// Events of each publisher in each half, unless told otherwise.
const EVENTS: u64 = 500_000;

/// Events of each datagram, so that drops of the kernel can be told in events.
const BATCH: u64 = 10;

/// Events sent while there is no bus.
const UNHEARD: u64 = 50 * BATCH;

/// How far a publisher may be ahead of its way, in events: what the sockets of that surely hold.
const AHEAD_MAX: u64 = 10 * BATCH;

/// How long a subscriber listens before it is looked whether all is over.
const LOOK: Duration = Duration::from_millis(10);

/// What everybody wants, what only some want and others cannot take, and what nobody may publish.
const PLAIN: (&str, [u8; 50]) = ("a", [0; 50]);
const WIDE: (&str, [u8; 600]) = ("b", [0; 600]);
const SECRET: (&str, [u8; 50]) = ("secret", [0; 50]);

fn configuration(directory: &Path, small: &UdpSocket) -> String {
    let text = format!(
        "[loop]\n\
         receive_buffer_bytes = 32768\n\
         [limits]\n\
         lease_ms = 300000\n\
         [access]\n\
         publish = [\n\
           {{ from = [\"127.0.0.0/8\"], topics = [\">\"] }},\n\
           {{ from = [\"127.0.0.0/8\"], topics = [\"secret\"], deny = true }},\n\
         ]\n\
         [[subscriber]]\n\
         name = \"small\"\n\
         address = \"{}\"\n\
         topics = [\"b\"]\n\
         max_frame_bytes = 508\n\
         [[subscriber]]\n\
         name = \"full\"\n\
         address = \"unix://{}\"\n\
         topics = [\"b\"]\n",
        small.local_addr().unwrap(),
        directory.join("full").display(),
    );
    let file = directory.join("bus.toml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Publishes so many events in datagrams of [`BATCH`], and some that no datagram takes.
fn publish(publisher: &Publisher, events: u64, way: Option<&Lane>) {
    let mut batch = publisher.batch();
    let too_large = vec![0; 66_000];
    let before = way.map_or(0, Lane::taken);
    let await_way = |ahead: u64, sent: u64| {
        while way.is_some_and(|way| way.taken() + ahead < before + sent) {
            std::thread::yield_now();
        }
    };
    for datagram in 0..events / BATCH {
        let (topic, payload): (_, &[u8]) = match datagram % 20 {
            0 | 10 => (WIDE.0, &WIDE.1),
            5 => (SECRET.0, &SECRET.1),
            _ => (PLAIN.0, &PLAIN.1),
        };
        for _ in 0..BATCH {
            batch.push(&Event::new(topic, payload));
        }
        batch.flush();
        if datagram % 100 == 0 {
            publisher.publish(PLAIN.0, &too_large);
        }
        await_way(AHEAD_MAX, (datagram + 1) * BATCH);
    }
    await_way(0, events);
}

/// What became of one publisher's events at one run of the bus.
struct Heard<'a> {
    publisher: &'a Publisher,
    /// What it had sent, and dropped, before the first that this bus heard.
    sent_before: u64,
    dropped_before: u64,
}

impl<'a> Heard<'a> {
    fn from_now(publisher: &'a Publisher) -> Self {
        let stats = publisher.stats();
        Self {
            publisher,
            sent_before: stats.sent,
            dropped_before: stats.dropped(),
        }
    }

    fn sent(&self) -> u64 {
        self.publisher.stats().sent - self.sent_before
    }

    fn dropped(&self) -> u64 {
        self.publisher.stats().dropped() - self.dropped_before
    }

    /// Waits till each of its events was received or is lost, and says how many were which.
    fn settled(&self) -> (u64, u64) {
        wait_until("all events of a publisher", || {
            let pong = self.publisher.ping(PATIENCE).unwrap();
            let told = pong.received + pong.lost;
            assert!(told <= self.sent(), "{pong:?} of {}", self.sent());
            (told == self.sent()).then_some((pong.received, pong.lost))
        })
    }
}

/// Whoever reads all the time.
#[derive(Default)]
struct Reader {
    stats: Mutex<SubscriberStats>,
    is_over: AtomicBool,
}

impl Reader {
    /// Takes everything, and says how many events were handed out.
    fn read(&self, mut subscriber: Subscriber) -> (u64, SubscriberStats) {
        let mut events = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let taken = subscriber.recv_frame(LOOK, |frame| frame.events().len() as u64);
            events += taken.unwrap().unwrap_or(0);
            *self.stats.lock().unwrap() = subscriber.stats();
        }
        (events, subscriber.close())
    }

    fn told(&self) -> u64 {
        let stats = *self.stats.lock().unwrap();
        stats.received + stats.lost + stats.dropped_by_bus
    }
}

/// Copies that the bus made for a subscriber: sent or dropped.
fn copies(page: &str, subscriber: &str) -> u64 {
    let label = format!("subscriber=\"{subscriber}\"");
    sum_of(page, "egress_events_total", &label)
        + sum_of(page, "egress_dropped_events_total", &label)
}

fn udp(address: &str) -> SocketAddr {
    address.strip_prefix("udp://").unwrap().parse().unwrap()
}

/// All books of one run of the bus, once both publishers are silent.
fn assert_ingress(bus: &Serving, plain: &Heard<'_>, rough: &Heard<'_>, lane: (u64, u64)) -> String {
    // So that no ping is among what the kernel drops.
    bus.wait_for("/metrics", |page| {
        sum(page, "ingress_buffer_used_bytes") == 0
    });
    let heard = [plain.settled(), rough.settled()];
    let (received, lost) = (heard[0].0 + heard[1].0, heard[0].1 + heard[1].1);
    let dropped = plain.dropped() + rough.dropped();
    assert!(dropped > 0);
    // What was missing at the pings is no longer awaited.
    let page = bus.wait_for("/metrics", |page| {
        value(page, "ingress_lost_events_total") == lost
            && value(page, "ingress_sender_dropped_events_total") == dropped
    });
    assert_laws(&page);
    // The hop by its two ends: what went in, less and more what the way made of it, came out at
    // the bus or was dropped by the kernel, each datagram of which had as many events.
    let by_kernel = BATCH
        * value(
            &page,
            "ingress_dropped_frames_total{reason=\"kernel_buffer\"}",
        );
    let taken = value(&page, "ingress_events_total");
    let (lost_on_way, doubled_on_way) = lane;
    assert!(by_kernel > 0 && lost_on_way > 0 && doubled_on_way > 0);
    assert_eq!(
        plain.sent() + rough.sent() - lost_on_way + doubled_on_way,
        taken + by_kernel
    );
    assert_eq!(
        taken,
        received + value(&page, "ingress_duplicate_events_total")
    );
    assert!(
        value(
            &page,
            "ingress_dropped_events_total{reason=\"not_allowed\"}"
        ) > 0
    );
    for (subscriber, reason) in [("small", "too_large"), ("full", "would_block")] {
        let label = format!("subscriber=\"{subscriber}\",reason=\"{reason}\"");
        assert!(sum_of(&page, "egress_dropped_events_total", &label) > 0);
    }
    page
}

/// Everybody around the bus, who stay while it is restarted.
struct Scene {
    events: u64,
    plain: Publisher,
    rough: Publisher,
    way_in: Way,
    reader: Reader,
    still: Subscribing,
    /// What the one that stands still has printed.
    printed: Cell<u64>,
}

impl Scene {
    /// One run of the bus: traffic till all hops have lost some, and then all books. Gives the
    /// copies made for the subscriber far away, which had so many before.
    fn play(&self, bus: &Serving, far_before: u64) -> u64 {
        let lane = &self.way_in.there;
        let heard = [&self.plain, &self.rough].map(Heard::from_now);
        // So that the bus hears both from the first event on.
        lane.set_rough(false);
        for heard in &heard {
            publish(heard.publisher, BATCH, None);
            heard.settled();
        }
        lane.set_rough(true);
        let lane_before = (lane.lost(), lane.doubled());
        self.still.signal("STOP");
        std::thread::scope(|threads| {
            let (plain, rough, events) = (&self.plain, &self.rough, self.events);
            threads.spawn(move || publish(plain, events, None));
            threads.spawn(move || publish(rough, events, Some(lane)));
        });
        self.still.signal("CONT");
        let on_way = (lane.lost() - lane_before.0, lane.doubled() - lane_before.1);
        let page = assert_ingress(bus, &heard[0], &heard[1], on_way);
        let [plain, rough] = &heard;
        println!(
            "offered {} events and {} too large; the way lost {}, and doubled {}",
            plain.sent() + rough.sent(),
            plain.dropped() + rough.dropped(),
            on_way.0,
            on_way.1
        );
        for told in [
            "ingress_dropped",
            "ingress_lost",
            "ingress_dupl",
            "copies",
            "egress_dropped",
            "egress_events",
        ] {
            let of_metric = |line: &&str| line.starts_with(&format!("hailmary_{told}"));
            page.lines()
                .filter(of_metric)
                .for_each(|line| println!("{line}"));
        }
        // Renewals tell both of what they missed at the end, and the bus of what they lost.
        let far = copies(&page, "far");
        wait_until("the subscriber far away", || {
            (self.reader.told() == far_before + far).then_some(())
        });
        self.await_still(bus, copies(&page, "still"));
        far
    }

    fn await_still(&self, bus: &Serving, copies: u64) {
        let printed = Cell::new(0);
        bus.wait_for("/metrics", |page| {
            while self.still.try_line().is_some() {
                printed.set(printed.get() + 1);
            }
            let lost = sum_of(page, "subscriber_lost_events_total", "\"still\"");
            let dropped = sum_of(page, "egress_dropped_events_total", "\"still\"");
            printed.get() + lost + dropped == copies && lost > 0
        });
        self.printed.set(self.printed.get() + printed.get());
    }
}

/// The last word of a bus is what its last scrape said.
fn assert_last_word(bus: Serving) {
    let page = bus.get("/metrics");
    let (status, said) = bus.stop();
    assert_eq!(status, 0);
    for (word, metric) in [
        ("events", "ingress_events_total"),
        ("lost_before_the_bus", "ingress_lost_events_total"),
        ("copies", "copies_total"),
        ("sent", "egress_events_total"),
        ("dropped", "egress_dropped_events_total"),
    ] {
        let told = format!(" {word}={}", sum(&page, metric));
        assert!(said.contains(&told), "no{told} in {said}");
    }
}

#[test]
fn every_event_offered_is_delivered_or_in_one_count_of_losses() {
    let events = std::env::var("HAILMARY_PROOF_EVENTS").map_or(EVENTS, |it| it.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let small = UdpSocket::bind("127.0.0.1:0").unwrap();
    let _full = UnixDatagram::bind(directory.path().join("full")).unwrap();
    let file = configuration(directory.path(), &small);
    let arguments = ["--config", file.as_str()];
    // No other test is given a port of this address while nobody holds it. The second is for
    // subscribers, so that no request is among what the kernel drops.
    let bus = Serving::start(&arguments, &["127.0.78.1:0", "127.0.78.1:0"]);
    let [address, leases] = [0, 1].map(|listener| bus.listening[listener].clone());
    let (way_in, way_out) = (Way::to(udp(&address)), Way::to(udp(&leases)));
    way_out.back.set_rough(true);
    let at = |address: &str| -> Address { address.parse().unwrap() };
    let far = Subscriber::builder(&at(&way_out.near.to_string()))
        .pattern(">")
        .name("far")
        .max_frame_bytes(1_400)
        .connect(PATIENCE)
        .unwrap();
    let scene = Scene {
        events,
        plain: Publisher::connect(&at(&address)).unwrap(),
        rough: Publisher::connect(&at(&way_in.near.to_string())).unwrap(),
        way_in,
        reader: Reader::default(),
        still: Subscribing::start(&leases, &["b", "--name", "still", "--format", "raw"]),
        printed: Cell::new(0),
    };

    let (copies, handed_out, stats) = std::thread::scope(|threads| {
        let reader = &scene.reader;
        let over = EndOnDrop(&reader.is_over);
        let reading = threads.spawn(|| reader.read(far));
        let first = scene.play(&bus, 0);
        assert_last_word(bus);
        let before = scene.plain.stats();
        publish(&scene.plain, UNHEARD, None);
        assert!(scene.plain.stats().bounced > before.bounced);
        let bus = Serving::start(&arguments, &[&address, &leases]);
        bus.wait_for("/metrics", |page| value(page, "leases") == 2);
        let second = scene.play(&bus, first);
        drop(over);
        let (handed_out, stats) = reading.join().unwrap();
        (first + second, handed_out, stats)
    });
    let told = stats.received + stats.lost + stats.dropped_by_bus;
    assert_eq!((told, stats.bus_restarts), (copies, 1));
    assert_eq!(handed_out, stats.received + stats.duplicates);
    assert!(stats.lost >= way_out.back.lost() && stats.duplicates > 0);
    scene.still.signal("INT");
    let (_, last) = scene.still.output();
    println!("far away: {stats:?}\nstill: {last}");
    let received = format!("received {}, lost ", scene.printed.get());
    assert!(last.starts_with(&received), "{last}");
}
