"""What arrived and what did not, by the stamps of the bus's frames.

Owns the arithmetic of loss on the last hop. It knows no socket, no lease and no
clock, and no stamp can make it raise or count backwards.

A stamp says how many events of its flow went before the frame (`sequence`), and
how many of these the bus itself dropped (`dropped`). Datagrams may be reordered
and doubled, so what is missing is not lost at once: it stays awaited for a
window. At any time

    sequence after the newest frame = received + lost + dropped + awaited

and nothing that has been counted is ever taken back. What the bus tells to have
dropped when the window is over has been counted as lost; as many of the next
that are missing are counted as dropped in its stead. What was lost behind the
newest stamp nobody has told of yet.

`Tracker` is the same as the bus's own (`proto/src/flow.rs`), and
`tests/vectors/flows.json` holds both to that. `Ledger` is what a subscription
adds: its flows, one after the other.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple, Optional

WINDOW_SECONDS = 3.0
"""How long a subscriber awaits a missing event before it is lost: far longer
than any network holds a datagram back that it still delivers, and longer than
the 2 seconds between renewals of a lease, whose stamps tell what the bus has
learnt meanwhile to have dropped."""

PUBLISHER_WINDOW_SECONDS = 1.0
"""How long a bus awaits a missing event of a publisher."""

GAPS_MAX = 64
"""Gaps of one flow that are awaited at once. With more, the oldest is lost: a
receiver that misses so much is short of something else than order."""

GAP_EVENTS_MAX = 1 << 32
"""Events between two frames of a flow that may be missing. More is no loss but
a forgery."""

_UINT64_MAX = 2**64 - 1


class FlowCounts(NamedTuple):
    """What became of the events of one or more flows."""

    received: int = 0
    """Arrived, each once."""

    lost: int = 0
    """Sent, and did not arrive within the window."""

    dropped: int = 0
    """Dropped by the sender itself."""

    duplicates: int = 0
    """Arrived again, or after they had been counted as lost."""

    def plus(self, other: FlowCounts) -> FlowCounts:
        """Both together."""
        return FlowCounts(*(mine + theirs for mine, theirs in zip(self, other)))


class _Gap(NamedTuple):
    """Events that are awaited."""

    start: int
    end: int
    since: float


class Tracker:
    """Follows one flow. `now` is in seconds of a clock that does not jump."""

    __slots__ = (
        "_began",
        "_dropped",
        "_dropped_before",
        "_duplicates",
        "_gaps",
        "_lost",
        "_missing",
        "_received",
        "_sender_dropped",
        "_start",
        "_window",
        "next",
    )

    def __init__(self) -> None:
        self._window = WINDOW_SECONDS
        self.next = 0
        """The sequence that the next frame has if nothing is missing before it."""
        # The first sequence, and when the flow began, where its first frame
        # decides.
        self._start: Optional[int] = None
        self._began = 0.0
        # What the sender had dropped before, and says it dropped since.
        self._dropped_before = 0
        self._sender_dropped = 0
        # Events in gaps that are no longer awaited.
        self._missing = 0
        # Oldest and lowest first.
        self._gaps: deque[_Gap] = deque()
        self._received = 0
        self._lost = 0
        self._dropped = 0
        self._duplicates = 0

    @classmethod
    def from_zero(cls) -> Tracker:
        """The bus's flow to a subscriber, which is followed from its very first
        event."""
        return cls()

    @classmethod
    def from_first(cls, now: float, sequence: int, dropped: int) -> Tracker:
        """A publisher's flow, which a bus follows from its first frame on that
        arrives. A frame from before it that comes within the window counts as
        well."""
        tracker = cls()
        tracker._window = PUBLISHER_WINDOW_SECONDS
        tracker._start, tracker._began = sequence, now
        tracker.next = sequence
        tracker._dropped_before = min(dropped, sequence)
        return tracker

    def record(self, now: float, sequence: int, dropped: int, events: int) -> None:
        """Counts a frame. One without events tells what went before it."""
        if sequence == self.next and dropped == self._dropped_before + self._sender_dropped:
            self._receive_up_to(min(sequence + events, _UINT64_MAX))
        else:
            self._record_out_of_order(now, sequence, dropped, events)

    def settle(self, now: float) -> None:
        """Counts as lost what has been awaited for the whole window."""
        gaps = self._gaps
        while gaps and (len(gaps) > GAPS_MAX or now >= gaps[0].since + self._window):
            gap = gaps.popleft()
            self._missing += gap.end - gap.start
        self._count_missing()

    def settle_all(self) -> None:
        """Counts all that is missing as lost: nothing more is awaited."""
        self.settle(math.inf)

    def poll_timeout(self) -> float:
        """When `settle` has something to count if nothing arrives; else never."""
        return self._gaps[0].since + self._window if self._gaps else math.inf

    def counts(self) -> FlowCounts:
        """The counts so far."""
        return FlowCounts(self._received, self._lost, self._dropped, self._duplicates)

    @property
    def awaited(self) -> int:
        """Events that are missing, and may come yet or turn out to have been
        dropped."""
        return max(0, self._missing + self._in_gaps() - self._lost - self._dropped)

    def _record_out_of_order(self, now: float, sequence: int, dropped: int, events: int) -> None:
        end = sequence + events
        if abs(sequence - self.next) > GAP_EVENTS_MAX or end > _UINT64_MAX:
            self._duplicates += events
            return
        if sequence >= self.next:
            self._await_up_to(now, sequence)
            self._receive_up_to(end)
        elif events:
            self._take_late(now, sequence, dropped, end)
        self._sender_dropped = max(self._sender_dropped, dropped - self._dropped_before)
        self.settle(now)

    def _take_late(self, now: float, sequence: int, dropped: int, end: int) -> None:
        if end > self.next:
            # No honest frame overlaps another.
            self._duplicates += self.next - sequence
            self._receive_up_to(end)
        elif not self._fill(sequence, end) and not self._begin_earlier(
            now, sequence, dropped, end
        ):
            self._duplicates += end - sequence

    def _await_up_to(self, now: float, sequence: int) -> None:
        if sequence > self.next:
            self._gaps.append(_Gap(self.next, sequence, now))
            self.next = sequence

    def _receive_up_to(self, end: int) -> None:
        self._received += end - self.next
        self.next = end

    def _fill(self, start: int, end: int) -> bool:
        """Takes what came late out of the gap that it lies in, if it lies in one."""
        for index, gap in enumerate(self._gaps):
            if gap.start <= start and end <= gap.end:
                break
        else:
            return False
        del self._gaps[index]
        for part in (_Gap(end, gap.end, gap.since), _Gap(gap.start, start, gap.since)):
            if part.start < part.end:
                self._gaps.insert(index, part)
        self._received += end - start
        return True

    def _begin_earlier(self, now: float, sequence: int, dropped: int, end: int) -> bool:
        """Lets the flow begin with a frame from before the one that arrived first."""
        start = self._start
        if start is None or end > start or now >= self._began + self._window:
            return False
        if end < start:
            self._gaps.appendleft(_Gap(end, start, self._began))
        dropped_before = min(dropped, self._dropped_before)
        self._sender_dropped += self._dropped_before - dropped_before
        self._dropped_before = dropped_before
        self._start = sequence
        self._received += end - sequence
        return True

    def _count_missing(self) -> None:
        """What the sender dropped is missing too. Only what is missing beyond
        that is lost.

        What it told of too late is among the lost already, and nobody knows how
        much that is. So what still may come is taken for dropped only as far as
        more were dropped than are lost; what is no longer awaited, as far as it
        goes."""
        told, lost = self._sender_dropped, self._lost
        beyond_lost = min(told, self._missing + self._in_gaps()) - lost
        of_missing = min(told, self._missing - lost)
        self._dropped = max(self._dropped, beyond_lost, of_missing)
        self._lost = max(lost, self._missing - self._dropped)

    def _in_gaps(self) -> int:
        return sum(gap.end - gap.start for gap in self._gaps)


class Ledger:
    """The flows of one subscription, one after the other.

    A new lease's flow begins at sequence 0. Whether a bus of the same id that
    grants a lease has begun a new flow or goes on with the old one, its answer
    tells: the stamp on it can be lower than what had arrived when the lease was
    asked for only if the flow is a new one. A renewal's is held against what had
    arrived one request earlier, so that no late answer passes for a new flow's.

    Where the very answer that began a flow got lost, and the next one's stamp is
    past all that, the new flow passes for the old one.
    """

    def __init__(self) -> None:
        self._flow = Tracker.from_zero()
        # How far the flow had come when the newest request was first made.
        self._asked_at = 0
        # A lower sequence on a grant is of a new flow. 0 where the flow is no
        # older than the request.
        self._new_below = 0
        self._in_doubt = False
        self._ended_of_bus = FlowCounts()
        self._of_earlier_buses = FlowCounts()
        self.dropped_here = 0
        """Events that arrived and that this side then dropped, over all buses."""
        self.dropped_here_of_bus = 0
        """Of these, the present bus's."""

    def drop_here(self, events: int) -> None:
        """Counts events of the newest frame that found no room on this side.
        They did arrive, so they are among the received ones too."""
        self.dropped_here += events
        self.dropped_here_of_bus += events

    def record(self, now: float, sequence: int, dropped: int, events: int) -> None:
        """Counts one frame of events."""
        if self._in_doubt:
            self._in_doubt = False
            if self._new_below and sequence < self._flow.next:
                self._end_flow()
        self._flow.record(now, sequence, dropped, events)

    def begin_request(self) -> None:
        """A lease is asked for. To repeat that is not to ask anew: a late answer
        may be to the first request."""
        self._new_below, self._asked_at = self._asked_at, self._flow.next

    def lapse(self) -> None:
        """The lease ended. Its last events may still be in the socket, so that
        they come after the request for another; but if that one's flow has no
        events yet, it is not the old one."""
        self._new_below = max(self._asked_at, 1)

    def handle_grant(self, now: float, sequence: int, dropped: int) -> None:
        """Counts the stamp on a lease that the present bus grants or renews."""
        self._in_doubt = False
        if sequence < self._new_below:
            self._end_flow()
        self._flow.record(now, sequence, dropped, 0)

    def begin_bus(self) -> None:
        """Another bus took over: its flow begins at sequence 0."""
        self._end_flow()
        self._in_doubt = False
        self._of_earlier_buses = self._of_earlier_buses.plus(self._ended_of_bus)
        self._ended_of_bus = FlowCounts()
        self.dropped_here_of_bus = 0

    def doubt_flow(self) -> None:
        """The bus may have begun the flow anew, and no stamp on an answer tells
        yet; so the next frame does.

        A sequence below what was seen before is a new flow; any other goes on
        with the old one. Where a new flow lost all its beginning, up to that
        very place, this takes it for the old one, and leaves as many lost
        events uncounted as the old flow had. Taking each new lease for a new
        flow would be worse: where the old one goes on, since the bus's answers
        alone were lost, all its events would be called lost.
        """
        self._in_doubt = True

    def settle(self, now: float) -> None:
        """Counts as lost what has been awaited for long enough."""
        self._flow.settle(now)

    def settle_all(self) -> None:
        """Nothing more will come."""
        self._flow.settle_all()

    def poll_timeout(self) -> float:
        """When `settle` has something to count if nothing arrives."""
        return self._flow.poll_timeout()

    def total(self) -> FlowCounts:
        """Since the subscription began, over all buses."""
        return self._of_earlier_buses.plus(self.of_bus())

    def of_bus(self) -> FlowCounts:
        """Since it began to listen to the present bus: what it reports."""
        return self._ended_of_bus.plus(self._flow.counts())

    @property
    def awaited(self) -> int:
        """Events that are missing and in no count yet."""
        return self._flow.awaited

    def _end_flow(self) -> None:
        self._flow.settle_all()
        self._ended_of_bus = self._ended_of_bus.plus(self._flow.counts())
        self._flow = Tracker.from_zero()
        self._asked_at = self._new_below = 0
