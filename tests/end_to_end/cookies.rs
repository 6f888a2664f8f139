//! Cookies over the wire: what proves an address, and all that does not.
//!
//! That a cookie grows too old is left to the core's own test: it takes longer than a test may
//! wait.

use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{Lease, Unsubscribe};

use super::publish;
use super::support::{ByHand, Serving, subscribe, sum, value};

const NONCE: u64 = 5;

fn cookie_of_challenge(answer: Control) -> Vec<u8> {
    match answer {
        Control::Challenge(challenge) if challenge.nonce == NONCE => challenge.cookie,
        other => panic!("{other:?}"),
    }
}

fn lease(answer: Control) -> Lease {
    match answer {
        Control::Lease(lease) if lease.nonce == NONCE => lease,
        other => panic!("{other:?}"),
    }
}

/// Every cookie that differs from this one by a bit, and some by their length.
fn bent(cookie: &[u8]) -> Vec<Vec<u8>> {
    let flipped = (0..cookie.len() * 8).map(|bit| {
        let mut flipped = cookie.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    });
    let others = [
        cookie[1..].to_vec(),
        cookie[..cookie.len() - 1].to_vec(),
        [cookie, &[0]].concat(),
    ];
    flipped.chain(others).collect()
}

fn unsubscribe(cookie: &[u8]) -> Control {
    Control::Unsubscribe(Unsubscribe {
        cookie: cookie.to_vec(),
        nonce: NONCE,
    })
}

fn assert_unknown(answer: &Control) {
    match answer {
        Control::Refusal(refusal) => assert_eq!(refusal.reason(), Reason::UnknownLease),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_bent_foreign_or_borrowed_cookie_brings_a_lease() {
    let (bus, another_bus) = (Serving::start(&[], &[]), Serving::start(&[], &[]));
    let (here, elsewhere) = (ByHand::new(), ByHand::new());
    let foreign = cookie_of_challenge(here.ask(another_bus.udp(), subscribe(NONCE, b"")));
    let cookie = cookie_of_challenge(here.ask(bus.udp(), subscribe(NONCE, b"")));
    let mut wrong = bent(&cookie);
    wrong.push(foreign);
    for wrong in &wrong {
        cookie_of_challenge(here.ask(bus.udp(), subscribe(NONCE, wrong)));
    }
    cookie_of_challenge(elsewhere.ask(bus.udp(), subscribe(NONCE, &cookie)));
    let answer = here.ask(bus.udp(), subscribe(NONCE + 1, &cookie));
    assert!(matches!(answer, Control::Challenge(_)), "{answer:?}");

    let challenges = u64::try_from(wrong.len()).unwrap() + 3;
    let page = bus.wait_for_metric("challenges_total", challenges);
    assert_eq!(value(&page, "challenges_total"), challenges);
    assert_eq!(
        (value(&page, "leases"), value(&page, "leases_granted_total")),
        (0, 0)
    );
    // Nothing was wrong with the cookie itself.
    lease(here.ask(bus.udp(), subscribe(NONCE, &cookie)));
    let page = bus.wait_for_metric("leases_granted_total", 1);
    assert_eq!(
        (value(&page, "leases"), sum(&page, "lease_refusals_total")),
        (1, 0)
    );
}

#[test]
fn a_lease_is_its_holders_alone() {
    let bus = Serving::start(&[], &[]);
    let (holder, stranger) = (ByHand::new(), ByHand::new());
    let cookie = cookie_of_challenge(holder.ask(bus.udp(), subscribe(NONCE, b"")));
    let cookie = lease(holder.ask(bus.udp(), subscribe(NONCE, &cookie))).cookie;
    let wrong = bent(&cookie);
    for wrong in &wrong {
        cookie_of_challenge(holder.ask(bus.udp(), subscribe(NONCE, wrong)));
        assert_unknown(&holder.ask(bus.udp(), unsubscribe(wrong)));
    }
    assert_unknown(&stranger.ask(bus.udp(), unsubscribe(&cookie)));
    let refused = u64::try_from(wrong.len()).unwrap() + 1;
    let page = bus.wait_for_metric("lease_refusals_total{reason=\"unknown_lease\"}", refused);
    assert_eq!(sum(&page, "lease_refusals_total"), refused);
    assert_eq!(
        (value(&page, "leases"), value(&page, "leases_granted_total")),
        (1, 1)
    );
    publish(bus.address(), &["a", "still"]);
    assert_eq!(holder.receive().events[0].payload, b"still");

    holder.tell(bus.udp(), unsubscribe(&cookie));
    bus.wait_for("/metrics", |page| value(page, "leases") == 0);
    publish(bus.address(), &["a", "nobody"]);
    let page = bus.wait_for_metric("unmatched_events_total", 1);
    assert_eq!(value(&page, "copies_total"), 1);
}
