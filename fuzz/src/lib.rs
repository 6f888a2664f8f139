//! Hostile input for every parser and state machine of Hail Mary.
//!
//! Each module is a target: its `run` takes any bytes, drives the code under test by them and
//! panics where a promise is broken. A few are read as they are; most are read as a [`tape`] of
//! decisions, so that a change of one byte changes one step of what goes on. `fuzz_targets/` has
//! libFuzzer call them, `tests/replay.rs` calls them with all inputs that are kept.
//!
//! Memory is counted by a global allocator, so that what is promised of it is asserted as well.

pub mod admin;
pub mod config;
pub mod core;
pub mod flow;
pub mod frame;
pub mod ping;
pub mod routes;
pub mod subscription;
pub mod topics;

mod naive;
mod tape;

#[path = "../../proto/tests/support/mod.rs"]
mod wire;

/// A target's name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 9] = [
    ("admin", admin::run),
    ("config", config::run),
    ("core", core::run),
    ("flow", flow::run),
    ("frame", frame::run),
    ("ping", ping::run),
    ("routes", routes::run),
    ("subscription", subscription::run),
    ("topics", topics::run),
];

/// Does a target's work, and panics where it held more memory at once than it may.
fn within<T>(bytes_max: u64, work: impl FnOnce() -> T) -> T {
    let mut result = None;
    let counted = allocation_counter::measure(|| result = Some(work()));
    assert!(
        counted.bytes_max <= bytes_max,
        "held {} bytes at once, of {bytes_max}",
        counted.bytes_max
    );
    result.expect("the work was done")
}
