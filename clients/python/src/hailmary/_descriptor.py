"""A socket that knows its descriptor from another's.

Owns what a socket does at its end: it closes itself, and never a descriptor whose
number is somebody else's by then, because the process closed all that it had, as
daemons do, and opened others. It refuses to open a socket and to use one.
"""

from __future__ import annotations

import _socket
import os
import socket

from . import _fork


class OwnSocket(_socket.socket):
    """A datagram socket that closes itself, and never another.

    Not `socket.socket`: it needs none of what that adds, least of all where
    gevent or eventlet have put theirs in its place.
    """

    __slots__ = ("__weakref__", "_identity")

    def __init__(self, family: int, descriptor: int) -> None:
        super().__init__(family, socket.SOCK_DGRAM, 0, descriptor)
        self.setblocking(False)
        self._identity = _identity(descriptor)
        _fork.begin_anew_in_child(self)

    def is_ours(self) -> bool:
        """Whether the descriptor is still this socket."""
        try:
            return _identity(self.fileno()) == self._identity
        except OSError:
            return False

    def begin_anew(self) -> None:
        """Closes a child's copy of it; that of the parent stays open. Some may be
        known to threads alone that the child does not have."""
        self.give_up()

    def give_up(self) -> None:
        """Closes it, or leaves the descriptor to whom it now belongs."""
        if self.is_ours():
            self.close()
        else:
            self.detach()

    def __del__(self) -> None:
        try:
            self.give_up()
        except Exception:  # The interpreter ends and has taken the modules away.
            pass


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
