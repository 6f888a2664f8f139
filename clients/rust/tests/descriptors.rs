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
use std::sync::Mutex;
use std::time::Duration;

use common::StandIn;
use hailmary_client::{Event, PublishError, Publisher, RecvError, Subscriber};

/// Held while a test goes by which descriptors there are.
static DESCRIPTORS: Mutex<()> = Mutex::new(());

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

/// What is opened, and the number of its socket.
fn number_of<T>(open: impl FnOnce() -> T) -> (T, RawFd) {
    let before = sockets();
    let opened = open();
    let after = sockets();
    let mut new = after.difference(&before);
    (opened, *new.next().unwrap())
}

/// A publisher that has published, and the number of its socket.
fn open(bus: &StandIn) -> (Publisher, RawFd) {
    let (publisher, number) = number_of(|| Publisher::connect(&bus.address()).unwrap());
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
fn a_publishers_lost_socket_is_replaced_and_its_number_left_alone() {
    let _held = DESCRIPTORS.lock().unwrap();
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

#[test]
fn a_subscribers_lost_socket_is_told_of_and_replaced() {
    let _held = DESCRIPTORS.lock().unwrap();
    let bus = StandIn::open();
    let builder = Subscriber::builder(&bus.address()).pattern(">");
    let (mut subscriber, number) = number_of(|| builder.open().unwrap());
    let (request, from) = bus.receive_subscribe();
    // SAFETY: this breaks what the socket's owner relies on, which is the test.
    assert_eq!(unsafe { libc::close(number) }, 0);
    let file = File::open("/dev/null").unwrap();
    assert_eq!(file.as_raw_fd(), number, "the number is another's now");
    let error = subscriber.recv_timeout(Duration::ZERO).unwrap_err();
    assert!(matches!(error, RecvError::Io(_)), "{error}");
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| subscriber.recv());
        let (again, from_new) = bus.receive_subscribe();
        assert_eq!(again.nonce, request.nonce);
        assert_ne!(from_new, from);
        bus.grant(again.nonce, from_new);
        bus.send(&common::events(0, &["x"]), from_new);
        assert_eq!(receiving.join().unwrap().unwrap().payload, b"x");
    });
    drop(subscriber);
    assert!(file.metadata().is_ok(), "it was not closed");
}
