//! A publisher: throws events at a bus, stamped, and forgets them. The bytes are those of the
//! protocol's own writer, as the clients use it.

use std::net::SocketAddr;

use hailmary_proto::v1::frame::Control;
use hailmary_proto::v1::{Frame, Ping, Stamp};
use hailmary_proto::write::{EventParts, StampBytes, UNPROVEN_REQUEST_BYTES_MIN, pad, write_event};
use prost::Message;

use super::clock::{Clock, Nanos};
use super::plan::TOPICS;
use super::rng::Rng;

/// Marks an event of the end of a history, which nobody may miss.
pub const PROBE: u64 = 1 << 63;

/// An event's payload: who made it, and as which of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The sender id, another one after each start and each move.
    pub maker: u64,
    pub number: u64,
}

impl Name {
    /// Reads a payload.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (maker, rest) = payload.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        Some(Self {
            maker: u64::from_le_bytes(*maker),
            number: u64::from_le_bytes(*number),
        })
    }
}

/// How a publisher behaves.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// How long between two frames, at the most.
    pub every: Nanos,
    /// Events of a frame, at the most.
    pub batch_max: u64,
    /// How many frames in a million it drops itself.
    pub drops: u32,
    /// How many in a million have no stamp.
    pub stampless: u32,
    /// How many in a million are from buses before.
    pub weighted: u32,
    pub payload_max: u64,
}

/// A publisher.
#[derive(Debug)]
pub struct Publisher {
    pub address: SocketAddr,
    pub bus: usize,
    pub clock: Clock,
    pub habits: Habits,
    pub wake_at: Nanos,
    rng: Rng,
    pub sender: u64,
    /// Changes with the sender and with the address.
    maker: u64,
    sequence: u64,
    dropped: u64,
    number: u64,
}

impl Publisher {
    pub fn new(
        address: SocketAddr,
        bus: usize,
        clock: Clock,
        habits: Habits,
        mut rng: Rng,
    ) -> Self {
        let sender = rng.next();
        Self {
            address,
            bus,
            clock,
            habits,
            wake_at: 0,
            sender,
            maker: sender,
            sequence: 0,
            dropped: 0,
            number: 0,
            rng,
        }
    }

    /// Another process: another sender.
    pub fn restart(&mut self) {
        self.sender = self.rng.next();
        (self.sequence, self.dropped) = (0, 0);
        self.maker = self.sender;
    }

    /// Another socket, of the same process.
    pub fn move_to(&mut self, address: SocketAddr) {
        self.address = address;
        self.maker = self.rng.next();
    }

    /// How many events its flow counts.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The next frame, which it may drop itself.
    pub fn publish(&mut self, now: Nanos) -> Option<Vec<u8>> {
        let events = self.rng.range(1, self.habits.batch_max);
        let mut body = Vec::new();
        let mut topic = *self.rng.pick(&TOPICS);
        for _ in 0..events {
            if self.rng.chance(300_000) {
                topic = *self.rng.pick(&TOPICS);
            }
            let filler = self.rng.below(self.habits.payload_max) as usize;
            let key = match self.rng.chance(300_000) {
                true => format!("key-{}", self.rng.below(12)),
                false => String::new(),
            };
            let time = match self.rng.chance(300_000) {
                true => self.clock.unix_nano(now),
                false => 0,
            };
            self.write(&mut body, topic, &key, time, 0, filler);
        }
        let before = self.sequence;
        self.sequence += events;
        if self.rng.chance(self.habits.drops) {
            self.dropped += events;
            return None;
        }
        if self.rng.chance(self.habits.stampless) {
            return Some(body);
        }
        let mut stamp = self.stamp(before);
        if self.rng.chance(self.habits.weighted) {
            stamp.weight = *self.rng.pick(&[2.0, 4.0, 1.5, f64::NAN, -1.0, 0.5]);
            stamp.hops = self.rng.below(10) as u32;
        }
        Some([StampBytes::new(&stamp).as_slice(), &body].concat())
    }

    /// One event of each legal topic that is not the bus's, which whoever is to get it gets.
    pub fn probe(&mut self) -> Vec<(String, Name, Vec<u8>)> {
        let topics = TOPICS
            .iter()
            .filter(|topic| super::wire::is_topic(topic) && !super::wire::is_reserved(topic));
        let mut probes = Vec::new();
        for topic in topics {
            let stamp = self.stamp(self.sequence);
            let mut datagram = StampBytes::new(&stamp).as_slice().to_vec();
            let name = self.write(&mut datagram, topic, "", 0, PROBE, 0);
            self.sequence += 1;
            probes.push(((*topic).to_owned(), name, datagram));
        }
        probes
    }

    /// Asks what came of its events.
    pub fn ping(&mut self) -> Vec<u8> {
        let mut frame = Frame {
            stamp: Some(self.stamp(self.sequence)),
            control: Some(Control::Ping(Ping {
                nonce: self.rng.next(),
            })),
            ..Frame::default()
        };
        pad(&mut frame, UNPROVEN_REQUEST_BYTES_MIN);
        frame.encode_to_vec()
    }

    fn stamp(&self, sequence: u64) -> Stamp {
        Stamp {
            sender: self.sender,
            sequence,
            dropped: self.dropped,
            ..Stamp::default()
        }
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        topic: &str,
        key: &str,
        time_unix_nano: u64,
        mark: u64,
        filler: usize,
    ) -> Name {
        let name = Name {
            maker: self.maker,
            number: self.number | mark,
        };
        self.number += 1;
        let mut payload = [name.maker.to_le_bytes(), name.number.to_le_bytes()].concat();
        payload.resize(payload.len() + filler, 7);
        let parts = EventParts {
            topic,
            payload: &payload,
            key: key.as_bytes(),
            time_unix_nano,
            attributes: &[],
        };
        write_event(out, &parts);
        name
    }
}
