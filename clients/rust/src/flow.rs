//! What arrived and what did not, by the stamps of the bus's frames.
//!
//! Owns the arithmetic of loss on the last hop. It knows no socket, no lease and
//! no clock, and no input can make it panic or run backwards past zero.
//!
//! A stamp tells how many events of its flow went before the frame (`sequence`)
//! and how many of these the bus itself dropped (`dropped`). So once the frame
//! with the highest end has arrived,
//!
//! ```text
//! lost = (sequence + events of that frame) - received - dropped
//! ```
//!
//! which counts neither what was lost after that frame, since nothing told of it
//! yet, nor anything of another flow. A frame that arrives late lowers the figure
//! again. A frame that arrives twice is received twice: it hides as many lost
//! events as it holds, and the figure stops at zero.

/// What became of the events of one subscription, as far as its end here can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlowCounts {
    /// Events that arrived, repeated ones included.
    pub received: u64,
    /// Events that the bus sent and that did not arrive. May fall again, when a
    /// late frame comes after all.
    pub lost: u64,
    /// Events that the bus dropped itself, for a limit or a full buffer.
    pub dropped_by_bus: u64,
}

impl FlowCounts {
    fn plus(self, other: Self) -> Self {
        Self {
            received: self.received.saturating_add(other.received),
            lost: self.lost.saturating_add(other.lost),
            dropped_by_bus: self.dropped_by_bus.saturating_add(other.dropped_by_bus),
        }
    }
}

/// What a frame tells of its flow: from its stamp, and how many events it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameTally {
    /// Events of the flow before this frame, those that the bus dropped included.
    pub sequence: u64,
    /// Those of them that the bus dropped.
    pub dropped: u64,
    /// Events in this frame.
    pub events: u64,
}

/// One flow: from its first event, sequence 0, to the newest frame that arrived.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    received: u64,
    /// The highest sequence that follows a frame that arrived.
    end: u64,
    dropped: u64,
}

impl Flow {
    fn record(&mut self, frame: FrameTally) {
        self.received = self.received.saturating_add(frame.events);
        self.end = self.end.max(frame.sequence.saturating_add(frame.events));
        // The dropped ones are a part of the sequence; a stamp that says
        // otherwise is not believed.
        self.dropped = self.dropped.max(frame.dropped.min(frame.sequence));
    }

    fn counts(self) -> FlowCounts {
        let lost = self
            .end
            .saturating_sub(self.received)
            .saturating_sub(self.dropped);
        FlowCounts {
            received: self.received,
            lost,
            dropped_by_bus: self.dropped,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Continuity {
    #[default]
    Certain,
    /// The lease may have lapsed: the next frame tells whether the flow began anew.
    InDoubt,
}

/// The flows of one subscription, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    flow: Flow,
    continuity: Continuity,
    /// Ended flows of the present bus.
    ended: FlowCounts,
    /// Flows of buses before the present one.
    earlier: FlowCounts,
}

impl Ledger {
    /// Counts one frame of the present flow.
    pub fn record(&mut self, frame: FrameTally) {
        let doubt = std::mem::take(&mut self.continuity);
        if doubt == Continuity::InDoubt && frame.sequence < self.flow.end {
            self.end_flow();
        }
        self.flow.record(frame);
    }

    /// Another bus took over: its flow begins at sequence 0, whatever comes.
    pub fn begin_bus(&mut self) {
        self.end_flow();
        self.continuity = Continuity::Certain;
        self.earlier = self.earlier.plus(std::mem::take(&mut self.ended));
    }

    /// A lease was granted after the last one had lapsed, or seemed so.
    ///
    /// If the bus, too, had seen it lapse, the flow begins at sequence 0; if only
    /// the bus's answers were lost, it goes on. The stamps alone can tell: a
    /// sequence below what was seen before is a new flow. So a new flow whose
    /// beginning was lost, up to that very place and past it, passes for the old
    /// one, and as many of its lost events go uncounted as the old flow had. The
    /// other way round, taking each such grant for a new flow, all that the old
    /// one had received would be called lost.
    pub fn doubt_flow(&mut self) {
        self.continuity = Continuity::InDoubt;
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
        let flow = std::mem::take(&mut self.flow);
        self.ended = self.ended.plus(flow.counts());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(sequence: u64, dropped: u64, events: u64) -> FrameTally {
        FrameTally {
            sequence,
            dropped,
            events,
        }
    }

    fn counts(received: u64, lost: u64, dropped_by_bus: u64) -> FlowCounts {
        FlowCounts {
            received,
            lost,
            dropped_by_bus,
        }
    }

    #[test]
    fn tells_loss_before_between_and_by_the_bus() {
        let mut ledger = Ledger::default();
        ledger.record(frame(2, 0, 3));
        assert_eq!(ledger.total(), counts(3, 2, 0));
        ledger.record(frame(10, 4, 1));
        assert_eq!(ledger.total(), counts(4, 3, 4));
    }

    #[test]
    fn a_frame_without_events_tells_of_what_went_before() {
        let mut ledger = Ledger::default();
        ledger.record(frame(7, 2, 0));
        assert_eq!(ledger.total(), counts(0, 5, 2));
    }

    #[test]
    fn a_late_frame_is_taken_off_the_lost_ones() {
        let mut ledger = Ledger::default();
        ledger.record(frame(5, 0, 1));
        assert_eq!(ledger.total(), counts(1, 5, 0));
        ledger.record(frame(0, 0, 5));
        assert_eq!(ledger.total(), counts(6, 0, 0));
    }

    #[test]
    fn a_lapsed_lease_begins_a_flow_only_if_the_sequence_does() {
        let mut kept = Ledger::default();
        kept.record(frame(0, 0, 5));
        kept.doubt_flow();
        kept.record(frame(6, 0, 1));
        assert_eq!(kept.total(), counts(6, 1, 0));

        let mut anew = Ledger::default();
        anew.record(frame(0, 0, 5));
        anew.doubt_flow();
        anew.record(frame(1, 1, 2));
        assert_eq!(anew.total(), counts(7, 0, 1));
        assert_eq!(anew.of_bus(), anew.total());
    }

    #[test]
    fn a_restarted_bus_begins_a_flow_and_a_report() {
        let mut ledger = Ledger::default();
        ledger.record(frame(1, 0, 1));
        ledger.begin_bus();
        assert_eq!(ledger.of_bus(), counts(0, 0, 0));
        ledger.record(frame(3, 0, 1));
        assert_eq!(ledger.of_bus(), counts(1, 3, 0));
        assert_eq!(ledger.total(), counts(2, 4, 0));
    }

    #[test]
    fn absurd_stamps_saturate() {
        let mut ledger = Ledger::default();
        ledger.record(frame(u64::MAX, u64::MAX, u64::MAX));
        ledger.record(frame(0, u64::MAX, 9));
        ledger.begin_bus();
        ledger.record(frame(u64::MAX, 0, 1));
        assert_eq!(ledger.of_bus().lost, u64::MAX - 1);
        assert_eq!(ledger.total().received, u64::MAX);
    }

    /// What the bus does with a run of events, and what the network does with it.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        DroppedByBus,
        Lost,
        Arrives,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            Just(Fate::DroppedByBus),
            Just(Fate::Lost),
            Just(Fate::Arrives)
        ]
    }

    /// The frames that arrive, in the order of sending, and what truly happened.
    fn send(runs: &[(u64, Fate)]) -> (Vec<FrameTally>, FlowCounts) {
        let (mut sequence, mut truth) = (0, FlowCounts::default());
        let mut arrived = Vec::new();
        for &(events, fate) in runs {
            match fate {
                Fate::DroppedByBus => truth.dropped_by_bus += events,
                Fate::Lost => truth.lost += events,
                Fate::Arrives => {
                    arrived.push(frame(sequence, truth.dropped_by_bus, events));
                    truth.received += events;
                }
            }
            sequence += events;
        }
        // The last frame tells of all before it.
        arrived.push(frame(sequence, truth.dropped_by_bus, 0));
        (arrived, truth)
    }

    proptest! {
        #[test]
        fn the_books_balance_in_any_order(
            runs in prop::collection::vec((1_u64..50, fate()), 0..40),
            order in any::<u64>(),
        ) {
            let (mut arrived, truth) = send(&runs);
            arrived.sort_by_key(|frame| frame.sequence.wrapping_mul(order | 1).rotate_left(17));
            let mut ledger = Ledger::default();
            arrived.iter().for_each(|&frame| ledger.record(frame));
            prop_assert_eq!(ledger.total(), truth);
        }

        #[test]
        fn repeated_frames_only_hide_loss(
            runs in prop::collection::vec((1_u64..50, fate()), 1..40),
            repeat in any::<prop::sample::Index>(),
        ) {
            let (arrived, truth) = send(&runs);
            let mut ledger = Ledger::default();
            arrived.iter().for_each(|&frame| ledger.record(frame));
            let again = *repeat.get(&arrived);
            ledger.record(again);
            let told = ledger.total();
            prop_assert_eq!(told.received, truth.received + again.events);
            prop_assert_eq!(told.lost, truth.lost.saturating_sub(again.events));
        }

        #[test]
        fn nothing_makes_it_panic(
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), 0_u8..3), 0..50),
        ) {
            let mut ledger = Ledger::default();
            for (sequence, dropped, events, step) in steps {
                match step {
                    0 => ledger.doubt_flow(),
                    1 => ledger.begin_bus(),
                    _ => ledger.record(frame(sequence, dropped, events)),
                }
                let _ = (ledger.total(), ledger.of_bus());
            }
        }
    }
}
