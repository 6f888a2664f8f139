"""Soak: a bus at 70 % of what it takes, for a long time, with all coming and going around it.

    python3 benches/record/soak.py [--program PATH] [--seconds S] [--reload-every S]

What the bus takes is measured first, as benches/record does for its section on overload. Then, beside
that load,

- publishers come and go, each with a topic of its own, one publishes topics that never were before, and
  hundreds a second publish a single event;
- subscribers come, renew, change what they want, give their leases back, or die without a word, over
  UDP and over a Unix socket, dozens a second;
- the configuration changes, and a reload is asked for, every minute;
- all metrics are scraped every second, and both laws are checked in each scrape.

It fails, and says what is wrong, if a law is broken, if the bus at rest has other descriptors, threads
or leases after it than before, if memory is not flat, if a subscriber's own books and the bus's differ,
or if an event is missing that no count tells of.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import evidence
import loads
import overload
import processes
from churn import ONCE, Books, Churn
from overload import total
from processes import Bus

LOAD_SHARE = 0.7
# Short, so that many leases end by themselves in any run.
LEASE_MS = 2_000
TICK_SECONDS = 0.1
SCRAPE_EVERY_SECONDS = 1.0
SAY_EVERY_SECONDS = 15.0
# Till then tables, caches and the allocator's arenas fill, those of the two configurations too: so long
# at the least, or this share of the whole time.
WARM_UP_SECONDS = 150.0
WARM_UP_SHARE = 0.25
# From the first to the last quarter after the warm-up. What is resident comes and goes with the pages of
# metrics and with how much waits, for however long; half of this was seen of a bus that takes no more
# memory for any number of leases, publishers, topics or reloads alone. In ten minutes a byte for each
# event would be several times this, and so would what each lease takes.
GROWTH_KIB_MAX = 1_024
# A run too short for all of that warm-up is judged, while tables still fill, by so much more; one that is
# shorter than this is not, and says so.
SHORT_SECONDS = 60.0
FILLING_KIB = 2_048
# A subscriber is told of the last losses by a renewal, every third of a lease, and waits three
# seconds for what comes out of order.
SETTLE_SECONDS = 6.0
# Far longer than the last leases.
REST_SECONDS = 60.0


class Look(NamedTuple):
    """At the bus, from outside."""

    seconds: float
    resident_kib: int
    """Without the program's own text, which comes in as it is first used."""
    descriptors: int
    threads: int


def look(bus: Bus, start: float) -> Look:
    process = Path(f"/proc/{bus.pid}")
    count = [len(os.listdir(process / name)) for name in ("fd", "task")]
    return Look(time.monotonic() - start, processes.resident_kib(bus.pid, "RssAnon"), *count)


def broken_law(page: str) -> str | None:
    """Which one this scrape breaks."""
    events = [
        total(page, name) for name in ("ingress_dropped_events_total", "unmatched_events_total", "matched_events_total")
    ]
    copies = [total(page, name) for name in ("egress_events_total", "egress_dropped_events_total")]
    for whole, parts in (("ingress_events_total", events), ("copies_total", copies)):
        if total(page, whole) != sum(parts):
            return f"{whole} is {total(page, whole)} and not {' + '.join(map(str, parts))}"
    return None


def config(ports: list[int], is_other: bool) -> str:
    """That of the load, or another one: a subscriber more, and a topic with a policy."""
    other = '[[subscriber]]\nname = "other"\naddress = "127.0.0.1:9"\ntopics = ["churn.1.a"]\n'
    other += '[[topic]]\nmatch = "new.>"\nevents_per_second = 500\n'
    once = f'[[topic]]\nmatch = "{ONCE}.>"\n'
    limits = f"[limits]\nlease_ms = {LEASE_MS}\nlease_ms_max = {LEASE_MS}\n"
    return limits + once + overload.config(ports, has_priorities=False) + (other if is_other else "")


def reload(bus: Bus, text: str, books: Books) -> None:
    part = bus.config.with_suffix(".part")
    part.write_text(text)
    os.replace(part, bus.config)
    os.kill(bus.pid, signal.SIGHUP)
    books.reloads += 1


def every(seconds: float, deed: Callable[[], None], start: float) -> Callable[[float], None]:
    """Does it where it is due; what was missed is not made up for."""
    due = start + seconds

    def turn(now: float) -> None:
        nonlocal due
        if now >= due:
            due = max(due + seconds, now)
            deed()

    return turn


@dataclass
class Result:
    before: Look
    looks: list[Look]
    after: Look
    page: str
    books: Books


def soak(program: Path, takes: float, seconds: float, reload_every: float) -> Result:
    with contextlib.ExitStack() as stack:
        unix = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hailmary-record-")), "bus.sock")
        ports = [stack.enter_context(overload.unread()) for _ in range(overload.SUBSCRIBERS)]
        bus = stack.enter_context(processes.bus(program, config(ports, is_other=False), unix=unix))
        books, looks = Books(), []
        scrape(bus, books)
        time.sleep(SCRAPE_EVERY_SECONDS)
        before = look(bus, time.monotonic())
        churn = Churn(program, bus, unix, LOAD_SHARE * takes, books)
        stack.callback(churn.stop)
        start = time.monotonic()

        def change() -> None:
            reload(bus, config(ports, is_other=books.reloads % 2 == 0), books)

        def inspect() -> None:
            scrape(bus, books)
            looks.append(look(bus, start))

        say = partial(print_last, looks)
        duties = [every(reload_every, change, start), every(SCRAPE_EVERY_SECONDS, inspect, start), churn.turn]
        duties.append(every(SAY_EVERY_SECONDS, say, start))
        while (now := time.monotonic()) < start + seconds:
            for duty in duties:
                duty(now)
            time.sleep(max(0.0, now + TICK_SECONDS - time.monotonic()))
        churn.stop_publishing()
        time.sleep(SETTLE_SECONDS)
        churn.leave()
        page = at_rest(bus, books, before)
        time.sleep(SCRAPE_EVERY_SECONDS)
        return Result(before, looks, look(bus, start), page, books)


def print_last(looks: Sequence[Look]) -> None:
    for last in looks[-1:]:
        words = f"{last.resident_kib} KiB, {last.descriptors} descriptors, {last.threads} threads"
        print(f"soak, {last.seconds:.0f} s: {words}", file=sys.stderr, flush=True)


def scrape(bus: Bus, books: Books) -> str:
    page = processes.page(bus)
    books.scrapes += 1
    fault = broken_law(page)
    if fault:
        books.faults.append(f"scrape {books.scrapes}: {fault}")
    return page


def at_rest(bus: Bus, books: Books, before: Look) -> str:
    """The last page, when all leases have ended and what they took is given back, or patience has."""

    def is_at_rest() -> bool:
        # Longer than it takes to close the last scrape's connection.
        time.sleep(SCRAPE_EVERY_SECONDS)
        now = look(bus, 0)
        is_back = (now.descriptors, now.threads) == (before.descriptors, before.threads)
        return is_back and total(processes.page(bus), "leases") == 0

    try:
        processes.wait_for("the bus to be at rest", is_at_rest, REST_SECONDS)
    except processes.Failed as failed:
        books.faults.append(str(failed))
    return scrape(bus, books)


def is_short(seconds: float) -> bool:
    """Whether there is as good as nothing left of a run after the warm-up."""
    return seconds < 2 * WARM_UP_SECONDS


def warm(looks: Sequence[Look], seconds: float) -> list[Look]:
    """Those after the warm-up, or what there is of it. None of a run that is too short."""
    if seconds < SHORT_SECONDS:
        return []
    share = WARM_UP_SHARE * seconds
    return [one for one in looks if one.seconds >= (share if is_short(seconds) else max(WARM_UP_SECONDS, share))]


def growth_kib_max(seconds: float) -> int:
    return GROWTH_KIB_MAX + (FILLING_KIB if is_short(seconds) else 0)


def growth_kib(looks: Sequence[Look]) -> float:
    """From the first to the last quarter, in the median."""
    quarter = max(1, len(looks) // 4)
    first, last = (statistics.median(one.resident_kib for one in part) for part in (looks[:quarter], looks[-quarter:]))
    return last - first


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line with the least squares. 0 of a single point."""
    x_mean, y_mean = (statistics.fmean(axis) for axis in zip(*points))
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


def books_of(page: str, name: str) -> int:
    """All copies for a subscriber, sent or not."""
    label = f'subscriber="{name}"'
    return total(page, "egress_events_total", label) + total(page, "egress_dropped_events_total", label)


def untold(result: Result) -> int:
    """Events published that the bus neither got nor counted as lost."""
    page = result.page
    told = total(page, "ingress_events_total") - total(page, "topic_events_total", f'topic="{ONCE}.>"')
    return result.books.published - told - total(page, "ingress_lost_events_total")


def verdicts(result: Result, seconds: float) -> Iterator[str]:
    """All that is not as it is to be."""
    yield from result.books.faults
    looks = warm(result.looks, seconds)
    if looks and growth_kib(looks) > growth_kib_max(seconds):
        yield f"resident memory grew by {growth_kib(looks):.0f} KiB, over {growth_kib_max(seconds)}"
    for name in ("descriptors", "threads"):
        before, after = getattr(result.before, name), getattr(result.after, name)
        if before != after:
            yield f"{after} {name} at rest, and {before} before"
    for name, own in result.books.received.items():
        told = books_of(result.page, name)
        # What was sent while one left is in no books of its own.
        if own != told if name.startswith("keeper") else own > told:
            yield f"{name} accounts for {own} events, and the bus for {told}"
    missing = untold(result)
    # Of a publisher that has ended nobody tells what was lost after its last frame that came.
    if missing < 0 or (missing and not total(result.page, "ingress_dropped_frames_total")):
        yield f"{missing} events are missing that no count tells of"
    if total(result.page, "reloads_total", 'outcome="failed"'):
        yield "a reload failed"


def told(result: Result, takes: float, seconds: float) -> list[evidence.Figure]:
    page, books = result.page, result.books
    keepers = sum(own for name, own in books.received.items() if name.startswith("keeper"))
    return [
        ("for", round(seconds), "s"),
        ("events", total(page, "ingress_events_total"), ""),
        ("published at", round(books.published / seconds), "events/s"),
        ("of a capacity of", round(takes), "events/s"),
        ("copies", total(page, "copies_total"), ""),
        ("leases granted", total(page, "leases_granted_total"), ""),
        ("publishers", books.publishers, "processes"),
        ("reloads", total(page, "reloads_total"), ""),
        ("scrapes in which both laws held", books.scrapes, ""),
        *memory(warm(result.looks, seconds), seconds),
        ("descriptors at rest before", result.before.descriptors, ""),
        ("descriptors at rest after", result.after.descriptors, ""),
        ("most descriptors meanwhile", max(one.descriptors for one in result.looks), ""),
        ("threads at rest before", result.before.threads, ""),
        ("threads at rest after", result.after.threads, ""),
        ("copies in the books of subscribers that stayed", keepers, "copies"),
        ("lost before the bus, and counted", total(page, "ingress_lost_events_total"), "events"),
        ("lost behind the last frame of publishers that ended, which no stamp tells", untold(result), "events"),
    ]


def memory(looks: Sequence[Look], seconds: float) -> list[evidence.Figure]:
    if not looks:
        return [("memory", "not judged, the run was too short", "")]
    an_hour = 3_600 * slope([(one.seconds, float(one.resident_kib)) for one in looks])
    return [
        ("resident but for the program's text, after the warm-up", looks[0].resident_kib, "KiB"),
        ("resident at the end", looks[-1].resident_kib, "KiB"),
        ("growth, first to last quarter", round(growth_kib(looks)), "KiB"),
        ("allowed growth", growth_kib_max(seconds), "KiB"),
        ("slope", round(an_hour), "KiB/h"),
    ]


FAULT = "For a long time all come and go: publishers, subscribers, leases, topics, configurations."
PROMISE = "Memory, descriptors and threads stay flat, both laws hold in every scrape, and all books balance."


def main() -> int:
    arguments = parse()
    takes = overload.capacity(loads.Programs(arguments.program, Path(), None), arguments.capacity_seconds)
    print(f"the bus takes {takes:.0f} events/s", file=sys.stderr, flush=True)
    result = soak(arguments.program, takes, arguments.seconds, arguments.reload_every)
    figures = told(result, takes, arguments.seconds)
    print("\n".join(f"{what}: {value} {unit}" for what, value, unit in figures))
    faults = list(verdicts(result, arguments.seconds))
    print("\n".join(f"FAULT: {fault}" for fault in faults) or "all as promised")
    if not faults:
        evidence.tell("soak", FAULT, PROMISE, figures)
    return int(bool(faults))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=Path("target/release/hailmary"), metavar="PATH")
    parser.add_argument("--seconds", type=float, default=3_600.0, metavar="S", help="how long (an hour)")
    parser.add_argument("--reload-every", type=float, default=60.0, metavar="S")
    parser.add_argument(
        "--capacity-seconds", type=float, default=5.0, metavar="S", help="of each try of what the bus takes"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
