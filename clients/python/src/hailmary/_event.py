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

    It adds up all that was counted since the notice before it, so over a
    subscription the sums are those of its `SubscriptionStats`:

        sum of lost           = stats.lost + stats.dropped_by_bus
        sum of dropped_by_bus = stats.dropped_by_bus

    What the bus dropped is told as soon as its stamps tell of it; what was lost
    on the way, once it has been awaited for 3 seconds. So that may be missing
    from before events that were handed over meanwhile.
    """

    lost: int
    """Events that are missing, those that the bus dropped included; at least 1."""

    dropped_by_bus: int
    """How many of them the bus dropped. The others were lost on the way."""

    def __str__(self) -> str:
        return f"{self.lost} events lost, {self.dropped_by_bus} of them dropped by the bus"
