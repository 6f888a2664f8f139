//! Many datagrams by one system call: `recvmmsg` and `sendmmsg`.
//!
//! The headers that the kernel reads and writes hold raw pointers. Receiving, they point into
//! buffers on the heap that live and stay as long as the ring. Sending, they are filled and used
//! within one call, while what they point to is borrowed, and mean nothing after it.
//!
//! What the headers of a [`ReceiveRing`] point to is in `Vec`s, which are never made longer. Moving
//! a `Box` says that nobody else has a pointer to what is in it, and a `Vec` says no such thing.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::bus::address::{Credentials, Source};

use super::credentials::{ROOM_BYTES, Told, is_length};
use super::late::take_late_errors;
use super::name::{NAME_BYTES, NAME_LENGTH, NameBytes, read_ip};
use super::{
    Ask, DATAGRAM_BUFFER_BYTES, Outgoing, RECEIVE_BATCH_MAX, Received, Refusal, SEND_BATCH_MAX,
    calls, empty_message,
};

/// Buffers for one batch of received datagrams, made once. Their pages are the system's till a
/// datagram reaches them.
pub struct ReceiveRing {
    buffers: Vec<u8>,
    sources: Vec<NameBytes>,
    told: Vec<Told>,
    slices: Vec<libc::iovec>,
    headers: Box<[libc::mmsghdr]>,
    taken: usize,
    /// How many headers, from the first, were last lent their room for control messages.
    lent: usize,
}

// SAFETY: the pointers in `slices` and `headers` lead to memory that the ring itself owns, on the
// heap, where it stays while the ring moves. Nobody else is given them but the kernel, for one call.
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
        let mut buffers = vec![0_u8; RECEIVE_BATCH_MAX * DATAGRAM_BUFFER_BYTES];
        let mut sources = vec![[0; NAME_BYTES]; RECEIVE_BATCH_MAX];
        let mut told = vec![Told::nothing(); RECEIVE_BATCH_MAX];
        // By the vectors' own pointers, which stay valid whatever is read through the vectors.
        let first_byte = buffers.as_mut_ptr();
        let place = |index| libc::iovec {
            iov_base: first_byte
                .wrapping_add(index * DATAGRAM_BUFFER_BYTES)
                .cast(),
            iov_len: DATAGRAM_BUFFER_BYTES,
        };
        let mut slices: Vec<libc::iovec> = (0..RECEIVE_BATCH_MAX).map(place).collect();
        let mut headers = empty_headers(RECEIVE_BATCH_MAX);
        for (index, header) in headers.iter_mut().enumerate() {
            header.msg_hdr.msg_name = sources.as_mut_ptr().wrapping_add(index).cast();
            header.msg_hdr.msg_namelen = NAME_LENGTH;
            header.msg_hdr.msg_iov = slices.as_mut_ptr().wrapping_add(index);
            header.msg_hdr.msg_iovlen = 1;
            // None of it is lent: its length is 0.
            header.msg_hdr.msg_control = told.as_mut_ptr().wrapping_add(index).cast();
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
            header.msg_hdr.msg_namelen = NAME_LENGTH;
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
            // `Told`. All are owned by `self`, which is borrowed mutably, so nothing that was lent
            // from them lives. What the kernel writes are bytes and numbers, and the lengths beside
            // the pointers: never longer than the room, but for a source's, see `read_path`.
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
fn read_source<'a>(source: &'a NameBytes, header: &libc::msghdr, told: &Told) -> Source<'a> {
    let length = header.msg_namelen;
    if length == 0 {
        return Source::Unix {
            path: &[],
            credentials: read_credentials(header, told),
        };
    }
    match read_ip(source) {
        Some(ip) => Source::Ip(ip),
        None => Source::Unix {
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
/// ends a path in the file system. Of an address with no room the kernel would tell the whole length.
fn read_path(source: &NameBytes, length: usize) -> &[u8] {
    let start = mem::offset_of!(libc::sockaddr_un, sun_path);
    let path = source.get(start..length.min(NAME_BYTES));
    let path = path.unwrap_or_default();
    match path.split_last() {
        Some((0, rest)) if path.first() != Some(&0) => rest,
        _ => path,
    }
}

/// A slice of nothing.
pub(super) const EMPTY_SLICE: libc::iovec = libc::iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

fn empty_headers(count: usize) -> Box<[libc::mmsghdr]> {
    vec![empty_header(); count].into_boxed_slice()
}

/// A header that leads nowhere.
pub(super) fn empty_header() -> libc::mmsghdr {
    libc::mmsghdr {
        msg_hdr: empty_message(),
        msg_len: 0,
    }
}

/// Headers for one batch of datagrams to send, made once.
pub struct SendRing {
    headers: Box<[libc::mmsghdr]>,
    slices: Box<[[libc::iovec; 2]]>,
}

// SAFETY: the pointers in it are written and followed within one call of `send`, which has the ring
// to itself. What is left of them after that is never followed, so it matters to no thread.
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
        Self {
            headers: empty_headers(SEND_BATCH_MAX),
            slices: vec![[EMPTY_SLICE; 2]; SEND_BATCH_MAX].into_boxed_slice(),
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
            // SAFETY: these headers were filled above, from datagrams whose parts and addresses
            // are borrowed for 'a, which outlasts this call, and from this ring's own slices,
            // which nothing has touched since.
            let result = unsafe { send_first(socket, rest, refusals) };
            match result {
                Ok(sent) => {
                    let sent = rest.iter().take(sent);
                    outcomes.extend(sent.map(|header| Ok(header.msg_len as usize)));
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
    }
}

/// Sends the first of these, at least one: an error is always the first one's. Where that may have
/// been an earlier datagram's it tries once more: an ICMP error waits in the socket's queue and
/// fails whatever is sent next.
///
/// # Safety
///
/// As sendmmsg(2): name, slices and control message of each header lead to memory that is as long
/// as the header says, and may be read during the call. It is not written to.
#[inline]
pub(super) unsafe fn send_first(
    socket: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
    refusals: &mut Vec<Refusal>,
) -> io::Result<usize> {
    // SAFETY: as the caller has it.
    let mut send = || unsafe { send_some(socket, headers) };
    let sent = send().or_else(|error| {
        if take_late_errors(socket, refusals) {
            send()
        } else {
            Err(error)
        }
    })?;
    if sent < headers.len() {
        // What stopped it the kernel has forgotten. If it was an earlier datagram's error, no
        // later send will fail because of it.
        take_late_errors(socket, refusals);
    }
    Ok(sent)
}

/// Sends as many of these as the kernel takes at once, at least one.
///
/// # Safety
///
/// As with [`send_first`].
unsafe fn send_some(socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let count = libc::c_uint::try_from(headers.len()).unwrap_or_default();
    loop {
        // SAFETY: there are `count` headers, borrowed mutably, for the kernel writes into each how
        // many bytes it took. The rest is as the caller has it.
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::AsFd;

    use socket2::SockAddr;

    use super::super::looped::loop_back;
    use super::super::{SegmentRing, begin};
    use super::*;

    fn frames(lengths: &[usize]) -> Vec<Vec<u8>> {
        let letters = b'a'..=b'z';
        let frames = letters.zip(lengths);
        frames
            .map(|(letter, &length)| vec![letter; length])
            .collect()
    }

    /// Takes all that there is, in batches of at most three.
    fn take(ring: &mut ReceiveRing, from: SocketAddr) -> Vec<Vec<u8>> {
        let stdin = std::io::stdin();
        let mut all = Vec::new();
        while ring.receive(stdin.as_fd(), 3, Ask::Source).unwrap() > 0 {
            for datagram in ring.datagrams() {
                assert_eq!(datagram.source, Source::Ip(from));
                all.push(datagram.bytes.to_vec());
            }
        }
        all
    }

    /// Whatever was moved, and whatever was read before: for Miri, which sees what the kernel
    /// may not say.
    #[test]
    fn the_rings_pointers_hold_wherever_the_rings_go() {
        begin();
        loop_back();
        let stdin = std::io::stdin();
        let (mut receiving, mut sending, mut segments) =
            (ReceiveRing::new(), SendRing::new(), SegmentRing::new());
        let (mut outcomes, mut refusals) = (Vec::new(), Vec::new());
        for address in ["1.2.3.4:5", "[2001:db8::1]:6", "1.2.3.4:7"] {
            let moving = std::thread::spawn(move || (receiving, sending, segments));
            (receiving, sending, segments) = moving.join().unwrap();
            let from: SocketAddr = address.parse().unwrap();
            let to = SockAddr::from(from);

            let frames = frames(&[9, 0, 20, 7, 7]);
            let datagrams = frames.iter().map(|frame| {
                let (head, body) = frame.split_at(frame.len() / 2);
                Outgoing {
                    to: &to,
                    head,
                    body,
                }
            });
            sending.send(stdin.as_fd(), datagrams, &mut outcomes, &mut refusals);
            assert!(outcomes.iter().all(Result::is_ok));
            assert_eq!(take(&mut receiving, from), frames);

            let datagrams = frames
                .iter()
                .map(|frame| frame.split_at(frame.len() / 2).into());
            let result = segments.send(stdin.as_fd(), &to, datagrams, &mut outcomes, &mut refusals);
            result.unwrap();
            let received = take(&mut receiving, from);
            assert_eq!(received.len(), frames.len());
            // But for what they are padded with.
            for (received, frame) in received.iter().zip(&frames) {
                assert!(received.starts_with(frame));
            }
        }
        begin();
    }
}
