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
//! the end of its history, and the command that repeats it; `cases.txt` keeps it.
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
mod faults;
mod law;
mod network;
mod oracle;
mod party;
mod plan;
mod publisher;
mod rng;
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
        let (_, told) = world::run(seed, Telling::Told);
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
    let (_, _, failure) = run
        .done
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
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
