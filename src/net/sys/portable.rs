//! The same face as the batch calls', one datagram at a time, for systems without them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use socket2::{SockAddr, SockRef};

use crate::bus::address::{Address, Source};
use crate::net::address::canonical;

use super::{
    Ask, DATAGRAM_BUFFER_BYTES, NoSegments, Outgoing, RECEIVE_BATCH_MAX, Received, Refusal,
    SEND_BATCH_MAX, calls,
};

/// What is known of a received datagram, but for its bytes.
#[derive(Debug)]
struct Slot {
    length: usize,
    source: Address,
    is_truncated: bool,
}

/// Buffers for one batch of received datagrams, made once. Their pages are the system's till a
/// datagram reaches them.
#[derive(Debug)]
pub struct ReceiveRing {
    buffers: Box<[u8]>,
    slots: Vec<Slot>,
    taken: usize,
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
        let slot = || Slot {
            length: 0,
            source: Address::Unix(Box::default()),
            is_truncated: false,
        };
        Self {
            // Asked for as zeros, which the system has without writing them.
            buffers: vec![0; RECEIVE_BATCH_MAX * DATAGRAM_BUFFER_BYTES].into_boxed_slice(),
            slots: std::iter::repeat_with(slot)
                .take(RECEIVE_BATCH_MAX)
                .collect(),
            taken: 0,
        }
    }

    /// Takes up to `count_max` datagrams, at most [`RECEIVE_BATCH_MAX`], without waiting, and
    /// says how many there were. Credentials are not told here, whatever is asked.
    ///
    /// # Errors
    ///
    /// What the kernel says, but for "none there" (0) and "interrupted" (tried again). What it
    /// says once is gone, and what waits behind it is taken: two errors in a row are one here,
    /// where nothing was taken before them.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        count_max: usize,
        _: Ask,
    ) -> io::Result<usize> {
        self.taken = 0;
        let count_max = count_max.min(self.slots.len());
        let mut has_failed = false;
        let mut places = self
            .slots
            .iter_mut()
            .zip(self.buffers.chunks_exact_mut(DATAGRAM_BUFFER_BYTES))
            .take(count_max);
        let mut place = places.next();
        while let Some((slot, buffer)) = &mut place {
            match receive_one(socket, slot, buffer) {
                Ok(()) => {
                    self.taken += 1;
                    has_failed = false;
                    place = places.next();
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break,
                    _ if !has_failed => has_failed = true,
                    _ if self.taken > 0 => break,
                    _ => return Err(error),
                },
            }
        }
        Ok(self.taken)
    }

    /// The datagrams of the last [`ReceiveRing::receive`].
    pub fn datagrams(&self) -> impl Iterator<Item = Received<'_>> {
        let buffers = self.buffers.chunks_exact(DATAGRAM_BUFFER_BYTES);
        let taken = self.slots.iter().take(self.taken);
        taken.zip(buffers).map(|(slot, buffer)| Received {
            bytes: buffer.get(..slot.length).unwrap_or(buffer),
            source: match &slot.source {
                Address::Ip(ip) => Source::Ip(*ip),
                Address::Unix(path) => Source::Unix {
                    path,
                    credentials: None,
                },
            },
            is_truncated: slot.is_truncated,
        })
    }
}

fn receive_one(socket: BorrowedFd<'_>, slot: &mut Slot, buffer: &mut [u8]) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    // SAFETY: `MaybeUninit<u8>` is laid out as `u8`, and nothing uninitialised is written through
    // it: socket2 promises to hand it to the kernel, which writes bytes, and to nobody else.
    let buffer = unsafe { &mut *(ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
    let mut slices = [socket2::MaybeUninitSlice::new(buffer)];
    let (length, flags, source) =
        calls::receive(|| socket.recv_from_vectored_with_flags(&mut slices, libc::MSG_DONTWAIT))?;
    slot.length = length;
    slot.is_truncated = flags.is_truncated();
    slot.source = match source.as_socket() {
        Some(ip) => Address::Ip(canonical(ip)),
        None => Address::Unix(unix_path(&source)),
    };
    Ok(())
}

fn unix_path(source: &SockAddr) -> Box<[u8]> {
    if let Some(path) = source.as_pathname() {
        return path.as_os_str().as_bytes().into();
    }
    #[cfg(target_os = "linux")]
    if let Some(name) = source.as_abstract_namespace() {
        return [&[0], name].concat().into();
    }
    Box::default()
}

/// Sends datagrams one by one.
#[derive(Debug, Default)]
pub struct SendRing;

impl SendRing {
    /// Needs no memory.
    #[must_use]
    pub fn new() -> Self {
        Self
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
        for datagram in datagrams.take(SEND_BATCH_MAX) {
            let result = send_one(socket, &datagram);
            outcomes.push(result.or_else(|error| {
                if is_earlier(&error, socket, refusals) {
                    send_one(socket, &datagram)
                } else {
                    Err(error)
                }
            }));
            if !refusals.is_empty() {
                return;
            }
        }
    }
}

/// Sends datagrams to one destination as to any.
#[derive(Debug, Default)]
pub struct SegmentRing(SendRing);

impl SegmentRing {
    /// Needs no memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands over up to [`SEND_BATCH_MAX`] datagrams, each in two parts, without waiting, in order.
    /// `outcomes` then has one entry for each: the bytes that the kernel took, or what it said of
    /// that very datagram. It stops where datagrams sent before were refused, as
    /// [`SendRing::send`] does.
    ///
    /// # Errors
    ///
    /// Always that the way takes no segments, which says nothing of the outcomes.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        to: &'a SockAddr,
        datagrams: impl Iterator<Item = [&'a [u8]; 2]>,
        outcomes: &mut Vec<io::Result<usize>>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), NoSegments> {
        let outgoing = datagrams.map(|[head, body]| Outgoing { to, head, body });
        self.0.send(socket, outgoing, outcomes, refusals);
        Err(NoSegments)
    }
}

/// Segments are sent by no library call.
#[must_use]
pub fn takes_segments(_socket: BorrowedFd<'_>) -> bool {
    false
}

/// Whether an error of a send was an earlier datagram's: it waits in the socket and fails whatever
/// is sent next.
#[cfg(target_os = "linux")]
fn is_earlier(_: &io::Error, socket: BorrowedFd<'_>, refusals: &mut Vec<Refusal>) -> bool {
    super::late::take_late_errors(socket, refusals)
}

/// Whether an error of a send may have been an earlier datagram's, which it took out of the
/// socket. Of which one this system does not say.
#[cfg(not(target_os = "linux"))]
fn is_earlier(error: &io::Error, _: BorrowedFd<'_>, _: &mut Vec<Refusal>) -> bool {
    let kind = error.kind();
    matches!(
        kind,
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable
    )
}

fn send_one(socket: BorrowedFd<'_>, datagram: &Outgoing<'_>) -> io::Result<usize> {
    let socket = SockRef::from(&socket);
    let parts = [datagram.head, datagram.body].map(io::IoSlice::new);
    loop {
        let to = datagram.to;
        let send = || socket.send_to_vectored_with_flags(&parts, to, libc::MSG_DONTWAIT);
        match calls::send(datagram, send) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
