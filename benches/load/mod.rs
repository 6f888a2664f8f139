//! The load that the benches drive the core with: whole receive batches of frames, by static
//! subscribers of every topic.

use std::time::Duration;

use hailmary::bus::address::Source;
use hailmary::bus::publishers::Publishers;
use hailmary::bus::tally::EventTally;
use hailmary::bus::{self, Arrival, Directory, Forwarder, FrameCopy};
use hailmary::config::Config;
use hailmary_proto::write::{EventParts, write_event};

/// Datagrams of a turn.
pub const BATCH: usize = 64;

/// Bytes of an event's payload.
const PAYLOAD_BYTES: usize = 128;

/// What a turn has to do.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Subscribers that all topics are for.
    pub fan_out: usize,
    /// Different topics, in turn.
    pub topics: usize,
    /// Events in each datagram of the batch.
    pub events_per_datagram: usize,
}

/// A core, and the batch that each of its turns takes in.
pub struct Load {
    directory: Directory,
    forwarder: Forwarder,
    publishers: Publishers,
    batch: Vec<Vec<u8>>,
    tally: EventTally,
    copies: Vec<FrameCopy>,
}

impl Load {
    /// A core that has had one such turn already, so that it knows the topics and has its memory.
    pub fn new(shape: Shape) -> Self {
        let mut core = core(shape.fan_out);
        let (forwarder, publishers) = core.workers.remove(0);
        let mut load = Self {
            directory: core.directory,
            forwarder,
            publishers,
            batch: datagrams(BATCH, shape),
            tally: EventTally::default(),
            copies: Vec::with_capacity(BATCH),
        };
        load.turn();
        load
    }

    /// Takes the batch in and hands all copies out; says how many bytes they have.
    pub fn turn(&mut self) -> usize {
        self.tally.clear();
        let arrival = Arrival {
            source: Source::Ip(([127, 0, 0, 1], 9).into()),
            listener: 0,
            unix_nano: 0,
        };
        let mut bytes = 0;
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
                bytes += self.hand_out();
            }
        }
        self.batch = batch;
        bytes + self.hand_out()
    }

    fn hand_out(&mut self) -> usize {
        let Self {
            directory,
            forwarder,
            copies,
            ..
        } = self;
        let mut bytes = 0;
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

fn core(fan_out: usize) -> bus::Parts {
    let subscribers: String = (0..fan_out)
        .map(|number| {
            let port = 10_000 + number;
            format!(
                "[[subscriber]]\nname = \"s{number}\"\naddress = \"127.0.0.1:{port}\"\ntopics = [\"search.>\"]\n"
            )
        })
        .collect();
    let text = format!("[listen]\nadmin = \"off\"\n{subscribers}");
    let (_, plan) = Config::parse("bench", &text).expect("a legal configuration");
    let random = Box::new(|| [7; 16]);
    bus::open(&plan.settings, 1, Duration::ZERO, random)
}

/// So many datagrams.
pub fn datagrams(count: usize, shape: Shape) -> Vec<Vec<u8>> {
    let mut topics = (0..shape.topics).cycle().map(|number| match number {
        0 => "search.index.photo".to_owned(),
        _ => format!("search.index.{number:05}"),
    });
    let datagram = |_| {
        let mut frame = Vec::new();
        for topic in topics.by_ref().take(shape.events_per_datagram) {
            let parts = EventParts {
                topic: &topic,
                payload: &[7; PAYLOAD_BYTES],
                ..EventParts::default()
            };
            write_event(&mut frame, &parts);
        }
        frame
    };
    (0..count).map(datagram).collect()
}
