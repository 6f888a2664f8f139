//! Several datagrams for one destination as one message, which the kernel or the network card
//! cuts into segments again (`UDP_SEGMENT`, Linux 4.18; udp(7)).
//!
//! They pass the network stack together, which is nearly all that a datagram costs. All segments
//! are of one size, only the last may be shorter; so what is a little short of it is padded.
//!
//! A way that refuses segments is left to the caller to remember. What was refused has gone
//! datagram by datagram by then.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;

use hailmary_proto::write::{PADDING_FIELD_BYTES_MIN, write_padding};
use socket2::SockAddr;

use super::batch::{EMPTY_SLICE, empty_header, send_first};
use super::{NoSegments, Refusal, SEND_BATCH_MAX, empty_control, get_ints};

/// Most bytes of one message: what a UDP datagram over IPv4 holds, because that is what it is
/// till it is cut. That it has [`SEND_BATCH_MAX`] segments at most, as many as any kernel takes, is
/// because a ring has room for no more.
const MESSAGE_BYTES_MAX: usize = 65_507;

/// Most bytes by which a datagram is padded: far less than sending it apart costs.
const PADDING_BYTES_MAX: usize = 256;

/// The control message that asks for segments, as cmsg(3) lays it out.
#[repr(C)]
struct SegmentBytes {
    header: libc::cmsghdr,
    bytes: u16,
}

/// A datagram's head, its body, and its padding.
type Slices = [libc::iovec; 3];

/// Room for one batch of datagrams to one destination, made once.
pub struct SegmentRing {
    slices: Box<[Slices]>,
    lengths: Box<[usize]>,
    paddings: Box<[[u8; PADDING_BYTES_MAX]]>,
}

// SAFETY: the pointers in it are written and followed within one call of `send`, which has the ring
// to itself. What is left of them after that is never followed, so it matters to no thread.
unsafe impl Send for SegmentRing {}

impl std::fmt::Debug for SegmentRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentRing").finish_non_exhaustive()
    }
}

impl Default for SegmentRing {
    fn default() -> Self {
        Self::new()
    }
}

impl SegmentRing {
    /// Empty room.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slices: vec![[EMPTY_SLICE; 3]; SEND_BATCH_MAX].into_boxed_slice(),
            lengths: vec![0; SEND_BATCH_MAX].into_boxed_slice(),
            paddings: vec![[0; PADDING_BYTES_MAX]; SEND_BATCH_MAX].into_boxed_slice(),
        }
    }

    /// Hands over up to [`SEND_BATCH_MAX`] datagrams, each a frame in two parts, without waiting, in
    /// order and in as few messages as their lengths allow. `outcomes` then has one entry for
    /// each: the bytes that the kernel took, padding included, or what it said of the message
    /// that the datagram was in. It stops where datagrams sent before were refused, as
    /// [`SendRing::send`](super::SendRing::send) does.
    ///
    /// # Errors
    ///
    /// That this way takes no segments. It says nothing of the outcomes: what was refused has
    /// been sent again, one by one.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        to: &SockAddr,
        datagrams: impl Iterator<Item = [&'a [u8]; 2]>,
        outcomes: &mut Vec<io::Result<usize>>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), NoSegments> {
        outcomes.clear();
        refusals.clear();
        let mut count = 0;
        let places = self.slices.iter_mut().zip(&mut self.lengths);
        for ((slices, length), [head, body]) in places.zip(datagrams) {
            *slices = [head, body, &[]].map(slice);
            *length = head.len() + body.len();
            count += 1;
        }
        let mut result = Ok(());
        while outcomes.len() < count && (outcomes.is_empty() || refusals.is_empty()) {
            let waiting = self.lengths.get(outcomes.len()..count).unwrap_or_default();
            let (segments, segment_bytes) = match result {
                Ok(()) => group(waiting),
                Err(NoSegments) => (1, 0),
            };
            let message = outcomes.len()..outcomes.len() + segments;
            // SAFETY: these places were filled above, from parts that are borrowed for 'a, which
            // outlasts this call.
            let result_of_message =
                unsafe { self.send_message(socket, to, message.clone(), segment_bytes, refusals) };
            match result_of_message {
                Ok(()) => {
                    let sent = self.slices.get(message).unwrap_or_default();
                    outcomes.extend(sent.iter().map(|slices| Ok(bytes(slices))));
                }
                Err(error) if segments > 1 && is_refusal(&error) => result = Err(NoSegments),
                Err(error) => outcomes.extend(message.map(|_| Err(same(&error)))),
            }
        }
        result
    }

    /// Sends datagrams that [`SegmentRing::send`] has put into these places.
    ///
    /// # Safety
    ///
    /// The slices of these places lead to memory that may be read during the call.
    unsafe fn send_message(
        &mut self,
        socket: BorrowedFd<'_>,
        to: &SockAddr,
        places: std::ops::Range<usize>,
        segment_bytes: usize,
        refusals: &mut Vec<Refusal>,
    ) -> io::Result<()> {
        let segments = places.len();
        let slices = self.slices.get_mut(places.clone()).unwrap_or_default();
        let paddings = self.paddings.get_mut(places).unwrap_or_default();
        for (index, (slices, padding)) in slices.iter_mut().zip(paddings).enumerate() {
            slices[2].iov_len = 0;
            let missing = segment_bytes.saturating_sub(bytes(slices));
            // The last may be shorter.
            if index + 1 < segments && missing > 0 {
                let padding = padding.get_mut(..missing).unwrap_or_default();
                write_padding(padding);
                slices[2] = slice(padding);
            }
        }
        let mut control = SegmentBytes {
            header: empty_control(),
            bytes: u16::try_from(segment_bytes).unwrap_or(u16::MAX),
        };
        control.header.cmsg_level = libc::SOL_UDP;
        control.header.cmsg_type = libc::UDP_SEGMENT;
        control.header.cmsg_len =
            (mem::offset_of!(SegmentBytes, bytes) + size_of_val(&control.bytes)) as _;
        let mut message = empty_header();
        message.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = to.len();
        message.msg_hdr.msg_iov = slices.as_mut_ptr().cast();
        message.msg_hdr.msg_iovlen = slices.as_flattened().len() as _;
        if segments > 1 {
            message.msg_hdr.msg_control = (&raw mut control).cast();
            message.msg_hdr.msg_controllen = size_of_val(&control) as _;
        }
        // SAFETY: the address and the control message live here or with the caller through the
        // call, and are as long as they say. The slices are as many as there are, and lead to the
        // ring's paddings and to what the caller answers for.
        unsafe { send_first(socket, std::slice::from_mut(&mut message), refusals) }.map(|_| ())
    }
}

/// How many of the first datagrams of these lengths leave as one message, at least one, and how
/// many bytes its segments have.
fn group(lengths: &[usize]) -> (usize, usize) {
    let mut segment_bytes = 0;
    for (index, &length) in lengths.iter().enumerate() {
        let longest = segment_bytes.max(length);
        let before = lengths.get(..index).unwrap_or_default();
        // An empty segment would be none.
        let joins = length > 0
            && longest * (index + 1) <= MESSAGE_BYTES_MAX
            && before.iter().all(|before| can_pad(longest - before));
        if index > 0 && !joins {
            return (index, segment_bytes);
        }
        segment_bytes = longest;
    }
    (lengths.len(), segment_bytes)
}

fn can_pad(missing: usize) -> bool {
    missing == 0 || (PADDING_FIELD_BYTES_MIN..=PADDING_BYTES_MAX).contains(&missing)
}

fn slice(part: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    }
}

fn bytes(slices: &Slices) -> usize {
    slices.iter().map(|slice| slice.iov_len).sum()
}

/// Whether an error may be about segments, and not about the datagrams or the destination: a
/// device without checksums (EIO), a segment over the way's MTU (EINVAL, EMSGSIZE since Linux
/// 6.14), a socket or a transformation that cannot.
fn is_refusal(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    matches!(
        number,
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
    )
}

fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => error.kind().into(),
    }
}

/// Whether this kernel knows segments. An older one would send a whole message as one datagram.
#[must_use]
pub fn takes_segments(socket: BorrowedFd<'_>) -> bool {
    get_ints(socket, libc::SOL_UDP, libc::UDP_SEGMENT, &mut [0]).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn datagrams_group_while_they_are_nearly_of_one_length() {
        for (lengths, expected) in [
            (&[10][..], (1, 10)),
            (&[10, 10, 5], (3, 10)),
            (&[10, 5, 10], (3, 10)),
            (&[5, 10, 7], (3, 10)),
            (&[10, 9, 10], (2, 10)),
            (&[9, 10], (1, 9)),
            (&[500, 244, 500], (3, 500)),
            (&[500, 243, 500], (2, 500)),
            (&[243, 500], (1, 243)),
            (&[0, 5], (2, 5)),
            (&[0, 0], (1, 0)),
            (&[5, 0], (1, 5)),
            (&[65_507], (1, 65_507)),
            (&[65_507, 1], (1, 65_507)),
            (&[32_753, 32_753, 1], (2, 32_753)),
            (&[1_400; SEND_BATCH_MAX], (46, 1_400)),
            (&[1_000; SEND_BATCH_MAX], (SEND_BATCH_MAX, 1_000)),
        ] {
            assert_eq!(group(lengths), expected, "{lengths:?}");
        }
    }

    proptest! {
        #[test]
        fn a_group_is_what_the_kernel_takes(
            lengths in prop::collection::vec(prop_oneof![0_usize..300, 1_200..1_400_usize, 0..70_000_usize], 1..=SEND_BATCH_MAX),
        ) {
            let (segments, segment_bytes) = group(&lengths);
            let group = &lengths[..segments];
            prop_assert_eq!(group.iter().max(), Some(&segment_bytes));
            if segments > 1 {
                prop_assert!(segments * segment_bytes <= MESSAGE_BYTES_MAX);
                let (last, padded) = group.split_last().unwrap();
                prop_assert!(*last > 0);
                prop_assert!(padded.iter().all(|length| can_pad(segment_bytes - length)));
            }
        }
    }
}
