//! Where log lines wait for standard error.
//!
//! A thread of its own writes them, so that nobody else ever waits for a pipe that nobody reads or
//! a disk that hangs, neither in the middle of the traffic nor at the end. Lines that find no room,
//! and lines that standard error refuses as on a full disk, are lost: they are counted, and the log
//! tells how many as soon as it takes lines again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

/// Bytes of lines that wait: thousands of them, so that none is lost to a sink that is merely
/// slow. A single line may be longer.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// How long the end waits for the last lines to be written.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// The target of what the sink itself logs.
pub(super) const TARGET: &str = module_path!();

/// Lines on their way to standard error.
#[derive(Debug)]
pub(super) struct Sink {
    waiting: Mutex<Waiting>,
    is_filled: Condvar,
    is_written: Condvar,
    lost: AtomicU64,
}

#[derive(Debug)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether a line that was taken is still being written.
    is_writing: bool,
    /// Whether there is a thread that writes.
    is_served: bool,
    /// Whether lines are to come this way.
    is_open: bool,
}

impl Sink {
    pub(super) const fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                lines: VecDeque::new(),
                bytes: 0,
                is_writing: false,
                is_served: false,
                is_open: false,
            }),
            is_filled: Condvar::new(),
            is_written: Condvar::new(),
            lost: AtomicU64::new(0),
        }
    }

    /// Lines that were lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Has a line written, or counts it as lost.
    pub(super) fn put(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if !waiting.lines.is_empty() && waiting.bytes + line.len() > WAITING_BYTES_MAX {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        drop(waiting);
        self.is_filled.notify_one();
    }

    /// Whether lines come this way.
    pub(super) fn is_open(&self) -> bool {
        self.waiting().is_open
    }

    /// From here on lines come this way.
    pub(super) fn set_open(&self) {
        self.waiting().is_open = true;
    }

    /// There is a thread now that writes.
    pub(super) fn set_served(&self) {
        self.waiting().is_served = true;
    }

    /// Writes lines for ever.
    pub(super) fn write_to(&self, mut to: impl Write) -> ! {
        let mut told = 0;
        loop {
            let line = self.take();
            let written = to.write_all(&line);
            self.waiting().is_writing = false;
            self.is_written.notify_all();
            if written.is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            } else if self.lost() > told && self.waiting().lines.is_empty() {
                // Once, after all that waited. Where this one is lost, too, the next that is written
                // brings another.
                told = self.lost();
                warn!(lost_lines = told, "log lines were lost, since the start");
            }
        }
    }

    /// Whether lines wait and no thread writes them, as none was started yet.
    pub(super) fn is_stranded(&self) -> bool {
        let waiting = self.waiting();
        !waiting.is_served && !waiting.lines.is_empty()
    }

    /// Waits till all lines are written, or nobody takes them.
    pub(super) fn finish(&self) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        let waiting = self.waiting();
        // In vain or not, this is the end.
        let _ = self
            .is_written
            .wait_timeout_while(waiting, END_PATIENCE, is_busy);
    }

    /// Writes what waits, and waits for whoever reads.
    pub(super) fn write_rest(&self, mut to: impl Write) {
        let lines = std::mem::take(&mut self.waiting().lines);
        // In vain or not, this is the end.
        let _ = lines.iter().try_for_each(|line| to.write_all(line));
    }

    /// The next line, waited for.
    fn take(&self) -> Vec<u8> {
        let mut waiting = self.waiting();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.bytes -= line.len();
                waiting.is_writing = true;
                return line;
            }
            let woken = self.is_filled.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line's way in.
#[derive(Debug)]
pub(super) struct Line(pub(super) &'static Sink);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_the_rest_keeps_its_order() {
        let sink = Sink::new();
        let half = WAITING_BYTES_MAX / 2;
        for byte in *b"abc" {
            sink.put(&vec![byte; half]);
        }
        assert_eq!(sink.lost(), 1);
        for byte in *b"ab" {
            assert_eq!(sink.take(), vec![byte; half]);
        }
        sink.put(b"d");
        assert_eq!((sink.take(), sink.lost()), (b"d".to_vec(), 1));
    }

    #[test]
    fn a_line_longer_than_all_the_room_is_taken_where_none_waits() {
        let sink = Sink::new();
        let long = vec![b'x'; WAITING_BYTES_MAX + 1];
        sink.put(&long);
        assert_eq!(sink.lost(), 0);
        sink.put(b"y");
        assert_eq!((sink.take(), sink.lost()), (long, 1));
    }

    /// Refuses all lines with an x in them.
    struct Full(std::sync::mpsc::Sender<Vec<u8>>);

    impl Write for Full {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if line.contains(&b'x') {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let _ = self.0.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_refused_is_counted_and_what_follows_is_written() {
        let sink: &'static Sink = Box::leak(Box::new(Sink::new()));
        let (sender, written) = std::sync::mpsc::channel();
        std::thread::spawn(|| sink.write_to(Full(sender)));
        sink.set_served();
        for line in [&b"a"[..], b"x", b"b"] {
            sink.put(line);
        }
        sink.finish();
        assert_eq!(sink.lost(), 1);
        let written: Vec<_> = written.try_iter().collect();
        assert_eq!(written, [b"a", b"b"]);
    }

    /// Takes all lines.
    struct Open(std::sync::mpsc::Sender<Vec<u8>>);

    impl Write for Open {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_lost_is_told_once_after_all_that_waited() {
        let sink: &'static Sink = Box::leak(Box::new(Sink::new()));
        for byte in *b"abxy" {
            sink.put(&vec![byte; WAITING_BYTES_MAX / 2]);
        }
        assert!(sink.is_stranded());
        let (sender, written) = std::sync::mpsc::channel();
        let logs = tracing_subscriber::fmt().with_writer(move || Line(sink));
        let logs = logs.with_ansi(false).finish();
        sink.set_served();
        std::thread::spawn(|| {
            tracing::subscriber::with_default(logs, || sink.write_to(Open(sender)))
        });
        let firsts: Vec<_> = (0..2).map(|_| written.recv().unwrap()[0]).collect();
        assert_eq!(firsts, *b"ab");
        let told = String::from_utf8(written.recv().unwrap()).unwrap();
        assert!(told.ends_with("since the start lost_lines=2\n"), "{told}");
        sink.put(b"c");
        assert_eq!(written.recv().unwrap(), b"c", "and not told again");
        sink.finish();
        assert!(!sink.is_stranded() && written.try_recv().is_err());
    }

    #[test]
    fn who_has_no_thread_writes_what_waits_in_its_order() {
        let sink = Sink::new();
        sink.put(b"a ");
        sink.put(b"b");
        let mut written = Vec::new();
        sink.write_rest(&mut written);
        assert_eq!(written, b"a b");
        assert!(!sink.is_stranded());
    }
}
