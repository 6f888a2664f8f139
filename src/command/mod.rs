//! What the program can be told to do, one module for each command.

mod admin_client;
pub mod bench;
pub mod check;
pub mod doctor;
mod grouped;
pub mod publish;
pub mod serve;
pub mod subscribe;

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hailmary_proto::topic::{TopicError, check_pattern, check_topic};
use signal_hook::consts::{SIGINT, SIGTERM};

/// A flag that a signal sets, for commands that end by one with a last word.
fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The second one ends the program whatever it is doing.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// Says something of the command itself, on standard error. Where that takes nothing, as on a
/// full disk, what the command is there for goes on.
pub fn tell(what: impl Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

fn topic(text: &str) -> Result<String, TopicError> {
    check_topic(text.as_bytes()).map(|()| text.to_owned())
}

fn pattern(text: &str) -> Result<String, TopicError> {
    check_pattern(text.as_bytes()).map(|()| text.to_owned())
}

fn rate(text: &str) -> Result<f64, &'static str> {
    number(text, |rate| rate > 0.0 && rate <= 1e9).ok_or("a rate is over 0 and at most 1e9")
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = number(text, |seconds| (0.0..=1e9).contains(&seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or("a time is 0 to 1e9 seconds")
}

fn number(text: &str, is_allowed: impl Fn(f64) -> bool) -> Option<f64> {
    text.parse().ok().filter(|number| is_allowed(*number))
}
