"""What arrived and what did not, by the stamps of the bus's frames.

Owns the arithmetic of loss on the last hop. It knows no socket, no lease and no
clock, and no stamp can make it raise or count below zero.

A stamp tells how many events of its flow went before the frame (`sequence`) and
how many of these the bus itself dropped (`dropped`). So of the frame that
reaches furthest,

    lost = (its sequence + its events) - received - dropped

which leaves out what was lost behind that frame, since nothing told of it yet.
A frame that comes late lowers the figure again. A frame that comes twice is
received twice: it hides as many lost events as it has, and the figure stops at
zero.
"""

from __future__ import annotations

from typing import NamedTuple


class FlowCounts(NamedTuple):
    """What became of the events of one or more flows."""

    received: int = 0
    lost: int = 0
    dropped_by_bus: int = 0

    def plus(self, other: FlowCounts) -> FlowCounts:
        """Both together."""
        return FlowCounts(
            self.received + other.received,
            self.lost + other.lost,
            self.dropped_by_bus + other.dropped_by_bus,
        )


class _Flow:
    """One flow, from sequence 0 to the newest frame that arrived."""

    def __init__(self) -> None:
        self.received = 0
        self.end = 0
        self.dropped = 0

    def record(self, sequence: int, dropped: int, events: int) -> None:
        self.received += events
        self.end = max(self.end, sequence + events)
        # The dropped ones are a part of the sequence; a stamp that says
        # otherwise is not believed.
        self.dropped = max(self.dropped, min(dropped, sequence))

    def counts(self) -> FlowCounts:
        lost = max(0, self.end - self.received - self.dropped)
        return FlowCounts(self.received, lost, self.dropped)


class Ledger:
    """The flows of one subscription, one after the other."""

    def __init__(self) -> None:
        self._flow = _Flow()
        self._in_doubt = False
        self._ended_of_bus = FlowCounts()
        self._of_earlier_buses = FlowCounts()

    def record(self, sequence: int, dropped: int, events: int) -> None:
        """Counts one frame of the present flow."""
        if self._in_doubt and sequence < self._flow.end:
            self._end_flow()
        self._in_doubt = False
        self._flow.record(sequence, dropped, events)

    def begin_bus(self) -> None:
        """Another bus took over: its flow begins at sequence 0."""
        self._end_flow()
        self._in_doubt = False
        self._of_earlier_buses = self._of_earlier_buses.plus(self._ended_of_bus)
        self._ended_of_bus = FlowCounts()

    def doubt_flow(self) -> None:
        """The bus may have begun the flow anew; the next frame tells.

        A sequence below what was seen before is a new flow; any other goes on
        with the old one. Where a new flow lost all its beginning, up to that
        very place, this takes it for the old one, and leaves as many lost
        events uncounted as the old flow had. Taking each new lease for a new
        flow would be worse: where the old one goes on, since the bus's answers
        alone were lost, all its events would be called lost.
        """
        self._in_doubt = True

    def total(self) -> FlowCounts:
        """Since the subscription began, over all buses."""
        return self._of_earlier_buses.plus(self.of_bus())

    def of_bus(self) -> FlowCounts:
        """Since it began to listen to the present bus: what it reports."""
        return self._ended_of_bus.plus(self._flow.counts())

    def _end_flow(self) -> None:
        self._ended_of_bus = self._ended_of_bus.plus(self._flow.counts())
        self._flow = _Flow()
