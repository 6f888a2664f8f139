//! What happened at least once. A simulator that can no longer bring something about proves nothing
//! of it and says nothing either, so a run of enough seeds fails where a kind of fault or outcome
//! never occurred.

use std::collections::BTreeMap;

use hailmary::bus::{CopyDrop, FrameDrop};
use hailmary::ledger::Counts;
use hailmary_proto::v1::refusal::Reason;

/// How often each kind occurred. What is here with 0 could have, and did not.
#[derive(Clone, Debug, Default)]
pub struct Seen(BTreeMap<String, u64>);

impl Seen {
    /// Something of this kind occurred so often.
    pub fn note(&mut self, kind: &str, count: u64) {
        match self.0.get_mut(kind) {
            Some(sum) => *sum += count,
            None => drop(self.0.insert(kind.to_owned(), count)),
        }
    }

    /// Everything that another history saw.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            self.note(kind, *count);
        }
    }

    /// Everything that a bus counted: each reason and each kind that the core has.
    pub fn note_counts(&mut self, counts: &Counts) {
        for reason in FrameDrop::ALL {
            let kind = format!("frame dropped: {}", reason.label());
            self.note(&kind, counts.dropped_frames[reason as usize]);
        }
        let series = &counts.series;
        for reason in CopyDrop::ALL {
            let dropped = series.iter().map(|series| series.dropped[reason as usize]);
            self.note(&format!("copy dropped: {}", reason.label()), dropped.sum());
        }
        let reasons = [
            Reason::NotAllowed,
            Reason::BadTopic,
            Reason::BadRequest,
            Reason::Full,
            Reason::UnknownLease,
        ];
        for reason in reasons {
            let kind = format!("refused: {}", reason.as_str_name());
            self.note(&kind, counts.leases.refusals[reason as usize]);
        }
        let (events, leases) = (&counts.events, &counts.leases);
        for (kind, count) in [
            ("event dropped: bad_topic", events.bad_topic),
            ("event dropped: not_allowed", events.not_allowed),
            ("event dropped: rate_limit", events.rate_limit),
            ("event dropped: stale", events.stale),
            ("event unmatched", events.unmatched),
            ("event matched", events.matched),
            ("publisher's loss counted", events.lost),
            ("publisher's drop counted", events.sender_dropped),
            ("publisher's duplicate counted", events.duplicates),
            ("copy sent", series.iter().map(|series| series.events).sum()),
            ("lease granted", leases.granted),
            ("lease expired", leases.expired),
            ("lease revoked", leases.revoked),
            ("challenge", leases.challenges),
            ("request unanswered", leases.unanswered),
            (
                "subscriber's loss reported",
                series.iter().map(|series| series.reported.lost).sum(),
            ),
            (
                "subscriber's drop reported",
                series.iter().map(|series| series.reported.dropped).sum(),
            ),
        ] {
            self.note(kind, count);
        }
    }

    /// How many kinds there are.
    pub fn kinds(&self) -> usize {
        self.0.len()
    }

    /// What never occurred.
    pub fn missing(&self) -> Vec<&str> {
        let none = self.0.iter().filter(|(_, count)| **count == 0);
        none.map(|(kind, _)| kind.as_str()).collect()
    }
}
