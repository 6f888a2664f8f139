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
    DATAGRAM_BUFFER_BYTES, Outgoing, RECEIVE_BATCH_MAX, Received, Refused, SEND_BATCH_MAX,
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
    /// says how many there were.
    ///
    /// # Errors
    ///
    /// What the kernel says, but for "none there" (0) and "interrupted" (tried again). An error
    /// behind the first datagram shows at the next call.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, count_max: usize) -> io::Result<usize> {
        self.taken = 0;
        let buffers = self.buffers.chunks_exact_mut(DATAGRAM_BUFFER_BYTES);
        for (slot, buffer) in self.slots.iter_mut().zip(buffers).take(count_max) {
            match receive_one(socket, slot, buffer) {
                Ok(()) => self.taken += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) if self.taken > 0 => break,
                Err(error) => return Err(error),
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
                Address::Unix(path) => Source::Unix(path),
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
    let (length, flags, source) = loop {
        match socket.recv_from_vectored_with_flags(&mut slices, libc::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
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
        match socket.send_to_vectored_with_flags(&parts, datagram.to, libc::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
