"""Runs the example as a whole: a bus, two subscribers, a publisher, the books.

    python run.py

Starts a bus unless `--address` and `--admin` name one that nobody else uses,
waits by conditions and never by the clock, and ends with status 1 if the books
do not balance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from books import Books, Scrape
from bus import Bus, find_program, start_bus
from index import Index
from packages import SOURCES
from processes import Line, Program

HERE = Path(__file__).resolve().parent

SUBSCRIBERS = ("search-index", "search-watch")

# A marker gets lost as any event may. The next is sent after this long: more
# than a subscriber takes to work through what waits in its socket.
MARKER_SECONDS = 5.0
MARKERS_MAX = 20

# How long a bus may take to show what it counted.
SETTLING_SECONDS = 5.0

# Events a second that the index keeps up with on a small machine.
RATE = 5000


def main() -> int:
    arguments = read_arguments()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = arguments.database or directory / "packages.db"
        if arguments.address is None:
            bus = stack.enter_context(start_bus(find_program(), directory))
        else:
            bus = Bus(arguments.address, arguments.admin)
        books = run(stack, bus, database, arguments.source, arguments.rate)
        print(books.table())
        print_answer(database, arguments.query)
        wrong = books.contradictions()
    print("\n".join(wrong) or "the books balance")
    return 1 if wrong else 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--address", help="of a bus that runs; by default one is started")
    parser.add_argument("--admin", help="HOST:PORT of that bus's admin listener")
    parser.add_argument("--source", choices=SOURCES, default="auto")
    parser.add_argument("--rate", type=int, default=RATE, help="events a second; 0: no limit")
    parser.add_argument("--query", default="http server")
    parser.add_argument("--database", type=Path, help="keep the index in this file")
    arguments = parser.parse_args()
    if (arguments.address is None) != (arguments.admin is None):
        parser.error("--address and --admin belong together")
    return arguments


def run(stack: ExitStack, bus: Bus, database: Path, source: str, rate: int) -> Books:
    """Publishes everything to both subscribers and collects the counts."""
    before = scrape(bus)
    subscribers = start_subscribers(stack, bus, database)
    publisher = stack.enter_context(
        Program(
            *(sys.executable, HERE / "publish_packages.py", "--markers"),
            *("--address", bus.address, "--source", source, "--rate", rate),
            name="the publisher",
        )
    )
    publisher.wait_for(lambda line: True, seconds=float("inf"))
    published, received = exchange_markers(publisher, subscribers)
    return Books(published, settled_scrape(bus, before, published), received)


def start_subscribers(stack: ExitStack, bus: Bus, database: Path) -> dict[str, Program]:
    """Both, once their leases stand."""
    programs = ((HERE / "index.py", database), (HERE / "watch.py",))
    subscribers = {
        name: stack.enter_context(
            Program(sys.executable, *program, "--address", bus.address, name=name)
        )
        for name, program in zip(SUBSCRIBERS, programs)
    }
    for subscriber in subscribers.values():
        subscriber.wait_for(lambda line: line["state"] == "subscribed")
    return subscribers


def exchange_markers(
    publisher: Program, subscribers: dict[str, Program]
) -> tuple[Line, dict[str, Line]]:
    """Publishes markers till one has reached both subscribers: what they count
    then is all that there is to count."""
    for number in range(MARKERS_MAX):
        marker = f"marker {number}"
        publisher.say(marker)
        published = publisher.wait_for(lambda line: bool(line["marker"] == marker))
        try:
            return published, {
                name: subscriber.wait_for(
                    lambda line: bool(line.get("marker") == marker), MARKER_SECONDS
                )
                for name, subscriber in subscribers.items()
            }
        except TimeoutError:
            continue
    raise TimeoutError("no marker reached both subscribers")


def scrape(bus: Bus) -> Scrape:
    """What the bus counts now."""
    with urllib.request.urlopen(f"http://{bus.admin}/metrics", timeout=10) as answer:
        return Scrape.parse(answer.read().decode())


def settled_scrape(bus: Bus, before: Scrape, published: Line) -> Scrape:
    """What the bus counted since `before`, once it has counted the last event.

    A bus hands its counts to the scrape a moment after the events. If something
    is wrong, the books will say what, so there is no error here.
    """
    until = time.monotonic() + SETTLING_SECONDS
    while True:
        counts = scrape(bus).since(before)
        told = counts.total("ingress_events_total") + counts.total("ingress_lost_events_total")
        if told >= published["sent"] or time.monotonic() > until:
            return counts
        time.sleep(0.05)


def print_answer(database: Path, query: str) -> None:
    """Asks the index."""
    index = Index(database)
    print(f"\n{index.count()} packages are indexed. The best for {query!r}:")
    for name, summary in index.search(query):
        print(f"  {name}: {summary}")
    index.close()
    print()


if __name__ == "__main__":
    sys.exit(main())
