"""Several events in one datagram: what it holds, to the byte."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_bus import FakeBus, fake_bus

from hailmary import Publisher, PublisherStats
from hailmary._address import UdpAddress, resolve
from hailmary._batch import BATCH_BYTES_HOST, BATCH_BYTES_NETWORK, batch_bytes
from hailmary._encode import STAMP_BYTES_MAX
from hailmary._wire import bus_pb2


@pytest.fixture(params=["udp", "unix"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeBus]:
    path = tmp_path / "bus.sock" if request.param == "unix" else None
    with fake_bus(path) as bus:
        yield bus


def event_bytes(**event: Any) -> int:
    """As the library writes it into a frame."""
    return bus_pb2.Frame(events=[bus_pb2.Event(**event)]).ByteSize()


def payloads(frames: list[bus_pb2.Frame]) -> list[list[bytes]]:
    return [[event.payload for event in frame.events] for frame in frames]


def test_a_batch_is_one_datagram(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        with publisher.batch() as batch:
            batch.publish("a", b"1", key=b"k", attributes={"n": "v"}, time_unix_nano=5)
            batch.extend("b", [b"2", b""], time_unix_nano=0)
            assert len(bus.receive_all()) == 1
        publisher.publish("a", b"")
        frame, last = bus.receive_all()
        assert list(frame.events) == [
            bus_pb2.Event(
                topic="a", payload=b"1", key=b"k", attributes={"n": "v"}, time_unix_nano=5
            ),
            bus_pb2.Event(topic="b", payload=b"2"),
            bus_pb2.Event(topic="b"),
        ]
        assert (frame.stamp.sequence, last.stamp.sequence) == (1, 4)
        assert publisher.stats() == PublisherStats(sent=5)


@pytest.mark.parametrize("in_bulk", [False, True])
@pytest.mark.parametrize("spare", [0, -1])
def test_it_is_sent_when_the_next_event_would_not_fit(
    bus: FakeBus, in_bulk: bool, spare: int
) -> None:
    first = event_bytes(topic="a", payload=bytes(50), time_unix_nano=1)
    second = event_bytes(topic="a", payload=bytes(200), time_unix_nano=1)
    bytes_max = first + second + STAMP_BYTES_MAX + spare
    with Publisher(bus.address) as publisher, publisher.batch(bytes_max) as batch:
        if in_bulk:
            batch.extend("a", [bytes(50), bytes(200)], time_unix_nano=1)
        else:
            batch.publish("a", bytes(50), time_unix_nano=1)
            batch.publish("a", bytes(200), time_unix_nano=1)
        assert payloads(bus.receive_all()) == ([] if spare == 0 else [[bytes(50)]])
        batch.flush()
        assert payloads(bus.receive_all())[0][-1] == bytes(200)
        batch.flush()
        assert bus.receive_all() == []


@pytest.mark.parametrize("seed", range(20))
def test_datagrams_are_as_full_as_they_may_be(bus: FakeBus, seed: int) -> None:
    rng = random.Random(seed)
    bytes_max = rng.choice([1, 200, 1_400])
    told: list[bytes] = []
    datagrams: list[bytes] = []

    def send(datagram: bytes, flags: int) -> int:
        datagrams.append(datagram)
        return len(datagram)

    with Publisher(bus.address) as publisher, publisher.batch(bytes_max) as batch:
        publisher._sender.link.send = send
        for _ in range(rng.randrange(20)):
            lengths = [0, 1, 90, 500, 3_000]
            # Those of one length are put together otherwise.
            several = rng.choices(lengths, k=5) if rng.random() < 0.5 else rng.choices(lengths) * 5
            some = [rng.randbytes(length) for length in several]
            told += some
            if rng.random() < 0.5:
                batch.extend("a.b", some)
            else:
                for payload in some:
                    batch.publish("a.b", payload)
    frames = [bus_pb2.Frame.FromString(datagram) for datagram in datagrams]
    assert [payload for frame in payloads(frames) for payload in frame] == told
    sequence = 0
    for frame, following in zip(frames, [*frames[1:], None]):
        assert frame.stamp.sequence == sequence
        sequence += len(frame.events)
        size = sum(bus_pb2.Frame(events=[event]).ByteSize() for event in frame.events)
        assert len(frame.events) == 1 or size + STAMP_BYTES_MAX <= bytes_max
        if following is not None:
            size += bus_pb2.Frame(events=[following.events[0]]).ByteSize()
            assert size + STAMP_BYTES_MAX > bytes_max


@pytest.mark.parametrize(
    ("host", "bytes_max"),
    [
        ("127.0.0.1", BATCH_BYTES_HOST),
        ("127.8.9.1", BATCH_BYTES_HOST),
        ("::1", BATCH_BYTES_HOST),
        ("::ffff:127.0.0.1", BATCH_BYTES_HOST),
        ("192.0.2.1", BATCH_BYTES_NETWORK),
        ("2001:db8::1", BATCH_BYTES_NETWORK),
    ],
)
def test_its_size_is_by_the_way(host: str, bytes_max: int) -> None:
    assert batch_bytes(resolve(UdpAddress(host, 1))) == bytes_max


def test_the_largest_batch_is_a_datagram(bus: FakeBus) -> None:
    with fake_bus() as bus, Publisher(bus.address) as publisher:
        with publisher.batch(65_507) as batch:
            batch.extend("a", [bytes(1_000)] * 66)
        frames = bus.receive_all()
        assert [len(frame.events) for frame in frames] == [64, 2]


def test_what_was_published_before_an_exception_is_sent(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        with pytest.raises(KeyError), publisher.batch() as batch:
            batch.publish("a", b"1")
            raise KeyError
        assert payloads(bus.receive_all()) == [[b"1"]]


def test_what_is_no_event_is_raised_and_what_was_before_it_is_kept(bus: FakeBus) -> None:
    wrong: list[Any] = [b"1", "text", b"2"]
    with Publisher(bus.address) as publisher:
        with publisher.batch() as batch:
            with pytest.raises(TypeError, match="payload"):
                batch.extend("a", wrong)
            with pytest.raises(ValueError, match="no topic"):
                batch.extend("a..b", [b"3"])
            with pytest.raises(ValueError, match="65459 bytes"):
                batch.extend("a", [bytes(65_500)])
            with pytest.raises(ValueError, match="no topic"):
                batch.publish("a..b", b"")
        assert payloads(bus.receive_all()) == [[b"1"]]
        assert publisher.stats() == PublisherStats(sent=1)


def test_what_is_no_event_may_be_dropped_and_counted(bus: FakeBus) -> None:
    wrong: list[Any] = [b"1", "text", b"2", bytes(65_500)]
    with Publisher(bus.address, on_error="drop") as publisher:
        with publisher.batch() as batch:
            batch.extend("a", wrong)
            batch.extend("a..b", [b"3", b"4"])
            batch.publish(None, b"")  # type: ignore[arg-type]
        assert payloads(bus.receive_all()) == [[b"1", b"2"]]
        assert publisher.stats() == PublisherStats(sent=2, invalid=4, too_large=1)


def test_payloads_may_publish_while_they_are_made(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        with publisher.batch() as batch:

            def made() -> Iterator[bytes]:
                batch.publish("a", b"inner")
                yield b"outer"

            batch.extend("a", made())
        assert sorted(payloads(bus.receive_all())[0]) == [b"inner", b"outer"]


def test_a_dropped_batch_counts_each_of_its_events(tmp_path: Path) -> None:
    with Publisher(f"unix://{tmp_path}/bus.sock") as publisher:
        with publisher.batch() as batch:
            batch.extend("a", [b""] * 3_000)
        assert publisher.stats() == PublisherStats(refused=3_000)


@pytest.mark.parametrize("wrong", [None, 5, b"abc", "abc", bytearray(b"abc")], ids=str)
def test_what_is_no_collection_of_payloads_is_one_error(bus: FakeBus, wrong: Any) -> None:
    with Publisher(bus.address) as publisher, publisher.batch() as batch:
        with pytest.raises(TypeError):
            batch.extend("a", wrong)
    with Publisher(bus.address, on_error="drop") as publisher, publisher.batch() as batch:
        batch.extend("a", wrong)
        batch.extend("a", [b"1"])
        batch.flush()
        assert publisher.stats() == PublisherStats(sent=1, invalid=1)


@pytest.mark.parametrize(
    ("bytes_max", "error"),
    [
        ("1400", TypeError),
        (1400.0, TypeError),
        (-5, ValueError),
        (0, ValueError),
        (65_508, ValueError),
    ],
)
def test_a_size_that_is_none_is_told_when_the_batch_is_made(
    bytes_max: Any, error: type[Exception]
) -> None:
    with Publisher("127.0.0.1:9", on_error="drop") as publisher, pytest.raises(error):
        publisher.batch(bytes_max)


def test_a_batch_grows_as_the_way_to_the_bus_of_today_has_it(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAILMARY_BUS", "192.0.2.1:7277")
    with Publisher() as publisher, publisher.batch() as batch:
        batch.publish("a", b"before")
        monkeypatch.setenv("HAILMARY_BUS", bus.address)
        assert publisher.resolve()
        for _ in range(3):
            batch.publish("a", bytes(1_000))
        batch.flush()
        assert [len(frame.events) for frame in bus.receive_all()] == [1, 3]
