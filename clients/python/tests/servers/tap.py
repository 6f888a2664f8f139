"""A way to the bus that writes down who sent what.

Owns a Unix socket that publishers take for the bus's, and one account for each
sender id that it sees. Every datagram goes on to the real bus as it is. A Unix
socket loses nothing: a full one makes the sender drop and count. So each
account, the publisher's own counts and the bus's must agree exactly.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from real_bus import RealBus

from hailmary._wire import bus_pb2

from .running import wait_until

# How long the tap looks at its socket before it looks whether it is to end.
_TURN_SECONDS = 0.05


@dataclass
class Account:
    """What one sender sent, by its stamps and by what came."""

    received: int = 0
    offered: int = 0
    dropped: int = 0
    dropped_at_first: Optional[int] = None
    """As the first frame told. The bus knows nothing of what was before it heard
    of a sender."""
    is_in_order: bool = True
    """Whether each frame told of all before it: those that threads send at once
    may overtake each other, or be stamped before another's drop is counted."""
    pids: set[int] = field(default_factory=set)
    payloads: list[dict[str, Any]] = field(default_factory=list)

    def book(self, frame: bus_pb2.Frame) -> None:
        """Adds a frame."""
        events = [json.loads(event.payload) for event in frame.events]
        self.payloads += events
        self.pids.update(event["pid"] for event in events)
        before = frame.stamp.sequence - frame.stamp.dropped
        self.is_in_order &= before == self.received
        if self.dropped_at_first is None:
            self.dropped_at_first = frame.stamp.dropped
        self.received += len(events)
        self.dropped = max(self.dropped, frame.stamp.dropped)
        self.offered = max(self.offered, frame.stamp.sequence + len(events))


class Tap:
    """Publishers send to `address`."""

    def __init__(self, directory: Path, bus: RealBus) -> None:
        self._bus = bus
        self._path = directory / "tap.sock"
        self.address = f"unix://{self._path}"
        self._lock = threading.Lock()
        self._accounts: dict[int, Account] = {}
        self._front = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._front.bind(str(self._path))
        self._front.settimeout(_TURN_SECONDS)
        self._onward = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._onward.connect(bus.unix[len("unix://") :])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def received(self) -> int:
        """Events that came."""
        with self._lock:
            return sum(account.received for account in self._accounts.values())

    def accounts(self) -> dict[int, Account]:
        """By sender id. Nobody publishes any more, or this is a moment's view."""
        with self._lock:
            return dict(self._accounts)

    def payloads(self) -> list[dict[str, Any]]:
        """Of all events that came."""
        with self._lock:
            accounts = list(self._accounts.values())
            return [payload for account in accounts for payload in account.payloads]

    def check(self, told: Iterable[Mapping[str, Any]]) -> None:
        """Holds the accounts against what the processes told of themselves, each
        with `pid` and the `sent` and `offered` of its last stats, and against
        the bus's. Whoever told must have ended publishing."""
        last = latest(told)
        sent = {pid: stats["sent"] for pid, stats in last.items()}
        wait_until(lambda: self._has_all_of(sent), f"the tap has {sent}; it has {self.by_pid()}")
        for account in self.accounts().values():
            assert len(account.pids) == 1, "processes share a sender id"
            assert account.received == account.offered - account.dropped, "lost, or not from 0"
        assert {pid: self.by_pid()[pid] for pid in sent} == sent
        self._check_bus()

    def by_pid(self) -> dict[int, int]:
        """How many events came from each process. A process is one sender."""
        with self._lock:
            came = [(pid, one.received) for one in self._accounts.values() for pid in one.pids]
        assert len(came) == len(dict(came)), "a process has several sender ids"
        return dict(came)

    def close(self) -> None:
        """Is gone."""
        self._stop.set()
        self._thread.join()
        self._front.close()
        self._onward.close()

    def _has_all_of(self, sent: Mapping[int, int]) -> bool:
        came = self.by_pid()
        return all(came.get(pid, 0) >= count for pid, count in sent.items())

    def _check_bus(self) -> None:
        """The bus took what came here, and says the same of what did not come."""
        wait_until(self._bus_has_all, "the bus has what the tap sent on")
        scrape = self._bus.scrape()
        assert scrape.total("ingress_events_total") == self.received
        assert scrape.total("ingress_dropped_frames_total") == 0
        accounts = self.accounts().values()
        told = sum(one.dropped for one in accounts)
        before = sum(one.dropped_at_first or 0 for one in accounts)
        dropped = scrape.total("ingress_sender_dropped_events_total")
        lost = scrape.total("ingress_lost_events_total")
        says = f"{lost} lost, {dropped} dropped; told {told}, {before} of them at first"
        if all(one.is_in_order for one in accounts):
            assert (lost, dropped) == (0, told - before), says
        else:
            # It takes a drop that is told late for a loss. It makes up none.
            assert lost + dropped <= told, says

    def _bus_has_all(self) -> bool:
        return self._bus.scrape().total("ingress_events_total") >= self.received

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                datagram = self._front.recv(65_536)
            except TimeoutError:
                continue
            self._onward.send(datagram)
            frame = bus_pb2.Frame.FromString(datagram)
            with self._lock:
                self._accounts.setdefault(frame.stamp.sender, Account()).book(frame)


def latest(told: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """What each process told last: threads tell in any order, counts only grow."""
    last: dict[int, Mapping[str, Any]] = {}
    for stats in told:
        before = last.get(stats["pid"])
        if before is None or before["offered"] <= stats["offered"]:
            last[stats["pid"]] = stats
    return last


@contextmanager
def tapped(directory: Path, bus: RealBus) -> Iterator[Tap]:
    """A tap that is gone in the end."""
    tap = Tap(directory, bus)
    try:
        yield tap
    finally:
        tap.close()
