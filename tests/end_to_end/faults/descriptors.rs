//! A crowd of slow clients of the admin, and no descriptors for them: events do not notice.

use std::io::Write;
use std::net::SocketAddr;

use hailmary_client::{Address, Publisher, Subscriber};
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use crate::support::evidence::{figure, tell};
use crate::support::{PATIENCE, Serving, assert_laws, sum, value, wait_until};

/// Clients that each send a request that never ends, where the tests may have descriptors for them.
const CLIENTS: u64 = 3_000;

/// Descriptors that the bus may have: less than those of its own and the admin's 64 connections.
const DESCRIPTORS: usize = 80;

/// Connections that the admin serves at once.
const CONNECTIONS: usize = 64;

/// Events that go round meanwhile.
const ROUND_TRIPS: u16 = 300;

/// As many clients as half of this process's descriptors are enough for: the others are for the
/// tests beside this one.
fn crowd(admin: SocketAddr) -> Vec<Socket> {
    let limit = getrlimit(Resource::Nofile).current;
    let clients = CLIENTS.min(limit.unwrap_or(2 * CLIENTS) / 2);
    let client = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // Under way: whoever finds no room waits for it.
        let _ = socket.connect(&admin.into());
        socket
    };
    (0..clients).map(client).collect()
}

fn descriptors(bus: &Serving) -> usize {
    let directory = format!("/proc/{}/fd", bus.id());
    std::fs::read_dir(directory).unwrap().count()
}

/// What became of a crowd.
struct Outcome {
    crowd: usize,
    /// Those of them whose connections stood: the kernel holds up the others.
    clients: usize,
    most_descriptors: usize,
    published: u64,
    received: u64,
}

/// Presses the admin while events go round, which is to answer when the crowd has gone.
fn press(bus: &Serving) -> Outcome {
    let address: Address = bus.address().parse().unwrap();
    let subscriber = Subscriber::builder(&address).pattern("a").name("live");
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    let publisher = Publisher::connect(&address).unwrap();
    publisher.publish("a", b"first");
    assert!(subscriber.recv_timeout(PATIENCE).unwrap().is_some());
    let mut received = 1;
    let mut most = descriptors(bus);
    let crowd = crowd(bus.admin);
    for number in 0..ROUND_TRIPS {
        for client in crowd.iter().skip(usize::from(number) % 16).step_by(16) {
            let _ = (&*client).write(b"GET /metrics HTTP/1.1\r\nX: ");
        }
        publisher.publish("a", &number.to_string());
        let event = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(event.payload, number.to_string().as_bytes());
        received += 1;
        most = most.max(descriptors(bus));
    }
    let clients = crowd.iter().filter(|one| one.peer_addr().is_ok()).count();
    let all = crowd.len();
    drop(crowd);
    let page = wait_until("a scrape", || {
        let page = bus.try_get("/metrics").ok();
        page.filter(|page| page.contains("200 OK"))
    });
    assert_laws(&page);
    let published = u64::from(ROUND_TRIPS) + 1;
    assert_eq!(value(&page, "matched_events_total"), published);
    assert_eq!(sum(&page, "egress_dropped_events_total"), 0);
    assert_eq!(subscriber.close().lost, 0);
    Outcome {
        crowd: all,
        clients,
        most_descriptors: most,
        published,
        received,
    }
}

#[test]
fn a_crowd_at_the_admin_costs_no_event() {
    let bus = Serving::start_limited(&format!("-n {DESCRIPTORS}"), &[]);
    let outcome = press(&bus);
    let (clients, most) = (outcome.clients, outcome.most_descriptors);
    assert!(clients > CONNECTIONS, "{clients} connections");
    assert!(most > DESCRIPTORS - 8, "they were to be used up: {most}");
    let figures = [
        figure("clients that connect at once", outcome.crowd, "clients"),
        figure("connections that stand at once", clients, "connections"),
        figure(
            "descriptors that the bus may have",
            DESCRIPTORS,
            "descriptors",
        ),
        figure("events delivered meanwhile", outcome.received, "events"),
        figure(
            "events lost",
            outcome.published - outcome.received,
            "events",
        ),
    ];
    tell(
        "admin_without_descriptors",
        "Far more clients of the admin than it has places for send requests that never end, and the bus has used up \
         its file descriptors.",
        "No event is lost, and the admin answers again when they have gone.",
        &figures,
    );
    assert_eq!(bus.stop().0, 0);
}

#[test]
fn a_crowd_at_the_admin_has_no_more_than_its_places() {
    let bus = Serving::start(&[], &[]);
    let before = descriptors(&bus);
    let most = press(&bus).most_descriptors;
    // And one that is turned away, and one that is counted here.
    assert!(most <= before + CONNECTIONS + 2, "{before} before, {most}");
    assert!(most > before + CONNECTIONS / 2, "{before} before, {most}");
    assert_eq!(bus.stop().0, 0);
}
