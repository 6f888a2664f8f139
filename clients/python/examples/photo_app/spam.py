"""One of a group of workers that count what users do.

The group shares the users: all signals of one come to the same worker, so it
needs neither a lock nor a database that all of them write to. A worker that dies
takes its counts along, and its users go on at the others.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

from follow import close_on_signals, report

from hailmary import Subscription, subscribe

from . import events

GROUP = "spam"

# A worker that died is missed for this long at most.
LEASE_MS = 5000

TELL_SECONDS = 0.25


def count(subscription: Subscription) -> None:
    """Counts what comes, until the subscription is closed."""
    users: Counter[str] = Counter()
    tell_at = 0.0
    while not subscription.closed:
        event = subscription.recv(timeout=TELL_SECONDS)
        if event is not None:
            users[event.payload.decode()] += 1
        if time.monotonic() >= tell_at:
            report(subscription, "counting", at=time.time(), users=users)
            tell_at = time.monotonic() + TELL_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", help="of this worker, by which it has its users")
    name = parser.parse_args().name
    pattern = f"{events.SIGNALS}.>"
    with subscribe(pattern, group=GROUP, name=name, lease_ms=LEASE_MS) as subscription:
        close_on_signals(subscription)
        count(subscription)


if __name__ == "__main__":
    main()
