"""Subscribes at a bus and hands its events over, one after the other.

Owns what the caller sees: the arguments and the iterator. What is said to the bus
is in `_lease`, what is counted in `_flow`, the socket in `_receiver`. All of it
happens in the thread that asks for the next event.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Literal, Optional, TypedDict, Union, cast, overload

from ._address import parse, resolve
from ._endpoint import Endpoint
from ._event import Event, Loss
from ._lease import Reason
from ._session import SubscriptionStats
from ._topic import check_pattern
from ._wire import bus_pb2

if TYPE_CHECKING:
    # Known to type checkers without an installation.
    from typing_extensions import TypeVar, Unpack

    # So that a plain `Subscription` is one of events.
    Item = TypeVar("Item", bound=Union[Event, Loss], default=Event)
else:
    from typing import TypeVar

    Item = TypeVar("Item")

_NAME = re.compile(r"[A-Za-z0-9._-]{0,64}")
_UINT32_MAX = 2**32 - 1

# What a request may have before cookie, report, nonce and padding are added,
# which take less than the rest of a datagram of 65,507 bytes.
_REQUEST_BYTES_MAX = 65_000

# How many datagrams a call still looks at once its time is over, so that the
# bus's answers do not hide events behind them, and a flood of strangers'
# datagrams does not hold the caller.
_OVERTIME_DATAGRAMS_MAX = 64


class Terms(TypedDict, total=False):
    """What `subscribe()` takes beside patterns and address, and means by it."""

    name: str
    group: str
    sample: float
    events_per_second: int
    lease_ms: int
    max_frame_bytes: int


@overload
def subscribe(
    *patterns: str,
    address: Optional[str] = None,
    timeout: Optional[float] = None,
    notices: Literal[False] = False,
    **terms: Unpack[Terms],
) -> Subscription[Event]: ...


@overload
def subscribe(
    *patterns: str,
    address: Optional[str] = None,
    timeout: Optional[float] = None,
    notices: bool,
    **terms: Unpack[Terms],
) -> Subscription[Union[Event, Loss]]: ...


def subscribe(
    *patterns: str,
    address: Optional[str] = None,
    name: str = "",
    group: str = "",
    sample: float = 0.0,
    events_per_second: int = 0,
    lease_ms: int = 0,
    max_frame_bytes: int = 0,
    timeout: Optional[float] = None,
    notices: bool = False,
) -> Subscription[Event] | Subscription[Union[Event, Loss]]:
    """Subscribes to the topics that match any of the patterns.

    Returns once the bus has granted a lease, so what is published from then on
    is for this subscription. A bus that is not there yet is waited for: for
    ever, or for `timeout` seconds.

    - `address`: as for `Publisher`. A name is looked up here, and again, by a
      thread apart, while there is no lease and the bus does not answer: at most
      every 10 seconds.
    - `name`: what the bus's metrics call the subscriber, `[A-Za-z0-9._-]{1,64}`.
    - `group`: of the members of a group that want an event's topic, one gets the
      event: with a key always the same one while the members stay, chosen by
      rendezvous hashing over their names; without a key they take turns. A member
      that comes or goes moves its own share of the keys and no others. It has the
      same keys after a restart if its `name` is its own. Up to 64 of `[A-Za-z0-9._-]`.
    - `sample`: the share of events to get, from 0 to 1; 0 is all, as is 1. Equal
      keys are kept or dropped together: kept are those whose XXH3-64 without seed
      is below `sample` x 2^64, by every bus. Each event's `weight` is 1 / `sample`.
    - `events_per_second`: the bus drops what exceeds it, and delays nothing: in any
      time come at most one second's worth and what the rate gives in that time. 0
      is no limit.
    - `lease_ms`: the wanted lease, 0 for the bus's default. The bus may grant less.
    - `max_frame_bytes`: the largest datagram to get; 0 leaves it to the bus.
    - `notices`: whether a `Loss` stands among the events where some are missing.

    Raises `ValueError` or `TypeError` for arguments that the bus would refuse,
    `Refused` if it refuses, `TimeoutError` if there is no lease in time, and
    `OSError` if the name has no address or the system no socket.
    """
    request = make_request(
        patterns, name, group, sample, events_per_second, lease_ms, max_frame_bytes
    )
    bus = parse(address)
    endpoint = Endpoint(request, bus, resolve(bus))
    subscription: Subscription[Union[Event, Loss]] = Subscription(endpoint, notices)
    try:
        subscription.await_lease(timeout)
    except BaseException:
        subscription.close()
        raise
    return subscription


class Subscription(Generic[Item]):
    """An iterator of events, or of events and `Loss` notices; made by
    `subscribe()`.

    A notice adds up all the losses that were counted since the one before it.
    It comes before the events of the datagram that told of them, or where the
    time made them certain, which may be while no events come. Of a closed
    subscription, a last one tells of what was still awaited.

    The lease is renewed while the iterator is advanced, and only then. If it is
    not advanced for longer than a lease, the bus forgets the subscription:
    `stats().lapses` counts it. The next advance asks for a new lease, hands over
    what is still in the socket, and goes on with what comes.

    It belongs to one thread and to the process that made it. A signal handler
    of that thread may `close()` it, which ends the iteration. In a child after a
    fork it is closed, and the parent's goes on as if nothing had happened.
    """

    def __init__(self, endpoint: Endpoint, notices: bool) -> None:
        self._endpoint = endpoint
        self._session = endpoint.session
        self._notices = notices
        # One datagram's events, behind the loss that it told of.
        self._ready: deque[Item] = deque()

    def recv(self, timeout: Optional[float] = None) -> Optional[Item]:
        """The next event or notice; `None` if none came within `timeout`
        seconds, or the subscription is closed. Waits for ever by default.

        Raises `Refused` if the bus no longer allows the subscription, and
        `OSError` if something else in the process closed its socket, once; it is
        closed then.
        """
        if self._ready and time.monotonic() < self._session.transmit_at:
            return self._ready.popleft()
        give_up_at = deadline(timeout)
        overtime = 0
        while True:
            now = time.monotonic()
            self._endpoint.transmit(now)
            if self._ready:
                return self._ready.popleft()
            if overtime > _OVERTIME_DATAGRAMS_MAX:
                return None
            if self._receive(now):
                overtime += now >= give_up_at
                continue
            self._session.handle_timeout(now)
            self._take_in([])
            if self._ready:
                return self._ready.popleft()
            if self.closed or now >= give_up_at:
                return None
            self._wait(give_up_at, now)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or refused by the bus."""
        return self._endpoint.closed

    @property
    def has_lease(self) -> bool:
        """Whether a lease stands, so that the bus sends events."""
        return self._session.held

    @property
    def refusal(self) -> Optional[Reason]:
        """Why the bus refused last, if it did since there was a lease. It may be
        merely full, and is asked again then."""
        return self._session.refusal

    def stats(self) -> SubscriptionStats:
        """The counts so far. Of `received` and `duplicates`, at most one
        datagram's events are still to be handed over."""
        return self._session.stats()

    def close(self) -> None:
        """Ends the subscription and tells the bus. Events that were received
        and not yet handed over still are."""
        self._endpoint.close()

    def __iter__(self) -> Subscription[Item]:
        return self

    def __next__(self) -> Item:
        item = self.recv()
        if item is None:
            raise StopIteration
        return item

    def __enter__(self) -> Subscription[Item]:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def await_lease(self, timeout: Optional[float]) -> None:
        """Till the bus has granted the first lease, or a signal handler has
        closed the subscription. Raises as `subscribe()` does."""
        give_up_at = deadline(timeout)
        while not (self._session.held or self.closed):
            now = time.monotonic()
            self._endpoint.transmit(now)
            received = self._receive(now)
            if now >= give_up_at and not self._session.held:
                raise TimeoutError(self._endpoint.why_no_lease())
            if not received:
                self._wait(give_up_at, now)

    def _wait(self, give_up_at: float, now: float) -> None:
        self._endpoint.receiver.wait(min(give_up_at, self._session.wake_at) - now)

    def _receive(self, now: float) -> bool:
        """Takes one datagram from the socket; says whether there was one."""
        events = self._endpoint.receive(now)
        if events is None:
            return False
        self._take_in(events)
        return True

    def _take_in(self, events: list[Event]) -> None:
        """Puts events behind what is ready, and the loss that is known before them."""
        loss = self._session.poll_loss() if self._notices else None
        if loss is not None:
            self._ready.append(cast("Item", loss))
        self._ready.extend(cast("list[Item]", events))


def deadline(timeout: Optional[float]) -> float:
    """When a wait of so many seconds is over; never for `None`."""
    return math.inf if timeout is None else time.monotonic() + timeout


def make_request(
    patterns: tuple[str, ...],
    name: str = "",
    group: str = "",
    sample: float = 0.0,
    events_per_second: int = 0,
    lease_ms: int = 0,
    max_frame_bytes: int = 0,
) -> bus_pb2.Subscribe:
    """The first request. Raises as `subscribe()` does for what a bus would refuse."""
    if not patterns:
        raise ValueError("subscribe() needs a pattern; '>' stands for every topic")
    for pattern in patterns:
        check_pattern(pattern)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r:.100} is no name: 1 to 64 of A-Z a-z 0-9 . _ -")
    if not _NAME.fullmatch(group):
        raise ValueError(f"{group!r:.100} is no group: up to 64 of A-Z a-z 0-9 . _ -")
    if not 0.0 <= sample <= 1.0:
        raise ValueError(f"sample is from 0 to 1, not {sample}")
    _check_uint32("events_per_second", events_per_second)
    _check_uint32("lease_ms", lease_ms)
    _check_uint32("max_frame_bytes", max_frame_bytes)
    request = bus_pb2.Subscribe(
        topics=patterns,
        group=group,
        name=name,
        lease_ms=lease_ms,
        max_frame_bytes=max_frame_bytes,
        sample=sample,
        events_per_second=events_per_second,
    )
    if request.ByteSize() > _REQUEST_BYTES_MAX:
        raise ValueError("the patterns do not fit into a datagram")
    return request


def _check_uint32(argument: str, value: int) -> None:
    if not 0 <= value <= _UINT32_MAX:
        raise ValueError(f"{argument} is from 0 to {_UINT32_MAX}, not {value}")
