"""Counts what is published under `search.>`, by topic.

It does little for each event, so it shows what the bus can do where `index.py`
shows what SQLite can.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from follow import close_on_signals, marker_of, report

from hailmary import Subscription, subscribe


def watch(subscription: Subscription) -> Counter[str]:
    """Counts what comes, till the subscription is closed."""
    topics: Counter[str] = Counter()
    for event in subscription:
        topics[event.topic] += 1
        marker = marker_of(event)
        if marker is not None:
            report(subscription, "marker", marker=marker, topics=topics)
    return topics


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--address", help="of the bus; by default $HAILMARY_BUS")
    arguments = parser.parse_args()
    with subscribe("search.>", address=arguments.address, name="search-watch") as subscription:
        close_on_signals(subscription)
        report(subscription, "subscribed")
        topics = watch(subscription)
        report(subscription, "ended", topics=topics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
