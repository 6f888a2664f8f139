"""The publisher against real sockets, and against what breaks them."""

import _thread
import logging
import socket
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

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
    monkeypatch.setattr("hailmary._publisher.time_ns", lambda: 1234)
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


def test_publishing_looks_no_name_up_and_starts_no_thread(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = []
    look_up = socket.getaddrinfo

    def counted(*arguments: Any, **more: Any) -> Any:
        looked_up.append(arguments)
        return look_up(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    address = bus.address.replace("127.0.0.1", "localhost")
    threads = _thread._count()
    with Publisher(address) as publisher, publisher.batch() as batch:
        made = len(looked_up)
        assert made <= 1
        for _ in range(100):
            publisher.publish("a", b"")
            batch.publish("a", b"")
        bus.close()
        for _ in range(100):
            publisher.publish("a", b"")
        assert len(looked_up) == made
        assert _thread._count() == threads
        assert publisher.resolve()
        assert len(looked_up) == 2 * made


def test_a_bus_that_changed_its_address_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_bus() as old, fake_bus() as new:
        monkeypatch.setenv("HAILMARY_BUS", old.address)
        with Publisher() as publisher:
            publisher.publish("a", b"")
            monkeypatch.setenv("HAILMARY_BUS", new.address)
            publisher.publish("a", b"")
            assert publisher.resolve()
            publisher.publish("a", b"")
            assert stamps(old.receive_all()) == [(0, 0), (1, 0)]
            assert stamps([new.receive()]) == [(2, 0)]
            monkeypatch.setenv("HAILMARY_BUS", "bus.invalid:7277")
            assert not publisher.resolve()
            publisher.publish("a", b"")
            assert stamps([new.receive()]) == [(3, 0)]
            publisher.close()
            monkeypatch.setenv("HAILMARY_BUS", old.address)
            assert publisher.resolve()
            publisher.publish("a", b"")
            assert publisher.stats() == PublisherStats(sent=4, closed=1)


def test_a_failed_resolve_says_that_events_go_on(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HAILMARY_BUS", bus.address)
    with Publisher() as publisher:
        monkeypatch.setenv("HAILMARY_BUS", "garbage")
        for _ in range(2):
            assert not publisher.resolve()
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2, "each says it"
        assert all("go on" in line and "dropped" not in line for line in lines)


def test_what_is_told_names_the_bus_that_was_resolved_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HAILMARY_BUS", f"unix://{tmp_path}/old")
    with Publisher() as publisher:
        monkeypatch.setenv("HAILMARY_BUS", f"unix://{tmp_path}/new")
        assert publisher.resolve()
        publisher.publish("a", b"")
    assert f"unix://{tmp_path}/new" in caplog.text and "/old" not in caplog.text


def test_an_address_that_is_none_is_raised_where_publishing_is_turned_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HAILMARY_DISABLE", "1")
    with pytest.raises(ValueError):
        Publisher("nonsense")


@pytest.mark.parametrize("value", ["garbage", "host:0", "http://host:1", "a..b:1", "x" * 100 + ":1"])
def test_a_bad_environment_warns_and_drops(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HAILMARY_BUS", value)
    with Publisher() as publisher:
        publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(unreachable=1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert value in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"address": "garbage"}, {"on_error": "ignore"}, {"linger_ms": -1}, {"linger_ms": 1e9}]
)
def test_a_bad_argument_is_raised(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Publisher(**wrong)


@pytest.mark.parametrize("value", ["1", "true", " YES ", "on"])
def test_disabled_it_does_nothing(
    value: str, bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError("a name is looked up")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setenv("HAILMARY_DISABLE", value)
    monkeypatch.setenv("HAILMARY_BUS", bus.address)
    with Publisher(linger_ms=1) as publisher, publisher.batch() as batch:
        publisher.publish("not a topic", b"")
        batch.publish("a", b"")
        batch.extend("a", [b""])
        batch.flush()
        publisher.flush()
        assert publisher.ping() is None
        assert not publisher.resolve()
        assert publisher.stats() == PublisherStats()
    assert bus.receive_all() == []


@pytest.mark.parametrize("value", ["0", "", "no", "False", "maybe"])
def test_it_is_disabled_by_a_yes_alone(
    value: str,
    bus: FakeBus,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HAILMARY_DISABLE", value)
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
    assert len(bus.receive_all()) == 1
    assert ("HAILMARY_DISABLE" in caplog.text) == (value == "maybe")


def test_what_is_no_event_may_be_dropped_and_counted(bus: FakeBus) -> None:
    with Publisher(bus.address, on_error="drop") as publisher:
        wrong: list[Any] = [("a..b", b""), (None, b""), ([], b""), ("a", "text"), ("a", None)]
        for topic, payload in wrong:
            publisher.publish(topic, payload)
        publisher.publish("a", b"", attributes={"a": 1})  # type: ignore[dict-item]
        publisher.publish("a", bytes(65_500))
        publisher.publish("a", b"")
        assert stamps([bus.receive()]) == [(7, 7)]
        assert publisher.stats() == PublisherStats(sent=1, invalid=6, too_large=1)


@pytest.mark.parametrize("events", [0, 1, 127, 128, 129, 16383, 16384, 16385])
def test_stamps_are_as_the_library_would_write_them(events: int) -> None:
    sent: list[bytes] = []

    def send(datagram: bytes, flags: int) -> int:
        sent.append(datagram)
        return len(datagram)

    with Publisher("127.0.0.1:1") as publisher:
        sender = publisher._sender
        sender.link.send = send
        if events:
            sender._numbers.add(events)
        for _ in range(3):
            publisher.publish("a", b"", time_unix_nano=0)
        sender.drop("invalid", "")
        publisher.publish("a", b"", time_unix_nano=0)
    frames = [bus_pb2.Frame.FromString(datagram) for datagram in sent]
    assert stamps(frames) == [(events + more, int(more > 3)) for more in (0, 1, 2, 4)]
    assert [frame.SerializeToString() for frame in frames] == sent


def test_memory_does_not_grow() -> None:
    with Publisher(free_udp_address()) as absent, fake_bus() as full, Publisher(
        full.address
    ) as publisher:

        def publish_many() -> None:
            for _ in range(10_000):
                publisher.publish("a", b"payload", key=b"k")
                absent.publish("a", b"payload", attributes={"a": "b"})

        publish_many()
        tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none.
        tracemalloc.start()
        try:
            publish_many()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(4):
                publish_many()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 2_000, "a byte for each of 40 events, at most"


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
    assert len(set(sequences)) == len(sequences), "none twice"
    assert len(received) <= stats.sent
