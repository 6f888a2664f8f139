"""The publisher of a module, under gunicorn's workers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from real_bus import RealBus, real_bus

from servers.running import descriptors, wait_until
from servers.tap import Tap, latest
from servers.web import Command, serving

WORKERS = 3
RELOADS = 3
THREADS = 4
EVENTS_PER_REQUEST = 3

KINDS = [
    pytest.param(("sync",), id="sync"),
    pytest.param(("gthread", "--threads", THREADS), id="gthread"),
    pytest.param(("gevent",), id="gevent", marks=pytest.mark.needs("gevent")),
]
PRELOADS = [pytest.param((), id="each"), pytest.param(("--preload",), id="preload")]

pytestmark = pytest.mark.needs("gunicorn")


def gunicorn(*more: object) -> Command:
    def command(bind: str) -> Sequence[object]:
        return [
            *(sys.executable, "-m", "gunicorn", "web:application", "--bind", bind),
            *("--workers", WORKERS, "--no-control-socket", *more),
        ]

    return command


@pytest.mark.parametrize("preload", PRELOADS)
@pytest.mark.parametrize("kind", KINDS)
def test_workers_that_are_reloaded_lose_no_count(
    tap: Tap, directory: Path, kind: tuple[object, ...], preload: tuple[object, ...]
) -> None:
    command = gunicorn("--worker-class", *kind, *preload)
    with serving(command, directory, tap.address) as server:
        master = server.program
        server.ask_till_all_answered(master.children, WORKERS)
        before = descriptors(master.pid)
        for _ in range(RELOADS):
            old = master.children()
            with server.asked():
                master.signal(signal.SIGHUP)
                wait_until(lambda: not old & master.children(), "the old workers ended")
            server.ask_till_all_answered(lambda: master.children() - old, WORKERS)
        master.wait_until(lambda: descriptors(master.pid) <= before, "the master leaks none")
        # Threads that find no socket at the same moment open one each, and keep one.
        assert {len(facts["sockets"]) for facts in server.answers} <= {*range(1, THREADS + 1)}
        quiet = server.ask_each_alone(master.children())
        assert {len(facts["sockets"]) for facts in quiet} == {1}
        assert len(server.pids()) >= WORKERS * (RELOADS + 1)
        tap.check(server.answers)
        # Without preloading, each worker imports the module, which publishes too.
        imports = 0 if preload else 1
        for pid, stats in latest(server.answers).items():
            asked = sum(facts["pid"] == pid for facts in server.answers)
            assert stats["offered"] == asked * EVENTS_PER_REQUEST + imports


@pytest.mark.parametrize("way", ["udp", "unix"])
def test_requests_are_answered_while_the_bus_is_away(directory: Path, way: str) -> None:
    path = str(directory / "bus.sock")
    with real_bus(directory, unix=path) as old:
        udp, address = old.udp, getattr(old, way)
        with serving(gunicorn("--preload"), directory, address) as server:
            server.ask_till_all_answered(server.program.children, WORKERS)
            with server.asked():
                assert old.stop() == 0
                answered = len(server.answers)
                wait_until(lambda: len(server.answers) >= answered + 100, "requests are answered")
                with real_bus(directory, udp=udp[len("udp://") :], unix=path) as new:
                    wait_until(lambda: took(new) >= 100, "the bus has events again")
            counts = latest(server.answers).values()
            offered = sum(stats["offered"] for stats in counts)
            assert offered == len(server.answers) * EVENTS_PER_REQUEST
            assert {len(stats["sockets"]) for stats in counts} == {1}


@pytest.mark.parametrize("preload", PRELOADS)
@pytest.mark.parametrize("kind", KINDS)
def test_events_that_wait_hold_up_no_worker(
    tap: Tap, directory: Path, kind: tuple[object, ...], preload: tuple[object, ...]
) -> None:
    """With gevent and without preloading, the buffer's thread is a green one; with
    preloading, gevent comes when the publisher is there."""
    command = gunicorn("--worker-class", *kind, *preload)
    with serving(command, directory, tap.address, linger_ms=5) as server:
        server.ask_till_all_answered(server.program.children, WORKERS)
        wait_until(lambda: server.pids() <= set(tap.by_pid()), "each worker's events came")


def took(bus: RealBus) -> int:
    return bus.scrape().total("ingress_events_total")
