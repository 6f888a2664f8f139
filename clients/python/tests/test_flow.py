"""The arithmetic of loss on the last hop; the rest is in the golden flows."""

import math
import random
from typing import Optional

import pytest

from hailmary._flow import GAPS_MAX, WINDOW_SECONDS, FlowCounts, Ledger, Tracker

NOW = 1000.0


def flow_of(received: int) -> Ledger:
    """A ledger whose flow has got so far."""
    ledger = Ledger()
    ledger.record(NOW, 0, 0, received)
    return ledger


def settled(ledger: Ledger) -> FlowCounts:
    ledger.settle_all()
    return ledger.total()


def test_what_is_missing_is_awaited_then_lost() -> None:
    ledger = Ledger()
    ledger.record(NOW, sequence=10, dropped=4, events=1)
    assert ledger.total() == FlowCounts(received=1, dropped=4)
    assert ledger.awaited == 6
    due = ledger.poll_timeout()
    assert due == NOW + WINDOW_SECONDS
    ledger.settle(math.nextafter(due, 0.0))
    assert ledger.total().lost == 0
    ledger.settle(due)
    assert ledger.total() == FlowCounts(received=1, lost=6, dropped=4)
    assert (ledger.awaited, ledger.poll_timeout()) == (0, math.inf)


@pytest.mark.parametrize("now", [0.1, 1e-9, 123456.789, 7e8 + 0.3])
def test_at_its_timeout_there_is_something_to_settle(now: float) -> None:
    """Else whoever waits for it would wait in a circle."""
    flow = Tracker.from_zero()
    flow.record(now, 1, 0, 1)
    flow.settle(flow.poll_timeout())
    assert flow.counts().lost == 1


def test_a_grant_of_the_standing_flow_goes_on_with_it() -> None:
    ledger = flow_of(5)
    ledger.begin_request()
    ledger.record(NOW, 5, 0, 2)
    ledger.handle_grant(NOW, 5, 0)
    assert settled(ledger) == FlowCounts(received=7), "two events overtook the answer"


def test_a_grant_tells_of_what_was_lost_behind_the_newest_frame() -> None:
    ledger = flow_of(5)
    ledger.begin_request()
    ledger.handle_grant(NOW, 9, 1)
    assert ledger.total() == FlowCounts(received=5, dropped=1)
    assert settled(ledger) == FlowCounts(received=5, lost=3, dropped=1)


def test_a_grant_below_what_had_arrived_is_of_a_new_flow() -> None:
    ledger = flow_of(5)
    ledger.begin_request()
    ledger.handle_grant(NOW, 5, 0)
    ledger.begin_request()
    ledger.handle_grant(NOW, 3, 0)
    assert settled(ledger) == FlowCounts(received=5, lost=3)
    ledger.record(NOW, 3, 0, 1)
    assert settled(ledger) == FlowCounts(received=6, lost=3)
    assert ledger.of_bus() == ledger.total()


def test_a_late_grant_is_of_no_new_flow() -> None:
    ledger = flow_of(5)
    ledger.begin_request()
    ledger.record(NOW, 5, 0, 4)
    ledger.handle_grant(NOW, 9, 0)
    ledger.begin_request()
    ledger.handle_grant(NOW, 5, 0)
    ledger.record(NOW, 9, 0, 1)
    assert settled(ledger) == FlowCounts(received=10)


def test_a_flow_that_ends_awaits_nothing_more() -> None:
    ledger = Ledger()
    ledger.record(NOW, 3, 0, 1)
    ledger.begin_request()
    ledger.lapse()
    ledger.handle_grant(NOW, 0, 0)
    assert (ledger.total(), ledger.awaited) == (FlowCounts(received=1, lost=3), 0)


def test_what_waited_in_the_socket_over_a_lapse_is_of_the_old_flow() -> None:
    ledger = Ledger()
    ledger.begin_request()
    ledger.lapse()
    ledger.record(NOW, 0, 0, 800)
    ledger.handle_grant(NOW, 0, 0)
    ledger.record(NOW, 0, 0, 2)
    assert settled(ledger) == FlowCounts(received=802)


def test_the_first_events_of_an_idle_flow_may_overtake_a_renewal() -> None:
    ledger = Ledger()
    ledger.begin_request()
    ledger.record(NOW, 0, 0, 2)
    ledger.handle_grant(NOW, 0, 0)
    ledger.record(NOW, 2, 0, 1)
    assert settled(ledger) == FlowCounts(received=3)


@pytest.mark.parametrize("grant", [0, None])
def test_the_first_events_of_a_new_flow_may_overtake_its_grant(grant: Optional[int]) -> None:
    ledger = flow_of(5)
    ledger.begin_request()
    ledger.lapse()
    ledger.doubt_flow()
    ledger.record(NOW, 0, 0, 2)
    if grant is None:
        ledger.doubt_flow()
    else:
        ledger.handle_grant(NOW, grant, 0)
    ledger.record(NOW, 3, 0, 1)
    ledger.record(NOW, 2, 0, 1)
    assert settled(ledger) == FlowCounts(received=9)


def test_a_doubted_flow_goes_on_if_the_sequence_does() -> None:
    ledger = flow_of(5)
    ledger.begin_request()
    ledger.lapse()
    ledger.doubt_flow()
    ledger.record(NOW, 6, 0, 1)
    assert settled(ledger) == FlowCounts(received=6, lost=1)


def test_a_doubted_flow_begins_anew_if_the_sequence_does() -> None:
    ledger = flow_of(5)
    ledger.begin_request()
    ledger.lapse()
    ledger.doubt_flow()
    ledger.record(NOW, 1, 1, 2)
    assert settled(ledger) == FlowCounts(received=7, dropped=1)
    ledger.record(NOW, 1, 1, 1)
    assert ledger.total().duplicates == 1, "the same flow, with no doubt left"
    assert ledger.of_bus() == ledger.total()


def test_another_bus_begins_a_flow_and_a_report() -> None:
    ledger = Ledger()
    ledger.record(NOW, 1, 0, 1)
    ledger.begin_bus()
    assert ledger.of_bus() == FlowCounts()
    ledger.record(NOW, 3, 0, 1)
    ledger.settle_all()
    assert ledger.of_bus() == FlowCounts(received=1, lost=3)
    assert ledger.total() == FlowCounts(received=2, lost=4)


class Way:
    """A flow over a network that loses, reorders and doubles: frames to send,
    in order, and what has to be counted of them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.sequence = 0
        self.dropped = 0
        self.expected = FlowCounts()
        self._arrivals: list[tuple[float, int, int, int]] = []

    def send(self) -> None:
        """One frame of the bus, of one fate or another."""
        events = self._rng.randrange(1, 50)
        fate = self._rng.choice(["dropped", "lost", "arrives", "arrives", "doubled"])
        stamp = (self.sequence, self.dropped, events)
        self.sequence += events
        self.dropped += events * (fate == "dropped")
        copies = {"arrives": 1, "doubled": 2}.get(fate, 0)
        for _ in range(copies):
            self._arrivals.append((len(self._arrivals) + 6 * self._rng.random(), *stamp))
        self.expected = self.expected.plus(
            FlowCounts(
                received=events * (copies > 0),
                lost=events * (fate == "lost"),
                dropped=events * (fate == "dropped"),
                duplicates=events * (copies == 2),
            )
        )

    def arrivals(self) -> list[tuple[int, int, int]]:
        """What is underway now, as it arrives."""
        arriving = [frame[1:] for frame in sorted(self._arrivals)]
        self._arrivals = []
        return arriving


@pytest.mark.parametrize("seed", range(100))
def test_every_event_is_counted_once_and_no_count_falls(seed: int) -> None:
    rng = random.Random(seed)
    ledger, expected, now = Ledger(), FlowCounts(), NOW
    for _ in range(rng.randrange(1, 4)):
        way = Way(rng)
        for _ in range(rng.randrange(1, 4)):
            for _ in range(rng.randrange(20)):
                way.send()
            for frame in way.arrivals():
                before, now = ledger.total(), now + rng.random() / 50
                ledger.record(now, *frame)
                assert all(was <= now_is for was, now_is in zip(before, ledger.total()))
            # A renewal, some time later: all is told.
            ledger.begin_request()
            ledger.handle_grant(now, way.sequence, way.dropped)
            total = ledger.total()
            assert total.received + total.lost + total.dropped + ledger.awaited == (
                expected.received + expected.lost + expected.dropped + way.sequence
            )
            now = max(now, min(ledger.poll_timeout(), now + 10))
        # The lease lapses, and the next flow begins.
        expected = expected.plus(way.expected)
        ledger.begin_request()
        ledger.lapse()
        ledger.handle_grant(now, 0, 0)
        assert ledger.total() == expected


@pytest.mark.parametrize("seed", range(100))
def test_no_stamps_make_it_raise_or_count_back(seed: int) -> None:
    rng = random.Random(seed)

    def number() -> int:
        return rng.choice([rng.randrange(99), rng.randrange(2**64), 2**64 - 1, 2**32])

    ledger = Ledger()
    for _ in range(300):
        before = ledger.total()
        now = NOW + 9 * rng.random()
        rng.choice(
            [
                lambda: ledger.record(now, number(), number(), rng.randrange(9)),
                lambda: ledger.handle_grant(now, number(), number()),
                lambda: ledger.settle(now),
                ledger.begin_request,
                ledger.lapse,
                ledger.doubt_flow,
                ledger.settle_all,
            ]
        )()
        assert all(was <= now_is for was, now_is in zip(before, ledger.total()))
        assert min(*ledger.total(), ledger.awaited) >= 0
        assert len(ledger._flow._gaps) <= GAPS_MAX
