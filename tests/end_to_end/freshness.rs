//! Freshness: events that are older than their topic permits are dropped and counted.

use std::time::{Duration, SystemTime};

use hailmary_client::{Address, Event, Publisher, Subscriber};

use super::publish;
use super::support::{Configured, PATIENCE, Subscribing, assert_laws, value};

/// Far longer than any test takes, and far shorter than the ages below.
const MAX_AGE: Duration = Duration::from_secs(3_600);

#[test]
fn only_what_tells_that_it_is_too_old_is_stale() {
    let bus = Configured::start(&format!(
        "[[topic]]\nmatch = \"feed.>\"\nmax_age_ms = {}\n",
        MAX_AGE.as_millis()
    ));
    let address: Address = bus.address().parse().unwrap();
    let builder = Subscriber::builder(&address).pattern(">");
    let mut subscriber = builder.connect(PATIENCE).unwrap();
    let publisher = Publisher::connect(&address).unwrap();
    let now = SystemTime::now();
    for (payload, topic, time) in [
        (
            "an hour and a minute",
            "feed.a",
            now - MAX_AGE - Duration::from_secs(60),
        ),
        ("a minute", "feed.a", now - Duration::from_secs(60)),
        (
            "ages",
            "feed.b.c",
            SystemTime::UNIX_EPOCH + Duration::from_nanos(1),
        ),
        ("to come", "feed.a", now + 2 * MAX_AGE),
        ("untold", "feed.a", SystemTime::UNIX_EPOCH),
        (
            "elsewhere",
            "other",
            SystemTime::UNIX_EPOCH + Duration::from_nanos(1),
        ),
    ] {
        publisher.publish_event(&Event::new(topic, payload).time(time));
    }
    let last = Event::new("feed.a", "last").time_unix_nano(u64::MAX);
    publisher.publish_event(&last);
    for payload in ["a minute", "to come", "untold", "elsewhere", "last"] {
        let event = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(String::from_utf8(event.payload).unwrap(), payload);
    }
    let page = bus.wait_for_metric("ingress_events_total", 7);
    assert_laws(&page);
    assert_eq!(
        value(&page, "ingress_dropped_events_total{reason=\"stale\"}"),
        2
    );
    assert_eq!(value(&page, "matched_events_total"), 5);
    let stats = subscriber.close();
    assert_eq!(
        (stats.received, stats.dropped_by_bus),
        (5, 0),
        "they were for nobody"
    );
}

#[test]
fn the_command_tells_the_time_that_it_is_given() {
    let bus = Configured::start("[[topic]]\nmatch = \"a\"\nmax_age_ms = 86400000\n");
    let arguments = ["a", "--format", "json", "--count", "3"];
    let subscriber = Subscribing::start(bus.address(), &arguments);
    for time in ["1", "0", "18446744073709551615"] {
        publish(bus.address(), &["a", time, "--time-unix-nano", time]);
    }
    publish(bus.address(), &["a", "now"]);
    let (printed, _) = subscriber.output();
    for (line, time) in printed.lines().zip(["0", "18446744073709551615", "now"]) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["payload"], time);
        if time != "now" {
            assert_eq!(line["time_unix_nano"].to_string(), time);
        }
    }
    let page = bus.wait_for_metric("ingress_events_total", 4);
    assert_eq!(
        value(&page, "ingress_dropped_events_total{reason=\"stale\"}"),
        1
    );
}
