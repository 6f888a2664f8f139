"""Tells a process from its child, and what to do in the child.

Owns the one hook into `os.fork`, which runs in the child alone, and the check
that notices forks which bypass it, as those of servers written in C may do.
Nothing is done before a fork, and nothing is held across it.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
import weakref
from typing import Any, Callable, Protocol, TypeVar

_T = TypeVar("_T")

# `MADV_WIPEONFORK` of Linux 4.14: the page is full of zeros in a child. To look
# at it costs a twentieth of the system call that getpid() is.
_WIPE_ON_FORK = 18


class Mark(Protocol):
    """`mark[0]` is 0 in a process that was forked and has not yet noticed."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Forked(Protocol):
    """What has to begin anew in a child."""

    def begin_anew(self) -> None:
        """Leaves all that is the parent's to the parent."""


class _ProcessMark:
    """For systems that wipe no page."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __getitem__(self, index: int) -> int:
        return int(self._process == os.getpid())

    def __setitem__(self, index: int, value: int) -> None:
        self._process = os.getpid() if value else 0


def _make_mark() -> Mark:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (AttributeError, OSError, ValueError):
        return _ProcessMark()
    page[0] = 1
    return page


mark: Mark = _make_mark()

# Which process last began. Not for each event, as to ask costs a system call.
_process = os.getpid()

# What to call, by whom. A dictionary changes in one step, so a child never finds it half changed.
_forked: dict[weakref.ref[Any], Callable[[Any], None]] = {}


def begin_anew_in_child(forked: Forked) -> None:
    """Has its `begin_anew` called in every child, as long as it lives."""
    call_in_child(forked, type(forked).begin_anew)


def call_in_child(forked: _T, begin_anew: Callable[[_T], None]) -> None:
    """Has its method called in every child, as long as it lives."""
    _forked[weakref.ref(forked, _forked.pop)] = begin_anew


# Which thread of this process does it. By process, since a fork may leave behind
# the one that did.
_beginners: dict[int, int] = {}


def begin_anew() -> None:
    """In a child, once: before any of its threads runs, or when the mark tells.
    Then several may be told at once, and the others wait for the first."""
    me = threading.get_ident()
    while not mark[0]:
        if _beginners.setdefault(os.getpid(), me) != me:
            time.sleep(0)
            continue
        try:
            _begin_all()
        finally:
            _beginners.clear()


def _begin_all() -> None:
    global _process
    # Another may have come first, between the look at the mark and the claim.
    if mark[0]:
        return
    for reference, begin_anew_of in tuple(_forked.items()):
        forked = reference()
        if forked is not None:
            begin_anew_of(forked)
    _process = os.getpid()
    mark[0] = 1


def _begin_anew_behind_a_fork() -> None:
    """Also where the system has promised to wipe the page, and does not: some
    emulators take the promise for granted."""
    if os.getpid() != _process:
        mark[0] = 0
    begin_anew()


os.register_at_fork(after_in_child=_begin_anew_behind_a_fork)
