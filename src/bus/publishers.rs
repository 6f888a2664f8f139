//! What was lost before the bus, told by the publishers' stamps.
//!
//! A flow is followed from the first frame that is seen of it: what went before is not known to
//! be lost, for the bus may have restarted. A frame that comes late fills its own gap in
//! `received` but was counted as lost when it was missed. Whoever forges a sender's stamp can
//! spoil that sender's counts and nobody else's; a jump too far to be true begins a flow anew.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use hailmary_proto::v1::Stamp;

use super::limits::PUBLISHER_FLOWS_MAX;

/// Events that a flow may miss between two frames. A larger jump is no loss but another flow.
const GAP_MAX: u64 = 1 << 32;

/// What came and went on one publisher's flow since it was first seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherFlow {
    /// Events received.
    pub received: u64,
    /// Events lost between the publisher and the bus.
    pub lost: u64,
    next: u64,
    dropped: u64,
}

/// What one frame told of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Events lost on the way.
    pub lost: u64,
    /// Events that the publisher itself dropped.
    pub sender_dropped: u64,
}

/// The flows of the publishers that were heard of last.
///
/// Two tables: one fills while the other is forgotten as a whole, and whoever speaks moves into
/// the one that fills. So the longest silent go first, at no cost for a frame.
#[derive(Debug)]
pub struct Publishers {
    recent: HashMap<u64, PublisherFlow, FixedState>,
    older: HashMap<u64, PublisherFlow, FixedState>,
}

impl Publishers {
    /// Nobody heard yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            recent: HashMap::with_hasher(FixedState::with_seed(seed)),
            older: HashMap::with_hasher(FixedState::with_seed(seed)),
        }
    }

    /// Notes a frame with so many events and says what is missing before it.
    pub fn observe(&mut self, stamp: &Stamp, events: u64) -> Missed {
        if stamp.sender == 0 {
            return Missed::default();
        }
        let flow = self.flow(stamp);
        let gap = stamp.sequence.saturating_sub(flow.next);
        if gap > GAP_MAX {
            *flow = PublisherFlow::starting(stamp);
            return flow.advance(stamp, events, Missed::default());
        }
        let sender_dropped = stamp.dropped.saturating_sub(flow.dropped).min(gap);
        let missed = Missed {
            lost: gap - sender_dropped,
            sender_dropped,
        };
        flow.advance(stamp, events, missed)
    }

    /// What is known of a publisher.
    #[must_use]
    pub fn get(&self, sender: u64) -> Option<PublisherFlow> {
        self.recent
            .get(&sender)
            .or_else(|| self.older.get(&sender))
            .copied()
    }

    fn flow(&mut self, stamp: &Stamp) -> &mut PublisherFlow {
        if !self.recent.contains_key(&stamp.sender) && self.recent.len() >= PUBLISHER_FLOWS_MAX / 2
        {
            std::mem::swap(&mut self.recent, &mut self.older);
            self.recent.clear();
        }
        self.recent.entry(stamp.sender).or_insert_with(|| {
            let known = self.older.remove(&stamp.sender);
            known.unwrap_or_else(|| PublisherFlow::starting(stamp))
        })
    }
}

impl PublisherFlow {
    /// Both together, of the same publisher where two data threads heard it.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            lost: self.lost + other.lost,
            ..self
        }
    }

    fn starting(stamp: &Stamp) -> Self {
        Self {
            next: stamp.sequence,
            dropped: stamp.dropped,
            ..Self::default()
        }
    }

    fn advance(&mut self, stamp: &Stamp, events: u64, missed: Missed) -> Missed {
        self.received += events;
        self.lost += missed.lost;
        self.next = self.next.max(stamp.sequence.saturating_add(events));
        self.dropped = self.dropped.max(stamp.dropped);
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(sender: u64, sequence: u64, dropped: u64) -> Stamp {
        Stamp {
            sender,
            sequence,
            dropped,
            ..Stamp::default()
        }
    }

    #[test]
    fn tells_loss_from_what_the_sender_dropped() {
        let mut publishers = Publishers::new(1);
        let mut missed = |sequence, dropped, events| {
            let missed = publishers.observe(&stamp(9, sequence, dropped), events);
            (missed.lost, missed.sender_dropped)
        };
        assert_eq!(
            missed(1_000, 7, 10),
            (0, 0),
            "the first frame sets the start"
        );
        assert_eq!(missed(1_010, 7, 1), (0, 0));
        assert_eq!(missed(1_021, 11, 1), (6, 4));
        assert_eq!(missed(1_012, 7, 1), (0, 0), "late");
        assert_eq!(missed(u64::MAX, u64::MAX, 1), (0, 0), "another flow");
        let flow = publishers.get(9).unwrap();
        assert_eq!((flow.received, flow.lost), (1, 0));
    }

    #[test]
    fn forgets_the_longest_silent_and_stays_bounded() {
        let mut publishers = Publishers::new(1);
        for sender in 1..=10 * PUBLISHER_FLOWS_MAX as u64 {
            publishers.observe(&stamp(sender, 0, 0), 1);
            publishers.observe(&stamp(u64::MAX, 0, 0), 1);
        }
        assert!(publishers.recent.len() + publishers.older.len() <= PUBLISHER_FLOWS_MAX);
        assert_eq!(publishers.get(1), None);
        let speaking = publishers.get(u64::MAX).unwrap();
        assert_eq!(speaking.received, 10 * PUBLISHER_FLOWS_MAX as u64);
    }
}
