//! Where a datagram came from and where one goes to. Plain values: nothing here opens a socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where a datagram came from, borrowed from the buffer that the kernel filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// Over UDP. An IPv4-mapped IPv6 address is given as IPv4.
    Ip(SocketAddr),
    /// Over a Unix socket, which is to say from this host.
    Unix {
        /// The sender's path, or its abstract name behind a 0 byte. Empty where the sender is not
        /// bound, and so cannot be answered.
        path: &'a [u8],
        /// Whom it runs as, where the kernel was asked and told.
        credentials: Option<Credentials>,
    },
}

impl Source<'_> {
    /// The same as a value that outlives the datagram.
    #[must_use]
    pub fn to_address(self) -> Address {
        match self {
            Source::Ip(address) => Address::Ip(address),
            Source::Unix { path, .. } => Address::Unix(path.into()),
        }
    }

    /// Who it is to rules of access.
    #[must_use]
    #[inline]
    pub fn peer(self) -> Peer {
        match self {
            Source::Ip(address) => Peer::Ip(address.ip().to_canonical()),
            Source::Unix { credentials, .. } => Peer::Unix(credentials),
        }
    }
}

/// Whom a process of this host runs as, as the kernel says: its real user and group, or its
/// effective or saved ones where it shows those itself. Who may change users may show any
/// (unix(7)). Of further groups that it is in nothing is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its user's number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
}

/// Who sends or holds a lease, as far as rules of access can tell one from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A host. An IPv4-mapped IPv6 address is given as IPv4.
    Ip(IpAddr),
    /// A process of this host, over a Unix socket. None where nothing is told of it.
    Unix(Option<Credentials>),
}

/// Where a subscriber's datagrams go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// Over UDP.
    Ip(SocketAddr),
    /// To a Unix socket: its path, or its abstract name behind a 0 byte.
    Unix(Box<[u8]>),
}

impl Address {
    /// Whether a datagram came from here.
    #[must_use]
    pub fn is_source(&self, source: Source<'_>) -> bool {
        match (self, source) {
            (Address::Ip(address), Source::Ip(from)) => *address == from,
            (Address::Unix(own), Source::Unix { path, .. }) => **own == *path,
            _ => false,
        }
    }

    /// Whether what goes there stays on this host, where a datagram costs the same at any size.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Address::Ip(address) => address.ip().to_canonical().is_loopback(),
            Address::Unix(_) => true,
        }
    }

    /// Who is held to account for it: see [`Origin`].
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self {
            Address::Ip(address) => Origin::of(address.ip()),
            Address::Unix(_) => Origin::Unix,
        }
    }

    /// The bytes that a cookie binds: unlike for any two addresses.
    pub(super) fn cookie_bytes(&self) -> Vec<u8> {
        match self {
            Address::Ip(SocketAddr::V4(v4)) => {
                [&[4], &v4.ip().octets()[..], &v4.port().to_be_bytes()].concat()
            }
            Address::Ip(SocketAddr::V6(v6)) => [
                &[6],
                &v6.ip().octets()[..],
                &v6.port().to_be_bytes(),
                &v6.scope_id().to_be_bytes(),
            ]
            .concat(),
            Address::Unix(path) => [&[1], &path[..]].concat(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => write!(f, "udp://{address}"),
            Address::Unix(path) => match path.split_first() {
                Some((0, name)) => write!(f, "unix://@{}", name.escape_ascii()),
                _ => write!(f, "unix://{}", path.escape_ascii()),
            },
        }
    }
}

/// Whom caps and rates count against: a host may have any port, an IPv6 host any address of
/// its /64 network, and all of this host's Unix sockets are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An IPv4 address, or the first 64 bits of an IPv6 address.
    Network(u64),
    /// Any Unix socket.
    Unix,
}

impl Origin {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Origin::Network(u64::from(v4.to_bits())),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                let network = [a, b, c, d]
                    .iter()
                    .fold(0, |bits: u64, segment| bits << 16 | u64::from(*segment));
                Origin::Network(network)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    #[test]
    fn an_ipv6_host_is_its_network_and_a_mapped_address_is_ipv4() {
        assert_eq!(
            ip("[2001:db8::1]:1").origin(),
            ip("[2001:db8::2]:9").origin()
        );
        assert_ne!(
            ip("[2001:db8::1]:1").origin(),
            ip("[2001:db8:0:1::1]:1").origin()
        );
        assert_eq!(
            ip("[::ffff:10.0.0.1]:1").origin(),
            ip("10.0.0.1:2").origin()
        );
        assert_ne!(ip("10.0.0.1:1").origin(), ip("10.0.0.2:1").origin());
    }

    #[test]
    fn only_loopback_and_unix_are_local() {
        assert!(ip("127.0.0.1:1").is_local() && ip("[::1]:1").is_local());
        assert!(Address::Unix(b"/x"[..].into()).is_local());
        assert!(!ip("10.0.0.1:1").is_local() && !ip("[fe80::1]:1").is_local());
    }

    #[test]
    fn a_path_prints_without_control_characters() {
        let abstract_name = Address::Unix(b"\0hail\n"[..].into());
        assert_eq!(abstract_name.to_string(), "unix://@hail\\n");
        assert_eq!(
            Address::Unix(b"/run/x"[..].into()).to_string(),
            "unix:///run/x"
        );
    }
}
