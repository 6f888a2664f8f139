//! A publisher, and a bus that may be there.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::time::{Duration, UNIX_EPOCH};

use hailmary_client::{BUS_VARIABLE, Event, Publisher, PublisherStats};
use hailmary_proto::v1;
use rustix::process::Rlimit;

use crate::bus::Sockets;
use crate::cases::{PublisherCase, PublisherStep, Row};
use crate::process;

const PAYLOAD: &[u8] = b"payload";

/// No datagram takes it.
static TOO_LARGE: [u8; 65_507] = [0; 65_507];

pub(crate) fn run(case: &PublisherCase, over: &str) {
    let mut world = World::new(over);
    case.steps.iter().for_each(|step| world.take(step));
    world.read();
    case.stats.check(&world.counts());
    check_frames(&world.frames, &case.frames);
}

struct World {
    /// What was open before the publisher was.
    others: BTreeSet<RawFd>,
    sockets: Sockets,
    publisher: Publisher,
    offered: u64,
    frames: Vec<v1::Frame>,
    /// Closed under the publisher, and now a file's.
    replaced: Option<RawFd>,
    /// How many descriptors the process may have, while it may open none.
    allowed: Option<Rlimit>,
}

impl World {
    fn new(over: &str) -> Self {
        let sockets = Sockets::new(over);
        let others = process::open_sockets();
        Self {
            publisher: Publisher::connect(&sockets.address()).unwrap(),
            others,
            sockets,
            offered: 0,
            frames: vec![],
            replaced: None,
            allowed: None,
        }
    }

    fn take(&mut self, step: &PublisherStep) {
        match step {
            PublisherStep::BusStarts => self.sockets.start(),
            PublisherStep::BusStops => self.sockets.stop(),
            PublisherStep::BusIsKilled => self.sockets.kill(),
            PublisherStep::BusRestarts => {
                self.sockets.stop();
                self.sockets.start();
            }
            PublisherStep::BusMoves => self.sockets.relocate(),
            PublisherStep::BusFull => self.sockets.fill(),
            PublisherStep::BusReads => self.read(),
            PublisherStep::Stats { are } => are.check(&self.counts()),
            PublisherStep::CloseDescriptor => process::close(self.descriptor()),
            PublisherStep::ReplaceDescriptor => {
                let descriptor = self.descriptor();
                process::replace(descriptor);
                self.replaced = Some(descriptor);
            }
            PublisherStep::NoDescriptors => self.begin_without_descriptors(),
            PublisherStep::DescriptorsAgain => self
                .allowed
                .take()
                .into_iter()
                .for_each(process::allow_again),
            step => self.publish(step),
        }
    }

    /// `connect` would return the error; `from_env` takes it as the network's.
    fn begin_without_descriptors(&mut self) {
        process::set_variable(BUS_VARIABLE, &self.sockets.address().to_string());
        self.allowed = Some(process::forbid_descriptors());
        self.publisher = Publisher::from_env().unwrap();
        self.offered = 0;
    }

    fn publish(&mut self, step: &PublisherStep) {
        match step {
            PublisherStep::Publish {
                events,
                wall_clock_unix_nano,
            } => {
                let event = Event::new("a.b", PAYLOAD);
                let event = match wall_clock_unix_nano {
                    Some(nanos) => {
                        event.time(UNIX_EPOCH + Duration::from_nanos(nanos.parse().unwrap()))
                    }
                    None => event,
                };
                (0..*events).for_each(|_| self.offer(&event));
            }
            PublisherStep::PublishInvalid { topic } => self.offer(&Event::new(topic, "")),
            PublisherStep::PublishTooLarge => self.offer(&Event::new("a.b", &TOO_LARGE)),
            PublisherStep::Batch {
                events,
                payload_bytes,
                invalid,
                too_large,
            } => self.batch(*events, *payload_bytes, *invalid, *too_large),
            PublisherStep::AnotherPublisher { events } => {
                let other = Publisher::connect(&self.sockets.address()).unwrap();
                (0..*events).for_each(|_| other.publish("a.b", PAYLOAD));
            }
            PublisherStep::ForkAndPublish { events, stats } => process::in_child(|| {
                self.offered = 0;
                (0..*events).for_each(|_| self.offer(&Event::new("a.b", PAYLOAD)));
                stats.check(&self.counts());
            }),
            other => panic!("{other:?} is not for this client: say so in the case"),
        }
    }

    fn offer(&mut self, event: &Event<'_>) {
        self.publisher.publish_event(event);
        self.offered += 1;
    }

    fn batch(&mut self, events: u64, payload_bytes: usize, invalid: u64, too_large: u64) {
        let payload = vec![0; payload_bytes];
        let mut batch = self.publisher.batch();
        for (count, topic, payload) in [
            (events, "a.b", payload.as_slice()),
            (invalid, "a..b", b""),
            (too_large, "a.b", &TOO_LARGE),
        ] {
            (0..count).for_each(|_| batch.push(&Event::new(topic, payload)));
        }
        self.offered += events + invalid + too_large;
    }

    fn read(&mut self) {
        let received = std::iter::from_fn(|| self.sockets.read());
        self.frames.extend(received.map(|(frame, _)| frame));
    }

    /// All counts, and the law that holds for them whatever happens.
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let stats = self.publisher.stats();
        assert_eq!(stats.sent + stats.dropped(), self.offered);
        assert_eq!(stats.offered(), self.offered);
        counts_of(&stats)
    }

    /// The publisher's socket: no other was opened since.
    fn descriptor(&self) -> RawFd {
        let ours = self.sockets.descriptor();
        let mut opened = process::open_sockets();
        opened.retain(|&one| !self.others.contains(&one) && Some(one) != ours);
        assert_eq!(opened.len(), 1);
        opened.pop_first().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Fails if the publisher closed what was no longer its own.
        self.replaced.take().into_iter().for_each(process::close);
    }
}

pub(crate) fn counts_of(stats: &PublisherStats) -> Vec<(&'static str, u64)> {
    vec![
        ("sent", stats.sent),
        ("invalid", stats.invalid),
        ("too_large", stats.too_large),
        ("would_block", stats.would_block),
        ("no_buffer", stats.no_buffer),
        ("refused", stats.refused),
        ("unreachable", stats.unreachable),
        ("failed", stats.failed),
        ("bounced", stats.bounced),
    ]
}

/// What the bus got, in order, and whose it is.
fn check_frames(frames: &[v1::Frame], wanted: &[Row]) {
    let mut senders: Vec<u64> = vec![];
    assert_eq!(frames.len(), wanted.len(), "{frames:?}");
    for (frame, row) in frames.iter().zip(wanted) {
        let stamp = frame.stamp.unwrap();
        assert_ne!(stamp.sender, 0);
        if !senders.contains(&stamp.sender) {
            senders.push(stamp.sender);
        }
        let letter = senders
            .iter()
            .zip('a'..)
            .find(|(sender, _)| **sender == stamp.sender);
        let (sender, sequence, dropped, events) = match row {
            Row::Timed(sender, sequence, dropped, events, time) => {
                assert_eq!(frame.events[0].time_unix_nano.to_string(), *time);
                (sender, sequence, dropped, events)
            }
            Row::Plain(sender, sequence, dropped, events) => (sender, sequence, dropped, events),
        };
        assert_eq!(letter.unwrap().1, *sender, "{frames:?}");
        assert!(sequence.is_met_by(stamp.sequence), "{row:?}: {frames:?}");
        assert!(dropped.is_met_by(stamp.dropped), "{row:?}: {frames:?}");
        assert!(
            events.is_met_by(frame.events.len() as u64),
            "{row:?}: {frames:?}"
        );
    }
}
