"""The publisher of a module, under Celery's prefork workers and a real RabbitMQ."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from photo_app.rabbitmq import Missing, RabbitMQ, find_server

from servers.running import Running, run, running, sockets
from servers.tap import Tap


CHILDREN = 2
TASKS_TO_BEGIN = 10
TASKS = 40
TASKS_PER_CHILD = 5
BEATS = 10
ROLES = ("parent", "child", "beat")

pytestmark = pytest.mark.needs("celery")


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """The address of a RabbitMQ for this module's tests."""
    try:
        find_server()
    except Missing as missing:
        pytest.skip(str(missing))
    with RabbitMQ() as node:
        yield node.url


def by_role(worker: Running, role: str) -> list[dict[str, Any]]:
    """What the worker's processes told so far."""
    return [facts for facts in worker.told() if facts["role"] == role]


@pytest.mark.parametrize("beat", [pytest.param((), id="alone"), pytest.param(("-B",), id="beat")])
def test_children_that_come_and_go_lose_no_count(
    tap: Tap, directory: Path, broker: str, beat: tuple[str, ...]
) -> None:
    environment = {"HAILMARY_BUS": tap.address, "BROKER": broker}
    command = [
        *(sys.executable, "-m", "celery", "--app", "jobs", "worker", "--pool", "prefork"),
        *("--concurrency", CHILDREN, "--max-tasks-per-child", TASKS_PER_CHILD),
        *(*beat, "--schedule", directory / "schedule"),
    ]

    def ask(count: int) -> list[dict[str, Any]]:
        apart = directory / f"ask-{count}"
        apart.mkdir()
        return run("ask.py", count, directory=apart, environment=environment)

    with running(command, directory, environment) as worker:
        worker.wait_until(lambda: by_role(worker, "parent"), "the worker was ready")
        told = ask(TASKS_TO_BEGIN)
        # Of its pipes it has 10 to 12, by how many of its children are being replaced.
        before = sockets(worker.pid)
        told += ask(TASKS)
        if beat:
            worker.wait_until(lambda: len(by_role(worker, "beat")) == BEATS, "beat published")
        worker.wait_until(lambda: sockets(worker.pid) <= before, "the parent leaks no socket")
        told += worker.told()
        assert worker.stop() == 0
    pids = {role: {facts["pid"] for facts in told if facts["role"] == role} for role in ROLES}
    assert pids["parent"] == {worker.pid}
    assert len(pids["child"]) >= (TASKS_TO_BEGIN + TASKS) / TASKS_PER_CHILD
    assert len(pids["beat"]) == len(beat)
    assert {len(facts["sockets"]) for facts in told} == {1}
    tap.check(told)
    assert set(tap.by_pid()) == set().union(*pids.values())
