//! Whether this process is still the one that made a publisher or a subscriber.
//!
//! Owns one number, which every fork makes greater in the child: whoever shares
//! nothing with its parent keeps it and compares. That costs one load of memory,
//! where asking for the process's id would cost a system call. Children of a bare
//! `clone` system call are not seen, for the C library is not told of them; those
//! of `fork` are, whoever calls it, but not those of `_Fork`, which runs no handlers.
//! Nothing is done before a fork, and nothing in the parent.
#![expect(unsafe_code, reason = "the C library alone is told of forks")]

use std::ffi::c_int;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static GENERATION: AtomicUsize = AtomicUsize::new(0);
static IS_WATCHED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    // The libc crate has it for some systems alone; POSIX has it for all.
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> c_int;
}

/// How many forks lie between the first process and this one, as far as watched.
#[inline]
pub(crate) fn generation() -> usize {
    GENERATION.load(Ordering::Relaxed)
}

/// Sees to it that forks are noticed from now on.
///
/// Two threads at once may both register, which only makes the number grow by two.
/// A lock would be worse: a fork could leave it held for ever in the child.
pub(crate) fn watch() -> io::Result<()> {
    if IS_WATCHED.load(Ordering::Acquire) {
        return Ok(());
    }
    // SAFETY: the declaration is POSIX's, and the handler is a function of the same
    // library as this one, with no argument and no result. It stays where it is: a
    // library that is unloaded takes its handlers along (glibc, musl never unloads).
    // It runs between `fork` and the child's return from it, where other threads may
    // have left any lock held, and does nothing but an atomic addition: it takes no
    // lock, allocates nothing and cannot panic.
    match unsafe { pthread_atfork(None, None, Some(count_fork)) } {
        0 => {
            IS_WATCHED.store(true, Ordering::Release);
            Ok(())
        }
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

extern "C" fn count_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}
