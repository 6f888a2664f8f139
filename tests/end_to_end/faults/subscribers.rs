//! A subscriber that is gone, or takes nothing: the others beside it lose nothing.

use hailmary_client::Publisher;

use crate::support::evidence::{figure, tell};
use crate::support::{Serving, Subscribing, assert_laws};

use super::scene::{Summary, dropped, dropped_as, sent};

/// What is published in all.
const EVENTS: u64 = 2_000;

/// Events of a burst, each of which has reached the living before the next, so that no buffer is
/// full but the faulty one's.
const BURST: u64 = 50;

/// As above over a Unix socket, which holds ten datagrams by default.
const UNIX_BURST: u64 = 5;

/// Payloads large enough for the events to fill the receive buffer of one that takes none.
const PAYLOAD: [u8; 1_000] = [b'x'; 1_000];

/// What became of the copies for the two subscribers.
struct Outcome {
    living: Summary,
    page: String,
}

/// Sends a signal to one of two subscribers between the first and the second burst.
fn publish_past(signal: &str, listener: &str, burst: u64) -> Outcome {
    let bus = Serving::start(&[], &[listener]);
    let count = EVENTS.to_string();
    let living = Subscribing::start(bus.address(), &["a", "--name", "living", "--count", &count]);
    let faulty = Subscribing::start(bus.address(), &["a", "--name", "faulty"]);
    let publisher = Publisher::connect(&bus.address().parse().unwrap()).unwrap();
    for published in (burst..=EVENTS).step_by(usize::try_from(burst).unwrap()) {
        for _ in 0..burst {
            publisher.publish("a", &PAYLOAD);
        }
        // As many as are taken at once are handed on before the next come.
        bus.wait_for_metric("copies_total", 2 * published);
        for _ in 0..burst {
            living.line();
        }
        if published == burst {
            faulty.signal(signal);
        }
    }
    let living = Summary::read(&living.output().1);
    let page = bus.get("/metrics");
    assert_laws(&page);
    Outcome { living, page }
}

fn tell_of(name: &str, fault: &str, outcome: &Outcome) {
    let Outcome { living, page } = outcome;
    let figures = [
        figure("published", EVENTS, "events"),
        figure(
            "lost by the one beside it",
            EVENTS - living.received,
            "events",
        ),
        figure(
            "counted as dropped at it",
            dropped(page, "faulty"),
            "events",
        ),
    ];
    let promise = "A subscriber beside it loses nothing, and what the kernel refused is counted.";
    tell(name, fault, promise, &figures);
    assert_eq!(
        (living.received, dropped(page, "living")),
        (EVENTS, 0),
        "{page}"
    );
    assert_eq!(
        sent(page, "faulty") + dropped(page, "faulty"),
        EVENTS,
        "{page}"
    );
}

#[test]
fn one_that_was_killed_costs_the_others_nothing() {
    let outcome = publish_past("KILL", "127.0.0.1:0", BURST);
    tell_of("subscriber_killed", "A subscriber was killed.", &outcome);
    let refused = dropped_as(&outcome.page, "faulty", "refused");
    assert!(refused > 0, "{}", outcome.page);
    assert_eq!(
        refused,
        dropped(&outcome.page, "faulty"),
        "for no other reason"
    );
}

#[test]
fn one_that_was_stopped_costs_the_others_nothing() {
    let outcome = publish_past("STOP", "127.0.0.1:0", BURST);
    tell_of(
        "subscriber_stopped",
        "A subscriber takes nothing any more.",
        &outcome,
    );
    // Its full buffer is its host's: over UDP nobody tells the bus.
    assert_eq!(dropped(&outcome.page, "faulty"), 0, "{}", outcome.page);
}

#[test]
fn one_that_was_killed_is_told_at_once_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let listener = format!("unix://{}", directory.path().join("bus.sock").display());
    let outcome = publish_past("KILL", &listener, UNIX_BURST);
    tell_of(
        "subscriber_killed_unix",
        "A subscriber over a Unix socket was killed.",
        &outcome,
    );
    // All but the first burst, and for one reason.
    let refused = dropped_as(&outcome.page, "faulty", "refused");
    assert_eq!(refused, EVENTS - UNIX_BURST, "{}", outcome.page);
}

#[test]
fn one_that_was_stopped_costs_the_others_nothing_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let listener = format!("unix://{}", directory.path().join("bus.sock").display());
    let outcome = publish_past("STOP", &listener, UNIX_BURST);
    tell_of(
        "subscriber_stopped_unix",
        "A subscriber over a Unix socket takes nothing any more.",
        &outcome,
    );
    let blocked = dropped_as(&outcome.page, "faulty", "would_block");
    assert!(blocked > 0, "{}", outcome.page);
    assert_eq!(
        blocked,
        dropped(&outcome.page, "faulty"),
        "for no other reason"
    );
}
