//! Instructions of the core, which are the same in every run: decoding, and whole turns of one
//! receive batch. `cargo bench --bench instructions`, with valgrind and `gungraun-runner`.

#![expect(clippy::expect_used, reason = "a bench that cannot go on has failed")]
#![expect(missing_docs, reason = "the macros make items of their own")]

mod load;

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use hailmary_proto::decode::Decoder;
use load::{Feature, Interest, Load, Shape, datagrams, many_topics};

fn one_datagram(events_per_datagram: usize) -> (Decoder, Vec<u8>) {
    let shape = Shape {
        events_per_datagram,
        ..Shape::default()
    };
    let datagram = datagrams(1, shape).remove(0);
    let mut decoder = Decoder::new();
    decoder.decode(&datagram).expect("this is a frame");
    (decoder, datagram)
}

fn load(fan_out: usize, topics: usize, events_per_datagram: usize) -> Load {
    Load::new(Shape {
        subscribers: fan_out,
        topics,
        events_per_datagram,
        ..Shape::default()
    })
}

#[library_benchmark(setup = one_datagram)]
#[bench::of_1_event(1)]
#[bench::of_9_events(9)]
#[bench::of_100_events(100)]
fn decode((mut decoder, datagram): (Decoder, Vec<u8>)) -> (usize, Decoder, Vec<u8>) {
    let frame = decoder
        .decode(black_box(&datagram))
        .expect("this is a frame");
    let events = frame.events().len();
    (events, decoder, datagram)
}

#[library_benchmark(setup = load)]
#[bench::routed_1_topic(0, 1, 100)]
#[bench::routed_10_000_topics(0, 10_000, 100)]
#[bench::fan_out_1_of_1_event(1, 1, 1)]
#[bench::fan_out_4_of_1_event(4, 1, 1)]
#[bench::fan_out_16_of_1_event(16, 1, 1)]
#[bench::fan_out_4_of_9_events(4, 1, 9)]
#[bench::fan_out_4_of_100_events(4, 1, 100)]
#[bench::fan_out_4_of_100_events_and_1_000_topics(4, 1_000, 100)]
fn turn(mut load: Load) -> (usize, Load) {
    (black_box(load.turn()), load)
}

/// Four subscribers, and one event with a key in each datagram.
fn feature(feature: Feature) -> Load {
    Load::new(Shape {
        subscribers: 4,
        feature,
        ..Shape::default()
    })
}

const KEYED: Feature = Feature {
    terms: "",
    policy: "",
    has_keys: true,
    level: 0,
};

#[library_benchmark(setup = feature)]
#[bench::plain(KEYED)]
#[bench::a_group_by_key(Feature { terms: "group = 'g'", ..KEYED })]
#[bench::a_group_without_keys(Feature { terms: "group = 'g'", has_keys: false, ..KEYED })]
#[bench::all_in_a_sample(Feature { terms: "sample = 0.999999", ..KEYED })]
#[bench::half_in_a_sample(Feature { terms: "sample = 0.5", ..KEYED })]
#[bench::under_a_subscribers_rate(Feature { terms: "events_per_second = 1000000000", ..KEYED })]
#[bench::over_a_subscribers_rate(Feature { terms: "events_per_second = 1", ..KEYED })]
#[bench::under_a_topics_rate(Feature { policy: "events_per_second = 1000000000", ..KEYED })]
#[bench::over_a_topics_rate(Feature { policy: "events_per_second = 1", ..KEYED })]
#[bench::fresh(Feature { policy: "max_age_ms = 1000", ..KEYED })]
#[bench::of_low_priority(Feature { policy: "priority = 'low'", ..KEYED })]
#[bench::half_let_go(Feature { policy: "priority = 'low'", level: 5, ..KEYED })]
#[bench::nearly_all_let_go(Feature { policy: "priority = 'low'", level: 32, ..KEYED })]
fn features(mut load: Load) -> (usize, Load) {
    (black_box(load.turn()), load)
}

#[library_benchmark(setup = many_topics)]
#[bench::of_10_000_topics_to_1_subscriber(1, Interest::All)]
#[bench::of_10_000_topics_to_1_000_subscribers(1_000, Interest::OwnTen)]
fn route(mut load: Load) -> (u64, Load) {
    (black_box(load.route()), load)
}

library_benchmark_group!(name = core, benchmarks = [decode, turn, features, route]);

main!(library_benchmark_groups = core);
