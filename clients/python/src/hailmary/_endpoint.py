"""A subscription's session at its socket: the part that all drivers share.

Owns the joining of `_session` with `_receiver`, and the way to a bus whose name
has another address by now. It never waits: the iterator, the event loop and the
runner each have their own way of that. The contract with them is the session's,
with the socket in place of datagrams.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import Optional

from ._address import Address, Peer
from ._event import Event
from ._lease import Reason
from ._look_up import LookUp, is_name
from ._receiver import Receiver
from ._session import Session
from ._wire import bus_pb2


class Refused(Exception):
    """The bus refuses the subscription, and asking again would not help."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason
        """Why."""


class Endpoint:
    """An open socket and what is said there. Raises `OSError` where the system
    has no socket to give."""

    def __init__(self, request: bus_pb2.Subscribe, address: Address, peer: Peer) -> None:
        self.receiver: Receiver = Receiver(peer)
        self.session: Session = Session(request, secrets.randbits(64), time.monotonic())
        self.datagram_bytes: int = 0
        """The length of the datagram that `receive` took last."""
        self._look_up = LookUp(address, peer.family) if is_name(address) else None

    @property
    def closed(self) -> bool:
        """Whether it was closed, or was the parent's before a fork."""
        return self.receiver.closed

    def transmit(self, now: float) -> None:
        """Says to the bus what is due. Raises `OSError`, once, if something else
        in the process closed the socket; it is closed then."""
        if now < self.session.transmit_at:
            return
        if self._look_up is not None and self.session.silent:
            self.receiver.redirect(self._look_up.poll(now))
        request = self.session.poll_transmit(now)
        if request is not None:
            try:
                self.receiver.send(request)
            except OSError:
                self.close()
                raise

    def receive(self, now: float) -> Optional[list[Event]]:
        """The events of the next datagram in the socket, if there is one.

        Raises `Refused` if the bus no longer allows the subscription, and as
        `transmit`; it is closed then.
        """
        try:
            received = self.receiver.receive(now)
        except OSError:
            self.close()
            raise
        if received is None:
            return None
        datagram, origin = received
        self.datagram_bytes = len(datagram)
        events = self.session.handle_datagram(now, origin, datagram)
        reason = self.session.refused
        if reason is not None:
            self.close()
            raise Refused(reason)
        return events

    def why_no_lease(self) -> str:
        """For the error of who waited for a lease in vain."""
        if self.session.refusal is not None:
            return self.session.refusal.value
        unsent = self.receiver.unsent
        return "no answer from the bus" + (f" (not sent: {unsent})" if unsent else "")

    def close(self) -> None:
        """Gives the lease back and closes the socket, if it is still that."""
        farewell = self.session.close()
        if farewell is not None and not self.closed:
            with contextlib.suppress(OSError):
                self.receiver.send(farewell)
        self.receiver.close()
