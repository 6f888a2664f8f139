"""Says what goes wrong, seldom, and without doing harm by it.

Owns how seldom lines are written to the logger `hailmary`: of each kind the
first in a process, then one a minute. `warn` writes them for publishing, and for
whatever else runs in the application's own threads. It refuses to write where that
could wait for ever or write about itself: inside of logging, inside of a signal
handler, and by a handler that another has. So it does itself what `Logger.warning`
does, but for the locks that this takes. What is refused is tried again a second
later.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import signal
import sys
import time
from types import CodeType
from typing import Callable, NamedTuple, Optional

from . import _fork
from ._count import Count

_log = logging.getLogger("hailmary")

# The least time between two lines of a kind.
_QUIET_SECONDS = 60.0

# The least time between two attempts to write a line: to find out that it is
# refused costs as much as a hundred events.
_RETRY_SECONDS = 1.0


Write = Callable[[str, str, str, object, str], bool]
"""Writes a line, of a format and its parts; says whether it could."""


class _Told(NamedTuple):
    """When a kind may be told of again, and how often it had happened by then."""

    again_at: float
    happened: int


class Trouble:
    """What this process has told of, by kind."""

    def __init__(self, lines: dict[str, str], write: Optional[Write] = None) -> None:
        """How a line of each kind begins; whom it is about and the error follow.
        It is written by `warn`, unless by another."""
        self._lines = lines
        self._write = write
        self.begin_anew()
        _fork.begin_anew_in_child(self)

    def begin_anew(self) -> None:
        """Has told of nothing: a child tells for itself."""
        self._told = {kind: _Told(-math.inf, 0) for kind in self._lines}
        self._happened = {kind: Count() for kind in self._lines}

    def tell(self, kind: str, about: str, error: object) -> None:
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
            now = time.monotonic()
            # Another may have written since it was looked at.
            if now >= told.again_at:
                next_told = _Told(now + _RETRY_SECONDS, told.happened)
                since = _suppressed(happened - told.happened - 1)
                write = self._write or warn
                if write("%s %s: %s%s", self._lines[kind], about, error, since):
                    next_told = _Told(now + _QUIET_SECONDS, happened)
        finally:
            self._told[kind] = next_told


def warn(line: str, *parts: object) -> bool:
    """Writes a line, or returns `False` where that could do harm. Never raises
    on the handlers' account."""
    if _interrupts():
        return False
    if not _is_enabled():
        return True
    try:
        record = _filtered(_record(line, parts))
    except Exception:  # A filter's or a factory's of the application.
        return True
    return record is None or _hand_over(record)


def _is_enabled() -> bool:
    """As `isEnabledFor` says, which waits for whoever configures logging."""
    if _log.disabled or _log.manager.disable >= logging.WARNING:
        return False
    return _log.getEffectiveLevel() <= logging.WARNING


def _record(line: str, parts: tuple[object, ...]) -> logging.LogRecord:
    code = warn.__code__
    place = (code.co_filename, code.co_firstlineno)
    return _log.makeRecord(
        _log.name, logging.WARNING, *place, line, parts, None, func=code.co_name
    )


def _filtered(record: logging.LogRecord) -> Optional[logging.LogRecord]:
    """What the logger's filters leave of it. From Python 3.12 on, they may put
    another in its place."""
    passed: object = _log.filter(record)
    if isinstance(passed, logging.LogRecord):
        return passed
    return record if passed else None


def _hand_over(record: logging.LogRecord) -> bool:
    """Whether a handler took it, or none is for it. One lock is held at a time:
    what a handler waits for may want another's."""
    handlers = [each for each in _handlers() if each.level <= record.levelno]
    # No generator, since each is to have it.
    return not handlers or any([_handled(handler, record) for handler in handlers])


def _handled(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Whether the handler was free to take it. It may be taken by a thread that
    waits, or that a fork has left behind in the parent."""
    lock = handler.lock
    if lock is not None:
        acquire: Callable[..., bool] = lock.acquire
        if not acquire(blocking=False):
            return False
    try:
        with contextlib.suppress(Exception):
            handler.handle(record)
    finally:
        if lock is not None:
            lock.release()
    return True


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


def _handlers() -> list[logging.Handler]:
    handlers: list[logging.Handler] = []
    logger: Optional[logging.Logger] = _log
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    if not handlers and logging.lastResort is not None:
        return [logging.lastResort]
    return handlers
