"""What is written by hand is what the protobuf library would write."""

import random
import tracemalloc
from typing import Any

import pytest

from hailmary._encode import (
    EVENT_BYTES_MAX,
    Bulk,
    TooLarge,
    event_field,
    stamp_field,
    varint,
)
from hailmary._wire import bus_pb2

# Where a varint grows by a byte, and where the tables of `_encode` end.
EDGES = [0, 1, 127, 128, 2047, 2048, 16383, 16384, 2**21 - 1, 2**21, 2**32, 2**63, 2**64 - 1]


@pytest.mark.parametrize("value", EDGES)
def test_numbers(value: int) -> None:
    tag = b"\x10" if value else b""
    ours = tag + varint(value) if value else b""
    assert ours == bus_pb2.Stamp(sequence=value).SerializeToString()


@pytest.mark.parametrize("sequence", EDGES)
@pytest.mark.parametrize("dropped", [0, 1, 2**64 - 1])
def test_stamps(sequence: int, dropped: int) -> None:
    stamp = bus_pb2.Stamp(sender=2**64 - 1, sequence=sequence, dropped=dropped)
    ours = stamp_field(2**64 - 1, sequence, dropped)
    assert ours == bus_pb2.Frame(stamp=stamp).SerializeToString()


def random_event(rng: random.Random) -> dict[str, Any]:
    def length() -> int:
        return rng.choice([0, 1, rng.randrange(120, 140), rng.randrange(3000)])

    # One attribute: the order of more is the library's own affair.
    attributes = {"é" * rng.randrange(3): "x" * length()} if rng.random() < 0.5 else {}
    return {
        "topic": ".".join(["a"] * rng.randrange(1, 17)),
        "payload": rng.randbytes(length()),
        "key": rng.randbytes(length()),
        "attributes": attributes,
        "time_unix_nano": rng.choice([0, 1, 2**64 - 1]),
    }


@pytest.mark.parametrize("seed", range(200))
def test_events(seed: int) -> None:
    event = random_event(random.Random(seed))
    library = bus_pb2.Frame(events=[bus_pb2.Event(**event)])
    assert event_field(**event) == library.SerializeToString()


def test_many_attributes() -> None:
    attributes = {str(number): "x" * number for number in range(300)}
    frame = bus_pb2.Frame.FromString(event_field("a", b"", b"", attributes, 0))
    assert dict(frame.events[0].attributes) == attributes


@pytest.mark.parametrize("time_unix_nano", [0, 1, 2**64 - 1])
def test_a_bulk_is_what_its_events_are(time_unix_nano: int) -> None:
    bulk = Bulk("a.b", time_unix_nano)
    for length in (0, 1, 100, 127, 128, 2047, 2048, 65_000):
        payload = bytes(length)
        joint = bulk.joints[length]
        assert joint.startswith(bulk.tail)
        event = joint[len(bulk.tail) :] + payload + bulk.tail
        assert event == event_field("a.b", payload, b"", None, time_unix_nano)


def test_a_bulk_takes_what_fits_and_is_bytes() -> None:
    bulk = Bulk("a", 1)
    # As `publish()` takes it: one that is longer by a few bytes goes its way.
    longest = bytes(65_459 - 20)
    assert len(event_field("a", longest, b"", None, 1)) == EVENT_BYTES_MAX
    assert bulk.lengths([b"", longest]) == [0, len(longest)]
    for wrong in ([longest + b"x"], [bytearray(1)], ["a"], [None], [b"", "a"]):
        assert bulk.lengths(wrong) is None  # type: ignore[arg-type]


def test_ever_new_lengths_are_not_kept_for_ever() -> None:
    from hailmary import _encode

    bulk = Bulk("a", 1)
    for length in range(3 * _encode._JOINTS_MAX):
        assert bulk.joints[length]
    assert len(bulk.joints) <= _encode._JOINTS_MAX


def test_the_longest_event_fits_with_the_longest_stamp() -> None:
    overhead = len(event_field("a", bytes(60_000), b"", None, 0)) - 60_000
    event = event_field("a", bytes(EVENT_BYTES_MAX - overhead), b"", None, 0)
    assert len(event) == EVENT_BYTES_MAX
    largest = 2**64 - 1
    stamp = bus_pb2.Stamp(
        sender=largest, sequence=largest, dropped=largest, hops=2**32 - 1, weight=2.0
    )
    assert len(event + bus_pb2.Frame(stamp=stamp).SerializeToString()) == 65_507
    with pytest.raises(ValueError, match="65459 bytes"):
        event_field("a", bytes(EVENT_BYTES_MAX - overhead + 1), b"", None, 0)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"topic": "a..b"}, ValueError),
        ({"topic": "a.*"}, ValueError),
        ({"topic": b"a"}, TypeError),
        ({"payload": "text"}, TypeError),
        ({"payload": None}, TypeError),
        ({"key": "text"}, TypeError),
        ({"attributes": {"a": 1}}, TypeError),
        ({"attributes": [("a", "b")]}, TypeError),
        ({"attributes": {"a": "\ud800"}}, ValueError),
        ({"time_unix_nano": -1}, ValueError),
        ({"time_unix_nano": 2**64}, ValueError),
        ({"time_unix_nano": 1.5}, TypeError),
    ],
)
def test_what_is_no_event_is_told_at_once(wrong: dict[str, Any], error: type[Exception]) -> None:
    event = {"topic": "a", "payload": b"", "key": b"", "attributes": None, "time_unix_nano": 0}
    with pytest.raises(error):
        event_field(**{**event, **wrong})


def test_ever_new_topics_are_not_kept_for_ever() -> None:
    from hailmary import _encode

    for number in range(3 * _encode._TOPICS_MAX):
        event_field(f"a.{number}", b"", b"", None, 0)
        event_field("a", b"", b"", {f"n{number}": "v"}, 0)
        event_field("a", b"", b"", {f"{number}".rjust(256): "v"}, 0)
    assert len(_encode._topics) <= _encode._TOPICS_MAX
    assert len(_encode._names) <= _encode._TOPICS_MAX
    assert max(map(len, _encode._names)) <= 255


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""},
        {"key": None},
        {"key": 0},
        {"key": bytearray()},
        {"attributes": []},
        {"attributes": ""},
        {"attributes": 0},
        {"time_unix_nano": 0.0},
        {"time_unix_nano": ""},
        {"time_unix_nano": []},
    ],
    ids=str,
)
def test_a_wrong_type_is_told_of_an_empty_value_too(wrong: dict[str, Any]) -> None:
    values: dict[str, Any] = {"key": b"", "attributes": None, "time_unix_nano": 0, **wrong}
    (name,) = wrong
    with pytest.raises(TypeError, match=name):
        event_field("a", b"", **values)


@pytest.mark.parametrize("topic", [["a"], {"a": "b"}, bytearray(b"a")], ids=str)
def test_a_topic_that_no_dict_takes_is_told_of_as_a_topic(topic: Any) -> None:
    with pytest.raises(TypeError, match="topic"):
        event_field(topic, b"", b"", None, 0)


def test_an_empty_key_that_is_another_object_is_none() -> None:
    class Key(bytes):
        pass

    assert event_field("a", b"", Key(), {}, 0) == event_field("a", b"", b"", None, 0)


@pytest.mark.parametrize("part", ["payload", "key", "value", "name", "many attributes"])
def test_what_is_too_large_is_refused_before_it_is_copied(part: str) -> None:
    size = 50_000_000
    payload = bytes(size) if part == "payload" else b""
    key = bytes(size) if part == "key" else b""
    attributes = {"": ""}
    if part in ("value", "name"):
        attributes = {"a": "b" * size} if part == "value" else {"a" * size: "b"}
    elif part == "many attributes":
        attributes = {f"{number}": "b" * 60_000 for number in range(1_000)}
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            event_field("a", payload, key, attributes, 0)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
