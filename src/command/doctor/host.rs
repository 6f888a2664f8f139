//! What the system tells: the one place of this command that reads files and asks for routes.
//!
//! It needs no rights, changes nothing and sends nothing. Every file is bounded.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use super::finding::{Known, NotKnown};

/// The longest file that is read, in bytes: the list of some hundred thousand sockets.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Why there is no MTU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// The kernel knows no way there.
    Unreachable(String),
    /// It could not be found out.
    NotKnown(NotKnown),
}

/// This host.
#[derive(Debug)]
pub struct Host {
    proc: PathBuf,
}

impl Host {
    /// As the kernel shows it, in `/proc`.
    pub fn system() -> Self {
        Self::at(Path::new("/proc"))
    }

    /// As it is shown in another directory.
    pub fn at(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
        }
    }

    /// A file's text, by its path under `/proc`.
    pub fn read(&self, file: &str) -> Known<String> {
        let path = self.proc.join(file);
        read_bounded(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if !cfg!(target_os = "linux") => {
                NotKnown(format!("only Linux has {}", path.display()))
            }
            _ => NotKnown(format!("{}: {error}", path.display())),
        })
    }

    /// Whether there is such a file under `/proc`.
    pub fn has(&self, file: &str) -> bool {
        self.proc.join(file).exists()
    }

    /// A kernel parameter that is one number, by its name.
    pub fn sysctl(&self, name: &str) -> Known<u64> {
        let file = format!("sys/{}", name.replace('.', "/"));
        let text = self.read(&file)?;
        let number = text.trim().parse();
        number.map_err(|_| NotKnown(format!("{name} is not a number")))
    }

    /// The MTU of the route to an address, in bytes.
    pub fn route_mtu(&self, to: SocketAddr) -> Result<u32, NoRoute> {
        route_mtu(to).map_err(|error| match error.kind() {
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                NoRoute::Unreachable(error.to_string())
            }
            _ => NoRoute::NotKnown(NotKnown(error.to_string())),
        })
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(io::Error::other("longer than 16 MiB"));
    }
    // A stranger's bytes, such as a path among the sockets, make no list unreadable.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Connects a socket, which for UDP looks up the route and sends nothing, and asks it.
#[cfg(target_os = "linux")]
fn route_mtu(to: SocketAddr) -> io::Result<u32> {
    use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
    let socket = connected(to)?;
    let mtu = match to {
        SocketAddr::V4(_) => ip_mtu(&socket),
        SocketAddr::V6(_) => ipv6_mtu(&socket),
    };
    Ok(mtu?)
}

#[cfg(not(target_os = "linux"))]
fn route_mtu(to: SocketAddr) -> io::Result<u32> {
    connected(to)?;
    Err(io::Error::other("only Linux tells the MTU of a route"))
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match to {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    // As the bus's own sockets may not either, a broadcast address is refused here.
    socket.connect(to)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_or_named() {
        let proc = tempfile::tempdir().unwrap();
        let host = Host::at(proc.path());
        std::fs::create_dir_all(proc.path().join("sys/net/core")).unwrap();
        let limit = proc.path().join("sys/net/core/rmem_max");
        let told = |host: &Host| host.sysctl("net.core.rmem_max").map_err(|why| why.0);
        assert!(told(&host).unwrap_err().contains("net/core/rmem_max"));
        for (text, number) in [("4194304\n", Some(4_194_304)), ("", None), ("-1\n", None)] {
            std::fs::write(&limit, text).unwrap();
            assert_eq!(told(&host).ok(), number, "{text:?}");
        }
        std::fs::write(&limit, b"\xff\xfe").unwrap();
        assert!(told(&host).unwrap_err().contains("is not a number"));
        let long = File::create(&limit).unwrap();
        long.set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(told(&host).unwrap_err().contains("longer than 16 MiB"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn loopback_has_an_mtu() {
        let mtu = Host::system().route_mtu("127.0.0.1:9".parse().unwrap());
        assert!(mtu.is_ok_and(|mtu| mtu >= 1_280));
    }
}
