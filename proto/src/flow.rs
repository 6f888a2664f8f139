//! What came of a flow and what did not, told by its stamps alone.
//!
//! A stamp says how many events of its flow went before the frame (`sequence`), and how many of
//! these the sender itself dropped (`dropped`). Whoever receives the flow keeps a [`Tracker`] of
//! it: the bus for each publisher, a subscriber for the bus. Datagrams may be reordered and
//! doubled, so what is missing is not lost at once: it stays awaited for a [`WINDOW`]. At any time
//!
//! ```text
//! sequence after the newest frame - first sequence = received + lost + dropped + awaited
//! ```
//!
//! and nothing that has been counted is ever taken back. A sender may stamp a frame before it knows
//! that it has to drop one ahead of it: the next stamp tells, and the window covers that, too. What
//! is told of later yet is counted as lost by then, and as many of the next that are missing are
//! counted as dropped in its stead.
//!
//! What was lost after the newest stamp nobody has told of yet. Stamps of a forger can spoil the
//! counts of the flow whose sender they name, and no other; none can begin a flow anew, for a
//! stamp too far from the others is not believed.

use std::collections::VecDeque;
use std::time::Duration;

/// How long a subscriber awaits a missing event before it is lost: far longer than any network
/// holds a datagram back that it still delivers, and longer than the 2 seconds between renewals of
/// a lease, whose stamps tell what the bus has learnt meanwhile to have dropped.
pub const WINDOW: Duration = Duration::from_secs(3);

/// How long the bus awaits a missing event of a publisher, which knows what it dropped when it
/// stamps the next frame.
pub const PUBLISHER_WINDOW: Duration = Duration::from_secs(1);

/// Gaps of one flow that are awaited at once. With more, the oldest is lost: a receiver that
/// misses so much is short of something else than order.
pub const GAPS_MAX: usize = 64;

/// Events between two frames of a flow that may be missing. More is no loss but a forgery.
pub const GAP_EVENTS_MAX: u64 = 1 << 32;

/// What became of a flow's events, or what one frame added to that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlowCounts {
    /// Events that arrived, each once.
    pub received: u64,
    /// Events that were sent and did not arrive within the window.
    pub lost: u64,
    /// Events that the sender dropped itself.
    pub dropped: u64,
    /// Events that arrived again, or after they had been counted as lost.
    pub duplicates: u64,
}

impl FlowCounts {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            received: self.received.saturating_add(other.received),
            lost: self.lost.saturating_add(other.lost),
            dropped: self.dropped.saturating_add(other.dropped),
            duplicates: self.duplicates.saturating_add(other.duplicates),
        }
    }

    /// What is new since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            received: self.received.saturating_sub(earlier.received),
            lost: self.lost.saturating_sub(earlier.lost),
            dropped: self.dropped.saturating_sub(earlier.dropped),
            duplicates: self.duplicates.saturating_sub(earlier.duplicates),
        }
    }
}

/// Where a frame stands in its flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Events of the flow before the frame, dropped ones included: `Stamp.sequence`.
    pub sequence: u64,
    /// Those of them that the sender dropped: `Stamp.dropped`.
    pub dropped: u64,
}

/// Events that are awaited.
#[derive(Clone, Copy, Debug)]
struct Gap {
    start: u64,
    end: u64,
    since: Duration,
}

/// Follows one flow. `now` is the time since any fixed moment, by a clock that does not jump.
///
/// ```
/// use std::time::Duration;
/// use hailmary_proto::flow::{Position, Tracker, WINDOW};
///
/// let at = |sequence| Position { sequence, dropped: 0 };
/// let mut flow = Tracker::from_zero();
/// flow.record(Duration::ZERO, at(0), 10);
/// flow.record(Duration::ZERO, at(15), 5);
/// assert_eq!((flow.counts().received, flow.counts().lost, flow.awaited()), (15, 0, 5));
/// flow.record(Duration::ZERO, at(12), 3);
/// flow.settle(WINDOW);
/// assert_eq!((flow.counts().received, flow.counts().lost, flow.awaited()), (18, 2, 0));
/// ```
#[derive(Clone, Debug)]
pub struct Tracker {
    window: Duration,
    /// The first sequence, and when the flow began, where its first frame decides.
    start: Option<(u64, Duration)>,
    /// What the sender had dropped before.
    dropped_before: u64,
    /// The sequence after the newest frame.
    next: u64,
    /// What the sender says it dropped since the start.
    dropped: u64,
    /// Events in gaps that are no longer awaited.
    missing: u64,
    /// Oldest and lowest first.
    gaps: VecDeque<Gap>,
    counts: FlowCounts,
}

impl Tracker {
    /// The bus's flow to a subscriber, which is followed from its very first event.
    #[must_use]
    pub fn from_zero() -> Self {
        Self {
            window: WINDOW,
            start: None,
            dropped_before: 0,
            next: 0,
            dropped: 0,
            missing: 0,
            gaps: VecDeque::new(),
            counts: FlowCounts::default(),
        }
    }

    /// A publisher's flow, which is followed from its first frame on that arrives: what went
    /// before may have gone to an earlier run of the bus. A frame from before it that comes
    /// within the window counts as well.
    #[must_use]
    pub fn from_first(now: Duration, first: Position) -> Self {
        Self {
            window: PUBLISHER_WINDOW,
            start: Some((first.sequence, now)),
            next: first.sequence,
            dropped_before: first.dropped.min(first.sequence),
            ..Self::from_zero()
        }
    }

    /// Counts a frame, and says what that adds to the counts. A frame without events tells what
    /// went before it.
    #[inline]
    pub fn record(&mut self, now: Duration, at: Position, events: u64) -> FlowCounts {
        if at.sequence == self.next && at.dropped == self.dropped_before + self.dropped {
            let next = self.next.saturating_add(events);
            let received = next - self.next;
            self.next = next;
            self.counts.received += received;
            return FlowCounts {
                received,
                ..FlowCounts::default()
            };
        }
        self.record_out_of_order(now, at, events)
    }

    #[cold]
    fn record_out_of_order(&mut self, now: Duration, at: Position, events: u64) -> FlowCounts {
        let before = self.counts;
        let end = at.sequence.saturating_add(events);
        if at.sequence.abs_diff(self.next) > GAP_EVENTS_MAX || end - at.sequence < events {
            self.count_duplicates(events);
            return self.counts.since(before);
        }
        if events == 0 && at.sequence < self.next {
            // It tells nothing but what was dropped.
        } else if at.sequence >= self.next {
            self.await_up_to(now, at.sequence);
            self.receive_up_to(end);
        } else if end > self.next {
            // No honest frame overlaps another.
            self.count_duplicates(self.next - at.sequence);
            self.receive_up_to(end);
        } else if !self.fill(at.sequence, end) && !self.begin_earlier(now, at, end) {
            self.count_duplicates(events);
        }
        self.dropped = self
            .dropped
            .max(at.dropped.saturating_sub(self.dropped_before));
        self.settle(now);
        self.counts.since(before)
    }

    fn count_duplicates(&mut self, events: u64) {
        self.counts.duplicates = self.counts.duplicates.saturating_add(events);
    }

    fn await_up_to(&mut self, now: Duration, sequence: u64) {
        if sequence > self.next {
            self.gaps.push_back(Gap {
                start: self.next,
                end: sequence,
                since: now,
            });
            self.next = sequence;
        }
    }

    fn receive_up_to(&mut self, end: u64) {
        self.counts.received += end - self.next;
        self.next = end;
    }

    /// Takes what came late out of the gap that it lies in, if it lies in one.
    fn fill(&mut self, start: u64, end: u64) -> bool {
        let holds = |gap: &Gap| gap.start <= start && end <= gap.end;
        let Some(index) = self.gaps.iter().position(holds) else {
            return false;
        };
        if let Some(gap) = self.gaps.remove(index) {
            let rest = Gap { start: end, ..gap };
            let head = Gap { end: start, ..gap };
            for part in [rest, head] {
                if part.start < part.end {
                    self.gaps.insert(index, part);
                }
            }
        }
        self.counts.received += end - start;
        true
    }

    /// Lets the flow begin with a frame from before the one that arrived first.
    fn begin_earlier(&mut self, now: Duration, at: Position, end: u64) -> bool {
        let Some((start, began)) = self.start else {
            return false;
        };
        if end > start || now.saturating_sub(began) >= self.window {
            return false;
        }
        if end < start {
            self.gaps.push_front(Gap {
                start: end,
                end: start,
                since: began,
            });
        }
        let dropped_before = at.dropped.min(self.dropped_before);
        self.dropped += self.dropped_before - dropped_before;
        self.dropped_before = dropped_before;
        self.start = Some((at.sequence, began));
        self.counts.received += end - at.sequence;
        true
    }

    /// Counts as lost what has been awaited for the whole window, and says how much that adds.
    pub fn settle(&mut self, now: Duration) -> FlowCounts {
        let before = self.counts;
        while let Some(gap) = self.gaps.front() {
            if self.gaps.len() <= GAPS_MAX && now.saturating_sub(gap.since) < self.window {
                break;
            }
            self.missing = self.missing.saturating_add(gap.end - gap.start);
            self.gaps.pop_front();
        }
        self.count_missing();
        self.counts.since(before)
    }

    /// Counts all that is missing as lost: nothing more is awaited.
    pub fn settle_all(&mut self) -> FlowCounts {
        self.settle(Duration::MAX)
    }

    /// What the sender dropped is missing too. Only what is missing beyond that is lost.
    ///
    /// What it told of too late is among the lost already, and nobody knows how much that is. So
    /// what still may come is taken for dropped only as far as more were dropped than are lost;
    /// what is no longer awaited, as far as it goes.
    fn count_missing(&mut self) {
        let FlowCounts { lost, dropped, .. } = self.counts;
        let all = self.missing.saturating_add(self.in_gaps());
        let beyond_lost = self.dropped.min(all).saturating_sub(lost);
        let of_missing = self.dropped.min(self.missing.saturating_sub(lost));
        self.counts.dropped = dropped.max(beyond_lost).max(of_missing);
        self.counts.lost = lost.max(self.missing.saturating_sub(self.counts.dropped));
    }

    fn in_gaps(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.end - gap.start).sum()
    }

    /// When [`Tracker::settle`] has something to count, if nothing arrives.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.gaps
            .front()
            .map(|gap| gap.since.saturating_add(self.window))
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> FlowCounts {
        self.counts
    }

    /// Events that are missing, and may come yet or turn out to have been dropped.
    #[must_use]
    pub fn awaited(&self) -> u64 {
        let all = self.missing.saturating_add(self.in_gaps());
        all.saturating_sub(self.counts.lost)
            .saturating_sub(self.counts.dropped)
    }

    /// Events that are lost if nothing more arrives: what is missing but for what the sender says
    /// it dropped.
    #[must_use]
    pub fn lost_at_most(&self) -> u64 {
        let all = self.missing.saturating_add(self.in_gaps());
        all.saturating_sub(self.dropped).max(self.counts.lost)
    }

    /// The sequence that the next frame has if nothing is missing before it.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(9);

    fn at(sequence: u64, dropped: u64) -> Position {
        Position { sequence, dropped }
    }

    fn counts(received: u64, lost: u64, dropped: u64, duplicates: u64) -> FlowCounts {
        FlowCounts {
            received,
            lost,
            dropped,
            duplicates,
        }
    }

    #[test]
    fn what_is_missing_is_awaited_then_lost() {
        let mut flow = Tracker::from_zero();
        flow.record(NOW, at(10, 4), 1);
        assert_eq!((flow.counts(), flow.awaited()), (counts(1, 0, 4, 0), 6));
        assert_eq!(flow.poll_timeout(), Some(NOW + WINDOW));
        assert_eq!(
            flow.settle(NOW + WINDOW - Duration::from_nanos(1)),
            counts(0, 0, 0, 0)
        );
        assert_eq!(flow.settle(NOW + WINDOW), counts(0, 6, 0, 0));
        assert_eq!((flow.poll_timeout(), flow.awaited()), (None, 0));
        assert_eq!(
            flow.record(NOW + WINDOW, at(2, 0), 3),
            counts(0, 0, 0, 3),
            "too late"
        );
    }

    #[test]
    fn late_ones_come_in_any_order_and_twice() {
        let mut flow = Tracker::from_zero();
        flow.record(NOW, at(8, 0), 2);
        for (sequence, new, again) in [
            (4, 2, 0),
            (4, 0, 2),
            (0, 2, 0),
            (6, 2, 0),
            (2, 2, 0),
            (8, 0, 2),
        ] {
            let added = flow.record(NOW, at(sequence, 0), 2);
            assert_eq!(added, counts(new, 0, 0, again), "at {sequence}");
        }
        assert_eq!(
            (flow.settle_all(), flow.counts()),
            (counts(0, 0, 0, 0), counts(10, 0, 0, 4))
        );
    }

    #[test]
    fn an_old_stamp_without_events_changes_nothing() {
        let mut flow = Tracker::from_first(NOW, at(5, 0));
        flow.record(NOW, at(9, 0), 1);
        for sequence in [0, 5, 7, 9] {
            assert_eq!(flow.record(NOW, at(sequence, 0), 0), counts(0, 0, 0, 0));
        }
        assert_eq!((flow.awaited(), flow.gaps.len()), (4, 1));
    }

    #[test]
    fn what_a_stamp_did_not_know_yet_is_dropped_and_not_lost() {
        let mut flow = Tracker::from_zero();
        flow.record(NOW, at(10, 0), 1);
        assert_eq!(flow.counts(), counts(1, 0, 0, 0));
        assert_eq!(flow.record(NOW, at(11, 10), 0), counts(0, 0, 10, 0));
        assert_eq!(flow.settle_all(), counts(0, 0, 0, 0));
    }

    #[test]
    fn what_is_told_too_late_is_not_taken_from_what_may_still_come() {
        let mut flow = Tracker::from_zero();
        flow.record(NOW, at(10, 0), 1);
        assert_eq!(flow.settle(NOW + WINDOW), counts(0, 10, 0, 0));
        flow.record(NOW + WINDOW, at(14, 0), 1);
        let told = flow.record(NOW + WINDOW, at(15, 10), 0);
        assert_eq!((told, flow.awaited()), (counts(0, 0, 0, 0), 3));
        assert_eq!(flow.lost_at_most(), 10);
        assert_eq!(
            flow.record(NOW + WINDOW, at(11, 0), 2),
            counts(2, 0, 0, 0),
            "they were on their way"
        );
        assert_eq!(flow.settle(NOW + 2 * WINDOW), counts(0, 0, 1, 0));
        assert_eq!((flow.counts(), flow.next()), (counts(4, 10, 1, 0), 15));
    }

    #[test]
    fn what_is_dropped_after_losses_is_told_to_who_asks_at_once() {
        let mut flow = Tracker::from_first(NOW, at(0, 0));
        flow.record(NOW, at(10, 0), 1);
        flow.settle(NOW + PUBLISHER_WINDOW);
        flow.record(NOW + PUBLISHER_WINDOW, at(16, 4), 1);
        assert_eq!((flow.counts(), flow.awaited()), (counts(2, 10, 0, 0), 5));
        assert_eq!(flow.lost_at_most(), 11);
        flow.settle_all();
        assert_eq!(
            (flow.counts(), flow.lost_at_most()),
            (counts(2, 11, 4, 0), 11)
        );
    }

    #[test]
    fn begins_with_the_first_that_arrives_and_with_an_earlier_one_within_the_window() {
        let mut flow = Tracker::from_first(NOW, at(100, 40));
        assert_eq!(flow.record(NOW, at(100, 40), 1), counts(1, 0, 0, 0));
        assert_eq!(flow.record(NOW, at(90, 38), 5), counts(5, 0, 2, 0));
        assert_eq!(flow.awaited(), 3);
        assert_eq!(
            flow.record(NOW + PUBLISHER_WINDOW, at(80, 30), 5),
            counts(0, 3, 0, 5),
            "too late"
        );
    }

    #[test]
    fn no_stamp_from_afar_is_believed() {
        let mut flow = Tracker::from_zero();
        flow.record(NOW, at(0, 0), 10);
        for sequence in [u64::MAX, GAP_EVENTS_MAX + 11, u64::MAX - 3] {
            assert_eq!(
                flow.record(NOW, at(sequence, u64::MAX), 9),
                counts(0, 0, 0, 9)
            );
        }
        assert_eq!(
            flow.record(NOW, at(10, 0), 1),
            counts(1, 0, 0, 0),
            "it goes on"
        );
    }

    #[test]
    fn gaps_are_bounded() {
        let mut flow = Tracker::from_zero();
        for n in 0..1_000 {
            flow.record(NOW, at(2 * n + 1, 0), 1);
            assert!(flow.gaps.len() <= GAPS_MAX);
        }
        assert_eq!(flow.settle_all().lost, GAPS_MAX as u64);
        assert_eq!(flow.counts(), counts(1_000, 1_000, 0, 0));
    }

    /// What becomes of one frame on its way.
    #[derive(Clone, Debug)]
    enum Fate {
        /// It arrives so many times, each after that many of the later ones.
        Arrives(Vec<usize>),
        Lost,
        /// By the sender, which tells it from that many frames on.
        Dropped(usize),
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            4 => prop::collection::vec(0..8_usize, 1..3).prop_map(Fate::Arrives),
            1 => Just(Fate::Lost),
            1 => (1..4_usize).prop_map(Fate::Dropped),
        ]
    }

    proptest! {
        #[test]
        fn every_event_is_counted_once_whatever_the_way_does(
            frames in prop::collection::vec((1..9_u64, fate()), 0..60),
        ) {
            let mut arrivals = Vec::new();
            let (mut sequence, mut expected) = (0, FlowCounts::default());
            let mut told: Vec<u64> = vec![0; frames.len() + 9];
            for (n, (events, fate)) in frames.iter().enumerate() {
                if let Fate::Dropped(later) = fate {
                    told.iter_mut().skip(n + later).for_each(|dropped| *dropped += events);
                }
            }
            for (n, (events, fate)) in frames.iter().enumerate() {
                match fate {
                    Fate::Arrives(delays) => {
                        expected.received += events;
                        expected.duplicates += events * (delays.len() as u64 - 1);
                        let position = at(sequence, told[n].min(sequence));
                        arrivals.extend(delays.iter().map(|delay| (n + delay, position, *events)));
                    }
                    Fate::Lost => expected.lost += events,
                    Fate::Dropped(_) => expected.dropped += events,
                }
                sequence += events;
            }
            // A last stamp tells of all that went before.
            arrivals.push((usize::MAX, at(sequence, told[frames.len() + 8]), 0));
            arrivals.sort_by_key(|(place, ..)| *place);
            let (mut flow, mut sum) = (Tracker::from_zero(), FlowCounts::default());
            for (_, position, events) in arrivals {
                sum = sum.plus(flow.record(NOW, position, events));
                let now = flow.counts();
                prop_assert_eq!(flow.next(), now.received + now.lost + now.dropped + flow.awaited());
            }
            prop_assert_eq!(flow.lost_at_most(), expected.lost);
            sum = sum.plus(flow.settle_all());
            prop_assert_eq!(flow.counts(), expected);
            prop_assert_eq!(sum, expected);
        }

        #[test]
        fn no_stamps_make_it_fail_or_count_back(
            start in any::<u64>(),
            frames in prop::collection::vec(
                (prop_oneof![any::<u64>(), 0..99_u64], prop_oneof![any::<u64>(), 0..99_u64],
                 prop_oneof![any::<u64>(), 0..9_u64], 0..9_u64), 0..60),
        ) {
            for mut flow in [Tracker::from_zero(), Tracker::from_first(NOW, at(start, start / 2))] {
                for (sequence, dropped, events, seconds) in &frames {
                    let (before, now) = (flow.counts(), NOW + Duration::from_secs(*seconds));
                    let added = flow.record(now, at(*sequence, *dropped), *events);
                    prop_assert_eq!(before.plus(added), flow.counts());
                    prop_assert!(flow.gaps.len() <= GAPS_MAX);
                }
            }
        }
    }
}
