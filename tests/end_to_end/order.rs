//! Events of one topic from one publisher arrive in their order, whichever way they take.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hailmary_client::{Address, Publisher, Subscriber, SubscriberBuilder};

use crate::support::{EndOnDrop, PATIENCE, Serving, assert_laws, sum, value};

/// Publishers at once, each with a socket of its own.
const PUBLISHERS: usize = 8;

/// Events of each.
const EVENTS: u64 = 3_000;

/// How long a subscriber listens before it looks whether all is over.
const LOOK: Duration = Duration::from_millis(10);

/// Publishes numbers on two topics in turn, so that sets of subscribers interleave, each in a
/// datagram of its own, and says how many went to the bus.
fn publish_numbers(bus: &Address, publisher: usize) -> u64 {
    let client = Publisher::connect(bus).unwrap();
    for number in 0..EVENTS {
        let topic = ["a", "b"][usize::from(number % 3 == 0)];
        client.publish(&format!("order.{publisher}.{topic}"), &number.to_string());
    }
    client.stats().sent
}

/// Takes numbers, which must rise in each topic, and says how many came.
fn take_numbers(subscriber: SubscriberBuilder, is_over: &AtomicBool) -> u64 {
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
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
    subscriber.close().received
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
    let is_over = AtomicBool::new(false);
    let received: Vec<u64> = std::thread::scope(|threads| {
        let ends = EndOnDrop(&is_over);
        let takers: Vec<_> = subscribers
            .into_iter()
            .map(|subscriber| threads.spawn(|| take_numbers(subscriber, &is_over)))
            .collect();
        bus.wait_for("/metrics", |page| value(page, "leases") == 4);
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let bus = [&udp, &unix][usize::from(publisher == 0)];
                threads.spawn(move || publish_numbers(bus, publisher))
            })
            .collect();
        let sent: u64 = publishers.into_iter().map(|it| it.join().unwrap()).sum();
        bus.wait_for("/metrics", |page| {
            let lost = "ingress_dropped_frames_total{reason=\"kernel_buffer\"}";
            sum(page, "ingress_events_total") + value(page, lost) == sent
        });
        drop(ends);
        takers.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(received.iter().all(|&events| events > 0), "{received:?}");
    let page = bus.wait_for("/metrics", |page| {
        sum(page, "egress_events_total") >= received.iter().sum()
    });
    assert_laws(&page);
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
