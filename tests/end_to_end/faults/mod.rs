//! The catalogue of faults: each test brings one about, and asserts what is promised under it.
//!
//! What it measured goes to the table of SECURITY.md. With `HAILMARY_FAULTS_LONG` set, tests take
//! their full numbers, which is minutes; else as many as a run of the whole suite has time for.

mod bursts;
mod clocks;
mod descriptors;
mod links;
mod logs;
mod memory;
mod neighbours;
mod reloads;
mod restarts;
mod scene;
mod sizes;
mod start;
mod starved;
mod strangers;
mod subscribers;
mod takeover;
mod topics;
mod ways;

/// The full number where there is time for it, else a part.
fn long_or<T>(full: T, part: T) -> T {
    match std::env::var_os("HAILMARY_FAULTS_LONG") {
        Some(_) => full,
        None => part,
    }
}
