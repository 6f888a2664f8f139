//! The calls that datagrams come and go by, and nothing more. Tests on Linux have `faulty` in
//! their place, whose calls fail as a test says.

#[cfg(all(target_os = "linux", not(feature = "portable")))]
pub use libc::{recvmmsg, recvmsg, sendmmsg};

/// Takes one datagram, by this call.
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
#[inline]
pub fn receive<T>(call: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    call()
}

/// Sends one datagram there, by this call.
#[cfg(any(not(target_os = "linux"), feature = "portable"))]
#[inline]
pub fn send(
    _to: &socket2::SockAddr,
    call: impl FnOnce() -> std::io::Result<usize>,
) -> std::io::Result<usize> {
    call()
}
