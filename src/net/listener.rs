//! The sockets that datagrams come in by, and how all sockets are opened.

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::bus::address::Address;
use crate::bus::overload::Fill;

use super::address::to_sockaddr;
use super::sys::{self, Ask};

/// What a datagram of up to some 1,400 bytes is charged to a receive buffer, on Linux.
pub(crate) const DATAGRAM_CHARGE_BYTES: usize = 2_304;

/// How many bytes the kernel's account shows for each byte asked for: Linux doubles a buffer, for
/// its own bookkeeping (socket(7)).
const ACCOUNT_FACTOR: usize = if cfg!(target_os = "linux") { 2 } else { 1 };

/// Datagrams that a buffer holds which no wait of the loop lets overflow: twice what one core
/// can send in the default wait.
const LARGE_BUFFER_PLACES: usize = 512;

/// Datagrams in one batch that are a crowd for every smaller buffer: with them gone, others wait.
const CROWD_MAX: usize = 64;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// On UDP. Port 0: any that is free.
    Udp(SocketAddr),
    /// On a Unix datagram socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Udp(address) => write!(f, "udp://{address}"),
            ListenAddress::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody has the port.
    #[error("{0} is in use: another bus may be running, or choose another port")]
    PortInUse(ListenAddress),
    /// Somebody listens on the path.
    #[error("{0} is in use by a running process")]
    PathInUse(ListenAddress),
    /// The path is taken by what is no socket, and is left as it is.
    #[error("{0} exists and is not a socket")]
    NotASocket(ListenAddress),
    /// The port cannot be shared among data threads.
    #[error("cannot share {0} among workers: {1}")]
    Share(String, io::Error),
    /// What the system says.
    #[error("cannot listen on {0}: {1}")]
    System(ListenAddress, io::Error),
}

/// A bound socket that datagrams come in by.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    name: String,
    /// Its path and the file's device and number, to be removed by none but its owner.
    path: Option<(PathBuf, (u64, u64))>,
    buffer: Buffer,
    ask: Ask,
    /// See [`Listener::is_crowded`].
    crowd: usize,
}

/// A receive buffer, as asked for and as granted, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// What the configuration wants.
    pub wanted: usize,
    /// What the kernel says it granted.
    pub granted: usize,
}

impl Buffer {
    /// What the kernel's own account would show had it granted what is wanted, in bytes.
    #[must_use]
    pub fn wanted_by_account(&self) -> usize {
        self.wanted.saturating_mul(ACCOUNT_FACTOR)
    }
}

impl Listener {
    /// Binds a socket without waiting modes, with a large receive buffer.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind(address: &ListenAddress, receive_buffer_bytes: usize) -> Result<Self, BindError> {
        let system = |error| BindError::System(address.clone(), error);
        let (socket, path) = match address {
            ListenAddress::Udp(ip) => (bind_udp(address, *ip)?, None),
            ListenAddress::Unix(path) => {
                let socket = bind_unix(address, path)?;
                (socket, Some((path.clone(), file_id(path).map_err(system)?)))
            }
        };
        let granted = first_receive_buffer(&socket, receive_buffer_bytes).map_err(system)?;
        let name = match socket.local_addr().map_err(system)?.as_socket() {
            Some(ip) => ListenAddress::Udp(ip).to_string(),
            None => address.to_string(),
        };
        let buffer = Buffer {
            wanted: receive_buffer_bytes,
            granted,
        };
        let places = match path {
            Some(_) => unix_queue_places(),
            None => granted / DATAGRAM_CHARGE_BYTES,
        };
        Ok(Self {
            socket,
            name,
            path,
            buffer,
            ask: Ask::Source,
            crowd: crowd(places),
        })
    }

    /// Another socket on the same port, for another data thread: the kernel deals the flows out
    /// among them. None for a Unix socket, which cannot share its path.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn share(&self) -> Result<Option<Self>, BindError> {
        let share = || {
            let Some(ip) = self.socket.local_addr()?.as_socket() else {
                return Ok(None);
            };
            // Only now: had it been so when this one was bound, it could share a stranger's port.
            self.socket.set_reuse_port(true)?;
            let socket = open(Domain::for_address(ip))?;
            socket.set_reuse_port(true)?;
            bind_ip(&socket, ip)?;
            Ok(Some(Self {
                name: self.name.clone(),
                path: None,
                ask: self.ask,
                crowd: self.crowd,
                buffer: Buffer {
                    granted: first_receive_buffer(&socket, self.buffer.wanted)?,
                    ..self.buffer
                },
                socket,
            }))
        };
        share().map_err(|error| BindError::Share(self.name.clone(), error))
    }

    /// Its address with scheme and the real port: the label of its metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address with the real port: where its own datagrams come from.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn address(&self) -> io::Result<Address> {
        let address = self.socket.local_addr()?;
        match (address.as_socket(), &self.path) {
            (Some(ip), _) => Ok(Address::Ip(ip)),
            (None, Some((path, _))) => Ok(Address::Unix(path.as_os_str().as_bytes().into())),
            (None, None) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// Its receive buffer.
    #[must_use]
    pub fn buffer(&self) -> Buffer {
        self.buffer
    }

    /// What is asked of each datagram.
    #[must_use]
    pub fn ask(&self) -> Ask {
        self.ask
    }

    /// Says what is to be asked of each datagram from now on: of those that wait already nothing
    /// but their source is known. Credentials are a Unix socket's: a UDP one is left as it is.
    ///
    /// # Errors
    ///
    /// Where the system refuses, or does not tell credentials. It is left as it was then.
    pub fn set_ask(&mut self, ask: Ask) -> io::Result<()> {
        if self.path.is_some() && self.ask != ask {
            sys::ask_for(ask, self.socket.as_fd())?;
            self.ask = ask;
        }
        Ok(())
    }

    /// How full its buffer is. Where the system does not tell, as full as can be.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let memory = sys::socket_memory(self.socket.as_fd());
        memory.map_or(Fill::of(1, 1), |memory| {
            Fill::of(memory.receive_used_bytes, memory.receive_buffer_bytes)
        })
    }

    /// Has the kernel let no more datagrams in: whoever sends one is told so, as if the listener
    /// were gone. What waits already is still to be taken. Where the system has no way to do so,
    /// what comes between the last datagram taken and the end is lost.
    pub fn shut(&self) {
        // Connected to itself a UDP socket hears of nobody else.
        let _ = match self.address() {
            Ok(Address::Ip(own)) => self.socket.connect(&reachable(own).into()),
            _ => self.socket.shutdown(Shutdown::Read),
        };
    }

    /// Wants another receive buffer from now on.
    ///
    /// # Errors
    ///
    /// What the system says. The buffer is left as it was then.
    pub fn resize(&mut self, receive_buffer_bytes: usize) -> io::Result<()> {
        let granted = other_receive_buffer(&self.socket, receive_buffer_bytes)?;
        self.buffer = Buffer {
            wanted: receive_buffer_bytes,
            granted,
        };
        if self.path.is_none() {
            self.crowd = crowd(granted / DATAGRAM_CHARGE_BYTES);
        }
        Ok(())
    }

    /// Whether so many datagrams, taken at once, mean that the buffer may have been half full.
    #[must_use]
    pub fn is_crowded(&self, taken: usize) -> bool {
        taken >= self.crowd
    }

    /// Sends one datagram from this very socket, so that it comes from where was asked.
    ///
    /// # Errors
    ///
    /// What the kernel says, "would block" included.
    pub fn answer(&self, to: &Address, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, &to_sockaddr(to)?).map(|_| ())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, id)) = &self.path
            && file_id(path).is_ok_and(|now| now == *id)
        {
            // Gone already is as good as removed.
            let _ = fs::remove_file(path);
        }
    }
}

/// A listener's address as one that can be sent to from this host.
#[must_use]
pub fn reachable(listener: SocketAddr) -> SocketAddr {
    let mut reachable = listener;
    if listener.ip().is_unspecified() {
        reachable.set_ip(match listener {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    reachable
}

/// Opens a socket to send by, with a large send buffer, so that datagrams which wait for one
/// dead host's address leave room for the living.
///
/// # Errors
///
/// Where this host lacks the address family, or sockets.
pub fn open_egress(domain: Domain, send_buffer_bytes: usize) -> io::Result<Socket> {
    let socket = open(domain)?;
    // It is new: there is no larger buffer to keep.
    sys::force_send_buffer(socket.as_fd(), send_buffer_bytes)
        .or_else(|_| socket.set_send_buffer_size(send_buffer_bytes))?;
    sys::enable_error_queue(socket.as_fd(), domain)?;
    Ok(socket)
}

/// Gives a socket to send by another send buffer.
///
/// # Errors
///
/// What the system says.
pub fn resize_egress(socket: &Socket, send_buffer_bytes: usize) -> io::Result<()> {
    sys::force_send_buffer(socket.as_fd(), send_buffer_bytes).or_else(|_| {
        let size = Socket::send_buffer_size;
        resize_within(
            socket,
            send_buffer_bytes,
            size,
            Socket::set_send_buffer_size,
        )
    })
}

/// Gives a socket another buffer, as far as the system's maximum goes. One that is larger than
/// that already, from when the program could pass the maximum, is not made smaller by the wish for
/// more than there is to have.
fn resize_within(
    socket: &Socket,
    bytes: usize,
    size: impl Fn(&Socket) -> io::Result<usize>,
    resize: impl Fn(&Socket, usize) -> io::Result<()>,
) -> io::Result<()> {
    let trial = open(Domain::UNIX)?;
    resize(&trial, bytes)?;
    let granted = size(&trial)?;
    if granted / ACCOUNT_FACTOR < bytes && granted < size(socket)? {
        return Ok(());
    }
    resize(socket, bytes)
}

fn open(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bind_udp(address: &ListenAddress, ip: SocketAddr) -> Result<Socket, BindError> {
    let bind = || {
        let socket = open(Domain::for_address(ip))?;
        bind_ip(&socket, ip)?;
        Ok(socket)
    };
    bind().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::PortInUse(address.clone()),
        _ => BindError::System(address.clone(), error),
    })
}

fn bind_ip(socket: &Socket, ip: SocketAddr) -> io::Result<()> {
    if ip.is_ipv6() {
        // So that 0.0.0.0 and [::] are two listeners, on every system alike.
        socket.set_only_v6(true)?;
    }
    socket.bind(&ip.into())
}

fn bind_unix(address: &ListenAddress, path: &Path) -> Result<Socket, BindError> {
    let system = |error| BindError::System(address.clone(), error);
    let socket = open(Domain::UNIX).map_err(system)?;
    let unix = SockAddr::unix(path).map_err(system)?;
    if let Ok(file) = fs::symlink_metadata(path) {
        if !file.file_type().is_socket() {
            return Err(BindError::NotASocket(address.clone()));
        }
        // Only a socket that nobody holds refuses: left behind by a process that was killed.
        match open(Domain::UNIX).and_then(|probe| probe.connect(&unix)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(system)?;
            }
            _ => return Err(BindError::PathInUse(address.clone())),
        }
    }
    socket.bind(&unix).map_err(system)?;
    Ok(socket)
}

/// Datagrams that wait on a Unix socket at most (unix(7)).
fn unix_queue_places() -> usize {
    /// Linux's default, which other systems come near to.
    const DEFAULT: usize = 10;
    let limit = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen");
    limit.map_or(DEFAULT, |text| text.trim().parse().unwrap_or(DEFAULT))
}

/// See [`Listener::is_crowded`]. The largest buffers are never crowded.
fn crowd(places: usize) -> usize {
    match places {
        ..LARGE_BUFFER_PLACES => (places / 2).min(CROWD_MAX),
        _ => usize::MAX,
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// The receive buffer of a new socket, which has no larger one to keep, as granted in bytes.
fn first_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<usize> {
    sys::force_receive_buffer(socket.as_fd(), bytes)
        .or_else(|_| socket.set_recv_buffer_size(bytes))?;
    granted(socket)
}

/// Another receive buffer for a socket, as granted in bytes.
fn other_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<usize> {
    if sys::force_receive_buffer(socket.as_fd(), bytes).is_err() {
        let size = Socket::recv_buffer_size;
        resize_within(socket, bytes, size, Socket::set_recv_buffer_size)?;
    }
    granted(socket)
}

fn granted(socket: &Socket) -> io::Result<usize> {
    Ok(socket.recv_buffer_size()? / ACCOUNT_FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER: usize = 1 << 16;

    fn bind(address: &ListenAddress) -> Result<Listener, BindError> {
        Listener::bind(address, BUFFER)
    }

    #[test]
    fn names_the_port_that_it_really_has() {
        let listener = bind(&ListenAddress::Udp("127.0.0.1:0".parse().unwrap())).unwrap();
        let port = listener
            .socket
            .local_addr()
            .unwrap()
            .as_socket()
            .unwrap()
            .port();
        assert_eq!(listener.name(), format!("udp://127.0.0.1:{port}"));
        let again = ListenAddress::Udp(format!("127.0.0.1:{port}").parse().unwrap());
        assert!(matches!(bind(&again), Err(BindError::PortInUse(_))));
    }

    #[cfg(all(target_os = "linux", not(feature = "portable")))]
    #[test]
    fn credentials_are_asked_of_a_unix_socket_while_they_are_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus.sock");
        let mut unix = bind(&ListenAddress::Unix(path)).unwrap();
        let mut udp = bind(&ListenAddress::Udp("127.0.0.1:0".parse().unwrap())).unwrap();
        for ask in [Ask::Source, Ask::Credentials, Ask::Credentials, Ask::Source] {
            unix.set_ask(ask).unwrap();
            assert_eq!(unix.ask(), ask);
            assert_eq!(unix.socket.passcred().unwrap(), ask == Ask::Credentials);
            udp.set_ask(ask).unwrap();
            assert_eq!(udp.ask(), Ask::Source);
        }
    }

    #[test]
    fn takes_over_a_stale_path_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus.sock");
        let address = ListenAddress::Unix(path.clone());

        let live = bind(&address).unwrap();
        assert!(matches!(bind(&address), Err(BindError::PathInUse(_))));
        drop(live);
        assert!(!path.exists(), "removed by its owner");

        let socket = open(Domain::UNIX).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        drop(socket);
        assert!(path.exists(), "stale");
        let live = bind(&address).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(live);
        assert!(path.exists(), "not the owner's any more");
        assert!(matches!(bind(&address), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn one_that_is_shut_gives_what_waits_and_takes_nothing_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus.sock");
        let mut addresses = vec![
            ListenAddress::Udp("127.0.0.1:0".parse().unwrap()),
            ListenAddress::Udp("0.0.0.0:0".parse().unwrap()),
            ListenAddress::Unix(path),
        ];
        if std::net::UdpSocket::bind("[::1]:0").is_ok() {
            addresses.push(ListenAddress::Udp("[::]:0".parse().unwrap()));
        }
        for address in addresses {
            let listener = bind(&address).unwrap();
            let (to, domain) = match listener.address().unwrap() {
                Address::Ip(ip) => (Address::Ip(reachable(ip)), Domain::for_address(ip)),
                unix => (unix, Domain::UNIX),
            };
            let to = to_sockaddr(&to).unwrap();
            let [before, connected] = [(); 2].map(|()| open(domain).unwrap());
            connected.connect(&to).unwrap();
            before.send_to(b"1", &to).unwrap();
            connected.send(b"2").unwrap();
            listener.shut();
            // The kernel says so at once, or the next time.
            let refused = [(); 2].map(|()| connected.send(b"3").is_err());
            assert!(refused.contains(&true), "{address}");
            let _ = open(domain).unwrap().send_to(b"4", &to);
            let mut socket = &listener.socket;
            let taken = [(); 3].map(|()| {
                let mut buffer = [0; 8];
                let length = io::Read::read(&mut socket, &mut buffer);
                length.map_or_else(
                    |error| error.kind().to_string(),
                    |length| String::from_utf8_lossy(&buffer[..length]).into_owned(),
                )
            });
            assert_eq!(taken, ["1", "2", "operation would block"], "{address}");
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let address = ListenAddress::Unix("/nonexistent/bus.sock".into());
        let error = bind(&address).unwrap_err().to_string();
        assert!(error.contains("unix:///nonexistent/bus.sock"), "{error}");
    }
}
