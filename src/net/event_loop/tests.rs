//! The books under faults: a loop on real sockets, driven turn by turn, whose receives and sends
//! fail as chance has it.
//!
//! Beside the bus stands a naive account of what was handed to it, and each subscriber reads its
//! own socket. Every time that the books are handed over, all of it must agree to the event.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Instant;

use hailmary_proto::topic;
use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Event, Frame, Stamp, Subscribe, Unsubscribe};
use hailmary_proto::write::{UNPROVEN_REQUEST_BYTES_MIN, pad};
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;

use super::*;
use crate::bus::access::{Access, Effect, Rule, Rules};
use crate::bus::address::Address;
use crate::bus::leases::LeaseLimits;
use crate::bus::policies::TopicPolicy;
use crate::bus::subscribers::Terms;
use crate::bus::{self, CopyDrop, Settings, StaticSubscriber};
use crate::ledger::{SeriesCounts, Totals};
use crate::net::account;
use crate::net::address::to_sockaddr;
use crate::net::listener::{ListenAddress, Listener};
use crate::net::sys::{Answer, begin, bytes_taken, script};
use crate::state::ListenerInfo;

/// How long any one condition may take, for machines under load: loopback takes microseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Worlds that are tried, with up to seven steps each: some two seconds in all. The fallback's
/// buffers take long to make where nothing is optimised.
const CASES: u32 = if cfg!(feature = "portable") { 12 } else { 48 };

/// How long to look for a shorter case that fails, in ms: each may take up to [`PATIENCE`].
const SHRINK_MS_MAX: u32 = 60_000;

/// Far more than the datagrams of one step fill.
const BUFFER_BYTES: usize = 4 << 20;

/// The leased subscribers that come and go.
const ROAMERS: usize = 2;

/// Legal topics and others.
const TOPICS: [&str; 10] = [
    "a", "a.b", "a.b.c", "b", "b.c", "nobody", "", "a..b", "a.*", "é",
];

/// Everybody wants it, and no step publishes it.
const LAST_WORD: &str = "last.word";

/// Addresses that events come from: one that may publish anything, one only some topics, one
/// nothing.
const HOSTS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
const LIMITED_TO: &str = "a.>";

/// Who hands a datagram in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Host(usize),
    Unix,
}

/// What is the matter with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    Cut,
    Hops,
    /// Longer than the bus's buffer, which only a Unix socket lets through.
    Long,
}

#[derive(Clone, Debug)]
struct Handed {
    from: From,
    flaw: Flaw,
    /// Their topics and the bytes of their payloads.
    events: Vec<(&'static str, usize)>,
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Nothing,
    /// A lease is taken, or renewed for another pattern.
    Take(usize, &'static str),
    GiveBack(usize),
    /// All leases run out.
    Lapse,
}

#[derive(Clone, Debug)]
struct Step {
    deed: Deed,
    handed: Vec<Handed>,
    receives: Vec<Answer>,
    sends: Vec<Answer>,
    /// Whether copies over UDP leave as segments.
    is_gathered: bool,
}

/// Errors that calls give for one datagram, for a device, for the host, for an earlier datagram.
const ERRORS: [libc::c_int; 13] = [
    libc::EAGAIN,
    libc::ENOBUFS,
    libc::ENOMEM,
    libc::EPERM,
    libc::EACCES,
    libc::EMSGSIZE,
    libc::EINVAL,
    libc::EIO,
    libc::ECONNREFUSED,
    libc::EHOSTUNREACH,
    libc::ENETUNREACH,
    libc::ENETDOWN,
    libc::EINTR,
];

fn an_answer() -> impl Strategy<Value = Answer> {
    let error = || prop_oneof![1 => Just(libc::EINTR), 4 => select(&ERRORS[..])];
    prop_oneof![
        2 => Just(Answer::Through),
        2 => (1..70_usize).prop_map(Answer::Most),
        3 => error().prop_map(Answer::Fail),
        1 => error().prop_map(Answer::Late),
    ]
}

fn some_handed() -> impl Strategy<Value = Handed> {
    let from = prop_oneof![
        4 => Just(From::Host(0)),
        2 => (1..HOSTS.len()).prop_map(From::Host),
        2 => Just(From::Unix),
    ];
    let flaw = prop_oneof![
        8 => Just(Flaw::None),
        1 => Just(Flaw::Cut),
        1 => Just(Flaw::Hops),
        1 => Just(Flaw::Long),
    ];
    let bytes = prop_oneof![
        6 => 0..40_usize,
        4 => 200..480_usize,
        1 => 480..3_000_usize,
    ];
    let event = (select(&TOPICS[..]), bytes);
    let events = prop::collection::vec(event, 0..6);
    // One that no datagram with a stamp holds.
    let giant = select(&TOPICS[..3]).prop_map(|topic| vec![(topic, 65_480)]);
    let events = prop_oneof![40 => events, 1 => giant];
    (from, flaw, events).prop_map(|(from, flaw, events)| {
        let is_giant = events.iter().any(|(_, bytes)| *bytes > 60_000);
        let is_unix = is_giant || flaw == Flaw::Long;
        let from = if is_unix { From::Unix } else { from };
        Handed { from, flaw, events }
    })
}

fn a_step() -> impl Strategy<Value = Step> {
    let roamer = 0..ROAMERS;
    let pattern = select(&["a", "a.>", "*.b", ">"][..]);
    let deed = prop_oneof![
        3 => Just(Deed::Nothing),
        3 => (roamer.clone(), pattern).prop_map(|(roamer, pattern)| Deed::Take(roamer, pattern)),
        1 => roamer.prop_map(Deed::GiveBack),
        1 => Just(Deed::Lapse),
    ];
    let handed = prop::collection::vec(some_handed(), 0..24);
    let receives = prop::collection::vec(an_answer(), 0..8);
    let sends = prop::collection::vec(an_answer(), 0..40);
    (deed, handed, receives, sends, any::<bool>()).prop_map(
        |(deed, handed, receives, sends, is_gathered)| Step {
            deed,
            handed,
            receives,
            sends,
            is_gathered,
        },
    )
}

/// Where a subscriber's datagrams arrive.
#[derive(Debug)]
enum Inbox {
    Udp(UdpSocket),
    Unix(UnixDatagram),
    /// Nowhere.
    None,
}

impl Inbox {
    /// The next datagram, if one is there.
    fn take(&self, buffer: &mut [u8]) -> Option<usize> {
        let result = match self {
            Inbox::Udp(socket) => socket.recv(buffer),
            Inbox::Unix(socket) => socket.recv(buffer),
            Inbox::None => return None,
        };
        match result {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            result => Some(result.unwrap()),
        }
    }
}

/// A subscriber as it sees itself.
#[derive(Debug)]
struct Reader {
    name: String,
    address: Address,
    inbox: Inbox,
    /// None while it has no lease.
    pattern: Option<&'static str>,
    /// Copies that it is to be sent or counted for.
    wanted: u64,
    received: SeriesCounts,
    /// Numbers of the events that came.
    numbers: HashSet<u64>,
    /// The sequence after its flow's last frame.
    next: u64,
    /// Events of its flow that did not come, by their sequence.
    missing: u64,
    /// What the last frame's stamp said of that.
    told: u64,
    /// What was counted as dropped before its flow began.
    dropped_before: u64,
}

impl Reader {
    fn new(name: &str, address: Address, inbox: Inbox, pattern: Option<&'static str>) -> Self {
        Self {
            name: name.to_owned(),
            address,
            inbox,
            pattern,
            wanted: 0,
            received: SeriesCounts::default(),
            numbers: HashSet::new(),
            next: 0,
            missing: 0,
            told: 0,
            dropped_before: 0,
        }
    }

    fn udp(name: &str, host: &str, pattern: Option<&'static str>) -> Self {
        let (socket, address) = udp(host);
        if sys::force_receive_buffer(socket.as_fd(), BUFFER_BYTES).is_err() {
            let socket = socket2::SockRef::from(&socket);
            socket.set_recv_buffer_size(BUFFER_BYTES).unwrap();
        }
        Self::new(name, Address::Ip(address), Inbox::Udp(socket), pattern)
    }

    fn wants(&self, topic: &str) -> bool {
        let pattern = self.pattern.map(str::as_bytes);
        topic == LAST_WORD && pattern.is_some()
            || pattern.is_some_and(|pattern| topic::matches(pattern, topic.as_bytes()))
    }

    /// Takes a datagram in, and gives back what it says beside events.
    fn take(&mut self, datagram: &[u8]) -> Option<Control> {
        let frame = Frame::decode(datagram).unwrap();
        if frame.control.is_some() {
            return frame.control;
        }
        let stamp = frame.stamp.unwrap();
        assert!(stamp.sequence >= self.next, "{} twice or late", self.name);
        self.missing += stamp.sequence - self.next;
        assert!(
            stamp.dropped <= self.missing,
            "{} is told too much",
            self.name
        );
        assert!(stamp.dropped >= self.told);
        self.told = stamp.dropped;
        self.next = stamp.sequence + frame.events.len() as u64;
        self.received.frames += 1;
        self.received.bytes += datagram.len() as u64;
        self.received.events += frame.events.len() as u64;
        for event in &frame.events {
            assert!(
                self.wants(&event.topic),
                "{} got {}",
                self.name,
                event.topic
            );
            let number = u64::from_be_bytes(*event.key.first_chunk().unwrap());
            assert!(
                self.numbers.insert(number),
                "{} got {number} twice",
                self.name
            );
        }
        None
    }

    /// Takes all that is there.
    fn take_all(&mut self) -> Vec<Control> {
        let mut buffer = vec![0; 1 << 16];
        let mut controls = Vec::new();
        while let Some(length) = self.inbox.take(&mut buffer) {
            controls.extend(self.take(&buffer[..length]));
        }
        controls
    }

    fn begin_flow(&mut self, pattern: &'static str, dropped_before: u64) {
        if self.pattern.is_none() {
            (self.next, self.missing, self.told) = (0, 0, 0);
            self.dropped_before = dropped_before;
        }
        self.pattern = Some(pattern);
    }
}

fn udp(host: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((host, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn unix_address(path: &Path) -> Address {
    Address::Unix(path.to_str().unwrap().as_bytes().into())
}

/// Those with a place in the configuration, each of another kind.
fn static_readers(directory: &Path) -> Vec<Reader> {
    let path = directory.join("reader");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let unix = Reader::new("unix", unix_address(&path), Inbox::Unix(socket), Some(">"));
    let gone = directory.join("gone");
    let gone = Reader::new("gone", unix_address(&gone), Inbox::None, Some("a.>"));
    // A port that nobody is given, where none but itself is listened to.
    let (socket, address) = udp(HOSTS[0]);
    socket.connect(address).unwrap();
    let dead = Reader::new("dead", Address::Ip(address), Inbox::Udp(socket), Some(">"));
    let mut all = vec![dead, unix, gone];
    all.push(Reader::udp("all", HOSTS[0], Some(">")));
    all.push(Reader::udp("some", HOSTS[0], Some("a.>")));
    for name in ["small-0", "small-1", "small-2"] {
        all.push(Reader::udp(name, HOSTS[0], Some(">")));
    }
    if UdpSocket::bind("[::1]:0").is_ok() {
        all.push(Reader::udp("ipv6", "::1", Some(">")));
    }
    all
}

fn static_subscriber(reader: &Reader) -> StaticSubscriber {
    StaticSubscriber {
        name: reader.name.clone(),
        address: reader.address.clone(),
        topics: vec![reader.pattern.unwrap().to_owned(), LAST_WORD.to_owned()],
        frame_bytes_max: reader.name.starts_with("small").then_some(508),
        terms: Terms::default(),
    }
}

fn rule(host: &str, pattern: &str) -> Rule {
    Rule {
        from: vec![format!("{host}/32").parse().unwrap()],
        topics: vec![pattern.to_owned()],
        effect: Effect::Allow,
    }
}

fn settings(readers: &[Reader]) -> Settings {
    let publish = vec![rule(HOSTS[0], ">"), rule(HOSTS[1], LIMITED_TO)];
    Settings {
        access: Access {
            publish: Rules(publish),
            subscribe: Rules(vec![rule(HOSTS[0], ">")]),
        },
        own_sources: Vec::new(),
        leases: LeaseLimits {
            leases_max: 8,
            leases_per_origin_max: 8,
            patterns_max: 4,
            group_members_max: 4,
            lease_ms: 300_000,
            lease_ms_max: 300_000,
        },
        leased_series_max: ROAMERS,
        subscribers: readers.iter().map(static_subscriber).collect(),
        topic_policies: vec![TopicPolicy {
            pattern: "a.>".to_owned(),
            ..TopicPolicy::default()
        }],
    }
}

/// What the books are to say once all that was handed in is taken.
#[derive(Debug, Default)]
struct Account {
    /// By listener: UDP, Unix.
    frames: [u64; 2],
    bytes: [u64; 2],
    dropped_frames: [u64; FrameDrop::ALL.len()],
    events: u64,
    bad_topic: u64,
    not_allowed: u64,
    unmatched: u64,
    matched: u64,
}

/// A bus, those around it, and what they know.
struct World {
    event_loop: EventLoop,
    shared: Shared,
    state: Arc<State>,
    totals: Totals,
    account: Account,
    readers: Vec<Reader>,
    cookies: [Vec<u8>; ROAMERS],
    hosts: [UdpSocket; HOSTS.len()],
    unix: UnixDatagram,
    udp_address: SocketAddr,
    unix_path: std::path::PathBuf,
    next_number: u64,
    _stop: UnixStream,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        begin();
        let directory = tempfile::tempdir().unwrap();
        let mut readers = static_readers(directory.path());
        let mut count = 0_u8;
        let random = Box::new(move || {
            count = count.wrapping_add(1);
            [count; 16]
        });
        let parts = bus::open(&settings(&readers), 1, Duration::ZERO, random);
        readers.extend((0..ROAMERS).map(|n| Reader::udp(&format!("roamer-{n}"), HOSTS[0], None)));
        let unix_path = directory.path().join("bus");
        let addresses = [
            ListenAddress::Udp("0.0.0.0:0".parse().unwrap()),
            ListenAddress::Unix(unix_path.clone()),
        ];
        let listeners = addresses.map(|address| Listener::bind(&address, BUFFER_BYTES).unwrap());
        let port = listeners[0].name().rsplit_once(':').unwrap().1;
        let udp_address = format!("127.0.0.1:{port}").parse().unwrap();
        let infos = listeners.iter().map(|listener| {
            let account = account::Account::open([]);
            ListenerInfo::new(listener.name(), listener.buffer(), account)
        });
        let state = State::new(parts.registrar.bus(), infos.collect(), 1);
        let state = Arc::new(state);
        let (forwarder, publishers) = parts.workers.into_iter().next().unwrap();
        let (stop, _stop) = UnixStream::pair().unwrap();
        let own = Parts {
            worker: 0,
            forwarder,
            listeners: listeners.map(Some).into(),
            egress: Egress::open(BUFFER_BYTES).unwrap(),
            stop,
            linger: Duration::ZERO,
            state: Arc::clone(&state),
        };
        Self {
            event_loop: EventLoop::with_registrar(own, parts.registrar).unwrap(),
            shared: Shared {
                directory: RwLock::new(parts.directory),
                publishers: vec![Mutex::new(publishers)],
            },
            totals: Totals::new(2),
            state,
            account: Account::default(),
            readers,
            cookies: Default::default(),
            hosts: HOSTS.map(|host| udp(host).0),
            unix: UnixDatagram::unbound().unwrap(),
            udp_address,
            unix_path,
            next_number: 0,
            _stop,
            _directory: directory,
        }
    }

    /// Another data thread, with a listener of its own.
    fn beside(&mut self) -> EventLoop {
        let address = ListenAddress::Udp("127.0.0.1:0".parse().unwrap());
        let listener = Listener::bind(&address, BUFFER_BYTES).unwrap();
        let (stop, _) = UnixStream::pair().unwrap();
        self.shared.publishers.push(Mutex::new(Publishers::new(3)));
        let parts = Parts {
            worker: 1,
            forwarder: Forwarder::new(lock(&self.event_loop.registrar).bus(), 5),
            listeners: vec![Some(listener), None],
            egress: Egress::open(BUFFER_BYTES).unwrap(),
            stop,
            linger: Duration::ZERO,
            state: Arc::clone(&self.state),
        };
        self.event_loop.beside(parts).unwrap()
    }

    /// One turn, and what must be true when it is over. Gives back what roamers are told.
    fn turn(&mut self) -> Vec<(usize, Control)> {
        self.event_loop.readable.fill(true);
        self.event_loop.turn(&self.shared);
        // Whoever scrapes now sees nothing of this turn.
        self.take_mail();
        self.event_loop.hand_over();
        self.take_mail();
        self.assert_received()
    }

    fn take_mail(&mut self) {
        self.state.mailbox.take_into(&mut self.totals);
        self.assert_laws();
    }

    fn assert_laws(&self) {
        let counts = &self.totals.counts;
        let events = &counts.events;
        assert_eq!(
            events.events,
            events.bad_topic + events.not_allowed + events.unmatched + events.matched
        );
        let sent: u64 = counts.series.iter().map(|series| series.events).sum();
        let dropped: u64 = counts.series.iter().map(dropped).sum();
        assert_eq!(events.copies, sent + dropped);
        let forwarded: u64 = counts.forward_latency.buckets().map(|(_, n)| n).sum();
        let frames: u64 = counts.listeners.iter().map(|it| it.frames).sum();
        assert_eq!(forwarded, frames);
    }

    fn series(&self, name: &str) -> SeriesCounts {
        let directory = self.shared.directory();
        let index = directory.series_names().iter().position(|it| **it == *name);
        let counts = index.and_then(|index| self.totals.counts.series.get(index));
        counts.copied().unwrap_or_default()
    }

    /// What is counted as handed to the kernel is what the kernel took, and what arrived.
    fn assert_received(&mut self) -> Vec<(usize, Control)> {
        let start = Instant::now();
        let mut controls = Vec::new();
        for index in 0..self.readers.len() {
            let counted = self.series(&self.readers[index].name);
            let reader = &mut self.readers[index];
            let address = to_sockaddr(&reader.address).unwrap();
            assert_eq!(counted.bytes, bytes_taken(&address), "{}", reader.name);
            if matches!(reader.name.as_str(), "dead" | "gone") {
                continue;
            }
            loop {
                let said = reader.take_all();
                controls.extend(said.into_iter().map(|control| (index, control)));
                if reader.received.frames >= counted.frames {
                    break;
                }
                assert!(
                    start.elapsed() < PATIENCE,
                    "{} has not got all",
                    reader.name
                );
                std::thread::yield_now();
            }
            let received = (
                reader.received.events,
                reader.received.frames,
                reader.received.bytes,
            );
            let counted = (counted.events, counted.frames, counted.bytes);
            assert_eq!(received, counted, "{}", reader.name);
        }
        controls
    }

    /// Turns till the bus has taken all that it was handed, and what the books are to say then.
    fn settle(&mut self) {
        let start = Instant::now();
        let taken = |totals: &Totals| [0, 1].map(|index| totals.counts.listeners[index].frames);
        while taken(&self.totals) != self.account.frames {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.account);
            self.turn();
        }
        let counts = &self.totals.counts;
        let (events, account) = (&counts.events, &self.account);
        assert_eq!(
            [0, 1].map(|index| counts.listeners[index].bytes),
            account.bytes
        );
        assert_eq!(counts.dropped_frames, account.dropped_frames);
        assert_eq!(
            (events.events, events.bad_topic, events.not_allowed),
            (account.events, account.bad_topic, account.not_allowed)
        );
        assert_eq!(
            (events.unmatched, events.matched, events.copies),
            (
                account.unmatched,
                account.matched,
                self.readers.iter().map(|reader| reader.wanted).sum()
            )
        );
        for reader in &self.readers {
            let counted = self.series(&reader.name);
            assert_eq!(
                reader.wanted,
                counted.events + dropped(&counted),
                "{}",
                reader.name
            );
        }
    }

    /// An event that nothing befalls. By its stamps all know what they missed before it.
    fn say_last_word(&mut self) {
        script([], []);
        // Before it one that goes to nobody who is said to have refused the last.
        for _ in 0..2 {
            self.hand(&Handed {
                from: From::Host(0),
                flaw: Flaw::None,
                events: vec![(LAST_WORD, 0)],
            });
            self.settle();
        }
        for reader in &self.readers {
            if reader.pattern.is_none() || matches!(reader.name.as_str(), "dead" | "gone") {
                continue;
            }
            let dropped = dropped(&self.series(&reader.name)) - reader.dropped_before;
            assert_eq!(
                (reader.missing, reader.told),
                (dropped, dropped),
                "{}",
                reader.name
            );
        }
    }

    fn encode(&mut self, handed: &Handed) -> Vec<u8> {
        let mut events = Vec::new();
        for (topic, bytes) in &handed.events {
            events.push(Event {
                topic: (*topic).to_owned(),
                key: self.next_number.to_be_bytes().to_vec(),
                payload: vec![7; *bytes],
                ..Event::default()
            });
            self.next_number += 1;
        }
        let mut frame = Frame {
            events,
            ..Frame::default()
        };
        match handed.flaw {
            Flaw::None => {}
            Flaw::Hops => {
                frame.stamp = Some(Stamp {
                    hops: bus::limits::HOPS_MAX,
                    ..Stamp::default()
                });
            }
            Flaw::Long => pad(&mut frame, sys::DATAGRAM_BUFFER_BYTES + 1),
            Flaw::Cut => {
                // The head of a field that is longer than what follows.
                return [frame.encode_to_vec(), vec![0x0a, 9, 0]].concat();
            }
        }
        frame.encode_to_vec()
    }

    fn hand(&mut self, handed: &Handed) {
        let datagram = self.encode(handed);
        self.enter(handed);
        self.hand_bytes(handed.from, &datagram);
    }

    fn hand_bytes(&mut self, from: From, datagram: &[u8]) {
        let listener = usize::from(from == From::Unix);
        self.account.frames[listener] += 1;
        self.account.bytes[listener] += datagram.len().min(sys::DATAGRAM_BUFFER_BYTES) as u64;
        let start = Instant::now();
        loop {
            // The shortest queue that a system may have is emptied while it is filled.
            let result = match from {
                From::Host(host) => self.hosts[host].send_to(datagram, self.udp_address),
                From::Unix => {
                    self.unix.set_nonblocking(true).unwrap();
                    self.unix.send_to(datagram, &self.unix_path)
                }
            };
            match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(start.elapsed() < PATIENCE);
                    // What was entered ahead of its taking is looked at when all is settled.
                    self.turn();
                }
                result => return assert_eq!(result.unwrap(), datagram.len()),
            }
        }
    }

    /// Enters a datagram into the account.
    fn enter(&mut self, handed: &Handed) {
        let account = &mut self.account;
        let is_forbidden = handed.from == From::Host(2) && !handed.events.is_empty();
        let dropped = match handed.flaw {
            Flaw::Long => Some(FrameDrop::Truncated),
            Flaw::Cut => Some(FrameDrop::Malformed),
            _ if is_forbidden => Some(FrameDrop::NotAllowed),
            Flaw::Hops => Some(FrameDrop::Hops),
            Flaw::None => None,
        };
        if let Some(reason) = dropped {
            account.dropped_frames[reason as usize] += 1;
            return;
        }
        for (topic, _) in &handed.events {
            account.events += 1;
            let is_limited = handed.from == From::Host(1);
            if topic::check_topic(topic.as_bytes()).is_err() {
                account.bad_topic += 1;
            } else if is_limited && !topic::matches(LIMITED_TO.as_bytes(), topic.as_bytes()) {
                account.not_allowed += 1;
            } else {
                let wanting = self.readers.iter_mut().filter(|reader| reader.wants(topic));
                let copies = wanting.map(|reader| reader.wanted += 1).count();
                account.matched += u64::from(copies > 0);
                account.unmatched += u64::from(copies == 0);
            }
        }
    }

    fn roamer(&mut self, roamer: usize) -> usize {
        self.readers.len() - ROAMERS + roamer
    }

    /// Sends a roamer's request and gives its answer, if there is one.
    fn ask(&mut self, roamer: usize, control: Control) -> Option<Control> {
        let mut frame = Frame {
            control: Some(control),
            ..Frame::default()
        };
        pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
        let datagram = frame.encode_to_vec();
        self.account.frames[0] += 1;
        self.account.bytes[0] += datagram.len() as u64;
        let index = self.roamer(roamer);
        let Inbox::Udp(socket) = &self.readers[index].inbox else {
            panic!("roamers have UDP");
        };
        socket.send_to(&datagram, self.udp_address).unwrap();
        let is_answered = matches!(frame.control, Some(Control::Subscribe(_)));
        let start = Instant::now();
        loop {
            let mut said = self.turn();
            assert!(start.elapsed() < PATIENCE);
            let is_taken = self.totals.counts.listeners[0].frames == self.account.frames[0];
            match said.pop() {
                Some((who, control)) => {
                    assert_eq!(who, index);
                    return Some(control);
                }
                None if is_taken && !is_answered => return None,
                None => {}
            }
        }
    }

    fn act(&mut self, deed: Deed) {
        script([], []);
        match deed {
            Deed::Nothing => {}
            Deed::Take(roamer, pattern) => self.take_lease(roamer, pattern),
            Deed::GiveBack(roamer) => {
                let index = self.roamer(roamer);
                if self.readers[index].pattern.take().is_some() {
                    let cookie = self.cookies[roamer].clone();
                    let unsubscribe = Unsubscribe { cookie, nonce: 5 };
                    assert_eq!(self.ask(roamer, Control::Unsubscribe(unsubscribe)), None);
                }
            }
            Deed::Lapse => {
                self.event_loop.now += Duration::from_secs(3_600);
                self.turn();
                self.event_loop.look_at_the_clock();
                for roamer in 0..ROAMERS {
                    let index = self.roamer(roamer);
                    self.readers[index].pattern = None;
                }
            }
        }
        let standing = self.shared.directory().subscribers().leases();
        let known = self.readers.iter().rev().take(ROAMERS);
        assert_eq!(
            standing,
            known.filter(|reader| reader.pattern.is_some()).count()
        );
    }

    fn take_lease(&mut self, roamer: usize, pattern: &'static str) {
        let index = self.roamer(roamer);
        let before = dropped(&self.series(&self.readers[index].name));
        let is_new = self.readers[index].pattern.is_none();
        let mut subscribe = Subscribe {
            topics: vec![pattern.to_owned(), LAST_WORD.to_owned()],
            name: self.readers[index].name.clone(),
            nonce: 5,
            ..Subscribe::default()
        };
        if is_new {
            match self.ask(roamer, Control::Subscribe(subscribe.clone())) {
                Some(Control::Challenge(challenge)) => self.cookies[roamer] = challenge.cookie,
                other => panic!("{other:?}"),
            }
        }
        subscribe.cookie.clone_from(&self.cookies[roamer]);
        match self.ask(roamer, Control::Subscribe(subscribe)) {
            Some(Control::Lease(lease)) => self.cookies[roamer] = lease.cookie,
            other => panic!("{other:?}"),
        }
        self.readers[index].begin_flow(pattern, before);
    }

    fn step(&mut self, step: &Step) {
        self.act(step.deed);
        if step.is_gathered {
            self.event_loop.parts.egress.gather();
        }
        script(step.receives.iter().copied(), step.sends.iter().copied());
        for handed in &step.handed {
            self.hand(handed);
        }
        self.settle();
        self.say_last_word();
    }
}

fn dropped(series: &SeriesCounts) -> u64 {
    series.dropped.iter().sum()
}

#[test]
fn an_error_of_a_receive_holds_nothing_up() {
    let mut world = World::new();
    world.turn();
    for (answers, taken) in [
        (&[Answer::Fail(libc::ENOMEM)][..], 1),
        (&[Answer::Fail(libc::EINTR), Answer::Fail(libc::EIO)], 1),
        // It may never end: the loop waits for the next datagram, and does not spin.
        (&[Answer::Fail(libc::EIO); 2], 0),
    ] {
        // Nothing but this one datagram wakes the loop.
        world.event_loop.readable.fill(false);
        world.hand(&Handed {
            from: From::Host(0),
            flaw: Flaw::None,
            events: vec![(LAST_WORD, 0)],
        });
        let mut events = Events::with_capacity(4);
        world.event_loop.sleep(&mut events).unwrap();
        script(answers.iter().copied(), []);
        let before = world.totals.counts.listeners[0].frames;
        world.event_loop.turn(&world.shared);
        assert!(!world.event_loop.is_readable());
        world.event_loop.hand_over();
        world.take_mail();
        assert_eq!(world.totals.counts.listeners[0].frames, before + taken);
    }
    world.settle();
}

#[test]
fn what_waits_in_a_listener_that_closes_is_taken_whatever_one_call_says() {
    /// More than one batch.
    const WAITING: u64 = 300;
    let error = Answer::Fail(libc::ECONNREFUSED);
    let answers = [&[][..], &[error], &[Answer::Through, error]];
    for answers in answers {
        for place in 0..2 {
            let mut world = World::new();
            world.settle();
            let event = Event {
                topic: "a".to_owned(),
                ..Event::default()
            };
            let frame = Frame {
                events: vec![event],
                ..Frame::default()
            };
            let datagram = frame.encode_to_vec();
            // A Unix socket lets few wait.
            let waiting = [WAITING, 5][place];
            for _ in 0..waiting {
                match place {
                    0 => world.hosts[0].send_to(&datagram, world.udp_address),
                    _ => world.unix.send_to(&datagram, &world.unix_path),
                }
                .unwrap();
            }
            script(answers.iter().copied(), []);
            let clear = Clear {
                close: vec![place],
                ask: Ask::Source,
            };
            world.event_loop.clear(&clear, &world.shared);
            world.event_loop.hand_over();
            world.state.mailbox.take_into(&mut world.totals);
            let listeners = &world.totals.counts.listeners;
            assert_eq!(listeners[place].frames, waiting, "{answers:?}");
            let open = world.event_loop.parts.listeners.iter().map(Option::is_some);
            assert_eq!(open.collect::<Vec<_>>(), [place != 0, place != 1]);
            // What nobody is in costs nothing, and the other one goes on.
            world.event_loop.readable.fill(true);
            world.event_loop.turn(&world.shared);
            assert!(!world.event_loop.is_readable());
        }
    }
}

/// As a process that was stopped. In a host that is suspended the clock stands still, too.
#[test]
fn who_stood_still_sends_nothing_by_leases_that_ended_meanwhile() {
    let mut world = World::new();
    world.act(Deed::Take(0, "a"));
    let roamer = world.roamer(0);
    world.readers[roamer].pattern = None;
    world.hand(&Handed {
        from: From::Host(0),
        flaw: Flaw::None,
        events: vec![("a", 1)],
    });
    world.event_loop.now += Duration::from_secs(3_600);
    world.settle();
    assert_eq!(world.shared.directory().subscribers().leases(), 0);
}

#[test]
fn nor_does_a_data_thread_that_grants_no_leases() {
    let mut world = World::new();
    world.act(Deed::Take(0, "a"));
    let mut other = world.beside();
    let address = other.parts.listeners[0].as_ref().unwrap().address();
    let Ok(Address::Ip(address)) = address else {
        panic!("it has UDP");
    };
    let frame = Frame {
        events: vec![Event {
            topic: "a".to_owned(),
            ..Event::default()
        }],
        ..Frame::default()
    };
    let sent = |world: &World| world.series("roamer-0").events;
    let mut stood_still = |world: &mut World, pause: Duration| {
        let frames = |world: &World| world.totals.counts.listeners[0].frames;
        let before = frames(world);
        world.hosts[0]
            .send_to(&frame.encode_to_vec(), address)
            .unwrap();
        let start = Instant::now();
        while frames(world) == before {
            assert!(start.elapsed() < PATIENCE, "nothing came");
            other.now = other.parts.state.started.elapsed() + pause;
            other.readable.fill(true);
            other.turn(&world.shared);
            other.hand_over();
            world.state.mailbox.take_into(&mut world.totals);
        }
    };
    stood_still(&mut world, Duration::ZERO);
    assert_eq!(sent(&world), 1);
    stood_still(&mut world, Duration::from_secs(3_600));
    assert_eq!(sent(&world), 1);
    assert_eq!(world.shared.directory().subscribers().leases(), 0);
}

#[test]
fn a_refusal_costs_the_next_copy_and_no_other() {
    let mut world = World::new();
    world.say_last_word();
    let living = |world: &World| {
        let readers = world.readers.iter().map(|reader| reader.name.as_str());
        let readers = readers.filter(|name| !matches!(*name, "dead" | "gone"));
        let reasons = [CopyDrop::Refused, CopyDrop::Unreachable];
        let dropped = |name| reasons.map(|reason| world.series(name).dropped[reason as usize]);
        let sum = |sum: [u64; 2], more: [u64; 2]| [sum[0] + more[0], sum[1] + more[1]];
        readers.map(dropped).fold([0, 0], sum)
    };
    for (number, dropped) in [
        (libc::EMSGSIZE, [0, 0]),
        (libc::ECONNREFUSED, [1, 0]),
        (libc::EHOSTUNREACH, [1, 1]),
        (libc::ENETUNREACH, [1, 2]),
    ] {
        // Before the first of a turn, of the last of the turn before.
        script([], [Answer::Late(number)]);
        world.hand(&Handed {
            from: From::Host(0),
            flaw: Flaw::None,
            events: vec![(LAST_WORD, 0)],
        });
        world.settle();
        world.say_last_word();
        assert_eq!(living(&world), dropped, "{number}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        max_shrink_time: SHRINK_MS_MAX,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_frame_event_and_copy_ends_in_one_counter_whatever_fails(
        steps in prop::collection::vec(a_step(), 1..8),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
    }
}
