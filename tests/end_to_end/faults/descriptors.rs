//! Thousands of slow clients of the admin, and no descriptors for them: events do not notice.

use std::io::Write;
use std::net::SocketAddr;

use hailmary_client::{Address, Publisher, Subscriber};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::support::evidence::{figure, tell};
use crate::support::{PATIENCE, Serving, assert_laws, sum, value, wait_until};

/// Clients that each send a request that never ends.
const CLIENTS: u64 = 3_000;

/// Descriptors that the bus may have: less than those of its own and the admin's 64 connections.
const DESCRIPTORS: usize = 48;

/// Connections that the admin serves at once.
const CONNECTIONS: usize = 64;

/// Events that go round meanwhile.
const ROUND_TRIPS: u16 = 300;

/// As many clients as this process may have descriptors for.
fn crowd(admin: SocketAddr) -> Vec<Socket> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let clients = CLIENTS.min(limit.maximum.unwrap_or(CLIENTS) / 2);
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

/// The most descriptors that the bus had, and whether it answered when the crowd had gone.
fn press(bus: &Serving) -> (usize, usize) {
    let address: Address = bus.address().parse().unwrap();
    let subscriber = Subscriber::builder(&address).pattern("a").name("live");
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    let publisher = Publisher::connect(&address).unwrap();
    publisher.publish("a", b"first");
    assert!(subscriber.recv_timeout(PATIENCE).unwrap().is_some());
    let mut most = descriptors(bus);
    let crowd = crowd(bus.admin);
    for number in 0..ROUND_TRIPS {
        for client in crowd.iter().skip(usize::from(number) % 16).step_by(16) {
            let _ = (&*client).write(b"GET /metrics HTTP/1.1\r\nX: ");
        }
        publisher.publish("a", &number.to_string());
        let event = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(event.payload, number.to_string().as_bytes());
        most = most.max(descriptors(bus));
    }
    let clients = crowd.len();
    drop(crowd);
    let page = wait_until("a scrape", || {
        let page = bus.try_get("/metrics").ok();
        page.filter(|page| page.contains("200 OK"))
    });
    assert_laws(&page);
    assert_eq!(
        value(&page, "matched_events_total"),
        u64::from(ROUND_TRIPS) + 1
    );
    assert_eq!(sum(&page, "egress_dropped_events_total"), 0);
    assert_eq!(subscriber.close().lost, 0);
    (clients, most)
}

#[test]
fn a_crowd_at_the_admin_costs_no_event() {
    let bus = Serving::start_limited(&format!("-n {DESCRIPTORS}"), &[]);
    let (clients, most) = press(&bus);
    let figures = [
        figure("clients at once", clients, "connections"),
        figure(
            "descriptors that the bus may have",
            DESCRIPTORS,
            "descriptors",
        ),
        figure("events delivered meanwhile", ROUND_TRIPS, "events"),
        figure("events lost", 0, "events"),
    ];
    tell(
        "admin_without_descriptors",
        "Thousands of clients of the admin send requests that never end, and the bus has used up \
         its file descriptors.",
        "No event is lost, and the admin answers again when they have gone.",
        &figures,
    );
    assert!(most > DESCRIPTORS - 8, "they were to be used up: {most}");
    assert_eq!(bus.stop().0, 0);
}

#[test]
fn a_crowd_at_the_admin_has_no_more_than_its_places() {
    let bus = Serving::start(&[], &[]);
    let before = descriptors(&bus);
    let (_, most) = press(&bus);
    // And one that is turned away, and one that is counted here.
    assert!(most <= before + CONNECTIONS + 2, "{before} before, {most}");
    assert!(most > before + CONNECTIONS / 2, "{before} before, {most}");
    assert_eq!(bus.stop().0, 0);
}
