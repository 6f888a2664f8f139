//! Hosts that are gone, or never were: nobody says where to send what is for them.
//!
//! The kernel keeps what is for such a host while it asks for it, at its sender's expense. It throws
//! it away without a word when more comes, and tells of what it still has when nobody has answered
//! for seconds.

use crate::support::evidence::{figure, tell};
use crate::support::hosts::{Switch, is_inside};
use crate::support::wait_until;

use super::scene::{Scene, Summary, dropped, dropped_as, sent};

/// More than the kernel keeps for each, which is some 200 KiB.
const BURSTS: u64 = 8;
const BURST: u64 = 30;

/// The living one's number.
const LIVING: u8 = 2;

/// What a bus gets that may not pass Linux's usual limit.
const MODEST: &str = "[loop]\nsend_buffer_bytes = 212992\n";

/// Twice, so that one shows that all goes on after the other.
const NOTICES: u64 = 2;

/// A static subscriber on a host with this number.
fn dead(number: u8) -> String {
    let address = format!("{}:7301", Switch::address(number));
    format!("[[subscriber]]\nname = \"dead{number}\"\naddress = \"{address}\"\ntopics = [\"a\"]\n")
}

/// Publishes for a living subscriber beside those with these numbers, whose hosts never were.
fn publish_beside(numbers: std::ops::Range<u8>, configuration: &str) -> u64 {
    let switch = Switch::new();
    let host = switch.plug(0, LIVING);
    let entries: String = numbers.clone().map(dead).collect();
    let mut scene = Scene::start(&(configuration.to_owned() + &entries), &[Switch::HERE]);
    let living = scene.subscribe(&host, 1, "living");
    scene.publish_bursts(BURSTS, BURST, &living);
    let page = scene.books();
    assert_eq!(Summary::of(living).received, scene.published());
    assert_eq!(dropped(&page, "living"), 0, "{page}");
    for number in numbers {
        let name = format!("dead{number}");
        assert_eq!(sent(&page, &name) + dropped(&page, &name), BURSTS * BURST);
    }
    scene.published() - sent(&page, "living")
}

fn tell_of(name: &str, hosts: usize, lost: u64) {
    let figures = [
        figure("hosts that never answered", hosts, "hosts"),
        figure("published", BURSTS * BURST, "events"),
        figure("lost by the one beside them", lost, "events"),
    ];
    tell(
        name,
        "The hosts of many static subscribers are switched off, or never were.",
        "A subscriber on another host loses nothing, though the kernel keeps packets for them all.",
        &figures,
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn a_hundred_hosts_that_never_were_cost_the_others_nothing() {
    if is_inside("faults::neighbours::a_hundred_hosts_that_never_were_cost_the_others_nothing") {
        let lost = publish_beside(100..200, "");
        tell_of("hosts_that_never_were", 100, lost);
    }
}

#[test]
#[ignore = "needs network namespaces"]
fn nor_do_some_where_the_bus_has_a_modest_send_buffer() {
    if is_inside("faults::neighbours::nor_do_some_where_the_bus_has_a_modest_send_buffer") {
        let lost = publish_beside(LIVING + 1..LIVING + 21, MODEST);
        tell_of("hosts_that_never_were_modest_buffer", 20, lost);
    }
}

#[test]
#[ignore = "needs network namespaces"]
fn that_a_host_does_not_answer_is_counted() {
    if !is_inside("faults::neighbours::that_a_host_does_not_answer_is_counted") {
        return;
    }
    let switch = Switch::new();
    let host = switch.plug(0, LIVING);
    // By the socket that the living one's copies leave by.
    let mut scene = Scene::start(&dead(LIVING + 16), &[Switch::HERE]);
    let name = format!("dead{}", LIVING + 16);
    let living = scene.subscribe(&host, 1, "living");
    let page = wait_until("the kernel to tell of it", || {
        scene.publish_bursts(1, BURST, &living);
        let page = scene.books();
        (dropped_as(&page, &name, "unreachable") >= NOTICES).then_some(page)
    });
    let unreachable = dropped_as(&page, &name, "unreachable");
    assert_eq!(unreachable, dropped(&page, &name), "for no other reason");
    assert_eq!(sent(&page, &name) + unreachable, scene.published());
    assert_eq!(sent(&page, "living"), scene.published());
    let living = Summary::of(living);
    assert_eq!((living.received, living.lost), (scene.published(), 0));
    let figures = [
        figure("published", scene.published(), "events"),
        figure("counted as unreachable", unreachable, "events"),
        figure(
            "taken by the kernel, which asked for the host meanwhile",
            sent(&page, &name),
            "events",
        ),
        figure("lost by the one beside it", living.lost, "events"),
    ];
    tell(
        "host_that_does_not_answer",
        "The host of a static subscriber does not answer when the kernel asks for it.",
        "Each time that the kernel tells of it, some seconds later, a copy is counted as \
         unreachable. What it took till then counts as sent. A subscriber whose copies leave by \
         the same socket loses nothing.",
        &figures,
    );
}

#[test]
#[ignore = "needs network namespaces"]
fn one_that_went_with_its_host_costs_the_others_nothing_and_comes_back() {
    if !is_inside(
        "faults::neighbours::one_that_went_with_its_host_costs_the_others_nothing_and_comes_back",
    ) {
        return;
    }
    let switch = Switch::new();
    let (living_host, gone_host) = (switch.plug(0, LIVING), switch.plug(1, LIVING + 1));
    let mut scene = Scene::start("", &[Switch::HERE]);
    let living = scene.subscribe(&living_host, 1, "living");
    let gone = scene.subscribe(&gone_host, 1, "gone");
    scene.publish_bursts(1, BURST, &living);
    switch.unplug(1, LIVING + 1);
    scene.publish_bursts(BURSTS, BURST, &living);
    let page = scene.books();
    assert_eq!(dropped(&page, "living"), 0, "{page}");
    assert_eq!(
        sent(&page, "gone") + dropped(&page, "gone"),
        scene.published()
    );

    for _ in 0..BURST {
        gone.line();
    }
    switch.plug_in(1);
    wait_until("events for the one that is back", || {
        scene.publish_bursts(1, 1, &living);
        gone.try_line()
    });
    scene.publish_end(&[&living, &gone]);
    let [living, gone] = [living, gone].map(Summary::of);
    assert_eq!(living.received, scene.published());
    assert!(gone.lost > 0, "{gone:?}");
    assert_eq!(
        gone.received + gone.lost + gone.dropped_by_bus,
        scene.published(),
        "{gone:?}"
    );
    let figures = [
        figure("published", scene.published(), "events"),
        figure("lost by the one beside it", living.lost, "events"),
        figure(
            "lost by the one that was gone, and told by it",
            gone.lost,
            "events",
        ),
        figure(
            "of those, unknown to it",
            scene.published() - gone.received - gone.lost - gone.dropped_by_bus,
            "events",
        ),
    ];
    tell(
        "subscriber_gone_with_its_host",
        "A subscriber's host is off the network, and nobody answers for its address.",
        "A subscriber on another host loses nothing. The one that was gone is served again as soon \
         as its host is back, and knows how many events it lost.",
        &figures,
    );
}
