//! The load that the benches drive the core with: whole receive batches of frames, by static
//! subscribers of every topic.

use std::time::Duration;

use hailmary::bus::address::Source;
use hailmary::bus::overload::Level;
use hailmary::bus::publishers::Publishers;
use hailmary::bus::tally::EventTally;
use hailmary::bus::{self, Arrival, Directory, Forwarder, FrameCopy};
use hailmary::config::Config;
use hailmary::topics_seen::Mailbox;
use hailmary_proto::write::{EventParts, write_event};

/// Datagrams of a turn.
pub const BATCH: usize = 64;

/// Bytes of an event's payload.
const PAYLOAD_BYTES: usize = 128;

/// Which topics a subscriber wants.
#[derive(Clone, Copy, Debug)]
pub enum Interest {
    /// All, by one wildcard.
    All,
    /// Ten that nobody else wants, by name.
    OwnTen,
}

/// What a turn has to do.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many subscribers there are.
    pub subscribers: usize,
    /// What each of them wants.
    pub interest: Interest,
    /// Different topics, in turn.
    pub topics: usize,
    /// Events in each datagram of the batch.
    pub events_per_datagram: usize,
    /// What is asked for besides.
    pub feature: Feature,
}

/// What costs more than the plain case, and how much of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Feature {
    /// Lines of the configuration for each subscriber.
    pub terms: &'static str,
    /// Lines of the configuration for the topic.
    pub policy: &'static str,
    /// Whether each event has a key of its own.
    pub has_keys: bool,
    /// How much is let go, as if the bus could not keep up: see `Level`.
    pub level: u32,
}

/// The least: one event of one topic a datagram, and nobody who wants it.
impl Default for Shape {
    fn default() -> Self {
        Self {
            subscribers: 0,
            interest: Interest::All,
            topics: 1,
            events_per_datagram: 1,
            feature: Feature::default(),
        }
    }
}

/// A core, and the batch that each of its turns takes in.
pub struct Load {
    directory: Directory,
    forwarder: Forwarder,
    publishers: Publishers,
    batch: Vec<Vec<u8>>,
    tally: EventTally,
    copies: Vec<FrameCopy>,
    mailbox: Mailbox,
}

impl Load {
    /// A core that has had one such turn already, so that it knows the topics and has its memory.
    pub fn new(shape: Shape) -> Self {
        let mut core = core(shape);
        let (mut forwarder, publishers) = core.workers.remove(0);
        forwarder.set_level(Level::new(shape.feature.level));
        let mut load = Self {
            directory: core.directory,
            forwarder,
            publishers,
            batch: datagrams(BATCH, shape),
            tally: EventTally::default(),
            copies: Vec::with_capacity(BATCH),
            mailbox: Mailbox::default(),
        };
        load.turn();
        load
    }

    /// Takes the batch in and hands all copies out; says how many bytes they have.
    pub fn turn(&mut self) -> usize {
        self.take_in(Self::hand_out)
    }

    /// Takes the batch in and lets go of the frames built of it, unsent; says how many copies of
    /// events they stood for.
    pub fn route(&mut self) -> u64 {
        self.take_in(|load| {
            load.forwarder.end_frames();
            0
        });
        self.tally.copies
    }

    /// Tells the topics of what was taken in since they were told last, and lets them go.
    #[allow(dead_code, reason = "not every user of this load asks")]
    pub fn tell_topics(&mut self) {
        let seen = self.forwarder.topics_seen(Duration::ZERO);
        self.mailbox.hand_over(seen);
    }

    /// Takes the batch in; `empty` is called where the core is full, and at the end.
    fn take_in(&mut self, empty: impl Fn(&mut Self) -> usize) -> usize {
        self.tally.clear();
        let arrival = Arrival {
            source: Source::Ip(([127, 0, 0, 1], 9).into()),
            listener: 0,
            now: Duration::ZERO,
            unix_nano: 0,
        };
        let mut sum = 0;
        self.forwarder.begin_turn(&self.directory);
        let batch = std::mem::take(&mut self.batch);
        for datagram in &batch {
            self.forwarder
                .handle_datagram(
                    &self.directory,
                    &mut self.publishers,
                    arrival,
                    datagram,
                    &mut self.tally,
                )
                .expect("these are frames");
            if self.forwarder.is_full() {
                sum += empty(self);
            }
        }
        self.batch = batch;
        sum + empty(self)
    }

    fn hand_out(&mut self) -> usize {
        let Self {
            directory,
            forwarder,
            copies,
            ..
        } = self;
        let mut bytes = 0;
        forwarder.take_drops(directory, |_, _, events| bytes += events as usize);
        loop {
            forwarder.poll_copies(directory, copies, BATCH);
            if copies.is_empty() {
                break;
            }
            bytes += copies
                .iter()
                .map(|copy| copy.stamp().len() + forwarder.body(copy).len())
                .sum::<usize>();
        }
        forwarder.end_frames();
        bytes
    }
}

/// A core whose batch has each of 10,000 topics once or twice, and each event for one subscriber.
pub fn many_topics(subscribers: usize, interest: Interest) -> Load {
    let events_per_datagram = 160;
    let mut load = Load::new(Shape {
        subscribers,
        interest,
        topics: 10_000,
        events_per_datagram,
        feature: Feature::default(),
    });
    assert_eq!(load.route(), (BATCH * events_per_datagram) as u64);
    load
}

fn core(shape: Shape) -> bus::Parts {
    let subscribers: String = (0..shape.subscribers)
        .map(|number| {
            let port = 10_000 + number;
            let topics = wanted(shape.interest, number);
            format!(
                "[[subscriber]]\nname = \"s{number}\"\naddress = \"127.0.0.1:{port}\"\ntopics = {topics:?}\n{}\n",
                shape.feature.terms
            )
        })
        .collect();
    let policy = match shape.feature.policy {
        "" => String::new(),
        policy => format!("[[topic]]\nmatch = \"search.>\"\n{policy}\n"),
    };
    let text = format!("[listen]\nadmin = \"off\"\n{subscribers}{policy}");
    let (_, plan) = Config::parse("bench", &text).expect("a legal configuration");
    let random = Box::new(|| [7; 16]);
    bus::open(&plan.settings, 1, Duration::ZERO, random)
}

/// The patterns of the subscriber with this number.
fn wanted(interest: Interest, number: usize) -> Vec<String> {
    match interest {
        Interest::All => vec!["search.>".to_owned()],
        Interest::OwnTen => (number * 10..number * 10 + 10).map(topic).collect(),
    }
}

fn topic(number: usize) -> String {
    match number {
        0 => "search.index.photo".to_owned(),
        _ => format!("search.index.{number:05}"),
    }
}

/// So many datagrams.
pub fn datagrams(count: usize, shape: Shape) -> Vec<Vec<u8>> {
    let mut topics = (0..shape.topics).cycle().map(topic);
    let mut keys = 0_u64..;
    let datagram = |_| {
        let mut frame = Vec::new();
        for topic in topics.by_ref().take(shape.events_per_datagram) {
            let key = keys.next().unwrap_or_default().to_le_bytes();
            let parts = EventParts {
                topic: &topic,
                payload: &[7; PAYLOAD_BYTES],
                key: match shape.feature.has_keys {
                    true => &key,
                    false => &[],
                },
                ..EventParts::default()
            };
            write_event(&mut frame, &parts);
        }
        frame
    };
    (0..count).map(datagram).collect()
}
