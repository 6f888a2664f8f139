"""The socket towards a bus.

Owns opening it, connecting it, mending it and giving it up. It refuses to wait,
to look a name up, and to touch a descriptor that is no longer its own. It takes
no lock: where two threads open at once, each sends by its own socket, and the
one that is not kept closes itself behind its last user.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import socket
import time
from typing import Callable, Optional

from ._address import Peer
from ._descriptor import OwnSocket

# Never wait, whatever became of the socket's own mode, and no SIGPIPE.
# MSG_FASTOPEN means nothing to a datagram, but a TCP connection refuses it: one
# that got our number, after the process closed it, gets none of our bytes.
FLAGS: int = (
    socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0) | getattr(socket, "MSG_FASTOPEN", 0)
)

# New descriptors get the lowest free number. One that is higher than many
# processes ever get to is seldom given to another if the process closes it. It is
# below 64, since Linux keeps so many in place: for a higher one it makes a larger
# table, and a process with threads waits some 10 ms for that.
_DESCRIPTOR_MIN = 48

# How often a full queue is taken as a hint that the bus's path may be another
# socket by now, whose queue is not full.
_RECONNECT_SECONDS_MIN = 1.0

# Nobody has the socket that this one is connected to: over Unix, the bus is
# gone, and another may have taken its path; over UDP, an earlier datagram found
# nobody, and this one was not sent.
_NOBODY_UDP = (errno.ECONNREFUSED,)
_NOBODY_UNIX = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN)

# What a connected datagram socket of ours does not say, unless it was shut down:
# the process closed all descriptors that it had, as daemons do, and may have
# given the number to something else.
_NOT_OURS = (
    errno.EBADF,
    errno.ENOTSOCK,
    errno.EPIPE,
    errno.EISCONN,
    errno.EDESTADDRREQ,
    errno.ENOTCONN,
    errno.EOPNOTSUPP,
)

# What a socket of ours says for want of room, of a way or of a bus. Behind any
# other error may be somebody else's file that has got its number.
_OF_THE_WAY = (
    errno.EAGAIN,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EMSGSIZE,
    errno.ECONNREFUSED,
    errno.EADDRNOTAVAIL,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
)

Send = Callable[[bytes, int], int]


class Closed(OSError):
    """Published after `close()`."""


class Link:
    """A socket towards one bus, opened when the first event is sent."""

    def __init__(self, peer: Optional[Peer]) -> None:
        self.peer = peer
        self.send: Send = self._connect_and_send
        """Hands a datagram to the kernel, with `FLAGS`. Raises `OSError`."""
        self._socket: Optional[OwnSocket] = None
        self._closed = False
        self._reconnect_at = 0.0

    @property
    def is_unix(self) -> bool:
        """Whether the bus is a Unix socket."""
        return self.peer is not None and self.peer.family == socket.AF_UNIX

    def found_nobody(self, error: OSError, send: Send) -> bool:
        """Whether a connected socket's `send` failed because nobody is there."""
        nobody = _NOBODY_UNIX if self.is_unix else _NOBODY_UDP
        return error.errno in nobody and send != self._connect_and_send

    def send_again(self, send: Send, datagram: bytes) -> None:
        """After `send` found nobody: over UDP it spoke of an earlier datagram,
        over Unix another may have the path by now."""
        if self.is_unix:
            send = self.send = self._connect_and_send
        send(datagram, FLAGS)

    def mend(self, error: OSError, send: Send) -> None:
        """After `send` failed: makes the next one begin anew where that helps."""
        if error.errno in _NOT_OURS or self._has_lost_it(error):
            self._forget(send)
        elif error.errno == errno.EAGAIN and self.is_unix:
            self._reconnect_seldom()

    def close(self) -> None:
        """Refuses what comes later. A thread that is sending closes the socket
        when it is done; else it is closed now."""
        self._closed = True
        self.send = self._connect_and_send
        self._socket = None

    def in_child(self) -> Link:
        """The same way from a child, by a socket of its own."""
        link = Link(self.peer)
        link._closed = self._closed
        return link

    def towards(self, peer: Peer) -> Link:
        """A way to another address, closed if this one is."""
        link = Link(peer)
        link._closed = self._closed
        return link

    def _connect_and_send(self, datagram: bytes, flags: int) -> int:
        if self._closed:
            raise Closed
        if self.peer is None:
            raise OSError(errno.EHOSTUNREACH, "the bus's address is not known")
        connected = self._opened(self.peer.family)
        connected.connect(self.peer.address)
        if self._socket is connected:
            self.send = connected.send
        if self._closed:  # By another thread, meanwhile.
            self.close()
        return connected.send(datagram, flags)

    def _opened(self, family: int) -> OwnSocket:
        opened = self._socket
        if opened is not None and opened.is_ours():
            return opened
        if opened is not None:
            opened.detach()
            self._socket = None
        fresh = _open(family)
        if self._socket is None:
            self._socket = fresh
        # Another thread may have been first, and then its socket is for all.
        return self._socket or fresh

    def _has_lost_it(self, error: OSError) -> bool:
        opened = self._socket
        return error.errno not in _OF_THE_WAY and opened is not None and not opened.is_ours()

    def _forget(self, send: Send) -> None:
        if self.send == send:
            self.send = self._connect_and_send
        forgotten, self._socket = self._socket, None
        if forgotten is not None and not forgotten.is_ours():
            forgotten.detach()

    def _reconnect_seldom(self) -> None:
        now = time.monotonic()
        if now >= self._reconnect_at:
            self._reconnect_at = now + _RECONNECT_SECONDS_MIN
            self.send = self._connect_and_send


def _open(family: int) -> OwnSocket:
    plain = _socket.socket(family, socket.SOCK_DGRAM)
    try:
        high = fcntl.fcntl(plain.fileno(), fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_MIN)
    except (AttributeError, OSError):  # Unknown here, or not below the limit, or all are taken.
        return OwnSocket(family, plain.detach())
    plain.close()
    return OwnSocket(family, high)
