//! A subscriber that is gone, or takes nothing: the others beside it lose nothing.

use hailmary_client::Publisher;

use crate::support::evidence::{figure, tell};
use crate::support::{Serving, Subscribing, assert_laws, sum, sum_of};

/// Bursts, each through the bus before the next, so that no buffer is full but the faulty one's.
const ROUNDS: u64 = 40;

/// Events of a burst.
const ROUND: u64 = 50;

/// What is published in all.
const EVENTS: u64 = ROUNDS * ROUND;

/// Payloads large enough for the events to fill the receive buffer of one that takes none.
const PAYLOAD: [u8; 1_000] = [b'x'; 1_000];

/// What became of the copies for the two subscribers.
struct Outcome {
    living_received: u64,
    faulty_dropped: u64,
    page: String,
}

/// Sends a signal to one of two subscribers between the first and the second burst.
fn publish_past(signal: &str) -> Outcome {
    let bus = Serving::start(&[], &[]);
    let count = EVENTS.to_string();
    let living = Subscribing::start(bus.address(), &["a", "--name", "living", "--count", &count]);
    let faulty = Subscribing::start(bus.address(), &["a", "--name", "faulty"]);
    let publisher = Publisher::connect(&bus.address().parse().unwrap()).unwrap();
    for round in 1..=ROUNDS {
        for _ in 0..ROUND {
            publisher.publish("a", &PAYLOAD);
        }
        // As many as are taken at once are handed on before the next come.
        bus.wait_for_metric("copies_total", 2 * round * ROUND);
        for _ in 0..ROUND {
            living.line();
        }
        if round == 1 {
            faulty.signal(signal);
        }
    }
    let (_, last) = living.output();
    let page = bus.wait_for("/metrics", |page| {
        sum(page, "copies_total")
            == sum(page, "egress_events_total") + sum(page, "egress_dropped_events_total")
    });
    assert_laws(&page);
    let received = last.split_whitespace().nth(1).unwrap();
    Outcome {
        living_received: received.trim_end_matches(',').parse().unwrap(),
        faulty_dropped: sum_of(
            &page,
            "egress_dropped_events_total",
            "subscriber=\"faulty\"",
        ),
        page,
    }
}

fn tell_of(name: &str, fault: &str, outcome: &Outcome) {
    let lost = EVENTS - outcome.living_received;
    let figures = [
        figure("published", EVENTS, "events"),
        figure("lost by the one beside it", lost, "events"),
        figure("counted as dropped at it", outcome.faulty_dropped, "events"),
    ];
    let promise = "A subscriber beside it loses nothing, and what the kernel refused is counted.";
    tell(name, fault, promise, &figures);
    assert_eq!(lost, 0, "{}", outcome.page);
    let of_living = sum_of(&outcome.page, "egress_dropped_events_total", "living");
    assert_eq!(of_living, 0, "{}", outcome.page);
}

#[test]
fn one_that_was_killed_costs_the_others_nothing() {
    let outcome = publish_past("KILL");
    tell_of("subscriber_killed", "A subscriber was killed.", &outcome);
    assert!(outcome.faulty_dropped > 0, "{}", outcome.page);
}

#[test]
fn one_that_was_stopped_costs_the_others_nothing() {
    let outcome = publish_past("STOP");
    tell_of(
        "subscriber_stopped",
        "A subscriber takes nothing any more.",
        &outcome,
    );
    // Its full buffer is its host's: over UDP nobody tells the bus.
    assert_eq!(outcome.faulty_dropped, 0, "{}", outcome.page);
}
