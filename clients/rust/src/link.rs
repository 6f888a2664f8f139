//! A publisher's socket: connected, non-blocking, and never waited for.
//!
//! Owns what an error of a send means and when it is worth another try. It
//! counts no events and knows no frames.

use std::io;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hailmary_proto::write::DATAGRAM_BYTES_MAX;
use socket2::SockRef;

use crate::address::{Target, loopback};
use crate::publisher::PublishError;

/// The shortest time between two tries to connect again. A bus takes longer than
/// this to restart, and one call in 100 ms is nothing.
const RECONNECT_MIN: Duration = Duration::from_millis(100);

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
    opened: Instant,
    /// In milliseconds since `opened`.
    reconnect_at_ms: AtomicU64,
    bounced: AtomicU64,
}

impl Link {
    /// Opens a socket towards the bus, whether or not one is there.
    pub(crate) fn open(target: Target) -> io::Result<Self> {
        let link = Self {
            socket: Socket::open(&target)?,
            target,
            opened: Instant::now(),
            reconnect_at_ms: AtomicU64::new(0),
            bounced: AtomicU64::new(0),
        };
        match link.connect() {
            Err(error) if !is_absence(failure(&error)) => Err(error),
            _ => Ok(link),
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// How often the kernel said that an earlier datagram found nobody.
    pub(crate) fn bounced(&self) -> u64 {
        self.bounced.load(Ordering::Relaxed)
    }

    /// Hands one datagram to the kernel, or says at once why not.
    pub(crate) fn send(&self, datagram: &[u8]) -> Result<(), PublishError> {
        let Err(error) = self.socket.send(datagram) else {
            return Ok(());
        };
        match failure(&error) {
            reason if is_absence(reason) && self.is_worth_another_try(&error) => {
                self.socket.send(datagram).map_err(|error| failure(&error))
            }
            reason => Err(reason),
        }
    }

    /// Over UDP a refusal speaks of an earlier datagram and says nothing of this
    /// one. Otherwise the socket has no peer, and one is looked for.
    #[cold]
    fn is_worth_another_try(&self, error: &io::Error) -> bool {
        match self.socket {
            Socket::Udp(_) if error.kind() == ErrorKind::ConnectionRefused => {
                self.bounced.fetch_add(1, Ordering::Relaxed);
                true
            }
            _ => self.may_reconnect() && self.connect().is_ok(),
        }
    }

    /// True for one thread in each interval. The clock is read after a failure only.
    fn may_reconnect(&self) -> bool {
        let now = millis(self.opened.elapsed());
        let due = self.reconnect_at_ms.load(Ordering::Relaxed);
        let next = now.saturating_add(millis(RECONNECT_MIN));
        let claim = || {
            self.reconnect_at_ms
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
        };
        now >= due && claim().is_ok()
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whether it says that there is no bus, and another may come.
fn is_absence(reason: PublishError) -> bool {
    matches!(reason, PublishError::Refused | PublishError::Unreachable)
}

/// What an error of a send means for the events in the datagram.
fn failure(error: &io::Error) -> PublishError {
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
