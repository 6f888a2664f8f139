"""The subscriber's side of a lease: from the first Subscribe to the last.

Owns what is said to the bus and when, and which of the answers is believed. It
performs no I/O and reads no clock. Times are seconds of one clock that does not
jump, of the caller's choice.

Answers are believed only from the bus's own address, with the nonce of this
subscription, and while a request is unanswered. What is said is bounded: one
request at once for the first challenge or for a lease that ended, all others by
a timer of 100 ms or more. So no peer can turn a subscriber into a fast one.
"""

from __future__ import annotations

import enum
import math
from typing import Optional

from ._flow import Ledger
from ._wire import bus_pb2

RETRY_SECONDS_MIN = 0.1
"""How long to wait for an answer before asking again, at first: far above a
round trip in a data centre, below what a person notices."""

RETRY_SECONDS_MAX = 2.0
"""The longest wait between two requests that get no answer: as often as a
standing lease is renewed."""

RENEWAL_SECONDS_MAX = 2.0
"""The longest wait between two renewals. A bus that restarted learns of its
subscribers by them, so they are without events for this long at most."""

RENEWAL_SECONDS_MIN = 0.1
"""The shortest wait between two renewals, whatever short lease a bus grants."""

_RENEWALS_PER_LEASE = 3
"""A lease is renewed after this part of it, so that two renewals may get lost."""

_COOKIE_BYTES_MAX = 256
"""The longest cookie that is carried back. A bus's own are far shorter; without
a bound, a stranger's would swell the renewals."""

_REQUEST_BYTES_MIN = 64
"""What every request is padded to, also one with a cookie: the bus may not know
it any more, and answers an unproven address with no more bytes than it got."""

_UINT64_MAX = 2**64 - 1


class Reason(enum.Enum):
    """Why a bus refused."""

    NOT_ALLOWED = "the bus does not allow this subscription from here"
    BAD_TOPIC = "the bus takes a topic pattern for illegal"
    BAD_REQUEST = "the bus takes the request for illegal"
    FULL = "the bus has no place for another subscriber, or its group for another member"
    OTHER = "the bus gives a reason that this client does not know"


_FINAL: dict[int, Reason] = {
    bus_pb2.Refusal.NOT_ALLOWED: Reason.NOT_ALLOWED,
    bus_pb2.Refusal.BAD_TOPIC: Reason.BAD_TOPIC,
    bus_pb2.Refusal.BAD_REQUEST: Reason.BAD_REQUEST,
}


class _Phase(enum.Enum):
    ASKING = enum.auto()
    """Wants a challenge, or a lease at once where an old cookie is still good."""
    PROVING = enum.auto()
    """Has answered a challenge."""
    HELD = enum.auto()
    REFUSED = enum.auto()
    CLOSED = enum.auto()


class Lease:
    """One lease, asked for and renewed as long as it is driven.

    `request` is the Subscribe with everything but `cookie`, `report` and
    `nonce`; the nonce must be random and new. The ledger is told what shows
    where a flow ends, and asked for the report of a renewal.
    """

    def __init__(self, request: bus_pb2.Subscribe, nonce: int, ledger: Ledger, now: float) -> None:
        self._request = request
        self._request.nonce = nonce
        self._ledger = ledger
        self._phase = _Phase.ASKING
        self._until = 0.0
        self._unanswered = False
        self._retry_after = RETRY_SECONDS_MIN
        self.requests_unheard = 0
        """Requests since the bus last said anything."""
        self.transmit_at = now
        """When `poll_transmit` has something next; never, once it ended."""
        self.bus: Optional[int] = None
        """The sender id of the bus that granted the newest lease."""
        self.refusal: Optional[Reason] = None
        """The newest refusal since the last lease."""
        self.lapses = 0
        """How often a lease ended before it was renewed."""
        self.bus_restarts = 0
        """How often a bus of another id granted the lease."""

    @property
    def held(self) -> bool:
        """Whether the bus sends events."""
        return self._phase is _Phase.HELD

    @property
    def refused(self) -> Optional[Reason]:
        """Why the bus refused for good, after which nothing more is said."""
        return self.refusal if self._phase is _Phase.REFUSED else None

    @property
    def ended(self) -> bool:
        """Refused for good, or closed."""
        return self._phase in (_Phase.REFUSED, _Phase.CLOSED)

    def poll_transmit(self, now: float) -> Optional[bytes]:
        """The datagram that is due, or nothing. If it cannot be sent, it counts
        as one that got lost."""
        if now < self.transmit_at:
            return None
        if not self._unanswered:
            self._unanswered = True
            self._ledger.begin_request()
        if self.held and now >= self._until:
            # The cookie is kept: it may still be good for another lease.
            self._end_lease(_Phase.ASKING)
        self.transmit_at = now + self._retry_after
        self._retry_after = min(2 * self._retry_after, RETRY_SECONDS_MAX)
        self.requests_unheard += 1
        self._put_report()
        return padded(bus_pb2.Frame(subscribe=self._request))

    def handle_answer(self, now: float, frame: bus_pb2.Frame) -> bool:
        """Takes a control message from the bus's address; says if it is believed."""
        if not self._unanswered or self.ended:
            return False
        kind = frame.WhichOneof("control")
        if kind == "challenge" and self._is_ours(frame.challenge):
            self._handle_challenge(now, frame.challenge.cookie)
        elif kind == "lease" and self._is_ours(frame.lease):
            self._handle_lease(now, frame)
        elif kind == "refusal" and frame.refusal.nonce == self._request.nonce:
            self._handle_refusal(now, frame.refusal.reason)
        else:
            return False
        self.requests_unheard = 0
        return True

    def close(self) -> Optional[bytes]:
        """Gives the lease up. What it returns is to be sent once; if it gets
        lost, the lease lapses by itself."""
        if self.ended:
            return None
        self._phase = _Phase.CLOSED
        self.transmit_at = math.inf
        if not self._request.cookie:
            return None
        unsubscribe = bus_pb2.Unsubscribe(cookie=self._request.cookie, nonce=self._request.nonce)
        return padded(bus_pb2.Frame(unsubscribe=unsubscribe))

    def _is_ours(self, answer: bus_pb2.Challenge | bus_pb2.Lease) -> bool:
        return (
            answer.nonce == self._request.nonce and 1 <= len(answer.cookie) <= _COOKIE_BYTES_MAX
        )

    def _handle_challenge(self, now: float, cookie: bytes) -> None:
        """A challenge is answered at once, but the next ones before a lease only
        by the timer: a bus that takes no cookie must not be asked in a circle."""
        self._request.cookie = cookie
        # The bus knows of no lease, so its next events come on a new flow. They
        # can arrive before its answer.
        self._ledger.doubt_flow()
        if self._phase is _Phase.PROVING:
            return
        if self.held:
            self._end_lease(_Phase.PROVING)
        self._phase = _Phase.PROVING
        self.transmit_at = now

    def _handle_lease(self, now: float, frame: bus_pb2.Frame) -> None:
        lease, stamp = frame.lease, frame.stamp
        if self.bus != lease.bus:
            self.bus_restarts += self.bus is not None
            self.bus = lease.bus
            self._ledger.begin_bus()
        if frame.HasField("stamp") and stamp.sender == lease.bus:
            self._ledger.handle_grant(now, stamp.sequence, stamp.dropped)
        elif not self.held:
            self._ledger.doubt_flow()
        seconds = max(lease.lease_ms / 1000, _RENEWALS_PER_LEASE * RENEWAL_SECONDS_MIN)
        self._phase = _Phase.HELD
        self._until = now + seconds
        self.transmit_at = now + min(seconds / _RENEWALS_PER_LEASE, RENEWAL_SECONDS_MAX)
        self._retry_after = RETRY_SECONDS_MIN
        self._unanswered = False
        self._request.cookie = lease.cookie
        self.refusal = None

    def _handle_refusal(self, now: float, reason: int) -> None:
        if reason in _FINAL:
            self._phase = _Phase.REFUSED
            self.transmit_at = math.inf
            self.refusal = _FINAL[reason]
        elif reason == bus_pb2.Refusal.UNKNOWN_LEASE:
            self._begin_again(now)
        else:
            # Asking again may help, so it goes on by the timer.
            full = reason == bus_pb2.Refusal.FULL
            self.refusal = Reason.FULL if full else Reason.OTHER

    def _begin_again(self, now: float) -> None:
        """At once where a lease stood until now, else by the timer. Whoever has
        answered a challenge has had its one answer at once: another after this
        is no first one."""
        self._request.cookie = b""
        if self.held:
            self._end_lease(_Phase.ASKING)
            self.transmit_at = now

    def _end_lease(self, phase: _Phase) -> None:
        self._phase = phase
        self.lapses += 1
        self._ledger.lapse()

    def _put_report(self) -> None:
        if self.bus is None:
            return
        counts = self._ledger.of_bus()
        report = self._request.report
        report.bus = self.bus
        # Sums of absurd stamps do not fit their fields.
        report.received = min(counts.received, _UINT64_MAX)
        report.lost = min(counts.lost, _UINT64_MAX)
        report.dropped = min(self._ledger.dropped_here_of_bus, _UINT64_MAX)


def padded(frame: bus_pb2.Frame) -> bytes:
    """The frame's bytes, so many that a bus can answer them whoever sent them."""
    encoded: bytes = frame.SerializeToString()
    missing = _REQUEST_BYTES_MIN - len(encoded)
    if missing <= 0:
        return encoded
    # The padding's own key and length are two bytes of it.
    padding: bytes = bus_pb2.Frame(padding=bytes(max(missing - 2, 1))).SerializeToString()
    return encoded + padding
