"""The socket that a subscription's events come to.

Owns the socket, its buffer and, for Unix, the address that a bus can answer to.
It knows no frame. The socket is not connected: a bus answers from the address
that it listens at, and sends events from another. It refuses to send to, to read
from and to close a descriptor that the process has given to something else.

A child after a fork has the same socket as its parent: what it took would be
missing there. So there it is closed at once, which leaves it open in the parent.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import math
import os
import secrets
import select
import shutil
import socket
import sys
import tempfile
from typing import Optional

from . import _fork
from ._address import Peer
from ._descriptor import OwnSocket
from ._session import Origin

# What is asked for; the kernel grants what its limits allow. The default holds
# few datagrams (see socket(7), SO_RCVBUF), and what does not fit is lost.
_BUFFER_BYTES = 4 * 1024 * 1024

# How long datagrams that come one after the other are taken before it is looked
# again whether the descriptor is still this socket: a look costs a system call.
# What comes after a wait is looked at first.
_LOOK_SECONDS = 0.001

# No datagram is longer.
_DATAGRAM_BYTES_MAX = 65_535


class Receiver:
    """An open socket. Raises `OSError` where the system has none to give."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._directory: Optional[str] = None
        self.unsent: Optional[OSError] = None
        """Why the newest request was not even sent, if it was not."""
        self._look_at = -math.inf
        self._socket = _open(peer.family)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise
        _fork.begin_anew_in_child(self)

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the descriptor is another's."""
        return self._socket.fileno() < 0

    def send(self, datagram: bytes) -> None:
        """Sends it to the bus, or not: a request that gets lost is repeated.

        Raises `OSError`, once, if something else in the process has closed the
        socket; it is closed then, and its descriptor left to whom it belongs.
        """
        look(self._socket)
        try:
            self._socket.sendto(datagram, self._peer.address)
        except OSError as error:
            self.unsent = error
        else:
            self.unsent = None

    def receive(self, now: float) -> Optional[tuple[bytes, Origin]]:
        """The next datagram in the socket, if there is one. Raises as `send`."""
        if now >= self._look_at:
            look(self._socket)
            self._look_at = now + _LOOK_SECONDS
        try:
            datagram, source = self._socket.recvfrom(_DATAGRAM_BYTES_MAX)
        except BlockingIOError:
            # What is waited for now may come to another socket.
            self._look_at = -math.inf
            return None
        except OSError:
            # An error of an earlier request that the network sent back, or a
            # signal handler closed the socket. Neither is a datagram.
            look(self._socket)
            return None
        return datagram, self._origin(source)

    def wait(self, seconds: float, *also: OwnSocket) -> None:
        """Till a datagram is there, the time is over, or a signal handler closed
        the socket; also till another socket has something."""
        wait_for(seconds, self._socket, *also)

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop."""
        return self._socket.fileno()

    def redirect(self, peer: Optional[Peer]) -> None:
        """From now on the bus is there; nothing is where it was. It is of the
        same family as before."""
        if peer is not None:
            self._peer = peer

    def close(self) -> None:
        """Closes the socket and takes its file away, if it has one."""
        self._socket.give_up()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def begin_anew(self) -> None:
        """In a child: leaves the socket and its file to the parent."""
        self._directory = None
        self._socket.give_up()

    def _prepare(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        if self._peer.family != socket.AF_UNIX:
            return
        if sys.platform == "linux":
            self._socket.bind(b"\0hailmary-" + secrets.token_hex(16).encode())
        else:
            self._bind_file()

    def _bind_file(self) -> None:
        """A file under a name that none can guess. The bus may run as another
        user: it can reach the file, and nobody can list the directory."""
        self._directory = tempfile.mkdtemp(prefix="hailmary-")
        os.chmod(self._directory, 0o711)
        path = os.path.join(self._directory, secrets.token_hex(8))
        self._socket.bind(path)
        os.chmod(path, 0o666)

    def _origin(self, source: object) -> Origin:
        """Over Unix an answer counts by its nonce alone: the name that a bus
        bound is its own, and another than ours where a link or a mount leads to
        it, while the nonce is known to nobody but it and us."""
        if self._peer.family == socket.AF_UNIX:
            return Origin.BUS
        same = isinstance(source, tuple) and source[:2] == tuple(self._peer.address)[:2]
        return Origin.BUS if same else Origin.ELSEWHERE


def _open(family: int) -> OwnSocket:
    return OwnSocket(family, _socket.socket(family, socket.SOCK_DGRAM).detach())


def look(own: OwnSocket) -> None:
    """Raises `OSError` if the descriptor is no longer this socket, and forgets it:
    nothing would ever come there, and waiting for it would turn in a circle. One
    that is closed, as a signal handler may do at any moment, is left so."""
    if not own.is_ours() and own.fileno() >= 0:
        own.detach()
        raise OSError(errno.EBADF, "something else in the process closed the socket")


def wait_for(seconds: float, *sockets: _socket.socket) -> None:
    """Till one of them has something, is closed, or the time is over."""
    if not hasattr(select, "poll"):  # eventlet takes it away, and makes the other one yield.
        with contextlib.suppress(OSError, ValueError):
            select.select(sockets, [], [], max(0.0, seconds))
        return
    poll = select.poll()
    for each in sockets:
        try:
            poll.register(each, select.POLLIN)
        except ValueError:
            # A signal handler closed it just now.
            return
    poll.poll(max(0.0, seconds) * 1000)
