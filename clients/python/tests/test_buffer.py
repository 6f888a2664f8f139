"""Events that wait for others: the buffer's bounds, its thread and its end."""

import _thread
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus
from test_fork import FORKS, in_child

from hailmary import Publisher, PublisherStats
from hailmary import _buffer

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with fake_bus() as bus:
        yield bus


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread comes to empty the buffer."""
    monkeypatch.setattr(_buffer, "start_new_thread", lambda *_: None)


def events(bus: FakeBus) -> list[list[bytes]]:
    return [[event.payload for event in frame.events] for frame in bus.receive_all()]


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


def test_events_wait_and_go_together(bus: FakeBus) -> None:
    with Publisher(bus.address, linger_ms=50) as publisher:
        threads = _thread._count()
        for number in range(10):
            publisher.publish("a", b"%d" % number)
        assert _thread._count() <= threads + 1
        frames = [bus.receive()]
        while sum(len(frame.events) for frame in frames) < 10:
            frames.append(bus.receive())
        told = [event.payload for frame in frames for event in frame.events]
        assert told == [b"%d" % number for number in range(10)]
        wait_until(lambda: publisher.stats() == PublisherStats(sent=10))


def test_an_idle_thread_is_woken_again_and_again(bus: FakeBus) -> None:
    with Publisher(bus.address, linger_ms=1) as publisher:
        for number in range(20):
            publisher.publish("a", b"%d" % number)
            assert bus.receive().events[0].payload == b"%d" % number


def test_closing_sends_the_rest(bus: FakeBus, idle: None) -> None:
    with Publisher(bus.address, linger_ms=10_000) as publisher:
        publisher.publish("a", b"1")
        assert publisher.stats().offered == 0
        assert events(bus) == []
    publisher.publish("a", b"2")
    assert events(bus) == [[b"1"]]
    assert publisher.stats() == PublisherStats(sent=1, closed=1)


def test_flushing_sends_the_rest(bus: FakeBus, idle: None) -> None:
    with Publisher(bus.address, linger_ms=10_000) as publisher:
        publisher.publish("a", b"1")
        publisher.publish("a", b"2")
        publisher.flush()
        assert events(bus) == [[b"1", b"2"]]


def test_a_closed_publisher_leaves_no_thread(bus: FakeBus) -> None:
    threads = _thread._count()
    with Publisher(bus.address, linger_ms=10_000) as publisher:
        publisher.publish("a", b"1")
    forgotten = Publisher(bus.address, linger_ms=10_000)
    forgotten.publish("a", b"2")
    del forgotten
    wait_until(lambda: _thread._count() <= threads)
    assert events(bus) == [[b"1"], [b"2"]]


def test_the_newest_is_dropped_when_all_slots_are_in_use(
    bus: FakeBus, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_buffer, "BUFFER_SLOTS", 4)
    with Publisher(bus.address, linger_ms=10_000) as publisher:
        for number in range(6):
            publisher.publish("a", b"%d" % number)
        assert publisher.stats() == PublisherStats(buffer_full=2)
        publisher.flush()
        publisher.publish("a", b"7")
        publisher.flush()
        frames = bus.receive_all()
        assert [len(frame.events) for frame in frames] == [4, 1]
        assert [(frame.stamp.sequence, frame.stamp.dropped) for frame in frames] == [(2, 2), (6, 2)]
        assert publisher.stats() == PublisherStats(sent=5, buffer_full=2)


def test_its_bytes_are_bounded_too(
    bus: FakeBus, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_buffer, "BUFFER_SLOTS", 4)
    overhead = len(b"\n\x00\x00\n\x01a\x12\x00\x00")
    with Publisher(bus.address, linger_ms=10_000) as publisher:
        for payload_bytes in (2 * 1024 + 1 - overhead, 1024, 1024 - overhead, 1):
            publisher.publish("a", bytes(payload_bytes), time_unix_nano=0)
        assert publisher.stats() == PublisherStats(buffer_full=2), "3 slots, 2 too many, 1, no more"
        publisher.flush()
        assert publisher.stats().sent == 2


def test_a_full_half_is_sent_before_the_time(bus: FakeBus) -> None:
    with Publisher(bus.address, linger_ms=10_000) as publisher:
        for _ in range(_buffer.BUFFER_SLOTS // 2 + 1):
            publisher.publish("a", b"")
        assert bus.receive().events


def test_without_a_thread_to_be_had_events_are_sent_at_once(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    with Publisher(bus.address, linger_ms=10_000) as publisher:
        with monkeypatch.context() as patch:
            patch.setattr(_buffer, "start_new_thread", no_thread)
            publisher.publish("a", b"1")
            publisher.publish("a", b"2")
        assert events(bus) == [[b"1"], [b"2"]]


@FORKS
def test_a_childs_buffer_is_empty_and_has_a_thread_of_its_own(
    bus: FakeBus, fork: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fork past Python's hook beside a thread may leave its own lock behind.
    monkeypatch.setattr(_buffer, "start_new_thread", lambda *_: None)
    with Publisher(bus.address, linger_ms=10) as publisher:
        publisher.publish("a", b"parent")

        def child() -> None:
            monkeypatch.undo()
            publisher.publish("a", b"child")
            wait_until(lambda: publisher.stats() == PublisherStats(sent=1))
            publisher.flush()  # It counts as sent while the thread still sends it.

        in_child(child, fork)
        publisher.flush()
        told = [payload for frame in events(bus) for payload in frame]
        assert sorted(told) == [b"child", b"parent"]


def test_threads_lose_nothing_that_is_not_counted(bus: FakeBus) -> None:
    with Publisher(bus.address, linger_ms=1) as publisher:

        def publish_many() -> None:
            for _ in range(2_000):
                publisher.publish("a", b"")

        threads = [threading.Thread(target=publish_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert publisher.stats().offered == 8_000


class Interrupted(Exception):
    """What a signal handler raises, as Celery does when a task's time is over."""


def test_an_exception_in_place_of_the_alarm_does_not_silence_the_buffer(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    with Publisher(bus.address, linger_ms=1) as publisher:
        for name in ("_start", "_ring"):
            with monkeypatch.context() as patch:
                patch.setattr(_buffer.Buffer, name, interrupt)
                with pytest.raises(Interrupted):
                    publisher.publish("a", b"1")
            publisher.publish("a", b"2")
            assert wait_for_events(bus, 2) == [b"1", b"2"]
            buffer = publisher._buffer
            assert buffer is not None
            wait_until(lambda: buffer._wake_at == 1)


def wait_for_events(bus: FakeBus, count: int) -> list[bytes]:
    payloads: list[bytes] = []
    while len(payloads) < count:
        payloads += [event.payload for event in bus.receive().events]
    return payloads


def test_a_buffer_whose_alarm_was_lost_is_emptied_once_it_is_full(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_buffer, "BUFFER_SLOTS", 2)
    with Publisher(bus.address, linger_ms=1) as publisher:
        buffer = publisher._buffer
        assert buffer is not None
        # As after an exception between the two steps that wake it.
        buffer._wake_at = _buffer._NEVER
        for payload in (b"1", b"2", b"dropped"):
            publisher.publish("a", payload)
        assert wait_for_events(bus, 2) == [b"1", b"2"]


def run(program: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, *arguments],
        check=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, "PYTHONPATH": str(Path(_buffer.__file__).parent.parent)},
        stdout=subprocess.DEVNULL,
    )


def test_the_interpreters_end_sends_the_rest(bus: FakeBus) -> None:
    run(
        "import sys, hailmary\n"
        "publisher = hailmary.Publisher(sys.argv[1], linger_ms=10_000)\n"
        "for number in range(3): publisher.publish('a', b'%d' % number)\n",
        bus.address,
    )
    assert [payload for frame in events(bus) for payload in frame] == [b"0", b"1", b"2"]


def test_lock_and_thread_are_of_one_kind_whoever_replaces_them_later() -> None:
    """As gevent does, which gunicorn has patch a worker after it imported the rest."""
    pytest.importorskip("gevent")
    run(
        "import hailmary\n"
        "publisher = hailmary.Publisher('127.0.0.1:9', linger_ms=1)\n"
        "from gevent import monkey; monkey.patch_all()\n"
        "import gevent\n"
        "publisher.publish('a', b'')\n"
        "while not publisher.stats().sent: gevent.sleep(0.001)\n"
        "publisher.close()\n",
    )


def test_the_end_is_quiet_while_threads_publish(bus: FakeBus) -> None:
    run(
        "import sys, threading, time, hailmary\n"
        "publisher = hailmary.Publisher(sys.argv[1], linger_ms=1)\n"
        "def publish():\n"
        "    while True: publisher.publish('a', b'')\n"
        "threading.Thread(target=publish, daemon=True).start()\n"
        "time.sleep(0.05)\n",
        bus.address,
    )
    assert events(bus)
