//! In tests, in place of the kernel where a test says so: what is sent waits in a queue of this
//! thread, and is what is received. It follows the pointers of the headers as the kernel does, but
//! in sight of what checks them (Miri knows no batch calls).
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what helps tests may panic as they do"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::slice;

use libc::{c_int, iovec, mmsghdr, msghdr};

/// A datagram: the bytes of its address, and its own.
type Datagram = (Vec<u8>, Vec<u8>);

thread_local! {
    static QUEUE: RefCell<Option<VecDeque<Datagram>>> = const { RefCell::new(None) };
}

/// From now on this thread sends to itself.
pub fn loop_back() {
    QUEUE.set(Some(VecDeque::new()));
}

/// The kernel is asked again.
pub(super) fn end() {
    QUEUE.set(None);
}

pub(super) fn is_looped() -> bool {
    QUEUE.with_borrow(Option::is_some)
}

/// As sendmmsg(2).
///
/// # Safety
///
/// As sendmmsg(2).
pub(super) unsafe fn sendmmsg(headers: &mut [mmsghdr]) -> c_int {
    for header in &mut *headers {
        // SAFETY: as the caller has it.
        let (to, bytes, segment_bytes) = unsafe { message(&header.msg_hdr) };
        header.msg_len = bytes.len().try_into().unwrap();
        let datagrams = bytes.chunks(segment_bytes).map(<[u8]>::to_vec);
        let empty = bytes.is_empty().then(Vec::new);
        QUEUE.with_borrow_mut(|queue| {
            let datagrams = datagrams
                .chain(empty)
                .map(|datagram| (to.clone(), datagram));
            queue.as_mut().unwrap().extend(datagrams);
        });
    }
    headers.len().try_into().unwrap()
}

/// Where a message goes, what is in it, and how long its segments are.
///
/// # Safety
///
/// As with [`sendmmsg`].
unsafe fn message(header: &msghdr) -> (Vec<u8>, Vec<u8>, usize) {
    // SAFETY: as the caller has it.
    let (to, slices) = unsafe {
        (
            slice::from_raw_parts(header.msg_name.cast::<u8>(), header.msg_namelen as usize),
            slice::from_raw_parts(header.msg_iov, header.msg_iovlen),
        )
    };
    // SAFETY: as the caller has it.
    let part = |part: &iovec| unsafe { slice::from_raw_parts(part.iov_base.cast(), part.iov_len) };
    let bytes: Vec<u8> = slices.iter().flat_map(part).copied().collect();
    let segment_bytes = if header.msg_controllen == 0 {
        bytes.len().max(1)
    } else {
        // SAFETY: the caller sends no other control message than UDP_SEGMENT's, which has 2 bytes.
        let told = unsafe { libc::CMSG_DATA(header.msg_control.cast()).cast::<u16>() };
        // SAFETY: as above.
        unsafe { told.read() }.into()
    };
    (to.to_vec(), bytes, segment_bytes)
}

/// As recvmmsg(2), of datagrams without control messages.
///
/// # Safety
///
/// As recvmmsg(2).
pub(super) unsafe fn recvmmsg(headers: &mut [mmsghdr]) -> c_int {
    let next = || QUEUE.with_borrow_mut(|queue| queue.as_mut().unwrap().pop_front());
    let mut taken = 0;
    for (header, (from, bytes)) in headers.iter_mut().zip(std::iter::from_fn(next)) {
        // SAFETY: as the caller has it: so much room for the name, and one slice.
        let (name, slice) = unsafe {
            let room = header.msg_hdr.msg_namelen as usize;
            (
                slice::from_raw_parts_mut(header.msg_hdr.msg_name.cast::<u8>(), room),
                &*header.msg_hdr.msg_iov,
            )
        };
        // SAFETY: as the caller has it: the slice's room.
        let place = unsafe { slice::from_raw_parts_mut(slice.iov_base.cast(), slice.iov_len) };
        name[..from.len()].copy_from_slice(&from);
        place[..bytes.len()].copy_from_slice(&bytes);
        header.msg_hdr.msg_namelen = from.len().try_into().unwrap();
        header.msg_hdr.msg_controllen = 0;
        header.msg_len = bytes.len().try_into().unwrap();
        taken += 1;
    }
    taken
}
