"""Hands the events of a subscription to a function, in threads.

Owns the threads: one that receives, keeps the lease and deals the events out, and
workers that call the handler. They share nothing but one bounded hand-over for
each worker: a slow handler delays no renewal, and what finds no room is dropped
and counted. What a handler raises ends nothing.
"""

from __future__ import annotations

import _socket
import contextlib
import logging
import math
import os
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Literal, Optional, Union, overload

from ._address import parse, resolve
from ._endpoint import Endpoint, Refused
from ._descriptor import OwnSocket
from ._event import Event, Loss
from ._hand_over import BYTES_MAX, EVENTS_MAX, HandOver
from ._look_up import LOOK_UP_SECONDS_MIN
from ._receiver import look, wait_for
from ._session import SubscriptionStats
from ._signals import stopped_by_signals
from ._subscription import Terms, deadline, make_request
from ._trouble import Trouble

if TYPE_CHECKING:
    # Known to type checkers without an installation.
    from typing_extensions import Unpack

WORKERS_MAX = 256
"""More threads than this help no handler; a process can serve more."""

GIVE_UP_SECONDS = 0.5
"""How long workers that have given up are waited for, so that they are counted."""

STOP_SECONDS = 5.0
"""How long `stop` lets handlers finish unless told otherwise: well within what
service managers grant before they kill."""

_log = logging.getLogger("hailmary")


@dataclass(frozen=True)
class RunnerStats(SubscriptionStats):
    """What became of a runner's events, since it began. Once it has stopped,
    received + duplicates = handled + dropped."""

    handled: int = 0
    """Events that the handler was called with, whether it raised or not."""

    handler_errors: int = 0
    """How often the handler raised. Those events are among `handled`."""


class Runner:
    """Calls `handler` with every event that matches a pattern, in threads.

        with Runner(index, "search.>", group="indexers", workers=4) as runner:
            ...

    - `workers`: how many threads call the handler, 1 to 256. Events of one key go
      to one of them, so they are handled in their order; an event without a key
      goes to whoever has least to do. One worker keeps the order of all.
    - `queue_events`: how many events wait at most, over all workers. Each has an
      equal share, so that a stuck one takes no room from the others. What finds
      no room is dropped, the newest first: `stats().dropped`, which the bus is
      told as well. 16 MiB bound it too.
    - `notices`: whether the handler is called with each `Loss` too, by any worker.
    - All else is as for `subscribe()`.

    What the handler raises is logged, once a minute at most, and counted.

    The threads are daemons: a process that ends without `stop()` does not wait for
    them. They belong to the process that started them, which is best one that has
    already forked. A child does not have them: there nothing is received, and
    `stop()` does nothing.
    """

    @overload
    def __init__(
        self,
        handler: Callable[[Event], object],
        *patterns: str,
        workers: int = 1,
        queue_events: int = EVENTS_MAX,
        notices: Literal[False] = False,
        address: Optional[str] = None,
        **terms: Unpack[Terms],
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: Callable[[Union[Event, Loss]], object],
        *patterns: str,
        workers: int = 1,
        queue_events: int = EVENTS_MAX,
        notices: bool,
        address: Optional[str] = None,
        **terms: Unpack[Terms],
    ) -> None: ...

    def __init__(
        self,
        handler: Any,
        *patterns: str,
        workers: int = 1,
        queue_events: int = EVENTS_MAX,
        notices: bool = False,
        address: Optional[str] = None,
        **terms: Unpack[Terms],
    ) -> None:
        """Raises `ValueError` or `TypeError` for wrong arguments. Nothing is
        looked up or opened before `start()`."""
        if not callable(handler):
            raise TypeError(f"a handler is called, and {handler!r:.100} cannot be")
        if not 1 <= workers <= WORKERS_MAX:
            raise ValueError(f"workers is from 1 to {WORKERS_MAX}, not {workers}")
        if queue_events < workers:
            raise ValueError(f"queue_events is at least one a worker, not {queue_events}")
        self._address = parse(address)
        self._request = make_request(patterns, **terms)
        self._notices = notices
        self._endpoint: Optional[Endpoint] = None
        # For the session, which the receiving thread drives. May be taken again
        # by its holder, since a signal handler may ask for the stats.
        self._lock = threading.RLock()
        trouble = Trouble({"raised": "a handler raised, given"}, _log_with_traceback)
        self._workers = [
            _Worker(handler, HandOver(queue_events // workers, BYTES_MAX // workers), trouble)
            for _ in range(workers)
        ]
        # The process that has the threads.
        self._process = 0
        self._threads: list[threading.Thread] = []
        self._receiving: Optional[threading.Thread] = None
        self._settled = threading.Event()
        self._error: Optional[Exception] = None
        self._is_stopping = False
        self._wake: Optional[tuple[OwnSocket, OwnSocket]] = None

    def start(self, timeout: Optional[float] = 0.0) -> bool:
        """Starts the threads, and waits at most `timeout` seconds, for ever if it
        is `None`, for the lease; says whether it stands.

        By default it does not wait, so that an application starts with the bus or
        without. A bus that is not there is waited for, and so is a name that has
        no address yet. Raises as `wait()` does, and `RuntimeError` if the runner was
        started before or the system has no more threads.
        """
        if self._process:
            raise RuntimeError("a runner is started once")
        self._process = os.getpid()
        self._start_threads()
        self._settled.wait(timeout)
        if self._error is not None:
            self.stop()
            raise self._error
        with self._lock:
            return self._endpoint is not None and self._endpoint.session.held

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits till nothing more is received, since it was told to stop, at most
        `timeout` seconds; says whether that is so. It is still to be stopped then.

        Raises `Refused` if the bus no longer allows the subscription, and `OSError`
        if something else in the process closed its socket.
        """
        receiving = self._receiving
        is_over = receiving is None or _join([receiving], deadline(timeout))
        if self._error is not None:
            raise self._error
        return is_over

    def stop(self, timeout: float = STOP_SECONDS) -> bool:
        """Gives the lease back, lets the handlers finish what waits for them, for
        at most `timeout` seconds, drops the rest, and says whether all threads
        have ended. One whose handler does not return is left behind.

        May be called more than once, which waits again but gives the handlers no
        more time, and from any thread, a handler's own and a signal handler's
        included.
        """
        until = time.monotonic() + timeout
        for worker in self._workers:
            worker.give_up_at = min(until, worker.give_up_at)
        self.ask_to_stop()
        # Those that give up need a moment to say so.
        others = [each for each in self._threads if each is not threading.current_thread()]
        has_stopped = not self._is_mine() or _join(others, until + GIVE_UP_SECONDS)
        receiving = self._receiving
        if self._wake is not None and receiving is not None and not receiving.is_alive():
            for end in self._wake:
                end.give_up()
        return has_stopped

    def stats(self) -> RunnerStats:
        """The counts so far."""
        # A child does not have the thread that may have held the lock.
        with self._lock if self._is_mine() else contextlib.nullcontext():
            endpoint = self._endpoint
            told = SubscriptionStats() if endpoint is None else endpoint.session.stats()
        counts = dict(vars(told))
        counts["dropped"] += sum(worker.given_up for worker in self._workers)
        return RunnerStats(
            **counts,
            handled=sum(worker.handled for worker in self._workers),
            handler_errors=sum(worker.errors for worker in self._workers),
        )

    def __enter__(self) -> Runner:
        self.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.stop()

    def ask_to_stop(self) -> None:
        """Takes no lock: a signal handler may have interrupted anything."""
        if self._is_stopping:
            return
        self._is_stopping = True
        if self._wake is not None and self._is_mine():
            writer = self._wake[1]
            with contextlib.suppress(OSError):
                if writer.is_ours():
                    writer.send(b"\0")

    def _is_mine(self) -> bool:
        """Whether this is the process that the threads are in."""
        return self._process == os.getpid()

    def _start_threads(self) -> None:
        """All of them, or none."""
        reader, writer = self._wake = _socket_pair()
        threads = [
            threading.Thread(target=worker.run, name="hailmary worker", daemon=True)
            for worker in self._workers
        ]
        receiving = threading.Thread(
            target=self._run, args=[reader], name="hailmary receiver", daemon=True
        )
        try:
            for thread in (*threads, receiving):
                thread.start()
                self._threads.append(thread)
            self._receiving = receiving
        except BaseException:
            self._end()
            self._wake = None
            reader.give_up()
            writer.give_up()
            raise

    def _run(self, wake: OwnSocket) -> None:
        """The receiving thread."""
        try:
            endpoint = self._open(wake)
            while endpoint is not None and not self._is_stopping:
                self._turn(endpoint, wake)
        except (Refused, OSError) as error:
            self._error = error
            _log.error("the subscription ends: %s", error)
        finally:
            self._end()

    def _open(self, wake: OwnSocket) -> Optional[Endpoint]:
        """Till there is an address and a socket; this thread may wait for both."""
        trouble = Trouble({"unopened": "cannot subscribe yet to"})
        while not self._is_stopping:
            try:
                self._endpoint = Endpoint(self._request, self._address, resolve(self._address))
                return self._endpoint
            except OSError as error:
                trouble.tell("unopened", " ".join(self._request.topics), error)
            look(wake)
            wait_for(LOOK_UP_SECONDS_MIN, wake)
        return None

    def _turn(self, endpoint: Endpoint, wake: OwnSocket) -> None:
        """Does what is due, takes one datagram, or waits for one."""
        now = time.monotonic()
        with self._lock:
            endpoint.transmit(now)
            events = endpoint.receive(now)
            if events is None:
                endpoint.session.handle_timeout(now)
            if self._notices:
                self._tell_loss(endpoint)
            if events:
                endpoint.session.drop(self._deal(events, endpoint.datagram_bytes))
            wake_at = endpoint.session.wake_at
        if endpoint.session.held and not self._settled.is_set():
            self._settled.set()
        if events is None:
            look(wake)
            endpoint.receiver.wait(wake_at - now, wake)

    def _deal(self, events: list[Event], size_bytes: int) -> int:
        """Gives each event to a worker; says how many found no room."""
        shares: list[list[Union[Event, Loss]]] = [[] for _ in self._workers]
        loads = [len(worker.hand_over) for worker in self._workers]
        for event in events:
            index = hash(event.key) % len(loads) if event.key else loads.index(min(loads))
            loads[index] += 1
            shares[index].append(event)
        refused = 0
        for worker, share in zip(self._workers, shares):
            if share:
                refused += worker.hand_over.offer(share, size_bytes * len(share) // len(events))
        return refused

    def _tell_loss(self, endpoint: Endpoint) -> None:
        """Where there is no room, the session adds up what is to be told."""
        hand_over = min((worker.hand_over for worker in self._workers), key=len)
        loss = endpoint.session.poll_loss() if hand_over.has_room else None
        if loss is not None:
            hand_over.put([loss])

    def _end(self) -> None:
        """Nothing more is received. The bus hears of it before the handlers have
        finished, so that others of a group take over at once."""
        with self._lock:
            if self._endpoint is not None:
                self._endpoint.close()
                self._endpoint.session.handle_timeout(time.monotonic())
                loss = self._endpoint.session.poll_loss() if self._notices else None
                if loss is not None:
                    self._workers[0].hand_over.put([loss])
        for worker in self._workers:
            worker.hand_over.end()
        self._settled.set()


class _Worker:
    """A thread's work; the counts are written by it alone."""

    def __init__(
        self, handler: Callable[[Any], object], hand_over: HandOver[Any], trouble: Trouble
    ) -> None:
        self.hand_over = hand_over
        self.give_up_at = math.inf
        """From when on it drops what still waits."""
        self.handled = 0
        self.errors = 0
        self.given_up = 0
        """Events that it dropped so."""
        self._handler = handler
        self._trouble = trouble

    def run(self) -> None:
        while True:
            items = self.hand_over.wait()
            if not items:
                return
            for item in items:
                if time.monotonic() < self.give_up_at:
                    self._handle(item)
                else:
                    self.given_up += isinstance(item, Event)

    def _handle(self, item: Union[Event, Loss]) -> None:
        try:
            self._handler(item)
        except BaseException as error:
            # Also what would end the thread alone, such as SystemExit: nobody
            # would see that, and a worker less would handle nothing.
            self.errors += 1
            about = f"an event of {item.topic!r}" if isinstance(item, Event) else "a loss"
            self._trouble.tell("raised", about, error)
        self.handled += isinstance(item, Event)


def _log_with_traceback(line: str, what: str, about: str, error: object, since: str) -> bool:
    """May wait for a handler of the application's that logs, as any code of its
    own would: it is in a worker's thread, and what failed once is to be seen."""
    cause = error if isinstance(error, BaseException) else None
    with contextlib.suppress(Exception):
        _log.error(line, what, about, repr(error), since, exc_info=cause)
    return True


def _socket_pair() -> tuple[OwnSocket, OwnSocket]:
    """What is written to the second wakes who waits for the first."""
    reader, writer = _socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return OwnSocket(socket.AF_UNIX, reader.detach()), OwnSocket(socket.AF_UNIX, writer.detach())


def _join(threads: list[threading.Thread], until: float) -> bool:
    for thread in threads:
        rest = until - time.monotonic()
        thread.join(None if rest == math.inf else max(0.0, rest))
    return not any(thread.is_alive() for thread in threads)


@overload
def run(
    handler: Callable[[Event], object],
    *patterns: str,
    workers: int = 1,
    queue_events: int = EVENTS_MAX,
    stop_timeout: float = STOP_SECONDS,
    notices: Literal[False] = False,
    address: Optional[str] = None,
    **terms: Unpack[Terms],
) -> RunnerStats: ...


@overload
def run(
    handler: Callable[[Union[Event, Loss]], object],
    *patterns: str,
    workers: int = 1,
    queue_events: int = EVENTS_MAX,
    stop_timeout: float = STOP_SECONDS,
    notices: bool,
    address: Optional[str] = None,
    **terms: Unpack[Terms],
) -> RunnerStats: ...


def run(
    handler: Any,
    *patterns: str,
    workers: int = 1,
    queue_events: int = EVENTS_MAX,
    stop_timeout: float = STOP_SECONDS,
    notices: bool = False,
    address: Optional[str] = None,
    **terms: Unpack[Terms],
) -> RunnerStats:
    """Runs a `Runner` in the foreground, till SIGTERM or SIGINT; then stops it
    cleanly within `stop_timeout` seconds, and returns the counts.

    A second signal does what it did before, so that it ends a program that does
    not stop. Raises as `Runner`, and `Refused` if the bus refuses.
    """
    runner = Runner(
        handler,
        *patterns,
        workers=workers,
        queue_events=queue_events,
        notices=notices,
        address=address,
        **terms,
    )
    with stopped_by_signals(runner.ask_to_stop):
        runner.start()
        try:
            runner.wait()
        finally:
            runner.stop(stop_timeout)
    return runner.stats()
