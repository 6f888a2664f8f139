//! The same face as the batch calls', one datagram at a time, for systems without them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use socket2::{SockAddr, SockRef};

use crate::bus::address::{Address, Source};
use crate::net::address::canonical;

use super::{
    DATAGRAM_BUFFER_BYTES, Outgoing, RECEIVE_BATCH_MAX, Received, Refused, SEND_BATCH_MAX, calls,
};

/// One received datagram.
#[derive(Debug)]
struct Slot {
    buffer: Box<[MaybeUninit<u8>]>,
    length: usize,
    source: Address,
    is_truncated: bool,
}

/// Buffers for one batch of received datagrams, made once.
#[derive(Debug)]
pub struct ReceiveRing {
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
            buffer: vec![MaybeUninit::new(0); DATAGRAM_BUFFER_BYTES].into_boxed_slice(),
            length: 0,
            source: Address::Unix(Box::default()),
            is_truncated: false,
        };
        Self {
            slots: std::iter::repeat_with(slot)
                .take(RECEIVE_BATCH_MAX)
                .collect(),
            taken: 0,
        }
    }

    /// Takes up to `count_max` datagrams, at most [`RECEIVE_BATCH_MAX`], without waiting, and
    /// says how many there were.
    ///
    /// # Errors
    ///
    /// What the kernel says, but for "none there" (0) and "interrupted" (tried again). What it
    /// says once is gone, and what waits behind it is taken: two errors in a row are one here,
    /// where nothing was taken before them.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, count_max: usize) -> io::Result<usize> {
        self.taken = 0;
        let count_max = count_max.min(self.slots.len());
        let mut has_failed = false;
        while let Some(slot) = self
            .slots
            .get_mut(..count_max)
            .and_then(|s| s.get_mut(self.taken))
        {
            match receive_one(socket, slot) {
                Ok(()) => {
                    self.taken += 1;
                    has_failed = false;
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
        self.slots.iter().take(self.taken).map(|slot| {
            let filled = slot.buffer.get(..slot.length).unwrap_or_default();
            Received {
                // SAFETY: every byte of the buffer was initialised when it was made, and
                // `MaybeUninit<u8>` is laid out as `u8`.
                bytes: unsafe { std::slice::from_raw_parts(filled.as_ptr().cast(), filled.len()) },
                source: match &slot.source {
                    Address::Ip(ip) => Source::Ip(*ip),
                    Address::Unix(path) => Source::Unix(path),
                },
                is_truncated: slot.is_truncated,
            }
        })
    }
}

fn receive_one(socket: BorrowedFd<'_>, slot: &mut Slot) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    let mut slices = [socket2::MaybeUninitSlice::new(&mut slot.buffer)];
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
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Outgoing<'a>>,
        outcomes: &mut Vec<io::Result<usize>>,
    ) {
        outcomes.clear();
        let socket = SockRef::from(&socket);
        outcomes.extend(datagrams.take(SEND_BATCH_MAX).map(|datagram| {
            send_one(&socket, &datagram).or_else(|error| match error.kind() {
                // It may have been an earlier datagram's, which this took out of the socket.
                io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable => {
                    send_one(&socket, &datagram)
                }
                _ => Err(error),
            })
        }));
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
    /// that very datagram.
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
    ) -> Result<(), Refused> {
        let outgoing = datagrams.map(|[head, body]| Outgoing { to, head, body });
        self.0.send(socket, outgoing, outcomes);
        Err(Refused)
    }
}

/// Segments are sent by no library call.
#[must_use]
pub fn takes_segments(_socket: BorrowedFd<'_>) -> bool {
    false
}

fn send_one(socket: &SockRef<'_>, datagram: &Outgoing<'_>) -> io::Result<usize> {
    let parts = [datagram.head, datagram.body].map(io::IoSlice::new);
    loop {
        let to = datagram.to;
        let send = || socket.send_to_vectored_with_flags(&parts, to, libc::MSG_DONTWAIT);
        match calls::send(to, send) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
