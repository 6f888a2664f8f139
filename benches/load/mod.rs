//! The load that the benches drive the core with: whole receive batches of frames, by static
//! subscribers of every topic.

use std::time::Duration;

use hailmary::bus::address::Source;
use hailmary::bus::tally::EventTally;
use hailmary::bus::{Arrival, Bus, FrameCopy};
use hailmary::config::Config;
use hailmary::net::sys::BATCH;
use hailmary_proto::write::{EventParts, write_event};

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
    bus: Bus,
    batch: Vec<Vec<u8>>,
    tally: EventTally,
    copies: Vec<FrameCopy>,
}

impl Load {
    /// A core that has had one such turn already, so that it knows the topics and has its memory.
    pub fn new(shape: Shape) -> Self {
        let mut load = Self {
            bus: bus(shape.fan_out),
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
        for datagram in &self.batch {
            self.bus
                .handle_datagram(arrival, datagram, &mut self.tally)
                .expect("these are frames");
            if self.bus.is_full() {
                bytes += hand_out(&mut self.bus, &mut self.copies);
            }
        }
        bytes + hand_out(&mut self.bus, &mut self.copies)
    }
}

fn hand_out(bus: &mut Bus, copies: &mut Vec<FrameCopy>) -> usize {
    let mut bytes = 0;
    loop {
        bus.poll_copies(copies, BATCH);
        if copies.is_empty() {
            break;
        }
        bytes += copies
            .iter()
            .map(|copy| copy.stamp().len() + bus.body(copy).len())
            .sum::<usize>();
    }
    bus.end_frames();
    bytes
}

fn bus(fan_out: usize) -> Bus {
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
    Bus::new(plan.settings, Duration::ZERO, Box::new(|| [7; 16]))
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
