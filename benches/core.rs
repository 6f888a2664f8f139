//! Times of the core: decoding, and whole turns of one receive batch. `cargo bench --bench core`
//!
//! A turn with no subscriber decodes and routes. With subscribers it also builds frames and
//! stamps a copy for each. Nothing is sent.

#![expect(clippy::expect_used, reason = "a bench that cannot go on has failed")]

mod load;

use std::cell::RefCell;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use hailmary::bus::limits::CACHED_TOPICS_MAX;
use hailmary_proto::decode::Decoder;
use load::{BATCH, Interest, Load, Shape, datagrams, many_topics};

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 9, 100])]
fn decode(bencher: Bencher<'_, '_>, events_per_datagram: usize) {
    let shape = Shape {
        events_per_datagram,
        ..Shape::default()
    };
    let datagram = datagrams(1, shape).remove(0);
    let mut decoder = Decoder::new();
    bencher
        .counter(ItemsCount::new(events_per_datagram))
        .bench_local(|| {
            let frame = decoder
                .decode(black_box(&datagram))
                .expect("this is a frame");
            frame.events().len()
        });
}

fn turn(bencher: Bencher<'_, '_>, shape: Shape) {
    let mut load = Load::new(shape);
    bencher
        .counter(ItemsCount::new(BATCH * shape.events_per_datagram))
        .bench_local(|| black_box(load.turn()));
}

#[divan::bench(args = [1, 1_000, 10_000])]
fn route(bencher: Bencher<'_, '_>, topics: usize) {
    let shape = Shape {
        topics,
        events_per_datagram: 100,
        ..Shape::default()
    };
    turn(bencher, shape);
}

#[divan::bench(args = [(1, Interest::All), (1_000, Interest::OwnTen)])]
fn route_of_10_000_topics(bencher: Bencher<'_, '_>, (subscribers, interest): (usize, Interest)) {
    let mut load = many_topics(subscribers, interest);
    let events = load.route();
    bencher
        .counter(ItemsCount::new(events))
        .bench_local(|| black_box(load.route()));
}

/// A core that has as many topics cached as it may have, each with an event in every batch.
fn all_topics() -> Load {
    Load::new(Shape {
        topics: CACHED_TOPICS_MAX,
        events_per_datagram: CACHED_TOPICS_MAX / BATCH,
        ..Shape::default()
    })
}

/// What telling the topics seen costs once a second, at most.
#[divan::bench]
fn topics_seen_of_16_384(bencher: Bencher<'_, '_>) {
    let load = RefCell::new(all_topics());
    bencher
        .with_inputs(|| load.borrow_mut().route())
        .bench_local_values(|_| load.borrow_mut().tell_topics());
}

/// What it costs to find that none of them had an event.
#[divan::bench]
fn topics_seen_of_none_of_16_384(bencher: Bencher<'_, '_>) {
    let mut load = all_topics();
    load.tell_topics();
    bencher.bench_local(|| load.tell_topics());
}

#[divan::bench(args = [1, 4, 16], consts = [1, 9, 100])]
fn fan_out<const EVENTS_PER_DATAGRAM: usize>(bencher: Bencher<'_, '_>, fan_out: usize) {
    let shape = Shape {
        subscribers: fan_out,
        events_per_datagram: EVENTS_PER_DATAGRAM,
        ..Shape::default()
    };
    turn(bencher, shape);
}
