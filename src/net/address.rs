//! Between the core's addresses and the kernel's.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;

use socket2::SockAddr;

use crate::bus::address::Address;

/// An address as the kernel takes it.
///
/// # Errors
///
/// Where a Unix path is too long for the system.
pub fn to_sockaddr(address: &Address) -> io::Result<SockAddr> {
    match address {
        Address::Ip(ip) => Ok((*ip).into()),
        // A path that begins with a 0 byte is an abstract name to socket2 too.
        Address::Unix(path) => SockAddr::unix(OsStr::from_bytes(path)),
    }
}

/// An address of a datagram's source, IPv4-mapped ones as IPv4.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_becomes_ipv4_and_a_link_keeps_its_scope() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:9".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:9".parse().unwrap());
        let link: SocketAddr = "[fe80::1%3]:9".parse().unwrap();
        assert_eq!(canonical(link), link);
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error() {
        assert!(to_sockaddr(&Address::Unix(vec![b'a'; 200].into())).is_err());
    }
}
