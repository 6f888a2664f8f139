//! Cables that are slow, pulled out, or whose address is taken away.

use crate::support::evidence::{figure, tell};
use crate::support::hosts::{Host, ends, ip, is_inside, is_inside_with, tc};
use crate::support::{PATIENCE, Subscribing, value, wait_until};

use super::scene::{Scene, Summary, dropped, dropped_as, sent};

const BURSTS: u64 = 10;
const BURST: u64 = 30;

/// What every Ethernet takes.
const MTU_BYTES: u32 = 1_500;

/// So much slower than what is published that little of it passes, in little room.
const SHAPED: &str = "root tbf rate 100kbit burst 5000 limit 10000";

/// A bus that reaches two hosts by cables 1 and 2, with a subscriber on each.
struct Two {
    scene: Scene,
    living: Subscribing,
    faulty: Subscribing,
    hosts: [Host; 2],
}

impl Two {
    fn start() -> Self {
        let hosts = [1, 2].map(|cable| Host::connect_by(cable, MTU_BYTES));
        let mut scene = Scene::start("", &[&ends(1)[0], &ends(2)[0]]);
        let living = scene.subscribe(&hosts[0], 1, "living");
        let faulty = scene.subscribe(&hosts[1], 2, "faulty");
        scene.publish_bursts(1, BURST, &living);
        for _ in 0..BURST {
            faulty.line();
        }
        Self {
            scene,
            living,
            faulty,
            hosts,
        }
    }

    fn publish_bursts(&mut self) -> String {
        self.scene.publish_bursts(BURSTS, BURST, &self.living);
        self.scene.books()
    }

    /// Publishes till the faulty one gets what is published, and ends both.
    fn recover(mut self) -> Outcome {
        while self.faulty.try_line().is_some() {}
        wait_until("events for the one behind the faulty cable", || {
            self.scene.publish_bursts(1, 1, &self.living);
            self.faulty.try_line()
        });
        self.scene.publish_end(&[&self.living, &self.faulty]);
        let page = self.scene.books();
        let pong = self.scene.publisher.ping(PATIENCE).unwrap();
        assert_eq!((pong.received, pong.lost), (self.scene.published(), 0));
        assert_eq!(self.scene.publisher.stats().sent, self.scene.published());
        let [living, faulty] = [self.living, self.faulty].map(Summary::of);
        let outcome = Outcome {
            published: self.scene.published(),
            living,
            faulty,
            page,
        };
        outcome.assert_promise();
        outcome
    }
}

/// What became of the events for both.
struct Outcome {
    published: u64,
    living: Summary,
    faulty: Summary,
    page: String,
}

impl Outcome {
    /// Nothing is lost beside, and whatever is lost is known, and where.
    fn assert_promise(&self) {
        let Self { page, .. } = self;
        let all = Summary {
            received: self.published,
            lost: 0,
            dropped_by_bus: 0,
        };
        assert_eq!(self.living, all, "{page}");
        assert_eq!(sent(page, "living"), self.published, "{page}");
        let Summary {
            received,
            lost,
            dropped_by_bus,
        } = self.faulty;
        assert_eq!(dropped(page, "faulty"), dropped_by_bus, "{page}");
        assert_eq!(sent(page, "faulty"), received + lost, "{page}");
        assert_eq!(received + lost + dropped_by_bus, self.published, "{page}");
    }

    fn tell(&self, name: &str, fault: &str, promise: &str) {
        let figures = [
            figure("published", self.published, "events"),
            figure(
                "lost by the one on another cable",
                self.living.lost,
                "events",
            ),
            figure(
                "counted as dropped by the bus",
                self.faulty.dropped_by_bus,
                "events",
            ),
            figure(
                "lost on the way, told by the subscriber",
                self.faulty.lost,
                "events",
            ),
            figure(
                "unaccounted for",
                self.published
                    - self.faulty.received
                    - self.faulty.lost
                    - self.faulty.dropped_by_bus,
                "events",
            ),
        ];
        tell(name, fault, promise, &figures);
    }
}

#[test]
#[ignore = "needs network namespaces"]
fn a_shaped_cable_costs_the_others_nothing() {
    let needed = format!("tc qdisc add dev cable {SHAPED}");
    if !is_inside_with(
        "faults::links::a_shaped_cable_costs_the_others_nothing",
        &needed,
    ) {
        return;
    }
    let mut two = Two::start();
    tc(&format!("qdisc add dev cable2 {SHAPED}"));
    // Of frames that leave together the shaper takes some and says no word of the others: it is
    // by those that leave alone that the kernel tells.
    let page = wait_until("a full queue to be told of", || {
        two.publish_bursts();
        two.scene.publish_bursts(BURST, 1, &two.living);
        let page = two.scene.books();
        (dropped_as(&page, "faulty", "no_buffer") > 0).then_some(page)
    });
    let no_buffer = dropped_as(&page, "faulty", "no_buffer");
    assert_eq!(no_buffer, dropped(&page, "faulty"), "for no other reason");
    tc("qdisc del dev cable2 root");
    let outcome = two.recover();
    outcome.tell(
        "cable_shaped",
        "A cable carries far less than is published.",
        "Publishers and subscribers on other cables lose nothing. Where the kernel says that it \
         had no room it is counted, and the subscriber knows of every other loss.",
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn an_interface_that_goes_down_is_used_again_when_it_is_up() {
    if !is_inside("faults::links::an_interface_that_goes_down_is_used_again_when_it_is_up") {
        return;
    }
    let mut two = Two::start();
    ip("link set cable2 down");
    let page = two.publish_bursts();
    let unreachable = dropped_as(&page, "faulty", "unreachable");
    assert_eq!(unreachable, BURSTS * BURST, "each is counted, {page}");
    ip("link set cable2 up");
    let outcome = two.recover();
    outcome.tell(
        "interface_down",
        "The bus's interface towards a subscriber goes down and comes up again.",
        "Events flow again by themselves. Each that was not sent meanwhile is counted, and \
         nobody on another interface loses any.",
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn a_pulled_plug_is_told_by_the_subscriber() {
    if !is_inside("faults::links::a_pulled_plug_is_told_by_the_subscriber") {
        return;
    }
    let mut two = Two::start();
    two.hosts[1].ip("link set cable2 down");
    two.publish_bursts();
    two.hosts[1].ip("link set cable2 up");
    let outcome = two.recover();
    let Summary {
        lost,
        dropped_by_bus,
        ..
    } = outcome.faulty;
    assert!(lost + dropped_by_bus > 0);
    outcome.tell(
        "plug_pulled",
        "The interface of a subscriber's host goes down and comes up again.",
        "Events flow again by themselves, and the subscriber knows how many it lost.",
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn a_listener_whose_address_was_away_serves_when_it_is_back() {
    if !is_inside("faults::links::a_listener_whose_address_was_away_serves_when_it_is_back") {
        return;
    }
    let mut two = Two::start();
    let address = format!("address del {}/24 dev cable2", ends(2)[0]);
    ip(&address);
    let page = two.publish_bursts();
    let unreachable = dropped_as(&page, "faulty", "unreachable");
    assert_eq!(unreachable, BURSTS * BURST, "each is counted, {page}");
    ip(&address.replace("del", "add"));
    // By that address, with an event and for a lease.
    let bus = two.scene.bus.listening[2].clone();
    let newcomer = two.scene.subscribe(&two.hosts[1], 2, "newcomer");
    let publish = two.hosts[1]
        .command(env!("CARGO_BIN_EXE_hailmary"))
        .args(["pub", "b", "--to", &bus])
        .status();
    assert!(publish.unwrap().success());
    let page = two.scene.bus.wait_for_metric("unmatched_events_total", 1);
    let leases = value(&page, "leases");
    assert_eq!(leases, 3);
    drop(newcomer);
    let figures = [
        figure(
            "counted as dropped while it was away",
            unreachable,
            "events",
        ),
        figure("leases that stand when it is back, of 3", leases, "leases"),
    ];
    tell(
        "listener_address_away",
        "The address that the bus listens on is taken from its host, and given back.",
        "The bus serves there again by itself: leases stand, new ones are granted, events are taken.",
        &figures,
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn one_whose_lease_ended_meanwhile_subscribes_anew() {
    if !is_inside("faults::links::one_whose_lease_ended_meanwhile_subscribes_anew") {
        return;
    }
    let host = Host::connect_by(1, MTU_BYTES);
    let shortest = "[limits]\nlease_ms = 1000\nlease_ms_max = 1000\n";
    let mut scene = Scene::start(shortest, &[&ends(1)[0]]);
    let subscriber = scene.subscribe(&host, 1, "faulty");
    ip("link set cable1 down");
    let has_leases = |leases| move |page: &str| value(page, "leases") == leases;
    scene.bus.wait_for("/metrics", has_leases(0));
    scene.publish(BURST, b"for nobody");
    let unmatched = value(&scene.books(), "unmatched_events_total");
    assert_eq!(unmatched, BURST);
    ip("link set cable1 up");
    scene.bus.wait_for("/metrics", has_leases(1));
    wait_until("an event for the one that is back", || {
        scene.publish(1, b"back");
        subscriber.try_line()
    });
    let page = scene.bus.wait_for_metric("leases_granted_total", 2);
    assert!(value(&page, "leases_expired_total") > 0, "{page}");
    let figures = [
        figure("published while it had no lease", BURST, "events"),
        figure("counted as for nobody", unmatched, "events"),
    ];
    tell(
        "lease_ended_behind_a_dead_cable",
        "A cable is dead for longer than a subscriber's lease.",
        "The lease ends, and what comes then is counted as for nobody. When the cable works again the \
         subscriber is back by itself.",
        &figures,
    );
}
