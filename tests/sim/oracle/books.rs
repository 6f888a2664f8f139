//! What a bus must have counted.

use hailmary::bus::{CopyDrop, FrameDrop};
use hailmary::ledger::Counts;

/// What must be counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Books {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) dropped_frames: [u64; FrameDrop::ALL.len()],
    pub(super) events: u64,
    pub(super) bad_topic: u64,
    pub(super) not_allowed: u64,
    pub(super) rate_limit: u64,
    pub(super) stale: u64,
    pub(super) unmatched: u64,
    pub(super) matched: u64,
    pub(super) copies: u64,
    pub(super) granted: u64,
    pub(super) expired: u64,
    pub(super) revoked: u64,
    pub(super) challenges: u64,
    pub(super) unanswered: u64,
    pub(super) refusals: [u64; 6],
    pub(super) series: Vec<SeriesBooks>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SeriesBooks {
    pub(super) events: u64,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) dropped: [u64; CopyDrop::ALL.len()],
    pub(super) lost: u64,
    pub(super) dropped_there: u64,
}

impl Books {
    pub(super) fn series(&mut self, index: usize) -> &mut SeriesBooks {
        if self.series.len() <= index {
            self.series.resize(index + 1, SeriesBooks::default());
        }
        &mut self.series[index]
    }

    /// The same out of the bus's ledger.
    pub(super) fn of(counts: &Counts) -> Self {
        let (listener, events) = (counts.listeners[0], &counts.events);
        let series = counts.series.iter().map(|series| SeriesBooks {
            events: series.events,
            frames: series.frames,
            bytes: series.bytes,
            dropped: series.dropped,
            lost: series.reported.lost,
            dropped_there: series.reported.dropped,
        });
        Self {
            frames: listener.frames,
            bytes: listener.bytes,
            dropped_frames: counts.dropped_frames,
            events: events.events,
            bad_topic: events.bad_topic,
            not_allowed: events.not_allowed,
            rate_limit: events.rate_limit,
            stale: events.stale,
            unmatched: events.unmatched,
            matched: events.matched,
            copies: events.copies,
            granted: counts.leases.granted,
            expired: counts.leases.expired,
            revoked: counts.leases.revoked,
            challenges: counts.leases.challenges,
            unanswered: counts.leases.unanswered,
            refusals: counts.leases.refusals,
            series: series.collect(),
        }
    }

    pub(super) fn trimmed(mut self) -> Self {
        while self.series.last() == Some(&SeriesBooks::default()) {
            self.series.pop();
        }
        self
    }
}
