"""Publishes every package of the machine's Debian package index.

Each package is one `search.index.package` event: JSON, with the package's name
as key. At the end it prints what became of the events. With `--markers` it then
publishes one `search.index.marker` for each line of its standard input, which
tells the subscribers what they lost behind the last event that they got.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable
from typing import Optional

from packages import SOURCES, Package, read_packages

from hailmary import Publisher

PACKAGE_TOPIC = "search.index.package"
MARKER_TOPIC = "search.index.marker"

# How many events are published between two looks at the clock. A sleep shorter
# than a scheduler's tick is no pace.
PACE_EVENTS = 20


def publish_packages(publisher: Publisher, packages: Iterable[Package], rate: int) -> None:
    """Publishes them all, at most `rate` a second; 0 is as fast as it goes."""
    began = time.monotonic()
    for count, package in enumerate(packages, start=1):
        publisher.publish(
            PACKAGE_TOPIC,
            json.dumps(package, ensure_ascii=False).encode(),
            key=package["name"].encode(),
            attributes={"content-type": "application/json"},
        )
        if rate and count % PACE_EVENTS == 0:
            ahead = began + count / rate - time.monotonic()
            time.sleep(max(0.0, ahead))


def report(publisher: Publisher, marker: Optional[str] = None) -> None:
    """Prints the publisher's counts as a line of JSON."""
    stats = publisher.stats()
    counts = dataclasses.asdict(stats)
    told = {"marker": marker, "offered": stats.offered, "dropped": stats.dropped, **counts}
    print(json.dumps(told), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", help="of the bus; by default $HAILMARY_BUS")
    parser.add_argument("--source", choices=SOURCES, default="auto")
    parser.add_argument("--rate", type=int, default=0, help="events a second; 0: no limit")
    parser.add_argument("--markers", action="store_true", help="a marker for each line of input")
    arguments = parser.parse_args()
    packages = list(read_packages(arguments.source))
    with Publisher(arguments.address) as publisher:
        publish_packages(publisher, packages, arguments.rate)
        report(publisher)
        for line in sys.stdin if arguments.markers else ():
            publisher.publish(MARKER_TOPIC, line.strip().encode())
            report(publisher, line.strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
