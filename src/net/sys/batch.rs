//! Many datagrams by one system call: `recvmmsg` and `sendmmsg`.
//!
//! The headers that the kernel reads and writes hold raw pointers. Receiving, they point into
//! buffers on the heap that live and stay as long as the ring. Sending, they are filled and used
//! within one call, while what they point to is borrowed, and mean nothing after it.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::bus::address::{Credentials, Source};
use crate::net::address::canonical;

use super::credentials::{ROOM_BYTES, Told, is_length};
use super::late::take_late_errors;
use super::{
    Ask, DATAGRAM_BUFFER_BYTES, Outgoing, RECEIVE_BATCH_MAX, Received, Refusal, SEND_BATCH_MAX,
    calls,
};

#[expect(clippy::cast_possible_truncation, reason = "128 bytes")]
const SOURCE_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;

/// Buffers for one batch of received datagrams, made once. Their pages are the system's till a
/// datagram reaches them.
pub struct ReceiveRing {
    buffers: Box<[u8]>,
    sources: Box<[libc::sockaddr_storage]>,
    told: Box<[Told]>,
    slices: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    taken: usize,
    /// How many headers, from the first, were last lent their room for control messages.
    lent: usize,
}

// SAFETY: the pointers in `slices` and `headers` lead to memory that the ring itself owns.
unsafe impl Send for ReceiveRing {}

impl std::fmt::Debug for ReceiveRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveRing")
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

impl Default for ReceiveRing {
    fn default() -> Self {
        Self::new()
    }
}

impl ReceiveRing {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> Self {
        let mut buffers = vec![0_u8; RECEIVE_BATCH_MAX * DATAGRAM_BUFFER_BYTES].into_boxed_slice();
        // SAFETY: all bytes zero is a valid sockaddr_storage, iovec and mmsghdr.
        let (mut sources, mut headers) = unsafe {
            (
                vec![mem::zeroed::<libc::sockaddr_storage>(); RECEIVE_BATCH_MAX].into_boxed_slice(),
                vec![mem::zeroed::<libc::mmsghdr>(); RECEIVE_BATCH_MAX].into_boxed_slice(),
            )
        };
        let mut told = vec![Told::nothing(); RECEIVE_BATCH_MAX].into_boxed_slice();
        let mut slices: Box<[libc::iovec]> = buffers
            .chunks_exact_mut(DATAGRAM_BUFFER_BYTES)
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        let places = sources.iter_mut().zip(&mut slices).zip(&mut told);
        for (header, ((source, slice), told)) in headers.iter_mut().zip(places) {
            header.msg_hdr.msg_name = ptr::from_mut(source).cast();
            header.msg_hdr.msg_namelen = SOURCE_BYTES;
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            // None of it is lent: its length is 0.
            header.msg_hdr.msg_control = ptr::from_mut(told).cast();
        }
        Self {
            buffers,
            sources,
            told,
            slices,
            headers,
            taken: 0,
            lent: 0,
        }
    }

    /// Takes up to `count_max` datagrams, at most [`RECEIVE_BATCH_MAX`], without waiting, and
    /// says how many there were. Credentials are asked of none but a socket that is to tell them
    /// (see [`ask_for`](super::ask_for)): to another one senders could pass open files.
    ///
    /// # Errors
    ///
    /// What the kernel says, but for "none there" (0) and "interrupted" (tried again). What it
    /// says once is gone, and what waits behind it is taken: two errors in a row are one here.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        count_max: usize,
        ask: Ask,
    ) -> io::Result<usize> {
        debug_assert_eq!(self.slices.len(), self.headers.len());
        let asked = count_max.min(self.headers.len());
        // The kernel has written lengths into those that it filled.
        for header in self.headers.iter_mut().take(self.taken) {
            header.msg_hdr.msg_namelen = SOURCE_BYTES;
        }
        self.lend_room(match ask {
            Ask::Source => 0,
            Ask::Credentials => asked,
        });
        self.taken = 0;
        let mut has_failed = false;
        loop {
            // SAFETY: at least `asked` headers, each with one slice of DATAGRAM_BUFFER_BYTES, room
            // for any source, and for control messages as much as its length says: none, or one
            // `Told`. All are owned by `self`, which is borrowed mutably.
            let taken = unsafe {
                calls::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    libc::c_uint::try_from(asked).unwrap_or_default(),
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                )
            };
            if let Ok(taken) = usize::try_from(taken) {
                self.taken = taken;
                return Ok(taken);
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(0),
                _ if !has_failed => has_failed = true,
                _ => return Err(error),
            }
        }
    }

    /// Lends so many headers, from the first, the whole of their room for control messages, and the
    /// others none of it. The kernel writes into the length how much of it it has used.
    fn lend_room(&mut self, count: usize) {
        let touched = count.max(mem::replace(&mut self.lent, count));
        for (index, header) in self.headers.iter_mut().take(touched).enumerate() {
            header.msg_hdr.msg_controllen = if index < count { ROOM_BYTES as _ } else { 0 };
        }
    }

    /// The datagrams of the last [`ReceiveRing::receive`].
    pub fn datagrams(&self) -> impl Iterator<Item = Received<'_>> {
        let buffers = self.buffers.chunks_exact(DATAGRAM_BUFFER_BYTES);
        let headers = self.headers.iter().take(self.taken);
        headers.zip(&self.sources).zip(&self.told).zip(buffers).map(
            |(((header, source), told), buffer)| Received {
                bytes: buffer.get(..header.msg_len as usize).unwrap_or(buffer),
                source: read_source(source, &header.msg_hdr, told),
                is_truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            },
        )
    }
}

/// The source that the kernel wrote, of which so many bytes count as the header says. Of a sender
/// without a name it writes nothing: what stands there is an earlier datagram's, of any listener.
#[inline]
fn read_source<'a>(
    source: &'a libc::sockaddr_storage,
    header: &libc::msghdr,
    told: &Told,
) -> Source<'a> {
    let length = header.msg_namelen;
    if length == 0 {
        return Source::Unix {
            path: &[],
            credentials: read_credentials(header, told),
        };
    }
    match libc::c_int::from(source.ss_family) {
        libc::AF_INET => {
            // SAFETY: sockaddr_storage is made to be read as any address; AF_INET says which.
            let v4 = unsafe { &*ptr::from_ref(source).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Source::Ip(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for AF_INET6.
            let v6 = unsafe { &*ptr::from_ref(source).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Source::Ip(canonical(SocketAddr::V6(SocketAddrV6::new(
                ip,
                port,
                0,
                v6.sin6_scope_id,
            ))))
        }
        _ => Source::Unix {
            path: read_path(source, length as usize),
            credentials: read_credentials(header, told),
        },
    }
}

/// What the kernel told of the sender. Where it did not fill the room, what stands there is cut,
/// or an earlier datagram's.
fn read_credentials(header: &libc::msghdr, told: &Told) -> Option<Credentials> {
    let is_filled = is_length(header.msg_controllen, ROOM_BYTES);
    is_filled.then(|| told.read()).flatten()
}

/// The path of a Unix source: the bytes of the address behind its family, without the 0 that
/// ends a path in the file system.
fn read_path(source: &libc::sockaddr_storage, length: usize) -> &[u8] {
    let start = mem::offset_of!(libc::sockaddr_un, sun_path);
    let end = length.min(mem::size_of::<libc::sockaddr_storage>());
    // SAFETY: any byte of a sockaddr_storage may be read; it was zeroed before the kernel wrote.
    let bytes = unsafe { std::slice::from_raw_parts(ptr::from_ref(source).cast::<u8>(), end) };
    let path = bytes.get(start..).unwrap_or_default();
    match path.split_last() {
        Some((0, rest)) if path.first() != Some(&0) => rest,
        _ => path,
    }
}

/// Headers for one batch of datagrams to send, made once.
pub struct SendRing {
    headers: Box<[libc::mmsghdr]>,
    slices: Box<[[libc::iovec; 2]]>,
}

// SAFETY: the pointers in it are written and read within one call of `send` and else unused.
unsafe impl Send for SendRing {}

impl std::fmt::Debug for SendRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendRing").finish_non_exhaustive()
    }
}

impl Default for SendRing {
    fn default() -> Self {
        Self::new()
    }
}

impl SendRing {
    /// Empty headers.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: all bytes zero is a valid mmsghdr and iovec.
        unsafe {
            Self {
                headers: vec![mem::zeroed::<libc::mmsghdr>(); SEND_BATCH_MAX].into_boxed_slice(),
                slices: vec![mem::zeroed::<[libc::iovec; 2]>(); SEND_BATCH_MAX].into_boxed_slice(),
            }
        }
    }

    /// Hands over up to [`SEND_BATCH_MAX`] datagrams without waiting, in order. `outcomes` then has one
    /// entry for each: the bytes that the kernel took, or what it said of that very datagram.
    ///
    /// Where it was told meanwhile that datagrams sent before were refused, it stops, so that the
    /// caller can act on that: `refusals` has them, and `outcomes` an entry less for each datagram
    /// that has not been handed over. There is always one for the first.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Outgoing<'a>>,
        outcomes: &mut Vec<io::Result<usize>>,
        refusals: &mut Vec<Refusal>,
    ) {
        outcomes.clear();
        refusals.clear();
        let mut count = 0;
        for ((datagram, header), slices) in datagrams.zip(&mut self.headers).zip(&mut self.slices) {
            *slices = [datagram.head, datagram.body].map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            header.msg_hdr.msg_name = datagram.to.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = datagram.to.len();
            header.msg_hdr.msg_iov = slices.as_mut_ptr();
            header.msg_hdr.msg_iovlen = 2;
            count += 1;
        }
        while outcomes.len() < count && (outcomes.is_empty() || refusals.is_empty()) {
            let Some(rest) = self.headers.get_mut(outcomes.len()..count) else {
                return;
            };
            match send_first(socket, rest, refusals) {
                Ok(sent) => {
                    let sent = rest.iter().take(sent);
                    outcomes.extend(sent.map(|header| Ok(header.msg_len as usize)));
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
    }
}

/// Sends the first of these, at least one: an error is always the first one's. They are to be
/// filled with pointers to what is borrowed for the whole call.
#[inline]
pub(super) fn send_first(
    socket: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
    refusals: &mut Vec<Refusal>,
) -> io::Result<usize> {
    let sent =
        send_some(socket, headers).or_else(|error| retry(socket, headers, error, refusals))?;
    if sent < headers.len() {
        // What stopped it the kernel has forgotten. If it was an earlier datagram's error, no
        // later send will fail because of it.
        take_late_errors(socket, refusals);
    }
    Ok(sent)
}

/// Tries once more where the error may have been an earlier datagram's: an ICMP error waits in
/// the socket's queue and fails whatever is sent next.
#[cold]
fn retry(
    socket: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
    error: io::Error,
    refusals: &mut Vec<Refusal>,
) -> io::Result<usize> {
    if take_late_errors(socket, refusals) {
        send_some(socket, headers)
    } else {
        Err(error)
    }
}

fn send_some(socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let count = libc::c_uint::try_from(headers.len()).unwrap_or_default();
    loop {
        // SAFETY: called by the `send`s of the two rings alone, which have just filled these
        // headers with pointers to what their caller lends them for the whole call, or to what is
        // theirs. The kernel only reads through them.
        let sent = unsafe {
            calls::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) if sent > 0 => return Ok(sent),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
