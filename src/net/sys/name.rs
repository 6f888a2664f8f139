//! Addresses as the kernel writes them: sockaddr(3type), ip(7), ipv6(7).
//!
//! They are kept as bytes, so that whatever the kernel writes, or does not, is a value of its type.

use std::mem::offset_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::net::address::canonical;

/// Room for any address.
pub(super) const NAME_BYTES: usize = size_of::<libc::sockaddr_storage>();

/// The same, as the kernel is told it.
#[expect(clippy::cast_possible_truncation, reason = "128 bytes")]
pub(super) const NAME_LENGTH: libc::socklen_t = NAME_BYTES as libc::socklen_t;

/// An address, or zeros.
pub(super) type NameBytes = [u8; NAME_BYTES];

/// The address, if it is of the internet. IPv4-mapped ones come as IPv4.
#[inline]
pub(super) fn read_ip(name: &NameBytes) -> Option<SocketAddr> {
    use libc::{sockaddr, sockaddr_in, sockaddr_in6};
    let family = u16::from_ne_bytes(field(name, offset_of!(sockaddr, sa_family)));
    match libc::c_int::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = field(name, offset_of!(sockaddr_in, sin_addr));
            let port = u16::from_be_bytes(field(name, offset_of!(sockaddr_in, sin_port)));
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = field(name, offset_of!(sockaddr_in6, sin6_addr));
            let port = u16::from_be_bytes(field(name, offset_of!(sockaddr_in6, sin6_port)));
            let scope = u32::from_ne_bytes(field(name, offset_of!(sockaddr_in6, sin6_scope_id)));
            let v6 = SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope);
            Some(canonical(v6.into()))
        }
        _ => None,
    }
}

/// A field of an address: all lie within the room for any, so the compiler leaves the look out.
#[inline]
fn field<const BYTES: usize>(name: &NameBytes, offset: usize) -> [u8; BYTES] {
    let field = name.get(offset..).and_then(<[u8]>::first_chunk);
    field.copied().unwrap_or([0; BYTES])
}

#[cfg(test)]
mod tests {
    use socket2::SockAddr;

    use super::*;

    fn name(bytes: &[u8]) -> NameBytes {
        let mut name = [0; NAME_BYTES];
        name[..bytes.len()].copy_from_slice(bytes);
        name
    }

    #[test]
    fn addresses_read_as_they_are_written() {
        for (address, expected) in [
            ("1.2.3.4:567", "1.2.3.4:567"),
            ("[2001:db8::1:2]:65535", "[2001:db8::1:2]:65535"),
            ("[fe80::1%7]:1", "[fe80::1%7]:1"),
            ("[::ffff:1.2.3.4]:567", "1.2.3.4:567"),
        ] {
            let written = SockAddr::from(address.parse::<SocketAddr>().unwrap());
            let read = read_ip(&name(super::super::calls::bytes_of(&written)));
            assert_eq!(read, Some(expected.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn what_is_no_internet_address_is_none() {
        assert_eq!(read_ip(&[0; NAME_BYTES]), None);
        assert_eq!(read_ip(&[0xff; NAME_BYTES]), None);
        let unix = SockAddr::unix("/a/path").unwrap();
        assert_eq!(read_ip(&name(super::super::calls::bytes_of(&unix))), None);
    }
}
