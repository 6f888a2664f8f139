//! Groups: of the members of one, one gets each event, and keeps its keys while others come and
//! go.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hailmary_client::{Address, Subscriber};
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::refusal::Reason;
use hailmary_proto::v1::{Event, Frame, Subscribe, Unsubscribe};
use prost::Message;

use super::publish;
use super::support::{
    ByHand, Configured, EndOnDrop, PATIENCE, Serving, Subscribing, assert_laws, datagram, event,
    hailmary, request, sum, sum_of, value, wait_until,
};

/// The topic that all members want.
const TOPIC: &str = "x";

/// Events of one round, each with a key of its own.
const KEYS: usize = 300;

/// How many of them a datagram brings.
const DATAGRAM: usize = 100;

/// Whose event of a round it was: a member's name.
type Owners = HashMap<Vec<u8>, String>;

/// Whoever gets events and does not mind being asked for them.
trait Inbox {
    fn name(&self) -> &str;

    /// The keys of what has come since the last time.
    fn take(&mut self) -> Vec<Vec<u8>>;
}

/// A real client.
struct Client {
    name: String,
    subscriber: Subscriber,
}

impl Client {
    fn join(bus: &Serving, name: &str, group: &str) -> Self {
        let address: Address = bus.address().parse().unwrap();
        let builder = Subscriber::builder(&address).pattern(TOPIC);
        Self {
            name: name.to_owned(),
            subscriber: builder.name(name).group(group).connect(PATIENCE).unwrap(),
        }
    }
}

impl Inbox for Client {
    fn name(&self) -> &str {
        &self.name
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let mut next = || self.subscriber.recv_timeout(Duration::ZERO).unwrap();
        std::iter::from_fn(|| next().map(|event| event.key)).collect()
    }
}

/// A socket that speaks the wire.
struct Wire {
    name: String,
    group: String,
    socket: UdpSocket,
    bus: SocketAddr,
    nonce: u64,
    cookie: Vec<u8>,
}

impl Wire {
    /// Whoever may be sent events without asking.
    fn bind(name: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        Self {
            name: name.to_owned(),
            group: String::new(),
            bus: socket.local_addr().unwrap(),
            socket,
            nonce: 7,
            cookie: Vec::new(),
        }
    }

    fn join(bus: &Serving, name: &str, group: &str) -> Self {
        let mut member = Self {
            group: group.to_owned(),
            bus: bus.udp(),
            ..Self::bind(name)
        };
        member.ask_for(0).unwrap();
        member
    }

    /// Asks for a lease of so many ms, or to have it so much longer.
    fn ask_for(&mut self, lease_ms: u32) -> Result<(), Reason> {
        loop {
            let control = Control::Subscribe(Subscribe {
                topics: vec![TOPIC.to_owned()],
                group: self.group.clone(),
                name: self.name.clone(),
                nonce: self.nonce,
                cookie: self.cookie.clone(),
                lease_ms,
                ..Subscribe::default()
            });
            match self.ask(control) {
                Control::Challenge(challenge) => self.cookie = challenge.cookie,
                Control::Lease(lease) => {
                    self.cookie = lease.cookie;
                    return Ok(());
                }
                Control::Refusal(refusal) => return Err(refusal.reason()),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The answer, for which it passes events over. Asks again where none comes.
    fn ask(&self, control: Control) -> Control {
        let datagram = request(control);
        wait_until("an answer", || {
            self.socket.send_to(&datagram, self.bus).unwrap();
            self.socket
                .set_read_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            std::iter::from_fn(|| self.receive()).find_map(|frame| frame.control)
        })
    }

    fn tell(&self, control: Control) {
        self.socket.send_to(&request(control), self.bus).unwrap();
    }

    fn leave(&self) {
        self.tell(Control::Unsubscribe(Unsubscribe {
            cookie: self.cookie.clone(),
            nonce: self.nonce,
        }));
    }

    fn receive(&self) -> Option<Frame> {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(Frame::decode(&buffer[..length]).unwrap())
    }
}

impl Inbox for Wire {
    fn name(&self) -> &str {
        &self.name
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        self.socket.set_nonblocking(true).unwrap();
        let frames = std::iter::from_fn(|| self.receive());
        let events: Vec<_> = frames.flat_map(|frame| frame.events).collect();
        self.socket.set_nonblocking(false).unwrap();
        events.into_iter().map(|event| event.key).collect()
    }
}

fn with_key(key: impl std::fmt::Display) -> Event {
    Event {
        key: format!("user-{key}").into_bytes(),
        ..event(TOPIC)
    }
}

/// Sends events, some to a datagram, each of which the bus has taken before the next.
fn send(bus: &Serving, events: &[Event]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let before = value(&bus.get("/metrics"), "ingress_events_total");
    let mut sent = 0;
    for events in events.chunks(DATAGRAM) {
        sent += events.len() as u64;
        socket
            .send_to(&datagram(events.to_vec()), bus.udp())
            .unwrap();
        bus.wait_for_metric("ingress_events_total", before + sent);
    }
}

/// Takes till so many keys have come to all together: what each got.
fn take_all(inboxes: &mut [&mut dyn Inbox], count: usize) -> HashMap<String, Vec<Vec<u8>>> {
    let mut all: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
    wait_until("the events", || {
        for inbox in &mut *inboxes {
            let taken = inbox.take();
            all.entry(inbox.name().to_owned())
                .or_default()
                .extend(taken);
        }
        (all.values().map(Vec::len).sum::<usize>() >= count).then_some(())
    });
    all
}

/// Whose each key is, of whom there is one.
fn owners(taken: &HashMap<String, Vec<Vec<u8>>>) -> Owners {
    let mut owners = Owners::new();
    for (name, keys) in taken {
        for key in keys {
            let other = owners.insert(key.clone(), name.clone());
            assert_eq!(other, None, "one member has each key");
        }
    }
    assert_eq!(owners.len(), KEYS);
    owners
}

/// Publishes each key once and says who has it.
fn round(bus: &Serving, members: &mut [&mut dyn Inbox]) -> Owners {
    send(bus, &(0..KEYS).map(with_key).collect::<Vec<_>>());
    owners(&take_all(members, KEYS))
}

#[test]
fn each_group_gets_an_event_once_and_those_in_none_get_it_besides() {
    let mut fixed = Wire::bind("fixed");
    let bus = Configured::start(&format!(
        "[[subscriber]]\nname = \"fixed\"\naddress = \"{}\"\ntopics = [\"{TOPIC}\"]\ngroup = \"one\"\n",
        fixed.bus
    ));
    let [mut a, mut b] = ["a", "b"].map(|name| Client::join(&bus, name, "one"));
    let [mut c, mut d] = ["c", "d"].map(|name| Client::join(&bus, name, "two"));
    let mut alone = Client::join(&bus, "alone", "");
    let keyed: Vec<_> = (0..KEYS).map(with_key).collect();
    let unkeyed = vec![event(TOPIC); KEYS];
    let mut before = None;
    for backwards in [false, true] {
        let mut keyed = keyed.clone();
        if backwards {
            keyed.reverse();
        }
        send(&bus, &keyed);
        let one = take_all(&mut [&mut fixed, &mut a, &mut b], KEYS);
        let two = take_all(&mut [&mut c, &mut d], KEYS);
        for keys in one.values().chain(two.values()) {
            assert!(keys.len() > KEYS / 5, "all have their share");
        }
        let owners = (owners(&one), owners(&two));
        assert_eq!(
            *before.get_or_insert(owners.clone()),
            owners,
            "the same again"
        );
        let keys = |keys: Vec<Event>| keys.into_iter().map(|event| event.key).collect::<Vec<_>>();
        let expected = keys(keyed);
        assert_eq!(take_all(&mut [&mut alone], KEYS)["alone"], expected);
    }
    send(&bus, &unkeyed);
    let one = take_all(&mut [&mut fixed, &mut a, &mut b], KEYS);
    let two = take_all(&mut [&mut c, &mut d], KEYS);
    for (taken, members) in [(one, 3), (two, 2)] {
        for (name, keys) in taken {
            // Turns by the golden ratio differ by less than a handful from even.
            let share = KEYS / members;
            assert!(keys.len().abs_diff(share) <= 5, "{name}: {}", keys.len());
        }
    }
    assert_eq!(take_all(&mut [&mut alone], KEYS)["alone"].len(), KEYS);
    let page = bus.get("/metrics");
    assert_laws(&page);
    assert_eq!(value(&page, "matched_events_total"), 3 * KEYS as u64);
    assert_eq!(value(&page, "copies_total"), 9 * KEYS as u64);
    assert_eq!(sum(&page, "egress_events_total"), 9 * KEYS as u64);
    for client in [a, b, c, d, alone] {
        let stats = client.subscriber.close();
        let received = sum_of(
            &page,
            "egress_events_total",
            &format!("\"{}\"", client.name),
        );
        assert_eq!(
            (stats.received, stats.lost, stats.dropped_by_bus),
            (received, 0, 0)
        );
    }
}

/// Of the keys, those that were somebody's may have moved, and nobody else's.
fn assert_moved_from(gone: &str, before: &Owners, after: &Owners) {
    let mut moved = 0;
    for (key, owner) in before {
        match owner == gone {
            true => moved += 1,
            false => assert_eq!(&after[key], owner),
        }
        assert_ne!(after[key], gone);
    }
    assert!(moved > KEYS / 8, "{gone} had {moved}");
}

#[test]
fn keys_move_only_from_whoever_goes_and_to_whoever_comes() {
    let bus = Serving::start(&[], &[]);
    let members = ["a", "b", "closes", "dies"].map(|name| Wire::join(&bus, name, "g"));
    let [mut a, mut b, mut closes, mut dies] = members;
    let all = round(&bus, &mut [&mut a, &mut b, &mut closes, &mut dies]);

    closes.leave();
    bus.wait_for("/metrics", |page| value(page, "leases") == 3);
    let without_one = round(&bus, &mut [&mut a, &mut b, &mut dies]);
    assert_moved_from("closes", &all, &without_one);

    // The shortest lease there is, and never a word again.
    dies.ask_for(1_000).unwrap();
    bus.wait_for_metric("leases_expired_total", 1);
    let without_two = round(&bus, &mut [&mut a, &mut b]);
    assert_moved_from("dies", &without_one, &without_two);

    let mut comes = Wire::join(&bus, "comes", "g");
    let with_another = round(&bus, &mut [&mut a, &mut b, &mut comes]);
    assert_moved_from("comes", &with_another, &without_two);

    // Whoever comes back by its name has the keys that it had, wherever it is now.
    comes.leave();
    bus.wait_for("/metrics", |page| value(page, "leases") == 2);
    let [mut closes, mut dies] = ["closes", "dies"].map(|name| Wire::join(&bus, name, "g"));
    assert_eq!(
        round(&bus, &mut [&mut dies, &mut closes, &mut b, &mut a]),
        all
    );
    let page = bus.get("/metrics");
    assert_laws(&page);
    assert_eq!(sum(&page, "egress_events_total"), 5 * KEYS as u64);
}

#[test]
fn a_restart_of_the_bus_leaves_named_members_their_keys() {
    // No other test is given a port of this address while nobody holds it.
    let bus = Serving::start(&[], &["127.0.78.1:0"]);
    let address = bus.address().to_owned();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| Client::join(&bus, name, "g"));
    let before = round(&bus, &mut [&mut a, &mut b, &mut c]);
    assert_eq!(bus.stop().0, 0);
    let bus = Serving::start(&[], &[&address]);
    wait_until("all members", || {
        for member in [&mut c, &mut b, &mut a] {
            assert!(member.take().is_empty());
        }
        (value(&bus.get("/metrics"), "leases") == 3).then_some(())
    });
    assert_eq!(round(&bus, &mut [&mut a, &mut b, &mut c]), before);
    assert_laws(&bus.get("/metrics"));
}

#[test]
fn the_command_shares_events_too() {
    const COUNT: usize = 40;
    let bus = Serving::start(&[], &[]);
    let arguments = [TOPIC, "--group", "g", "--format", "json", "--name"];
    let members = ["a", "b"]
        .map(|name| Subscribing::start(bus.address(), &[&arguments[..], &[name]].concat()));
    publish(bus.address(), &[TOPIC, "p", "--count", &COUNT.to_string()]);
    publish(bus.address(), &[TOPIC, "p", "--key", "k", "--count", "5"]);
    let page = bus.wait_for_metric("matched_events_total", COUNT as u64 + 5);
    assert_laws(&page);
    assert_eq!(value(&page, "copies_total"), COUNT as u64 + 5);
    let mut keyed = Vec::new();
    for (name, member) in ["a", "b"].into_iter().zip(members) {
        let label = format!("egress_events_total{{subscriber=\"{name}\"}}");
        let mine: Vec<_> = (0..value(&page, &label)).map(|_| member.line()).collect();
        member.signal("TERM");
        let (rest, last) = member.output();
        assert_eq!(rest, "");
        let received = mine.len();
        assert_eq!(
            last,
            format!("received {received}, lost 0 on the way, dropped 0 by the bus")
        );
        let with_key = mine
            .iter()
            .filter(|line| line.contains("\"key\":\"k\""))
            .count();
        assert!((received - with_key).abs_diff(COUNT / 2) <= 3, "{received}");
        keyed.push(with_key);
    }
    assert!(keyed == [5, 0] || keyed == [0, 5], "{keyed:?}");
}

#[test]
fn a_full_group_refuses_one_more_and_says_why() {
    let bus = Configured::start("[limits]\nmembers_per_group = 2\n");
    let [a, b] = ["a", "b"].map(|name| Wire::join(&bus, name, "g"));
    let output = hailmary()
        .args(["sub", TOPIC, "--group", "g", "--from", bus.address()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("its group for another member"), "{said}");
    assert!(!said.contains("subscribed\n"), "{said}");
    let mut other = Wire::join(&bus, "c", "another");
    other.group = "g".to_owned();
    assert_eq!(other.ask_for(0), Err(Reason::Full));
    let page = bus.wait_for_metric("lease_refusals_total{reason=\"full\"}", 2);
    assert_eq!(value(&page, "leases"), 3, "it stays where it was");
    a.leave();
    bus.wait_for("/metrics", |page| value(page, "leases") == 2);
    other.ask_for(0).unwrap();
    b.leave();
    bus.wait_for("/metrics", |page| value(page, "leases") == 1);
}

#[test]
fn terms_that_are_none_are_refused_and_disturb_nobody() {
    let bus = Serving::start(&[], &[]);
    let mut plain = Client::join(&bus, "plain", "");
    let with = |terms: Subscribe| {
        Control::Subscribe(Subscribe {
            topics: vec![TOPIC.to_owned()],
            nonce: 3,
            ..terms
        })
    };
    let mut wrong: Vec<_> = [
        f64::NAN,
        f64::INFINITY,
        -1.0,
        -f64::MIN_POSITIVE,
        7.0,
        1.000_001,
    ]
    .map(|sample| Subscribe {
        sample,
        ..Subscribe::default()
    })
    .into();
    wrong.extend(
        ["a b", "g\n", "é", "*", &"g".repeat(65)].map(|group| Subscribe {
            group: group.to_owned(),
            ..Subscribe::default()
        }),
    );
    for terms in &wrong {
        let stranger = ByHand::new();
        let Control::Challenge(challenge) = stranger.ask(bus.udp(), with(terms.clone())) else {
            panic!("no challenge for {terms:?}");
        };
        let cookie = challenge.cookie;
        let request = with(Subscribe {
            cookie,
            ..terms.clone()
        });
        match stranger.ask(bus.udp(), request) {
            Control::Refusal(refusal) => assert_eq!(refusal.reason(), Reason::BadRequest),
            other => panic!("{other:?} for {terms:?}"),
        }
    }
    let refused = "lease_refusals_total{reason=\"bad_request\"}";
    let page = bus.wait_for_metric(refused, wrong.len() as u64);
    assert_eq!(value(&page, "leases"), 1);
    send(&bus, &[event(TOPIC)]);
    assert_eq!(take_all(&mut [&mut plain], 1)["plain"].len(), 1);
    // The longest name is one, and so are all rates.
    let longest = Wire::join(&bus, "n", &"g".repeat(64));
    longest.leave();
    for events_per_second in [1, u32::MAX] {
        let limited = ByHand::new();
        let ask = |cookie| {
            with(Subscribe {
                events_per_second,
                cookie,
                ..Subscribe::default()
            })
        };
        let Control::Challenge(challenge) = limited.ask(bus.udp(), ask(Vec::new())) else {
            panic!("no challenge");
        };
        let answer = limited.ask(bus.udp(), ask(challenge.cookie));
        assert!(matches!(answer, Control::Lease(_)), "{answer:?}");
    }
}

/// Threads that join and leave, addresses of each, and how often each address does.
const CROWDS: u8 = 3;
const CROWD: u8 = 16;
const TIMES: u64 = 60;

/// One address after the other joins, and half of them are members at a time.
fn come_and_go(bus: SocketAddr, crowd: u8) {
    let mut members: Vec<Wire> = (0..CROWD)
        .map(|number| {
            let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2 + crowd * CROWD + number));
            Wire {
                group: "g".to_owned(),
                socket: UdpSocket::bind((ip, 0)).unwrap(),
                bus,
                ..Wire::bind("")
            }
        })
        .collect();
    let half = usize::from(CROWD / 2);
    for time in 0..TIMES {
        for number in 0..usize::from(CROWD) {
            let member = &mut members[number];
            member.name = format!("m{}", time % 7);
            member.nonce = time + 1;
            // Should a farewell get lost, the lease soon ends.
            member.ask_for(1_000).unwrap();
            let other = &mut members[(number + half) % usize::from(CROWD)];
            if !other.cookie.is_empty() {
                other.leave();
                other.cookie.clear();
            }
        }
    }
    let left = members.iter().filter(|member| !member.cookie.is_empty());
    left.for_each(Wire::leave);
}

/// Publishes for both topics till the storm is over, each time when all has arrived: how many
/// events of each.
fn keep_a_flow(bus: SocketAddr, mut inboxes: [&mut Subscriber; 2], is_over: &AtomicBool) -> u64 {
    const EACH: u64 = 5;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = 0;
    while !is_over.load(Ordering::Relaxed) {
        let keys = sent..sent + EACH;
        let events = keys
            .flat_map(|key| [with_key(key), event("other")])
            .collect();
        socket.send_to(&datagram(events), bus).unwrap();
        sent += EACH;
        for inbox in &mut inboxes {
            for _ in 0..EACH {
                inbox.recv_timeout(PATIENCE).unwrap().unwrap();
            }
        }
    }
    sent
}

#[test]
fn a_storm_of_members_costs_nobody_an_event() {
    let bus = Serving::start(&[], &[]);
    let address: Address = bus.address().parse().unwrap();
    let subscribe = |topic: &str| {
        let builder = Subscriber::builder(&address).pattern(topic).name("steady");
        builder.connect(PATIENCE).unwrap()
    };
    let [mut same, mut other] = [TOPIC, "other"].map(subscribe);
    let is_over = AtomicBool::new(false);
    // Once a first flow has passed it has the memory of its buffers.
    send(&bus, &[with_key(0), event("other")]);
    for inbox in [&mut same, &mut other] {
        inbox.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    let before = bus.resident_bytes();
    let to = bus.udp();
    let sent = std::thread::scope(|threads| {
        let flow = threads.spawn(|| keep_a_flow(to, [&mut same, &mut other], &is_over));
        let over = EndOnDrop(&is_over);
        let crowds: Vec<_> = (0..CROWDS)
            .map(|crowd| threads.spawn(move || come_and_go(to, crowd)))
            .collect();
        crowds.into_iter().for_each(|crowd| crowd.join().unwrap());
        drop(over);
        flow.join().unwrap()
    });
    let page = bus.wait_for("/metrics", |page| value(page, "leases") == 2);
    assert_laws(&page);
    let joined = u64::from(CROWDS) * u64::from(CROWD) * TIMES;
    assert!(value(&page, "leases_granted_total") >= joined * 9 / 10);
    for subscriber in [same, other] {
        let stats = subscriber.close();
        assert_eq!((stats.received, stats.lost), (sent + 1, 0));
        assert_eq!((stats.dropped_by_bus, stats.lapses), (0, 0));
    }
    let grown = bus.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "grew by {grown} bytes");
}
