"""Topics whose events carry values of one type.

Owns the name and the codec that publisher and subscriber share, and what happens
to a payload that is no such value. It counts and sends nothing itself: that is the
publisher's, and the subscription's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Optional, TypeVar, Union

from . import otel
from ._batch import Batch
from ._codec import Codec
from ._default import ready_publisher
from ._event import Event
from ._publisher import Publisher
from ._topic import check_topic
from ._trouble import Trouble

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._session import SubscriptionStats
    from ._subscription import Subscription, Terms

T = TypeVar("T")

# How many events a call still looks at once its time is over, so that one that
# cannot be decoded hides none behind it, and a flood of them does not hold the
# caller.
_OVERTIME_EVENTS_MAX = 64


class DecodeError(ValueError):
    """An event's payload is no value of its topic's codec. `__cause__` is what
    the codec raised."""

    def __init__(self, event: Event) -> None:
        super().__init__(event)
        self.event = event
        """The event as it came."""

    def __str__(self) -> str:
        why = type(self.__cause__).__name__
        return f"the payload of an event of {self.event.topic!r} cannot be decoded: {why}"


class Topic(Generic[T]):
    """A topic by its name, and the codec of its events' payloads.

    Made once, where both the program that publishes and the one that subscribes
    find it:

        >>> import hailmary
        >>> photo_indexed = hailmary.Topic("search.index.photo", codec=hailmary.json)

    It opens no socket, looks no name up, and may be used by all threads and on
    both sides of a fork. Raises `ValueError` or `TypeError` for what is no topic.
    """

    __slots__ = ("_codec", "_name")

    def __init__(self, name: str, *, codec: Codec[T]) -> None:
        check_topic(name)
        self._name = name
        self._codec = codec

    @property
    def name(self) -> str:
        """The topic."""
        return self._name

    def publish(
        self,
        value: T,
        *,
        key: bytes = b"",
        attributes: Optional[Mapping[str, str]] = None,
        time_unix_nano: Optional[int] = None,
        publisher: Optional[Union[Publisher, Batch]] = None,
    ) -> None:
        """Publishes a value, by the process's default publisher unless another
        one or a batch is given. Never waits; see `Publisher.publish` for the
        arguments and what it raises.

            >>> photo_indexed = Topic("search.index.photo", codec=hailmary.json)
            >>> photo_indexed.publish({"id": 42}, key=b"42")

        A value that the codec does not take is a mistake of the program too: what
        the codec raises is raised here, or counted as `invalid` by a publisher
        that was told to count.

        Where OpenTelemetry has a current span, its context goes along: see
        `hailmary.otel.attributes`.
        """
        if publisher is None:
            publisher = ready_publisher()
        if publisher._current_sender() is None:  # Publishing is turned off.
            return
        try:
            payload = self._codec.encode(value)
        except Exception as error:
            publisher._reject(error)
            return
        publisher.publish(
            self._name,
            payload,
            key=key,
            attributes=otel.attributes(attributes),
            time_unix_nano=time_unix_nano,
        )

    def decode(self, event: Event) -> T:
        """The value that an event of this topic carries.

            >>> photo_indexed = Topic("search.index.photo", codec=hailmary.json)
            >>> event = Event("search.index.photo", b'{"id":42}', b"42", 0, {}, 1.0)
            >>> photo_indexed.decode(event)
            {'id': 42}

        Raises `DecodeError`, and nothing else, if it carries none. The event's
        topic is not looked at.
        """
        try:
            return self._codec.decode(event.payload)
        except Exception as error:
            raise DecodeError(event) from error

    def subscribe(
        self,
        *,
        address: Optional[str] = None,
        timeout: Optional[float] = None,
        **terms: Unpack[Terms],
    ) -> TopicSubscription[T]:
        """Subscribes to this topic; see `hailmary.subscribe` for the arguments
        and what it raises.

            for photo, event in photo_indexed.subscribe(name="indexer"):
                print(photo["id"], event.time_unix_nano)
        """
        # Who only publishes needs no protobuf.
        from ._subscription import subscribe

        subscription = subscribe(self._name, address=address, timeout=timeout, **terms)
        return TopicSubscription(self, subscription)

    def __repr__(self) -> str:
        return f"Topic({self._name!r})"


class TopicSubscription(Generic[T]):
    """An iterator of values, each with its event; made by `Topic.subscribe()`.

    An event whose payload cannot be decoded is passed over, since anybody who may
    publish can send one: all are counted, and a warning is logged, once a minute at
    most.
    """

    def __init__(self, topic: Topic[T], subscription: Subscription[Event]) -> None:
        self._topic = topic
        self._subscription = subscription
        self._undecodable = 0
        self._trouble = Trouble({"undecodable": "undecodable: events are passed over that are of"})

    @property
    def undecodable(self) -> int:
        """Events that arrived and were passed over. They are among `received`."""
        return self._undecodable

    def recv(self, timeout: Optional[float] = None) -> Optional[tuple[T, Event]]:
        """The next value with its event; see `Subscription.recv`."""
        give_up_at = math.inf if timeout is None else time.monotonic() + timeout
        overtime = 0
        while overtime <= _OVERTIME_EVENTS_MAX:
            event = self._subscription.recv(timeout)
            if event is None:
                return None
            try:
                return self._topic.decode(event), event
            except DecodeError as error:
                self._undecodable += 1
                self._trouble.tell("undecodable", self._topic.name, type(error.__cause__).__name__)
            if timeout is not None:
                timeout = max(0.0, give_up_at - time.monotonic())
                overtime += timeout == 0
        return None

    @property
    def closed(self) -> bool:
        """Whether it was closed, or refused by the bus."""
        return self._subscription.closed

    def stats(self) -> SubscriptionStats:
        """The counts of the subscription."""
        return self._subscription.stats()

    def close(self) -> None:
        """Ends the subscription; see `Subscription.close`."""
        self._subscription.close()

    def __iter__(self) -> TopicSubscription[T]:
        return self

    def __next__(self) -> tuple[T, Event]:
        item = self.recv()
        if item is None:
            raise StopIteration
        return item

    def __enter__(self) -> TopicSubscription[T]:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()
