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
def handler(monkeypatch: pytest.MonkeyPatch) -> Handler:
    """The only one."""
    handler = Handler()
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    monkeypatch.setattr(LOGGER, "propagate", False)
    return handler


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


def test_a_handler_that_is_taken_is_not_waited_for(
    absent: Publisher, clock: Clock, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest adds its own, which are free.
    monkeypatch.setattr(LOGGER, "handlers", [handler])
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
    assert handler.lines == [], "not tried for each event"
    clock.now += 1.0
    absent.publish("a", b"")
    assert len(handler.lines) == 1, "told at the next occasion"


def test_a_handler_may_wait_for_what_another_handler_writes(absent: Publisher) -> None:
    """One that ships lines by a thread of its own, which logs what it does."""
    plain, shipping = Handler(), Handler()
    shipper = logging.getLogger("shipper")
    threads: list[threading.Thread] = []

    def ship() -> None:
        thread = threading.Thread(target=shipper.warning, args=("shipping",), daemon=True)
        threads.append(thread)
        thread.start()
        thread.join(10)

    shipping.action = ship
    logging.getLogger().addHandler(plain)
    LOGGER.addHandler(shipping)
    try:
        absent.publish("a", b"")
        assert [thread.is_alive() for thread in threads] == [False]
        assert plain.lines.count("shipping") == 1 and len(plain.lines) == 2
    finally:
        LOGGER.removeHandler(shipping)
        logging.getLogger().removeHandler(plain)


def test_loggings_own_lock_is_not_waited_for(absent: Publisher, handler: Handler) -> None:
    """Another thread configures logging."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with getattr(logging, "_lock"):
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    getattr(LOGGER, "_cache").clear()
    try:
        absent.publish("a", b"")
        assert not done.is_set() and holder.is_alive()
        assert len(handler.lines) == 1
    finally:
        done.set()
        holder.join()


def test_what_writes_where_there_is_no_handler_is_not_waited_for(
    absent: Publisher, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Handler()
    monkeypatch.setattr(logging, "lastResort", last)
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", False)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        assert last.lock is not None
        with last.lock:
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        absent.publish("a", b"")
        assert holder.is_alive() and last.lines == []
    finally:
        done.set()
        holder.join()
    clock.now += 1.0
    absent.publish("a", b"")
    assert len(last.lines) == 1


@pytest.mark.parametrize("as_one", ["disabled", "level", "filter", "handlers_level", "disable"])
def test_what_the_application_turned_off_is_not_written(
    as_one: str, absent: Publisher, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    if as_one == "disabled":
        monkeypatch.setattr(LOGGER, "disabled", True)
    elif as_one == "level":
        monkeypatch.setattr(LOGGER, "level", logging.ERROR)
    elif as_one == "filter":
        monkeypatch.setattr(LOGGER, "filters", [lambda record: False])
    elif as_one == "handlers_level":
        handler.setLevel(logging.ERROR)
    else:
        monkeypatch.setattr(LOGGER.manager, "disable", logging.CRITICAL)
    absent.publish("a", b"")
    assert handler.lines == []


def test_a_line_that_is_refused_is_not_tried_for_each_event(
    absent: Publisher, clock: Clock, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr("hailmary._trouble.warn", lambda *_: tried.append(True))
    for _ in range(10):
        absent.publish("a", b"")
    assert len(tried) == 1
    clock.now += 1.0
    absent.publish("a", b"")
    assert len(tried) == 2


class AbsentHandler:
    """Publishes when a signal comes."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    def method(self, number: int, frame: Optional[FrameType]) -> None:
        self.publisher.publish("a", b"")

    __call__ = method


@pytest.mark.parametrize("as_object", [True, False])
def test_in_a_signal_handler_nothing_is_told(
    as_object: bool, absent: Publisher, clock: Clock, handler: Handler
) -> None:
    of_signal = AbsentHandler(absent)
    previous = signal.signal(signal.SIGUSR1, of_signal if as_object else of_signal.method)
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert absent.stats().refused == 1
        assert handler.lines == []
    finally:
        signal.signal(signal.SIGUSR1, previous)
    clock.now += 1.0
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
