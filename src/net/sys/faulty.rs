//! In tests on Linux, in place of `calls`: the kernel's calls, which fail as a test says.
//!
//! A test tells its own thread what becomes of its next calls, one answer for each; without any
//! they go through. Nothing is made up but failures: a datagram that is told to be sent has been
//! sent, and one that failed has not. What really left is kept for the test to compare.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use socket2::SockAddr;

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Whatever the kernel says.
    Through,
    /// The same, of so many datagrams at most, at least one: a short count where there were more.
    Most(usize),
    /// This error, of the first datagram.
    Fail(libc::c_int),
    /// This error, of a datagram that was sent before: one that waited in the error queue.
    Late(libc::c_int),
}

/// Of one thread.
#[derive(Debug, Default)]
struct Kernel {
    receives: VecDeque<Answer>,
    sends: VecDeque<Answer>,
    /// What a test has put into the error queue.
    late_errors: usize,
    /// Bytes that the real kernel took, by the bytes of their address.
    taken: HashMap<Vec<u8>, u64>,
}

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::default();
}

fn with<T>(use_it: impl FnOnce(&mut Kernel) -> T) -> T {
    KERNEL.with_borrow_mut(use_it)
}

/// Forgets what was said, and what was taken for addresses that others may have had.
pub fn begin() {
    with(|kernel| *kernel = Kernel::default());
}

/// Says what becomes of this thread's next calls, in place of what was said before.
pub fn script(receives: impl IntoIterator<Item = Answer>, sends: impl IntoIterator<Item = Answer>) {
    with(|kernel| {
        kernel.receives = receives.into_iter().collect();
        kernel.sends = sends.into_iter().collect();
        kernel.late_errors = 0;
    });
}

/// Answers that no call has used yet: to receives, and to sends.
pub fn unused() -> (usize, usize) {
    with(|kernel| (kernel.receives.len(), kernel.sends.len()))
}

/// Bytes of this thread's that the kernel really took for an address.
pub fn bytes_taken(to: &SockAddr) -> u64 {
    with(|kernel| kernel.taken.get(bytes_of(to)).copied().unwrap_or(0))
}

fn bytes_of(address: &SockAddr) -> &[u8] {
    // SAFETY: a SockAddr has as many bytes as it says.
    unsafe { std::slice::from_raw_parts(address.as_ptr().cast(), address.len() as usize) }
}

fn next_receive() -> Answer {
    with(|kernel| kernel.receives.pop_front()).unwrap_or(Answer::Through)
}

fn next_send() -> Answer {
    with(|kernel| {
        let answer = kernel.sends.pop_front().unwrap_or(Answer::Through);
        kernel.late_errors += usize::from(matches!(answer, Answer::Late(_)));
        answer
    })
}

#[cfg(not(feature = "portable"))]
pub use batch::{recvmmsg, recvmsg, sendmmsg};

#[cfg(not(feature = "portable"))]
mod batch {
    use super::*;
    use libc::{c_int, c_uint, mmsghdr, msghdr};

    fn fail(number: c_int) -> c_int {
        // SAFETY: errno is the thread's own.
        unsafe { *libc::__errno_location() = number };
        -1
    }

    fn at_most(count: c_uint, most: usize) -> c_uint {
        c_uint::try_from(most.max(1)).map_or(count, |most| count.min(most))
    }

    /// As recvmmsg(2).
    ///
    /// # Safety
    ///
    /// As recvmmsg(2).
    pub unsafe fn recvmmsg(
        socket: c_int,
        headers: *mut mmsghdr,
        count: c_uint,
        flags: c_int,
        timeout: *mut libc::timespec,
    ) -> c_int {
        let count = match next_receive() {
            Answer::Through => count,
            Answer::Most(most) => at_most(count, most),
            Answer::Fail(number) | Answer::Late(number) => return fail(number),
        };
        // SAFETY: as the caller has it.
        unsafe { libc::recvmmsg(socket, headers, count, flags, timeout) }
    }

    /// As sendmmsg(2).
    ///
    /// # Safety
    ///
    /// As sendmmsg(2).
    pub unsafe fn sendmmsg(
        socket: c_int,
        headers: *mut mmsghdr,
        count: c_uint,
        flags: c_int,
    ) -> c_int {
        let count = match next_send() {
            Answer::Through => count,
            Answer::Most(most) => at_most(count, most),
            Answer::Fail(number) | Answer::Late(number) => return fail(number),
        };
        // SAFETY: as the caller has it.
        let sent = unsafe { libc::sendmmsg(socket, headers, count, flags) };
        for index in 0..usize::try_from(sent).unwrap_or(0) {
            // SAFETY: the caller has lent at least `count` headers, all filled.
            unsafe { keep(&(*headers.add(index)).msg_hdr) };
        }
        sent
    }

    /// As recvmsg(2), for the error queue.
    ///
    /// # Safety
    ///
    /// As recvmsg(2).
    pub unsafe fn recvmsg(socket: c_int, header: *mut msghdr, flags: c_int) -> isize {
        assert_ne!(flags & libc::MSG_ERRQUEUE, 0);
        let is_told = with(|kernel| {
            let is_told = kernel.late_errors > 0;
            kernel.late_errors = kernel.late_errors.saturating_sub(1);
            is_told
        });
        if is_told {
            return 0;
        }
        // SAFETY: as the caller has it.
        unsafe { libc::recvmsg(socket, header, flags) }
    }

    /// Keeps what has been sent.
    ///
    /// # Safety
    ///
    /// The header points to an address and to slices that live.
    unsafe fn keep(header: &msghdr) {
        // SAFETY: as the caller has it.
        let (to, slices) = unsafe {
            (
                std::slice::from_raw_parts(
                    header.msg_name.cast::<u8>(),
                    header.msg_namelen as usize,
                ),
                std::slice::from_raw_parts(header.msg_iov, header.msg_iovlen),
            )
        };
        let bytes: usize = slices.iter().map(|slice| slice.iov_len).sum();
        with(|kernel| *kernel.taken.entry(to.to_vec()).or_default() += bytes as u64);
    }
}

#[cfg(feature = "portable")]
pub use single::{receive, send};

#[cfg(feature = "portable")]
mod single {
    use std::io;

    use super::*;

    /// Takes one datagram, by this call.
    pub fn receive<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match next_receive() {
            Answer::Through | Answer::Most(_) => call(),
            Answer::Fail(number) | Answer::Late(number) => {
                Err(io::Error::from_raw_os_error(number))
            }
        }
    }

    /// Sends one datagram there, by this call.
    pub fn send(to: &SockAddr, call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        match next_send() {
            Answer::Through | Answer::Most(_) => {
                let bytes = call()?;
                let to = bytes_of(to).to_vec();
                with(|kernel| *kernel.taken.entry(to).or_default() += bytes as u64);
                Ok(bytes)
            }
            Answer::Fail(number) | Answer::Late(number) => {
                Err(io::Error::from_raw_os_error(number))
            }
        }
    }
}
