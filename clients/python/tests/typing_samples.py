"""How the types of typed events look to an application. Checked, never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.wrappers_pb2 import Int64Value
from typing_extensions import assert_type

import hailmary
from hailmary import Codec, Event, Publisher, Topic
from hailmary.testing import Recorder, recording


@dataclass
class Photo:
    """What an application publishes."""

    id: int


class PhotoCodec:
    """A codec by its methods alone."""

    def encode(self, value: Photo) -> bytes:
        return b"%d" % value.id

    def decode(self, payload: bytes) -> Photo:
        return Photo(int(payload))


class Publishes(Protocol):
    """What an application asks of a publisher that it is given."""

    def publish(self, topic: str, payload: bytes, *, key: bytes = b"") -> None: ...


def codecs_give_topics_their_types(event: Event) -> None:
    anything = Topic("a", codec=hailmary.json)
    table: Topic[dict[str, int]] = Topic("a", codec=hailmary.json)
    raw = Topic("a", codec=hailmary.raw)
    message = Topic("a", codec=hailmary.protobuf(Int64Value))
    own = Topic("a", codec=PhotoCodec())
    assert_type(anything.decode(event), Any)
    assert_type(table.decode(event), dict[str, int])
    assert_type(raw.decode(event), bytes)
    assert_type(message.decode(event), Int64Value)
    assert_type(own.decode(event), Photo)
    assert_type(own, Topic[Photo])


def what_is_published_is_checked(own: Topic[Photo], raw: Topic[bytes]) -> None:
    own.publish(Photo(1), key=b"1", attributes={"n": "v"})
    own.publish({"id": 1})  # type: ignore[arg-type]
    raw.publish("text")  # type: ignore[arg-type]
    own.publish(Photo(1), key="1")  # type: ignore[arg-type]
    hailmary.publish("a", "text")  # type: ignore[arg-type]
    Topic[Photo]("a", codec=hailmary.raw)  # type: ignore[arg-type]


def subscriptions_have_the_type_of_the_topic(own: Topic[Photo]) -> None:
    with own.subscribe(name="s", timeout=1.0) as subscription:
        for photo, event in subscription:
            assert_type(photo, Photo)
            assert_type(event, Event)
    received = subscription.recv(timeout=1.0)
    if received is not None:
        assert_type(received[0], Photo)


def publishers_and_doubles_are_exchanged(own: Topic[Photo]) -> None:
    publishers: list[Publishes] = [Publisher(), Recorder(), hailmary.default_publisher()]
    own.publish(Photo(1), publisher=Recorder())
    with recording() as recorder:
        assert_type(recorder.values(own), list[Photo])
        assert_type(recorder.matching("a.>"), list[Event])
    codec: Codec[Photo] = PhotoCodec()
    assert_type(Topic("a", codec=codec).decode(recorder.events[0]), Photo)
    publishers.clear()
