//! When what is due: an absolute schedule, so that being late once delays nothing after it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::workload::Workload;

/// The shortest wait: publishers that woke up for each datagram would take the time of those
/// that are measured. What becomes due meanwhile goes out together.
const WAIT_MIN: Duration = Duration::from_micros(50);

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
    /// The part of a workload that the publisher `index` has, from `start` on: datagrams of all
    /// publishers are evenly apart. None where there is no rate to keep.
    pub fn new(workload: &Workload, index: u32, start_unix_nano: u64) -> Option<Self> {
        let datagrams_per_second =
            workload.events_per_second? / f64::from(workload.events_per_datagram);
        let gap_ps = whole(f64::from(workload.publishers) / datagrams_per_second * 1e12).max(1);
        let phase = u128::from(gap_ps) * u128::from(index) / u128::from(workload.publishers);
        let duration_ps = workload.duration().as_nanos() * PS_PER_NS;
        Some(Self {
            start_unix_nano: start_unix_nano.saturating_add(clamp(phase / PS_PER_NS)),
            gap_ps,
            datagrams: clamp(duration_ps.div_ceil(gap_ps.into())),
        })
    }

    /// How many there are.
    pub fn datagrams(&self) -> u64 {
        self.datagrams
    }

    /// When the datagram with this number is due, in ns of Unix time.
    pub fn due(&self, number: u64) -> u64 {
        let after = u128::from(number) * u128::from(self.gap_ps) / PS_PER_NS;
        self.start_unix_nano.saturating_add(clamp(after))
    }

    /// When one more would be due.
    pub fn end(&self) -> u64 {
        self.due(self.datagrams)
    }
}

/// Waits till a moment that is not reached yet.
pub fn sleep_till(due_unix_nano: u64, now_unix_nano: u64) {
    let wait = Duration::from_nanos(due_unix_nano.saturating_sub(now_unix_nano));
    std::thread::sleep(wait.max(WAIT_MIN));
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
    use super::super::workload::example;
    use super::*;

    fn schedule(workload: &Workload, index: u32) -> Schedule {
        Schedule::new(workload, index, 100).unwrap()
    }

    #[test]
    fn datagrams_are_evenly_apart_over_all_publishers() {
        let workload = Workload {
            events_per_datagram: 5,
            publishers: 4,
            events_per_second: Some(1_000.0),
            ..example()
        };
        let mut due = Vec::new();
        for index in 0..4 {
            let schedule = schedule(&workload, index);
            due.extend((0..schedule.datagrams()).map(|number| schedule.due(number)));
        }
        due.sort_unstable();
        let expected: Vec<u64> = (0..200).map(|number| 100 + number * 5_000_000).collect();
        assert_eq!(due, expected);
    }

    #[test]
    fn odd_and_extreme_rates_keep_their_time() {
        let at = |rate, seconds| {
            let workload = Workload {
                events_per_second: Some(rate),
                duration_seconds: seconds,
                ..example()
            };
            schedule(&workload, 0)
        };
        let off = at(300_000.0, 3_600.0).end().abs_diff(3_600_000_000_100);
        assert!(off < 1_000_000, "{off} ns");
        assert_eq!(at(1e-300, 3_600.0).datagrams(), 1);
        assert_eq!(at(1e9, 1.0).datagrams(), 1_000_000_000);
        assert!(Schedule::new(&example(), 0, 0).is_none());
    }
}
