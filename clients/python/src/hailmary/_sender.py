"""One sender towards one bus, as the contract means it.

Owns the sender's id, the numbers of its events, their stamps, and the counts of
what became of them. It takes no lock, so it may be used by all threads and by
signal handlers at once; who takes a number first need not be first to send, and
whoever receives them takes that for datagrams that overtook each other.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass
from typing import Optional

from ._address import Peer
from ._count import Count
from ._encode import LAST_SEVEN_BITS, SEVEN_BITS, STAMP_START_BYTES, stamp_field
from ._link import FLAGS, Closed, Link, Send
from ._trouble import Trouble

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
    errno.EADDRNOTAVAIL: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.ENETUNREACH: "unreachable",
}

_REASONS = (
    "invalid",
    "too_large",
    "would_block",
    "no_buffer",
    "refused",
    "unreachable",
    "failed",
    "closed",
    "buffer_full",
)

trouble = Trouble(
    {
        **{reason: f"{reason}: events are dropped that are for" for reason in _REASONS},
        "bounced": "bounced: earlier events were lost that were for",
    }
)
"""Tells of each reason to drop by itself, and of what bounced."""


@dataclass(frozen=True)
class Pong:
    """What a bus told of a publisher's events. By then,

        sent = received + lost + in_flight
    """

    bus: int
    """The bus's sender id. Another one than before: the bus restarted, and
    counts what it has received since."""

    sent: int
    """Events that the publisher had handed to the kernel when the answer came."""

    received: int
    """Events that the bus received, each once."""

    lost: int
    """Events that the bus misses, by the stamps of what it received and of the
    question: lost on the way to it, or overtaken there, so it may fall again."""

    round_trip_seconds: float
    """From the question to its answer."""

    @property
    def in_flight(self) -> int:
        """Events of which the bus told neither: they were published while it
        answered, or before this run of it first heard of the publisher."""
        return self.sent - self.received - self.lost


@dataclass(frozen=True)
class PublisherStats:
    """What became of a publisher's events, so far and in this process. An event
    that waits in a batch or in the buffer is in no count yet."""

    sent: int = 0
    """Handed to the kernel; one that another thread is handing over at this moment
    counts already. What was lost later, only the bus can tell: asked by
    `Publisher.ping()`, it does, and then sent = received + lost + in flight."""

    invalid: int = 0
    """Dropped: no event, as its topic is none or a value has the wrong type. Only
    where `on_error="drop"` has them counted; else they are raised and in no count."""

    too_large: int = 0
    """Dropped: more bytes than the way to the bus takes."""

    would_block: int = 0
    """Dropped: the socket's or the bus's queue was full."""

    no_buffer: int = 0
    """Dropped: the kernel had no memory, or the device's queue was full."""

    refused: int = 0
    """Dropped: nobody was listening. Over UDP, see `bounced`."""

    unreachable: int = 0
    """Dropped: no way to the bus's host, or its address is not known."""

    failed: int = 0
    """Dropped: another error, such as no permission or a descriptor that the
    process closed."""

    closed: int = 0
    """Dropped: published after `close()`."""

    buffer_full: int = 0
    """Dropped: the buffer of `linger_ms` was full."""

    bounced: int = 0
    """How often the host of a UDP bus told that an earlier datagram found nobody
    listening. Those are in `sent` and lost; hosts do not tell it of each."""

    pong: Optional[Pong] = None
    """What the bus told when it was last asked, if it has been."""

    @property
    def dropped(self) -> int:
        """All that were dropped here, for whatever reason."""
        return sum(getattr(self, reason) for reason in _REASONS)

    @property
    def offered(self) -> int:
        """All that were published: sent or dropped."""
        return self.sent + self.dropped


# What the stamps of 128 numbers have in common: which 128 these are, what comes
# before the last seven bits of the number, those, what comes behind them, and how
# many drops they tell of. So a stamp is put together from few pieces, which change
# seldom. No NamedTuple, since only a plain tuple is unpacked fast.
_Stamps = tuple[int, bytes, list[bytes], bytes, int]


def _no_stamps(dropped: int) -> _Stamps:
    """None made yet that tell of so many drops."""
    return -1, b"", [], b"", dropped


# A stamp whose sequence is 0 leaves it out.
_NOTHING = [b""] * 128


class Sender:
    """Sends events, numbered and stamped, by a link that may be replaced."""

    def __init__(self, link: Link, bus: str) -> None:
        self.link = link
        self.bus = bus
        # 0 is what a stamp without a sender looks like.
        self._id = random.SystemRandom().randrange(1, 2**64)
        self._numbers = Count()
        self._next_number = self._numbers.next
        self._stamps = _no_stamps(0)
        self._drops = Count()
        self._drops_by_reason = {reason: Count() for reason in _REASONS}
        self._bounces = Count()
        self._pong: Optional[Pong] = None

    def send(self, events: bytes, count: int = 1) -> None:
        """Sends so many events in a datagram, or drops and counts them."""
        # Before the number is taken: each drop that these tell of has a lower one.
        block, start, seven_bits, end, dropped = self._stamps
        number = self._next_number() if count == 1 else self._numbers.add(count)
        if number >> 7 != block:
            block, start, seven_bits, end, dropped = self._stamps_of(number, dropped)
        datagram = events + start + seven_bits[number & 127] + end
        link = self.link
        send = link.send
        try:
            send(datagram, FLAGS)
        except OSError as error:
            self._handle_failure(error, link, send, datagram, count)

    def drop(self, reason: str, error: object) -> None:
        """Counts an event as dropped that was never to be sent."""
        self._next_number()
        self._count_dropped(reason, 1, error)

    def move(self, peer: Peer) -> None:
        """Sends what comes later to another address."""
        self.link = self.link.towards(peer)

    def close(self) -> None:
        """Drops what comes later as `closed`."""
        self.link.close()

    def in_child(self) -> Sender:
        """Another sender to the same bus, with another id and counts of its own."""
        return Sender(self.link.in_child(), self.bus)

    def ping(self, timeout: float) -> Optional[Pong]:
        """Asks the bus what it received, and waits for the answer."""
        # Who never asks needs no protobuf.
        from ._ping import ask
        from ._wire import bus_pb2

        peer = self.link.peer
        if peer is None:
            return None
        dropped = self._drops.value
        stamp = bus_pb2.Stamp(sender=self._id, sequence=self._numbers.value, dropped=dropped)
        answer = ask(peer, stamp, timeout)
        if answer is None:
            return None
        told, seconds = answer
        sent = self.stats().sent
        self._pong = Pong(told.bus, sent, told.received, told.lost, seconds)
        return self._pong

    def stats(self) -> PublisherStats:
        """What became of the events so far."""
        # The drops are read first: each took its number before it was counted.
        drops = {reason: count.value for reason, count in self._drops_by_reason.items()}
        sent = self._numbers.value - sum(drops.values())
        return PublisherStats(sent=sent, bounced=self._bounces.value, pong=self._pong, **drops)

    def _stamps_of(self, number: int, dropped: int) -> _Stamps:
        """The stamps of the block of `number` that tell of so many drops."""
        stamps = self._make_stamps(number, dropped)
        # Number 0 has a block to itself, as no other is left out.
        self._stamps = stamps if number else _no_stamps(dropped)
        self._tell_drops()
        return stamps

    def _tell_drops(self) -> None:
        """Has the next stamps tell of all that were dropped until now."""
        while True:
            dropped = self._drops.value
            if self._stamps[4] == dropped:
                return
            self._stamps = _no_stamps(dropped)

    def _make_stamps(self, number: int, dropped: int) -> _Stamps:
        whole = stamp_field(self._id, number, dropped)
        if number == 0:
            return 0, whole, _NOTHING, b"", dropped
        start, end = whole[:STAMP_START_BYTES], whole[STAMP_START_BYTES + 1 :]
        return number >> 7, start, SEVEN_BITS if number >> 7 else LAST_SEVEN_BITS, end, dropped

    def _handle_failure(
        self, error: OSError, link: Link, send: Send, datagram: bytes, count: int
    ) -> None:
        """Drops the events, or sends them after all.

        A datagram that met "nobody" is tried once more. Over UDP the error spoke
        of an earlier one and took this one's place; over Unix the bus may have
        come back under the same path. So the first event after a restart
        arrives, and while the bus is away an event costs a failed system call.
        """
        if link.found_nobody(error, send):
            if not link.is_unix:
                self._count_bounced(error)
            try:
                link.send_again(send, datagram)
                return
            except OSError as second:
                error = second
        link.mend(error, send)
        self._count_dropped(_reason(error), count, error)

    def _count_bounced(self, error: OSError) -> None:
        self._bounces.next()
        trouble.tell("bounced", self.bus, error)

    def _count_dropped(self, reason: str, count: int, error: object) -> None:
        self._drops_by_reason[reason].add(count)
        self._drops.add(count)
        self._tell_drops()
        trouble.tell(reason, self.bus, error)


def _reason(error: OSError) -> str:
    if isinstance(error, Closed):
        return "closed"
    return _REASON_BY_ERRNO.get(error.errno or 0, "failed")
