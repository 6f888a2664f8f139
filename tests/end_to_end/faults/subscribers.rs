//! A subscriber that is gone, or takes nothing: the others beside it lose nothing.

use std::fs::DirEntry;

use hailmary_client::Publisher;

use crate::support::evidence::{figure, tell};
use crate::support::{Serving, Subscribing, assert_laws};

use super::scene::{Summary, dropped, dropped_as, sent};

/// What is published.
#[derive(Clone, Copy)]
struct Load {
    /// In all.
    events: u64,
    /// Events of a burst, each of which has reached the living before the next, so that no buffer
    /// is full but the faulty one's.
    burst: u64,
}

/// More than the largest receive buffer that a subscriber gets.
const UDP: Load = Load {
    events: 14_000,
    burst: 100,
};

/// A Unix socket holds ten datagrams by default.
const UNIX: Load = Load {
    events: 2_000,
    burst: 5,
};

/// Payloads large enough for the events to fill the receive buffer of one that takes none.
const PAYLOAD: [u8; 1_000] = [b'x'; 1_000];

/// What became of the copies for the two subscribers.
struct Outcome {
    published: u64,
    living: Summary,
    page: String,
    /// Datagrams over UDP that found no room at the faulty one.
    overflowed: u64,
}

/// Datagrams that found no room in a receive buffer of this process (proc_pid_net(5)).
fn overflowed(process: u32) -> u64 {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd"));
    let link = |entry: std::io::Result<DirEntry>| std::fs::read_link(entry.unwrap().path()).ok();
    let links: Vec<_> = descriptors.into_iter().flatten().filter_map(link).collect();
    let sockets = std::fs::read_to_string("/proc/net/udp").unwrap();
    let of = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let inode = format!("socket:[{}]", words[9]);
        let is_its = links.iter().any(|link| link.as_os_str() == inode.as_str());
        is_its.then(|| words[12].parse::<u64>().unwrap())
    };
    sockets.lines().skip(1).filter_map(of).sum()
}

/// Sends a signal to one of two subscribers between the first and the second burst.
fn publish_past(signal: &str, listener: &str, load: Load) -> Outcome {
    let Load { events, burst } = load;
    let bus = Serving::start(&[], &[listener]);
    let count = events.to_string();
    let living = Subscribing::start(bus.address(), &["a", "--name", "living", "--count", &count]);
    let faulty = Subscribing::start(bus.address(), &["a", "--name", "faulty"]);
    let publisher = Publisher::connect(&bus.address().parse().unwrap()).unwrap();
    for published in (burst..=events).step_by(usize::try_from(burst).unwrap()) {
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
    Outcome {
        published: events,
        living,
        page,
        overflowed: overflowed(faulty.id()),
    }
}

fn tell_of(name: &str, fault: &str, outcome: &Outcome) {
    let Outcome {
        published,
        living,
        page,
        overflowed,
    } = outcome;
    let figures = [
        figure("published", *published, "events"),
        figure(
            "lost by the one beside it",
            published - living.received,
            "events",
        ),
        figure(
            "counted as dropped at it",
            dropped(page, "faulty"),
            "events",
        ),
        figure("overflowed at its host, over UDP", *overflowed, "datagrams"),
    ];
    let promise = "A subscriber beside it loses nothing, and what the kernel refused is counted.";
    assert_eq!(
        (living.received, dropped(page, "living")),
        (*published, 0),
        "{page}"
    );
    assert_eq!(
        sent(page, "faulty") + dropped(page, "faulty"),
        *published,
        "{page}"
    );
    tell(name, fault, promise, &figures);
}

#[test]
fn one_that_was_killed_costs_the_others_nothing() {
    let outcome = publish_past("KILL", "127.0.0.1:0", UDP);
    let refused = dropped_as(&outcome.page, "faulty", "refused");
    assert!(refused > 0, "{}", outcome.page);
    assert_eq!(
        refused,
        dropped(&outcome.page, "faulty"),
        "for no other reason"
    );
    tell_of("subscriber_killed", "A subscriber was killed.", &outcome);
}

#[test]
fn one_that_was_stopped_costs_the_others_nothing() {
    let outcome = publish_past("STOP", "127.0.0.1:0", UDP);
    // Its full buffer is its host's: over UDP nobody tells the bus.
    assert!(outcome.overflowed > 0, "its buffer was to be full");
    assert_eq!(dropped(&outcome.page, "faulty"), 0, "{}", outcome.page);
    tell_of(
        "subscriber_stopped",
        "A subscriber takes nothing any more, and its receive buffer overflows.",
        &outcome,
    );
}

#[test]
fn one_that_was_killed_is_told_at_once_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let listener = format!("unix://{}", directory.path().join("bus.sock").display());
    let outcome = publish_past("KILL", &listener, UNIX);
    // All but the first burst, and for one reason.
    let refused = dropped_as(&outcome.page, "faulty", "refused");
    assert_eq!(refused, UNIX.events - UNIX.burst, "{}", outcome.page);
    tell_of(
        "subscriber_killed_unix",
        "A subscriber over a Unix socket was killed.",
        &outcome,
    );
}

#[test]
fn one_that_was_stopped_costs_the_others_nothing_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let listener = format!("unix://{}", directory.path().join("bus.sock").display());
    let outcome = publish_past("STOP", &listener, UNIX);
    let blocked = dropped_as(&outcome.page, "faulty", "would_block");
    assert!(blocked > 0, "{}", outcome.page);
    assert_eq!(
        blocked,
        dropped(&outcome.page, "faulty"),
        "for no other reason"
    );
    tell_of(
        "subscriber_stopped_unix",
        "A subscriber over a Unix socket takes nothing any more.",
        &outcome,
    );
}
