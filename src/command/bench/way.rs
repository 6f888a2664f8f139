//! The way between a publisher or subscriber and the bus: addresses and the socket.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use hailmary_client::Address as ClientAddress;
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::bus::address::Address;
use crate::net::listener::{ListenAddress, Listener};
use crate::net::sys;

/// What a bench's sockets ask for: as much as a bus, so that they lose no more than it does.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// From a process of the bench to a bus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Way {
    /// The bus's address.
    Udp(SocketAddr),
    /// Both sockets' paths.
    Unix {
        /// The bus's.
        bus: PathBuf,
        /// This end's.
        own: PathBuf,
    },
}

impl Way {
    /// Looks the bus's name up. `own` is this end's path, if it is a Unix socket.
    pub fn find(bus: &ClientAddress, own: PathBuf) -> anyhow::Result<Self> {
        Ok(match bus {
            ClientAddress::Udp { host, port } => {
                let found = resolve(host, *port).with_context(|| format!("cannot find {bus}"))?;
                Way::Udp(found)
            }
            ClientAddress::Unix(path) => Way::Unix {
                bus: path.clone(),
                own,
            },
        })
    }

    /// The bus's address.
    pub fn bus(&self) -> Address {
        match self {
            Way::Udp(bus) => Address::Ip(*bus),
            Way::Unix { bus, .. } => Address::Unix(bus.as_os_str().as_bytes().into()),
        }
    }

    /// Opens this end: bound, so that the bus can answer, with large buffers.
    pub fn open(&self) -> anyhow::Result<Listener> {
        let address = match self {
            Way::Udp(bus) => ListenAddress::Udp(SocketAddr::new(own_ip(bus.ip()), 0)),
            Way::Unix { own, .. } => ListenAddress::Unix(own.clone()),
        };
        let socket = Listener::bind(&address, SOCKET_BUFFER_BYTES)?;
        if let Way::Unix { own, .. } = self {
            // For a bus of another user.
            fs::set_permissions(own, fs::Permissions::from_mode(0o666))?;
        }
        if sys::force_send_buffer(socket.as_fd(), SOCKET_BUFFER_BYTES).is_err() {
            SockRef::from(&socket).set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
        }
        Ok(socket)
    }
}

/// An IPv4 address where there are both kinds, as clients do.
fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let all: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    let found = all.iter().find(|ip| ip.is_ipv4()).or(all.first());
    found.copied().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What to bind to, to speak with a bus: towards one on this host its loopback address.
fn own_ip(bus: IpAddr) -> IpAddr {
    match (bus, bus.is_loopback()) {
        (IpAddr::V4(_), true) => Ipv4Addr::LOCALHOST.into(),
        (IpAddr::V4(_), false) => Ipv4Addr::UNSPECIFIED.into(),
        (IpAddr::V6(_), true) => Ipv6Addr::LOCALHOST.into(),
        (IpAddr::V6(_), false) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A directory for the run's Unix sockets, gone with this value.
#[derive(Debug)]
pub struct SocketDirectory(PathBuf);

impl SocketDirectory {
    /// Makes one that others may pass through but not list.
    pub fn make(run: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("hailmary-bench-{run}"));
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// The path of the socket with this name.
    pub fn socket(&self, name: &str) -> PathBuf {
        let directory: &Path = &self.0;
        directory.join(name)
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        // Nothing is left to be done where this fails.
        let _ = fs::remove_dir_all(&self.0);
    }
}
