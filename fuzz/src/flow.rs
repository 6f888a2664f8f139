//! The counts of one flow under stamps of every kind: nothing that was counted is taken back, what
//! is kept is bounded, whoever waits for its timer does not turn in a circle. And where stamps are
//! those of an honest sender, over whatever network, the counts are those of a table with a place
//! for each event, and tell in the end what the sender and the network did.

use std::time::Duration;

use hailmary_proto::flow::{FlowCounts, GAPS_MAX, PUBLISHER_WINDOW, Position, Tracker, WINDOW};

use crate::tape::Tape;

/// Bytes that a flow holds at once: its gaps, which are 64 at most, in a queue that doubles.
const BYTES_MAX: u64 = 16 << 10;

/// Bytes that the table beside an honest sender's flow holds, with all that is under way.
const TABLE_BYTES_MAX: u64 = 1 << 20;

/// Events of an honest sender: each has a place in the table, which is walked for each frame.
const EVENTS_MAX: u64 = 4_096;

/// See the module.
pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    match tape.one_in(2) {
        true => crate::within(TABLE_BYTES_MAX, || honest(&mut tape)),
        false => crate::within(BYTES_MAX, || hostile(&mut tape)),
    }
}

fn hostile(tape: &mut Tape<'_>) {
    let mut now = Duration::ZERO;
    let mut flow = match tape.below(2) {
        0 => Tracker::from_zero(),
        _ => Tracker::from_first(now, position(tape, 0)),
    };
    while !tape.is_at_end() {
        let before = flow.counts();
        let news = match tape.below(8) {
            0 => {
                now += tape.pause();
                flow.settle(now)
            }
            1 => flow.settle_all(),
            _ => {
                let at = position(tape, flow.next());
                let events = u64::from(tape.byte()) * u64::from(tape.byte());
                flow.record(now, at, events)
            }
        };
        assert_eq!(flow.counts(), before.plus(news));
        check_timer(&flow, now);
    }
}

/// Near to where the flow is, or anywhere.
fn position(tape: &mut Tape<'_>, next: u64) -> Position {
    let near = |tape: &mut Tape<'_>| {
        let by = u64::from(tape.byte());
        match tape.below(4) {
            0 => next.saturating_sub(by),
            1 => next.saturating_add(by),
            2 => next,
            _ => tape.number(),
        }
    };
    Position {
        sequence: near(tape),
        dropped: near(tape),
    }
}

fn check_timer(flow: &Tracker, now: Duration) {
    let mut settled = flow.clone();
    settled.settle(now);
    let end = settled.poll_timeout();
    assert!(end.is_none_or(|end| end > now), "{end:?} at {now:?}");
    // A clone that has nothing left to await is told so.
    settled.settle_all();
    assert_eq!((settled.awaited(), settled.poll_timeout()), (0, None));
}

/// What becomes of an event, by the words of the documentation.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Received,
    /// Since when, and in which gap: one for each time that something was missing.
    Awaited(Duration, u64),
    Missing,
}

/// A flow from its very first event on, with a place for each.
struct Table {
    window: Duration,
    places: Vec<Place>,
    gaps: u64,
    dropped: u64,
    counts: FlowCounts,
}

impl Table {
    fn count(&self, is_it: fn(&Place) -> bool) -> u64 {
        let places = self.places.iter();
        places.filter(|place| is_it(place)).count() as u64
    }

    fn absent(&self) -> u64 {
        self.count(|place| *place != Place::Received)
    }

    fn awaited(&self) -> u64 {
        self.absent() - self.counts.lost - self.counts.dropped
    }

    fn lost_at_most(&self) -> u64 {
        let beyond_dropped = self.absent().saturating_sub(self.dropped);
        beyond_dropped.max(self.counts.lost)
    }

    fn record(&mut self, now: Duration, at: Position, events: u64) {
        let index = |number: u64| usize::try_from(number).expect("few");
        let (start, end) = (index(at.sequence), index(at.sequence + events));
        if start >= self.places.len() {
            self.gaps += 1;
            self.places.resize(start, Place::Awaited(now, self.gaps));
            self.places.resize(end, Place::Received);
            self.counts.received += events;
        } else if events > 0 {
            let places = &mut self.places[start..end];
            let is_awaited = |place: &Place| matches!(place, Place::Awaited(..));
            match places.iter().all(is_awaited) {
                true => self.counts.received += events,
                false => self.counts.duplicates += events,
            }
            if places.iter().all(is_awaited) {
                places.fill(Place::Received);
            }
        }
        self.dropped = self.dropped.max(at.dropped);
        self.settle(now);
    }

    /// Pieces of gaps, the lowest first: from where to where, and since when.
    fn pieces(&self) -> Vec<(usize, usize, Duration)> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for alike in self.places.chunk_by(|one, next| one == next) {
            let end = start + alike.len();
            if let Place::Awaited(since, _) = alike[0] {
                pieces.push((start, end, since));
            }
            start = end;
        }
        pieces
    }

    /// What has been awaited for long enough, or is one piece too many, is missing. What the
    /// sender dropped is missing, too: only what is missing beyond that is lost. As many as are
    /// lost may have been dropped, and told of too late.
    fn settle(&mut self, now: Duration) {
        let pieces = self.pieces();
        let too_many = pieces.len().saturating_sub(GAPS_MAX);
        for (number, (start, end, since)) in pieces.into_iter().enumerate() {
            if number >= too_many && now < since + self.window {
                break;
            }
            self.places[start..end].fill(Place::Missing);
        }
        let absent = self.absent();
        let missing = self.count(|place| *place == Place::Missing);
        let counts = &mut self.counts;
        let in_all = self.dropped.min(absent).saturating_sub(counts.lost);
        let for_sure = self.dropped.min(missing - counts.lost);
        counts.dropped = counts.dropped.max(in_all).max(for_sure);
        let lost = missing.saturating_sub(counts.dropped);
        counts.lost = counts.lost.max(lost);
    }
}

/// A flow, the table beside it, and a network.
struct Honest {
    flow: Tracker,
    table: Table,
    now: Duration,
    under_way: Vec<(Position, u64)>,
    /// Events that came when they were no longer awaited, and never before.
    late: u64,
}

impl Honest {
    fn new(window: Duration, flow: Tracker) -> Self {
        Self {
            flow,
            table: Table {
                window,
                places: Vec::new(),
                gaps: 0,
                dropped: 0,
                counts: FlowCounts::default(),
            },
            now: Duration::ZERO,
            under_way: Vec::new(),
            late: 0,
        }
    }

    fn deliver(&mut self, (at, events): (Position, u64)) {
        let start = usize::try_from(at.sequence).expect("few");
        let is_late = self.table.places.get(start) == Some(&Place::Missing);
        self.late += events * u64::from(is_late);
        self.flow.record(self.now, at, events);
        self.table.record(self.now, at, events);
        self.check();
    }

    fn check(&mut self) {
        self.flow.settle(self.now);
        self.table.settle(self.now);
        assert_eq!(self.flow.counts(), self.table.counts);
        assert_eq!(self.flow.awaited(), self.table.awaited());
        assert_eq!(self.flow.lost_at_most(), self.table.lost_at_most());
        assert_eq!(self.flow.next(), self.table.places.len() as u64);
        let pieces = self.table.pieces();
        let due = pieces
            .first()
            .map(|(_, _, since)| *since + self.table.window);
        assert_eq!(self.flow.poll_timeout(), due);
    }
}

/// A sender that numbers its frames and tells what it dropped, at once or when it comes to it, over
/// a network that loses, doubles and holds frames back for as long as it likes.
fn honest(tape: &mut Tape<'_>) {
    let mut all = match tape.one_in(2) {
        true => Honest::new(WINDOW, Tracker::from_zero()),
        false => {
            let first = Position::default();
            let flow = Tracker::from_first(Duration::ZERO, first);
            Honest::new(PUBLISHER_WINDOW, flow)
        }
    };
    let mut next = Position::default();
    let (mut lost, mut received, mut doubled) = (0, 0, 0);
    let (mut untold, mut told_at_once) = (0, true);
    while !tape.is_at_end() && next.sequence < EVENTS_MAX {
        let events = u64::from(tape.byte() % 8);
        let frame = (next, events);
        next.sequence += events;
        match tape.below(8) {
            0 if tape.one_in(2) => next.dropped += events,
            0 => {
                untold += events;
                told_at_once = false;
            }
            1 => lost += events,
            2 | 3 => {
                received += events;
                all.under_way.push(frame);
            }
            4 => {
                received += events;
                doubled += events;
                all.deliver(frame);
                all.under_way.push(frame);
            }
            _ => {
                received += events;
                all.deliver(frame);
            }
        }
        if tape.one_in(4) {
            next.dropped += std::mem::take(&mut untold);
        }
        if tape.one_in(4) {
            all.now += Duration::from_millis(4 * u64::from(tape.byte()));
            all.check();
        }
        if !all.under_way.is_empty() && tape.one_in(4) {
            let place = tape.below(all.under_way.len());
            let frame = all.under_way.swap_remove(place);
            all.deliver(frame);
        }
    }
    for frame in std::mem::take(&mut all.under_way) {
        all.deliver(frame);
    }
    // A stamp without events tells of the last ones.
    next.dropped += untold;
    all.deliver((next, 0));
    all.now = Duration::from_secs(3_600);
    all.check();
    let counts = all.flow.counts();
    let (late, dropped) = (all.late, next.dropped);
    assert_eq!(
        (counts.received, counts.duplicates),
        (received - late, doubled + late)
    );
    assert_eq!(counts.lost + counts.dropped, lost + late + dropped);
    // Of what is told too late nobody knows whether it is among the lost.
    assert!(counts.dropped <= dropped);
    assert!(counts.dropped == dropped || !told_at_once);
}
