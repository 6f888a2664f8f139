//! Looking for a bus that changed its address, by its name.
//!
//! Owns when the name is looked up again and the thread that waits for the name
//! server, which ends with its answer. One look-up at a time; a subscriber that is
//! dropped leaves it to end by itself.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::address::{Address, Target};
use crate::lease::RETRY_MAX;

/// How long the bus has been silent before it is looked for elsewhere: two requests
/// at the slowest pace.
const SILENCE_MIN: Duration = RETRY_MAX.saturating_mul(2);

/// The shortest time between two look-ups: a name server is others' as well.
const INTERVAL: Duration = Duration::from_secs(10);

type LookUp = fn(&Address, &Target) -> Option<Target>;

#[derive(Debug)]
pub(crate) struct Search {
    address: Address,
    target: Target,
    due: Duration,
    /// What the thread under way, which holds the other half, will have found.
    pending: Option<Arc<OnceLock<Option<Target>>>>,
    look_up: LookUp,
}

impl Search {
    pub(crate) fn new(address: Address, target: Target) -> Self {
        Self {
            address,
            target,
            due: Duration::ZERO,
            pending: None,
            look_up: Target::resolve_another,
        }
    }

    /// Where to look for the bus from now on, if elsewhere. To be called from time to
    /// time, with the moment since which a bus that is lost has been silent.
    pub(crate) fn poll(&mut self, now: Duration, silent_since: Option<Duration>) -> Option<Target> {
        let Some(silent_since) = silent_since else {
            self.pending = None;
            return None;
        };
        if let Some(pending) = &self.pending {
            let is_under_way = Arc::strong_count(pending) > 1;
            let found = pending.get().cloned().flatten();
            if found.is_some() || !is_under_way {
                self.pending = None;
            }
            return found;
        }
        if self.address.is_name() && now >= self.due.max(silent_since.saturating_add(SILENCE_MIN)) {
            self.due = now.saturating_add(INTERVAL);
            self.begin();
        }
        None
    }

    /// Where the bus is, as far as is known.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The bus is looked for there now.
    pub(crate) fn go_to(&mut self, target: Target) {
        self.target = target;
    }

    /// Where there is no thread to be had, it is tried again at the next time.
    fn begin(&mut self) {
        let place = Arc::new(OnceLock::new());
        let pending = Arc::clone(&place);
        let (address, target) = (self.address.clone(), self.target.clone());
        let look_up = self.look_up;
        let thread = std::thread::Builder::new().name("hailmary-lookup".to_owned());
        let spawned = thread.spawn(move || {
            // The place is this thread's alone to fill.
            let _ = place.set(look_up(&address, &target));
        });
        self.pending = spawned.is_ok().then_some(pending);
    }

    /// For tests: asks this instead of a name server.
    #[cfg(test)]
    pub(crate) fn look_up_by(&mut self, look_up: LookUp) {
        self.look_up = look_up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved() -> Target {
        Target::Udp("127.0.0.1:2".parse().unwrap())
    }

    fn search(address: &str) -> Search {
        let address: Address = address.parse().unwrap();
        let target = Target::Udp("127.0.0.1:1".parse().unwrap());
        let mut search = Search::new(address, target);
        search.look_up_by(|_, present| (*present != moved()).then(moved));
        search
    }

    /// What comes of the look-up that is under way.
    fn answer(search: &mut Search, now: Duration) -> Option<Target> {
        while search.pending.is_some() {
            let found = search.poll(now, Some(Duration::ZERO));
            if found.is_some() {
                return found;
            }
            std::thread::yield_now();
        }
        None
    }

    #[test]
    fn looks_for_a_named_bus_once_it_is_lost_and_silent() {
        let mut search = search("localhost:1");
        let never = Duration::from_secs(1 << 20);
        assert_eq!(search.poll(never, None), None);
        let brief = SILENCE_MIN - Duration::from_nanos(1);
        assert_eq!(search.poll(brief, Some(Duration::ZERO)), None);
        assert!(search.pending.is_none());

        assert_eq!(search.poll(SILENCE_MIN, Some(Duration::ZERO)), None);
        assert_eq!(answer(&mut search, SILENCE_MIN), Some(moved()));
        search.go_to(moved());
        let soon = SILENCE_MIN + INTERVAL - Duration::from_nanos(1);
        assert_eq!(search.poll(soon, Some(Duration::ZERO)), None);
        assert!(search.pending.is_none());
        search.poll(SILENCE_MIN + INTERVAL, Some(Duration::ZERO));
        assert!(search.pending.is_some());
        assert_eq!(answer(&mut search, soon), None, "it is there already");
    }

    #[test]
    fn a_bus_without_a_name_is_where_it_is() {
        for address in ["127.0.0.1:1", "[::1]:1", "unix:///bus"] {
            let mut search = search(address);
            search.poll(Duration::from_secs(60), Some(Duration::ZERO));
            assert!(search.pending.is_none(), "{address}");
        }
    }
}
