"""Several events in one datagram, which costs everybody far less than one each.

Owns the events that wait for the datagram to be full, and the rule when it is.
It refuses to wait for more: nothing but the program's next step sends it.
"""

from __future__ import annotations

import socket
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import accumulate, chain, islice
from operator import add
from types import TracebackType
from typing import Callable, Optional

from ._address import Peer
from ._encode import DATAGRAM_BYTES_MAX, STAMP_BYTES_MAX, Bulk, event_field
from ._sender import Sender

BATCH_BYTES_NETWORK = 1_400
"""How large a datagram grows over a network: what passes an Ethernet of 1,500
bytes and usual tunnels in one piece. One in pieces is lost if any of them is."""

BATCH_BYTES_HOST = 16_384
"""How large a datagram grows on this host, over loopback or a Unix socket. Most
of what large datagrams gain is gained here, and a socket with the kernel's usual
buffer still holds ten of them."""

# Payloads of a bulk that are worked off in one go: a list of 8 kB.
_PAYLOADS_AT_ONCE = 1024


def batch_bytes(peer: Optional[Peer]) -> int:
    """How large a datagram to the bus grows unless told otherwise."""
    if peer is None or peer.family == socket.AF_UNIX:
        return BATCH_BYTES_HOST
    host = ip_address(str(peer.address[0]).partition("%")[0])
    mapped = getattr(host, "ipv4_mapped", None) or host
    return BATCH_BYTES_HOST if mapped.is_loopback else BATCH_BYTES_NETWORK


class Bundle:
    """Events on their way into one datagram of a sender."""

    def __init__(self, sender: Sender, bytes_max: int) -> None:
        self.sender = sender
        self.link = sender.link
        # The stamp comes beside them, and is counted at its largest.
        self._events_bytes_max = bytes_max - STAMP_BYTES_MAX
        self._parts: list[bytes] = []
        self._bytes = 0
        self._events = 0

    def add(self, event: bytes) -> None:
        """Adds an event, behind sending the others if it does not fit beside
        them. One that is larger than the datagram may be goes alone."""
        self._bytes += len(event)
        if self._bytes > self._events_bytes_max:
            self._send()
            self._bytes = len(event)
        self._parts.append(event)
        self._events += 1

    def add_many(self, bulk: Bulk, payloads: list[bytes], lengths: list[int]) -> None:
        """Adds an event of the bulk for each payload; `lengths` are theirs."""
        ends, join = _layout(bulk, payloads, lengths)
        begin = 0
        while begin < len(payloads):
            fitting = ends[begin] + self._events_bytes_max - self._bytes
            end = bisect_right(ends, fitting) - 1
            if end <= begin and self._events:
                self.send()
                continue
            end = max(end, begin + 1)
            joined = join(begin, end)
            # Each joint ends the event before it, and the first has none before it.
            self._parts.append(joined[len(bulk.tail) :] + bulk.tail)
            self._bytes += len(joined)
            self._events += end - begin
            begin = end

    def send(self) -> None:
        """Sends what there is."""
        self._send()
        self._bytes = 0

    def _send(self) -> None:
        events, parts = self._events, self._parts
        self._events, self._parts = 0, []
        if events:
            self.sender.send(b"".join(parts), events)


def _layout(
    bulk: Bulk, payloads: list[bytes], lengths: list[int]
) -> tuple[Sequence[int], Callable[[int, int], bytes]]:
    """How many bytes there are up to each event, the last one's end included, and
    what joins a range of them. Payloads of one length need no look at each."""
    if min(lengths) == max(lengths):
        joint = bulk.joints[lengths[0]]
        size = len(joint) + lengths[0]
        ends = range(0, (len(payloads) + 1) * size, size)
        return ends, lambda begin, end: joint + joint.join(payloads[begin:end])
    joints = [*map(bulk.joints.__getitem__, lengths)]
    sizes = map(add, map(len, joints), lengths)

    def join(begin: int, end: int) -> bytes:
        return b"".join(chain.from_iterable(zip(joints[begin:end], payloads[begin:end])))

    return [*accumulate(sizes, initial=0)], join


def _checked(bytes_max: Optional[int]) -> Optional[int]:
    if bytes_max is None:
        return None
    if not isinstance(bytes_max, int):
        raise TypeError(f"bytes_max is an int, not {type(bytes_max).__name__}")
    if not 1 <= bytes_max <= DATAGRAM_BYTES_MAX:
        raise ValueError(f"bytes_max is from 1 to {DATAGRAM_BYTES_MAX}, not {bytes_max}")
    return bytes_max


def _each(payloads: Iterable[bytes]) -> Iterator[bytes]:
    """Raises `TypeError` for what is one payload, or none."""
    if isinstance(payloads, (bytes, bytearray, str)):
        raise TypeError(f"payloads are several, not one {type(payloads).__name__}")
    return iter(payloads)


class Batch:
    """Publishes several events in a datagram, as `Publisher.batch()` says.

    It belongs to one thread, and no signal handler may use it. In a child after
    a fork it is empty: what it held is the parent's.
    """

    def __init__(
        self,
        current_sender: Callable[[], Optional[Sender]],
        reject: Callable[[Exception], None],
        bytes_max: Optional[int],
    ) -> None:
        self._current_sender = current_sender
        self._reject = reject
        self._bytes_max = _checked(bytes_max)
        self._bundle: Optional[Bundle] = None
        self._bulk: Optional[Bulk] = None

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: bytes = b"",
        attributes: Optional[Mapping[str, str]] = None,
        time_unix_nano: Optional[int] = None,
    ) -> None:
        """Adds one event, as `Publisher.publish()` takes it. If it does not fit
        beside the others, those are sent before."""
        bundle = self._bundle_of_this_process()
        if bundle is None:
            return
        try:
            if time_unix_nano is None:
                time_unix_nano = time.time_ns()
            event = event_field(topic, payload, key, attributes, time_unix_nano)
        except Exception as error:
            self._reject(error)
        else:
            bundle.add(event)

    def extend(
        self, topic: str, payloads: Iterable[bytes], *, time_unix_nano: Optional[int] = None
    ) -> None:
        """Adds an event of one topic for each payload: for very many, a fraction
        of what `publish()` costs. All have the time of this call by default.

        Raises what `publish()` does; the payloads before that one are added.
        """
        if self._bundle_of_this_process() is None:
            return
        if time_unix_nano is None:
            time_unix_nano = time.time_ns()
        try:
            waiting = _each(payloads)
        except TypeError as error:
            self._reject(error)
            return
        while True:
            # So nothing of the caller's runs in the midst of it, and memory is bounded.
            some = list(islice(waiting, _PAYLOADS_AT_ONCE))
            if not some:
                return
            self._extend(topic, some, time_unix_nano)

    def flush(self) -> None:
        """Sends what there is, or drops and counts it. Never waits."""
        bundle = self._bundle_of_this_process()
        if bundle is not None:
            bundle.send()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.flush()

    def _bundle_of_this_process(self) -> Optional[Bundle]:
        sender = self._current_sender()
        bundle = self._bundle
        if sender is None:
            return None
        if bundle is not None and bundle.sender is sender:
            if bundle.link is sender.link:
                return bundle
            bundle.send()  # The bus is another by now, and takes other sizes.
        bytes_max = self._bytes_max
        if bytes_max is None:
            bytes_max = batch_bytes(sender.link.peer)
        self._bundle = Bundle(sender, bytes_max)
        return self._bundle

    def _extend(self, topic: str, payloads: list[bytes], time_unix_nano: int) -> None:
        bundle = self._bundle_of_this_process()
        bulk = self._bulk_of(topic, time_unix_nano)
        lengths = None if bulk is None else bulk.lengths(payloads)
        if bundle is None or bulk is None or lengths is None:
            for payload in payloads:
                self.publish(topic, payload, time_unix_nano=time_unix_nano)
        else:
            bundle.add_many(bulk, payloads, lengths)

    def _bulk_of(self, topic: str, time_unix_nano: int) -> Optional[Bulk]:
        """`None` if `publish()` has to say what is wrong."""
        try:
            if self._bulk is None or not self._bulk.is_of(topic, time_unix_nano):
                self._bulk = Bulk(topic, time_unix_nano)
        except (TypeError, ValueError):
            return None
        return self._bulk
