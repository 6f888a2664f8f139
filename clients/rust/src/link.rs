//! A publisher's socket: connected, non-blocking, and never waited for.
//!
//! Owns what an error of a send means and when it is worth another try. It
//! counts no events and knows no frames.

use std::io;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;

use hailmary_proto::write::DATAGRAM_BYTES_MAX;
use socket2::SockRef;

use crate::account::Account;
use crate::address::Target;
use crate::counters::PublishError;
use crate::descriptor::{Descriptor, is_lost};

/// Room for the largest datagram and the kernel's bookkeeping beside it, in bytes.
const SEND_BUFFER_BYTES_MIN: usize = 2 * DATAGRAM_BYTES_MAX;

#[derive(Debug)]
pub(crate) struct Link {
    socket: Descriptor,
    target: Target,
}

impl Link {
    /// Opens a socket towards the bus, whether or not one is there.
    pub(crate) fn open(target: Target) -> io::Result<Self> {
        let socket = match &target {
            Target::Udp(bus) => Descriptor::udp(*bus)?,
            Target::Unix(_) => Descriptor::unix(UnixDatagram::unbound()?)?,
        };
        make_room(socket.as_ref()?);
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
    pub(crate) fn send(&self, datagram: &[u8], account: &Account) -> io::Result<()> {
        match self.socket.send(datagram) {
            Ok(()) => Ok(()),
            Err(error) => self.send_again(datagram, error, account),
        }
    }

    /// Over UDP a refusal speaks of an earlier datagram and says nothing of this
    /// one. Over Unix the bus is gone, or reads no more, or hangs with a full queue,
    /// and another may have taken its path. So the first event after a restart arrives.
    #[cold]
    fn send_again(&self, datagram: &[u8], error: io::Error, account: &Account) -> io::Result<()> {
        match (&self.target, error.raw_os_error()) {
            (Target::Udp(_), Some(libc::ECONNREFUSED)) => account.counters.count_bounced(),
            (Target::Unix(_), Some(libc::EAGAIN)) => {
                if !account.pace.is_due() || self.connect().is_err() {
                    return Err(error);
                }
            }
            (_, Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EMSGSIZE)) => {
                return Err(error);
            }
            (
                _,
                Some(
                    libc::ECONNREFUSED
                    | libc::ECONNRESET
                    | libc::ENOTCONN
                    | libc::EDESTADDRREQ
                    | libc::EPIPE,
                ),
            ) => self.connect()?,
            _ => return Err(self.socket.check().err().unwrap_or(error)),
        }
        self.socket.send(datagram)
    }

    fn connect(&self) -> io::Result<()> {
        self.socket.connect(&self.target)
    }

    /// What an error of a send means for the events in the datagram.
    pub(crate) fn failure(&self, error: &io::Error) -> PublishError {
        match (&self.target, error.raw_os_error()) {
            // The bus has shut its socket down, but not closed it yet.
            (Target::Unix(_), Some(libc::EPIPE)) => PublishError::Refused,
            _ => failure(error),
        }
    }

    /// Whether another socket is to take this one's place: because it is lost, or
    /// was shut down; or because it may not see that this host's address has changed,
    /// or whose end was shut down, which is tried now and then.
    pub(crate) fn is_to_be_replaced(&self, error: &io::Error, account: &Account) -> bool {
        match (&self.target, error.raw_os_error()) {
            _ if is_lost(error) => true,
            (Target::Udp(_), Some(libc::EPIPE)) => true,
            (Target::Unix(_), Some(libc::EPIPE)) | (_, Some(libc::EINVAL)) => account.pace.is_due(),
            _ => failure(error) == PublishError::Unreachable && account.pace.is_due(),
        }
    }
}

/// Some systems (macOS) take no datagram larger than the send buffer, which they
/// make small. Where more is not granted, large events are refused one by one.
fn make_room(socket: SockRef<'_>) {
    if !matches!(socket.send_buffer_size(), Ok(bytes) if bytes >= SEND_BUFFER_BYTES_MIN) {
        let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES_MIN);
    }
}

/// Whether it says that there is no bus, and another may come.
fn is_absence(reason: PublishError) -> bool {
    matches!(reason, PublishError::Refused | PublishError::Unreachable)
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

    #[test]
    fn a_route_that_fails_gets_another_socket_now_and_then_and_a_lost_one_at_once() {
        let target = Target::Udp("127.0.0.1:1".parse().unwrap());
        let link = Link::open(target).unwrap();
        for (errno, replaced) in [
            (libc::EHOSTUNREACH, [true, false]),
            (libc::EINVAL, [true, false]),
            (libc::EPIPE, [true, true]),
            (libc::EBADF, [true, true]),
            (libc::ENOTSOCK, [true, true]),
            (libc::EAGAIN, [false, false]),
            (libc::ECONNREFUSED, [false, false]),
        ] {
            let (error, account) = (io::Error::from_raw_os_error(errno), Account::new(7));
            let is_replaced = [(); 2].map(|()| link.is_to_be_replaced(&error, &account));
            assert_eq!(is_replaced, replaced, "{error}");
        }
    }
}
