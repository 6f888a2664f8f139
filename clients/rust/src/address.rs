//! Where a bus is: the address as people and configurations write it.
//!
//! Owns parsing, printing and the environment's default. It opens nothing and
//! asks no resolver by itself: a name is looked up once, by whoever opens a
//! socket, so that sending an event never waits for a name server.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// The environment variable that clients take their default address from.
pub const BUS_VARIABLE: &str = "HAILMARY_BUS";

/// The environment variable that turns publishing off where it is `1` (or `true`,
/// `yes`, `on`), as in an application's tests: see [`Publisher::from_env`](crate::Publisher::from_env).
pub const DISABLE_VARIABLE: &str = "HAILMARY_DISABLE";

/// The UDP port of a bus.
pub const BUS_PORT: u16 = 7277;

/// Where a bus listens unless told otherwise: loopback alone.
const BUS_HOST: &str = "127.0.0.1";

/// A host's name in the DNS has at most 253 characters (RFC 1035, section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// `sockaddr_un` holds 108 bytes on Linux, the closing zero included (unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where a bus is.
///
/// Written `HOST:PORT`, `udp://HOST:PORT` or `unix:///PATH`; an IPv6 address
/// stands in brackets.
///
/// ```
/// use hailmary_client::Address;
///
/// let address: Address = "localhost:7277".parse()?;
/// assert_eq!(address.to_string(), "udp://localhost:7277");
/// let address: Address = "unix:///run/hailmary/bus.sock".parse()?;
/// assert_eq!(address, Address::Unix("/run/hailmary/bus.sock".into()));
/// # Ok::<(), hailmary_client::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A UDP socket.
    Udp {
        /// A name, an IPv4 address, or an IPv6 address without its brackets.
        host: String,
        /// The port. A daemon may listen on 0 (any free one); nobody can send there.
        port: u16,
    },
    /// A Unix datagram socket, by its absolute path.
    Unix(PathBuf),
}

/// Why a text is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is something before `://` that is neither `udp` nor `unix`.
    #[error("{0:?}: unknown scheme; write HOST:PORT, udp://HOST:PORT or unix:///PATH")]
    Scheme(String),
    /// The host is empty, too long, or has characters that no host has.
    #[error("{0:?}: no valid host before the port; write HOST:PORT, as in 127.0.0.1:7277")]
    Host(String),
    /// An IPv6 address without brackets, whose end could be a port.
    #[error("{0:?}: an IPv6 address stands in brackets, as in [::1]:7277")]
    Brackets(String),
    /// The port is missing or no number from 0 to 65535.
    #[error("{0:?}: no valid port at the end; write HOST:PORT, as in 127.0.0.1:7277")]
    Port(String),
    /// A Unix path that is not absolute, names no file, has a zero byte, or exceeds 107 bytes.
    #[error("{0:?}: no absolute path of 2 to 107 bytes; write unix:///PATH")]
    Path(String),
    /// The environment variable is no UTF-8.
    #[error("{BUS_VARIABLE} is not valid UTF-8")]
    Environment,
}

impl Address {
    /// The address that `HAILMARY_BUS` names, or `127.0.0.1:7277` where it is
    /// unset or empty.
    ///
    /// # Errors
    ///
    /// The variable's text is no address.
    pub fn from_env() -> Result<Self, AddressError> {
        match std::env::var(BUS_VARIABLE) {
            Ok(text) if text.is_empty() => Ok(Self::default()),
            Ok(text) => text.parse(),
            Err(std::env::VarError::NotPresent) => Ok(Self::default()),
            Err(std::env::VarError::NotUnicode(_)) => Err(AddressError::Environment),
        }
    }

    /// Whether a name server may be asked for it.
    pub(crate) fn is_name(&self) -> bool {
        match self {
            Self::Udp { host, .. } => host.parse::<IpAddr>().is_err() && !host.contains('%'),
            Self::Unix(_) => false,
        }
    }
}

/// Anything but a clear yes is a no, lest a typing error silence an application.
pub(crate) fn is_disabled() -> bool {
    let value = std::env::var(DISABLE_VARIABLE).unwrap_or_default();
    let value = value.trim().to_ascii_lowercase();
    ["1", "true", "yes", "on"].contains(&value.as_str())
}

/// An [`Address`] whose name has been looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Udp(SocketAddr),
    Unix(PathBuf),
}

impl Target {
    /// Looks the host's name up again, and gives an address of it if the present one
    /// is no more among them.
    pub(crate) fn resolve_another(address: &Address, present: &Self) -> Option<Self> {
        let Address::Udp { host, port } = address else {
            return None;
        };
        let addresses = look_up(host, *port).ok()?;
        let is_present = |&address: &SocketAddr| Self::Udp(address) == *present;
        (!addresses.iter().any(is_present))
            .then(|| preferred(&addresses).map(Self::Udp))
            .flatten()
    }

    /// Looks the host's name up, which may wait for a name server.
    pub(crate) fn resolve(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Udp { host, port } => Self::Udp(resolve(host, *port)?),
            Address::Unix(path) => Self::Unix(path.clone()),
        })
    }
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let nothing = || io::Error::new(io::ErrorKind::NotFound, format!("{host:?} has no address"));
    preferred(&look_up(host, port)?).ok_or_else(nothing)
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let addresses = (host, port).to_socket_addrs()?;
    Ok(addresses.map(loopback_if_unspecified).collect())
}

/// Where a name has both kinds of address an IPv4 one is taken: a bus listens at
/// 127.0.0.1 by default, and a datagram to `localhost`'s ::1 would find nobody
/// without a word.
fn preferred(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let ipv4 = addresses.iter().find(|address| address.is_ipv4());
    ipv4.or(addresses.first()).copied()
}

/// A datagram to 0.0.0.0 goes to this host, but the answer comes from 127.0.0.1
/// and would be taken for a stranger's.
fn loopback_if_unspecified(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(loopback(address));
    }
    address
}

/// The loopback address of the same family.
pub(crate) fn loopback(of: SocketAddr) -> IpAddr {
    match of {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

impl Default for Address {
    /// `127.0.0.1:7277`.
    fn default() -> Self {
        Self::Udp {
            host: BUS_HOST.to_owned(),
            port: BUS_PORT,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp { host, port } if host.contains(':') => write!(f, "udp://[{host}]:{port}"),
            Self::Udp { host, port } => write!(f, "udp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once("://") {
            None => parse_udp(text, text),
            Some(("udp", rest)) => parse_udp(text, rest),
            Some(("unix", path)) => parse_unix(text, path),
            Some(_) => Err(AddressError::Scheme(text.to_owned())),
        }
    }
}

fn parse_udp(text: &str, host_and_port: &str) -> Result<Address, AddressError> {
    let (host, port) = host_and_port
        .rsplit_once(':')
        .ok_or_else(|| AddressError::Port(text.to_owned()))?;
    Ok(Address::Udp {
        host: parse_host(text, host)?.to_owned(),
        port: parse_port(text, port)?,
    })
}

fn parse_host<'a>(text: &str, host: &'a str) -> Result<&'a str, AddressError> {
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match bracketed {
        Some(inner) if is_ipv6(inner) => Ok(inner),
        None if is_host_name(host) => Ok(host),
        None if host.contains(':') && !host.contains(['[', ']']) => {
            Err(AddressError::Brackets(text.to_owned()))
        }
        _ => Err(AddressError::Host(text.to_owned())),
    }
}

/// An IPv6 address, with a scope after `%` where it is link-local.
fn is_ipv6(inner: &str) -> bool {
    let address = inner.split_once('%').map_or(inner, |(address, _)| address);
    address.parse::<Ipv6Addr>().is_ok()
}

/// Underscores are no part of a host's name, but container networks use them.
fn is_host_name(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (1..=HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(allowed)
}

fn parse_port(text: &str, port: &str) -> Result<u16, AddressError> {
    // `u16::from_str` takes a leading plus sign, which no port has.
    let digits = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| AddressError::Port(text.to_owned()))
}

fn parse_unix(text: &str, path: &str) -> Result<Address, AddressError> {
    let names_a_file = path.starts_with('/') && !path.ends_with('/');
    if names_a_file && path.len() <= UNIX_PATH_BYTES_MAX && !path.contains('\0') {
        Ok(Address::Unix(PathBuf::from(path)))
    } else {
        Err(AddressError::Path(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn udp(host: &str, port: u16) -> Result<Address, AddressError> {
        Ok(Address::Udp {
            host: host.to_owned(),
            port,
        })
    }

    #[test]
    fn accepts_the_three_forms() {
        assert_eq!("127.0.0.1:7277".parse(), udp("127.0.0.1", 7277));
        assert_eq!("udp://bus.example:1".parse(), udp("bus.example", 1));
        assert_eq!("[::1]:0".parse(), udp("::1", 0));
        assert_eq!("udp://[fe80::1%eth0]:9".parse(), udp("fe80::1%eth0", 9));
        assert_eq!("unix:///a/b".parse(), Ok(Address::Unix("/a/b".into())));
    }

    #[test]
    fn names_what_is_wrong() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        let own = str::to_owned;
        for text in ["http://a:1", "://a:1", "UDP://a:1"] {
            assert_eq!(error(text), AddressError::Scheme(own(text)));
        }
        for text in ["", "localhost", "a:", "a:65536", "a:+1", "a:-1", "a:1 "] {
            assert_eq!(error(text), AddressError::Port(own(text)));
        }
        for text in [":7277", "a b:1", "[]:1", "[a]:1", "[::1:1", "ä:1"] {
            assert_eq!(error(text), AddressError::Host(own(text)));
        }
        for text in ["::1:7277", "udp://fe80::1:7277"] {
            assert_eq!(error(text), AddressError::Brackets(own(text)));
        }
        let long = format!("unix:///{}", "x".repeat(UNIX_PATH_BYTES_MAX));
        for text in ["unix://a", "unix://", "unix:///", "unix:///a\0b", &long] {
            assert_eq!(error(text), AddressError::Path(own(text)));
        }
    }

    #[test]
    fn prefers_ipv4_where_a_name_has_both() {
        assert!(resolve("localhost", 1).unwrap().is_ipv4());
        assert_eq!(resolve("::1", 1).unwrap().to_string(), "[::1]:1");
    }

    #[test]
    fn asks_this_host_at_its_loopback_address() {
        assert_eq!(resolve("0.0.0.0", 1).unwrap().to_string(), "127.0.0.1:1");
        assert_eq!(resolve("::", 1).unwrap().to_string(), "[::1]:1");
    }

    #[test]
    fn another_address_is_one_that_the_name_did_not_have() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        let localhost = address("localhost:1");
        let target = |text: &str| Target::Udp(text.parse().unwrap());
        let another = |present: &str| Target::resolve_another(&localhost, &target(present));
        assert_eq!(another("127.0.0.1:1"), None);
        assert_eq!(another("192.0.2.1:1"), Some(target("127.0.0.1:1")));
        assert!(localhost.is_name());
        for text in ["[fe80::1%lo]:1", "[::1]:1", "127.0.0.1:1", "unix:///a"] {
            assert!(!address(text).is_name(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_as_itself(text in "(udp://|unix://)?[a-z0-9:./\\[\\]%-]{0,24}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
