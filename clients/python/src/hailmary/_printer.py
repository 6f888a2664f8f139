"""Prints events for people and for programs, as the program `hailmary` does.

Owns the three formats, standard output, and the words at the end.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Callable, Optional, Union

from ._event import Event, Loss
from ._runner import RunnerStats
from ._session import SubscriptionStats

_ESCAPES = {"\t": r"\t", "\r": r"\r", "\n": r"\n"}


class Printer:
    """Standard output, and standard error for what is told beside it. Once
    nothing can be printed, it prints no more."""

    def __init__(self, format: str, tells_losses: bool) -> None:
        self.printed = 0
        """Events so far."""
        self.works = True
        """Whether what was printed could be."""
        self.failure: Optional[OSError] = None
        """Why not; nothing, if nobody reads any more, who may have had enough."""
        self._format = format
        self._tells_losses = tells_losses
        self._line = FORMATS[format]
        self._out = sys.stdout.buffer
        self._told = Loss(0, 0)

    def print(self, item: Union[Event, Loss]) -> None:
        """Puts it behind what was printed before."""
        if isinstance(item, Loss):
            told = self._told
            lost, dropped = told.lost + item.lost, told.dropped_by_bus + item.dropped_by_bus
            self._told = Loss(lost, dropped)
            self._print_loss(item)
        else:
            self.printed += 1
            self._print_line(self._line(item))

    def flush(self) -> None:
        """Shows what was printed."""
        with self._output():
            self._out.flush()

    def finish(self, stats: SubscriptionStats) -> None:
        """Tells of the losses that no notice told of, and of all."""
        told = self._told
        rest = Loss(stats.lost - told.lost, stats.dropped_by_bus - told.dropped_by_bus)
        if rest.events:
            self._print_loss(rest)
        self.flush()
        tell(summary(stats))

    def _print_loss(self, loss: Loss) -> None:
        """In its place also where both streams go to one terminal."""
        if not self._tells_losses:
            return
        if self._format == "json":
            notice = {"dropped_by_bus": loss.dropped_by_bus, "lost": loss.lost}
            self._print_line(_dumps(notice))
        else:
            self.flush()
            tell(str(loss))

    def _print_line(self, line: bytes) -> None:
        with self._output():
            self._out.write(line + b"\n")

    @contextlib.contextmanager
    def _output(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.works = False
            if not isinstance(error, BrokenPipeError):
                self.failure = error
            # What is still to be written must not fail once more, nor when the
            # interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def tell(line: str) -> None:
    """A line on standard error, if somebody reads that."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def summary(stats: SubscriptionStats) -> str:
    """What is rare is named only where there is any."""
    line = (
        f"received {stats.received}, lost {stats.lost} on the way, "
        f"dropped {stats.dropped_by_bus} by the bus"
    )
    if stats.duplicates:
        line += f", {stats.duplicates} duplicates"
    if stats.dropped:
        line += f", {stats.dropped} dropped here"
    if isinstance(stats, RunnerStats) and stats.handler_errors:
        line += f", {stats.handler_errors} errors of the handler"
    return line


def _as_text(event: Event) -> bytes:
    return event.topic.encode() + b"\t" + printable(event.payload).encode()


def _as_raw(event: Event) -> bytes:
    return event.payload


def _as_json(event: Event) -> bytes:
    line: dict[str, object] = {
        "topic": event.topic,
        "time_unix_nano": event.time_unix_nano,
        "attributes": event.attributes,
        "weight": event.weight,
    }
    for name, value in (("key", event.key), ("payload", event.payload)):
        try:
            line[name] = value.decode()
        except UnicodeDecodeError:
            line[f"{name}_base64"] = base64.b64encode(value).decode()
    return _dumps(line)


FORMATS: dict[str, Callable[[Event], bytes]] = {
    "text": _as_text,
    "json": _as_json,
    "raw": _as_raw,
}


def _dumps(line: Mapping[str, object]) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def printable(payload: bytes) -> str:
    """Text as it is, but for control characters and what is no text: a payload
    is not to steer the reader's terminal."""
    text = payload.decode(errors="surrogateescape")
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) == "Cc":
        return _ESCAPES.get(character, f"\\u{{{code:x}}}")
    return character
