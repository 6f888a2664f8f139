"""What is told of troubles, how often, and where it is better not to."""

import logging
import queue
import signal
import threading
from collections.abc import Iterator
from logging.handlers import QueueHandler
from pathlib import Path
from types import FrameType
from typing import Callable, Optional

import pytest
from test_fork import fork_past_the_hook, in_child

from hailmary import Publisher

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

LOGGER = logging.getLogger("hailmary")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("hailmary._trouble.time.monotonic", clock)
    return clock


@pytest.fixture
def absent(tmp_path: Path) -> Iterator[Publisher]:
    """Each event is dropped: nobody is there."""
    with Publisher(f"unix://{tmp_path}/bus.sock") as publisher:
        yield publisher


def test_the_first_is_told_then_one_a_minute(
    absent: Publisher, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        absent.publish("a", b"")
    assert len(caplog.records) == 1
    assert "refused" in caplog.text and absent._sender.bus in caplog.text
    clock.now += 59.9
    absent.publish("a", b"")
    assert len(caplog.records) == 1
    clock.now += 0.1
    absent.publish("a", b"")
    absent.publish("a", b"")
    assert [record.getMessage().partition(" (and ")[2] for record in caplog.records] == [
        "",
        "5 more times since the last such line)",
    ]


def test_each_kind_is_told_by_itself(
    absent: Publisher, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    absent.publish("a", b"")
    absent.close()
    absent.publish("a", b"")
    absent.publish("a", b"")
    assert len(caplog.records) == 2


def test_many_publishers_tell_no_more_than_one(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        with Publisher(f"unix://{tmp_path}/bus.sock") as publisher:
            publisher.publish("a", b"")
    assert len(caplog.records) == 1


class Handler(logging.Handler):
    """Calls `action` with each line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.action: Callable[[], object] = list

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.action()


@pytest.fixture
def handler() -> Iterator[Handler]:
    handler = Handler()
    LOGGER.addHandler(handler)
    LOGGER.propagate = False
    try:
        yield handler
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.propagate = True


def test_a_handler_may_publish(absent: Publisher, handler: Handler) -> None:
    def publish() -> None:
        absent.publish("log", b"")
        absent.publish("log", bytes(65_000))

    handler.action = publish
    absent.publish("a", b"")
    assert len(handler.lines) == 1
    assert absent.stats().refused == 3


def test_a_handler_that_raises_harms_nobody(absent: Publisher, handler: Handler) -> None:
    def fail() -> None:
        raise RuntimeError("the handler's own")

    handler.action = fail
    absent.publish("a", b"")
    assert len(handler.lines) == 1


def test_a_handler_that_is_taken_is_not_waited_for(absent: Publisher, handler: Handler) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        assert handler.lock is not None
        with handler.lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        absent.publish("a", b"")
        in_child(lambda: absent.publish("a", b""), fork_past_the_hook)
        assert handler.lines == []
    finally:
        done.set()
        holder.join()
    absent.publish("a", b"")
    assert len(handler.lines) == 1, "told at the next occasion"


class AbsentHandler:
    """Publishes when a signal comes."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    def method(self, number: int, frame: Optional[FrameType]) -> None:
        self.publisher.publish("a", b"")

    __call__ = method


@pytest.mark.parametrize("as_object", [True, False])
def test_in_a_signal_handler_nothing_is_told(
    as_object: bool, absent: Publisher, handler: Handler
) -> None:
    of_signal = AbsentHandler(absent)
    previous = signal.signal(signal.SIGUSR1, of_signal if as_object else of_signal.method)
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert absent.stats().refused == 1
        assert handler.lines == []
    finally:
        signal.signal(signal.SIGUSR1, previous)
    absent.publish("a", b"")
    assert len(handler.lines) == 1


def test_a_queue_whose_lock_the_interrupted_code_holds_is_no_deadlock(absent: Publisher) -> None:
    lines: "queue.Queue[logging.LogRecord]" = queue.Queue()
    handler = QueueHandler(lines)
    LOGGER.addHandler(handler)
    of_signal = AbsentHandler(absent)
    previous = signal.signal(signal.SIGUSR1, of_signal.method)
    try:
        with lines.mutex:
            signal.raise_signal(signal.SIGUSR1)
        assert absent.stats().refused == 1
    finally:
        signal.signal(signal.SIGUSR1, previous)
        LOGGER.removeHandler(handler)


def test_a_child_tells_for_itself(absent: Publisher, handler: Handler) -> None:
    absent.publish("a", b"")

    def child() -> None:
        absent.publish("a", b"")
        assert len(handler.lines) == 2

    in_child(child)
