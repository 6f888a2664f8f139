//! What was lost before the bus, told by the publishers' stamps.
//!
//! Each publisher's flow is followed by a [`Tracker`], by its sender id, from the first frame that
//! is seen of it: what went before is not known to be lost, for the bus may have restarted. The
//! ids are random and no subscriber sees them, so only who can listen in on the way of a
//! publisher's datagrams can forge a stamp of it; that spoils the counts of this flow and of no
//! other. Who makes up ids can have the longest silent flows forgotten.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use foldhash::fast::FixedState;
use hailmary_proto::flow::{FlowCounts, Position, Tracker};
use hailmary_proto::v1::Stamp;

use super::limits::PUBLISHER_FLOWS_MAX;

/// What a publisher that asks is told of its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Events that came.
    pub received: u64,
    /// Events that did not, those that are still awaited included, and what it dropped itself not.
    pub missing: u64,
}

impl Heard {
    /// What one data thread heard.
    #[must_use]
    pub fn of(flow: &Tracker) -> Self {
        Self {
            received: flow.counts().received,
            missing: flow.lost_at_most(),
        }
    }

    /// What two data threads heard.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            received: self.received.saturating_add(other.received),
            missing: self.missing.saturating_add(other.missing),
        }
    }
}

/// One publisher's flow.
#[derive(Debug)]
struct Flow {
    tracker: Tracker,
    /// Whether it is among those to be settled.
    is_due: bool,
}

type Flows = HashMap<u64, Flow, FixedState>;

/// The flows of the publishers that were heard of last.
///
/// Two tables: one fills while the other is forgotten as a whole, and whoever speaks moves into
/// the one that fills. So the longest silent go first, at no cost for a frame.
#[derive(Debug)]
pub struct Publishers {
    recent: Flows,
    older: Flows,
    /// Flows that await events, and when the first of these are lost. Earliest first.
    due: VecDeque<(Duration, u64)>,
}

impl Publishers {
    /// Nobody heard yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            recent: HashMap::with_hasher(FixedState::with_seed(seed)),
            older: HashMap::with_hasher(FixedState::with_seed(seed)),
            due: VecDeque::new(),
        }
    }

    /// Notes a frame with so many events, and says what it adds to the counts.
    #[inline]
    pub fn observe(&mut self, now: Duration, stamp: &Stamp, events: u64) -> FlowCounts {
        if stamp.sender == 0 {
            return FlowCounts::default();
        }
        let forgotten = self.make_room(stamp.sender);
        let (recent, older) = (&mut self.recent, &mut self.older);
        let flow = recent.entry(stamp.sender).or_insert_with(|| {
            let begin = || Flow {
                tracker: Tracker::from_first(now, position(stamp)),
                is_due: false,
            };
            older.remove(&stamp.sender).unwrap_or_else(begin)
        });
        let news = flow.tracker.record(now, position(stamp), events);
        if !flow.is_due
            && let Some(end) = flow.tracker.poll_timeout()
        {
            flow.is_due = true;
            self.due.push_back((end, stamp.sender));
        }
        news.plus(forgotten)
    }

    /// Notes a stamp that came by another way than the publisher's events, and so perhaps sooner.
    /// Nothing is noted of a publisher that is not known.
    pub fn observe_aside(&mut self, now: Duration, stamp: &Stamp) -> FlowCounts {
        match self.get(stamp.sender) {
            Some(_) => self.observe(now, stamp, 0),
            None => FlowCounts::default(),
        }
    }

    /// A publisher's flow, if it is known.
    #[must_use]
    pub fn get(&self, sender: u64) -> Option<&Tracker> {
        let flow = self.recent.get(&sender).or_else(|| self.older.get(&sender));
        flow.map(|flow| &flow.tracker)
    }

    /// Counts as lost what has been awaited long enough.
    pub fn handle_timeout(&mut self, now: Duration) -> FlowCounts {
        let mut news = FlowCounts::default();
        while let Some((end, sender)) = self.due.front().copied() {
            // Made-up flows could fill it far faster than time empties it.
            if end > now && self.due.len() <= 2 * PUBLISHER_FLOWS_MAX {
                break;
            }
            self.due.pop_front();
            let flow = self.recent.get_mut(&sender);
            let Some(flow) = flow.or_else(|| self.older.get_mut(&sender)) else {
                continue; // Forgotten, and settled then.
            };
            news = news.plus(flow.tracker.settle(now.max(end)));
            match flow.tracker.poll_timeout() {
                Some(next) => self.due.push_back((next, sender)),
                None => flow.is_due = false,
            }
        }
        news
    }

    /// When [`Publishers::handle_timeout`] is to be called next, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.due.front().map(|(end, _)| *end)
    }

    /// Counts all that is missing as lost: nothing more is awaited.
    pub fn settle_all(&mut self) -> FlowCounts {
        self.due.clear();
        let flows = self.recent.values_mut().chain(self.older.values_mut());
        settle_all(flows)
    }

    /// Forgets the longest silent where there is no room for another flow, and says what they
    /// still awaited.
    #[inline]
    fn make_room(&mut self, sender: u64) -> FlowCounts {
        if self.recent.len() < PUBLISHER_FLOWS_MAX / 2 || self.recent.contains_key(&sender) {
            return FlowCounts::default();
        }
        let news = settle_all(self.older.values_mut());
        std::mem::swap(&mut self.recent, &mut self.older);
        self.recent.clear();
        news
    }
}

fn settle_all<'a>(flows: impl Iterator<Item = &'a mut Flow>) -> FlowCounts {
    flows.fold(FlowCounts::default(), |sum, flow| {
        flow.is_due = false;
        sum.plus(flow.tracker.settle_all())
    })
}

fn position(stamp: &Stamp) -> Position {
    Position {
        sequence: stamp.sequence,
        dropped: stamp.dropped,
    }
}

#[cfg(test)]
mod tests {
    use hailmary_proto::flow::PUBLISHER_WINDOW;

    use super::*;

    const NOW: Duration = Duration::from_secs(5);

    fn stamp(sender: u64, sequence: u64, dropped: u64) -> Stamp {
        Stamp {
            sender,
            sequence,
            dropped,
            ..Stamp::default()
        }
    }

    #[test]
    fn a_flow_begins_with_its_first_frame_and_a_restarted_sender_is_another() {
        let mut publishers = Publishers::new(1);
        for sender in [9, 10] {
            let first = publishers.observe(NOW, &stamp(sender, 1_000, 7), 10);
            assert_eq!((first.received, first.lost, first.dropped), (10, 0, 0));
        }
        assert_eq!(publishers.observe(NOW, &stamp(9, 1_021, 11), 1).dropped, 4);
        let news = publishers.handle_timeout(NOW + PUBLISHER_WINDOW);
        assert_eq!((news.lost, publishers.poll_timeout()), (7, None));
        assert_eq!(publishers.get(9).unwrap().counts().lost, 7);
        assert_eq!(publishers.get(10).unwrap().counts().lost, 0);
        assert_eq!(
            publishers.observe(NOW, &stamp(0, 5, 0), 1),
            FlowCounts::default()
        );
    }

    #[test]
    fn a_stamp_aside_tells_of_the_last_ones_and_begins_no_flow() {
        let mut publishers = Publishers::new(1);
        publishers.observe_aside(NOW, &stamp(9, 5, 0));
        assert!(publishers.get(9).is_none());
        publishers.observe(NOW, &stamp(9, 5, 0), 1);
        publishers.observe_aside(NOW, &stamp(9, 8, 0));
        assert_eq!(publishers.observe(NOW, &stamp(9, 6, 0), 1).received, 1);
        assert_eq!(publishers.poll_timeout(), Some(NOW + PUBLISHER_WINDOW));
        assert_eq!(publishers.handle_timeout(NOW + PUBLISHER_WINDOW).lost, 1);
    }

    #[test]
    fn forgets_the_longest_silent_and_stays_bounded_and_loses_no_count() {
        let mut publishers = Publishers::new(1);
        let senders = 10 * PUBLISHER_FLOWS_MAX as u64;
        let mut lost = 0;
        for sender in 1..=senders {
            for sequence in [0, 3] {
                lost += publishers.observe(NOW, &stamp(sender, sequence, 0), 1).lost;
            }
            publishers.observe(NOW, &stamp(u64::MAX, sender, 0), 1);
            lost += publishers.handle_timeout(NOW).lost;
        }
        assert!(publishers.recent.len() + publishers.older.len() <= PUBLISHER_FLOWS_MAX);
        assert!(publishers.due.len() <= 2 * PUBLISHER_FLOWS_MAX);
        assert!(publishers.get(1).is_none());
        assert_eq!(publishers.get(u64::MAX).unwrap().counts().received, senders);
        lost += publishers.settle_all().lost;
        assert_eq!(lost, 2 * senders);
    }
}
