//! A publisher's socket: connected, non-blocking, and never waited for.
//!
//! Owns what an error of a send means and when it is worth another try. It
//! counts no events and knows no frames.

use std::io;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;

use hailmary_proto::write::DATAGRAM_BYTES_MAX;
use socket2::SockRef;

use crate::address::{Target, loopback};
use crate::books::{Books, PublishError};

/// Room for the largest datagram and the kernel's bookkeeping beside it, in bytes.
const SEND_BUFFER_BYTES_MIN: usize = 2 * DATAGRAM_BYTES_MAX;

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

#[derive(Debug)]
pub(crate) struct Link {
    socket: Socket,
    target: Target,
}

impl Link {
    /// Opens a socket towards the bus, whether or not one is there.
    pub(crate) fn open(target: Target) -> io::Result<Self> {
        let socket = Socket::open(&target)?;
        let link = Self { socket, target };
        match link.connect() {
            Err(error) if !is_absence(failure(&error)) => Err(error),
            _ => Ok(link),
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Hands one datagram to the kernel, or says at once why not.
    #[inline]
    pub(crate) fn send(&self, datagram: &[u8], books: &Books) -> io::Result<()> {
        match self.socket.send(datagram) {
            Ok(()) => Ok(()),
            Err(error) => self.send_again(datagram, error, books),
        }
    }

    /// Over UDP a refusal speaks of an earlier datagram and says nothing of this
    /// one. Otherwise the socket has no peer: over Unix the bus is gone, and another
    /// may have taken its path. So the first event after a restart arrives.
    #[cold]
    fn send_again(&self, datagram: &[u8], error: io::Error, books: &Books) -> io::Result<()> {
        match (&self.socket, error.raw_os_error()) {
            (Socket::Udp(_), Some(libc::ECONNREFUSED)) => books.count_bounced(),
            (
                _,
                Some(libc::ECONNREFUSED | libc::ECONNRESET | libc::ENOTCONN | libc::EDESTADDRREQ),
            ) => self.connect()?,
            _ => return Err(error),
        }
        self.socket.send(datagram)
    }

    fn connect(&self) -> io::Result<()> {
        match (&self.socket, &self.target) {
            (Socket::Udp(socket), Target::Udp(bus)) => socket.connect(bus),
            (Socket::Unix(socket), Target::Unix(path)) => socket.connect(path),
            // `Socket::open` makes the kind that the target is of.
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }
}

impl Socket {
    fn open(target: &Target) -> io::Result<Self> {
        Ok(match target {
            Target::Udp(bus) => {
                let socket = UdpSocket::bind(local_address(*bus))?;
                socket.set_nonblocking(true)?;
                make_room(SockRef::from(&socket));
                Self::Udp(socket)
            }
            Target::Unix(_) => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                make_room(SockRef::from(&socket));
                Self::Unix(socket)
            }
        })
    }

    /// Datagrams go wholly or not at all, so the length says nothing.
    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(datagram),
            Self::Unix(socket) => socket.send(datagram),
        }
        .map(drop)
    }
}

/// Some systems (macOS) take no datagram larger than the send buffer, which they
/// make small. Where more is not granted, large events are refused one by one.
fn make_room(socket: SockRef<'_>) {
    if !matches!(socket.send_buffer_size(), Ok(bytes) if bytes >= SEND_BUFFER_BYTES_MIN) {
        let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES_MIN);
    }
}

/// What to bind to, to speak with `bus`: any free port; towards a bus on this
/// host its loopback address, so that no other host can send there.
pub(crate) fn local_address(bus: SocketAddr) -> SocketAddr {
    let mut local = bus;
    local.set_port(0);
    local.set_ip(match (bus.ip().is_loopback(), bus) {
        (true, _) => loopback(bus),
        (false, SocketAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (false, SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
    });
    local
}

/// Whether it says that there is no bus, and another may come.
fn is_absence(reason: PublishError) -> bool {
    matches!(reason, PublishError::Refused | PublishError::Unreachable)
}

/// Whether the descriptor is no longer the socket that it was: something else in
/// the process closed it, and may own its number now, or shut it down.
pub(crate) fn is_not_ours(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EPIPE)
    )
}

/// What an error of a send means for the events in the datagram.
pub(crate) fn failure(error: &io::Error) -> PublishError {
    match error.raw_os_error() {
        // Linux when a queue discipline says so, macOS when a queue is full.
        Some(libc::ENOBUFS) => return PublishError::NoBuffer,
        Some(libc::EMSGSIZE) => return PublishError::TooLarge,
        Some(libc::EDESTADDRREQ) => return PublishError::Refused,
        Some(libc::EHOSTDOWN) => return PublishError::Unreachable,
        _ => {}
    }
    match error.kind() {
        ErrorKind::WouldBlock => PublishError::WouldBlock,
        ErrorKind::OutOfMemory => PublishError::NoBuffer,
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::NotConnected
        | ErrorKind::NotFound => PublishError::Refused,
        ErrorKind::AddrNotAvailable
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown => PublishError::Unreachable,
        kind => PublishError::Failed(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_a_send_has_its_reason() {
        let refused = PublishError::Refused;
        let unreachable = PublishError::Unreachable;
        for (errno, reason) in [
            (libc::EAGAIN, PublishError::WouldBlock),
            (libc::ENOBUFS, PublishError::NoBuffer),
            (libc::ENOMEM, PublishError::NoBuffer),
            (libc::EMSGSIZE, PublishError::TooLarge),
            (libc::ECONNREFUSED, refused),
            (libc::ECONNRESET, refused),
            (libc::ENOENT, refused),
            (libc::ENOTCONN, refused),
            (libc::EDESTADDRREQ, refused),
            (libc::EADDRNOTAVAIL, unreachable),
            (libc::EHOSTDOWN, unreachable),
            (libc::EHOSTUNREACH, unreachable),
            (libc::ENETDOWN, unreachable),
            (libc::ENETUNREACH, unreachable),
            (
                libc::EPERM,
                PublishError::Failed(ErrorKind::PermissionDenied),
            ),
            (libc::EPIPE, PublishError::Failed(ErrorKind::BrokenPipe)),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(failure(&error), reason, "{error}");
        }
    }
}
