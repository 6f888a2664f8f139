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
