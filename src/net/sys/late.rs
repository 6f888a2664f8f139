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

/// What an entry says where nobody has the port, and where there is no host or no way to it: the
/// kernel says so itself of a neighbour that does not answer.
const REFUSALS: [i32; 3] = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH];

/// The control message of an entry, as cmsg(3) lays it out. It is the first, and the only one
/// that the bus's sockets ask for.
#[repr(C)]
pub(super) struct Entry {
    pub(super) header: libc::cmsghdr,
    pub(super) error: libc::sock_extended_err,
    /// Who said so, which nobody reads: room for it, so that the kernel need not cut.
    by: [u8; mem::size_of::<libc::sockaddr_in6>()],
}

impl Entry {
    /// Of nothing.
    fn empty() -> Self {
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

/// Takes everything out of a socket's error queue, adds what tells of a port that nobody has or of
/// a host that is not there, and says whether there was anything.
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
    let mut entry = Entry::empty();
    let mut header = empty_message();
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut entry).cast();
    header.msg_controllen = mem::size_of::<Entry>() as _;
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
    Ok(refusal(&entry, read_ip(&name), quote))
}

/// What an entry says, if it is that nobody is there, and shows what was sent.
fn refusal(entry: &Entry, to: Option<SocketAddr>, quote: &[u8]) -> Option<Refusal> {
    let origin = match (entry.header.cmsg_level, entry.header.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_RECVERR) => libc::SO_EE_ORIGIN_ICMP,
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => libc::SO_EE_ORIGIN_ICMP6,
        _ => return None,
    };
    let number = i32::try_from(entry.error.ee_errno);
    let number = number.ok().filter(|number| REFUSALS.contains(number))?;
    if entry.error.ee_origin != origin {
        return None;
    }
    Some(Refusal {
        to: to?,
        quote: *quote.first_chunk()?,
        number,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(level: i32, kind: i32, origin: u8, number: i32) -> Entry {
        let mut entry = Entry::empty();
        (entry.header.cmsg_level, entry.header.cmsg_type) = (level, kind);
        entry.error.ee_origin = origin;
        entry.error.ee_errno = number.cast_unsigned();
        entry
    }

    #[test]
    fn a_refusal_is_icmps_and_shows_what_was_sent() {
        let (v4, v6) = (libc::IPPROTO_IP, libc::IPPROTO_IPV6);
        let (by_icmp, by_icmp6) = (libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6);
        let refused = libc::ECONNREFUSED;
        let gone = libc::EHOSTUNREACH;
        let to: SocketAddr = "10.0.0.1:9".parse().unwrap();
        let quote = [7; STAMP_HEAD_BYTES];
        for (level, kind, origin, number) in [
            (v4, libc::IP_RECVERR, by_icmp, refused),
            (v4, libc::IP_RECVERR, by_icmp, gone),
            (v4, libc::IP_RECVERR, by_icmp, libc::ENETUNREACH),
            (v6, libc::IPV6_RECVERR, by_icmp6, refused),
            (v6, libc::IPV6_RECVERR, by_icmp6, gone),
        ] {
            let entry = entry(level, kind, origin, number);
            assert_eq!(
                refusal(&entry, Some(to), &quote),
                Some(Refusal { to, quote, number })
            );
            assert_eq!(refusal(&entry, None, &quote), None);
            for length in 0..quote.len() {
                assert_eq!(refusal(&entry, Some(to), &quote[..length]), None);
            }
        }
        for (level, kind, origin, number) in [
            (v4, libc::IP_RECVERR, by_icmp, libc::EMSGSIZE),
            (v4, libc::IP_RECVERR, by_icmp, 0),
            (v4, libc::IP_RECVERR, by_icmp, -1),
            (v4, libc::IP_RECVERR, libc::SO_EE_ORIGIN_LOCAL, refused),
            (v4, libc::IP_RECVERR, libc::SO_EE_ORIGIN_LOCAL, gone),
            (v4, libc::IP_RECVERR, by_icmp6, refused),
            (v6, libc::IPV6_RECVERR, by_icmp, refused),
            (v6, libc::IP_RECVERR, by_icmp6, refused),
            (libc::SOL_SOCKET, libc::IP_RECVERR, by_icmp, refused),
            (v4, 0, by_icmp, refused),
        ] {
            let entry = entry(level, kind, origin, number);
            assert_eq!(refusal(&entry, Some(to), &quote), None);
        }
    }
}
