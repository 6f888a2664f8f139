//! Events of one topic from one publisher arrive in their order, whichever way they take.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hailmary_client::{Address, Publisher, Subscriber, SubscriberBuilder};

use crate::support::{PATIENCE, Serving, assert_laws, sum, value};

/// Publishers at once, each with a socket of its own.
const PUBLISHERS: usize = 8;

/// Events of each.
const EVENTS: u64 = 3_000;

/// How long a subscriber listens before it looks whether all is over.
const LOOK: Duration = Duration::from_millis(10);

/// Publishes numbers on two topics in turn, so that sets of subscribers interleave.
fn publish_numbers(bus: &Address, publisher: usize) {
    let client = Publisher::connect(bus).unwrap();
    for number in 0..EVENTS {
        let topic = ["a", "b"][usize::from(number % 3 == 0)];
        client.publish(&format!("order.{publisher}.{topic}"), &number.to_string());
    }
}

/// Takes numbers, which must rise in each topic, and says how many came.
fn take_numbers(subscriber: SubscriberBuilder, ready: &AtomicBool, is_over: &AtomicBool) -> u64 {
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    ready.store(true, Ordering::Relaxed);
    let mut newest: HashMap<String, u64> = HashMap::new();
    loop {
        let was_over = is_over.load(Ordering::Relaxed);
        match subscriber.recv_timeout(LOOK).unwrap() {
            Some(event) => {
                let number = str::from_utf8(&event.payload).unwrap().parse().unwrap();
                let before = newest.insert(event.topic.clone(), number);
                assert!(before < Some(number), "{} after {before:?}", event.topic);
            }
            None if was_over => break,
            None => {}
        }
    }
    let stats = subscriber.close();
    assert!(newest.len() <= 2 * PUBLISHERS, "one topic is one");
    stats.received
}

fn order_is_kept(workers: usize) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    std::fs::write(&file, format!("[loop]\nworkers = {workers}\n")).unwrap();
    let unix = format!("unix://{}", directory.path().join("bus.sock").display());
    let bus = Serving::start(
        &["--config", file.to_str().unwrap()],
        &["127.0.0.1:0", &unix],
    );
    let (udp, unix): (Address, Address) = (bus.address().parse().unwrap(), unix.parse().unwrap());
    let subscribers = [
        Subscriber::builder(&udp).pattern("order.>"),
        Subscriber::builder(&udp).pattern("order.*.a"),
        Subscriber::builder(&udp).pattern(">").max_frame_bytes(600),
        Subscriber::builder(&unix).pattern("order.>"),
    ];
    let ready = [const { AtomicBool::new(false) }; 4];
    let is_over = AtomicBool::new(false);
    let received: u64 = std::thread::scope(|threads| {
        let takers: Vec<_> = subscribers
            .into_iter()
            .zip(&ready)
            .map(|(subscriber, ready)| threads.spawn(|| take_numbers(subscriber, ready, &is_over)))
            .collect();
        bus.wait_for("/metrics", |page| value(page, "leases") == 4);
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let bus = [&udp, &unix][usize::from(publisher == 0)];
                threads.spawn(move || publish_numbers(bus, publisher))
            })
            .collect();
        publishers.into_iter().for_each(|it| it.join().unwrap());
        bus.wait_for("/metrics", |page| {
            value(page, "ingress_buffer_used_bytes") == 0
        });
        is_over.store(true, Ordering::Relaxed);
        takers.into_iter().map(|taker| taker.join().unwrap()).sum()
    });
    let page = bus.wait_for("/metrics", |page| {
        sum(page, "egress_events_total") >= received
    });
    assert_laws(&page);
    assert!(received > 0);
    assert_eq!(value(&page, "leases_granted_total"), 4);
    assert_eq!(bus.stop().0, 0);
}

#[test]
fn with_one_worker() {
    order_is_kept(1);
}

#[test]
#[cfg(target_os = "linux")]
fn with_several_workers() {
    order_is_kept(3);
}
