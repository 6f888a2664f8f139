"""Follows a bus whose name gets another address.

Owns when a name is looked up again, and the thread that does it: a resolver may
take many seconds, so neither an event loop nor the caller of `recv(timeout)` is
made to wait for it. The thread ends with the one look-up that it was started
for, and nobody waits for it, not even the end of the process.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import threading
from typing import Optional

from ._address import Address, Peer, UdpAddress, resolve

LOOK_UP_SECONDS_MIN = 10.0
"""The shortest time between two look-ups: what a name server can bear from all
of a host's subscribers while a bus is away, and soon enough for who moves one."""


class LookUp:
    """The address of a bus, as its name has it. Another one counts if it is of
    the same family as the first, since the socket is."""

    def __init__(self, address: Address, family: socket.AddressFamily) -> None:
        self._address = address
        self._family = family
        self._begin_at = -math.inf
        self._thread: Optional[threading.Thread] = None
        self._found: Optional[Peer] = None

    def poll(self, now: float) -> Optional[Peer]:
        """Asked while the bus is silent: gives what was found since it was asked
        last, and begins to look up where it is time to. Never waits."""
        if self._thread is not None and self._thread.is_alive():
            return None
        found, self._found = self._found, None
        if now >= self._begin_at:
            self._begin_at = now + LOOK_UP_SECONDS_MIN
            self._begin()
        return found

    def _begin(self) -> None:
        thread = threading.Thread(target=self._run, name="hailmary look-up", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No more threads, or the interpreter ends. The next time may do.
            return
        self._thread = thread

    def _run(self) -> None:
        try:
            found = resolve(self._address)
        except OSError:
            return
        if found.family == self._family:
            self._found = found


def is_name(address: Address) -> bool:
    """Whether there is something to look up."""
    if not isinstance(address, UdpAddress):
        return False
    try:
        ipaddress.ip_address(address.host.partition("%")[0])
    except ValueError:
        return True
    return False
