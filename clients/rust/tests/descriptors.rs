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
use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{PATIENCE, SocketPath, StandIn, receive_unix};
#[cfg(feature = "tokio")]
use hailmary_client::{AsyncSubscriber, lease::RENEWAL_MAX};
use hailmary_client::{Event, PublishError, Publisher, RecvError, Subscriber};
use hailmary_proto::v1;

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
fn assert_mended(publisher: &Publisher, receive: impl Fn() -> v1::Frame) {
    let error = publisher.try_publish(&Event::new("a", "")).unwrap_err();
    assert!(matches!(error, PublishError::Failed(_)), "{error}");
    publisher.publish("a", "");
    let stamps = [(); 2].map(|()| receive().stamp.unwrap());
    let [first, second] = stamps;
    assert_eq!(first.sender, second.sender);
    assert_eq!((second.sequence, second.dropped), (2, 1));
    let stats = publisher.stats();
    assert_eq!((stats.sent, stats.failed, stats.dropped()), (2, 1, 1));
}

/// Gives the number of a descriptor to another's, closing what had it.
fn replace(number: RawFd, by: &impl AsRawFd) -> OwnedFd {
    // SAFETY: this breaks what the socket's owner relies on, which is the test.
    assert_eq!(unsafe { libc::dup2(by.as_raw_fd(), number) }, number);
    // SAFETY: the number was given away just now, and whoever closes it besides fails
    // the test.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn is_open(number: &impl AsRawFd) -> bool {
    // SAFETY: it touches no memory.
    unsafe { libc::fcntl(number.as_raw_fd(), libc::F_GETFD) >= 0 }
}

/// A publisher over Unix that has published, the number of its socket, and the bus.
fn open_unix(place: &SocketPath) -> (Publisher, RawFd, UnixDatagram) {
    let bus = place.bind();
    let (publisher, number) = number_of(|| Publisher::connect(&place.address()).unwrap());
    publisher.publish("a", "");
    (publisher, number, bus)
}

/// Each kind of what may take the number of a socket: of what may be written to, nothing
/// is, and of what nobody reads, nobody waits for.
#[test]
fn what_took_a_sockets_number_is_left_as_it_is_over_unix() {
    let _held = DESCRIPTORS.lock().unwrap();
    let place = SocketPath::new("descriptors");
    let mended = |publisher: &Publisher, bus: &UnixDatagram| {
        assert_mended(publisher, || receive_unix(bus));
    };

    let (publisher, number, bus) = open_unix(&place);
    let log = place.path().with_extension("log");
    let others = replace(number, &File::create(&log).unwrap());
    mended(&publisher, &bus);
    drop(publisher);
    assert!(is_open(&others));
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);

    std::fs::remove_file(place.path()).unwrap();
    let (publisher, number, bus) = open_unix(&place);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let others = replace(number, &writer);
    mended(&publisher, &bus);
    drop(publisher);
    assert!(is_open(&others));
    drop((others, writer));
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0, "nothing was written");
}

#[test]
fn a_server_that_took_a_sockets_number_is_not_connected_to_the_bus() {
    let _held = DESCRIPTORS.lock().unwrap();
    let bus = StandIn::open();
    let (publisher, number) = open(&bus);
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let others = replace(number, &server);
    assert_mended(&publisher, || bus.receive().0);
    assert!(server.peer_addr().is_err(), "it hears all, as before");
    drop(publisher);
    assert!(is_open(&others));
}

#[test]
fn a_connection_that_took_a_sockets_number_gets_no_bytes() {
    let _held = DESCRIPTORS.lock().unwrap();
    let bus = StandIn::open();
    let (publisher, number) = open(&bus);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut peer = listener.accept().unwrap().0;
    let others = replace(number, &client);
    assert_mended(&publisher, || bus.receive().0);
    drop((others, client));
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "nothing was written");
}

#[test]
fn a_number_that_is_anothers_is_closed_by_nobody_who_finds_no_error() {
    let _held = DESCRIPTORS.lock().unwrap();
    let bus = StandIn::open();
    let null = File::open("/dev/null").unwrap();
    let (publisher, number) = open(&bus);
    let others = replace(number, &null);
    publisher.resolve().unwrap();
    assert!(is_open(&others), "resolve found another socket");
    drop((publisher, others));

    let (publisher, number) = open(&bus);
    let others = replace(number, &null);
    drop(publisher);
    assert!(is_open(&others), "a publisher");
    drop(others);

    let builder = Subscriber::builder(&bus.address()).pattern(">");
    let (subscriber, number) = number_of(|| builder.open().unwrap());
    let others = replace(number, &null);
    drop(subscriber);
    assert!(is_open(&others), "a subscriber");
}

/// Fails if the child has.
fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the child is ours, and `status` outlives the call.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((ended, status), (child, 0));
}

/// As daemons begin: std ends a process that closes a free number, where it checks.
#[test]
fn a_child_that_closed_all_it_was_left_drops_what_it_had() {
    let _held = DESCRIPTORS.lock().unwrap();
    let bus = StandIn::open();
    let builder = Subscriber::builder(&bus.address()).pattern(">");
    let (subscriber, of_subscriber) = number_of(|| builder.open().unwrap());
    let (publisher, of_publisher) = open(&bus);
    // SAFETY: the child runs what takes no lock but the allocator's, and ends itself.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as in `replace`; and it leaves without the parent's destructors.
        unsafe {
            libc::close(of_subscriber);
            libc::close(of_publisher);
            drop((std::ptr::read(&raw const subscriber), publisher));
            libc::_exit(0);
        }
    }
    wait_for(child);
}

/// A send to it gives EPIPE, and so does one by a socket that was itself shut down.
#[test]
fn a_bus_that_reads_no_more_refuses_and_costs_no_descriptors() {
    const EVENTS: u64 = 100;
    let _held = DESCRIPTORS.lock().unwrap();
    let place = SocketPath::new("shut-down");
    let bus = place.bind();
    let publisher = Publisher::connect(&place.address()).unwrap();
    bus.shutdown(Shutdown::Read).unwrap();
    let before = sockets().len();
    (0..EVENTS).for_each(|_| publisher.publish("a", ""));
    assert_eq!(sockets().len(), before);
    assert_eq!(publisher.stats().refused, EVENTS);

    std::fs::remove_file(place.path()).unwrap();
    let bus = place.bind();
    publisher.try_publish(&Event::new("a", "")).unwrap();
    assert_eq!(receive_unix(&bus).stamp.unwrap().dropped, EVENTS);
}

#[test]
fn a_bus_that_hangs_with_a_full_queue_gives_way_to_the_next_at_its_path() {
    let _held = DESCRIPTORS.lock().unwrap();
    let place = SocketPath::new("hangs");
    let (publisher, _, _old) = open_unix(&place);
    let event = Event::new("a", "");
    while publisher.try_publish(&event).is_ok() {}
    std::fs::remove_file(place.path()).unwrap();
    let bus = place.bind();
    bus.set_nonblocking(true).unwrap();
    let began = Instant::now();
    while bus.recv(&mut [0; 64]).is_err() {
        assert!(began.elapsed() < PATIENCE);
        publisher.publish("a", "");
    }
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
    assert_mended(&publisher, || bus.receive().0);
    drop(publisher);
    assert!(file.metadata().is_ok(), "it was not closed");

    let (publisher, number) = open(&bus);
    // SAFETY: it touches no memory.
    assert_eq!(unsafe { libc::shutdown(number, libc::SHUT_WR) }, 0);
    assert_mended(&publisher, || bus.receive().0);
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

#[cfg(feature = "tokio")]
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// What the reactor knows of the parent's socket is the parent's. A deaf one finds what
/// is there when it renews its lease; a machine may be that slow, but not each time.
#[cfg(feature = "tokio")]
#[test]
fn a_childs_async_subscriber_leaves_the_parents_reactor_alone() {
    const TIMES: usize = 3;
    let _held = DESCRIPTORS.lock().unwrap();
    let mut waits = std::iter::repeat_with(wait_after_childs_drop).take(TIMES);
    assert!(waits.any(|wait| wait < RENEWAL_MAX / 2));
}

/// How long an event takes to a subscriber, of which a child has dropped its copy.
#[cfg(feature = "tokio")]
fn wait_after_childs_drop() -> Duration {
    let (bus, runtime) = (StandIn::open(), runtime());
    let builder = AsyncSubscriber::builder(&bus.address()).pattern(">");
    let mut subscriber = runtime.block_on(builder.open_async()).unwrap();
    let (request, from) = bus.receive_subscribe();
    bus.grant(request.nonce, from);
    let brief = Duration::from_millis(1);
    while !subscriber.is_subscribed() {
        let receiving = async { tokio::time::timeout(brief, subscriber.recv()).await };
        assert!(runtime.block_on(receiving).is_err());
    }
    let mut subscriber = Some(subscriber);
    // SAFETY: the child runs what takes no lock but the allocator's, and ends itself.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(subscriber.take());
        // SAFETY: it ends the process, and none of the parent's destructors run.
        unsafe { libc::_exit(0) };
    }
    wait_for(child);
    let began = Instant::now();
    bus.send(&common::events(0, &["x"]), from);
    let event = runtime.block_on(subscriber.unwrap().recv()).unwrap();
    assert_eq!(event.payload, b"x");
    began.elapsed()
}

/// Both numbers, the subscriber's and the reactor's, are another's: neither is closed,
/// and the reactor still hears the other's socket.
#[cfg(feature = "tokio")]
#[test]
fn an_async_subscribers_lost_numbers_are_left_alone() {
    let _held = DESCRIPTORS.lock().unwrap();
    let bus = StandIn::open();
    let runtime = runtime();
    let before = sockets();
    let builder = AsyncSubscriber::builder(&bus.address()).pattern(">");
    let mut subscriber = runtime.block_on(builder.open_async()).unwrap();
    bus.receive_subscribe();
    let null = File::open("/dev/null").unwrap();
    let numbers: Vec<_> = sockets().difference(&before).copied().collect();
    let others: Vec<_> = (numbers.iter())
        .map(|&number| replace(number, &null))
        .collect();
    assert_eq!(others.len(), 2);
    let error = runtime.block_on(subscriber.recv()).unwrap_err();
    assert!(matches!(error, RecvError::Io(_)), "{error}");
    drop(subscriber);
    assert!(others.iter().all(is_open));
}
