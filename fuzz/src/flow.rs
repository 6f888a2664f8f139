//! The counts of one flow under stamps of every kind: nothing that was counted is taken back, what
//! is kept is bounded, whoever waits for its timer does not turn in a circle. And where stamps and
//! times are those of an honest sender, the books of the flow balance.

use std::time::Duration;

use hailmary_proto::flow::{FlowCounts, PUBLISHER_WINDOW, Position, Tracker, WINDOW};

use crate::tape::Tape;

/// Bytes that a flow holds at once: its gaps, which are 64 at most, in a queue that doubles.
const BYTES_MAX: u64 = 16 << 10;

/// See the module.
pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    let is_honest = tape.one_in(2);
    crate::within(BYTES_MAX, || match is_honest {
        true => honest(&mut tape),
        false => hostile(&mut tape),
    });
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

/// A sender that numbers its frames and tells what it dropped, over a network that loses, doubles
/// and holds frames back, for less than the window.
fn honest(tape: &mut Tape<'_>) {
    let (mut sequence, mut dropped) = (0_u64, 0_u64);
    let mut under_way: Vec<(Position, u64, Duration)> = Vec::new();
    let mut now = Duration::ZERO;
    let mut flow = Tracker::from_zero();
    let (mut lost, mut received) = (0, 0);
    while !tape.is_at_end() && sequence < 1 << 20 {
        let at = Position { sequence, dropped };
        let events = u64::from(tape.byte() % 8);
        sequence += events;
        match tape.below(6) {
            0 => dropped += events,
            1 => lost += events,
            2 => {
                received += events;
                under_way.push((at, events, now));
            }
            _ => {
                received += events;
                flow.record(now, at, events);
            }
        }
        if tape.one_in(4) {
            now += Duration::from_millis(u64::from(tape.byte()));
        }
        let is_late = |sent: Duration| now + PUBLISHER_WINDOW >= sent + WINDOW;
        let place = under_way.iter().position(|(_, _, sent)| is_late(*sent));
        let place = place.or_else(|| {
            let any = !under_way.is_empty() && tape.one_in(4);
            any.then(|| tape.below(under_way.len()))
        });
        if let Some(place) = place {
            let (at, events, _) = under_way.remove(place);
            flow.record(now, at, events);
        }
        check_timer(&flow, now);
    }
    for (at, events, _) in under_way {
        flow.record(now, at, events);
    }
    flow.record(now, Position { sequence, dropped }, 0);
    check_books(&flow, FlowCounts::default(), sequence);
    flow.settle_all();
    let counts = flow.counts();
    // More gaps than are awaited at once let the oldest be lost too early.
    let expected = (received, lost, dropped);
    let told = (counts.received, counts.lost, counts.dropped);
    assert!(
        told == expected || counts.duplicates > 0,
        "{told:?}, not {expected:?}"
    );
}

fn check_books(flow: &Tracker, before: FlowCounts, sequence: u64) {
    let counts = flow.counts().since(before);
    let all = counts.received + counts.lost + counts.dropped + flow.awaited();
    assert_eq!(all, sequence);
}
