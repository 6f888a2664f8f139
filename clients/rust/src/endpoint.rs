//! The socket of whoever wants answers: bound, not connected, with a deadline.
//!
//! Owns how to open it, how to wait on it, and where it lies if it is a Unix
//! socket. It is not connected because a bus sends events from another socket
//! than the one it takes requests at, and a connected one would not see them.

use std::io;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hailmary_proto::write::DATAGRAM_BYTES_MAX;
#[cfg(feature = "tokio")]
use tokio::io::Interest;

use crate::address::Target;
use crate::descriptor::Descriptor;
#[cfg(feature = "tokio")]
use crate::descriptor::{Identity, Socket};
use crate::fork;
use crate::lease::Origin;
use crate::random::random_id;

/// One byte more than a datagram may have, so that a longer one shows.
pub(crate) const BUFFER_BYTES: usize = DATAGRAM_BYTES_MAX + 1;

/// The kernel counts in microseconds, and takes none at all for a wait without end.
const WAIT_MIN: Duration = Duration::from_micros(1);

/// A datagram that was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) bytes: usize,
    pub(crate) origin: Origin,
}

/// Never blocks but within [`Endpoint::receive`].
#[derive(Debug)]
pub(crate) struct Endpoint {
    socket: Descriptor,
    bus: Target,
    _directory: Option<SocketDirectory>,
    /// What the kernel was last told, to spare telling it again.
    timeout: Option<Duration>,
}

impl Endpoint {
    /// Asks for a receive buffer of so many bytes. The kernel may grant less
    /// without a word: see [`receive_buffer_bytes`](Self::receive_buffer_bytes).
    pub(crate) fn open(target: &Target, receive_buffer_bytes: usize) -> io::Result<Self> {
        let (socket, directory) = match target {
            Target::Udp(bus) => (Descriptor::udp(*bus)?, None),
            Target::Unix(_) => {
                let (socket, directory) = bind_unix()?;
                (Descriptor::unix(socket)?, directory)
            }
        };
        socket
            .as_ref()?
            .set_recv_buffer_size(receive_buffer_bytes)?;
        Ok(Self {
            socket,
            bus: target.clone(),
            _directory: directory,
            timeout: None,
        })
    }

    /// What the kernel charges against. Linux grants twice what was asked for,
    /// for its own bookkeeping, or `net.core.rmem_max` twice (socket(7)).
    pub(crate) fn receive_buffer_bytes(&self) -> io::Result<usize> {
        self.socket.as_ref()?.recv_buffer_size()
    }

    /// Sends to the bus without waiting.
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, &self.bus)
    }

    /// The next datagram, waited for at most so long; `None` if there was none.
    /// A busy socket costs one system call each, an idle one six.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut [u8],
        wait: Duration,
    ) -> io::Result<Option<Arrival>> {
        match absent_as_none(self.receive_now(buffer))? {
            None if !wait.is_zero() => self.receive_waiting(buffer, wait),
            arrival => Ok(arrival),
        }
    }

    /// The next datagram, if one is there; `WouldBlock` if not.
    ///
    /// A Unix socket bears the name that its owner bound it by, which is another
    /// than ours where the two see different file systems, as in containers. So
    /// there the origin is not told by it: the nonce, which the bus alone was
    /// given, must do.
    pub(crate) fn receive_now(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let (bytes, from) = self.socket.receive(buffer)?;
        let origin = match (from, &self.bus) {
            (Some(from), Target::Udp(bus))
                if from.ip() != bus.ip() || from.port() != bus.port() =>
            {
                Origin::Elsewhere
            }
            _ => Origin::Bus,
        };
        Ok(Arrival { bytes, origin })
    }

    /// As [`receive_now`](Self::receive_now), after silence: fails where the socket is lost.
    #[cfg(feature = "tokio")]
    pub(crate) fn receive_late(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        self.socket.check()?;
        self.receive_now(buffer)
    }

    /// Nobody else's socket is made to wait.
    fn receive_waiting(
        &mut self,
        buffer: &mut [u8],
        wait: Duration,
    ) -> io::Result<Option<Arrival>> {
        self.socket.check()?;
        let wait = wait.max(WAIT_MIN);
        if self.timeout != Some(wait) {
            self.socket.as_ref()?.set_read_timeout(Some(wait))?;
            self.timeout = Some(wait);
        }
        self.socket.as_ref()?.set_nonblocking(false)?;
        let outcome = self.receive_now(buffer);
        self.socket.as_ref()?.set_nonblocking(true)?;
        absent_as_none(outcome)
    }
}

/// Tells tokio's reactor of an endpoint's datagrams, by a second descriptor of its
/// socket. (A reactor that is given the first one must trust that it stays the same,
/// which would take `unsafe`.)
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub(crate) struct Readiness {
    registered: Registered,
    identity: Identity,
    /// The process whose reactor it is.
    generation: usize,
}

#[cfg(feature = "tokio")]
#[derive(Debug)]
enum Registered {
    Udp(tokio::net::UdpSocket),
    Unix(tokio::net::UnixDatagram),
    /// Given up: see [`Readiness`]'s drop.
    None,
}

#[cfg(feature = "tokio")]
impl Readiness {
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O.
    pub(crate) fn of(endpoint: &Endpoint) -> io::Result<Self> {
        Ok(Self {
            registered: match endpoint.socket.try_clone()? {
                Socket::Udp(socket) => Registered::Udp(socket.try_into()?),
                Socket::Unix(socket) => Registered::Unix(socket.try_into()?),
            },
            identity: endpoint.socket.identity(),
            generation: fork::generation(),
        })
    }

    /// Waits till `read` gives something else than `WouldBlock`.
    pub(crate) async fn read<R>(&self, read: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        match &self.registered {
            Registered::Udp(socket) => socket.async_io(Interest::READABLE, read).await,
            Registered::Unix(socket) => socket.async_io(Interest::READABLE, read).await,
            Registered::None => Err(ErrorKind::NotConnected.into()),
        }
    }

    fn is_ours(&self) -> bool {
        let is_same = match &self.registered {
            Registered::Udp(socket) => self.identity.is_of(&socket.into()),
            Registered::Unix(socket) => self.identity.is_of(&socket.into()),
            Registered::None => false,
        };
        is_same && self.generation == fork::generation()
    }
}

#[cfg(feature = "tokio")]
impl Drop for Readiness {
    /// The reactor is told of the end by number. Where that is no longer ours, another's
    /// socket would become deaf; and a forked child has the parent's reactor, which goes
    /// on there. Both are left alone, and what little the reactor keeps of it with them.
    fn drop(&mut self) {
        if !self.is_ours() {
            std::mem::forget(std::mem::replace(&mut self.registered, Registered::None));
        }
    }
}

/// A timeout shows as `WouldBlock`, a signal as `Interrupted`: the caller looks
/// at its clock and comes again. A refusal speaks of a request that got lost.
pub(crate) fn absent_as_none(outcome: io::Result<Arrival>) -> io::Result<Option<Arrival>> {
    match outcome {
        Ok(arrival) => Ok(Some(arrival)),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::Interrupted
            | ErrorKind::ConnectionRefused => Ok(None),
            _ => Err(error),
        },
    }
}

/// A name in Linux's abstract namespace leaves nothing behind in the file
/// system; elsewhere there are only files.
fn bind_unix() -> io::Result<(UnixDatagram, Option<SocketDirectory>)> {
    match bind_abstract() {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let (socket, directory) = bind_in_directory(&std::env::temp_dir())?;
            Ok((socket, Some(directory)))
        }
        bound => Ok((bound?, None)),
    }
}

#[cfg(target_os = "linux")]
fn bind_abstract() -> io::Result<UnixDatagram> {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("hailmary-{:016x}", random_id()?);
    UnixDatagram::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn bind_abstract() -> io::Result<UnixDatagram> {
    Err(ErrorKind::Unsupported.into())
}

/// A directory with one socket in it, both of which go with this value. Others
/// may pass through but not list it, so that a bus of another user can reach the
/// socket and nobody else finds it.
#[derive(Debug)]
struct SocketDirectory {
    path: PathBuf,
    /// The process that it belongs to, as none of its children does.
    generation: usize,
}

/// `rwx--x--x`: see [`SocketDirectory`].
const DIRECTORY_MODE: u32 = 0o711;
/// Whoever knows the name may send.
const SOCKET_MODE: u32 = 0o666;

fn bind_in_directory(parent: &Path) -> io::Result<(UnixDatagram, SocketDirectory)> {
    let path = parent.join(format!("hailmary-{:016x}", random_id()?));
    std::fs::DirBuilder::new()
        .mode(DIRECTORY_MODE)
        .create(&path)?;
    let generation = fork::generation();
    let directory = SocketDirectory { path, generation };
    let name = directory.socket();
    let socket = UnixDatagram::bind(&name)?;
    std::fs::set_permissions(&name, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok((socket, directory))
}

impl SocketDirectory {
    fn socket(&self) -> PathBuf {
        self.path.join("s")
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            return;
        }
        // Nothing is left to be done where this fails.
        let _ = std::fs::remove_file(self.socket());
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_socket_in_a_directory_is_reachable_and_goes_with_its_owner() {
        let (socket, directory) = bind_in_directory(&std::env::temp_dir()).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"frame", directory.socket()).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
        let path = directory.path.clone();
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn tells_the_bus_from_others_and_returns_in_time() {
        let bus = UdpSocket::bind("127.0.0.1:0").unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = Target::Udp(bus.local_addr().unwrap());
        let mut endpoint = Endpoint::open(&target, 1 << 16).unwrap();
        endpoint.send(b"ask").unwrap();
        let mut buffer = [0; 8];
        let (_, from) = bus.recv_from(&mut buffer).unwrap();

        let wait = Duration::from_secs(60);
        bus.send_to(b"answer", from).unwrap();
        let arrival = endpoint.receive(&mut buffer, wait).unwrap().unwrap();
        assert_eq!((arrival.bytes, arrival.origin), (6, Origin::Bus));
        stranger.send_to(b"event", from).unwrap();
        let arrival = endpoint.receive(&mut buffer, wait).unwrap().unwrap();
        assert_eq!((arrival.bytes, arrival.origin), (5, Origin::Elsewhere));

        let brief = Duration::from_millis(5);
        assert!(endpoint.receive(&mut buffer, brief).unwrap().is_none());
        assert!(
            endpoint
                .receive(&mut buffer, Duration::ZERO)
                .unwrap()
                .is_none()
        );
    }
}
