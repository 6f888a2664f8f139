//! Rules of access as the core follows them, for sources of every kind.

use super::*;
use address::Credentials;
use proptest::sample::{select, subsequence};

/// A process that is told of as this user and group.
fn process(path: &[u8], uid: u32, gid: u32) -> Source<'_> {
    Source::Unix {
        path,
        credentials: Some(Credentials { uid, gid }),
    }
}

fn rule(from: &[&str], topics: &[&str], effect: Effect) -> Rule {
    Rule {
        from: from.iter().map(|whom| whom.parse().unwrap()).collect(),
        topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        effect,
    }
}

fn allow(from: &str, topic: &str) -> Rule {
    rule(&[from], &[topic], Effect::Allow)
}

fn deny(from: &str, topic: &str) -> Rule {
    rule(&[from], &[topic], Effect::Deny)
}

fn bus_with(publish: Vec<Rule>, subscribe: Vec<Rule>) -> Bus {
    bus_of(Settings {
        access: Access {
            publish: Rules(publish),
            subscribe: Rules(subscribe),
        },
        ..settings()
    })
}

/// Which leases end when only these may subscribe any more.
fn put_in_use(bus: &mut Bus, subscribe: Vec<Rule>) -> Vec<LeaseEvent> {
    let access = Access {
        publish: everybody(),
        subscribe: Rules(subscribe),
    };
    put_in_force(bus, access)
}

fn put_in_force(bus: &mut Bus, access: Access) -> Vec<LeaseEvent> {
    let settings = Settings {
        access,
        ..settings()
    };
    reconfigure(bus, &settings).1
}

/// What one request brings about, and the answer.
fn request(
    bus: &mut Bus,
    source: Source<'_>,
    control: Control,
) -> (Vec<LeaseEvent>, Option<Control>) {
    let arrival = Arrival {
        source,
        listener: 0,
        now: T0,
        unix_nano: 0,
    };
    let mut tally = EventTally::default();
    bus.handle_datagram(arrival, &padded(control), &mut tally)
        .unwrap();
    let mut events = Vec::new();
    bus.handle_controls(T0, &mut events);
    let answer = bus.registrar.poll_answer();
    let frame = answer.map(|answer| Frame::decode(&*answer.datagram).unwrap());
    (events, frame.and_then(|frame| frame.control))
}

/// Asks for a lease, or for more of it, and gives the cookie if it is granted.
fn lease(bus: &mut Bus, source: Source<'_>, topics: &[&str]) -> Option<Vec<u8>> {
    let first = Control::Subscribe(subscribe(topics, b""));
    match request(bus, source, first).1? {
        Control::Challenge(challenge) => renew(bus, source, topics, &challenge.cookie),
        _ => None,
    }
}

fn renew(bus: &mut Bus, source: Source<'_>, topics: &[&str], cookie: &[u8]) -> Option<Vec<u8>> {
    match request(bus, source, Control::Subscribe(subscribe(topics, cookie))).1? {
        Control::Lease(lease) => Some(lease.cookie),
        _ => None,
    }
}

/// The topics of these that are sent on when they are published from there.
fn published(bus: &mut Bus, from: Source<'_>, topics: &[&str]) -> Vec<String> {
    publish_from(bus, from, topics, &mut EventTally::default())
}

const BUS_HOST: &str = "127.0.0.1:9";

fn here() -> Source<'static> {
    Source::Ip(BUS_HOST.parse().unwrap())
}

#[test]
fn a_lease_over_unix_sees_what_its_holder_may_see() {
    let rules = vec![allow("uid:1000", "search.>"), allow("gid:100", "spam.>")];
    let mut bus = bus_with(everybody().0, rules);
    let topics = ["search.a", "spam.a", "other.a"];
    for (uid, gid, sees) in [
        (1000, 1, &["search.a"][..]),
        (1001, 100, &["spam.a"]),
        (1000, 100, &["search.a", "spam.a"]),
    ] {
        let holder = process(b"/one", uid, gid);
        assert!(lease(&mut bus, holder, &[">"]).is_some());
        assert_eq!(published(&mut bus, here(), &topics), sees, "{uid} {gid}");
    }
    assert_eq!(lease(&mut bus, process(b"/two", 1001, 1), &[">"]), None);
    assert_eq!(bus.subscribers().leases(), 1, "all by one name");
}

#[test]
fn a_renewal_by_another_user_counts_from_then_on() {
    let rules = vec![allow("127.0.0.1", ">"), deny("uid:1001", "search.>")];
    let mut bus = bus_with(everybody().0, rules);
    let topics = ["search.a", "spam.a"];
    let mut cookie = lease(&mut bus, process(b"/one", 1000, 1), &[">"]).unwrap();
    for (uid, sees) in [
        (1000, &topics[..]),
        (1001, &topics[1..]),
        (1001, &topics[1..]),
        (1002, &topics[..]),
    ] {
        let holder = process(b"/one", uid, 1);
        cookie = renew(&mut bus, holder, &[">"], &cookie).unwrap();
        assert_eq!(published(&mut bus, here(), &topics), sees, "{uid}");
    }
}

#[test]
fn a_subscriber_that_nothing_is_told_of_is_not_refused_for_good() {
    let mut bus = bus_with(everybody().0, vec![allow("uid:1000", ">")]);
    let first = || Control::Subscribe(subscribe(&["a"], b""));
    let (events, answer) = request(&mut bus, by_unix(b"/one"), first());
    assert_eq!((events, answer), (vec![LeaseEvent::Unanswered], None));
    assert!(lease(&mut bus, process(b"/one", 1000, 1), &["a"]).is_some());
    assert_eq!(published(&mut bus, here(), &["a"]), ["a"]);

    // Where no rule is about users there is nothing more to be known.
    let mut bus = bus_with(everybody().0, vec![allow("10.0.0.0/8", ">")]);
    let (events, _) = request(&mut bus, by_unix(b"/one"), first());
    assert_eq!(events, [LeaseEvent::Refused(Reason::NotAllowed)]);
}

#[test]
fn a_lease_of_whoever_was_not_told_outlives_rules_that_first_name_users() {
    for (told, sees) in [(1000, &["search.a", "spam.a"][..]), (1001, &["spam.a"])] {
        let mut bus = bus_with(everybody().0, vec![allow("127.0.0.1", ">")]);
        let cookie = lease(&mut bus, by_unix(b"/one"), &[">"]).unwrap();
        let elsewhere = Source::Ip("127.0.0.1:7".parse().unwrap());
        lease(&mut bus, elsewhere, &[">"]).unwrap();
        let rules = vec![allow("uid:1000", ">"), allow("uid:1001", "spam.>")];
        let ended = put_in_use(&mut bus, rules);
        assert!(matches!(ended[..], [LeaseEvent::Revoked(_)]), "{ended:?}");
        assert_eq!(bus.subscribers().leases(), 1, "the one over Unix");
        let topics = ["search.a", "spam.a"];
        assert!(published(&mut bus, here(), &topics).is_empty());
        let holder = process(b"/one", told, 1);
        assert!(renew(&mut bus, holder, &[">"], &cookie).is_some());
        assert_eq!(published(&mut bus, here(), &topics), sees, "{told}");

        let ended = put_in_use(&mut bus, vec![allow("uid:7", ">")]);
        assert!(matches!(ended[..], [LeaseEvent::Revoked(_)]), "it was told");
    }
    // Where no rule names users nothing more is to be known of it.
    let mut bus = bus_with(everybody().0, everybody().0);
    lease(&mut bus, by_unix(b"/one"), &[">"]).unwrap();
    let ended = put_in_use(&mut bus, vec![allow("10.0.0.0/8", ">")]);
    assert!(matches!(ended[..], [LeaseEvent::Revoked(_)]), "{ended:?}");
}

#[test]
fn who_publishes_is_looked_at_in_every_frame() {
    let rules = vec![
        allow("127.0.0.1", ">"),
        deny("uid:1001", ">"),
        deny("gid:7", "a"),
    ];
    let mut bus = bus_with(rules, everybody().0);
    lease(&mut bus, here(), &[">"]).unwrap();
    // Twice: who is trusted is remembered for nobody else.
    for _ in 0..2 {
        for (source, sent) in [
            (process(b"/x", 1000, 1), &["a", "b"][..]),
            (process(b"/x", 1001, 1), &[]),
            (process(b"", 1000, 7), &["b"]),
            (process(b"", 1000, 1), &["a", "b"]),
            (by_unix(b"/x"), &[]),
            (here(), &["a", "b"]),
            (Source::Ip("127.0.0.2:9".parse().unwrap()), &[]),
        ] {
            assert_eq!(published(&mut bus, source, &["a", "b"]), sent, "{source:?}");
        }
    }
}

#[test]
fn other_rules_hold_from_the_next_turn_on_also_for_who_was_trusted() {
    let sources = [here(), by_unix(b"/x"), process(b"/x", 1000, 1)];
    for source in sources {
        let mut bus = bus_with(everybody().0, everybody().0);
        lease(&mut bus, source, &[">"]).unwrap();
        for _ in 0..2 {
            let all = Access {
                publish: everybody(),
                subscribe: everybody(),
            };
            put_in_force(&mut bus, all.clone());
            assert_eq!(published(&mut bus, source, &["a", "b"]), ["a", "b"]);
            let less = Rules(vec![allow("127.0.0.1", ">"), deny("127.0.0.1", "a")]);
            let publish = less.clone();
            put_in_force(
                &mut bus,
                Access {
                    publish,
                    ..all.clone()
                },
            );
            assert_eq!(published(&mut bus, source, &["a", "b"]), ["b"]);
            put_in_force(
                &mut bus,
                Access {
                    subscribe: less,
                    ..all
                },
            );
            assert_eq!(published(&mut bus, source, &["a", "b"]), ["b"]);
        }
    }
}

type Said = (Vec<&'static str>, &'static str, Effect);

fn any_said() -> impl Strategy<Value = Vec<Said>> {
    let whom = vec![
        "10.0.0.0/8",
        "127.0.0.0/8",
        "::1",
        "2001:db8::/32",
        "::ffff:10.1.0.0/112",
        "uid:1000",
        "gid:100",
    ];
    let pattern = select(vec![">", "a.>", "*", "a.b"]);
    // Often enough something is permitted.
    let effect = select(vec![Effect::Allow, Effect::Allow, Effect::Deny]);
    prop::collection::vec((subsequence(whom, 1..5), pattern, effect), 0..4)
}

fn rules(said: &[Said]) -> Rules {
    let rules = said.iter();
    let rules = rules.map(|(from, topic, effect)| rule(from, &[topic], *effect));
    Rules(rules.collect())
}

/// Sources of every kind. Of a process only what the kernel is asked for is told.
fn sources(asked: bool) -> Vec<Source<'static>> {
    let hosts = ["10.1.0.1:7", "127.0.0.1:7", "[::1]:7", "[2001:db8::1]:7"];
    let mapped = "[::ffff:10.1.0.1]:8";
    let hosts = hosts.into_iter().chain([mapped]);
    let hosts = hosts.map(|host| Source::Ip(host.parse().unwrap()));
    let names = [(&b"/a"[..], 1000, 1), (b"/b", 1001, 100), (b"/c", 7, 7)];
    let processes = names.map(|(path, uid, gid)| match asked {
        true => process(path, uid, gid),
        false => by_unix(path),
    });
    hosts.chain(processes).chain([by_unix(b"/d")]).collect()
}

const TOPICS: [&str; 4] = ["a", "b", "a.b", "a.c"];

/// Who delivers what to whom, each source being a publisher and a subscriber of everything.
fn deliveries(access: &Access) -> Vec<(usize, Address, String)> {
    let sources = sources(access.names_users());
    let mut bus = bus_of(Settings {
        access: access.clone(),
        leases: LeaseLimits {
            leases_max: sources.len(),
            leases_per_origin_max: sources.len(),
            ..settings().leases
        },
        ..settings()
    });
    for source in &sources {
        lease(&mut bus, *source, &[">"]);
    }
    let mut all = Vec::new();
    for (publisher, source) in sources.iter().enumerate() {
        for topic in TOPICS {
            let arrival = Arrival {
                source: *source,
                listener: 0,
                now: T0,
                unix_nano: 0,
            };
            let _ = bus.handle_datagram(arrival, &frame_of(&[topic]), &mut EventTally::default());
            let mut copies = Vec::new();
            bus.poll_copies(&mut copies, usize::MAX);
            for copy in &copies {
                let to = bus.subscribers().get(copy.subscriber).unwrap();
                all.push((publisher, to.address.clone(), topic.to_owned()));
            }
            bus.forwarder.end_frames();
        }
    }
    all
}

#[test]
fn where_all_is_allowed_everything_goes_everywhere() {
    let all = Access {
        publish: everybody(),
        subscribe: everybody(),
    };
    let sources = sources(false).len();
    assert_eq!(deliveries(&all).len(), sources * sources * TOPICS.len());
}

proptest! {
    /// To whoever is in no group, of topics without a rate: what is shared others get more of.
    #[test]
    fn adding_a_denial_adds_no_delivery(
        publish in any_said(),
        subscribe in any_said(),
        denied in any_said(),
    ) {
        let access = |publish: &[Said], subscribe: &[Said]| Access {
            publish: rules(publish),
            subscribe: rules(subscribe),
        };
        let before = deliveries(&access(&publish, &subscribe));
        for (from, topic, _) in denied {
            let denial = (from, topic, Effect::Deny);
            let with = |rules: &[Said]| [rules, std::slice::from_ref(&denial)].concat();
            for after in [
                access(&with(&publish), &subscribe),
                access(&publish, &with(&subscribe)),
            ] {
                for delivery in deliveries(&after) {
                    prop_assert!(before.contains(&delivery), "{delivery:?}");
                }
            }
        }
    }
}
