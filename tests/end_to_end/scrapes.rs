//! Scrapes of very many subscribers' series hold up nobody.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;

use hailmary_client::{Address, Publisher, Subscriber};
use socket2::{Domain, Socket, Type};

use crate::support::{PATIENCE, Serving, assert_laws, value};

/// Static subscribers: their page is longer than what sockets of default size hold of it.
const SUBSCRIBERS: usize = 10_000;

/// Events that go round while a scrape is under way, each after the one before has arrived.
const ROUND_TRIPS: u64 = 50;

/// None of them is there.
fn configuration() -> String {
    let mut text = String::new();
    for number in 0..SUBSCRIBERS {
        let (high, low) = (number >> 8, number & 255);
        writeln!(
            text,
            "[[subscriber]]\nname = \"idle-{number}\"\naddress = \"127.1.{high}.{low}:9\"\n\
             topics = [\"elsewhere.{number}\"]"
        )
        .unwrap();
    }
    text
}

/// Begins a scrape and takes no more of the answer than a little buffer holds.
fn begin_scrape(bus: &Serving) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(&bus.admin.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[test]
fn a_scraper_that_stops_reading_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bus.toml");
    std::fs::write(&file, configuration()).unwrap();
    let bus = Serving::start(&["--config", file.to_str().unwrap()], &[]);
    let mut slow = begin_scrape(&bus);
    let mut answer = vec![0; 100];
    slow.read_exact(&mut answer).unwrap();

    // In the middle of its page a lease begins and ends, and events go round.
    let address: Address = bus.address().parse().unwrap();
    let subscriber = Subscriber::builder(&address).pattern("a").name("live");
    let mut subscriber = subscriber.connect(PATIENCE).unwrap();
    let publisher = Publisher::connect(&address).unwrap();
    for number in 0..ROUND_TRIPS {
        publisher.publish("a", &number.to_string());
        let event = subscriber.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(event.payload, number.to_string().as_bytes());
    }
    // Another scraper sees all of it.
    let page = bus.wait_for_metric("egress_events_total{subscriber=\"live\"}", ROUND_TRIPS);
    assert_laws(&page);
    assert_eq!(value(&page, "leases"), 1);
    assert_eq!(subscriber.close().lost, 0);
    bus.wait_for("/metrics", |page| value(page, "leases") == 0);

    // The slow one gets its own page, whole, as of when it asked.
    slow.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    let length = format!("content-length: {}", page.len());
    assert!(head.lines().any(|line| line == length), "{head}");
    assert_laws(page);
    assert_eq!(value(page, "ingress_events_total"), 0);
    let idle = page
        .lines()
        .filter(|line| line.starts_with("hailmary_egress_events_total{") && line.ends_with("} 0"));
    // And `other`.
    assert_eq!(idle.count(), SUBSCRIBERS + 1);
}
