"""The publisher against real sockets, and against what breaks them."""

import errno
import logging
import os
import signal
import socket
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Optional

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus

from hailmary import Pong, Publisher, PublisherStats
from hailmary._wire import bus_pb2


def free_udp_address() -> str:
    """An address at which nobody listens."""
    with fake_bus() as bus:
        return bus.address


def stamps(frames: list[bus_pb2.Frame]) -> list[tuple[int, int]]:
    return [(frame.stamp.sequence, frame.stamp.dropped) for frame in frames]


@pytest.fixture(params=["udp", "unix"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    path = tmp_path / "bus.sock" if request.param == "unix" else None
    with fake_bus(path) as bus:
        yield bus


def test_an_event_arrives_as_it_was_published(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a.b", b"p", key=b"k", attributes={"n": "v"}, time_unix_nano=5)
        frame = bus.receive()
        assert list(frame.events) == [
            bus_pb2.Event(
                topic="a.b", payload=b"p", key=b"k", attributes={"n": "v"}, time_unix_nano=5
            )
        ]
        assert frame.stamp.sender != 0
        assert publisher.stats() == PublisherStats(sent=1)


def test_the_time_is_now_unless_told(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1234)
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        publisher.publish("a", b"", time_unix_nano=0)
    times = [frame.events[0].time_unix_nano for frame in bus.receive_all()]
    assert times == [1234, 0]


def test_stamps_count_what_went_before(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        for _ in range(3):
            publisher.publish("a", b"")
        frames = bus.receive_all()
    assert stamps(frames) == [(0, 0), (1, 0), (2, 0)]
    assert len({frame.stamp.sender for frame in frames}) == 1


def test_each_publisher_is_a_sender_of_its_own(bus: FakeBus) -> None:
    with Publisher(bus.address) as one, Publisher(bus.address) as other:
        one.publish("a", b"")
        other.publish("a", b"")
    first, second = bus.receive_all()
    assert first.stamp.sender != second.stamp.sender


def ping(publisher: Publisher, timeout: float = PATIENCE_SECONDS) -> "Future[Optional[Pong]]":
    """Asks in a thread, since it waits for the bus, which is this thread."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(publisher.ping, timeout)
    finally:
        pool.shutdown(wait=False)


def test_a_bus_tells_what_it_received_and_lost(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        for _ in range(5):
            publisher.publish("a", b"")
        sender = bus.receive_all()[0].stamp.sender
        asked = ping(publisher)
        question = bus.answer_ping(received=3, lost=1)
        pong = asked.result(PATIENCE_SECONDS)
        assert question.stamp == bus_pb2.Stamp(sender=sender, sequence=5)
        assert pong is not None
        assert (pong.bus, pong.sent, pong.received, pong.lost) == (bus.id, 5, 3, 1)
        assert pong.in_flight == 1
        assert pong.round_trip_seconds > 0
        assert publisher.stats() == PublisherStats(sent=5, pong=pong)


def test_a_ping_that_got_lost_is_sent_again(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        asked = ping(publisher)
        lost = bus.receive()
        again = bus.answer_ping(received=0, lost=0)
        assert asked.result(PATIENCE_SECONDS) is not None
        assert lost.ping.nonce != again.ping.nonce


def test_a_ping_tells_of_what_was_dropped_here(tmp_path: Path) -> None:
    publisher = Publisher(f"unix://{tmp_path}/bus.sock")
    publisher.publish("a", b"too early")
    with publisher, fake_bus(tmp_path / "bus.sock") as bus:
        asked = ping(publisher)
        stamp = bus.answer_ping(received=0, lost=0).stamp
        assert (stamp.sequence, stamp.dropped) == (1, 1)
        pong = asked.result(PATIENCE_SECONDS)
        assert pong is not None and (pong.sent, pong.in_flight) == (0, 0)


def test_a_bus_that_does_not_answer_is_no_error(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        assert publisher.ping(timeout=0.01) is None
        assert publisher.stats().pong is None
    with Publisher("bus.invalid:7277") as nowhere:
        assert nowhere.ping() is None


def test_no_descriptor_to_ask_by_is_no_answer(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many open files")

    with Publisher(bus.address) as publisher, monkeypatch.context() as patch:
        patch.setattr(socket, "socket", no_socket)
        assert publisher.ping() is None


def test_the_answers_of_others_are_ignored() -> None:
    with fake_bus() as bus, fake_bus() as stranger, Publisher(bus.address) as publisher:
        asked = ping(publisher, timeout=0.3)
        nonce = bus.receive().ping.nonce
        pong, other = (
            bus_pb2.Frame(pong=bus_pb2.Pong(nonce=answered)).SerializeToString()
            for answered in (nonce, nonce ^ 1)
        )
        stranger.ingress.sendto(pong, bus.subscriber)
        for wrong in (b"\xff", other):
            bus.ingress.sendto(wrong, bus.subscriber)
        assert asked.result(PATIENCE_SECONDS) is None


def test_what_is_no_event_is_raised_and_not_counted(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        with pytest.raises(ValueError, match="no topic"):
            publisher.publish("a..b", b"")
        with pytest.raises(ValueError, match="65459 bytes"):
            publisher.publish("a", bytes(65_500))
        with pytest.raises(TypeError, match="payload"):
            publisher.publish("a", "text")  # type: ignore[arg-type]
        assert publisher.stats() == PublisherStats()


def test_the_longest_event_arrives(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a", bytes(65_459 - 20), time_unix_nano=1)
        assert len(bus.receive().events[0].payload) == 65_459 - 20


def test_a_udp_bus_that_is_absent_costs_nothing_but_the_events() -> None:
    with Publisher(free_udp_address()) as publisher:
        for _ in range(10):
            publisher.publish("a", b"")
        stats = publisher.stats()
    assert stats.offered == 10
    if sys.platform == "linux":
        assert stats.bounced > 0, "loopback tells of a dead port at once"


def test_the_first_event_after_a_udp_restart_arrives() -> None:
    with fake_bus() as old:
        port = old.port
        publisher = Publisher(old.address)
        publisher.publish("a", b"")
    publisher.publish("a", b"nobody is there")
    with publisher, fake_bus(port=port) as new:
        publisher.publish("a", b"back")
        frame = new.receive()
    assert frame.events[0].payload == b"back"
    assert frame.stamp.sequence == 2


def test_a_unix_bus_may_come_late_go_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    publisher = Publisher(f"unix://{path}")
    publisher.publish("a", b"too early")
    assert publisher.stats() == PublisherStats(refused=1)
    with fake_bus(path) as bus:
        publisher.publish("a", b"1")
        assert stamps([bus.receive()]) == [(1, 1)]
    publisher.publish("a", b"gone")
    assert publisher.stats() == PublisherStats(sent=1, refused=2)
    with fake_bus(path) as bus:
        publisher.publish("a", b"2")
        assert stamps([bus.receive()]) == [(3, 2)]
    with fake_bus(path) as bus:
        publisher.publish("a", b"back before it was missed")
        assert stamps([bus.receive()]) == [(4, 2)]
    publisher.close()


def test_a_stale_unix_path_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(str(path))
    with Publisher(f"unix://{path}") as publisher:
        publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(refused=1)


def test_a_full_unix_queue_drops_and_the_stamps_tell(tmp_path: Path) -> None:
    with fake_bus(tmp_path / "bus.sock") as bus, Publisher(bus.address) as publisher:
        while publisher.stats().dropped < 5:
            publisher.publish("a", bytes(1000))
        sent = publisher.stats().sent
        assert publisher.stats() == PublisherStats(sent=sent, would_block=5)
        assert len(bus.receive_all()) == sent
        publisher.publish("a", b"")
        assert stamps([bus.receive()]) == [(sent + 5, 5)]


class FailingSocket:
    """Stands in for a connected socket whose sends fail with `number`."""

    family = socket.AF_INET

    def __init__(self, number: int) -> None:
        self.number = number
        self.detached = False

    def send(self, frame: bytes) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def detach(self) -> int:
        self.detached = True
        return -1

    def close(self) -> None:
        pass


def with_failing_socket(publisher: Publisher, number: int) -> FailingSocket:
    failing = FailingSocket(number)
    flow: Any = publisher._flow
    if flow._socket is not None:
        flow._socket.close()
    flow._socket = flow._connected = failing
    return failing


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EAGAIN, "would_block"),
        (errno.ENOBUFS, "no_buffer"),
        (errno.ENOMEM, "no_buffer"),
        (errno.EMSGSIZE, "too_large"),
        (errno.ECONNREFUSED, "refused"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.EPERM, "failed"),
        (errno.EIO, "failed"),
    ],
)
def test_an_error_is_counted_and_the_socket_kept(
    bus: FakeBus, number: int, reason: str
) -> None:
    with Publisher(free_udp_address()) as publisher:
        failing = with_failing_socket(publisher, number)
        publisher.publish("a", b"")
        publisher.publish("a", b"")
        stats = publisher.stats()
        assert getattr(stats, reason) == stats.dropped == stats.offered == 2
        assert publisher._flow._connected is failing  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOTSOCK])
def test_a_lost_descriptor_is_left_alone_and_replaced(bus: FakeBus, number: int) -> None:
    with Publisher(bus.address) as publisher:
        failing = with_failing_socket(publisher, number)
        publisher.publish("a", b"")
        assert failing.detached
        publisher.publish("a", b"")
        assert stamps([bus.receive()]) == [(1, 1)]


def test_no_descriptor_free_is_a_dropped_event(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many open files")

    with Publisher(bus.address) as publisher:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", no_socket)
            publisher.publish("a", b"")
        publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(sent=1, failed=1)


def test_a_name_that_cannot_be_looked_up_drops_and_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        publisher = Publisher("bus.invalid:7277")
        publisher.publish("a", b"")
        publisher.publish("a", b"")
    assert publisher.stats() == PublisherStats(unreachable=2)
    assert len(caplog.records) == 1


def test_a_closed_publisher_drops(bus: FakeBus) -> None:
    publisher = Publisher(bus.address)
    publisher.publish("a", b"")
    publisher.close()
    publisher.close()
    publisher.publish("a", b"")
    assert publisher.stats() == PublisherStats(sent=1, closed=1)


def test_threads_share_one_flow(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:

        def publish_many() -> None:
            for _ in range(500):
                publisher.publish("a", b"")

        threads = [threading.Thread(target=publish_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        received = []
        while any(thread.is_alive() for thread in threads):
            received += bus.receive_all()
        received += bus.receive_all()
        stats = publisher.stats()
    assert stats.offered == 2000
    sequences = [frame.stamp.sequence for frame in received]
    assert sequences == sorted(set(sequences)), "in order, none twice"
    assert len(received) <= stats.sent


def test_a_signal_handler_may_publish_in_the_middle_of_a_publish(bus: FakeBus) -> None:
    publisher = Publisher(bus.address)

    def publish_too(number: int, frame: Optional[FrameType]) -> None:
        publisher.publish("a", b"from the handler")

    previous = signal.signal(signal.SIGUSR1, publish_too)
    try:
        with publisher._flow.lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    publisher.close()
    assert bus.receive().events[0].payload == b"from the handler"


def in_child(action: Callable[[], None]) -> None:
    """Forks, runs `action` there, and fails if it does."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_is_a_sender_of_its_own(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"parent")
        publisher.publish("a", b"parent")

        def child() -> None:
            assert publisher.stats() == PublisherStats()
            publisher.publish("a", b"child")
            assert publisher.stats() == PublisherStats(sent=1)

        in_child(child)
        publisher.publish("a", b"parent again")
        frames = bus.receive_all()
    assert stamps(frames) == [(0, 0), (1, 0), (0, 0), (2, 0)]
    senders = [frame.stamp.sender for frame in frames]
    assert senders[0] == senders[1] == senders[3] != senders[2]


def test_a_child_has_a_socket_of_its_own() -> None:
    with fake_bus() as bus, Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        bus.receive()
        parents = bus.subscriber
        in_child(lambda: publisher.publish("a", b""))
        bus.receive()
        assert bus.subscriber != parents


# From Python 3.12 on, a fork beside threads is warned of: just what is tested.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_does_not_inherit_a_held_lock(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with publisher._flow.lock:
                held.set()
                done.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        try:
            in_child(lambda: publisher.publish("a", b""))
        finally:
            done.set()
            holder.join()
        assert bus.receive().stamp.sequence == 0


def test_a_fork_that_told_nobody_is_noticed(bus: FakeBus, monkeypatch: pytest.MonkeyPatch) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        before = bus.receive().stamp.sender
        monkeypatch.setattr(os, "getpid", lambda: -1)
        publisher.publish("a", b"")
        assert bus.receive().stamp.sender != before
        assert publisher.stats() == PublisherStats(sent=1)


def test_a_closed_publisher_stays_closed_in_a_child(bus: FakeBus) -> None:
    publisher = Publisher(bus.address)
    publisher.close()

    def child() -> None:
        publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(closed=1)

    in_child(child)
