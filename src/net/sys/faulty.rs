//! In tests on Linux, in place of `calls`: the kernel's calls, which fail as a test says.
//!
//! A test tells its own thread what becomes of its next calls, one answer for each; without any
//! they go through. Nothing is made up but failures: a datagram that is told to be sent has been
//! sent, and one that failed has not. What really left is kept for the test to compare.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use hailmary_proto::write::STAMP_HEAD_BYTES;
use libc::{c_int, msghdr};
use socket2::SockAddr;

use super::late::Entry;

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Whatever the kernel says.
    Through,
    /// The same, of so many datagrams at most, at least one: a short count where there were more.
    Most(usize),
    /// The same, with so many bytes of room at most for each control message.
    Cut(usize),
    /// This error, of the first datagram.
    Fail(c_int),
    /// This error, of the last datagram that was sent over UDP: one that waited in the error
    /// queue, as ICMP's do.
    Late(c_int),
}

/// Of one thread.
#[derive(Debug, Default)]
struct Kernel {
    receives: VecDeque<Answer>,
    sends: VecDeque<Answer>,
    /// What a test has put into the error queue.
    late_errors: VecDeque<LateError>,
    last: Option<Datagram>,
    /// Bytes that the real kernel took, by the bytes of their address.
    taken: HashMap<Vec<u8>, u64>,
}

/// What was sent over UDP.
#[derive(Clone, Debug)]
struct Datagram {
    /// The bytes of its address.
    to: Vec<u8>,
    /// Its first bytes.
    head: Vec<u8>,
}

#[derive(Debug)]
struct LateError {
    number: c_int,
    /// None where none has been sent.
    of: Option<Datagram>,
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
    #[cfg(not(feature = "portable"))]
    super::looped::end();
}

/// Says what becomes of this thread's next calls, in place of what was said before.
pub fn script(receives: impl IntoIterator<Item = Answer>, sends: impl IntoIterator<Item = Answer>) {
    with(|kernel| {
        kernel.receives = receives.into_iter().collect();
        kernel.sends = sends.into_iter().collect();
        kernel.late_errors.clear();
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

/// The bytes of an address.
pub fn bytes_of(address: &SockAddr) -> &[u8] {
    // SAFETY: a SockAddr has as many bytes as it says.
    unsafe { std::slice::from_raw_parts(address.as_ptr().cast(), address.len() as usize) }
}

fn next_receive() -> Answer {
    with(|kernel| kernel.receives.pop_front()).unwrap_or(Answer::Through)
}

fn next_send() -> Answer {
    with(|kernel| {
        let answer = kernel.sends.pop_front().unwrap_or(Answer::Through);
        if let Answer::Late(number) = answer {
            let of = kernel.last.clone();
            kernel.late_errors.push_back(LateError { number, of });
        }
        answer
    })
}

/// Keeps what has been sent.
fn keep(to: &[u8], head: &[u8], bytes: u64) {
    with(|kernel| {
        *kernel.taken.entry(to.to_vec()).or_default() += bytes;
        if family(to) != libc::AF_UNIX {
            kernel.last = Some(Datagram {
                to: to.to_vec(),
                head: head.to_vec(),
            });
        }
    });
}

fn family(address: &[u8]) -> c_int {
    let family = address.first_chunk().copied();
    family.map_or(libc::AF_UNSPEC, |it| u16::from_ne_bytes(it).into())
}

/// As recvmsg(2), for the error queue.
///
/// # Safety
///
/// As recvmsg(2), and the control message's room is an [`Entry`].
pub unsafe fn recvmsg(socket: c_int, header: *mut msghdr, flags: c_int) -> isize {
    assert_ne!(flags & libc::MSG_ERRQUEUE, 0);
    match with(|kernel| kernel.late_errors.pop_front()) {
        // SAFETY: as the caller has it.
        Some(error) => unsafe { tell(&error, &mut *header) },
        // SAFETY: as the caller has it.
        None => unsafe { kernel_recvmsg(socket, header, flags) },
    }
}

#[cfg(feature = "portable")]
use libc::recvmsg as kernel_recvmsg;

/// As recvmsg(2), for the error queue.
///
/// # Safety
///
/// As recvmsg(2).
#[cfg(not(feature = "portable"))]
unsafe fn kernel_recvmsg(socket: c_int, header: *mut msghdr, flags: c_int) -> isize {
    if super::looped::is_looped() {
        return fail(libc::EAGAIN) as isize;
    }
    // SAFETY: as the caller has it.
    unsafe { libc::recvmsg(socket, header, flags) }
}

#[cfg(not(feature = "portable"))]
fn fail(number: c_int) -> c_int {
    // SAFETY: errno is the thread's own.
    unsafe { *libc::__errno_location() = number };
    -1
}

/// Writes an entry of the error queue as the kernel does.
///
/// # Safety
///
/// As with [`recvmsg`].
unsafe fn tell(error: &LateError, header: &mut msghdr) -> isize {
    let Some(Datagram { to, head }) = &error.of else {
        header.msg_namelen = 0;
        return 0;
    };
    assert!(header.msg_namelen as usize >= to.len());
    assert!(header.msg_controllen >= size_of::<Entry>());
    // SAFETY: the caller has lent so much room, which was just looked at.
    let (name, slice, entry) = unsafe {
        (
            std::slice::from_raw_parts_mut(header.msg_name.cast::<u8>(), to.len()),
            &*header.msg_iov,
            &mut *header.msg_control.cast::<Entry>(),
        )
    };
    name.copy_from_slice(to);
    header.msg_namelen = to.len().try_into().unwrap_or_default();
    let ((level, kind), origin) = match family(to) {
        libc::AF_INET => (
            (libc::IPPROTO_IP, libc::IP_RECVERR),
            libc::SO_EE_ORIGIN_ICMP,
        ),
        _ => (
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
            libc::SO_EE_ORIGIN_ICMP6,
        ),
    };
    (entry.header.cmsg_level, entry.header.cmsg_type) = (level, kind);
    entry.error.ee_origin = origin;
    entry.error.ee_errno = error.number.cast_unsigned();
    let length = head.len().min(slice.iov_len);
    // SAFETY: both are at least so long.
    unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), slice.iov_base.cast(), length) };
    length.try_into().unwrap_or(-1)
}

#[cfg(not(feature = "portable"))]
pub use batch::{recvmmsg, sendmmsg};

#[cfg(not(feature = "portable"))]
mod batch {
    use super::*;
    use crate::net::sys::looped;
    use libc::{c_uint, mmsghdr};

    /// The headers of a call.
    ///
    /// # Safety
    ///
    /// There are so many, and nobody else uses them for so long.
    unsafe fn lent<'a>(headers: *mut mmsghdr, count: c_uint) -> &'a mut [mmsghdr] {
        // SAFETY: as the caller has it.
        unsafe { std::slice::from_raw_parts_mut(headers, count as usize) }
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
            Answer::Cut(room) => {
                // SAFETY: as the caller has it. Less room than there is harms nobody.
                for header in unsafe { lent(headers, count) } {
                    let length = &mut header.msg_hdr.msg_controllen;
                    *length = (*length).min(room as _);
                }
                count
            }
            Answer::Fail(number) | Answer::Late(number) => return fail(number),
        };
        if looped::is_looped() {
            // SAFETY: as the caller has it: there are `count` headers, or more.
            return match unsafe { looped::recvmmsg(lent(headers, count)) } {
                0 => fail(libc::EAGAIN),
                taken => taken,
            };
        }
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
            Answer::Through | Answer::Cut(_) => count,
            Answer::Most(most) => at_most(count, most),
            Answer::Fail(number) | Answer::Late(number) => return fail(number),
        };
        // SAFETY: as the caller has it: there are `count` headers, or more.
        let sent = unsafe {
            if looped::is_looped() {
                looped::sendmmsg(lent(headers, count))
            } else {
                libc::sendmmsg(socket, headers, count, flags)
            }
        };
        // SAFETY: as the caller has it: they are all filled.
        let headers = unsafe { lent(headers, count) };
        for header in headers.iter().take(sent.try_into().unwrap_or(0)) {
            // SAFETY: as the caller has it.
            unsafe { keep_sent(&header.msg_hdr) };
        }
        sent
    }

    /// Keeps what has been sent.
    ///
    /// # Safety
    ///
    /// The header points to an address and to slices that live.
    unsafe fn keep_sent(header: &msghdr) {
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
        // SAFETY: as the caller has it.
        let part = |slice: &libc::iovec| unsafe {
            std::slice::from_raw_parts(slice.iov_base.cast::<u8>(), slice.iov_len)
        };
        let bytes: usize = slices.iter().map(|slice| slice.iov_len).sum();
        let head = slices.iter().flat_map(part).copied();
        let head: Vec<u8> = head.take(STAMP_HEAD_BYTES).collect();
        keep(to, &head, bytes as u64);
    }
}

#[cfg(feature = "portable")]
pub use single::{receive, send};

#[cfg(feature = "portable")]
mod single {
    use std::io;

    use super::*;
    use crate::net::sys::Outgoing;

    /// Takes one datagram, by this call.
    pub fn receive<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match next_receive() {
            Answer::Through | Answer::Most(_) | Answer::Cut(_) => call(),
            Answer::Fail(number) | Answer::Late(number) => {
                Err(io::Error::from_raw_os_error(number))
            }
        }
    }

    /// Sends one datagram, by this call.
    pub fn send(
        datagram: &Outgoing<'_>,
        call: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        match next_send() {
            Answer::Through | Answer::Most(_) | Answer::Cut(_) => {
                let bytes = call()?;
                let head = datagram.head.iter().chain(datagram.body).copied();
                let head: Vec<u8> = head.take(STAMP_HEAD_BYTES).collect();
                keep(bytes_of(datagram.to), &head, bytes as u64);
                Ok(bytes)
            }
            Answer::Fail(number) | Answer::Late(number) => {
                Err(io::Error::from_raw_os_error(number))
            }
        }
    }
}
