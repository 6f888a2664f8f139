"""Every process is a sender of its own, however it came to be."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hailmary import Publisher
from servers.running import run, wait_until
from servers.tap import Tap

Told = list[dict[str, Any]]


def forks(tap: Tap, directory: Path, *arguments: object) -> Told:
    """Runs a scenario to its end."""
    return run(
        "forks.py", *arguments, directory=directory, environment={"HAILMARY_BUS": tap.address}
    )


def by_role(told: Told, role: str) -> Told:
    return [facts for facts in told if facts.get("role") == role]


def check_own_sockets(told: Iterable[Mapping[str, Any]]) -> None:
    """Each process has one socket: its own, with none left of its parent's."""
    assert {len(facts["sockets"]) for facts in told} == {1}


def check_begun_at_zero(told: Iterable[Mapping[str, Any]]) -> None:
    for facts in told:
        assert facts["begun"]["offered"] == 0
        assert facts["begun"]["sockets"] == []


def test_children_of_a_process_whose_threads_publish_at_full_speed(
    tap: Tap, directory: Path
) -> None:
    told = forks(tap, directory, "under_threads")
    children = by_role(told, "child")
    assert len({facts["pid"] for facts in children}) == 40
    check_begun_at_zero(children)
    check_own_sockets(told)
    # All that a child published is in its counts: 2 x 20 and the last ones.
    assert min(facts["offered"] for facts in children) > 40
    tap.check(told)


def test_a_child_of_a_child_of_a_child(tap: Tap, directory: Path) -> None:
    told = forks(tap, directory, "nested")
    assert sorted(facts["depth"] for facts in told) == [1, 2, 3, 4, 5]
    check_begun_at_zero(told)
    check_own_sockets(told)
    # Whoever had children has the socket that it had before.
    tap.check(told)


def test_a_publisher_is_not_pickled() -> None:
    """A copy would be a second sender with the same id."""
    with Publisher("127.0.0.1:9") as publisher, pytest.raises(TypeError):
        pickle.dumps(publisher)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_and_a_pool(tap: Tap, directory: Path, method: str) -> None:
    told = forks(tap, directory, "multiprocessing", method)
    begun = [facts for facts in told if "begun" in facts]
    assert len(begun) == 3
    check_begun_at_zero(begun)
    check_own_sockets(told)
    assert len(by_role(told, "pool")) == 12
    tap.check(told)


def test_a_subprocess_gets_no_socket(tap: Tap, directory: Path) -> None:
    told = forks(tap, directory, "subprocess")
    inherited = [facts["inherited"] for facts in told if "inherited" in facts]
    assert inherited == [[], []]
    processes = [facts for facts in told if "pid" in facts]
    check_begun_at_zero(facts for facts in processes if "begun" in facts)
    tap.check(processes)


@contextlib.contextmanager
def daemon_ended(report: Path) -> Iterator[None]:
    """It has a session of its own, so it is ended by its number if it hangs."""
    try:
        yield
    finally:
        pid = Path(f"{report}.pid")
        if pid.exists() and not report.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_daemon_that_closes_all_descriptors(tap: Tap, directory: Path) -> None:
    report = directory / "report"
    with daemon_ended(report):
        told = forks(tap, directory, "daemon", report)
        wait_until(report.exists, "the daemon told")
    told += told_in(report)
    assert [facts["role"] for facts in told] == ["parent", "daemon"]
    check_own_sockets(told)
    tap.check(told)


def told_in(report: Path) -> Told:
    return [json.loads(line) for line in report.read_text().splitlines()]


def test_a_fork_that_python_is_not_told_of(tap: Tap, directory: Path) -> None:
    told = forks(tap, directory, "silent")
    children = by_role(told, "child")
    assert len(children) == 30
    check_own_sockets(told)
    # 4 x 20 and the last ones: what the first threads counted is not forgotten.
    assert min(facts["offered"] for facts in children) > 80
    tap.check(told)
