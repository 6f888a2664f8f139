"""Publishers, threads, signals, and both sides of a fork."""

import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Callable, Optional

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus

from hailmary import Publisher, PublisherStats, _fork, _publisher
from hailmary._wire import bus_pb2

# From Python 3.12 on, a fork beside threads is warned of: just what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture(params=["udp", "unix"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeBus]:
    path = tmp_path / "bus.sock" if request.param == "unix" else None
    with fake_bus(path) as bus:
        yield bus


def stamps(frames: list[bus_pb2.Frame]) -> list[tuple[int, int]]:
    return [(frame.stamp.sequence, frame.stamp.dropped) for frame in frames]


def fork_past_the_hook() -> int:
    """As a server in C may do it: Python is not told."""
    return int(ctypes.PyDLL(None).fork())


def in_child(action: Callable[[], None], fork: Callable[[], int] = os.fork) -> None:
    """Forks, runs `action` there, and fails if it does or does not end."""
    child = fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(int(PATIENCE_SECONDS))
            action()
            status = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


FORKS = pytest.mark.parametrize("fork", [os.fork, fork_past_the_hook])


@FORKS
def test_a_child_is_a_sender_of_its_own(bus: FakeBus, fork: Callable[[], int]) -> None:
    with Publisher(bus.address) as publisher, Publisher(bus.address) as other:
        for one in (publisher, publisher, other):
            one.publish("a", b"parent")

        def child() -> None:
            publisher.publish("a", b"child")
            assert publisher.stats() == PublisherStats(sent=1)
            assert other.stats() == PublisherStats()

        in_child(child, fork)
        publisher.publish("a", b"parent again")
        frames = bus.receive_all()
    assert stamps(frames) == [(0, 0), (1, 0), (0, 0), (0, 0), (2, 0)]
    senders = [frame.stamp.sender for frame in frames]
    assert senders[0] == senders[1] == senders[4]
    assert len(set(senders)) == 3


@FORKS
def test_a_childs_first_word_may_be_stats(bus: FakeBus, fork: Callable[[], int]) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")

        def child() -> None:
            assert publisher.stats() == PublisherStats()

        in_child(child, fork)


def test_a_child_has_a_socket_of_its_own_and_none_of_the_parents() -> None:
    with fake_bus() as bus, Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        bus.receive()
        parents = bus.subscriber
        opened = publisher._sender.link._socket
        assert opened is not None
        number = opened.fileno()

        def child() -> None:
            with pytest.raises(OSError):
                os.fstat(number)
            publisher.publish("a", b"")

        in_child(child)
        bus.receive()
        assert bus.subscriber != parents


def test_a_fork_is_noticed_where_no_page_is_wiped() -> None:
    mark = _fork._ProcessMark()

    def child() -> None:
        assert mark[0] == 0
        mark[0] = 1
        assert mark[0] == 1

    assert mark[0] == 1
    in_child(child, fork_past_the_hook)
    assert mark[0] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone wipes pages")
def test_a_page_is_wiped_here() -> None:
    assert not isinstance(_fork.mark, _fork._ProcessMark)


def test_pythons_own_forks_are_noticed_where_the_page_is_not_wiped_after_all(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwiped = [1]
    monkeypatch.setattr(_fork, "mark", unwiped)
    monkeypatch.setattr(_publisher, "_mark", unwiped)
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")

        def child() -> None:
            assert publisher.stats() == PublisherStats()
            publisher.publish("a", b"")
            # And its own child, which a signal handler may have forked.
            in_child(lambda: publisher.publish("a", b""))

        in_child(child)
        frames = bus.receive_all()
    assert stamps(frames) == [(0, 0)] * 3
    assert len({frame.stamp.sender for frame in frames}) == 3


def test_a_closed_publisher_stays_closed_in_a_child(bus: FakeBus) -> None:
    publisher = Publisher(bus.address)
    publisher.close()

    def child() -> None:
        publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(closed=1)

    in_child(child)


def test_a_batch_in_a_child_holds_none_of_the_parents_events(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher, publisher.batch() as batch:
        batch.publish("a", b"parent")

        def child() -> None:
            batch.flush()
            batch.publish("a", b"child")
            batch.flush()

        in_child(child)
        batch.flush()
        told = [[event.payload for event in frame.events] for frame in bus.receive_all()]
    assert told == [[b"child"], [b"parent"]]


def test_forks_while_threads_publish_and_make_publishers(bus: FakeBus) -> None:
    """A child finds neither a lock that is held nor a table half changed."""
    done = threading.Event()
    publisher = Publisher(bus.address)

    def publish() -> None:
        while not done.is_set():
            publisher.publish("a", b"")
            with Publisher(bus.address) as another, another.batch() as batch:
                batch.publish("a", b"")

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()

    def child() -> None:
        publisher.publish("a", b"")
        assert publisher.stats().offered == 1
        with Publisher(bus.address, linger_ms=1) as another:
            another.publish("a", b"")

    try:
        for _ in range(30):
            in_child(child)
            bus.receive_all()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        publisher.close()


def test_a_signal_handler_may_publish_in_the_midst_of_a_publish(bus: FakeBus) -> None:
    publisher = Publisher(bus.address)
    handled = 0

    def publish_too(number: int, frame: Optional[FrameType]) -> None:
        nonlocal handled
        handled += 1
        publisher.publish("a", b"from the handler")

    previous = signal.signal(signal.SIGALRM, publish_too)
    published, sequences = 0, []
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while handled < 100 and time.monotonic() < give_up_at:
            publisher.publish("a", b"")
            published += 1
            sequences += [frame.stamp.sequence for frame in bus.receive_all()]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    sequences += [frame.stamp.sequence for frame in bus.receive_all()]
    assert handled >= 100
    assert publisher.stats() == PublisherStats(sent=published + handled)
    assert sorted(sequences) == list(range(published + handled))
    publisher.close()


def test_a_signal_handler_may_fork_in_the_midst_of_a_publish(bus: FakeBus) -> None:
    publisher = Publisher(bus.address)
    parent = os.getpid()
    children: list[int] = []

    def fork(number: int, frame: Optional[FrameType]) -> None:
        child = os.fork()
        if child:
            children.append(child)

    previous = signal.signal(signal.SIGUSR1, fork)
    rng = random.Random(1)
    try:
        publisher.publish("a", b"")
        for _ in range(20):
            before = len(children)
            threading.Timer(rng.random() / 1000, os.kill, (parent, signal.SIGUSR1)).start()
            while len(children) == before:
                publisher.publish("a", b"")
                if os.getpid() != parent:
                    stats = publisher.stats()
                    publisher.publish("a", b"")
                    fine = stats.offered <= 1 and publisher.stats().sent == stats.sent + 1
                    os._exit(0 if fine else 1)
                bus.receive_all()
            assert os.waitpid(children[-1], 0)[1] == 0
    finally:
        signal.signal(signal.SIGUSR1, previous)
        publisher.close()
