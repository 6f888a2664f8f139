"""Peers that know the wire and no client: so many that a process for each would be too dear.

A lease is asked for as any subscriber does, and then left to its fate or given back. Only the few
fields of the wire that this takes are written and read here.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Union

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
ANSWER_SECONDS = 1.0
DATAGRAM_BYTES_MAX = 65_507
EVENTS_BETWEEN_MAX = 1_000
# A first Subscribe is at least as long as its answer.
PADDING = bytes(64)

# Field numbers of Frame, and of the messages in it.
EVENTS, STAMP, SUBSCRIBE, UNSUBSCRIBE, CHALLENGE, LEASE, PADDING_FIELD = 1, 2, 3, 4, 5, 6, 15
COOKIE_OF = {CHALLENGE: 1, LEASE: 3}


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def of_bytes(field: int, value: bytes) -> bytes:
    return varint(field << 3 | BYTES) + varint(len(value)) + value


def of_varint(field: int, value: int) -> bytes:
    return varint(field << 3 | VARINT) + varint(value)


def of_fixed64(field: int, value: int) -> bytes:
    return varint(field << 3 | FIXED64) + struct.pack("<Q", value)


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Those that are bytes. The others are passed over."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        kind = tag & 7
        if kind == BYTES:
            length, at = read_varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind == VARINT:
            _, at = read_varint(message, at)
        else:
            at += {FIXED64: 8, FIXED32: 4}[kind]


def cookie(frame: bytes) -> bytes | None:
    """What a Challenge or a Lease has for the next request. None of anything else."""
    for field, message in fields(frame):
        if field in COOKIE_OF:
            return dict(fields(message)).get(COOKIE_OF[field])
    return None


# Where a datagram goes: a host and a port, or a path.
Place = Union[tuple[str, int], str]


class Lessee:
    """One address with a lease. It is dead, for all that the bus knows, once the block ends."""

    def __init__(self, one: socket.socket, bus: Place, name: str) -> None:
        self.socket, self.bus, self.name = one, bus, name
        self.nonce = random.getrandbits(64)
        self.cookie = b""

    def ask(self, pattern: str) -> bool:
        """For a lease, or for more of it; with another pattern, too. Whether it was granted."""
        return any(self.exchange(pattern) == LEASE for _ in range(2))

    def exchange(self, pattern: str) -> int | None:
        """One request. Which of Challenge and Lease was the answer, if one came in time; events that
        come between are thrown away."""
        wants = of_bytes(1, pattern.encode()) + of_bytes(3, self.name.encode())
        proof = of_bytes(5, self.cookie) if self.cookie else b""
        message = of_bytes(SUBSCRIBE, wants + proof + of_fixed64(10, self.nonce))
        if not self.send(message + of_bytes(PADDING_FIELD, PADDING)):
            return None
        # Python 3.9 has a name of its own for a timeout of sockets.
        with contextlib.suppress(socket.timeout):
            for _ in range(EVENTS_BETWEEN_MAX):
                answer = self.socket.recv(DATAGRAM_BYTES_MAX)
                proof = cookie(answer) or b""
                if proof:
                    self.cookie = proof
                    return LEASE if LEASE in dict(fields(answer)) else CHALLENGE
        return None

    def give_back(self) -> None:
        self.send(of_bytes(UNSUBSCRIBE, of_bytes(1, self.cookie) + of_fixed64(2, self.nonce)))

    def send(self, datagram: bytes) -> bool:
        """Whether it went: a Unix socket waits where the bus's queue is full."""
        with contextlib.suppress(socket.timeout):
            self.socket.sendto(datagram, self.bus)
            return True
        return False


@contextlib.contextmanager
def lessee(port: int, name: str) -> Iterator[Lessee]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.settimeout(ANSWER_SECONDS)
        yield Lessee(one, ("127.0.0.1", port), name)


@contextlib.contextmanager
def unix_lessee(path: Path, name: str) -> Iterator[Lessee]:
    """With a socket beside the bus's, which goes with it."""
    own = path.with_name(f"{name}.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(own))
        one.settimeout(ANSWER_SECONDS)
        try:
            yield Lessee(one, str(path), name)
        finally:
            own.unlink()


def frame(sender: int, sequence: int, topics: list[str]) -> bytes:
    stamp = of_bytes(STAMP, of_fixed64(1, sender) + of_varint(2, sequence))
    events = (of_bytes(EVENTS, of_bytes(1, topic.encode()) + of_bytes(2, b"x")) for topic in topics)
    return b"".join([stamp, *events])


class Publisher:
    """Publishes frames of events, each of another topic, and counts them in its stamps."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(("127.0.0.1", port))
        self.sender = random.getrandbits(64) | 1
        self.sent = 0

    def publish(self, topics: list[str]) -> None:
        self.socket.send(frame(self.sender, self.sent, topics))
        self.sent += len(topics)

    def introduce(self, topics: list[str]) -> None:
        """Others, each of which publishes a single event."""
        for topic in topics:
            self.socket.send(frame(random.getrandbits(64) | 1, 0, [topic]))

    def close(self) -> None:
        self.socket.close()
