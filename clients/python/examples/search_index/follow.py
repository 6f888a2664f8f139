"""What the two subscribers have in common: how they end and what they tell.

A subscriber prints a line of JSON when its lease stands, after each marker and
at its end, so that whoever started it knows how far it is.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from typing import Optional

from publish_packages import MARKER_TOPIC

from hailmary import Event, Subscription


def close_on_signals(subscription: Subscription) -> None:
    """SIGTERM and SIGINT end the subscription, and with it the program."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: subscription.close())


def marker_of(event: Event) -> Optional[str]:
    """The marker's name, if the event is one."""
    return event.payload.decode() if event.topic == MARKER_TOPIC else None


def report(subscription: Subscription, state: str, **facts: object) -> None:
    """Prints a subscription's counts as a line of JSON."""
    counts = dataclasses.asdict(subscription.stats())
    print(json.dumps({"state": state, **facts, **counts}), flush=True)
