"""One subscription without I/O: datagrams and time in, events and requests out.

Joins the lease (what is said to the bus) and the ledger (what became of the
events). It opens no socket and reads no clock, so that every way a network can
behave is tested without one. The contract with whoever drives it:

1. Send what `poll_transmit` gives to the bus, from the socket that the events
   shall come to.
2. Wait for a datagram, at most until `wake_at`.
3. Hand it to `handle_datagram`; what that returns is for the application. If
   none is there, call `handle_timeout`. Then look at `refused`, and begin again.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Optional

from google.protobuf.message import DecodeError

from ._event import Event, Loss
from ._flow import FlowCounts, Ledger
from ._lease import Lease, Reason
from ._wire import bus_pb2


# How the protobuf library refuses a datagram; the last two are the ways of its
# pure Python implementation alone, which runs where the other has no build.
NO_FRAME = (DecodeError, UnicodeDecodeError, RecursionError)


UNHEARD_REQUESTS = 3
"""Without a lease, a bus that leaves so many requests in a row unanswered is
silent: one or two may get lost."""


class Origin(enum.Enum):
    """Where a datagram came from."""

    BUS = enum.auto()
    """The address that the requests go to."""
    ELSEWHERE = enum.auto()
    """Any other, such as the socket that a bus sends events from."""


@dataclass(frozen=True)
class SubscriptionStats:
    """What became of a subscription's events, since it began.

    No count but `awaited` ever falls. Of each lease's flow, the events before
    the newest stamp are received + lost + dropped_by_bus + awaited.
    """

    received: int = 0
    """Events that arrived, each once."""

    lost: int = 0
    """Events that the bus sent and that did not arrive: lost in the network, or
    in this socket's full buffer, while nobody took from it. Told by stamps
    that arrived later, once the events have been awaited for 3 seconds."""

    dropped_by_bus: int = 0
    """Events that the bus dropped itself: by a limit, a sample, a full buffer.
    They are not among `lost`."""

    dropped: int = 0
    """Events that arrived and were then dropped on this side, since so many
    waited to be handled. They are among `received`. None with the synchronous
    iterator, which leaves what it does not take in the socket's buffer."""

    duplicates: int = 0
    """Events that arrived again, or after they had been counted as lost. They
    are handed over all the same, and are in no other count for that."""

    awaited: int = 0
    """Events that are missing now. They may come yet, or turn out to be lost or
    dropped by the bus: each goes over into one of those counts. None once the
    subscription is closed."""

    lapses: int = 0
    """How often the lease ended before it was renewed, for whatever reason: the
    bus restarted or was away, the network was, or the iterator stood still.
    What was published till the next lease is in no other count."""

    bus_restarts: int = 0
    """How often a bus with another id granted the lease."""

    ignored_frames: int = 0
    """Datagrams that were no frame, or not of this subscription."""


class Session:
    """One subscription. `request` and `nonce` are as for `Lease`."""

    def __init__(self, request: bus_pb2.Subscribe, nonce: int, now: float) -> None:
        self._ledger = Ledger()
        self._told = FlowCounts()
        self._told_dropped_here = 0
        self._lease = Lease(request, nonce, self._ledger, now)
        self._ignored_frames = 0

    @property
    def held(self) -> bool:
        """Whether a lease stands."""
        return self._lease.held

    @property
    def refusal(self) -> Optional[Reason]:
        """The newest refusal since the last lease."""
        return self._lease.refusal

    @property
    def refused(self) -> Optional[Reason]:
        """Why the bus refused for good; nothing more will come."""
        return self._lease.refused

    @property
    def silent(self) -> bool:
        """Whether there is no lease and the bus leaves requests unanswered."""
        return not self.held and self._lease.requests_unheard >= UNHEARD_REQUESTS

    @property
    def transmit_at(self) -> float:
        """When `poll_transmit` has something next."""
        return self._lease.transmit_at

    @property
    def wake_at(self) -> float:
        """When there is something to do if nothing arrives."""
        return min(self._lease.transmit_at, self._ledger.poll_timeout())

    def poll_transmit(self, now: float) -> Optional[bytes]:
        """The datagram that is due, or nothing."""
        return self._lease.poll_transmit(now)

    def handle_datagram(self, now: float, origin: Origin, datagram: bytes) -> list[Event]:
        """Takes what arrived; gives the events that are in it for this subscription."""
        try:
            frame = bus_pb2.Frame.FromString(datagram)
        except NO_FRAME:
            self._ignored_frames += 1
            return []
        answered = origin is Origin.BUS and self._lease.handle_answer(now, frame)
        if self._is_of_flow(frame):
            return self._take_events(now, frame)
        self._ignored_frames += not answered
        return []

    def handle_timeout(self, now: float) -> None:
        """Nothing has arrived until now: counts what is no longer awaited."""
        if self._lease.ended:
            self._ledger.settle_all()
        else:
            self._ledger.settle(now)

    def drop(self, events: int) -> None:
        """Counts events of the newest datagram that there was no room for."""
        self._ledger.drop_here(events)

    def poll_loss(self) -> Optional[Loss]:
        """What was counted as lost or dropped since the last call, if there is any."""
        total, told = self._ledger.total(), self._told
        here = self._ledger.dropped_here - self._told_dropped_here
        lost, dropped = total.lost - told.lost, total.dropped - told.dropped
        if not (lost or dropped or here):
            return None
        self._told, self._told_dropped_here = total, self._ledger.dropped_here
        return Loss(lost, dropped, here)

    def close(self) -> Optional[bytes]:
        """Ends it; what it returns is to be sent once."""
        return self._lease.close()

    def stats(self) -> SubscriptionStats:
        """The counts so far."""
        if self._lease.ended:
            self._ledger.settle_all()
        received, lost, dropped_by_bus, duplicates = self._ledger.total()
        return SubscriptionStats(
            received=received,
            lost=lost,
            dropped_by_bus=dropped_by_bus,
            dropped=self._ledger.dropped_here,
            duplicates=duplicates,
            awaited=self._ledger.awaited,
            lapses=self._lease.lapses,
            bus_restarts=self._lease.bus_restarts,
            ignored_frames=self._ignored_frames,
        )

    def _is_of_flow(self, frame: bus_pb2.Frame) -> bool:
        """A bus sends events from a socket of its own, so it is known by its id.
        The stamp on an answer is the lease's to believe."""
        return (
            frame.HasField("stamp")
            and frame.stamp.sender == self._lease.bus
            and not self._lease.ended
            and (len(frame.events) > 0 or frame.WhichOneof("control") is None)
        )

    def _take_events(self, now: float, frame: bus_pb2.Frame) -> list[Event]:
        stamp = frame.stamp
        weight = _event_weight(stamp.weight)
        events = [
            Event(
                event.topic,
                event.payload,
                event.key,
                event.time_unix_nano,
                dict(event.attributes),
                weight,
            )
            for event in frame.events
        ]
        self._ledger.record(now, stamp.sequence, stamp.dropped, len(events))
        return events


def _event_weight(weight: float) -> float:
    """Anything that is no number of at least one stands for one."""
    return weight if math.isfinite(weight) and weight > 1.0 else 1.0
