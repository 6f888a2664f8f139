//! Logs: to standard error, quiet, and never a line for each datagram.
//!
//! Who logs never waits for who reads: see `sink`.

mod sink;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tracing::{Level, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use sink::{Line, Sink};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What this process has logged and not yet written.
static SINK: Sink = Sink::new();

/// Takes this program's logs of `level` and above. They wait till [`write()`] or a [`Finish`] sends
/// them to standard error.
pub fn start(format: Format, level: Level) {
    std::panic::set_hook(Box::new(|panic| SINK.put(last_words(panic).as_bytes())));
    let builder = tracing_subscriber::fmt()
        // The filter below says less.
        .with_max_level(Level::TRACE)
        .with_ansi(io::stderr().is_terminal())
        // It would tell standard error that standard error does not work, and panic.
        .log_internal_errors(false)
        .with_writer(|| Line(&SINK));
    match format {
        Format::Text => builder
            .with_target(false)
            .finish()
            .with(filter(level))
            .init(),
        Format::Json => builder
            .json()
            .flatten_event(true)
            .finish()
            .with(filter(level))
            .init(),
    }
    SINK.set_open();
}

/// Lines of this level and above; and that lines were lost, whatever else is logged.
fn filter(level: Level) -> Targets {
    let of_the_log = level.max(Level::WARN);
    Targets::new()
        .with_default(level)
        .with_target(sink::TARGET, of_the_log)
}

/// What a panic says, as it does where nothing is set to say it: a thread that panics does not
/// wait for who reads either, and so goes on to take the others with it.
fn last_words(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => format!("thread '{name}' {panic}\n{backtrace}\n"),
        _ => format!("thread '{name}' {panic}\n"),
    }
}

/// Writes from here on what is logged, by a thread of its own, which is held by the same fences as
/// the one that calls this.
///
/// # Errors
///
/// Where a thread cannot be had. What was logged waits on.
pub fn write() -> io::Result<()> {
    let thread = thread::Builder::new().name("log".to_owned());
    thread.spawn(|| SINK.write_to(io::stderr()))?;
    SINK.set_served();
    Ok(())
}

/// Says the last word of a command that failed, on standard error: after the log, where there is
/// one.
pub fn say_last(what: impl Display) {
    if SINK.is_open() {
        SINK.put(format!("{what}\n").as_bytes());
    } else {
        crate::command::tell(what);
    }
}

/// Has the last lines written when it goes, in whatever way the program ends: of a panic that
/// ends it nothing else would be left.
#[derive(Debug)]
pub struct Finish;

impl Drop for Finish {
    fn drop(&mut self) {
        finish();
    }
}

/// Waits a while for the last lines to be written, and no longer, if a thread can be had for it.
fn finish() {
    if SINK.is_stranded() && write().is_err() {
        // Rather wait without an end than end without a word, where there is no thread to wait for.
        return SINK.write_rest(io::stderr());
    }
    SINK.finish();
}

/// Lines that standard error did not take, or not soon enough.
#[must_use]
pub fn lost_lines() -> u64 {
    SINK.lost()
}

/// What may go wrong again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recurring {
    /// A listener gives an error.
    Receive,
    /// An answer to a subscriber cannot be sent.
    Answer,
    /// No socket or address can be had for a subscriber.
    Reach,
}

/// How long after one line of a kind the next may follow.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Lets one line of each kind through a second and tells how many it kept back.
#[derive(Debug, Default)]
pub struct Suppressor {
    kinds: HashMap<Recurring, Seen>,
}

#[derive(Debug)]
struct Seen {
    written: Instant,
    suppressed: u64,
}

impl Suppressor {
    /// Writes a line by `write`, or counts it.
    pub fn warn(&mut self, kind: Recurring, write: impl FnOnce()) {
        match self.admit(kind, Instant::now()) {
            None => {}
            Some(suppressed) => {
                if suppressed > 0 {
                    warn!(?kind, suppressed, "lines suppressed");
                }
                write();
            }
        }
    }

    /// How many were kept back since the last line of this kind, if one may be written now.
    fn admit(&mut self, kind: Recurring, now: Instant) -> Option<u64> {
        match self.kinds.get_mut(&kind) {
            Some(seen) if now.saturating_duration_since(seen.written) < LINE_EVERY => {
                seen.suppressed += 1;
                None
            }
            Some(seen) => {
                seen.written = now;
                Some(std::mem::take(&mut seen.suppressed))
            }
            None => {
                self.kinds.insert(
                    kind,
                    Seen {
                        written: now,
                        suppressed: 0,
                    },
                );
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_lines_were_lost_is_told_at_any_level() {
        for level in [Level::ERROR, Level::WARN, Level::TRACE] {
            assert!(filter(level).would_enable(sink::TARGET, &Level::WARN));
        }
        let quiet = filter(Level::ERROR);
        assert!(!quiet.would_enable("hailmary::bus", &Level::WARN));
        assert!(quiet.would_enable("hailmary::bus", &Level::ERROR));
    }

    #[test]
    fn one_line_a_second_of_each_kind_with_the_count_of_the_others() {
        let mut logs = Suppressor::default();
        let start = Instant::now();
        assert_eq!(logs.admit(Recurring::Receive, start), Some(0));
        for _ in 0..3 {
            assert_eq!(logs.admit(Recurring::Receive, start + LINE_EVERY / 2), None);
        }
        assert_eq!(
            logs.admit(Recurring::Answer, start),
            Some(0),
            "another kind"
        );
        assert_eq!(logs.admit(Recurring::Receive, start + LINE_EVERY), Some(3));
        assert_eq!(
            logs.admit(Recurring::Receive, start + 2 * LINE_EVERY),
            Some(0)
        );
    }
}
