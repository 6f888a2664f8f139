"""Throws events at a bus and forgets them.

Owns what a program publishes by: the publisher's options, and which sender
stands behind it in this process. It refuses to wait: for a name, for the bus,
for room in a buffer, for a lock. What cannot be sent at once is dropped and
counted, and nothing that the network or the bus does is raised to the caller.
Only who asks what the bus received, or where it is, waits for an answer.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from time import time_ns
from types import TracebackType
from typing import Callable, Literal, NoReturn, Optional

from . import _fork
from ._address import BUS_ADDRESS, BUS_VARIABLE, Peer, parse, resolve
from ._batch import Batch
from ._buffer import Buffer
from ._encode import TooLarge, event_field
from ._environment import is_disabled
from ._link import Link
from ._sender import Pong, PublisherStats, Sender, trouble
from ._trouble import warn

LINGER_MS_MAX = 10_000
"""The longest that an event may be told to wait for others."""

_mark = _fork.mark


class Publisher:
    """Publishes events to one bus.

    `address` is `HOST:PORT`, `udp://HOST:PORT` or `unix:///PATH`; by default
    the environment's `HAILMARY_BUS`, else `127.0.0.1:7277`. A name is looked up
    here, once. If that fails, or if the environment's value is no address, a
    warning is logged and all events are dropped as `unreachable`, until
    `resolve()` finds one.

    `on_error="drop"` counts what is no event instead of raising it. `linger_ms`
    lets events wait so long for others, in a buffer, see the README; 0 sends
    each at once, without buffer and without thread. `HAILMARY_DISABLE=1` in the
    environment makes it do nothing at all.

    Raises `ValueError` if `address` is given and is none, or an option is none.

    One publisher may be used by many threads, by signal handlers, and on both
    sides of a fork: the child begins a flow of its own, with a new sender id, a
    socket of its own, counts at zero and an empty buffer.
    """

    def __init__(
        self,
        address: Optional[str] = None,
        *,
        on_error: Literal["raise", "drop"] = "raise",
        linger_ms: float = 0,
    ) -> None:
        if on_error not in ("raise", "drop"):
            raise ValueError(f"on_error is 'raise' or 'drop', not {on_error!r}")
        if not 0 <= linger_ms <= LINGER_MS_MAX:
            raise ValueError(f"linger_ms is from 0 to {LINGER_MS_MAX}, not {linger_ms!r}")
        if address is not None:
            parse(address)
        self._address = address
        self._drops_errors = on_error == "drop"
        self._linger_seconds = linger_ms / 1000
        self._is_disabled = is_disabled()
        self._begin(Sender(Link(None), _name(address)))
        if not self._is_disabled:
            self._find_bus()
        _fork.call_in_child(self, Publisher._begin_anew)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: bytes = b"",
        attributes: Optional[Mapping[str, str]] = None,
        time_unix_nano: Optional[int] = None,
    ) -> None:
        """Sends one event, or drops and counts it. Never waits.

        Events of equal `key` go to the same member of a group. `time_unix_nano`
        is now by default; 0 leaves it out.

        Raises `ValueError` for an illegal topic, a time that does not fit, or
        an event of more than 65,459 bytes with all that belongs to it, and
        `TypeError` for values of the wrong type. Such an event is not counted.
        With `on_error="drop"` it is dropped and counted, and nothing is raised.
        """
        if not _mark[0]:
            _fork.begin_anew()
        if self._is_disabled:
            return
        try:
            if time_unix_nano is None:
                time_unix_nano = time_ns()
            event = event_field(topic, payload, key, attributes, time_unix_nano)
        except Exception as error:
            self._reject(error)
        else:
            self._send(event)

    def batch(self, bytes_max: Optional[int] = None) -> Batch:
        """Several events in one datagram, which costs everybody far less than
        one for each:

            with publisher.batch() as batch:
                batch.publish("search.index.photo", b"42")
                batch.extend("search.index.photo", [b"43", b"44"])

        It sends itself when the next event would not fit: by default into 1,400
        bytes over a network, 16,384 over loopback and Unix sockets; `bytes_max` is
        from 1 to 65,507, else `ValueError` is raised. The rest is sent at the end,
        also at the end by an exception: an event whose `publish()` has returned is
        published. Its events do not go through the buffer of `linger_ms`.
        """
        return Batch(self._current_sender, self._reject, bytes_max)

    def flush(self) -> None:
        """Sends what is in the buffer of `linger_ms`, if there is one. It waits,
        a second at most, for no more than that a datagram under way is sent."""
        self._current_sender()
        if self._buffer is not None:
            self._buffer.flush()

    def ping(self, timeout: float = 1.0) -> Optional[Pong]:
        """Asks the bus what it received and lost of this publisher's events, and
        waits for the answer: at most `timeout` seconds, after which it is `None`.

        Nothing that the network or the bus does is raised. Other threads may
        publish meanwhile, and `stats()` keeps the answer.
        """
        sender = self._current_sender()
        return None if sender is None else sender.ping(timeout)

    def resolve(self) -> bool:
        """Looks the bus's name up again, or reads the environment again, and
        sends later events to what is found. This may wait for a name server.

        Returns whether there is an address. If none is found, a warning is
        logged and events go on to the one that was known before.
        """
        return self._current_sender() is not None and self._find_bus()

    def stats(self) -> PublisherStats:
        """The counts since the publisher was made, or since the fork."""
        sender = self._current_sender()
        return PublisherStats() if sender is None else sender.stats()

    def close(self) -> None:
        """Sends what is in the buffer and closes the socket. Events published
        later are dropped as `closed`."""
        self._current_sender()
        if self._stop_buffer is not None:
            self._stop_buffer()
        self._sender.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a publisher is not pickled: two processes would be one sender")

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _begin_anew(self) -> None:
        """In a child: leaves the parent's sender and buffer to the parent."""
        if self._stop_buffer is not None:
            self._stop_buffer.detach()
        self._begin(self._sender.in_child())

    def _begin(self, sender: Sender) -> None:
        self._sender = sender
        self._send: Callable[[bytes], None] = sender.send
        self._buffer: Optional[Buffer] = None
        # Called by close(), else when the publisher is no more or the interpreter ends.
        self._stop_buffer: Optional[weakref.finalize[[Buffer], Publisher]] = None
        if self._linger_seconds > 0 and not self._is_disabled:
            self._buffer = Buffer(sender, self._linger_seconds)
            self._send = self._buffer.send
            self._stop_buffer = weakref.finalize(self, _stop, self._buffer)

    def _current_sender(self) -> Optional[Sender]:
        """That of this process; `None` if publishing is turned off."""
        if not _mark[0]:
            _fork.begin_anew()
        return None if self._is_disabled else self._sender

    def _find_bus(self) -> bool:
        sender = self._sender
        try:
            peer = _look_up(self._address)
        except OSError as error:
            self._tell_not_found(error)
            return False
        sender.bus = _name(self._address)
        if peer != sender.link.peer:
            sender.move(peer)
        return True

    def _tell_not_found(self, error: OSError) -> None:
        if self._sender.link.peer is None:
            trouble.tell("unreachable", self._sender.bus, error)
        else:
            line = "the bus's address is not found, events go on to the one known before: %s: %s"
            warn(line, _name(self._address), error)

    def _reject(self, error: Exception) -> None:
        """Raises what is wrong with an event, or counts it."""
        if not self._drops_errors:
            raise error
        self._sender.drop("too_large" if isinstance(error, TooLarge) else "invalid", error)


def _name(address: Optional[str]) -> str:
    return address or os.environ.get(BUS_VARIABLE) or BUS_ADDRESS


def _look_up(address: Optional[str]) -> Peer:
    """Raises `OSError` if nothing is found, also where the environment's value is
    no address: that is no error of the program's."""
    try:
        parsed = parse(address)
    except ValueError as error:
        if address is not None:
            raise
        raise OSError(f"{BUS_VARIABLE}: {error}") from error
    return resolve(parsed)


def _stop(buffer: Buffer) -> None:
    # In a child whose fork nobody told of, it is the parent's.
    if _mark[0]:
        buffer.stop()
