"""Topics with codecs, from the value that is published to the one that arrives."""

import copy
import logging
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import Int64Value

import hailmary
from hailmary import DecodeError, Event, PublisherStats, Topic, TopicSubscription
from hailmary.testing import Recorder

JSON: Topic[Any] = Topic("a.b", codec=hailmary.json)


@dataclass
class Photo:
    """What an application publishes."""

    id: int


class PhotoCodec:
    """A codec of an application's own."""

    def encode(self, value: Photo) -> bytes:
        return b"%d" % value.id

    def decode(self, payload: bytes) -> Photo:
        return Photo(int(payload))


PHOTOS = Topic("search.index.photo", codec=PhotoCodec())


def event(payload: bytes) -> Event:
    return Event("a.b", payload, b"", 0, {}, 1.0)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, "", "zoë \u2028 \U0001f600", [], {}, {"id": 42, "by": ["a", {"b": None}]}],
)
def test_json_comes_back(value: object) -> None:
    assert JSON.decode(event(hailmary.json.encode(value))) == value


def test_equal_json_values_are_equal_bytes() -> None:
    assert hailmary.json.encode({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert hailmary.json.encode({"a": "é", "b": 1}) == '{"a":"é","b":1}'.encode()


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def loop() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({1, 2}, TypeError),
        (b"bytes", TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("\ud800", ValueError),
        (loop(), ValueError),
        ({"a": 1, 2: 3}, TypeError),
        (nested(100_000), RecursionError),
    ],
    ids=["set", "bytes", "nan", "inf", "surrogate", "loop", "keys", "deep"],
)
def test_what_is_no_json_raises_where_it_is_published(value: Any, error: type[Exception]) -> None:
    recorder = Recorder()
    with pytest.raises(error):
        JSON.publish(value, publisher=recorder)
    assert recorder.events == []
    assert recorder.stats().offered == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff",
        b'{"a":NaN}',
        b"-Infinity",
        b"1 2",
        b"\xef\xbb\xbf1",
        "1".encode("utf-16"),
        b"[" * 60_000,
        b'{"a":' * 10_000,
    ],
)
def test_what_is_no_json_is_told_from_a_value(payload: bytes) -> None:
    with pytest.raises(DecodeError) as raised:
        JSON.decode(event(payload))
    assert raised.value.event.payload == payload
    assert raised.value.__cause__ is not None
    assert len(str(raised.value)) < 300


def test_a_decode_error_can_be_copied_and_pickled() -> None:
    error = DecodeError(event(b"x"))
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert again.event == error.event
        assert str(again) == str(error)


def test_a_decode_error_of_a_codec_is_one_whatever_it_raises() -> None:
    class Hostile(PhotoCodec):
        def decode(self, payload: bytes) -> Photo:
            raise KeyError("x" * 100_000)

    with pytest.raises(DecodeError, match="'a.b' cannot be decoded: KeyError$"):
        Topic("a.b", codec=Hostile()).decode(event(b""))


def test_protobuf_messages_come_back() -> None:
    topic = Topic("a.b", codec=hailmary.protobuf(Int64Value))
    recorder = Recorder()
    topic.publish(Int64Value(value=42), publisher=recorder)
    assert recorder.values(topic) == [Int64Value(value=42)]
    with pytest.raises(DecodeError):
        topic.decode(event(b"\xff"))


def test_equal_messages_are_equal_bytes() -> None:
    one, other = Struct(), Struct()
    keys = [str(number) for number in range(50)]
    one.update({key: 1 for key in keys})
    other.update({key: 1 for key in reversed(keys)})
    codec = hailmary.protobuf(Struct)
    assert codec.encode(one) == codec.encode(other)


@pytest.mark.parametrize("value", [Struct(), b"\x08*", None])
def test_only_messages_of_the_class_are_published(value: Any) -> None:
    codec: hailmary.Codec[Message] = hailmary.protobuf(Int64Value)
    with pytest.raises(TypeError, match="Int64Value"):
        Topic("a.b", codec=codec).publish(value, publisher=Recorder())


def test_raw_bytes_come_back_and_nothing_else_is_published() -> None:
    topic = Topic("a.b", codec=hailmary.raw)
    recorder = Recorder()
    topic.publish(b"\0\xff", publisher=recorder)
    with pytest.raises(TypeError, match="payload"):
        topic.publish("text", publisher=recorder)  # type: ignore[arg-type]
    assert recorder.values(topic) == [b"\0\xff"]


def test_what_cannot_be_encoded_is_counted_where_mistakes_are() -> None:
    recorder = Recorder(on_error="drop")
    JSON.publish({1, 2}, publisher=recorder)
    with recorder.batch() as batch:
        JSON.publish({1, 2}, publisher=batch)
        JSON.publish([1], publisher=batch)
        assert recorder.events == []
    assert recorder.values(JSON) == [[1]]
    assert recorder.stats() == PublisherStats(sent=1, invalid=2)


def test_all_that_an_event_has_goes_along() -> None:
    recorder = Recorder()
    PHOTOS.publish(
        Photo(42), key=b"k", attributes={"n": "v"}, time_unix_nano=5, publisher=recorder
    )
    assert recorder.events == [Event("search.index.photo", b"42", b"k", 5, {"n": "v"}, 1.0)]
    PHOTOS.publish(Photo(43), publisher=recorder)
    assert recorder.events[1].time_unix_nano > 0
    assert recorder.events[1].attributes == {}


@pytest.mark.parametrize(("name", "error"), [("a..b", ValueError), ("a.*", ValueError), (1, TypeError)])
def test_a_topic_is_one(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Topic(name, codec=hailmary.raw)


@contextmanager
def subscribed(
    bus: FakeBus, subscribe: Callable[..., TopicSubscription[Photo]]
) -> Iterator[TopicSubscription[Photo]]:
    """Subscribes in a thread, since it waits for the bus, which is this thread."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[TopicSubscription[Photo]] = pool.submit(
            subscribe, address=bus.address, timeout=PATIENCE_SECONDS
        )
        bus.answer()
        bus.answer()
        with future.result() as subscription:
            yield subscription


def test_values_come_with_their_events() -> None:
    with fake_bus() as bus, subscribed(bus, PHOTOS.subscribe) as subscription:
        bus.send(b"1", b"2")
        assert [next(subscription)[0] for _ in range(2)] == [Photo(1), Photo(2)]
        bus.send(b"3")
        photo, its_event = next(iter(subscription))
        assert (photo, its_event.payload) == (Photo(3), b"3")
        assert subscription.stats().received == 3
        subscription.close()
        assert subscription.closed
        assert list(subscription) == []


def test_what_is_asked_for_is_asked_of_the_bus() -> None:
    with fake_bus() as bus, ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            PHOTOS.subscribe,
            address=bus.address,
            name="n",
            group="g",
            sample=0.5,
            events_per_second=7,
            lease_ms=9,
            max_frame_bytes=1400,
            timeout=PATIENCE_SECONDS,
        )
        bus.answer()
        request = bus.receive().subscribe
        bus.grant(request.nonce)
        future.result().close()
    assert list(request.topics) == ["search.index.photo"]
    assert (request.name, request.group, request.sample) == ("n", "g", 0.5)
    assert (request.events_per_second, request.lease_ms) == (7, 9)
    assert request.max_frame_bytes == 1400


def test_what_cannot_be_decoded_is_passed_over_counted_and_seldom_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    with fake_bus() as bus, subscribed(bus, PHOTOS.subscribe) as subscription:
        bus.send(b"poison", b"more\npoison", b"1", b"poison")
        assert subscription.recv(timeout=0) is not None
        assert subscription.undecodable == 2
        assert subscription.recv(timeout=0) is None
        assert (subscription.undecodable, subscription.stats().received) == (3, 4)
    (logged,) = caplog.records
    assert logged.message.endswith(f"passed over that are of {PHOTOS.name}: ValueError")
    assert "poison" not in logged.message


def test_a_flood_of_what_cannot_be_decoded_does_not_hold_the_caller() -> None:
    with fake_bus() as bus, subscribed(bus, PHOTOS.subscribe) as subscription:
        bus.send(*[b"poison"] * 200)
        assert subscription.recv(timeout=0) is None
        assert 0 < subscription.undecodable < 200
        began = time.monotonic()
        assert subscription.recv(timeout=0.05) is None
        assert time.monotonic() - began >= 0.05
        assert subscription.undecodable == 200
