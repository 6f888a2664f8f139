//! What a subscriber tells of the events that do not come, on a way that loses,
//! doubles and reorders, from a bus that a test plays.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what helps tests may panic as they do"
)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{BUS, PATIENCE, StandIn, control_frame, events};
use hailmary_client::{Item, Loss, RecvError, Refusal, Subscriber};
use hailmary_proto::v1;
use hailmary_proto::v1::frame::Control;

const NO_TIME: Duration = Duration::ZERO;

/// A lease that is renewed after 100 ms, and the stamp of what went before.
fn stamped_lease(nonce: u64, sequence: u64, dropped: u64) -> v1::Frame {
    let mut frame = control_frame(Control::Lease(v1::Lease {
        bus: BUS,
        lease_ms: 300,
        cookie: b"brief".to_vec(),
        nonce,
    }));
    frame.stamp = Some(stamp(sequence, dropped));
    frame
}

fn stamp(sequence: u64, dropped: u64) -> v1::Stamp {
    v1::Stamp {
        sender: BUS,
        sequence,
        dropped,
        ..v1::Stamp::default()
    }
}

fn frame(sequence: u64, dropped: u64, payloads: &[&str]) -> v1::Frame {
    v1::Frame {
        stamp: Some(stamp(sequence, dropped)),
        ..events(sequence, payloads)
    }
}

/// A subscriber that holds a lease, its nonce, and where it is.
fn subscribed(bus: &StandIn) -> (Subscriber, u64, SocketAddr) {
    let mut subscriber = Subscriber::builder(&bus.address())
        .pattern(">")
        .open()
        .unwrap();
    let (request, from) = bus.receive_subscribe();
    bus.grant(request.nonce, from);
    assert_eq!(subscriber.recv_timeout(NO_TIME).unwrap(), None);
    assert!(subscriber.is_subscribed());
    (subscriber, request.nonce, from)
}

fn event(item: Option<Item>) -> String {
    match item {
        Some(Item::Event(event)) => String::from_utf8(event.payload).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn loss(item: Option<Item>) -> (u64, u64) {
    match item {
        Some(Item::Loss(loss)) => (loss.lost, loss.dropped_by_bus),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_notice_stands_before_the_event_and_comes_in_silence_too() {
    let bus = StandIn::open();
    let (mut subscriber, _, from) = subscribed(&bus);
    bus.send(&frame(0, 0, &["a"]), from);
    bus.send(&frame(9, 5, &["b", "c"]), from);
    let mut next = || subscriber.recv_item_timeout(PATIENCE).unwrap();
    assert_eq!(event(next()), "a");
    assert_eq!(loss(next()), (0, 5));
    assert_eq!(event(next()), "b");
    assert_eq!(event(next()), "c");
    // Nothing comes any more but the end of the window.
    assert_eq!(loss(next()), (3, 0));
    assert_eq!(subscriber.recv_item_timeout(NO_TIME).unwrap(), None);

    // Three of the 800 may be those that were lost: as many of these are awaited yet.
    bus.send(&frame(811, 805, &["d"]), from);
    let notice = subscriber.items().next().unwrap();
    assert!(matches!(&notice, Item::Loss(loss) if loss.events() == 797));
    assert_eq!(event(subscriber.items().next()), "d");
    assert_eq!(loss(subscriber.items().next()), (0, 3));
    let stats = subscriber.stats();
    assert_eq!(
        (stats.received, stats.lost, stats.dropped_by_bus),
        (4, 3, 805)
    );
}

#[test]
fn who_does_not_ask_for_notices_gets_events_alone_and_one_notice_later() {
    let bus = StandIn::open();
    let (mut subscriber, _, from) = subscribed(&bus);
    bus.send(&frame(4, 4, &["a"]), from);
    bus.send(&frame(8, 7, &["b"]), from);
    assert_eq!(subscriber.recv().unwrap().payload, b"a");
    let taken = subscriber.recv_frame(PATIENCE, |frame| frame.events().len());
    assert_eq!(taken.unwrap(), Some(1));
    let notice = subscriber.take_loss().unwrap();
    assert_eq!((notice.lost, notice.dropped_by_bus), (0, 7));
    assert_eq!(
        notice.to_string(),
        "7 events lost, 7 of them dropped by the bus"
    );
    assert_eq!(subscriber.take_loss(), None);
}

#[test]
fn the_last_notice_comes_before_the_refusal() {
    let bus = StandIn::open();
    let mut subscriber = Subscriber::builder(&bus.address())
        .pattern(">")
        .open()
        .unwrap();
    let (request, from) = bus.receive_subscribe();
    bus.send(&stamped_lease(request.nonce, 0, 0), from);
    bus.send(&frame(2, 0, &["a"]), from);
    assert_eq!(event(subscriber.recv_item_timeout(PATIENCE).unwrap()), "a");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (renewal, _) = bus.receive_subscribe();
            let reason = v1::refusal::Reason::NotAllowed.into();
            let nonce = renewal.nonce;
            bus.answer(Control::Refusal(v1::Refusal { reason, nonce }), from);
        });
        let item = subscriber.recv_item();
        assert_eq!(loss(item.ok()), (2, 0));
    });
    assert!(matches!(
        subscriber.recv_item(),
        Err(RecvError::Refused(Refusal::NotAllowed))
    ));
    assert!(subscriber.items().next().is_none());
}

/// What became of the events of a flow.
#[derive(Debug, Default, PartialEq, Eq)]
struct Books {
    received: u64,
    lost: u64,
    dropped: u64,
    duplicates: u64,
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The frames in the order that they arrive in, and what became of all.
fn rough_way(frames: u64) -> (Vec<v1::Frame>, Books, u64) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut arrivals, mut books, mut sequence) = (Vec::new(), Books::default(), 0);
    for place in 0..frames {
        let count = 1 + random.below(4);
        let payload = place.to_string();
        let payloads = vec![payload.as_str(); usize::try_from(count).unwrap()];
        let sent = frame(sequence, books.dropped, &payloads);
        let mut arrive = |delay| arrivals.push((place + delay, sent.clone()));
        match random.below(8) {
            0 => books.lost += count,
            1 => books.dropped += count,
            fate => {
                books.received += count;
                arrive(random.below(6));
                if fate == 2 {
                    books.duplicates += count;
                    arrive(random.below(6));
                }
            }
        }
        sequence += count;
    }
    arrivals.sort_by_key(|(place, _)| *place);
    let frames = arrivals.into_iter().map(|(_, frame)| frame).collect();
    (frames, books, sequence)
}

/// Answers each renewal till one reports all that was lost, and gives that report.
fn renew_until_settled(bus: &StandIn, to: SocketAddr, sent: u64, books: &Books) -> v1::Report {
    let (mut lost, mut received) = (0, 0);
    loop {
        let (renewal, _) = bus.receive_subscribe();
        let report = renewal.report.unwrap();
        assert!(report.lost >= lost && report.received >= received);
        (lost, received) = (report.lost, report.received);
        if lost >= books.lost {
            return report;
        }
        bus.send(&stamped_lease(renewal.nonce, sent, books.dropped), to);
    }
}

#[test]
fn the_books_balance_over_a_lossy_doubling_reordering_way() {
    let bus = StandIn::open();
    let (frames, books, sent) = rough_way(150);
    let mut subscriber = Subscriber::builder(&bus.address())
        .pattern(">")
        .open()
        .unwrap();
    let (request, from) = bus.receive_subscribe();
    bus.send(&stamped_lease(request.nonce, 0, 0), from);
    frames.iter().for_each(|frame| bus.send(frame, from));

    let (mut handed_out, mut told) = (0, Loss::default());
    let report = std::thread::scope(|scope| {
        let settling = scope.spawn(|| renew_until_settled(&bus, from, sent, &books));
        while !settling.is_finished() {
            match subscriber
                .recv_item_timeout(Duration::from_millis(5))
                .unwrap()
            {
                Some(Item::Event(_)) => handed_out += 1,
                Some(Item::Loss(loss)) => {
                    assert!(loss.events() > 0, "no notice for nothing");
                    told.lost += loss.lost;
                    told.dropped_by_bus += loss.dropped_by_bus;
                }
                Some(_) | None => {}
            }
        }
        settling.join().unwrap()
    });
    assert_eq!((report.received, report.lost), (books.received, books.lost));
    assert_eq!(report.dropped, 0);
    let stats = subscriber.close();
    let counted = Books {
        received: stats.received,
        lost: stats.lost,
        dropped: stats.dropped_by_bus,
        duplicates: stats.duplicates,
    };
    assert_eq!(counted, books);
    assert_eq!(handed_out, books.received + books.duplicates);
    assert_eq!(
        (told.lost, told.dropped_by_bus),
        (books.lost, books.dropped)
    );
}
