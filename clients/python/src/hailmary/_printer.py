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
from collections.abc import Mapping
from typing import Callable, Union

from ._event import Event, Loss
from ._runner import RunnerStats
from ._session import SubscriptionStats

_ESCAPES = {"\t": r"\t", "\r": r"\r", "\n": r"\n"}


class Printer:
    """Standard output, and standard error for what is told beside it."""

    def __init__(self, format: str, tells_losses: bool) -> None:
        self.printed = 0
        """Events so far."""
        self._format = format
        self._tells_losses = tells_losses
        self._line = FORMATS[format]
        self._out = sys.stdout.buffer
        self._told = Loss(0, 0)

    def print(self, item: Union[Event, Loss]) -> None:
        """Raises `OSError` once nobody reads any more."""
        if isinstance(item, Loss):
            self._told = _plus(self._told, item)
            self._print_loss(item)
        else:
            self.printed += 1
            self._out.write(self._line(item) + b"\n")

    def flush(self) -> None:
        """Shows what was printed. Raises `OSError` as `print` does."""
        self._out.flush()

    def finish(self, stats: SubscriptionStats) -> None:
        """Tells of the losses that no notice told of, and of all."""
        told = self._told
        rest = Loss(stats.lost - told.lost, stats.dropped_by_bus - told.dropped_by_bus)
        try:
            if rest.events:
                self._print_loss(rest)
            self.flush()
        except OSError:
            forget_output()
        tell(summary(stats))

    def _print_loss(self, loss: Loss) -> None:
        """In its place also where both streams go to one terminal."""
        if not self._tells_losses:
            return
        if self._format == "json":
            notice = {"dropped_by_bus": loss.dropped_by_bus, "lost": loss.lost}
            self._out.write(_dumps(notice) + b"\n")
            return
        self.flush()
        tell(str(loss))


def tell(line: str) -> None:
    """A line on standard error, if somebody reads that."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def forget_output() -> None:
    """Nobody reads it: what is still to be written must not fail when the
    interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


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


def _plus(one: Loss, other: Loss) -> Loss:
    return Loss(one.lost + other.lost, one.dropped_by_bus + other.dropped_by_bus)


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
