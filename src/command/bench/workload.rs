//! What is published: sizes, topics, rate and time, checked against what a datagram holds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hailmary_proto::write::{
    DATAGRAM_BYTES_MAX, EVENT_BYTES_MAX, EventParts, STAMP_BYTES_MAX, event_bytes,
};
use serde::{Deserialize, Serialize};

/// Topics at most: far more than a bus remembers the subscribers of.
pub const TOPICS_MAX: u32 = 100_000;

/// Publishers at most: each is a process, and a few load any bus.
pub const PUBLISHERS_MAX: u32 = 64;

/// Subscribers at most: so many names by lease have a series of their own in the metrics.
pub const SUBSCRIBERS_MAX: u32 = 256;

/// Events of one datagram at most: as many of the smallest as a datagram holds.
pub const EVENTS_PER_DATAGRAM_MAX: u32 = 2_000;

/// The shortest run, in seconds: what is less tells of nothing but the start.
pub const DURATION_S_MIN: f64 = 0.01;

/// The longest run, in seconds.
pub const DURATION_S_MAX: f64 = 3_600.0;

/// Sizes of payloads, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The smallest.
    pub min: usize,
    /// The largest.
    pub max: usize,
}

impl Payload {
    /// The size of the payload with this number: evenly spread, the same in every run.
    pub fn size(self, number: usize) -> usize {
        /// 2^64 by the golden ratio: its multiples fall evenly however many there are.
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let fraction = u128::from((number as u64).wrapping_mul(STEP));
        let sizes = (self.max - self.min) as u128 + 1;
        let above = usize::try_from((fraction * sizes) >> 64).unwrap_or_default();
        self.min + above
    }
}

impl FromStr for Payload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        match (min.parse(), max.parse()) {
            (Ok(min), Ok(max)) if min <= max && max <= EVENT_BYTES_MAX => Ok(Self { min, max }),
            _ => Err(format!(
                "a payload is BYTES or MIN-MAX, of 0 to {EVENT_BYTES_MAX} bytes"
            )),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{}-{}", self.min, self.max),
        }
    }
}

/// What all publishers and subscribers do together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// What is common to the run's topics, and to no other's.
    pub topic_prefix: String,
    /// How many topics take turns.
    pub topics: u32,
    /// How large payloads are.
    pub payload_bytes: Payload,
    /// How many events are in a datagram.
    pub events_per_datagram: u32,
    /// How many publishers share the rate.
    pub publishers: u32,
    /// How many subscribers get every event.
    pub fan_out: u32,
    /// Events a second of all publishers together. `None`: as many as they can.
    pub events_per_second: Option<f64>,
    /// How long it lasts.
    pub duration_seconds: f64,
}

impl Workload {
    /// A topic by its number.
    pub fn topic(&self, number: u32) -> String {
        format!("{}.{number}", self.topic_prefix)
    }

    /// The pattern of all topics.
    pub fn pattern(&self) -> String {
        format!("{}.>", self.topic_prefix)
    }

    /// How long it lasts.
    pub fn duration(&self) -> Duration {
        Duration::try_from_secs_f64(self.duration_seconds).unwrap_or(Duration::MAX)
    }

    /// Bytes of the largest datagram.
    pub fn datagram_bytes_max(&self) -> usize {
        let event = event_bytes(&EventParts {
            topic: &self.topic(self.topics.saturating_sub(1)),
            payload: &vec![0; self.payload_bytes.max],
            time_unix_nano: u64::MAX,
            ..EventParts::default()
        });
        event * self.events_per_datagram as usize + STAMP_BYTES_MAX
    }

    /// Says what is too much for a datagram.
    pub fn check(&self) -> Result<(), String> {
        match self.datagram_bytes_max() {
            0..=DATAGRAM_BYTES_MAX => Ok(()),
            bytes => Err(format!(
                "--payload {} with --events-per-datagram {} makes datagrams of {bytes} bytes: \
                 the most is {DATAGRAM_BYTES_MAX}",
                self.payload_bytes, self.events_per_datagram
            )),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "topics {}, payload {} B, events per datagram {}",
            self.topics, self.payload_bytes, self.events_per_datagram
        )?;
        write!(
            f,
            "publishers {}, fan-out {}, for {} s, ",
            self.publishers, self.fan_out, self.duration_seconds
        )?;
        match self.events_per_second {
            Some(rate) => write!(f, "at {rate} events/s"),
            None => write!(f, "as many as can be"),
        }
    }
}

/// One event a datagram from one publisher to one subscriber, for a second.
#[cfg(test)]
pub fn example() -> Workload {
    Workload {
        topic_prefix: "bench.0a1b2c".to_owned(),
        topics: 1,
        payload_bytes: Payload { min: 0, max: 0 },
        events_per_datagram: 1,
        publishers: 1,
        fan_out: 1,
        events_per_second: None,
        duration_seconds: 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(text: &str) -> Result<Payload, String> {
        text.parse()
    }

    #[test]
    fn payloads_are_sizes_or_spreads() {
        assert_eq!(payload("128"), Ok(Payload { min: 128, max: 128 }));
        assert_eq!(payload("0-9"), Ok(Payload { min: 0, max: 9 }));
        for wrong in ["", "-", "9-0", "1-", "-1", "x", "1.5", "65507", "1-70000"] {
            assert!(payload(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_spread_reaches_both_its_ends_evenly() {
        let spread = Payload { min: 10, max: 19 };
        let mut seen = [0; 10];
        (0..1_000).for_each(|number| seen[spread.size(number) - 10] += 1);
        assert!(seen.iter().all(|n| (95..=105).contains(n)), "{seen:?}");
        assert_eq!(Payload { min: 7, max: 7 }.size(3), 7);
    }

    #[test]
    fn a_datagram_too_large_is_told() {
        let mut workload = example();
        workload.payload_bytes = Payload { min: 0, max: 128 };
        workload.events_per_datagram = 400;
        assert!(workload.datagram_bytes_max() <= DATAGRAM_BYTES_MAX);
        assert_eq!(workload.check(), Ok(()));
        workload.events_per_datagram = 420;
        assert!(workload.check().unwrap_err().contains("65507"));
    }
}
