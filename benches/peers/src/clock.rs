//! Time that all processes of one machine read alike, and waiting for it.

use std::num::NonZeroU64;
use std::time::Duration;

use rustix::thread::set_current_timer_slack;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The shortest sleep. A faster publisher would wake up for every single event and take the time
/// of those that are measured: what becomes due meanwhile goes out one write behind the other.
const SLEEP_MIN: Duration = Duration::from_micros(50);

/// ns of the monotonic clock.
#[inline]
pub fn now_nano() -> u64 {
    nanos(clock_gettime(ClockId::Monotonic))
}

/// ns of CPU that this process has used.
pub fn own_cpu_nano() -> u64 {
    nanos(clock_gettime(ClockId::ProcessCPUTime))
}

/// Sleeps at least till then.
pub fn sleep_till(due_nano: u64, now_nano: u64) {
    let wait = Duration::from_nanos(due_nano.saturating_sub(now_nano));
    std::thread::sleep(wait.max(SLEEP_MIN));
}

/// Lets this thread's sleeps end on time, and not up to 50 µs late as by default. Where the
/// system refuses, they end late for all systems alike.
pub fn wake_on_time() {
    let _ = set_current_timer_slack(NonZeroU64::new(1));
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1_000_000_000 + nanos
}
