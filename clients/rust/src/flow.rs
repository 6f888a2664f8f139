//! What arrived and what did not, by the stamps of the bus's frames.
//!
//! Owns which flow a stamp belongs to: a subscription sees several, one after the
//! other, as leases lapse and buses restart. The arithmetic of one flow is
//! [`Tracker`]'s. It knows no socket, no lease and no clock; `now` is the time
//! since any fixed moment, and no input makes it panic or count back.
//!
//! What is missing is awaited for [`WINDOW`] and then counted as lost, for good.
//! What was lost after the newest stamp nobody has told of yet; the bus tells with
//! each lease that it grants.

use std::time::Duration;

use hailmary_proto::flow::Tracker;
pub use hailmary_proto::flow::{FlowCounts, Position, WINDOW};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Continuity {
    Certain,
    /// No lease stands, as far as is known: what comes still is of the old flow.
    Lapsed,
    /// A lease was granted after that, and not by a stamp: the next one tells.
    InDoubt,
}

/// The flows of one subscription, one after the other.
///
/// Of each bus, a flow begins at sequence 0 with the lease. If only the bus's
/// answers were lost and it never saw the lease lapse, the flow goes on. The
/// stamps alone can tell: one below what had arrived before is of a new flow.
/// So where the answer to the very request that began a flow was lost as well,
/// the new flow passes for the old one until the next lease, or, if it has
/// overtaken the old one by then, for good. The other way round, if each lapse
/// were taken for a new flow, all that the old one had received would be called
/// lost.
#[derive(Clone, Debug)]
pub struct Ledger {
    flow: Tracker,
    continuity: Continuity,
    /// How far the flow had come here when the newest request was first made.
    asked: u64,
    /// The same of the request before it.
    asked_before: u64,
    /// Ended flows of the present bus.
    ended: FlowCounts,
    /// Flows of buses before the present one.
    earlier: FlowCounts,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            flow: Tracker::from_zero(),
            continuity: Continuity::Certain,
            asked: 0,
            asked_before: 0,
            ended: FlowCounts::default(),
            earlier: FlowCounts::default(),
        }
    }
}

impl Ledger {
    /// Counts a frame of the present bus. One without events tells what went before it.
    pub fn record(&mut self, now: Duration, at: Position, events: u64) {
        if self.continuity == Continuity::InDoubt {
            self.continuity = Continuity::Certain;
            if at.sequence < self.flow.next() {
                self.end_flow();
            }
        }
        self.flow.record(now, at, events);
    }

    /// A lease is asked for. What has arrived by now, the bus had sent before it
    /// answers. (Repeating a request is not asking anew: a late answer may be to
    /// the first.)
    pub fn ask(&mut self) {
        self.asked_before = self.asked;
        self.asked = self.flow.next();
    }

    /// The lease has lapsed, or seems so.
    pub fn lapse(&mut self) {
        self.continuity = Continuity::Lapsed;
    }

    /// The present bus granted a lease, stamped with this sequence if it does so.
    /// The stamp itself is still to be recorded.
    ///
    /// After a lapse, a sequence below the newest is of a new flow. Without one the
    /// bus may have seen a lapse that passed unnoticed here, as by an application
    /// that reads an answer long after it came. That shows by a sequence below what
    /// had arrived before the lease was last asked for and one request earlier: a
    /// whole renewal of time, so that no reordering is taken for it.
    pub fn resume(&mut self, sequence: Option<u64>) {
        let lapsed = self.continuity != Continuity::Certain;
        let Some(sequence) = sequence else {
            if lapsed {
                self.continuity = Continuity::InDoubt;
            }
            return;
        };
        self.continuity = Continuity::Certain;
        let arrived = if lapsed {
            self.flow.next()
        } else {
            self.asked_before
        };
        if sequence < arrived {
            self.end_flow();
        }
    }

    /// Another bus took over: its flow begins at sequence 0, whatever comes.
    pub fn begin_bus(&mut self) {
        self.end_flow();
        self.continuity = Continuity::Certain;
        self.earlier = self.earlier.plus(std::mem::take(&mut self.ended));
    }

    /// Counts as lost what has been awaited for the whole window.
    pub fn settle(&mut self, now: Duration) {
        self.flow.settle(now);
    }

    /// Counts all that is missing as lost: nothing more is awaited.
    pub fn settle_all(&mut self) {
        self.flow.settle_all();
    }

    /// When [`settle`](Self::settle) has something to count, if nothing arrives.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.flow.poll_timeout()
    }

    /// Events of the present flow that are missing and may still come.
    #[must_use]
    pub fn awaited(&self) -> u64 {
        self.flow.awaited()
    }

    /// Since the subscription began, over all buses.
    #[must_use]
    pub fn total(&self) -> FlowCounts {
        self.earlier.plus(self.of_bus())
    }

    /// Since the subscriber began to listen to the present bus: what it reports.
    #[must_use]
    pub fn of_bus(&self) -> FlowCounts {
        self.ended.plus(self.flow.counts())
    }

    fn end_flow(&mut self) {
        self.flow.settle_all();
        let flow = std::mem::replace(&mut self.flow, Tracker::from_zero());
        self.ended = self.ended.plus(flow.counts());
        (self.asked, self.asked_before) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(9);

    fn at(sequence: u64, dropped: u64) -> Position {
        Position { sequence, dropped }
    }

    fn counts(received: u64, lost: u64, dropped: u64, duplicates: u64) -> FlowCounts {
        let mut counts = FlowCounts::default();
        counts.received = received;
        counts.lost = lost;
        counts.dropped = dropped;
        counts.duplicates = duplicates;
        counts
    }

    fn settled(mut ledger: Ledger) -> FlowCounts {
        ledger.settle_all();
        ledger.total()
    }

    /// A ledger of a flow of which so many events arrived, and all of them.
    fn received(events: u64) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.begin_bus();
        ledger.record(NOW, at(0, 0), events);
        ledger
    }

    #[test]
    fn a_loss_is_told_once_the_window_is_over() {
        let mut ledger = received(3);
        ledger.record(NOW, at(10, 4), 1);
        assert_eq!((ledger.total(), ledger.awaited()), (counts(4, 0, 4, 0), 3));
        assert_eq!(ledger.poll_timeout(), Some(NOW + WINDOW));
        ledger.settle(NOW + WINDOW);
        assert_eq!((ledger.total(), ledger.awaited()), (counts(4, 3, 4, 0), 0));
        assert_eq!(
            (ledger.of_bus(), ledger.poll_timeout()),
            (ledger.total(), None)
        );
    }

    #[test]
    fn after_a_lapse_the_lease_tells_whether_a_flow_began() {
        for (sequence, expected) in [
            (Some(0), counts(6, 7, 0, 0)),
            (Some(4), counts(6, 7, 0, 0)),
            (Some(5), counts(6, 2, 0, 0)),
        ] {
            let mut ledger = received(5);
            ledger.lapse();
            ledger.resume(sequence);
            ledger.record(NOW, at(7, 0), 1);
            assert_eq!(settled(ledger), expected, "at {sequence:?}");
        }
    }

    #[test]
    fn after_a_lapse_and_a_lease_without_stamp_the_next_frame_tells() {
        let mut kept = received(5);
        kept.lapse();
        kept.resume(None);
        kept.record(NOW, at(6, 0), 1);
        assert_eq!(settled(kept), counts(6, 1, 0, 0));

        let mut anew = received(5);
        anew.lapse();
        anew.resume(None);
        anew.record(NOW, at(1, 1), 2);
        assert_eq!(anew.of_bus(), counts(7, 0, 1, 0));
    }

    /// A stopped process finds its lease over and a socket full of old frames.
    #[test]
    fn what_waited_while_the_lease_lapsed_is_of_the_old_flow() {
        for sequence in [None, Some(0)] {
            let mut ledger = received(5);
            ledger.lapse();
            ledger.record(NOW, at(7, 0), 2);
            ledger.record(NOW, at(5, 0), 2);
            ledger.resume(sequence);
            ledger.record(NOW, at(0, 0), 4);
            assert_eq!(settled(ledger), counts(13, 0, 0, 0));
        }
    }

    #[test]
    fn a_lapse_that_passed_unnoticed_shows_by_the_lease() {
        let mut ledger = received(5);
        ledger.ask();
        ledger.resume(Some(5));
        ledger.ask();
        ledger.resume(Some(0));
        ledger.record(NOW, at(0, 0), 4);
        assert_eq!(settled(ledger), counts(9, 0, 0, 0));
    }

    #[test]
    fn an_answer_that_was_overtaken_begins_no_flow() {
        let mut ledger = received(5);
        ledger.ask();
        ledger.resume(Some(5));
        ledger.record(NOW, at(5, 0), 5);
        ledger.ask();
        ledger.record(NOW, at(10, 0), 5);
        // It comes after the next was asked for, and later frames before it.
        ledger.resume(Some(6));
        ledger.record(NOW, at(15, 0), 1);
        assert_eq!(settled(ledger), counts(16, 0, 0, 0));
    }

    #[test]
    fn a_restarted_bus_begins_a_flow_and_a_report() {
        let mut ledger = Ledger::default();
        ledger.begin_bus();
        ledger.record(NOW, at(1, 0), 1);
        ledger.begin_bus();
        assert_eq!(ledger.of_bus(), counts(0, 0, 0, 0));
        assert_eq!(
            ledger.total(),
            counts(1, 1, 0, 0),
            "of the old bus nothing is awaited"
        );
        ledger.record(NOW, at(3, 0), 1);
        ledger.settle_all();
        assert_eq!(ledger.of_bus(), counts(1, 3, 0, 0));
        assert_eq!(ledger.total(), counts(2, 4, 0, 0));
    }

    /// What becomes of a frame, or happens between two.
    #[derive(Clone, Debug)]
    enum Step {
        /// It arrives after so many others, once for each of these.
        Arrives(u64, Vec<usize>),
        Lost(u64),
        /// By the bus, which tells it with the next frame.
        Dropped(u64),
        /// A renewal, whose answer arrives after so many frames.
        Renewed(usize),
        Lapsed,
        Restarted,
    }

    fn step() -> impl Strategy<Value = Step> {
        let delays = || prop::collection::vec(0..8_usize, 1..3);
        prop_oneof![
            8 => (1..9_u64, delays()).prop_map(|(events, delays)| Step::Arrives(events, delays)),
            2 => (1..9_u64).prop_map(Step::Lost),
            2 => (1..9_u64).prop_map(Step::Dropped),
            2 => (0..8_usize).prop_map(Step::Renewed),
            1 => Just(Step::Lapsed),
            1 => Just(Step::Restarted),
        ]
    }

    /// Renewals are this many steps apart at least: longer than anything is on its way.
    const RENEWAL_STEPS: usize = 10;

    /// What reaches the ledger.
    #[derive(Clone, Copy, Debug)]
    enum Arrival {
        Frame(Position, u64),
        Asking,
        Granted(Position),
    }

    /// One flow: what arrives of it with its place in the order, and what truly happened.
    #[derive(Default)]
    struct Sent {
        arrivals: Vec<(usize, Arrival)>,
        sequence: u64,
        truth: FlowCounts,
        renewed_at: usize,
    }

    impl Sent {
        fn take(&mut self, place: usize, step: &Step) {
            let position = at(self.sequence, self.truth.dropped);
            match step {
                Step::Arrives(events, delays) => {
                    let frame = Arrival::Frame(position, *events);
                    self.arrivals
                        .extend(delays.iter().map(|delay| (place + delay, frame)));
                    self.truth.received += events;
                    self.truth.duplicates += events * (delays.len() as u64 - 1);
                    self.sequence += events;
                }
                Step::Lost(events) => {
                    self.truth.lost += events;
                    self.sequence += events;
                }
                Step::Dropped(events) => {
                    self.truth.dropped += events;
                    self.sequence += events;
                }
                Step::Renewed(delay) if place >= self.renewed_at + RENEWAL_STEPS => {
                    self.renewed_at = place;
                    // It is asked for before anything arrives that was sent from now on.
                    self.arrivals.insert(0, (place, Arrival::Asking));
                    self.arrivals
                        .push((place + delay, Arrival::Granted(position)));
                }
                _ => {}
            }
        }

        /// All that is on its way arrives, and a last stamp tells of all before it.
        fn arrive(mut self, ledger: &mut Ledger) -> FlowCounts {
            self.arrivals.sort_by_key(|(place, _)| *place);
            let last = Arrival::Frame(at(self.sequence, self.truth.dropped), 0);
            for (_, arrival) in self.arrivals.into_iter().chain([(usize::MAX, last)]) {
                match arrival {
                    Arrival::Frame(position, events) => ledger.record(NOW, position, events),
                    Arrival::Asking => ledger.ask(),
                    Arrival::Granted(position) => {
                        ledger.resume(Some(position.sequence));
                        ledger.record(NOW, position, 0);
                    }
                }
            }
            self.truth
        }
    }

    proptest! {
        /// Reordered, doubled, lost and dropped, through lapses and restarts.
        #[test]
        fn the_books_balance(steps in prop::collection::vec(step(), 0..80)) {
            let (mut ledger, mut truth) = (Ledger::default(), FlowCounts::default());
            let (mut sent, mut of_bus) = (Sent::default(), FlowCounts::default());
            ledger.begin_bus();
            for (place, step) in steps.iter().chain([&Step::Lapsed]).enumerate() {
                sent.take(place, step);
                if matches!(step, Step::Lapsed | Step::Restarted) {
                    let flow = std::mem::take(&mut sent).arrive(&mut ledger);
                    (truth, of_bus) = (truth.plus(flow), of_bus.plus(flow));
                    sent.renewed_at = place;
                }
                match step {
                    Step::Lapsed => {
                        ledger.lapse();
                        ledger.resume(Some(0));
                        ledger.record(NOW, at(0, 0), 0);
                    }
                    Step::Restarted => {
                        ledger.begin_bus();
                        of_bus = FlowCounts::default();
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(ledger.of_bus(), of_bus);
            prop_assert_eq!(ledger.total(), truth);
        }

        #[test]
        fn nothing_makes_it_panic_or_count_back(
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), 0_u8..9), 0..50),
        ) {
            let mut ledger = Ledger::default();
            for (sequence, dropped, events, step) in steps {
                let before = ledger.total();
                match step {
                    0 => ledger.lapse(),
                    1 => ledger.begin_bus(),
                    2 => ledger.resume(None),
                    3 => ledger.resume(Some(sequence % 99)),
                    4 => ledger.ask(),
                    5 => ledger.settle(Duration::from_nanos(sequence)),
                    6 => ledger.record(NOW, at(sequence % 99, dropped % 99), events % 9),
                    _ => ledger.record(NOW, at(sequence, dropped), events),
                }
                let total = ledger.total();
                prop_assert_eq!(total.since(before).plus(before), total);
            }
        }
    }
}
