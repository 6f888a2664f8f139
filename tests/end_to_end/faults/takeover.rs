//! A subscriber's address that another one has now, a process or a host, which asked for nothing.

use std::net::UdpSocket;

use hailmary_client::Publisher;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Frame, Unsubscribe};
use prost::Message;

use crate::support::evidence::{figure, tell};
use crate::support::hosts::{Switch, is_inside};
use crate::support::{Configured, PATIENCE, request, subscribe, value, wait_until};

use super::scene::{Scene, Summary, dropped, dropped_as, sent};

const EVENTS: u64 = 30;

/// Far fewer rounds of requests than a stranger is answered in a second.
const ROUNDS: u64 = 50;

/// How long the lease lasts of one that is gone, in ms.
const LEASE_MS: u32 = 3_000;

/// What the first holder of the address calls its subscription.
const NONCE: u64 = 5;

/// What the next one does.
const OTHER_NONCE: u64 = 6;

/// An address whose ports no other test is given.
const HERE: &str = "127.0.92.1:0";

/// One that has an address, and speaks to a bus.
struct Holder<'a> {
    bus: &'a Configured,
    socket: UdpSocket,
}

impl<'a> Holder<'a> {
    fn at(bus: &'a Configured, address: &str) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { bus, socket }
    }

    fn tell(&self, control: Control) {
        let datagram = request(control);
        self.socket.send_to(&datagram, self.bus.udp()).unwrap();
    }

    fn receive(&self) -> Frame {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).unwrap();
        Frame::decode(&buffer[..length]).unwrap()
    }

    /// Asks, and says how many events came before the answer.
    fn ask(&self, control: Control) -> (u64, Control) {
        self.tell(control);
        let mut events = 0;
        loop {
            let frame = self.receive();
            events += frame.events.len() as u64;
            if let Some(answer) = frame.control {
                return (events, answer);
            }
        }
    }

    /// A cookie that proves the address.
    fn cookie(&self, nonce: u64) -> Vec<u8> {
        match self.ask(subscribe(nonce, b"")) {
            (_, Control::Challenge(challenge)) => challenge.cookie,
            other => panic!("{other:?}"),
        }
    }

    /// Takes a lease and goes without a word. Its address, for another one.
    fn lease_and_vanish(self) -> String {
        let cookie = self.cookie(NONCE);
        let (_, answer) = self.ask(subscribe(NONCE, &cookie));
        assert!(matches!(answer, Control::Lease(_)), "{answer:?}");
        self.socket.local_addr().unwrap().to_string()
    }
}

fn unsubscribe(cookie: &[u8], nonce: u64) -> Control {
    Control::Unsubscribe(Unsubscribe {
        cookie: cookie.to_vec(),
        nonce,
    })
}

/// A bus whose leases last so long, in ms.
fn bus(lease_ms: u32) -> Configured {
    Configured::start(&format!(
        "[limits]\nlease_ms = {lease_ms}\nlease_ms_max = {lease_ms}\n"
    ))
}

fn leases(bus: &Configured) -> u64 {
    value(&bus.get("/metrics"), "leases")
}

/// Publishes so that these many events have come to the bus in all.
fn publish(bus: &Configured, publisher: &Publisher, in_all: u64) -> String {
    for _ in 0..EVENTS {
        publisher.publish("a", b"x");
    }
    bus.wait_for_metric("ingress_events_total", in_all)
}

#[test]
fn whoever_has_the_address_next_gets_nothing_past_the_lease() {
    let bus = bus(LEASE_MS);
    let publisher = Publisher::connect(&bus.address().parse().unwrap()).unwrap();
    let address = Holder::at(&bus, HERE).lease_and_vanish();
    let next = Holder::at(&bus, &address);
    publish(&bus, &publisher, EVENTS);

    // Without a cookie it neither renews nor ends what is not its own.
    let (mut events, mut attempts, mut refusals) = (0, 0, 0);
    for _ in 0..ROUNDS {
        for attempt in [
            subscribe(NONCE, b""),
            subscribe(NONCE, &[7; 18]),
            unsubscribe(&[7; 18], NONCE),
        ] {
            let is_end = matches!(attempt, Control::Unsubscribe(_));
            let (came, answer) = next.ask(attempt);
            let is_refused = match answer {
                Control::Challenge(_) => !is_end,
                Control::Refusal(_) => is_end,
                _ => false,
            };
            assert!(is_refused, "{answer:?}");
            refusals += u64::from(is_refused);
            events += came;
            attempts += 1;
        }
    }
    let page = bus.wait_for_metric("leases_expired_total", 1);
    assert_eq!(value(&page, "leases_granted_total"), 1);
    assert_eq!(events, value(&page, "matched_events_total"));

    let page = publish(&bus, &publisher, 2 * EVENTS);
    let after = next.ask(subscribe(OTHER_NONCE, b"")).0;
    assert_eq!(after, 0);
    assert_eq!(value(&page, "unmatched_events_total"), 2 * EVENTS - events);
    let figures = [
        figure("lease", LEASE_MS / 1_000, "s"),
        figure(
            "received by the next one while the lease lasted",
            events,
            "events",
        ),
        figure("received by it afterwards", after, "events"),
        figure(
            "attempts without a cookie to renew or end the lease",
            attempts,
            "requests",
        ),
        figure("of them in vain", refusals, "requests"),
    ];
    tell(
        "address_taken_by_a_process",
        "A subscriber is gone without a word, and another process has its port.",
        "The newcomer gets nothing past the lease, which without a cookie it can neither renew \
         nor end.",
        &figures,
    );
}

#[test]
fn whoever_has_the_address_next_can_end_what_comes_there() {
    let bus = bus(300_000);
    let address = Holder::at(&bus, HERE).lease_and_vanish();
    let next = Holder::at(&bus, &address);
    let elsewhere = Holder::at(&bus, HERE);
    let cookie = next.cookie(OTHER_NONCE);
    let (_, answer) = elsewhere.ask(unsubscribe(&cookie, OTHER_NONCE));
    assert!(matches!(answer, Control::Refusal(_)), "{answer:?}");
    assert_eq!(leases(&bus), 1, "that one does not have the address");
    next.tell(unsubscribe(&cookie, OTHER_NONCE));
    bus.wait_for("/metrics", |page| value(page, "leases") == 0);
    tell(
        "address_taken_and_told",
        "A subscriber is gone without a word, and another process has its port and wants nothing.",
        "It ends the lease at once by a cookie of its own, which nobody at another address can.",
        &[figure("requests that it takes", 2, "requests")],
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn a_host_that_has_the_address_next_refuses_what_is_not_its_own() {
    if !is_inside("faults::takeover::a_host_that_has_the_address_next_refuses_what_is_not_its_own")
    {
        return;
    }
    let switch = Switch::new();
    let (living_host, gone_host) = (switch.plug(0, 2), switch.plug(1, 3));
    let mut scene = Scene::start("", &[Switch::HERE]);
    let living = scene.subscribe(&living_host, 1, "living");
    let gone = scene.subscribe(&gone_host, 1, "gone");
    scene.publish_bursts(1, EVENTS, &living);
    for _ in 0..EVENTS {
        gone.line();
    }
    switch.unplug(1, 3);
    let _next_host = switch.plug(2, 3);
    // Which says by ICMP that nobody has the port there, as often as its kernel lets it.
    let page = wait_until("a refusal", || {
        scene.publish_bursts(EVENTS, 1, &living);
        let page = scene.books();
        (dropped_as(&page, "gone", "refused") > 0).then_some(page)
    });
    let refused = dropped_as(&page, "gone", "refused");
    assert_eq!(refused, dropped(&page, "gone"), "for no other reason");
    assert_eq!(sent(&page, "gone") + refused, scene.published());
    let living = Summary::of(living);
    assert_eq!(living.received, scene.published());
    assert_eq!(dropped(&page, "living"), 0, "{page}");
    let figures = [
        figure("published", scene.published(), "events"),
        figure("lost by the one beside it", living.lost, "events"),
        figure("counted as refused", refused, "events"),
    ];
    tell(
        "address_taken_by_a_host",
        "A subscriber's host is gone, and another host has its address.",
        "A subscriber beside it loses nothing. What the newcomer says of the port that it does not \
         have is believed, and counted: for each refusal that it sends one event is not sent.",
        &figures,
    );
}
