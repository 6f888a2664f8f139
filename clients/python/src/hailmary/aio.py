"""Subscribes at a bus from asyncio.

    import hailmary.aio

    async for event in hailmary.aio.subscribe("search.>"):
        print(event.topic, event.payload)

Publishing is the same call as everywhere, `hailmary.Publisher.publish`: it never
waits, so there is nothing to await.

Owns the way of a subscription through an event loop: a reader and a timer, and
neither a task nor a thread. The loop reads the socket whenever it turns, so the
lease is renewed and losses are told while the consumer awaits something else;
what it has not taken by then waits in a bounded hand-over, and what finds no room
there is dropped and counted. (Left in the socket instead, events would hide the
bus's answers behind them.) A loop that does not turn renews nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Literal, Optional, Union, cast, overload

from ._address import Address, Peer, UnixAddress, choose, parse
from ._endpoint import Endpoint, Refused
from ._event import Event, Loss
from ._hand_over import BYTES_MAX, EVENTS_MAX, HandOver
from ._session import SubscriptionStats
from ._subscription import deadline, make_request
from ._wire import bus_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._subscription import Item, Terms
else:
    from typing import TypeVar

    Item = TypeVar("Item")

__all__ = ["Subscription", "subscribe"]

_TURN_SECONDS = 0.002
"""How long the socket is read, or ready events are handed over, before the loop's
other work has its turn."""

_TIMER_SECONDS_MIN = 0.001
"""The shortest timer, since some loops count in whole milliseconds."""


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
    timeout: Optional[float] = None,
    notices: bool = False,
    **terms: Unpack[Terms],
) -> Subscription[Event] | Subscription[Union[Event, Loss]]:
    """Subscribes to the topics that match any of the patterns, once what it
    returns is iterated or entered; until then there is no socket.

    The arguments are those of `hailmary.subscribe`, and so are the errors. What
    is wrong with an argument is raised here; all else, such as `TimeoutError`
    and `Refused`, where it is awaited.
    """
    request = make_request(patterns, **terms)
    subscription: Subscription[Union[Event, Loss]] = Subscription(
        request, parse(address), timeout, notices
    )
    return subscription


class Subscription(Generic[Item]):
    """An asynchronous iterator of events, or of events and `Loss` notices; made
    by `subscribe()`.

        async for event in subscribe("a.>"):
            ...

        async with subscribe("a.>") as subscription:
            await subscription.recv(timeout=1.0)

    `async with` returns once the bus has granted a lease, and closes in the end.
    Iterated without it, a subscription is closed as soon as nothing refers to it
    any more, so when the loop is left. (On CPython; elsewhere, use `async with`, as
    where the traceback of a cancelled task is kept, which refers to it as well.)

    Any wait may be cancelled: nothing is lost by it, and the next one goes on
    where it was. It belongs to one loop, and one task at a time. In a child after
    a fork it is closed, and the parent's goes on as if nothing had happened.
    """

    def __init__(
        self,
        request: bus_pb2.Subscribe,
        address: Address,
        timeout: Optional[float],
        notices: bool,
    ) -> None:
        self._request = request
        self._address = address
        self._timeout = timeout
        self._notices = notices
        self._lease_by = math.inf
        self._feed: Optional[_Feed[Item]] = None
        # A batch that is being handed over.
        self._ready: deque[Item] = deque()
        self._yield_at = 0.0
        self._is_awaited = False
        self._closed = False

    async def recv(self, timeout: Optional[float] = None) -> Optional[Item]:
        """The next event or notice; `None` if none came within `timeout`
        seconds, or the subscription is closed. Waits for ever by default. (The
        look-up of a name, before all else, takes what the resolver takes.)

        Raises as `subscribe()` does till there is a lease, `Refused` if the bus no
        longer allows the subscription, and `OSError` if something else in the
        process closed its socket, once; it is closed then.
        """
        if self._ready:
            return self._ready.popleft()
        give_up_at = deadline(timeout)
        with self._awaited():
            feed = await self._subscribed(give_up_at)
            return None if feed is None else await self._next(feed, give_up_at)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or refused by the bus."""
        return self._closed or (self._feed is not None and self._feed.endpoint.closed)

    def stats(self) -> SubscriptionStats:
        """The counts so far. Events that still wait to be taken are among
        `received`."""
        return SubscriptionStats() if self._feed is None else self._feed.endpoint.session.stats()

    def close(self) -> None:
        """Ends the subscription and tells the bus. Events that were received
        and not yet handed over still are. Never waits; for the loop's thread."""
        self._closed = True
        if self._feed is not None:
            self._feed.close()

    def __aiter__(self) -> Subscription[Item]:
        return self

    async def __anext__(self) -> Item:
        item = await self.recv()
        if item is None:
            raise StopAsyncIteration
        return item

    async def __aenter__(self) -> Subscription[Item]:
        try:
            with self._awaited():
                await self._subscribed(math.inf)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        feed = getattr(self, "_feed", None)
        if feed is not None:
            feed.close_from_anywhere()

    @contextlib.contextmanager
    def _awaited(self) -> Iterator[None]:
        if self._is_awaited:
            raise RuntimeError("another task waits at this subscription")
        self._is_awaited = True
        try:
            yield
        finally:
            self._is_awaited = False

    async def _subscribed(self, give_up_at: float) -> Optional[_Feed[Item]]:
        """The feed, once there has been a lease; nothing, if it was given up
        before, or closed before it was opened."""
        feed = self._feed
        if feed is None:
            feed = await self._open()
        elif feed.loop is not asyncio.get_running_loop():
            raise RuntimeError("the subscription belongs to another event loop")
        while feed is not None and not (feed.has_begun or feed.is_over):
            now = time.monotonic()
            if now >= self._lease_by:
                self.close()
                raise TimeoutError(feed.endpoint.why_no_lease())
            if now >= give_up_at:
                return None
            await feed.wait(min(give_up_at, self._lease_by))
        return feed

    async def _open(self) -> Optional[_Feed[Item]]:
        if self._closed:
            return None
        lease_by = deadline(self._timeout)
        peer = await _resolve(self._address)
        if self._closed:
            return None
        self._lease_by = lease_by
        loop = asyncio.get_running_loop()
        self._feed = _Feed(loop, Endpoint(self._request, self._address, peer), self._notices)
        return self._feed

    async def _next(self, feed: _Feed[Item], give_up_at: float) -> Optional[Item]:
        while True:
            self._ready.extend(feed.take())
            if self._ready:
                await self._let_others_run()
                return self._ready.popleft()
            if feed.is_over:
                return feed.last()
            if time.monotonic() >= give_up_at:
                await asyncio.sleep(0)
                return None
            await feed.wait(give_up_at)
            self._yield_at = time.monotonic() + _TURN_SECONDS

    async def _let_others_run(self) -> None:
        """Without this, a consumer that awaits nothing else would hold the loop
        as long as there are events."""
        if time.monotonic() >= self._yield_at:
            await asyncio.sleep(0)
            self._yield_at = time.monotonic() + _TURN_SECONDS


class _Feed(Generic[Item]):
    """What the loop refers to, so that it does not keep a `Subscription` that
    nobody else has any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, notices: bool) -> None:
        self.loop = loop
        self.endpoint = endpoint
        self.has_begun = False
        """Whether there has been a lease."""
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._notices = notices
        self._hand_over: HandOver[Item] = HandOver(EVENTS_MAX, BYTES_MAX)
        self._error: Optional[Exception] = None
        self._waiter: Optional[asyncio.Future[None]] = None
        self._timer: Optional[asyncio.TimerHandle] = None
        self._timer_at = math.inf
        self._descriptor = endpoint.receiver.fileno()
        # This one object of the method is the loop's alone, which lets go of it
        # where somebody else adds or removes a reader of the descriptor's number.
        reader = self._turn
        self._reader = weakref.ref(reader)
        try:
            loop.add_reader(self._descriptor, reader)
        except BaseException:
            endpoint.close()
            raise
        reader()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be received."""
        return self.endpoint.closed

    def take(self) -> list[Item]:
        """What is there, also in the socket; nothing if nothing is."""
        items = self._hand_over.take()
        if not items and not self.is_over:
            self._turn()
            items = self._hand_over.take()
        return items

    def last(self) -> Optional[Item]:
        """Behind all that was received: why it is over, or what was still missing.
        Each is told once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        self.endpoint.session.handle_timeout(time.monotonic())
        loss = self.endpoint.session.poll_loss() if self._notices else None
        return cast("Optional[Item]", loss)

    async def wait(self, until: float) -> None:
        """Till there is something new, or the time is over."""
        waiter = self._waiter = self.loop.create_future()
        timer = None
        if until < math.inf:
            timer = self.loop.call_later(until - time.monotonic(), _settle, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Leaves nothing in the loop and no socket."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # In a child after a fork the loop's readers are the parent's as well.
        if self._process == os.getpid() and not self.loop.is_closed():
            if self._reader() is not None:
                self.loop.remove_reader(self._descriptor)
            _settle(self._waiter)
        self.endpoint.close()

    def close_from_anywhere(self) -> None:
        """For the garbage collector, which may run in any thread."""
        if self._thread != threading.get_ident() and not self.endpoint.closed:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.close)
                return
        self.close()

    def _turn(self) -> None:
        """Does what is due, and takes what is in the socket, for a while."""
        if self.endpoint.closed:
            return
        try:
            self._drive(time.monotonic() + _TURN_SECONDS)
        except (Refused, OSError) as error:
            self._error = error
            self.close()
            return
        if self._begins() or len(self._hand_over):
            _settle(self._waiter)
        self._set_timer()

    def _begins(self) -> bool:
        """Whether the first lease has come just now."""
        if self.has_begun or not self.endpoint.session.held:
            return False
        self.has_begun = True
        return True

    def _drive(self, until: float) -> None:
        endpoint, now = self.endpoint, 0.0
        while now < until:
            now = time.monotonic()
            endpoint.transmit(now)
            events = endpoint.receive(now)
            if events is None:
                endpoint.session.handle_timeout(now)
                self._hand_loss_over()
                return
            self._hand_loss_over()
            self._hand_events_over(events)

    def _hand_events_over(self, events: list[Event]) -> None:
        if events:
            items = cast("list[Item]", events)
            refused = self._hand_over.offer(items, self.endpoint.datagram_bytes)
            self.endpoint.session.drop(refused)

    def _hand_loss_over(self) -> None:
        """Where there is no room, the session adds up what is to be told."""
        if self._notices and self._hand_over.has_room:
            loss = self.endpoint.session.poll_loss()
            if loss is not None:
                self._hand_over.put([cast("Item", loss)])

    def _set_timer(self) -> None:
        """One that rings too early sets the next one, so most datagrams set none."""
        due = self.endpoint.session.wake_at
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        wait = max(_TIMER_SECONDS_MIN, due - time.monotonic())
        self._timer = self.loop.call_later(wait, self._ring)
        self._timer_at = due

    def _ring(self) -> None:
        self._timer = None
        self._turn()


def _settle(waiter: Optional[asyncio.Future[None]]) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


async def _resolve(address: Address) -> Peer:
    """As `resolve`, in the loop's own way, which does not hold it."""
    if isinstance(address, UnixAddress):
        return Peer(socket.AF_UNIX, address.path)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    except UnicodeError as error:  # A part of the name is empty or too long.
        raise OSError(f"{address.host!r} is no name") from error
    return choose(address, found)
