//! A deterministic simulation, in the way of FoundationDB and TigerBeetle: one seed makes a whole
//! history of buses, publishers and subscribers, in which nothing comes from the system.
//!
//! What runs is what ships: the bus's core and ledger, the client's lease and ledger, the wire. The
//! network, the clocks and the operator are the simulation's. After each step of a bus an oracle,
//! which is a model of its own, says whether every law held.
//!
//! ```text
//! HAILMARY_SIM_SEEDS=1000000 cargo test --release --test sim seeds -- --nocapture
//! ```
//!
//! runs the first million, `HAILMARY_SIM_FROM` begins elsewhere. A seed that fails prints the law,
//! the last lines of its history (as many as `HAILMARY_SIM_LINES` says), and the command that repeats
//! it; `cases.txt` keeps it.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose figures are far within their types"
)]

mod bus;
mod clock;
#[path = "../../proto/tests/support/datagrams.rs"]
#[allow(dead_code, reason = "other tests make legal ones, too")]
mod datagrams;
#[path = "../support/evidence.rs"]
mod evidence;
mod faults;
mod law;
mod network;
mod oracle;
mod party;
mod plan;
mod publisher;
mod rng;
mod seen;
mod subscriber;
mod trace;
mod wire;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use trace::Telling;
use world::Summary;

/// Seeds that are run where nobody asks for more: a few seconds' worth, without optimization.
const SEEDS: u64 = 25;

/// So many seeds bring everything about that the simulator can: the rarest kind occurs in several of
/// so many.
const COVERING_SEEDS: u64 = 500;

/// Lines that are told of the end of a history that failed.
const LINES: u64 = 60;

/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

fn variable(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

/// Runs a seed, and once more with its history told where it fails.
fn check(seed: u64) -> Result<Summary, String> {
    let (result, _) = world::run(seed, Telling::Silent);
    result.map_err(|broken| {
        let lines_max = variable("HAILMARY_SIM_LINES", LINES) as usize;
        let (_, told) = world::run(seed, Telling::Told { lines_max });
        format!(
            "seed {seed} broke a law: {}\n{}\n\nits last events:\n{}\n\n\
             HAILMARY_SIM_FROM={seed} HAILMARY_SIM_SEEDS=1 cargo test --test sim seeds -- --nocapture",
            broken.law,
            broken.how,
            told.join("\n"),
        )
    })
}

/// What all threads of a run share.
struct Run {
    next: AtomicU64,
    end: u64,
    done: Mutex<(u64, Summary, Option<String>)>,
}

impl Run {
    fn work(&self) {
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                return;
            }
            let result = check(seed);
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            let (seeds, sum, failure) = &mut *done;
            match result {
                Ok(summary) => {
                    *seeds += 1;
                    sum.add(&summary);
                }
                Err(text) => {
                    failure.get_or_insert(text);
                    self.next.store(self.end, Ordering::Relaxed);
                }
            }
        }
    }

    fn tell(&self, began: Instant) {
        let (seeds, sum, _) = &*self.done.lock().unwrap_or_else(PoisonError::into_inner);
        println!(
            "{seeds} seeds in {:.1} s: {sum}",
            began.elapsed().as_secs_f64()
        );
    }
}

#[test]
fn seeds() {
    let from = variable("HAILMARY_SIM_FROM", 0);
    let run = Run {
        next: AtomicU64::new(from),
        end: from + variable("HAILMARY_SIM_SEEDS", SEEDS),
        done: Mutex::default(),
    };
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| run.work())).collect();
        let mut told = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                run.tell(began);
            }
        }
    });
    run.tell(began);
    let (seeds, sum, failure) = run
        .done
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
    let missing = sum.seen.missing();
    println!("never seen: {missing:?}");
    assert!(
        seeds < COVERING_SEEDS || missing.is_empty(),
        "of all that may happen, these never did in {seeds} seeds: {missing:?}"
    );
    tell(seeds, &sum);
}

fn tell(seeds: u64, sum: &Summary) {
    let hours = sum.simulated / clock::SECOND / 3_600;
    evidence::tell(
        "simulation",
        "Simulated histories, each from one seed, in which networks lose, double, delay, bend and \
         part, hosts stop, restart and move, clocks jump, buffers overflow, operators reload, and \
         strangers say what they like.",
        "Every law holds after every step: each event and copy is counted once and goes nowhere but \
         to who holds a lease, whoever lives gets its events once faults stop, and nothing stays \
         when all have gone.",
        &[
            evidence::figure("histories", seeds, "seeds"),
            evidence::figure("simulated", hours, "h"),
            evidence::figure("steps checked", sum.steps, "steps"),
            evidence::figure("events", sum.events, "events"),
            evidence::figure("copies", sum.copies, "copies"),
            evidence::figure("sent", sum.datagrams, "datagrams"),
            evidence::figure("lost", sum.lost, "datagrams"),
            evidence::figure("doubled", sum.doubled, "datagrams"),
            evidence::figure("bent", sum.bent, "datagrams"),
            evidence::figure("found a full buffer", sum.overflowed, "datagrams"),
            evidence::figure("mishaps to hosts and operators", sum.mishaps, "mishaps"),
            evidence::figure(
                "kinds of fault and outcome that occurred",
                sum.seen.kinds(),
                "kinds",
            ),
            evidence::figure("laws broken", 0, "laws"),
        ],
    );
}

#[test]
fn cases() {
    let lines = include_str!("cases.txt").lines();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let seed = line.split(' ').next().unwrap_or_default();
        let result = check(seed.parse().expect("a seed"));
        assert!(result.is_ok(), "{}", result.err().unwrap_or_default());
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 0..3 {
        let hash = || {
            world::run(seed, Telling::Silent)
                .0
                .map(|summary| (summary.hash, summary.steps))
        };
        let (one, other) = (hash().ok(), hash().ok());
        assert!(one.is_some() && one == other, "{one:?} and {other:?}");
    }
}

/// What a bus may hold more after many have come and gone than after few, in bytes: a table that its
/// random keys fill otherwise, and so is made larger once. It is less than a pointer for each that came.
const STAYS_OF_MANY: u64 = 2 << 10;

/// Laws of each history bound what a bus holds at its end; this one says that it does not depend on
/// how many came.
#[test]
fn who_comes_and_goes_leaves_nothing() {
    for seed in 0..3 {
        let held = |rounds| world::held_after(seed, rounds).map_err(|broken| broken.how);
        let (few, many) = (held(12).unwrap(), held(96).unwrap());
        assert!(many <= few + STAYS_OF_MANY, "{few} bytes, and {many} bytes");
    }
}
