//! A subscriber whose UDP port nobody has: the bus says so, and it costs nobody else anything.

use std::net::{SocketAddr, UdpSocket};

use hailmary_proto::v1::{Frame, Stamp};
use prost::Message;
use socket2::{Domain, Socket, Type};

use super::support::{PATIENCE, Serving, assert_laws, datagram, event, sum_of, value, wait_until};

/// No other test is given a port of the first, and a socket of a test is held on the second.
const ADDRESSES: [&str; 2] = ["127.0.90.1:0", "[::1]:0"];

/// Refusals to wait for: each is a copy that was not sent.
const REFUSALS: u64 = 10;

/// A socket beside which others may be bound to its address.
fn bind(address: SocketAddr) -> UdpSocket {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A port that is dead to all others, and that nobody else is given: its socket hears none but
/// itself.
fn dead_port(address: SocketAddr) -> UdpSocket {
    let socket = bind(address);
    socket.connect(socket.local_addr().unwrap()).unwrap();
    socket
}

fn stamp(socket: &UdpSocket) -> Stamp {
    let mut buffer = [0; 1_500];
    let length = socket.recv(&mut buffer).unwrap();
    let frame = Frame::decode(&buffer[..length]).unwrap();
    assert_eq!(frame.events.len(), 1);
    frame.stamp.unwrap()
}

/// A bus with two static subscribers, one of them dead.
struct Scene {
    bus: Serving,
    publisher: UdpSocket,
    living: UdpSocket,
    holder: UdpSocket,
    published: u64,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn start(address: SocketAddr) -> Self {
        let (living, holder) = (bind(address), dead_port(address));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bus.toml");
        let entry = |(name, socket): (&str, &UdpSocket)| {
            let address = socket.local_addr().unwrap();
            format!(
                "[[subscriber]]\nname = \"{name}\"\naddress = \"{address}\"\ntopics = [\"a\"]\n"
            )
        };
        let entries = [("dead", &holder), ("living", &living)].map(entry);
        std::fs::write(&file, entries.concat()).unwrap();
        let bus = Serving::start(&["--config", file.to_str().unwrap()], &[]);
        Self {
            bus,
            publisher: UdpSocket::bind("127.0.0.1:0").unwrap(),
            living,
            holder,
            published: 0,
            _directory: directory,
        }
    }

    /// Publishes one event, which the living one gets as it got all before it.
    fn publish(&mut self) {
        let datagram = datagram(vec![event("a")]);
        self.publisher.send_to(&datagram, self.bus.udp()).unwrap();
        let stamp = stamp(&self.living);
        assert_eq!((stamp.sequence, stamp.dropped), (self.published, 0));
        self.published += 1;
    }

    /// The metrics when all that was published is in them.
    fn page(&self) -> String {
        let page = self.bus.wait_for("/metrics", |page| {
            value(page, "copies_total") == 2 * self.published
        });
        assert_laws(&page);
        page
    }
}

fn refused(page: &str, name: &str) -> u64 {
    let label = format!("subscriber=\"{name}\"");
    let all = sum_of(page, "egress_dropped_events_total", &label);
    let label = format!("{label},reason=\"refused\"");
    let refused = sum_of(page, "egress_dropped_events_total", &label);
    assert_eq!(refused, all, "for no other reason");
    refused
}

fn sent(page: &str, name: &str) -> u64 {
    value(
        page,
        &format!("egress_events_total{{subscriber=\"{name}\"}}"),
    )
}

fn a_dead_port_is_told_of(address: SocketAddr) {
    let mut scene = Scene::start(address);
    let page = wait_until("refusals", || {
        scene.publish();
        let page = scene.page();
        (refused(&page, "dead") >= REFUSALS).then_some(page)
    });
    assert_eq!(
        sent(&page, "dead") + refused(&page, "dead"),
        scene.published
    );
    assert!(
        sent(&page, "dead") >= REFUSALS,
        "each was of one that was sent"
    );
    assert_eq!(sent(&page, "living"), scene.published);
    let sent_in_vain = sent(&page, "dead");
    let refused_before = refused(&page, "dead");

    let revived = bind(scene.holder.local_addr().unwrap());
    for _ in 0..REFUSALS {
        scene.publish();
    }
    let page = scene.page();
    let received: Vec<_> = (sent_in_vain..sent(&page, "dead"))
        .map(|_| stamp(&revived))
        .collect();
    let lost = refused(&page, "dead") - refused_before;
    assert!(lost <= 1, "{lost} of those after it came back");
    assert_eq!(received.len() as u64 + lost, REFUSALS);
    // By the stamps, too: what it did not get was dropped, or sent while it was dead.
    let last = received.last().unwrap();
    assert_eq!(last.sequence + 1, scene.published);
    assert_eq!(last.dropped, refused(&page, "dead"));
    assert_eq!(
        last.sequence + 1,
        received.len() as u64 + sent_in_vain + last.dropped
    );
    assert_eq!(sent(&page, "living"), scene.published);
    assert_eq!(refused(&page, "living"), 0);
}

#[test]
fn a_dead_port_is_told_of_till_somebody_has_it_again() {
    for address in ADDRESSES {
        if UdpSocket::bind(address).is_ok() {
            a_dead_port_is_told_of(address.parse().unwrap());
        } else {
            eprintln!("skipped: this machine has no {address}");
        }
    }
}
