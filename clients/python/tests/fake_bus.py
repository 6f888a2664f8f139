"""A bus of a few lines, for the sockets' sake: it answers and sends as told.

It does what the contract says of a bus towards one subscriber, over UDP or Unix:
challenge, grant, and send events from a socket apart. Tests drive it step by
step from their own thread, so it needs none.
"""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from hailmary._wire import bus_pb2

# Far more than any step takes; only a failing test waits for it.
PATIENCE_SECONDS = 60.0


class FakeBus:
    """Listens at `port`, any free one by default, or at `path`."""

    def __init__(self, path: Optional[Path] = None, port: int = 0) -> None:
        family = socket.AF_INET if path is None else socket.AF_UNIX
        self.ingress = socket.socket(family, socket.SOCK_DGRAM)
        self.ingress.bind(("127.0.0.1", port) if path is None else str(path))
        self.ingress.settimeout(PATIENCE_SECONDS)
        self.egress = socket.socket(family, socket.SOCK_DGRAM)
        self.path = path
        self.id = secrets.randbits(64)
        self.sequence = 0
        self.dropped = 0
        self.subscriber: Any = None

    @property
    def address(self) -> str:
        """As a client's argument."""
        if self.path is not None:
            return f"unix://{self.path}"
        host, port = self.ingress.getsockname()
        return f"{host}:{port}"

    @property
    def port(self) -> int:
        """The UDP port."""
        return int(self.ingress.getsockname()[1])

    def receive(self) -> bus_pb2.Frame:
        """The next frame that somebody sent."""
        datagram, self.subscriber = self.ingress.recvfrom(65_536)
        return bus_pb2.Frame.FromString(datagram)

    def receive_all(self) -> list[bus_pb2.Frame]:
        """All that are in the socket."""
        self.ingress.setblocking(False)
        frames = []
        try:
            while True:
                frames.append(self.receive())
        except BlockingIOError:
            return frames
        finally:
            self.ingress.settimeout(PATIENCE_SECONDS)

    def answer(self) -> None:
        """Takes one request and answers it: a challenge, then the lease."""
        request = self.receive().subscribe
        if request.cookie == b"cookie of %d" % self.id:
            self.grant(request.nonce)
        else:
            self.challenge(request.nonce)

    def let_in(self, lease_ms: int = 30_000) -> None:
        """Answers requests till one proves its address, and grants it the lease.
        Where time is short, a first request comes more than once."""
        while True:
            request = self.receive().subscribe
            if request.cookie == b"cookie of %d" % self.id:
                self.grant(request.nonce, lease_ms)
                return
            self.challenge(request.nonce)

    def challenge(self, nonce: int) -> None:
        """Wants the address proven."""
        cookie = b"cookie of %d" % self.id
        self._reply(bus_pb2.Frame(challenge=bus_pb2.Challenge(cookie=cookie, nonce=nonce)))

    def grant(self, nonce: int, lease_ms: int = 30_000) -> None:
        """Grants the lease."""
        cookie = b"cookie of %d" % self.id
        lease = bus_pb2.Lease(bus=self.id, lease_ms=lease_ms, cookie=cookie, nonce=nonce)
        self._reply(bus_pb2.Frame(lease=lease, stamp=self._stamp()))

    def refuse(self, reason: "bus_pb2.Refusal.Reason") -> None:
        """Takes one request and refuses it."""
        nonce = self.receive().subscribe.nonce
        self._reply(bus_pb2.Frame(refusal=bus_pb2.Refusal(reason=reason, nonce=nonce)))

    def send(self, *payloads: bytes) -> None:
        """Sends events to the subscriber."""
        events = [bus_pb2.Event(topic="a.b", payload=payload) for payload in payloads]
        frame = bus_pb2.Frame(events=events, stamp=self._stamp())
        self.sequence += len(events)
        self.egress.sendto(frame.SerializeToString(), self.subscriber)

    def lose(self, events: int) -> None:
        """Sends so many events, which get lost."""
        self.sequence += events

    def drop(self, events: int) -> None:
        """Drops so many events itself."""
        self.sequence += events
        self.dropped += events

    def answer_ping(self, received: int, lost: int) -> bus_pb2.Frame:
        """Takes a ping, which it returns, and tells what came of the sender's events."""
        asked = self.receive()
        pong = bus_pb2.Pong(nonce=asked.ping.nonce, bus=self.id, received=received, lost=lost)
        self._reply(bus_pb2.Frame(pong=pong))
        return asked

    def close(self) -> None:
        """Is gone, and its path with it."""
        self.ingress.close()
        self.egress.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _stamp(self) -> bus_pb2.Stamp:
        return bus_pb2.Stamp(sender=self.id, sequence=self.sequence, dropped=self.dropped)

    def _reply(self, frame: bus_pb2.Frame) -> None:
        self.ingress.sendto(frame.SerializeToString(), self.subscriber)


@contextmanager
def fake_bus(path: Optional[Path] = None, port: int = 0) -> Iterator[FakeBus]:
    """A bus that is closed in the end."""
    bus = FakeBus(path, port)
    try:
        yield bus
    finally:
        bus.close()
