//! Datagrams made beforehand, of which only topics, times and the stamp change: publishing is to
//! cost hardly more than the system call.

use hailmary_proto::v1;
use hailmary_proto::write::{EventParts, StampBytes, write_event};

use super::workload::{NUMBER_DIGITS, Workload};

/// Events over which a spread of payload sizes is laid out.
const SPREAD_EVENTS: usize = 64;

/// Bytes of an event's time on the wire.
const TIME_BYTES: usize = 8;

/// Where an event's changing parts are in its datagram.
#[derive(Clone, Copy, Debug)]
struct Places {
    number: usize,
    time: usize,
}

/// The events of one datagram.
#[derive(Debug, Default)]
struct Template {
    bytes: Vec<u8>,
    /// Where the stamp begins.
    events_end: usize,
    events: Vec<Places>,
}

impl Template {
    fn push(&mut self, topic: &str, payload_bytes: usize) {
        let start = self.bytes.len();
        let parts = EventParts {
            topic,
            payload: &vec![0; payload_bytes],
            time_unix_nano: u64::MAX,
            ..EventParts::default()
        };
        write_event(&mut self.bytes, &parts);
        self.events_end = self.bytes.len();
        let event = self.bytes.get(start..).unwrap_or_default();
        // The topic is the event's first field, so this is no part of the payload.
        let topic_at = event
            .windows(topic.len())
            .position(|bytes| bytes == topic.as_bytes())
            .unwrap_or_default();
        self.events.push(Places {
            number: start + topic_at + topic.len() - NUMBER_DIGITS,
            // The last field, as there are no attributes.
            time: self.events_end - TIME_BYTES,
        });
    }
}

/// All datagrams of a publisher, in turn.
#[derive(Debug)]
pub struct Templates {
    templates: Vec<Template>,
    next: usize,
    numbers: Vec<[u8; NUMBER_DIGITS]>,
    next_number: usize,
}

impl Templates {
    /// The datagrams of a workload.
    pub fn new(workload: &Workload) -> Self {
        let each = workload.events_per_datagram as usize;
        let count = match workload.payload.min == workload.payload.max {
            true => 1,
            false => SPREAD_EVENTS.div_ceil(each),
        };
        let topic = workload.topic(0);
        let template = |index: usize| {
            let mut template = Template::default();
            for event in 0..each {
                template.push(&topic, workload.payload.size(index * each + event));
            }
            template
        };
        Self {
            templates: (0..count).map(template).collect(),
            next: 0,
            numbers: workload.topic_numbers().map(digits).collect(),
            next_number: 0,
        }
    }

    /// The next datagram, whose events are of this time.
    pub fn next(&mut self, unix_nano: u64, stamp: &v1::Stamp) -> &[u8] {
        let at = self.next;
        self.next = if at + 1 < self.templates.len() {
            at + 1
        } else {
            0
        };
        let Some(template) = self.templates.get_mut(at) else {
            return &[];
        };
        template.bytes.truncate(template.events_end);
        for event in &template.events {
            put(&mut template.bytes, event.time, unix_nano.to_le_bytes());
            // A single topic is there already.
            if self.numbers.len() > 1 {
                let number = self.numbers.get(self.next_number);
                put(
                    &mut template.bytes,
                    event.number,
                    number.copied().unwrap_or_default(),
                );
                self.next_number = (self.next_number + 1) % self.numbers.len();
            }
        }
        let stamp = StampBytes::new(stamp);
        template.bytes.extend_from_slice(stamp.as_slice());
        &template.bytes
    }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..at + N) {
        place.copy_from_slice(&value);
    }
}

fn digits(number: u32) -> [u8; NUMBER_DIGITS] {
    let text = format!("{number:0NUMBER_DIGITS$}");
    text.as_bytes().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::workload::Payload;
    use super::*;
    use hailmary_proto::decode::Decoder;
    use std::time::Duration;

    #[test]
    fn datagrams_are_frames_with_topics_in_turn() {
        let workload = Workload {
            prefix: Workload::prefix("0a1b2c"),
            topics: 3,
            payload: Payload { min: 0, max: 300 },
            events_per_datagram: 2,
            publishers: 1,
            rate: None,
            duration: Duration::from_secs(1),
        };
        let mut templates = Templates::new(&workload);
        let mut decoder = Decoder::new();
        let mut sizes = Vec::new();
        for turn in 0..100_u64 {
            let stamp = v1::Stamp {
                sender: 9,
                sequence: 2 * turn,
                ..v1::Stamp::default()
            };
            let datagram = templates.next(1_000 + turn, &stamp).to_vec();
            assert!(datagram.len() <= workload.datagram_bytes_max());
            let frame = decoder.decode(&datagram).unwrap();
            assert_eq!(frame.stamp(), Some(stamp));
            assert_eq!(frame.events().len(), 2);
            for (event, number) in frame.events().zip(2 * turn..) {
                let number = u32::try_from(number % 3).unwrap();
                assert_eq!(event.topic(), workload.topic(number));
                assert_eq!(event.time_unix_nano(), 1_000 + turn);
                sizes.push(event.payload().len());
            }
        }
        sizes.sort_unstable();
        assert!(sizes[0] < 10 && sizes[sizes.len() - 1] > 290, "{sizes:?}");
    }
}
