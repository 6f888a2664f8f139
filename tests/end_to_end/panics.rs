//! What a thread that panics leaves behind: one line of the log, wherever it was.
//!
//! No datagram makes a bus panic, so a test does: in a process of its own, with the log of a bus.

use std::process::Command;
use std::thread;

use hailmary::logging::{Finish, Format, start, write};
use tracing::{Level, info};

/// Set for a test inside of its own process.
const INSIDE: &str = "HAILMARY_TEST_PANICS";

/// What a test's own process said, and whether it ended well, if this is not it.
fn run_alone(test: &str) -> Option<(String, bool)> {
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    Some((said, output.status.success()))
}

/// Asserts that a thread said so once, after the line that was logged before.
fn assert_told(said: &str, thread: &str) {
    let parts = said.split_once(&format!("thread '{thread}' panicked at "));
    let (before, after) = parts.unwrap_or_else(|| panic!("{said}"));
    assert!(before.contains("before it"), "{said}");
    assert!(after.contains("\non purpose\n"), "{said}");
    assert_eq!(said.matches("on purpose").count(), 1, "{said}");
}

#[test]
fn a_thread_that_panics_says_so_in_the_log() {
    let test = "panics::a_thread_that_panics_says_so_in_the_log";
    let Some((said, is_success)) = run_alone(test) else {
        let _finish = Finish;
        start(Format::Text, Level::INFO);
        write().unwrap();
        info!("before it");
        let worker = thread::Builder::new().name("worker-1".to_owned());
        let ended = worker.spawn(|| panic!("on purpose")).unwrap().join();
        return assert!(ended.is_err());
    };
    assert!(is_success, "{said}");
    assert_told(&said, "worker-1");
}

/// Before there is a thread that writes.
#[test]
fn a_start_that_panics_says_so_before_the_end() {
    let test = "panics::a_start_that_panics_says_so_before_the_end";
    let Some((said, is_success)) = run_alone(test) else {
        let _finish = Finish;
        start(Format::Text, Level::INFO);
        info!("before it");
        panic!("on purpose");
    };
    assert!(!is_success, "{said}");
    assert_told(&said, test);
}
