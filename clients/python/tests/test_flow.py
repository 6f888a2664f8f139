"""The arithmetic of loss on the last hop."""

import random

import pytest

from hailmary._flow import FlowCounts, Ledger


def test_loss_is_told_by_what_arrives_later() -> None:
    ledger = Ledger()
    ledger.record(sequence=2, dropped=0, events=3)
    assert ledger.total() == FlowCounts(received=3, lost=2)
    ledger.record(sequence=10, dropped=4, events=1)
    assert ledger.total() == FlowCounts(received=4, lost=3, dropped_by_bus=4)
    ledger.record(sequence=20, dropped=4, events=0)
    assert ledger.total() == FlowCounts(received=4, lost=12, dropped_by_bus=4)


def test_a_late_frame_is_taken_off_the_lost_ones() -> None:
    ledger = Ledger()
    ledger.record(5, 0, 1)
    assert ledger.total().lost == 5
    ledger.record(0, 0, 5)
    assert ledger.total() == FlowCounts(received=6)


def test_a_repeated_frame_hides_loss_and_never_counts_below_zero() -> None:
    ledger = Ledger()
    ledger.record(0, 0, 5)
    ledger.record(0, 0, 5)
    assert ledger.total() == FlowCounts(received=10, lost=0)
    ledger.record(12, 0, 1)
    assert ledger.total() == FlowCounts(received=11, lost=2)


def test_a_stamp_that_drops_more_than_there_was_is_not_believed() -> None:
    ledger = Ledger()
    ledger.record(sequence=3, dropped=2**64 - 1, events=1)
    assert ledger.total() == FlowCounts(received=1, lost=0, dropped_by_bus=3)


def test_a_doubted_flow_goes_on_if_the_sequence_does() -> None:
    ledger = Ledger()
    ledger.record(0, 0, 5)
    ledger.doubt_flow()
    ledger.record(6, 0, 1)
    assert ledger.total() == FlowCounts(received=6, lost=1)


def test_a_doubted_flow_begins_anew_if_the_sequence_does() -> None:
    ledger = Ledger()
    ledger.record(0, 0, 5)
    ledger.doubt_flow()
    ledger.record(1, 1, 2)
    assert ledger.total() == FlowCounts(received=7, lost=0, dropped_by_bus=1)
    ledger.record(0, 0, 1)
    assert ledger.total().received == 8, "a late frame, with no doubt left"
    assert ledger.of_bus() == ledger.total()


def test_another_bus_begins_a_flow_and_a_report() -> None:
    ledger = Ledger()
    ledger.record(1, 0, 1)
    ledger.begin_bus()
    assert ledger.of_bus() == FlowCounts()
    ledger.record(3, 0, 1)
    assert ledger.of_bus() == FlowCounts(received=1, lost=3)
    assert ledger.total() == FlowCounts(received=2, lost=4)


@pytest.mark.parametrize("seed", range(50))
def test_the_books_balance_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    sequence = dropped = lost = received = 0
    arriving = []
    for _ in range(rng.randrange(60)):
        events = rng.randrange(1, 50)
        fate = rng.choice(["dropped by the bus", "lost", "arrives"])
        if fate == "arrives":
            arriving.append((sequence, dropped, events))
            received += events
        elif fate == "lost":
            lost += events
        else:
            dropped += events
        sequence += events
    arriving.append((sequence, dropped, 0))
    rng.shuffle(arriving)

    ledger = Ledger()
    for frame in arriving:
        ledger.record(*frame)
    assert ledger.total() == FlowCounts(received, lost, dropped)
