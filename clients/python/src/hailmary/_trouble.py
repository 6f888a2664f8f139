"""Says what goes wrong, seldom, and without doing harm by it.

Owns the lines that publishing writes to the logger `hailmary`: of each kind the
first in a process, then one a minute. It refuses to write where that could wait for ever
or write about itself: inside of logging, inside of a signal handler, and while
another has a handler of the logger. What is refused is tried again at the next
trouble of the kind.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from types import CodeType
from typing import Callable, NamedTuple, Optional

from . import _fork
from ._count import Count

_log = logging.getLogger("hailmary")

# The least time between two lines of a kind.
_QUIET_SECONDS = 60.0


class _Told(NamedTuple):
    """When a kind may be told of again, and how often it had happened by then."""

    again_at: float
    happened: int


class Trouble:
    """What this process has told of, by kind."""

    def __init__(self, lines: dict[str, str]) -> None:
        """How a line of each kind begins; the bus and the error follow."""
        self._lines = lines
        self.begin_anew()
        _fork.begin_anew_in_child(self)

    def begin_anew(self) -> None:
        """Has told of nothing: a child tells for itself."""
        self._told = {kind: _Told(-math.inf, 0) for kind in self._lines}
        self._happened = {kind: Count() for kind in self._lines}

    def tell(self, kind: str, bus: str, error: object) -> None:
        """Writes a line, unless one of this kind was written less than a minute ago."""
        happened = self._happened[kind].next() + 1
        told = self._told.get(kind)
        if told is None or time.monotonic() < told.again_at:
            return
        # Whoever gets the entry out writes; it is missing while the line is written.
        told = self._told.pop(kind, None)
        if told is None:
            return
        next_told = told
        try:
            # Another may have written since it was looked at.
            if time.monotonic() >= told.again_at:
                since = _suppressed(happened - told.happened - 1)
                if warn("%s %s: %s%s", self._lines[kind], bus, error, since):
                    next_told = _Told(time.monotonic() + _QUIET_SECONDS, happened)
        finally:
            self._told[kind] = next_told


def warn(line: str, *parts: object) -> bool:
    """Writes a line, or returns `False` where that could do harm. Never raises
    on the handlers' account."""
    if _interrupts():
        return False
    with _handlers_locks() as free, contextlib.suppress(Exception):
        if free:
            _log.warning(line, *parts)
    return free


def _suppressed(times: int) -> str:
    return f" (and {times} more times since the last such line)" if times > 0 else ""


def _interrupts() -> bool:
    """Whether what runs here may have interrupted the holder of a lock that a
    handler wants: logging itself, or anything, by a signal."""
    codes = _signal_handlers_codes()
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == "logging" or frame.f_code in codes:
            return True
    return False


def _signal_handlers_codes() -> set[CodeType]:
    handlers = map(signal.getsignal, signal.valid_signals())
    return {code for code in map(_code_of, handlers) if code is not None}


def _code_of(handler: object) -> Optional[CodeType]:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not hasattr(handler, "__code__"):
        handler = getattr(handler, "__func__", getattr(type(handler), "__call__", None))
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None


@contextlib.contextmanager
def _handlers_locks() -> Iterator[bool]:
    """Holds the locks of all handlers of the logger, if all are free. One may be
    taken by a thread that waits, or that a fork has left behind in the parent."""
    with contextlib.ExitStack() as held:
        yield all(map(functools.partial(_take, held), _handlers()))


def _take(held: contextlib.ExitStack, handler: logging.Handler) -> bool:
    lock = handler.lock
    if lock is None:
        return True
    acquire: Callable[..., bool] = lock.acquire
    free = acquire(blocking=False)
    if free:
        held.callback(lock.release)
    return free


def _handlers() -> list[logging.Handler]:
    handlers: list[logging.Handler] = []
    logger: Optional[logging.Logger] = _log
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    return handlers
