//! More than the bus can take: what is let go is chosen, weighed and counted.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use hailmary_client::{Address, Subscriber};
use hailmary_proto::v1::Event;

use crate::support::{PATIENCE, Serving, assert_laws, datagram, event, sum_of, value};

/// Datagrams that wait while the bus stands still: three quarters of what the buffer holds of this
/// size, so that it is more than half full when the bus looks.
const DATAGRAMS: u32 = 5_500;

/// A payload of which three make a datagram that is charged 2,304 bytes.
const PAYLOAD: [u8; 400] = [7; 400];

/// Topics in turn, each event with a key of its own.
const TOPICS: [&str; 3] = ["low", "normal", "high"];

const CONFIGURATION: &str = r#"
[[topic]]
match = "low"
priority = "low"

[[topic]]
match = "high"
priority = "high"
"#;

/// How long one wait for an event lasts before the counts are looked at.
const LOOK: Duration = Duration::from_millis(10);

fn configured(text: &str) -> (Serving, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    std::fs::write(&file, text).unwrap();
    let bus = Serving::start(&["--config", file.to_str().unwrap()], &[]);
    (bus, directory)
}

/// Fills the bus's buffer while it stands still, one event of each topic in a datagram.
fn pile_up(bus: &Serving) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    bus.signal("STOP");
    for number in 0..DATAGRAMS {
        let keyed = |topic: &str| Event {
            key: number.to_be_bytes().to_vec(),
            payload: PAYLOAD.to_vec(),
            ..event(topic)
        };
        let sent = socket.send_to(&datagram(TOPICS.map(keyed).into()), bus.udp());
        sent.unwrap();
    }
    bus.signal("CONT");
}

/// Events received, and how many they stand for, by topic, once each is accounted for.
fn take(subscriber: &mut Subscriber, count: u64) -> BTreeMap<String, (u64, f64)> {
    let mut taken = BTreeMap::new();
    let mut events = 0;
    let start = Instant::now();
    while events + subscriber.stats().dropped_by_bus < count {
        // The next stamp, of an event or of a renewed lease, tells what was let go at the end.
        let Some(event) = subscriber.recv_timeout(LOOK).unwrap() else {
            assert!(start.elapsed() < PATIENCE, "{taken:?} of {count}");
            continue;
        };
        let of_topic: &mut (u64, f64) = taken.entry(event.topic).or_default();
        of_topic.0 += 1;
        of_topic.1 += event.weight;
        events += 1;
    }
    taken
}

#[test]
#[ignore = "needs CAP_NET_ADMIN or a large net.core.rmem_max, for a buffer of 8 MiB"]
fn low_topics_are_thinned_and_all_others_are_whole() {
    let (bus, _directory) = configured(CONFIGURATION);
    let address: Address = bus.address().parse().unwrap();
    let subscriber = Subscriber::builder(&address).pattern(">").name("all");
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    pile_up(&bus);

    let events = 3 * u64::from(DATAGRAMS);
    let taken = take(&mut subscriber, events);
    let page = bus.wait_for_metric("ingress_events_total", events);
    assert_laws(&page);
    assert_eq!(value(&page, "ingress_events_total"), events);
    assert_eq!(sum_of(&page, "ingress_dropped_frames_total", ""), 0);
    let let_go = value(
        &page,
        "egress_dropped_events_total{subscriber=\"all\",reason=\"overload\"}",
    );
    assert!(let_go > 0, "{page}");
    assert_eq!(
        sum_of(&page, "egress_dropped_events_total", "subscriber=\"all\""),
        let_go
    );

    let whole = (DATAGRAMS.into(), f64::from(DATAGRAMS));
    assert_eq!((taken["normal"], taken["high"]), (whole, whole));
    let (low, weighed) = taken["low"];
    assert_eq!(low + let_go, u64::from(DATAGRAMS));
    // Six standard deviations, were all of them thinned out as far as the last ones.
    let bound = 6.0 * (f64::from(DATAGRAMS) * 2.0).sqrt();
    let error = weighed - f64::from(DATAGRAMS);
    assert!(error.abs() < bound, "{low} stand for {weighed}");
    let stats = subscriber.close();
    assert_eq!((stats.dropped_by_bus, stats.lost), (let_go, 0));

    // What was let go is told by topic, and nothing more is once the load is over.
    bus.wait_for("/api/v1/topics", |page| {
        page.contains("\"reason\":\"overload\"") && page.contains("\"topic\":\"low\"")
    });
    bus.wait_for("/metrics", |page| value(page, "overload") == 0);
    let status = bus.get("/api/v1/status");
    assert!(
        status.contains(r#""kept":{"high":1.0,"low":1.0,"normal":1.0}"#),
        "{status}"
    );
}

#[test]
#[ignore = "needs CAP_NET_ADMIN or a large net.core.rmem_max, for a buffer of 8 MiB"]
fn nothing_is_let_go_where_there_is_nothing_to_choose_by() {
    let (bus, _directory) = configured("[[topic]]\nmatch = \"low\"\n");
    let address: Address = bus.address().parse().unwrap();
    let subscriber = Subscriber::builder(&address).pattern(">").name("all");
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    pile_up(&bus);
    let taken = take(&mut subscriber, 3 * u64::from(DATAGRAMS));
    let whole = (DATAGRAMS.into(), f64::from(DATAGRAMS));
    assert!(taken.values().all(|one| *one == whole), "{taken:?}");
    assert_eq!(value(&bus.get("/metrics"), "overload"), 0);
}
