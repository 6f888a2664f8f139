//! What a history came to.

use super::super::clock::{Nanos, SECOND};
use super::super::seen::Seen;
use super::Station;

/// What a history came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub hash: u64,
    pub steps: u64,
    pub simulated: Nanos,
    pub events: u64,
    pub copies: u64,
    pub datagrams: u64,
    pub lost: u64,
    pub doubled: u64,
    pub bent: u64,
    pub overflowed: u64,
    pub mishaps: u64,
    pub leases: u64,
    pub stricter: u64,
    /// Whether somebody could say what nobody said.
    pub lied: bool,
    /// What occurred.
    pub seen: Seen,
}

impl Summary {
    /// Adds another history's figures.
    pub fn add(&mut self, other: &Summary) {
        let pairs = [
            (&mut self.steps, other.steps),
            (&mut self.simulated, other.simulated),
            (&mut self.events, other.events),
            (&mut self.copies, other.copies),
            (&mut self.datagrams, other.datagrams),
            (&mut self.lost, other.lost),
            (&mut self.doubled, other.doubled),
            (&mut self.bent, other.bent),
            (&mut self.overflowed, other.overflowed),
            (&mut self.mishaps, other.mishaps),
            (&mut self.leases, other.leases),
            (&mut self.stricter, other.stricter),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
        // Whatever the order in which they end.
        self.hash = self.hash.wrapping_add(other.hash);
        self.seen.add(&other.seen);
    }

    pub(super) fn add_bus(&mut self, station: &mut Station) {
        let overflowed = station.bus.overflowed;
        let counts = station.bus.counts();
        self.events += counts.events.events;
        self.copies += counts.events.copies;
        self.leases += counts.leases.granted;
        self.overflowed += overflowed;
        self.stricter += station.oracle.stricter;
        self.seen.note_counts(counts);
        self.seen.add(&station.oracle.seen);
        self.seen.note("full receive buffer", overflowed);
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.simulated as f64 / SECOND as f64 / 3_600.0;
        write!(
            f,
            "{hours:.1} h simulated in {} steps; {} events, {} copies, {} leases; {} datagrams, of which \
             {} were lost, {} doubled, {} bent and {} found a full buffer; {} mishaps; {} frames refused \
             for padding alone; trace {:016x}",
            self.steps,
            self.events,
            self.copies,
            self.leases,
            self.datagrams,
            self.lost,
            self.doubled,
            self.bent,
            self.overflowed,
            self.mishaps,
            self.stricter,
            self.hash,
        )
    }
}
