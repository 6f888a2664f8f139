//! What a bus, a network and a machine can do to a client, by the cases that all
//! clients share: `tests/vectors/faults.json`, whose README tells what each step means.
//!
//! Here is how this client is made to live through them, and nothing of what is
//! expected. The other clients' runners do the same. It is a program of one thread,
//! since its cases fork it and close its descriptors. An argument chooses the cases
//! whose names hold it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what helps tests may panic as they do"
)]

mod bus;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod process;
mod program;
mod publisher;
mod session;
mod socket;
mod subscriber;

use std::panic::catch_unwind;
use std::process::ExitCode;

use cases::Case;

fn main() -> ExitCode {
    if !cfg!(target_os = "linux") {
        println!("not run: the counts are those of Linux");
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|text| !text.starts_with('-'));
    let mut has_failed = false;
    for case in cases::load() {
        for over in case.over() {
            let name = format!("{}, over {over}", case.name());
            if filter.as_deref().is_none_or(|part| name.contains(part)) {
                let outcome = catch_unwind(|| run(&case, over)).unwrap_or("FAILED");
                println!("test {name} ... {outcome}");
                has_failed |= outcome == "FAILED";
            }
        }
    }
    ExitCode::from(u8::from(has_failed))
}

fn run(case: &Case, over: &str) -> &'static str {
    match case {
        _ if case.is_not_for_us() => return "ignored, it is not for this client",
        Case::Publisher(case) => publisher::run(case, over),
        Case::Subscriber(case) => subscriber::run(case, over),
        Case::Program(plan) => return program::run(plan),
        Case::Command(_) => return "ignored, the Python client's tests run the commands of both",
    }
    "ok"
}
