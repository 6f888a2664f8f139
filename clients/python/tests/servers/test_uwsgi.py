"""The publisher of a module, under uWSGI's workers.

uWSGI forks in C. Python's hooks hear of it only if uWSGI is told to call them.
Its threads are always enabled since 2.0.27; `--enable-threads` changes nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from servers.running import descriptors
from servers.tap import Tap, latest
from servers.web import Command, serving

WORKERS = 3
EVENTS_PER_REQUEST = 3

LOADS = [pytest.param((), id="master"), pytest.param(("--lazy-apps",), id="lazy")]
THREADS = [
    pytest.param(("--enable-threads",), id="threads"),
    pytest.param(("--enable-threads", "--threads", 4), id="4-threads"),
]
HOOKS = [
    pytest.param((), id="unhooked"),
    pytest.param(("--py-call-osafterfork",), id="osafterfork"),
]


def find_uwsgi() -> str:
    """Beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("uwsgi")
    return str(beside) if beside.exists() else shutil.which("uwsgi") or ""


pytestmark = pytest.mark.skipif(not find_uwsgi(), reason="uwsgi is not installed")


def uwsgi(*more: object) -> Command:
    def command(listener: str) -> Sequence[object]:
        return [
            *(find_uwsgi(), "--http-socket", listener, "--module", "web", "--master"),
            *("--processes", WORKERS, "--die-on-term", "--virtualenv", sys.prefix, *more),
        ]

    return command


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("load", LOADS)
def test_workers_lose_no_count(
    tap: Tap,
    directory: Path,
    load: tuple[object, ...],
    threads: tuple[object, ...],
    hooks: tuple[object, ...],
) -> None:
    with serving(uwsgi(*load, *threads, *hooks), directory, tap.address) as server:
        master = server.program
        server.ask_till_all_answered(master.children, WORKERS)
        before = descriptors(master.pid)
        old = master.children()
        # The master, told to reload, would begin anew as a whole, with its number.
        # Nobody asks meanwhile: a worker that ends may drop what it has accepted.
        for worker in old:
            os.kill(worker, signal.SIGHUP)
        master.wait_until(lambda: not old & master.children(), "the old workers are gone")
        server.ask_till_all_answered(lambda: master.children() - old, WORKERS)
        master.wait_until(lambda: descriptors(master.pid) <= before, "the master leaks none")
        # Threads that find no socket at the same moment open one each, and keep one.
        quiet = server.ask_each_alone(master.children())
        assert {len(facts["sockets"]) for facts in quiet} == {1}
        tap.check(server.answers)
        imports = 1 if load else 0
        for pid, stats in latest(server.answers).items():
            asked = sum(facts["pid"] == pid for facts in server.answers)
            assert stats["offered"] == asked * EVENTS_PER_REQUEST + imports
