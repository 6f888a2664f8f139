//! The calls that datagrams come and go by, and nothing more. Tests on Linux have `faulty` in
//! their place, whose calls fail as a test says.

#[cfg(all(target_os = "linux", not(feature = "portable")))]
pub use libc::{recvmmsg, sendmmsg};

#[cfg(target_os = "linux")]
pub use libc::recvmsg;

/// Takes one datagram, by this call.
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
#[inline]
pub fn receive<T>(call: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    call()
}

/// Sends one datagram, by this call.
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
#[inline]
pub fn send(
    _datagram: &super::Outgoing<'_>,
    call: impl FnOnce() -> std::io::Result<usize>,
) -> std::io::Result<usize> {
    call()
}
