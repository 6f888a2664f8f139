//! A socket that something else in the process closes or shuts down. In a program of
//! its own, whose descriptors nobody else changes.
#![cfg(target_os = "linux")]
#![expect(unsafe_code, reason = "it does what no program should")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what helps tests may panic as they do"
)]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use common::StandIn;
use hailmary_client::{Event, PublishError, Publisher};

/// The numbers of this process's sockets.
fn sockets() -> BTreeSet<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let number = |entry: std::fs::DirEntry| {
        let what = std::fs::read_link(entry.path()).ok()?;
        let is_socket = what.to_str()?.starts_with("socket:");
        is_socket.then(|| entry.file_name().to_str().unwrap().parse().unwrap())
    };
    entries.filter_map(|entry| number(entry.unwrap())).collect()
}

/// A publisher that has published, and the number of its socket.
fn open(bus: &StandIn) -> (Publisher, RawFd) {
    let before = sockets();
    let publisher = Publisher::connect(&bus.address()).unwrap();
    let after = sockets();
    let mut new = after.difference(&before);
    let number = *new.next().unwrap();
    publisher.publish("a", "");
    (publisher, number)
}

/// The event that meets the loss is dropped, and those after it arrive.
fn assert_mended(publisher: &Publisher, bus: &StandIn) {
    let error = publisher.try_publish(&Event::new("a", "")).unwrap_err();
    assert!(matches!(error, PublishError::Failed(_)), "{error}");
    publisher.publish("a", "");
    let stamps = [(); 2].map(|()| bus.receive().0.stamp.unwrap());
    let [first, second] = stamps;
    assert_eq!(first.sender, second.sender);
    assert_eq!((second.sequence, second.dropped), (2, 1));
    let stats = publisher.stats();
    assert_eq!((stats.sent, stats.failed, stats.dropped()), (2, 1, 1));
}

#[test]
fn a_lost_socket_is_replaced_and_its_number_left_alone() {
    let bus = StandIn::open();

    let (publisher, number) = open(&bus);
    // SAFETY: this breaks what the socket's owner relies on, which is the test.
    assert_eq!(unsafe { libc::close(number) }, 0);
    let file = File::open("/dev/null").unwrap();
    assert_eq!(file.as_raw_fd(), number, "the number is another's now");
    assert_mended(&publisher, &bus);
    drop(publisher);
    assert!(file.metadata().is_ok(), "it was not closed");

    let (publisher, number) = open(&bus);
    // SAFETY: it touches no memory.
    assert_eq!(unsafe { libc::shutdown(number, libc::SHUT_WR) }, 0);
    assert_mended(&publisher, &bus);
}
