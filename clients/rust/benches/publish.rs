//! Instructions of publishing in user space, the same in every run; what the kernel
//! does behind the system call is not among them.
//! `cargo bench -p hailmary-client --bench publish`, with valgrind and `gungraun-runner`.

#![expect(clippy::expect_used, reason = "a bench that cannot go on has failed")]
#![expect(missing_docs, reason = "the macros make items of their own")]

use std::hint::black_box;
use std::net::UdpSocket;

use gungraun::{library_benchmark, library_benchmark_group, main};
use hailmary_client::{Batch, Event, Publisher};

const PAYLOAD: [u8; 128] = [7; 128];
const EVENTS: usize = 100;

/// A publisher that has published, so that its buffers are as large as they get, and
/// a socket that its datagrams go to.
fn publisher() -> (Publisher, UdpSocket) {
    let bus = UdpSocket::bind("127.0.0.1:0").expect("there is a port");
    let address = bus.local_addr().expect("it has one").to_string();
    let address = address.parse().expect("it is an address");
    let publisher = Publisher::connect(&address).expect("there is a socket");
    publisher.publish("search.index.photo", &PAYLOAD);
    (publisher, bus)
}

fn batch() -> (Batch, Publisher, UdpSocket) {
    let (publisher, bus) = publisher();
    let mut batch = publisher.batch();
    let event = Event::new("search.index.photo", &PAYLOAD);
    (0..EVENTS).for_each(|_| batch.push(&event));
    batch.flush();
    (batch, publisher, bus)
}

#[library_benchmark(setup = publisher)]
fn publish_100_events((publisher, bus): (Publisher, UdpSocket)) -> (Publisher, UdpSocket) {
    for _ in 0..EVENTS {
        publisher.publish(black_box("search.index.photo"), black_box(&PAYLOAD));
    }
    (publisher, bus)
}

#[library_benchmark(setup = batch)]
fn push_100_events(
    (mut batch, publisher, bus): (Batch, Publisher, UdpSocket),
) -> (Batch, Publisher, UdpSocket) {
    let event = Event::new("search.index.photo", &PAYLOAD);
    for _ in 0..EVENTS {
        batch.push(black_box(&event));
    }
    batch.flush();
    (batch, publisher, bus)
}

library_benchmark_group!(
    name = publishing,
    benchmarks = [publish_100_events, push_100_events]
);
main!(library_benchmark_groups = publishing);
