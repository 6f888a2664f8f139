"""Greenlets of gevent and eventlet: publishing holds up no hub, nor does
subscribing in a patched process."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from real_bus import RealBus

from servers.running import run
from servers.tap import Tap

GREENLETS = 20
THREADS = 4
EVENTS = 50
MANY = 2000

OPTIONS = [pytest.param((), id="patched"), pytest.param(("late",), id="patched-late")]

pytestmark = [
    pytest.mark.parametrize(
        "library",
        [
            pytest.param("gevent", marks=pytest.mark.needs("gevent")),
            pytest.param("eventlet", marks=pytest.mark.needs("eventlet")),
        ],
    ),
    pytest.mark.parametrize("options", OPTIONS),
]


def green(directory: Path, bus: str, *arguments: object) -> list[dict[str, Any]]:
    """Runs a scenario to its end."""
    return run("green.py", *arguments, directory=directory, environment={"HAILMARY_BUS": bus})


def test_a_full_bus_holds_up_no_greenlet(
    directory: Path, library: str, options: tuple[str, ...]
) -> None:
    path = directory / "full.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unread:
        unread.bind(str(path))
        (told,) = green(directory, f"unix://{path}", library, "full", *options)
    assert told["offered"] == MANY + len(options)
    assert told["dropped"] > 0
    assert told["turns"] > 0


def test_greenlets_and_threads_share_a_publisher(
    tap: Tap, directory: Path, library: str, options: tuple[str, ...]
) -> None:
    told = green(directory, tap.address, library, "all", *options)
    assert told[0]["offered"] > (GREENLETS + THREADS) * EVENTS
    assert len(told[0]["sockets"]) == 1
    tap.check(told)
    for name in range(GREENLETS + THREADS):
        turns = [event["turn"] for event in tap.payloads() if event["name"] == name]
        assert turns == sorted(set(turns))


def test_a_child_is_a_sender_of_its_own(
    tap: Tap, directory: Path, library: str, options: tuple[str, ...]
) -> None:
    told = green(directory, tap.address, library, "fork", *options)
    assert len({facts["pid"] for facts in told}) == 2
    assert {len(facts["sockets"]) for facts in told} == {1}
    assert min(facts["offered"] for facts in told) > GREENLETS * EVENTS
    tap.check(told)


def test_an_iterator_in_a_greenlet_lets_the_others_run(
    bus: RealBus, directory: Path, library: str, options: tuple[str, ...]
) -> None:
    (told,) = green(directory, bus.udp, library, "subscribe", *options)
    assert told["taken"] == list(range(EVENTS))
    assert told["pinged"]
