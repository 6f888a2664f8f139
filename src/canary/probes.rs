//! The probes of one stream: which are under way, what each looks like, and when one is lost.
//!
//! No clock and no socket: times are durations since any fixed moment, handed in.

use std::collections::BTreeMap;
use std::time::Duration;

use hailmary_proto::v1::{Event, Frame, Stamp};

/// How long a probe may take. It is far more than any path of a bus takes that still works, and
/// bounds the probes under way: three hundred at the shortest interval.
pub const LATE_AFTER: Duration = Duration::from_secs(3);

/// The probes of one stream.
#[derive(Debug)]
pub struct Probes {
    /// The stream's sender id, random and never 0.
    id: u64,
    /// How many were sent so far: the next one's sequence.
    next: u64,
    /// When those were sent that are neither back nor lost, by their sequences.
    under_way: BTreeMap<u64, Duration>,
}

impl Probes {
    /// A stream with this sender id.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self {
            id,
            next: 0,
            under_way: BTreeMap::new(),
        }
    }

    /// The next probe, which is under way from now on.
    pub fn begin(&mut self, now: Duration, topic: &str, time_unix_nano: u64) -> Frame {
        let sequence = self.next;
        self.next += 1;
        self.under_way.insert(sequence, now);
        let event = Event {
            topic: topic.to_owned(),
            payload: format!("{:016x} {sequence}", self.id).into_bytes(),
            time_unix_nano,
            ..Event::default()
        };
        let stamp = Stamp {
            sender: self.id,
            sequence,
            ..Stamp::default()
        };
        Frame {
            events: vec![event],
            stamp: Some(stamp),
            ..Frame::default()
        }
    }

    /// An event has arrived: how long it took, if it is one of these probes, and that for the
    /// first time and in time.
    pub fn end(&mut self, now: Duration, payload: &[u8]) -> Option<Duration> {
        let (id, sequence) = parse(payload)?;
        if id != self.id {
            return None;
        }
        let sent = self.under_way.remove(&sequence)?;
        Some(now.saturating_sub(sent))
    }

    /// Gives up those that are late, and says how many they are.
    pub fn give_up(&mut self, now: Duration) -> u64 {
        let before = self.under_way.len();
        self.under_way
            .retain(|_, sent| now.saturating_sub(*sent) < LATE_AFTER);
        (before - self.under_way.len()) as u64
    }

    /// When the next one is to be given up.
    #[must_use]
    pub fn next_end(&self) -> Option<Duration> {
        let (_, sent) = self.under_way.first_key_value()?;
        Some(sent.saturating_add(LATE_AFTER))
    }
}

fn parse(payload: &[u8]) -> Option<(u64, u64)> {
    let (id, sequence) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
    Some((u64::from_str_radix(id, 16).ok()?, sequence.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Duration = Duration::from_secs(50);
    const STEP: Duration = Duration::from_secs(1);

    fn send(probes: &mut Probes, now: Duration) -> Vec<u8> {
        probes
            .begin(now, "_hailmary.canary.0", 1)
            .events
            .remove(0)
            .payload
    }

    #[test]
    fn a_probe_comes_back_once_and_to_its_own_stream() {
        let (mut probes, mut other) = (Probes::new(7), Probes::new(8));
        let first = send(&mut probes, T0);
        let second = send(&mut probes, T0 + STEP);
        send(&mut other, T0);
        assert_eq!(other.end(T0 + STEP, &first), None, "not its own");
        assert_eq!(
            probes.end(T0 + 2 * STEP, &second),
            Some(STEP),
            "in any order"
        );
        assert_eq!(probes.end(T0 + 2 * STEP, &first), Some(2 * STEP));
        assert_eq!(
            probes.end(T0 + 2 * STEP, &first),
            None,
            "doubled on the way"
        );
        assert_eq!(
            (probes.next_end(), other.next_end()),
            (None, Some(T0 + LATE_AFTER))
        );
    }

    #[test]
    fn what_is_late_is_lost_once_and_for_good() {
        let mut probes = Probes::new(7);
        let first = send(&mut probes, T0);
        let second = send(&mut probes, T0 + STEP);
        let just_before = T0 + LATE_AFTER - Duration::from_nanos(1);
        assert_eq!(probes.give_up(just_before), 0);
        assert_eq!(probes.next_end(), Some(T0 + LATE_AFTER));
        assert_eq!(probes.give_up(T0 + LATE_AFTER), 1);
        assert_eq!(probes.give_up(T0 + LATE_AFTER), 0);
        assert_eq!(probes.end(T0 + LATE_AFTER, &first), None, "later than late");
        assert!(probes.end(T0 + LATE_AFTER, &second).is_some());
        assert_eq!(probes.next_end(), None, "nothing to wake up for");
    }

    #[test]
    fn what_is_no_probe_is_none() {
        let mut probes = Probes::new(7);
        let probe = send(&mut probes, T0);
        let broken = [
            &b""[..],
            b" ",
            b"7",
            b"7 ",
            b"7 1",
            b"7 0 0",
            b"7 -0",
            b"7 \xff",
            b"7 99999999999999999999",
        ];
        for payload in broken {
            assert_eq!(probes.end(T0, payload), None, "{payload:?}");
        }
        assert_eq!(probes.end(T0, &probe), Some(Duration::ZERO));
    }

    #[test]
    fn probes_are_a_flow_without_gaps() {
        let mut probes = Probes::new(7);
        for sequence in 0..3 {
            let stamp = probes.begin(T0, "_hailmary.canary.0", 1).stamp.unwrap();
            assert_eq!(
                (stamp.sender, stamp.sequence, stamp.dropped),
                (7, sequence, 0)
            );
        }
    }
}
