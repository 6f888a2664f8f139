"""A network between a client and a UDP bus that loses, reorders and doubles."""

import heapq
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# So many of a hundred datagrams are lost, so many of the others doubled.
LOST_PERCENT = 20
DOUBLED_PERCENT = 20

# How long a datagram may be underway: long enough for many to overtake it, and
# far shorter than anybody waits for one.
DELAY_SECONDS_MAX = 0.02

# How long the network looks away from its sockets at most.
_TURN_SECONDS = 0.01


class LossyWay:
    """Clients talk to `address` as if it were the bus's. What the bus sends goes
    to the one that spoke last."""

    def __init__(self, bus: str, seed: int) -> None:
        host, port = bus[len("udp://") :].rsplit(":", 1)
        self._bus = (host, int(port))
        self._rng = random.Random(seed)
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.bind(("127.0.0.1", 0))
        self._back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._back.bind(("127.0.0.1", 0))
        self._client: Any = None
        self._underway: list[tuple[float, int, socket.socket, bytes]] = []
        self._taken = 0
        self._calm = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where clients send."""
        host, port = self._front.getsockname()
        return f"{host}:{port}"

    def calm(self) -> None:
        """From now on, all that is sent arrives, once and in order."""
        self._calm.set()

    def storm(self) -> None:
        """No more."""
        self._calm.clear()

    def close(self) -> None:
        """Is gone."""
        self._stop.set()
        self._thread.join()
        self._front.close()
        self._back.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for arrived in select.select([self._front, self._back], [], [], self._wait())[0]:
                datagram, source = arrived.recvfrom(65_536)
                if arrived is self._front:
                    self._client = source
                self._take(self._back if arrived is self._front else self._front, datagram)
            self._deliver()

    def _wait(self) -> float:
        due = self._underway[0][0] - time.monotonic() if self._underway else _TURN_SECONDS
        return min(max(0.0, due), _TURN_SECONDS)

    def _take(self, onward: socket.socket, datagram: bytes) -> None:
        now = time.monotonic()
        if self._calm.is_set():
            # Behind all that is still underway.
            self._put(now + DELAY_SECONDS_MAX, onward, datagram)
            return
        if self._rng.randrange(100) < LOST_PERCENT:
            return
        for _ in range(2 if self._rng.randrange(100) < DOUBLED_PERCENT else 1):
            self._put(now + DELAY_SECONDS_MAX * self._rng.random(), onward, datagram)

    def _put(self, due: float, onward: socket.socket, datagram: bytes) -> None:
        self._taken += 1
        heapq.heappush(self._underway, (due, self._taken, onward, datagram))

    def _deliver(self) -> None:
        while self._underway and self._underway[0][0] <= time.monotonic():
            _, _, onward, datagram = heapq.heappop(self._underway)
            onward.sendto(datagram, self._client if onward is self._front else self._bus)


@contextmanager
def lossy_way(bus: str, seed: int) -> Iterator[LossyWay]:
    """A network that is gone in the end."""
    way = LossyWay(bus, seed)
    try:
        yield way
    finally:
        way.close()
