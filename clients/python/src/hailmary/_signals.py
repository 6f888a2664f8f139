"""Ends what runs in the foreground by a signal, as service managers do."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Callable, Optional

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """In it, SIGTERM and SIGINT call `stop`. The second one does what it did
    before, so that it ends a program that does not stop. In other threads than
    the main one, where Python takes no signals, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            # None is a handler that Python did not set, and cannot.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def handle(number: int, frame: Optional[FrameType]) -> None:
        restore()
        stop()

    for number in _SIGNALS:
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
