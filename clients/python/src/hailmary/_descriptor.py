"""A socket that knows its descriptor from another's.

Owns what a socket does at its end: it closes itself, and never a descriptor whose
number is somebody else's by then, because the process closed all that it had, as
daemons do, and opened others. It refuses to open a socket and to use one.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
from typing import Any, Optional

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
        self._identity = self._look()
        if self._identity is None and family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                self.bind(("", 0))
            self._identity = self._look()
        _fork.begin_anew_in_child(self)

    def is_ours(self) -> bool:
        """Whether the descriptor is still this socket."""
        try:
            found = self._look()
        except OSError:
            return False
        return found is not None and found == self._identity

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

    def _look(self) -> Optional[tuple[object, ...]]:
        """What no other open file has; `None` where nothing tells. Raises `OSError`
        if the descriptor is closed."""
        status = os.fstat(self.fileno())
        if status.st_ino:
            return status.st_dev, status.st_ino
        # macOS numbers no socket of the internet. Two of them have not one port.
        name: Any = self.getsockname()
        port: int = 0 if isinstance(name, (str, bytes)) else name[1]
        kind = self.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        return (kind, port) if port else None

    def __del__(self) -> None:
        try:
            self.give_up()
        except Exception:  # The interpreter ends and has taken the modules away.
            pass
