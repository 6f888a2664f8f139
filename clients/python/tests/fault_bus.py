"""The bus of the fault cases: what it says, and the sockets that it says it at.

Its ids, cookies and payloads are told and not random, so that a case can name a
byte of a datagram. The other clients' runners have the same one.
"""

import contextlib
import os
import socket
from pathlib import Path
from typing import Any, Optional, Union

from hailmary._wire import bus_pb2

# Far more than any step takes; only a failing test waits for it.
PATIENCE_SECONDS = 60.0

# The first run of a bus; each later one has the next number.
FIRST_ID = 7277

# What fills a bus's queue, to the last place, and is no publisher's.
FILLERS = [bus_pb2.Frame(padding=bytes(size)).SerializeToString() for size in (1000, 1)]

LEASE_MS = 30_000


class Script:
    """What one run of a bus answers and sends. It opens no socket."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.sequence = 0
        self.dropped = 0
        self.lease_ms = LEASE_MS
        self.refusal: Optional[str] = None
        self.reports: list[bus_pb2.Report] = []
        self.has_granted = False
        self._leases = 0

    def answer(self, request: bus_pb2.Frame) -> Optional[bytes]:
        """A challenge, a lease, a refusal; nothing to who leaves."""
        asked = request.subscribe
        if request.WhichOneof("control") != "subscribe":
            return None
        if asked.HasField("report"):
            self.reports.append(asked.report)
        if self.refusal is not None:
            refusal = bus_pb2.Refusal(reason=self.refusal, nonce=asked.nonce)
            answer = bus_pb2.Frame(refusal=refusal)
        elif asked.cookie in (self._cookie("lease"), self._cookie("prove")):
            lease = bus_pb2.Lease(
                bus=self.id, lease_ms=self.lease_ms, cookie=self._cookie("lease"), nonce=asked.nonce
            )
            answer = bus_pb2.Frame(lease=lease, stamp=self._stamp())
            self.has_granted = True
        else:
            challenge = bus_pb2.Challenge(cookie=self._cookie("prove"), nonce=asked.nonce)
            answer = bus_pb2.Frame(challenge=challenge)
        return bytes(answer.SerializeToString())

    def events(self, count: int) -> bytes:
        """A frame of so many events."""
        events = [
            bus_pb2.Event(topic="a.b", payload=b"%d" % ((self.sequence + at) % 10))
            for at in range(count)
        ]
        frame = bus_pb2.Frame(events=events, stamp=self._stamp())
        self.sequence += count
        return bytes(frame.SerializeToString())

    def drop(self, events: int) -> None:
        """Drops so many itself."""
        self.sequence += events
        self.dropped += events

    def forget(self) -> None:
        """Its side of the lease has ended: it knows no subscriber and no cookie,
        and the next lease has a flow of its own."""
        self._leases += 1
        self.sequence = self.dropped = 0

    def _cookie(self, kind: str) -> bytes:
        return f"{kind} {self.id} {self._leases}".encode()

    def _stamp(self) -> bus_pb2.Stamp:
        return bus_pb2.Stamp(sender=self.id, sequence=self.sequence, dropped=self.dropped)


def kind_of(request: bus_pb2.Frame) -> str:
    """What a subscriber says by it: by the cookie that it carries."""
    if request.WhichOneof("control") == "unsubscribe":
        return "leave"
    cookie: bytes = request.subscribe.cookie
    return {b"": "ask", b"prove": "prove", b"lease": "renew"}[cookie.split(b" ")[0]]


def spoilt(datagram: bytes, way: dict[str, int]) -> bytes:
    """What arrives of a datagram: its first bytes, or all with one byte changed."""
    if "keep" in way:
        return datagram[: way["keep"]]
    changed = bytearray(datagram)
    changed[way["at"]] ^= way["xor"]
    return bytes(changed)


def stranger_says(what: str, id: int) -> bytes:
    """A datagram of somebody who knows neither the bus's id nor the nonce."""
    if what == "events":
        return Script(id + 1000).events(2)
    frames = {
        "lease": bus_pb2.Frame(lease=bus_pb2.Lease(bus=id, lease_ms=1, cookie=b"c", nonce=2)),
        "refusal": bus_pb2.Frame(
            refusal=bus_pb2.Refusal(reason=bus_pb2.Refusal.NOT_ALLOWED, nonce=2)
        ),
    }
    return b"\xff" if what == "garbage" else bytes(frames[what].SerializeToString())


class Sockets:
    """Where a bus is: at a UDP port, or at a path that is a link to its socket.

    It may be there or not, and clients have one address all the while.
    """

    def __init__(self, transport: str, directory: Path) -> None:
        self._unix = transport == "unix"
        self._family = socket.AF_UNIX if self._unix else socket.AF_INET
        self._link = directory / "bus.sock"
        self._moves = 0
        self._port = 0
        self._ingress: Optional[socket.socket] = None
        self.egress = socket.socket(self._family, socket.SOCK_DGRAM)
        self.egress.setblocking(False)
        if not self._unix:
            self._reserve_port()

    @property
    def address(self) -> str:
        """As a client's argument."""
        return f"unix://{self._link}" if self._unix else f"127.0.0.1:{self._port}"

    @property
    def descriptor(self) -> int:
        """Of the socket that it listens at; -1 where it does not."""
        return -1 if self._ingress is None else self._ingress.fileno()

    def start(self) -> None:
        """Listens at the address."""
        self._ingress = socket.socket(self._family, socket.SOCK_DGRAM)
        self._ingress.bind(str(self._path) if self._unix else ("127.0.0.1", self._port))
        self._ingress.setblocking(False)
        if self._unix:
            self._lead_to(self._path)

    def kill(self) -> None:
        """Is gone, and its path is not."""
        if self._ingress is not None:
            self._ingress.close()
            self._ingress = None

    def stop(self) -> None:
        """Is gone, and its path with it."""
        self.kill()
        self._path.unlink(missing_ok=True)

    def move(self) -> None:
        """Listens elsewhere. A link leads there; a port tells nobody."""
        self.stop()
        self._moves += 1
        if self._unix:
            self.start()

    def fill(self) -> None:
        """Its queue takes no more."""
        assert self._ingress is not None
        if self._unix:
            self._fill_unix()
            return
        self._ingress.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for filler in FILLERS:
            for _ in range(50):
                self.egress.sendto(filler, ("127.0.0.1", self._port))

    def read(self) -> Optional[tuple[bus_pb2.Frame, Any]]:
        """The next frame in its queue and who sent it, if there is one."""
        while self._ingress is not None:
            try:
                datagram, source = self._ingress.recvfrom(65_536)
            except BlockingIOError:
                return None
            if datagram not in FILLERS:
                return bus_pb2.Frame.FromString(datagram), source
        return None

    def answer(self, datagram: bytes, client: Any) -> None:
        """Sends from the address that it listens at."""
        assert self._ingress is not None
        self._ingress.sendto(datagram, client)

    def close(self) -> None:
        """The case is over."""
        self.stop()
        self.egress.close()

    @property
    def _path(self) -> Path:
        return self._link.with_name(f"socket-{self._moves}")

    def _reserve_port(self) -> None:
        with socket.socket(self._family, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    def _lead_to(self, path: Path) -> None:
        new = self._link.with_name("new")
        new.symlink_to(path)
        os.replace(new, self._link)

    def _fill_unix(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.egress.sendto(FILLERS[-1], str(self._path))


Count = Union[int, dict[str, int]]


def fits(count: int, expected: Count) -> bool:
    """Whether it is what a case says: a number, or `min` and `max`, both included."""
    if isinstance(expected, int):
        return count == expected
    assert expected and expected.keys() <= {"min", "max"}, expected
    return expected.get("min", 0) <= count <= expected.get("max", 2**64)


def wrong_counts(counts: dict[str, int], expected: dict[str, Count]) -> dict[str, str]:
    """Those that are not as expected; what is not named is 0."""
    assert expected.keys() <= counts.keys(), f"no such count: {expected.keys() - counts.keys()}"
    return {
        name: f"{count}, not {expected.get(name, 0)}"
        for name, count in counts.items()
        if not fits(count, expected.get(name, 0))
    }
