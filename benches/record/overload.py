"""Twice what the bus can take: what is lost without priorities and with them.

The bus is held up by its copies: each event goes to many subscribers in small datagrams. Nobody
reads these, so that the bus has a processor of its own; what counts is what it hands to the kernel.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import time
from collections.abc import Iterator

import processes
from loads import Programs, Sample
from processes import Failed

SUBSCRIBERS = 16
# The least that a subscriber may ask for: three events of this payload.
FRAME_BYTES = 508
PAYLOAD = "x" * 128
HIGH_SHARE = 0.25
# What the bus can take is looked for between these, in so many steps: to a twelfth.
LEAST_PER_SECOND = 20_000.0
FLOOD_PER_SECOND = 400_000.0
SEARCH_STEPS = 5
# A bus loses no more than this of what it can take.
LOST_SHARE_MAX = 0.01
PRIORITIES = {"low": 'priority = "low"', "high": 'priority = "high"'}


def capacity(programs: Programs, seconds: float) -> float:
    """The most events a second, of those offered, of which the bus loses next to nothing. What it
    takes of a flood is less, since the publishers of one want processors, too."""
    taken, flood = LEAST_PER_SECOND, FLOOD_PER_SECOND
    for _ in range(SEARCH_STEPS):
        sample = measure(programs, math.sqrt(taken * flood), seconds, has_priorities=False)
        if max(sample["high_lost_share"], sample["low_lost_share"]) <= LOST_SHARE_MAX:
            taken = max(taken, sample["offered_per_second"])
        else:
            flood = sample["offered_per_second"]
    return taken


def measure(programs: Programs, events_per_second: float, seconds: float, has_priorities: bool) -> Sample:
    """One load of two topics, and what came of each."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(unread()) for _ in range(SUBSCRIBERS)]
        bus = stack.enter_context(processes.bus(programs.hailmary, config(ports, has_priorities)))
        rates = {"high": HIGH_SHARE * events_per_second, "low": (1 - HIGH_SHARE) * events_per_second}
        counts = {topic: round(rate * seconds) for topic, rate in rates.items()}
        start = time.monotonic()
        publishers = [
            stack.enter_context(processes.running(publisher(programs, bus, topic, counts[topic], rates[topic])))
            for topic in rates
        ]
        for process in publishers:
            if process.wait(seconds + 2 * processes.PATIENCE_SECONDS) != 0:
                raise Failed("a publisher failed")
        published_in = time.monotonic() - start
        taken_in = processes.await_empty([bus.port]) - start
        page = processes.page(bus)
    copies = total(page, "egress_events_total")
    high = total(page, "topic_events_total", 'topic="high"')
    low = total(page, "topic_events_total", 'topic="low"')
    return {
        "offered_per_second": sum(counts.values()) / published_in,
        "copies_per_second": copies / taken_in,
        "high_lost_share": 1 - high / max(1, counts["high"]),
        "low_lost_share": 1 - low / max(1, counts["low"]),
        "low_let_go_share": total(page, "egress_dropped_events_total", 'reason="overload"')
        / max(1, SUBSCRIBERS * counts["low"]),
    }


@contextlib.contextmanager
def unread() -> Iterator[int]:
    """The port of a socket that takes little and that nobody reads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


def config(ports: list[int], has_priorities: bool) -> str:
    subscribers = (
        f'[[subscriber]]\nname = "s{port}"\naddress = "127.0.0.1:{port}"\ntopics = [">"]\n'
        f"max_frame_bytes = {FRAME_BYTES}\n"
        for port in ports
    )
    policies = (
        f'[[topic]]\nmatch = "{topic}"\n{priority if has_priorities else ""}\n' for topic, priority in PRIORITIES.items()
    )
    return "".join([*subscribers, *policies])


def publisher(programs: Programs, bus: processes.Bus, topic: str, count: int, rate: float) -> processes.Command:
    to = ["--to", f"127.0.0.1:{bus.port}"]
    return [programs.hailmary, "pub", topic, PAYLOAD, *to, "--count", count, "--rate", rate]


def total(page: str, name: str, label: str = "") -> int:
    """A counter, all series with this label together."""
    samples = re.findall(rf"^hailmary_{name}(\{{.*\}})? (\d+)$", page, re.MULTILINE)
    return sum(int(value) for labels, value in samples if label in labels)
