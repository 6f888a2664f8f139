"""A count that needs no lock.

Threads and signal handlers may add to it at the same moment. A lock would cost
more than the count, and what is not held can neither be waited for, nor be
inherited by a child, nor be left behind by an exception.
"""

from __future__ import annotations

import sys
from itertools import islice
from operator import length_hint


class Count:
    """How many there were so far, from 0 to `sys.maxsize`.

    It rests on the interpreter's lock: an iterator over numbers that is written
    in C gives each of them to one caller. Where there is no such lock, as in
    free-threaded builds, two threads may get the same.
    """

    __slots__ = ("_numbers", "next")

    def __init__(self) -> None:
        self._numbers = iter(range(sys.maxsize))
        self.next = self._numbers.__next__
        """Adds one and returns how many there were before."""

    def add(self, more: int) -> int:
        """Adds `more`, at least 1, and returns how many there were before."""
        return next(islice(self._numbers, more - 1, None)) - more + 1

    @property
    def value(self) -> int:
        """How many there were so far."""
        return sys.maxsize - length_hint(self._numbers)
