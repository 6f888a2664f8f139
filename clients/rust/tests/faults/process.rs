//! What is done to the process itself: forks, and descriptors closed under their
//! owners. Here alone is code that the compiler does not check.
#![expect(
    unsafe_code,
    reason = "no safe code forks, or closes what another owns"
)]

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Runs something in a child, and fails the test if it fails.
pub(crate) fn in_child(run: impl FnOnce()) {
    // SAFETY: this program has one thread, so the child has all that there is of it.
    match unsafe { libc::fork() } {
        0 => {
            let has_failed = catch_unwind(AssertUnwindSafe(run)).is_err();
            // SAFETY: it ends the process, and none of the parent's destructors run.
            unsafe { libc::_exit(i32::from(has_failed)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the child is ours, and `status` outlives the call.
            let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!((ended, status), (child, 0), "the child failed, see above");
        }
    }
}

/// Closes a descriptor under its owner.
pub(crate) fn close(descriptor: RawFd) {
    // SAFETY: it is not safe for the owner, who is tested to notice. No other thread
    // is there to be given the number meanwhile.
    assert_eq!(unsafe { libc::close(descriptor) }, 0);
}

/// Gives the number of a descriptor to a file, which nobody else may close.
pub(crate) fn replace(descriptor: RawFd) {
    // One that may be written to, as a log is.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    // SAFETY: as for `close`.
    let replaced = unsafe { libc::dup2(file.as_raw_fd(), descriptor) };
    assert_eq!(replaced, descriptor);
}

/// The process's descriptors that are sockets.
pub(crate) fn open_sockets() -> BTreeSet<RawFd> {
    let is_socket = |path: &std::path::Path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    entries
        .filter(|entry| is_socket(&entry.path()))
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

/// Lets the process open none any more; what it gives is the limit of before.
pub(crate) fn forbid_descriptors() -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..before
    };
    setrlimit(Resource::Nofile, none).unwrap();
    before
}

pub(crate) fn allow_again(before: Rlimit) {
    setrlimit(Resource::Nofile, before).unwrap();
}

/// Sets a variable of the environment.
pub(crate) fn set_variable(name: &str, value: &str) {
    // SAFETY: this program has one thread, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var(name, value) }
}

/// Lets the process have so many descriptors, if the system does.
pub(crate) fn allow_descriptors(count: u64) -> bool {
    let limits = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= count);
    let raised = Rlimit {
        current: Some(count),
        ..limits
    };
    is_enough(limits.current)
        || (is_enough(limits.maximum) && setrlimit(Resource::Nofile, raised).is_ok())
}
