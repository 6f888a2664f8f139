"""What a subscriber gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Event:
    """One event, as its publisher made it."""

    # Written out, since dataclasses make slots themselves only from Python 3.10.
    __slots__ = ("attributes", "key", "payload", "time_unix_nano", "topic", "weight")

    topic: str
    """What it is about: tokens joined by dots."""

    payload: bytes
    """Whatever the publisher put in; the bus does not look at it."""

    key: bytes
    """What groups and samples go by; may be empty."""

    time_unix_nano: int
    """When the publisher made it, Unix time; 0 if it did not tell."""

    attributes: dict[str, str]
    """Small facts beside the payload."""

    weight: float
    """It stands for this many: 1, or more where the bus sampled."""


@dataclass(frozen=True)
class Loss:
    """Events that are missing in the stream: a notice that stands where this
    became known, before whatever comes next.

    It tells what was counted since the notice before it. Each missing event is
    in one notice and in one of its counts, so their sums over a subscription
    are the counts of the same names in its `SubscriptionStats`.

    What the bus dropped is told as soon as its stamps tell of it; what was lost
    on the way, once it has been awaited for 3 seconds. So that may be missing
    from before events that were handed over meanwhile.
    """

    lost: int
    """Events that the bus sent and that were lost on the way, or in this
    socket's full buffer."""

    dropped_by_bus: int
    """Events that the bus dropped itself. They are not among `lost`."""

    dropped: int = 0
    """Events that arrived and were then dropped on this side."""

    @property
    def events(self) -> int:
        """All together; at least 1."""
        return self.lost + self.dropped_by_bus + self.dropped

    def __str__(self) -> str:
        here = f", {self.dropped} on this side" if self.dropped else ""
        return f"{self.events} events lost, {self.dropped_by_bus} of them dropped by the bus{here}"
