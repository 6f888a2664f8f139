//! Errors that come after their datagram was sent: ICMP's, out of a socket's error queue (ip(7)).
//!
//! What the network says anybody may have forged. So each entry is shown with the first bytes of
//! the datagram that it quotes; whether to believe it is for the caller to judge.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use hailmary_proto::write::STAMP_HEAD_BYTES;

use super::name::{NAME_BYTES, NAME_LENGTH, read_ip};
use super::{Refusal, calls, empty_control, empty_message};

/// Most entries taken at once: a hostile network could fill the queue as fast as it is emptied.
const ERRORS_MAX: usize = 1_024;

/// The control message of an entry, as cmsg(3) lays it out. It is the first, and the only one
/// that the bus's sockets ask for.
#[repr(C)]
pub(super) struct Told {
    pub(super) header: libc::cmsghdr,
    pub(super) error: libc::sock_extended_err,
    /// Who said so, which nobody reads: room for it, so that the kernel need not cut.
    by: [u8; mem::size_of::<libc::sockaddr_in6>()],
}

impl Told {
    /// Nothing told.
    fn nothing() -> Self {
        Self {
            header: empty_control(),
            error: libc::sock_extended_err {
                ee_errno: 0,
                ee_origin: libc::SO_EE_ORIGIN_NONE,
                ee_type: 0,
                ee_code: 0,
                ee_pad: 0,
                ee_info: 0,
                ee_data: 0,
            },
            by: [0; mem::size_of::<libc::sockaddr_in6>()],
        }
    }
}

/// Takes everything out of a socket's error queue, adds what tells of a port that nobody has, and
/// says whether there was anything.
#[cold]
pub(super) fn take_late_errors(socket: BorrowedFd<'_>, refusals: &mut Vec<Refusal>) -> bool {
    let mut is_any = false;
    for entry in (0..ERRORS_MAX).map_while(|_| take_one(socket).ok()) {
        is_any = true;
        refusals.extend(entry);
    }
    is_any
}

/// The next entry, if it is a refusal.
fn take_one(socket: BorrowedFd<'_>) -> io::Result<Option<Refusal>> {
    let mut name = [0_u8; NAME_BYTES];
    let mut quote = [0_u8; STAMP_HEAD_BYTES];
    let mut slice = libc::iovec {
        iov_base: quote.as_mut_ptr().cast(),
        iov_len: quote.len(),
    };
    let mut told = Told::nothing();
    let mut header = empty_message();
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut told).cast();
    header.msg_controllen = mem::size_of::<Told>() as _;
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = NAME_LENGTH;
    // SAFETY: name, slice and control message have the room that the header says, and live through
    // the call. Whatever bytes the kernel writes there are numbers, which is all that they have.
    let length = unsafe {
        calls::recvmsg(
            socket.as_raw_fd(),
            &raw mut header,
            libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let quote = quote.get(..length).unwrap_or(&quote);
    Ok(refusal(&told, read_ip(&name), quote))
}

/// What an entry says, if it is that nobody has the port, and shows what was sent there.
fn refusal(told: &Told, to: Option<SocketAddr>, quote: &[u8]) -> Option<Refusal> {
    let origin = match (told.header.cmsg_level, told.header.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_RECVERR) => libc::SO_EE_ORIGIN_ICMP,
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => libc::SO_EE_ORIGIN_ICMP6,
        _ => return None,
    };
    let number = i32::try_from(told.error.ee_errno);
    if told.error.ee_origin != origin || number != Ok(libc::ECONNREFUSED) {
        return None;
    }
    Some(Refusal {
        to: to?,
        quote: *quote.first_chunk()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(level: i32, kind: i32, origin: u8, number: i32) -> Told {
        let mut told = Told::nothing();
        (told.header.cmsg_level, told.header.cmsg_type) = (level, kind);
        told.error.ee_origin = origin;
        told.error.ee_errno = number.cast_unsigned();
        told
    }

    #[test]
    fn a_refusal_is_icmps_and_shows_what_was_sent() {
        let (v4, v6) = (libc::IPPROTO_IP, libc::IPPROTO_IPV6);
        let (by_icmp, by_icmp6) = (libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6);
        let refused = libc::ECONNREFUSED;
        let to: SocketAddr = "10.0.0.1:9".parse().unwrap();
        let quote = [7; STAMP_HEAD_BYTES];
        for (level, kind, origin) in [
            (v4, libc::IP_RECVERR, by_icmp),
            (v6, libc::IPV6_RECVERR, by_icmp6),
        ] {
            let told = told(level, kind, origin, refused);
            assert_eq!(
                refusal(&told, Some(to), &quote),
                Some(Refusal { to, quote })
            );
            assert_eq!(refusal(&told, None, &quote), None);
            for length in 0..quote.len() {
                assert_eq!(refusal(&told, Some(to), &quote[..length]), None);
            }
        }
        for (level, kind, origin, number) in [
            (v4, libc::IP_RECVERR, by_icmp, libc::EHOSTUNREACH),
            (v4, libc::IP_RECVERR, by_icmp, 0),
            (v4, libc::IP_RECVERR, by_icmp, -1),
            (v4, libc::IP_RECVERR, libc::SO_EE_ORIGIN_LOCAL, refused),
            (v4, libc::IP_RECVERR, by_icmp6, refused),
            (v6, libc::IPV6_RECVERR, by_icmp, refused),
            (v6, libc::IP_RECVERR, by_icmp6, refused),
            (libc::SOL_SOCKET, libc::IP_RECVERR, by_icmp, refused),
            (v4, 0, by_icmp, refused),
        ] {
            let told = told(level, kind, origin, number);
            assert_eq!(refusal(&told, Some(to), &quote), None);
        }
    }
}
