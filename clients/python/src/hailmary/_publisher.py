"""Throws events at a bus and forgets them.

Owns the sending socket, the stamps and the counts of one publisher. It refuses
to wait: for a name, for the bus, for room in a buffer. What cannot be sent at
once is dropped and counted, and nothing that the network or the bus does is
raised to the caller. Only who asks what the bus received waits for its answer.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Optional

from ._address import Address, Peer, parse, resolve
from ._encode import event_field, sender_field, stamp_field
from ._ping import Pong, ask
from ._wire import bus_pb2

_log = logging.getLogger("hailmary")

# The field of PublisherStats that a failed system call counts in. What is not
# named here counts in `failed`.
_REASON_BY_ERRNO = {
    errno.EAGAIN: "would_block",
    errno.EWOULDBLOCK: "would_block",
    errno.ENOBUFS: "no_buffer",
    errno.ENOMEM: "no_buffer",
    errno.EMSGSIZE: "too_large",
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "refused",
    errno.ENOENT: "refused",
    errno.ENOTCONN: "refused",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.ENETUNREACH: "unreachable",
}

# Nobody has the socket that this one is connected to: over Unix, the bus is
# gone, and another may have taken its path; over UDP, an earlier datagram found
# nobody, and this one was not sent.
_NOBODY = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN)

# The descriptor is no longer this socket: the process closed all it had, as
# daemons do, and may have given the number to something else.
_NOT_OURS = (errno.EBADF, errno.ENOTSOCK)


@dataclass(frozen=True)
class PublisherStats:
    """What became of a publisher's events, so far and in this process."""

    sent: int = 0
    """Handed to the kernel. What was lost later, only the bus can tell: asked by
    `Publisher.ping()`, it does, and then sent = received + lost + in flight."""

    would_block: int = 0
    """Dropped: the socket's or the bus's queue was full."""

    no_buffer: int = 0
    """Dropped: the kernel had no memory, or the device's queue was full."""

    too_large: int = 0
    """Dropped: more bytes than the way to the bus takes."""

    refused: int = 0
    """Dropped: nobody was listening. Over UDP, see `bounced`."""

    unreachable: int = 0
    """Dropped: no way to the bus's host, or its name could not be looked up."""

    failed: int = 0
    """Dropped: another error, such as no permission or no free descriptor."""

    closed: int = 0
    """Dropped: published after `close()`."""

    bounced: int = 0
    """How often the host of a UDP bus told that an earlier datagram found nobody
    listening. Those are in `sent` and lost; hosts do not tell it of each."""

    pong: Optional[Pong] = None
    """What the bus told when it was last asked, if it has been."""

    @property
    def dropped(self) -> int:
        """All that were dropped here, for whatever reason."""
        return (
            self.would_block
            + self.no_buffer
            + self.too_large
            + self.refused
            + self.unreachable
            + self.failed
            + self.closed
        )

    @property
    def offered(self) -> int:
        """All that `publish()` took: sent or dropped."""
        return self.sent + self.dropped


class Publisher:
    """Publishes events to one bus.

    `address` is `HOST:PORT`, `udp://HOST:PORT` or `unix:///PATH`; by default
    the environment's `HAILMARY_BUS`, else `127.0.0.1:7277`. A name is looked up
    here, once. If that fails, a warning is logged and all events are dropped as
    `unreachable`. Raises `ValueError` if the text is no address.

    One publisher may be used by many threads, by signal handlers, and on both
    sides of a fork: the child begins a flow of its own, with a new sender id, a
    socket of its own and counts at zero. It starts no thread.
    """

    def __init__(self, address: Optional[str] = None) -> None:
        self._address = parse(address)
        self._flow = _Flow(self._first_peer())
        _publishers.add(self)

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
        """
        if time_unix_nano is None:
            time_unix_nano = time.time_ns()
        event = event_field(topic, payload, key, attributes, time_unix_nano)
        flow = self._flow
        if flow.process != os.getpid():
            flow = self._begin_flow()
        with flow.lock:
            flow.send(event)

    def ping(self, timeout: float = 1.0) -> Optional[Pong]:
        """Asks the bus what it received and lost of this publisher's events, and
        waits for the answer: at most `timeout` seconds, after which it is `None`.

        Nothing that the network or the bus does is raised. Other threads may
        publish meanwhile, and `stats()` keeps the answer.
        """
        flow = self._flow
        if flow.process != os.getpid():
            flow = self._begin_flow()
        return flow.ping(timeout)

    def resolve(self) -> None:
        """Looks the bus's name up again, which may wait for a name server. If
        that fails, a warning is logged and all stays as it was.
        """
        self._resolve()

    def stats(self) -> PublisherStats:
        """The counts since the publisher was made, or since the fork."""
        flow = self._flow
        if flow.process != os.getpid():
            flow = self._begin_flow()
        with flow.lock:
            return flow.stats()

    def close(self) -> None:
        """Closes the socket. Events published later are dropped as `closed`."""
        flow = self._flow
        with flow.lock:
            flow.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _first_peer(self) -> Optional[Peer]:
        """Where the publisher sends to once it is made."""
        return _look_up(self._address)

    def _resolve(self) -> bool:
        """Says whether the name has an address."""
        peer = _look_up(self._address)
        if peer is None:
            return False
        flow = self._flow
        if flow.process != os.getpid():
            flow = self._begin_flow()
        with flow.lock:
            flow.redirect(peer)
        return True

    def _reject(self, error: Exception) -> None:
        """What is offered is no event, for this reason."""
        raise error

    def _begin_flow(self) -> _Flow:
        """In a child: leaves the parent's flow, with its lock, to the parent."""
        self._flow = self._flow.of_this_process()
        return self._flow


class _Flow:
    """One sender towards one bus, as the contract means it.

    The lock is for whoever calls; it is held for a system call that does not
    wait. It may be taken again by its holder, since a signal handler may
    publish in the middle of a `send`. A child never takes its parent's.
    """

    def __init__(self, peer: Optional[Peer]) -> None:
        self.process = os.getpid()
        self.lock = threading.RLock()
        self._peer = peer
        # 0 is what a stamp without a sender looks like.
        self._sender = random.SystemRandom().randrange(1, 2**64)
        self._sender_field = sender_field(self._sender)
        self._sequence = 0
        self._dropped = 0
        self._dropped_by_reason: dict[str, int] = {}
        self._bounced = 0
        self._pong: Optional[Pong] = None
        self._socket: Optional[socket.socket] = None
        # The same socket, while it is connected.
        self._connected: Optional[socket.socket] = None
        self._closed = False

    def send(self, event: bytes) -> None:
        frame = event + stamp_field(self._sender_field, self._sequence, self._dropped)
        # Before the system call, so that a signal handler's event comes next.
        self._sequence += 1
        try:
            (self._connected or self._connect()).send(frame)
        except OSError as error:
            self._handle_failure(error, frame)

    def ping(self, timeout: float) -> Optional[Pong]:
        """Takes the lock itself, and only before and after the wait."""
        if self._peer is None:
            return None
        with self.lock:
            stamp = bus_pb2.Stamp(
                sender=self._sender, sequence=self._sequence, dropped=self._dropped
            )
        answer = ask(self._peer, stamp, timeout)
        if answer is None:
            return None
        told, seconds = answer
        with self.lock:
            sent = self._sequence - self._dropped
            self._pong = Pong(told.bus, sent, told.received, told.lost, seconds)
            return self._pong

    def stats(self) -> PublisherStats:
        return PublisherStats(
            sent=self._sequence - self._dropped,
            bounced=self._bounced,
            pong=self._pong,
            **self._dropped_by_reason,
        )

    def close(self) -> None:
        self._closed = True
        self._connected = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def redirect(self, peer: Peer) -> None:
        """Sends to this address from now on."""
        if peer != self._peer:
            self._peer = peer
            self._connected = None
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def of_this_process(self) -> _Flow:
        """A new flow to the same bus, in a child. The parent's socket is closed
        here, which leaves it open there."""
        flow = _Flow(self._peer)
        flow._closed = self._closed
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        return flow

    def _handle_failure(self, error: OSError, frame: bytes) -> None:
        """Drops the frame, or sends it after all.

        A frame that met "nobody" is tried once more. Over UDP the error spoke of
        an earlier datagram and took this one's place; over Unix the bus may have
        come back under the same path. So the first event after a restart
        arrives, and while the bus is away an event costs a failed system call.
        """
        if self._connected is not None and error.errno in _NOBODY:
            try:
                self._send_again(self._connected, frame)
                return
            except OSError as second:
                error = second
        self._drop(error)

    def _send_again(self, connected: socket.socket, frame: bytes) -> None:
        if connected.family == socket.AF_UNIX:
            self._connected = None
            connected = self._connect()
        else:
            self._bounced += 1
        connected.send(frame)

    def _connect(self) -> socket.socket:
        if self._closed:
            raise _Closed
        if self._peer is None:
            raise OSError(errno.EHOSTUNREACH, "the bus's name has no address")
        if self._socket is None:
            self._socket = socket.socket(self._peer.family, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self._socket.connect(self._peer.address)
        self._connected = self._socket
        return self._socket

    def _drop(self, error: OSError) -> None:
        reason = _reason(error)
        self._dropped += 1
        self._dropped_by_reason[reason] = self._dropped_by_reason.get(reason, 0) + 1
        if error.errno in _NOT_OURS:
            self._forget_socket()

    def _forget_socket(self) -> None:
        """Gives the descriptor up without closing what it may now belong to."""
        if self._socket is not None:
            self._socket.detach()
        self._socket = None
        self._connected = None


class _Closed(OSError):
    """Published after `close()`."""


def _reason(error: OSError) -> str:
    if isinstance(error, _Closed):
        return "closed"
    return _REASON_BY_ERRNO.get(error.errno or 0, "failed")


def _look_up(address: Address) -> Optional[Peer]:
    try:
        return resolve(address)
    except OSError as error:
        _log.warning("events to %s will be dropped: %s", address, error)
        return None


# Those that a child must give new flows to, before any of its threads runs.
_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _begin_flows() -> None:
    for publisher in list(_publishers):
        publisher._begin_flow()


os.register_at_fork(after_in_child=_begin_flows)
