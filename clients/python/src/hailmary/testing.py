"""For the tests of applications: a publisher that records, and a bus to test with.

Owns doubles that are real in what matters: the recorder is a `Publisher` that
checks, encodes and counts as any other and just sends nowhere, so a test finds
what production would raise; the bus is the program itself. It needs no pytest;
the fixtures `hailmary_recorder` and `hailmary_bus` come from the plugin that the
package brings along.
"""

from __future__ import annotations

import errno
import re
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, TypeVar

from ._address import BUS_ADDRESS
from ._bus import Bus, find_program
from ._default import publishing_by
from ._event import Event
from ._link import Closed, Link
from ._publisher import Publisher
from ._sender import Sender
from ._topic import check_pattern
from ._typed import Topic
from ._wire import bus_pb2

__all__ = ["Bus", "Recorder", "find_program", "matches", "publishing_by", "recording"]

# What a recorder holds. More would be a leak of the tests, so the publisher drops
# them as `would_block`, as a full queue does.
_EVENTS_MAX = 10_000

# The contract's wildcards, within topics that are known to be legal. None stands
# for the first token of the bus's own topics.
_WILDCARDS = {"*": r"[^.]+", ">": r".+"}
_NOT_THE_BUS = r"(?!_hailmary(?:\.|$))"

T = TypeVar("T")


class Recorder(Publisher):
    """A publisher that keeps its events, for a test to look at.

        >>> recorder = Recorder()
        >>> recorder.publish("search.index.photo", b"42")
        >>> [event.payload for event in recorder.events]
        [b'42']

    It checks, raises and counts as every `Publisher` does, and may be used by many
    threads. It holds 10,000 events and drops the newest beyond, as `would_block`.
    """

    def __init__(self, *, on_error: Literal["raise", "drop"] = "raise") -> None:
        super().__init__(BUS_ADDRESS, on_error=on_error)
        self._events: deque[Event] = deque()
        # A test that records wants to, whatever its environment says.
        self._is_disabled = False
        self._begin(Sender(_Tape(self._events), "the recorder"))

    @property
    def events(self) -> list[Event]:
        """All that were published, oldest first."""
        return list(self._events)

    def matching(self, *patterns: str) -> list[Event]:
        """Those that a subscriber to these patterns would get.

            >>> recorder = Recorder()
            >>> recorder.publish("search.index.photo", b"42")
            >>> len(recorder.matching("search.>")), len(recorder.matching("spam.*"))
            (1, 0)

        Raises `ValueError` or `TypeError` for what is no pattern.
        """
        return [event for event in self.events if matches(event.topic, *patterns)]

    def values(self, topic: Topic[T]) -> list[T]:
        """The values that were published of a typed topic.

            >>> import hailmary
            >>> photo_indexed = Topic("search.index.photo", codec=hailmary.json)
            >>> recorder = Recorder()
            >>> photo_indexed.publish({"id": 42}, publisher=recorder)
            >>> recorder.values(photo_indexed)
            [{'id': 42}]

        Raises `DecodeError` where something else was published under its name.
        """
        return [topic.decode(event) for event in self.events if event.topic == topic.name]

    def clear(self) -> None:
        """Forgets the events. `stats()` go on."""
        self._events.clear()

    def _find_bus(self) -> bool:
        return True


class _Tape(Link):
    """A link that keeps what is sent."""

    def __init__(self, events: deque[Event]) -> None:
        super().__init__(None)
        self._events = events
        self._lock = threading.RLock()

    def in_child(self) -> Link:
        tape = _Tape(self._events)
        tape._closed = self._closed
        return tape

    def _connect_and_send(self, datagram: bytes, flags: int) -> int:
        if self._closed:
            raise Closed
        events = [_read(event) for event in bus_pb2.Frame.FromString(datagram).events]
        with self._lock:
            if len(self._events) + len(events) > _EVENTS_MAX:
                raise BlockingIOError(errno.EAGAIN, "the recorder is full")
            self._events.extend(events)
        return len(datagram)


@contextmanager
def recording() -> Generator[Recorder, None, None]:
    """Has the process's default publisher record, until the context ends.

        >>> import hailmary
        >>> with recording() as recorder:
        ...     hailmary.publish("search.index.photo", b"42")
        >>> [event.topic for event in recorder.events]
        ['search.index.photo']

    It is for the whole process, all threads. Who has made a `Publisher` of its own
    is not recorded; give it a `Recorder` instead.
    """
    recorder = Recorder()
    with publishing_by(recorder):
        yield recorder


def matches(topic: str, *patterns: str) -> bool:
    """Whether a subscriber to any of these patterns gets events of this topic.

        >>> matches("search.index.photo", "search.*.photo"), matches("search", "search.>")
        (True, False)

    Raises `ValueError` or `TypeError` for what is no pattern.
    """
    return any(_regex(pattern).fullmatch(topic) for pattern in patterns)


def _regex(pattern: str) -> re.Pattern[str]:
    check_pattern(pattern)
    tokens = pattern.split(".")
    before = _NOT_THE_BUS if tokens[0] in _WILDCARDS else ""
    return re.compile(before + r"\.".join(_WILDCARDS.get(token, token) for token in tokens))


def _read(event: bus_pb2.Event) -> Event:
    return Event(
        topic=event.topic,
        payload=event.payload,
        key=event.key,
        time_unix_nano=event.time_unix_nano,
        attributes=dict(event.attributes),
        weight=1.0,
    )
