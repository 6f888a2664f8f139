//! Ways that lose packets, or take only small ones: what arrives, and who knows of the rest.

use std::time::Duration;

use hailmary_client::{Subscriber, SubscriberBuilder, SubscriberStats};

use crate::support::evidence::{figure, tell};
use crate::support::hosts::{Host, ends, ip, is_inside, is_inside_with, tc};
use crate::support::{PATIENCE, sum_of, value, wait_until};

use super::scene::{Scene, dropped, dropped_as, sent};
use super::sizes::assert_refused_together;

/// Bursts that no receive buffer is filled by, whatever it was granted.
const BURSTS: u64 = 20;
const BURST: u64 = 30;

/// What every Ethernet takes.
const MTU_BYTES: u32 = 1_500;

/// Less than a frame with one event of the ones below.
const NARROW_MTU_BYTES: u32 = 600;

/// The cable of this host.
const HERE: u8 = 1;

/// The cable of the bus's host, where there is another one between.
const THERE: u8 = 2;

/// Drops a tenth of what comes by UDP: IPv4 and its protocol, then one of all random numbers.
const LOSE_A_TENTH: &str = "bpf direct-action bytecode '8,\
    40 0 0 12,21 0 5 2048,48 0 0 23,21 0 3 17,32 0 0 4294963256,53 0 1 3865470566,6 0 0 2,6 0 0 0'";

/// Drops what comes by ICMP.
const LOSE_ICMP: &str = "bpf direct-action bytecode '6,\
    40 0 0 12,21 0 3 2048,48 0 0 23,21 0 1 1,6 0 0 2,6 0 0 0'";

/// A bus on another host, and a subscriber here.
struct Way {
    scene: Scene,
    subscriber: Subscriber,
}

impl Way {
    fn to(
        host: &Host,
        cable: u8,
        ask: impl FnOnce(SubscriberBuilder) -> SubscriberBuilder,
    ) -> Self {
        let scene = Scene::start_on(host, &ends(cable)[1], "");
        let address = scene.bus.address().parse().unwrap();
        let builder = Subscriber::builder(&address).pattern("a").name("far");
        let subscriber = ask(builder).connect(PATIENCE).unwrap();
        Self { scene, subscriber }
    }

    /// Publishes a burst and takes what has come of all by now.
    fn publish(&mut self, payload: &[u8]) {
        self.scene.publish(BURST, payload);
        self.take();
    }

    /// Publishes as many events one by one. Of several frames for one host that leave together
    /// routers make fragments; one that leaves alone is not to be fragmented by others.
    fn publish_apart(&mut self, payload: &[u8]) {
        for _ in 0..BURST {
            self.scene.publish(1, payload);
            self.take();
        }
    }

    fn take(&mut self) {
        while let Ok(Some(_)) = self.subscriber.recv_timeout(Duration::ZERO) {}
    }

    /// Waits till the subscriber knows of all that was published, and the bus of its losses.
    fn settle(&mut self) -> (SubscriberStats, String) {
        let published = self.scene.published();
        let stats = wait_until("all losses to be told", || {
            // Its renewals are answered with the end of its flow.
            let _ = self.subscriber.recv_timeout(Duration::from_millis(10));
            self.take();
            let stats = self.subscriber.stats();
            (stats.received + stats.lost + stats.dropped_by_bus == published).then_some(stats)
        });
        let page = wait_until("the report", || {
            self.take();
            let page = self.scene.books();
            let told = sum_of(&page, "subscriber_lost_events_total", "\"far\"");
            (told == stats.lost).then_some(page)
        });
        assert_eq!((stats.duplicates, stats.lapses), (0, 0));
        assert_eq!(sent(&page, "far"), stats.received + stats.lost, "{page}");
        assert_eq!(dropped(&page, "far"), stats.dropped_by_bus, "{page}");
        (stats, page)
    }
}

fn tell_of(name: &str, fault: &str, promise: &str, published: u64, stats: SubscriberStats) {
    let figures = [
        figure("published", published, "events"),
        figure("received", stats.received, "events"),
        figure(
            "lost on the way, known to the subscriber and the bus",
            stats.lost,
            "events",
        ),
        figure(
            "counted as dropped by the bus",
            stats.dropped_by_bus,
            "events",
        ),
        figure(
            "unaccounted for",
            published - stats.received - stats.lost - stats.dropped_by_bus,
            "events",
        ),
    ];
    tell(name, fault, promise, &figures);
}

/// A bus whose datagrams reach this host through another one and then a narrow cable.
fn narrow_way() -> [Host; 2] {
    let router = Host::connect_by(HERE, NARROW_MTU_BYTES);
    let host = Host::behind(&router, THERE, MTU_BYTES);
    ip(&format!("route add default via {}", ends(HERE)[1]));
    host.ip(&format!("route add default via {}", ends(THERE)[0]));
    [router, host]
}

#[test]
#[ignore = "needs network namespaces"]
fn what_a_receiving_host_loses_is_known_to_the_event() {
    let test = "faults::ways::what_a_receiving_host_loses_is_known_to_the_event";
    let needed =
        format!("tc qdisc add dev cable clsact && tc filter add dev cable ingress {LOSE_A_TENTH}");
    if !is_inside_with(test, &needed) {
        return;
    }
    let host = Host::connect_by(HERE, MTU_BYTES);
    let mut way = Way::to(&host, HERE, |builder| builder);
    tc("qdisc add dev cable1 clsact");
    tc(&format!("filter add dev cable1 ingress {LOSE_A_TENTH}"));
    for _ in 0..BURSTS {
        way.publish(&[b'x'; 1_000]);
    }
    let (stats, _) = way.settle();
    assert!(stats.lost > 0 && stats.received > stats.lost, "{stats:?}");
    tell_of(
        "receiving_side_loses",
        "The subscriber's host loses a tenth of all packets.",
        "Every lost event is known to the subscriber, which tells the bus: sent is received and \
         lost, to the event.",
        way.scene.published(),
        stats,
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn a_narrow_cable_of_the_bus_is_crossed_in_fragments() {
    if !is_inside("faults::ways::a_narrow_cable_of_the_bus_is_crossed_in_fragments") {
        return;
    }
    let host = Host::connect_by(HERE, NARROW_MTU_BYTES);
    // This end of the cable takes no more than the bus's.
    assert_refused_together(&ends(HERE)[1]);
    let mut way = Way::to(&host, HERE, |builder| builder);
    for _ in 0..BURSTS {
        way.publish(&[b'x'; 1_000]);
    }
    let (stats, _) = way.settle();
    assert_eq!(stats.received, way.scene.published());
    tell_of(
        "cable_narrow",
        "The bus's own cable takes smaller packets than its frames, of which the kernel then takes no \
         several at once (EMSGSIZE).",
        "All events arrive, one by one and in fragments.",
        way.scene.published(),
        stats,
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn a_narrow_way_is_found_out_and_crossed_in_fragments() {
    if !is_inside("faults::ways::a_narrow_way_is_found_out_and_crossed_in_fragments") {
        return;
    }
    let [_router, host] = narrow_way();
    let mut way = Way::to(&host, THERE, |builder| builder);
    wait_until("the first event that arrives", || {
        way.scene.publish(1, &[b'x'; 1_000]);
        way.take();
        (way.subscriber.stats().received > 0).then_some(())
    });
    let (at_first, _) = way.settle();
    assert!(at_first.lost > 0, "{at_first:?}");
    way.publish_apart(&[b'x'; 1_000]);
    for _ in 0..BURSTS {
        way.publish(&[b'x'; 1_000]);
    }
    let (stats, _) = way.settle();
    assert_eq!((stats.lost, stats.dropped_by_bus), (at_first.lost, 0));
    tell_of(
        "way_narrow",
        "Behind a router the way takes smaller packets than the bus's frames.",
        "What is sent before the router has said so is lost, and known to be. All that comes later \
         arrives, in fragments.",
        way.scene.published(),
        stats,
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn a_narrow_way_that_says_nothing_is_crossed_by_small_frames() {
    let test = "faults::ways::a_narrow_way_that_says_nothing_is_crossed_by_small_frames";
    let needed =
        format!("tc qdisc add dev cable clsact && tc filter add dev cable egress {LOSE_ICMP}");
    if !is_inside_with(test, &needed) {
        return;
    }
    let [router, host] = narrow_way();
    router.tc("qdisc add dev cable2 clsact");
    router.tc(&format!("filter add dev cable2 egress {LOSE_ICMP}"));

    let mut large = Way::to(&host, THERE, |builder| builder);
    large.publish_apart(&[b'x'; 1_000]);
    let (stats, _) = large.settle();
    assert_eq!(
        (stats.received, stats.lost),
        (0, BURST),
        "none of them fits"
    );
    tell_of(
        "way_narrow_and_silent",
        "The way takes smaller packets than the bus's frames, and no router says so.",
        "Every lost event is known to the subscriber, which tells the bus.",
        BURST,
        stats,
    );

    let mut small = Way::to(&host, THERE, |builder| builder.max_frame_bytes(508));
    for _ in 0..BURSTS {
        small.publish(&[b'x'; 200]);
    }
    small.publish_apart(&[b'x'; 200]);
    small.publish(&[b'x'; 1_000]);
    let (stats, page) = small.settle();
    assert_eq!((stats.received, stats.lost), ((BURSTS + 1) * BURST, 0));
    assert_eq!(dropped_as(&page, "far", "too_large"), BURST, "{page}");
    assert_eq!(value(&page, "leases"), 1);
    tell_of(
        "way_narrow_and_silent_small_frames",
        "As above, and the subscriber asks for datagrams that the way takes.",
        "Events that fit such a datagram all arrive, and the others are counted as too large.",
        small.scene.published(),
        stats,
    );
}
