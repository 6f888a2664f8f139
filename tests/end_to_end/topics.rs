//! What the bus says of the topics it has seen.

use std::fs;
use std::net::UdpSocket;

use hailmary_client::{Address, Event, Publisher, Subscriber};
use serde_json::{Value, json};

use crate::support::{PATIENCE, Serving, datagram, event, value, wait_until};

/// How many are in a list where the request does not say.
const LISTED: usize = 50;

fn configured(text: &str) -> Serving {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    fs::write(&file, text).unwrap();
    Serving::start(&["--config", file.to_str().unwrap()], &[])
}

fn topics(bus: &Serving, query: &str) -> Value {
    let answer = bus.get(&format!("/api/v1/topics{query}"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

/// A list without its rates.
fn counts(list: &Value) -> Vec<(&str, u64)> {
    let list = list.as_array().unwrap();
    list.iter()
        .map(|one| {
            (
                one["topic"].as_str().unwrap(),
                one["events"].as_u64().unwrap(),
            )
        })
        .collect()
}

/// Publishes many events and waits till the bus has them all.
fn publish(publisher: &Publisher, topic: &str, events: u64) {
    let before = publisher.ping(PATIENCE).unwrap().received;
    (0..events).for_each(|_| publisher.publish(topic, b"x"));
    wait_until("the events' arrival", || {
        let pong = publisher.ping(PATIENCE).unwrap();
        (pong.received == before + events).then_some(())
    });
}

#[test]
fn each_list_has_its_topics() {
    let bus = configured(
        "[access]\npublish = [{ from = [\"127.0.0.0/8\"], topics = [\">\"] }, \
         { from = [\"127.0.0.0/8\"], topics = [\"secret.>\"], deny = true }]\n",
    );
    let address: Address = bus.address().parse().unwrap();
    let builder = Subscriber::builder(&address).pattern("wanted.>");
    let _subscriber = builder.connect(PATIENCE).unwrap();
    assert_eq!(topics(&bus, "")["busiest"], json!([]), "nothing came yet");
    let publisher = Publisher::connect(&address).unwrap();
    for (topic, events) in [
        ("wanted.a", 30),
        ("wanted.b", 7),
        ("unwanted", 20),
        ("secret.a", 9),
    ] {
        publish(&publisher, topic, events);
    }
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (topic, events) in [("_hailmary.a", 4), ("no topic", 3)] {
        let events = (0..events).map(|_| event(topic)).collect();
        stranger.send_to(&datagram(events), bus.udp()).unwrap();
    }
    // What came in a second that had been told of already is told of at its end, though nothing
    // comes any more.
    let all = wait_until("all events", || {
        let all = topics(&bus, "");
        let told = counts(&all["busiest"]).len() + counts(&all["dropped"]).len();
        (told == 5 && counts(&all["dropped"])[0].1 == 9).then_some(all)
    });
    assert_eq!(
        counts(&all["busiest"]),
        [("wanted.a", 30), ("unwanted", 20), ("wanted.b", 7)]
    );
    assert_eq!(counts(&all["unmatched"]), [("unwanted", 20)]);
    assert_eq!(
        counts(&all["dropped"]),
        [("secret.a", 9), ("_hailmary.a", 4)]
    );
    for one in all["dropped"].as_array().unwrap() {
        assert_eq!(one["reason"], "not_allowed");
    }
    assert_eq!(
        all["error_events"],
        json!({"busiest": 0, "unmatched": 0, "dropped": 0})
    );
    let one = topics(&bus, "?limit=1");
    assert_eq!(counts(&one["busiest"]), [("wanted.a", 30)]);
    assert_eq!(counts(&one["dropped"]), [("secret.a", 9)]);

    wait_until("a rate of what still comes", || {
        publisher.publish("wanted.a", b"x");
        let rate = topics(&bus, "?limit=1")["busiest"][0]["events_per_second"].as_f64();
        (rate.unwrap() > 0.0).then_some(())
    });
    let page = bus.get("/metrics");
    assert_eq!(
        value(&page, "ingress_dropped_events_total{reason=\"bad_topic\"}"),
        3
    );
    for topic in ["wanted.a", "secret.a", "_hailmary.a"] {
        assert!(!page.contains(topic), "{topic} in\n{page}");
    }
}

#[test]
fn a_limit_that_is_none_is_refused() {
    let bus = Serving::start(&[], &[]);
    for limit in ["0", "-1", "x", "", "1025", "18446744073709551616", "1%20"] {
        let answer = bus.get(&format!("/api/v1/topics?limit={limit}"));
        assert!(answer.starts_with("HTTP/1.1 400"), "{limit}: {answer}");
        assert!(
            answer.ends_with("limit is to be a whole number from 1 to 1024\n"),
            "{limit}: {answer}"
        );
    }
}

#[test]
fn a_flood_of_topics_hides_no_heavy_one() {
    /// Datagrams, so many of which fit the receive buffer at once.
    const DATAGRAMS: u64 = 1_000;
    const AT_ONCE: u64 = 10;
    /// Topics in each, no two of which are equal.
    const FLOOD: u64 = 50;
    /// Events in each of the one that is.
    const HEAVY: u64 = 5;
    let bus = Serving::start(&[], &[]);
    let publisher = Publisher::connect(&bus.address().parse().unwrap()).unwrap();
    let mut batch = publisher.batch();
    let long = "x".repeat(200);
    for number in 0..DATAGRAMS {
        for other in 0..FLOOD {
            batch.push(&Event::new(&format!("flood.{number}.{other}.{long}"), b""));
        }
        (0..HEAVY).for_each(|_| batch.push(&Event::new("heavy", b"")));
        batch.flush();
        if number % AT_ONCE == 0 {
            publisher.ping(PATIENCE).unwrap();
        }
    }
    let pong = publisher.ping(PATIENCE).unwrap();
    assert_eq!((pong.received, pong.lost), (DATAGRAMS * (FLOOD + HEAVY), 0));
    let truth = DATAGRAMS * HEAVY;
    let is_true = |all: &Value, list: &str| {
        let (topic, events) = counts(&all[list])[0];
        let error = all["error_events"][list].as_u64().unwrap();
        assert!(
            events <= truth && error < truth,
            "{list}: {events} of {truth}"
        );
        topic == "heavy" && truth <= events + error
    };
    let all = wait_until("all heavy events", || {
        let all = topics(&bus, "");
        let is_told = !counts(&all["busiest"]).is_empty() && is_true(&all, "busiest");
        is_told.then_some(all)
    });
    assert!(is_true(&all, "unmatched"));
    // Fewer where the flood's own have just been forgotten: each had one event.
    assert!(counts(&all["busiest"]).len() <= LISTED);
    let most = topics(&bus, "?limit=1024");
    assert!(counts(&most["busiest"]).len() <= 1024);
    assert!(!bus.get("/metrics").contains("flood"));
}

#[test]
fn several_workers_give_one_answer() {
    const PUBLISHERS: u64 = 32;
    const EVENTS: u64 = 20;
    let bus = configured("[loop]\nworkers = 2\n");
    let address: Address = bus.address().parse().unwrap();
    for number in 0..PUBLISHERS {
        // Each from a port of its own, so that they come to both.
        let publisher = Publisher::connect(&address).unwrap();
        publish(&publisher, "all", EVENTS);
        publish(&publisher, &format!("own.{number}"), 1);
    }
    let all = wait_until("all events", || {
        let all = topics(&bus, "?limit=100");
        let told: u64 = counts(&all["busiest"]).iter().map(|(_, n)| n).sum();
        (told == PUBLISHERS * (EVENTS + 1)).then_some(all)
    });
    assert_eq!(counts(&all["busiest"])[0], ("all", PUBLISHERS * EVENTS));
    assert_eq!(counts(&all["unmatched"]).len() as u64, PUBLISHERS + 1);
    #[cfg(target_os = "linux")]
    assert!(
        bus.threads("worker-").iter().all(|sleeps| *sleeps > 1),
        "both had work"
    );
}
