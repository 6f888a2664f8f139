"""`python -m hailmary pub`: events from the command line or from standard input."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Iterable
from typing import Optional

from . import _arguments
from ._address import parse, resolve
from ._arguments import Failure
from ._printer import tell
from ._publisher import Publisher
from ._signals import stopped_by_signals


class _Stopped(Exception):
    """A signal came, maybe in the middle of a wait for the next line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All but those of the command itself."""
    add = parser.add_argument
    add(
        "topic",
        metavar="TOPIC",
        type=_arguments.topic,
        help="the topic: tokens of [A-Za-z0-9_:/-] joined by dots",
    )
    add("payload", metavar="PAYLOAD", nargs="?", help="the payload; none is an empty one")
    add("--lines", action="store_true", help="publish every line of standard input as an event")
    add(
        "--to",
        dest="address",
        metavar="ADDR",
        type=_arguments.address,
        default=_arguments.default_address(),
        help="the bus: HOST:PORT, udp://HOST:PORT or unix:///PATH [default: %(default)s]",
    )
    add("--key", default="", help="events with equal keys stay together")
    add(
        "--attr",
        dest="attributes",
        metavar="NAME=VALUE",
        type=_attribute,
        action="append",
        default=[],
        help="a small fact beside the payload; may be given several times",
    )
    add(
        "--time-unix-nano",
        metavar="NS",
        type=_arguments.whole(0, 2**64 - 1),
        help="when the events were made, in ns of Unix time; 0 leaves it out; now by default",
    )
    add("--count", type=_arguments.whole(0, 2**64 - 1), help="publish so many [default: 1]")
    add(
        "--rate",
        metavar="EVENTS_PER_SECOND",
        type=_arguments.rate,
        help="at most so many events a second",
    )


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Publishes, till all is or a signal comes.

    Raises `Failure` where the address cannot be had, or an event was dropped.
    """
    if arguments.lines and (arguments.payload is not None or arguments.count is not None):
        parser.error("argument --lines: not allowed with PAYLOAD or --count")
    try:
        resolve(parse(arguments.address))
    except OSError as error:
        why = error.strerror or error
        raise Failure(f"cannot publish to {arguments.address}: {why}") from None
    with Publisher(arguments.address) as publisher:
        too_large = _publish(publisher, arguments)
        _report(publisher, too_large, arguments)


def _publish(publisher: Publisher, arguments: argparse.Namespace) -> int:
    """Says how many events were too large for any datagram."""
    too_large = 0
    pace = _Pace(arguments.rate)
    attributes = dict(arguments.attributes)
    key = arguments.key.encode(errors="surrogateescape")
    with contextlib.suppress(_Stopped), stopped_by_signals(_stop):
        for payload in _payloads(arguments):
            pace.wait()
            try:
                publisher.publish(
                    arguments.topic,
                    payload,
                    key=key,
                    attributes=attributes,
                    time_unix_nano=arguments.time_unix_nano,
                )
            except ValueError:
                too_large += 1
    return too_large


def _payloads(arguments: argparse.Namespace) -> Iterable[bytes]:
    if arguments.lines:
        return (line[:-1] if line.endswith(b"\n") else line for line in sys.stdin.buffer)
    payload = (arguments.payload or "").encode(errors="surrogateescape")
    count = 1 if arguments.count is None else arguments.count
    return itertools.islice(itertools.repeat(payload), count)


def _report(publisher: Publisher, too_large: int, arguments: argparse.Namespace) -> None:
    stats = publisher.stats()
    dropped = stats.dropped + too_large
    if arguments.lines or arguments.count not in (None, 1):
        tell(f"published {stats.sent}, dropped {dropped}")
    if too_large:
        raise Failure(f"{dropped} events were dropped before they left: {too_large} too large")
    if dropped:
        raise Failure(f"{dropped} events were dropped before they left: {stats}")
    if stats.bounced:
        raise Failure(f"no bus at {arguments.address}")


def _stop() -> None:
    raise _Stopped


class _Pace:
    """Keeps events a fixed time apart, without falling behind by what sleeping
    takes too long."""

    def __init__(self, rate: Optional[float]) -> None:
        self._gap_seconds = 0.0 if rate is None else 1.0 / rate
        self._due = time.monotonic()

    def wait(self) -> None:
        """Till the next event is due."""
        if self._gap_seconds:
            time.sleep(max(0.0, self._due - time.monotonic()))
            self._due += self._gap_seconds


def _attribute(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError("an attribute is NAME=VALUE")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("an attribute is UTF-8") from None
    return name, value
