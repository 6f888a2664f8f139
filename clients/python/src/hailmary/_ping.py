"""Asks a bus what it received of a publisher's flow.

Owns the one exchange of a publisher that waits for an answer, on a socket of
its own. Who asks, and what becomes of the answer, is the publisher's.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import closing
from typing import NamedTuple, Optional

from ._address import Peer
from ._lease import RETRY_SECONDS_MAX, RETRY_SECONDS_MIN, padded
from ._receiver import Receiver
from ._session import NO_FRAME, Origin
from ._wire import bus_pb2

_log = logging.getLogger("hailmary")


class Answer(NamedTuple):
    """A bus's answer, and how long it took."""

    pong: bus_pb2.Pong
    round_trip_seconds: float


def ask(peer: Peer, stamp: bus_pb2.Stamp, timeout: float) -> Optional[Answer]:
    """Asks what came of the stamp's flow. Asks again, as datagrams may get lost;
    gives up after `timeout` seconds, and where the system has no socket, or
    something else in the process closed it."""
    try:
        with closing(Receiver(peer)) as receiver:
            return _ask_again_and_again(receiver, stamp, time.monotonic() + timeout)
    except OSError as error:
        _log.warning("the bus cannot be asked: %s", error)
        return None


def _ask_again_and_again(
    receiver: Receiver, stamp: bus_pb2.Stamp, give_up_at: float
) -> Optional[Answer]:
    retry_after = RETRY_SECONDS_MIN
    while True:
        asked_at = time.monotonic()
        nonce = secrets.randbits(64)
        question = bus_pb2.Frame(stamp=stamp, ping=bus_pb2.Ping(nonce=nonce))
        receiver.send(padded(question))
        pong = _await_pong(receiver, nonce, min(asked_at + retry_after, give_up_at))
        now = time.monotonic()
        if pong is not None:
            return Answer(pong, now - asked_at)
        if now >= give_up_at:
            return None
        retry_after = min(2 * retry_after, RETRY_SECONDS_MAX)


def _await_pong(receiver: Receiver, nonce: int, until: float) -> Optional[bus_pb2.Pong]:
    now = time.monotonic()
    while True:
        received = receiver.receive(now)
        if received is not None:
            pong = _pong_in(*received)
            if pong is not None and pong.nonce == nonce:
                return pong
        now = time.monotonic()
        if now >= until:
            return None
        if received is None:
            receiver.wait(until - now)


def _pong_in(datagram: bytes, origin: Origin) -> Optional[bus_pb2.Pong]:
    try:
        frame = bus_pb2.Frame.FromString(datagram)
    except NO_FRAME:
        return None
    is_pong = origin is Origin.BUS and frame.WhichOneof("control") == "pong"
    return frame.pong if is_pong else None
