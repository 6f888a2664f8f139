//! A client's socket, over UDP or Unix, that knows whether its number is still its own.
//!
//! Owns the socket and what the kernel knows it by. The numbers of descriptors are the
//! whole process's: daemons close all that they were left, and a library that closes
//! one of its own twice closes another's. What bears the number then is somebody
//! else's, so it is neither closed here, nor connected, nor waited on. It refuses to
//! ask the kernel for that before each event: a send that fails is reason enough to
//! ask. It is made such that it fails by whatever may bear the number, a file, a pipe,
//! a TCP connection, a server's UDP socket; but a connected datagram socket, and a
//! connection over Unix, take what was meant for the bus.

use std::io;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;

use socket2::SockRef;

use crate::address::{Target, loopback};

/// Never waits, raises no signal, and writes nothing into somebody's connection: a
/// TCP socket refuses to be opened a second time, and datagram sockets do not care.
#[cfg(target_os = "linux")]
const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_FASTOPEN;
#[cfg(not(target_os = "linux"))]
const SEND_FLAGS: i32 = libc::MSG_DONTWAIT;

#[derive(Debug)]
pub(crate) enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

/// Never blocks unless its owner says so. Closed when dropped, if it is still there.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// None while it is dropped.
    socket: Option<Socket>,
    identity: Identity,
}

impl Descriptor {
    /// A socket to speak by with the bus at this address, from any free port.
    pub(crate) fn udp(bus: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(local_address(bus))?;
        socket.set_nonblocking(true)?;
        Ok(Self::of(Socket::Udp(socket)))
    }

    pub(crate) fn unix(socket: UnixDatagram) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::of(Socket::Unix(socket)))
    }

    fn of(socket: Socket) -> Self {
        let identity = Identity::of(&socket.as_ref());
        let socket = Some(socket);
        Self { socket, identity }
    }

    /// The socket by a second number, for a reactor to wait on.
    #[cfg(feature = "tokio")]
    pub(crate) fn try_clone(&self) -> io::Result<Socket> {
        self.check()?;
        Ok(match self.socket()? {
            Socket::Udp(socket) => Socket::Udp(socket.try_clone()?),
            Socket::Unix(socket) => Socket::Unix(socket.try_clone()?),
        })
    }

    /// What the kernel knows the socket by.
    #[cfg(feature = "tokio")]
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    #[inline]
    fn socket(&self) -> io::Result<&Socket> {
        self.socket.as_ref().ok_or_else(lost)
    }

    #[inline]
    pub(crate) fn as_ref(&self) -> io::Result<SockRef<'_>> {
        self.socket().map(Socket::as_ref)
    }

    /// Whether the number still bears the socket that was opened. In a forked child it
    /// is the parent's as well, and the same.
    pub(crate) fn is_ours(&self) -> bool {
        self.as_ref()
            .is_ok_and(|socket| self.identity.is_of(&socket))
    }

    /// Fails, as on a number that is free, where it is no longer ours.
    pub(crate) fn check(&self) -> io::Result<()> {
        self.is_ours().then_some(()).ok_or_else(lost)
    }

    /// To the connected peer. Datagrams go wholly or not at all, so the length says
    /// nothing.
    #[inline]
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = self.as_ref()?.send_with_flags(datagram, SEND_FLAGS);
        sent.map(drop)
    }

    pub(crate) fn send_to(&self, datagram: &[u8], target: &Target) -> io::Result<()> {
        self.check()?;
        match (self.socket()?, target) {
            (Socket::Udp(socket), Target::Udp(bus)) => socket.send_to(datagram, bus),
            (Socket::Unix(socket), Target::Unix(bus)) => socket.send_to(datagram, bus),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
        .map(drop)
    }

    /// Others' sockets are not connected to the bus.
    pub(crate) fn connect(&self, target: &Target) -> io::Result<()> {
        self.check()?;
        match (self.socket()?, target) {
            (Socket::Udp(socket), Target::Udp(bus)) => socket.connect(bus),
            (Socket::Unix(socket), Target::Unix(bus)) => socket.connect(bus),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// A datagram's length, and over UDP its sender.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Option<SocketAddr>)> {
        match self.socket()? {
            Socket::Udp(socket) => {
                let (bytes, from) = socket.recv_from(buffer)?;
                Ok((bytes, Some(from)))
            }
            Socket::Unix(socket) => Ok((socket.recv(buffer)?, None)),
        }
    }
}

impl Drop for Descriptor {
    /// Between the look and the closing a thread could still close the number and
    /// another be given it; nothing but a lock of the whole process would prevent that.
    fn drop(&mut self) {
        let is_ours = self.is_ours();
        let socket = self.socket.take();
        if !is_ours {
            std::mem::forget(socket);
        }
    }
}

/// What tells a socket from whatever else may bear its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// None where the kernel does not tell: then any socket is taken for it.
    known_by: Option<u64>,
}

impl Identity {
    fn of(socket: &SockRef<'_>) -> Self {
        let known_by = identity(socket).ok();
        Self { known_by }
    }

    /// Whether the number still bears it.
    pub(crate) fn is_of(self, socket: &SockRef<'_>) -> bool {
        match (identity(socket), self.known_by) {
            (Ok(now), then) => Some(now) == then,
            (Err(error), None) => !is_lost(&error),
            (Err(_), Some(_)) => false,
        }
    }
}

impl Socket {
    #[inline]
    fn as_ref(&self) -> SockRef<'_> {
        match self {
            Self::Udp(socket) => socket.into(),
            Self::Unix(socket) => socket.into(),
        }
    }
}

/// What no other socket has, as long as the system runs.
#[cfg(target_os = "linux")]
fn identity(socket: &SockRef<'_>) -> io::Result<u64> {
    socket.cookie()
}

/// The port, which no other UDP socket has while this one is open. Unix sockets are all
/// alike here, but no files.
#[cfg(not(target_os = "linux"))]
fn identity(socket: &SockRef<'_>) -> io::Result<u64> {
    let address = socket.local_addr()?.as_socket();
    Ok(address.map_or(0, |address| address.port().into()))
}

fn lost() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}

/// Whether it says that the descriptor is no longer the socket that it was: something
/// else in the process closed it, and may own its number now.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK))
}

/// What to bind to, to speak with `bus`: any free port; towards a bus on this
/// host its loopback address, so that no other host can send there.
fn local_address(bus: SocketAddr) -> SocketAddr {
    let mut local = bus;
    local.set_port(0);
    local.set_ip(match (bus.ip().is_loopback(), bus) {
        (true, _) => loopback(bus),
        (false, SocketAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (false, SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
    });
    local
}
