//! When what is due: an absolute schedule, so that being late once delays nothing after it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::workload::Workload;

/// The shortest sleep: faster publishers would wake up for single datagrams and take the time
/// of those that are measured. What becomes due meanwhile goes out together.
const SLEEP_MIN: Duration = Duration::from_micros(50);

const PS_PER_NS: u128 = 1_000;

/// The wall clock in ns: one that all processes of this machine read alike.
pub fn unix_nano() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    nanos(since)
}

/// A time in whole ns.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// When each datagram of one publisher is due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start_unix_nano: u64,
    /// In ps, so that an hour of the fastest rate ends on time.
    gap_ps: u64,
    datagrams: u64,
}

impl Schedule {
    /// The part of a paced workload that the publisher `index` has, from `start` on: datagrams of
    /// all publishers are evenly apart.
    pub fn new(workload: &Workload, rate: f64, index: u32, start_unix_nano: u64) -> Self {
        let publishers = u64::from(workload.publishers);
        let events = f64::from(workload.events_per_datagram) * f64::from(workload.publishers);
        let gap_ps = whole(events / rate * 1e12).max(1);
        let phase = u128::from(gap_ps) * u128::from(index) / u128::from(publishers) / PS_PER_NS;
        let duration_ps = workload.duration.as_nanos() * PS_PER_NS;
        Self {
            start_unix_nano: start_unix_nano.saturating_add(clamp(phase)),
            gap_ps,
            datagrams: clamp(duration_ps.div_ceil(gap_ps.into())),
        }
    }

    /// When the datagram with this number is due, in ns of Unix time; none after the last.
    pub fn due(&self, number: u64) -> Option<u64> {
        let after = u128::from(number) * u128::from(self.gap_ps) / PS_PER_NS;
        (number < self.datagrams).then(|| self.start_unix_nano.saturating_add(clamp(after)))
    }
}

/// Waits till a moment that is not reached yet.
pub fn sleep_till(due_unix_nano: u64, now_unix_nano: u64) {
    let wait = Duration::from_nanos(due_unix_nano.saturating_sub(now_unix_nano));
    std::thread::sleep(wait.max(SLEEP_MIN));
}

/// Has the kernel wake this process when it is to and not up to 50 µs later (proc(5),
/// `timerslack_ns`). Where that is not to be had, sleeps end late, which the report tells.
pub fn wake_on_time() {
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
}

fn clamp(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what is past the largest becomes the largest; none is negative"
)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::super::workload::Payload;
    use super::*;

    fn workload(events_per_datagram: u32, publishers: u32, seconds: u64) -> Workload {
        Workload {
            prefix: String::new(),
            topics: 1,
            payload: Payload { min: 0, max: 0 },
            events_per_datagram,
            publishers,
            rate: None,
            duration: Duration::from_secs(seconds),
        }
    }

    fn count(schedule: &Schedule) -> u64 {
        (0..).take_while(|k| schedule.due(*k).is_some()).count() as u64
    }

    #[test]
    fn datagrams_are_evenly_apart_over_all_publishers() {
        let mut due: Vec<_> = (0..4)
            .flat_map(|index| {
                let schedule = Schedule::new(&workload(5, 4, 1), 1_000.0, index, 100);
                assert_eq!(count(&schedule), 50);
                (0..50).map(move |k| schedule.due(k).unwrap())
            })
            .collect();
        due.sort_unstable();
        let expected: Vec<u64> = (0..200).map(|k| 100 + k * 5_000_000).collect();
        assert_eq!(due, expected);
    }

    #[test]
    fn odd_and_extreme_rates_keep_their_time() {
        let hour = workload(1, 1, 3_600);
        let third = Schedule::new(&hour, 300_000.0, 0, 0);
        let last = third.datagrams - 1;
        let off = third.due(last).unwrap().abs_diff(3_600_000_000_000);
        assert!(off < 1_000_000, "{off} ns");
        let rare = Schedule::new(&hour, 1e-300, 0, 7);
        assert_eq!((rare.due(0), rare.due(1)), (Some(7), None));
        let fast = Schedule::new(&workload(1, 1, 1), 1e9, 0, 0);
        assert_eq!(fast.datagrams, 1_000_000_000);
    }
}
