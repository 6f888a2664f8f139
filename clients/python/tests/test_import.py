"""What importing the package costs, and that names which come later are there as others."""

import os
import pickle
import subprocess
import sys
from typing import Any

import pytest

import hailmary

LATE = [
    "Reason",
    "Refused",
    "Runner",
    "RunnerStats",
    "Subscription",
    "SubscriptionStats",
    "run",
    "subscribe",
]

PUBLISHES = """
import hailmary
with hailmary.Publisher("127.0.0.1:9") as publisher:
    publisher.publish("a.b", b"", key=b"k", attributes={"n": "v"})
    with publisher.batch() as batch:
        batch.publish("a.b", b"")
    hailmary.Topic("a.b", codec=hailmary.json).publish({"id": 1}, publisher=publisher)
    assert publisher.stats().offered == 3
with hailmary.Publisher("127.0.0.1:9", linger_ms=1) as publisher:
    publisher.publish("a.b", b"")
hailmary.publish("a.b", b"")
hailmary.default_publisher().publish("a.b", b"")
"""


def run(program: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def imported_by(program: str) -> "set[str]":
    return set(run(f"{program}\nimport sys\nprint(*sys.modules)").split())


def test_who_only_publishes_imports_nothing_that_only_others_need() -> None:
    imported = imported_by(PUBLISHES)
    assert "hailmary._sender" in imported
    others = ["asyncio", "google.protobuf", "opentelemetry", "pytest", "hailmary._subscription"]
    assert not imported.intersection(others)


def test_publishing_imports_nothing_that_was_not_there_before() -> None:
    """An import inside `publish()` would read files and wait for a lock."""
    before = "import sys, hailmary; before = set(sys.modules)"
    late = f"{before}\n{PUBLISHES}\nprint(*set(sys.modules) - before)"
    # Python itself imports the codec of hosts' names, and that in Publisher().
    assert set(run(late).split()) <= {"encodings.idna", "stringprep", "unicodedata"}


@pytest.mark.parametrize("name", LATE)
def test_a_name_that_comes_late_is_there_as_the_others(name: str) -> None:
    run(
        f"import hailmary; assert {name!r} in dir(hailmary) and {name!r} in hailmary.__all__\n"
        f"from hailmary import {name}; assert hailmary.{name} is {name}"
    )


def test_all_names_come_by_a_star() -> None:
    names = run("from hailmary import *; print(*dir())").split()
    assert set(hailmary.__all__) <= set(names)


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'subscibe'"):
        getattr(hailmary, "subscibe")
    assert set(hailmary.__all__) <= set(dir(hailmary))
    assert all(hasattr(hailmary, name) for name in dir(hailmary))


@pytest.mark.parametrize("value", [hailmary.SubscriptionStats(received=3), hailmary.RunnerStats()])
def test_what_comes_late_is_pickled(value: Any) -> None:
    pickled = pickle.dumps(value).hex()
    again = run(f"import pickle; print(pickle.loads(bytes.fromhex('{pickled}')))")
    assert again == f"{value}\n"


def test_threads_that_ask_at_once_get_the_same() -> None:
    program = """
import threading, hailmary
gate = threading.Barrier(8)
got = []
def ask(index):
    gate.wait()
    names = ("subscribe", "Runner", "Refused", "SubscriptionStats")
    for step in range(4):
        got.append((names[(index + step) % 4], getattr(hailmary, names[(index + step) % 4])))
threads = [threading.Thread(target=ask, args=[index]) for index in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(got), len(set(got)))
"""
    assert run(program) == "32 4\n"


def test_a_child_and_its_parent_each_import_what_comes_late() -> None:
    program = """
import os, sys, hailmary
child = os.fork()
hailmary.subscribe, hailmary.Runner
if not child:
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert run(program) == "0\n"
