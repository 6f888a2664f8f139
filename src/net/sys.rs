//! The one home of system calls that no library wraps: batches of datagrams, socket options,
//! a finer sleep. Its face is safe; all of the crate's `unsafe` is here and in the modules below.
//!
//! Where there is no `recvmmsg` (or with the feature `portable`) a module of the same face
//! takes and sends datagrams one by one.
#![expect(unsafe_code, reason = "system calls that no crate wraps safely")]

use std::io;
#[cfg(target_os = "linux")]
use std::mem;
use std::net::SocketAddr;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use hailmary_proto::write::STAMP_HEAD_BYTES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(target_os = "linux")]
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockAddr;

use crate::bus::address::Source;

#[cfg_attr(all(test, target_os = "linux"), path = "sys/faulty.rs")]
mod calls;
#[cfg(all(test, target_os = "linux"))]
pub use calls::{Answer, begin, bytes_taken, script, unused};

#[cfg(target_os = "linux")]
mod late;
#[cfg(target_os = "linux")]
mod name;

#[cfg(all(target_os = "linux", not(feature = "portable")))]
mod batch;
#[cfg(all(target_os = "linux", not(feature = "portable")))]
pub use batch::{ReceiveRing, SendRing};
#[cfg(all(target_os = "linux", not(feature = "portable")))]
mod credentials;
#[cfg(all(test, target_os = "linux", not(feature = "portable")))]
mod looped;
#[cfg(all(target_os = "linux", not(feature = "portable")))]
mod segments;
#[cfg(all(target_os = "linux", not(feature = "portable")))]
pub use segments::{SegmentRing, takes_segments};
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
mod portable;
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
pub use portable::{ReceiveRing, SegmentRing, SendRing, takes_segments};

/// Most datagrams taken by one call.
pub const RECEIVE_BATCH_MAX: usize = 128;

/// Most datagrams handed over by one call.
pub const SEND_BATCH_MAX: usize = 64;

/// Bytes kept for one received datagram: more than any UDP payload, so that what is cut shows.
pub const DATAGRAM_BUFFER_BYTES: usize = 65_536;

/// Whether [`ask_for`] can have the kernel tell who sends over a Unix socket.
pub const TELLS_CREDENTIALS: bool = cfg!(all(target_os = "linux", not(feature = "portable")));

/// What is asked of each datagram besides what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ask {
    /// Where it came from.
    #[default]
    Source,
    /// That, and whom its sender runs as: of Unix sockets only, see [`ask_for`].
    Credentials,
}

/// A received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// What came.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub source: Source<'a>,
    /// Whether it was longer than its buffer, so that its end is missing.
    pub is_truncated: bool,
}

/// One datagram to send: `head` and `body` as one.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where it goes.
    pub to: &'a SockAddr,
    /// Its first bytes.
    pub head: &'a [u8],
    /// The rest.
    pub body: &'a [u8],
}

/// A way takes no segments, so that datagrams for it leave one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSegments;

/// The network says that a datagram sent to a host found no socket there, or no host. Whoever knows
/// how that datagram began may have forged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where the datagram went.
    pub to: SocketAddr,
    /// Its first bytes, as quoted.
    pub quote: [u8; STAMP_HEAD_BYTES],
    /// The error that it is to a connected socket: `ECONNREFUSED`, `EHOSTUNREACH`, `ENETUNREACH`.
    pub number: i32,
}

/// The kernel's account of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMemory {
    /// What waiting datagrams are charged, in bytes.
    pub receive_used_bytes: u32,
    /// How far that may go, in bytes.
    pub receive_buffer_bytes: u32,
    /// Datagrams dropped since the socket was made; it wraps.
    pub drops: u32,
}

/// Has the kernel note from now on what is asked of each datagram that comes to a Unix socket.
/// What waits in the socket already tells nothing of its sender.
///
/// # Errors
///
/// Where the kernel refuses.
#[cfg(all(target_os = "linux", not(feature = "portable")))]
pub fn ask_for(ask: Ask, socket: BorrowedFd<'_>) -> io::Result<()> {
    socket2::SockRef::from(&socket).set_passcred(ask == Ask::Credentials)
}

/// Credentials are not told here.
///
/// # Errors
///
/// Where they are asked for.
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
pub fn ask_for(ask: Ask, _socket: BorrowedFd<'_>) -> io::Result<()> {
    match ask {
        Ask::Source => Ok(()),
        Ask::Credentials => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// The kernel's account of a socket, where the system keeps one (`SO_MEMINFO`, Linux 4.12).
#[cfg(target_os = "linux")]
#[must_use]
pub fn socket_memory(socket: BorrowedFd<'_>) -> Option<SocketMemory> {
    /// Index into the answer, and its length: `SK_MEMINFO_*` of linux/sock_diag.h.
    const RECEIVE_USED: usize = 0;
    const RECEIVE_BUFFER: usize = 1;
    const DROPS: usize = 8;
    let mut memory = [0_u32; 9];
    let length = get_ints(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut memory)?;
    (length == size_of_val(&memory)).then_some(SocketMemory {
        receive_used_bytes: memory[RECEIVE_USED],
        receive_buffer_bytes: memory[RECEIVE_BUFFER],
        drops: memory[DROPS],
    })
}

/// The kernel's account of a socket: this system keeps none.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn socket_memory(_socket: BorrowedFd<'_>) -> Option<SocketMemory> {
    None
}

/// Asks for a receive buffer past the system's maximum, which takes CAP_NET_ADMIN.
///
/// # Errors
///
/// Where the system does not allow or not know it.
#[cfg(target_os = "linux")]
pub fn force_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    Ok(sockopt::set_socket_recv_buffer_size_force(socket, bytes)?)
}

/// Asks for a send buffer past the system's maximum, which takes CAP_NET_ADMIN.
///
/// # Errors
///
/// Where the system does not allow or not know it.
#[cfg(target_os = "linux")]
pub fn force_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    Ok(sockopt::set_socket_send_buffer_size_force(socket, bytes)?)
}

/// Not on this system.
///
/// # Errors
///
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn force_receive_buffer(_socket: BorrowedFd<'_>, _bytes: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not on this system.
///
/// # Errors
///
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn force_send_buffer(_socket: BorrowedFd<'_>, _bytes: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Has the kernel tell of full queues behind the socket (`ENOBUFS`), and of ICMP errors, which
/// the sends of this module tell apart from their own.
///
/// # Errors
///
/// Where the kernel refuses.
#[cfg(target_os = "linux")]
pub fn enable_error_queue(socket: BorrowedFd<'_>, domain: socket2::Domain) -> io::Result<()> {
    match domain {
        socket2::Domain::IPV4 => set_int(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        socket2::Domain::IPV6 => set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
        _ => Ok(()),
    }
}

/// This system has no error queues.
///
/// # Errors
///
/// None.
#[cfg(not(target_os = "linux"))]
pub fn enable_error_queue(_socket: BorrowedFd<'_>, _domain: socket2::Domain) -> io::Result<()> {
    Ok(())
}

/// A message header that leads nowhere.
#[cfg(target_os = "linux")]
fn empty_message() -> libc::msghdr {
    // SAFETY: it has numbers and raw pointers alone (on some C libraries with fields of no name, so
    // that it cannot be written down), each of which may be zero.
    unsafe { mem::zeroed() }
}

/// A control message's header that says nothing.
#[cfg(target_os = "linux")]
fn empty_control() -> libc::cmsghdr {
    // SAFETY: as above; it has numbers alone.
    unsafe { mem::zeroed() }
}

/// Asks for an option whose answer is numbers, and says how many bytes of them the kernel wrote.
#[cfg(target_os = "linux")]
fn get_ints<const COUNT: usize>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    answer: &mut [u32; COUNT],
) -> Option<usize> {
    let mut length = libc::socklen_t::try_from(size_of_val(answer)).ok()?;
    // SAFETY: `answer` is borrowed mutably and has `length` bytes, of which the kernel writes as
    // many as it has an answer for and no more. Any bytes are a number. The length it writes is
    // this function's own, and the descriptor is open as long as it is borrowed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            answer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0)
        .then(|| usize::try_from(length).ok())
        .flatten()
}

#[cfg(target_os = "linux")]
fn set_int(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: the kernel reads at most `length` bytes, which is what `value` has, and keeps no
    // pointer to it. The descriptor is open as long as it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets this process have as many descriptors open as the system lets it ask for: the limit that
/// it starts with is often 1,024, kept low for programs that use select(2).
///
/// # Errors
///
/// Where the system refuses; the limit is as it was then.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// Has the calling thread, and no other, give way where processors are scarce (nice(2), which on
/// Linux is the thread's own).
#[cfg(target_os = "linux")]
pub fn give_way() {
    /// A tenth of the weight of a thread that has not given way: enough to go on by, however
    /// busy the others are.
    const BY: i32 = 10;
    // That it may fail costs no more than the precedence of others.
    let _ = rustix::process::nice(BY);
}

/// Elsewhere it would be all threads of the program that give way.
#[cfg(not(target_os = "linux"))]
pub fn give_way() {}

/// Sleeps for `wait`, as finely as the system can and more finely than mio's milliseconds, or till
/// `socket` is readable.
pub fn wait_readable(socket: BorrowedFd<'_>, wait: Duration) {
    // A wait that is too long for the system has no end.
    let wait = Timespec::try_from(wait).ok();
    // That it was interrupted is as good as that it woke.
    let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], wait.as_ref());
}

#[cfg(test)]
mod tests;
