"""What waits between the one who receives and the one who handles.

Owns the bound of that: what finds no room is refused, and whoever offered it
counts it as dropped. It drops the newest, since what waits longest is handled
next. One side offers and the other takes; they may be two threads, and then
none waits for a lock of the other's.
"""

from __future__ import annotations

import queue
from typing import Generic, Optional, TypeVar

EVENTS_MAX = 10_000
"""Events that wait at most: what a few of the longest datagrams hold, so that a
burst finds room, and some megabytes of memory."""

BYTES_MAX = 16 * 1024 * 1024
"""Bytes of the datagrams that waiting events came in; one datagram more may
wait. It bounds the memory where events are long."""

Item = TypeVar("Item")


class HandOver(Generic[Item]):
    """Items in batches, first in, first out."""

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._batches: queue.SimpleQueue[Optional[tuple[list[Item], int]]] = queue.SimpleQueue()
        # Sums, each of which one side alone writes.
        self._put = self._put_bytes = 0
        self._taken = self._taken_bytes = 0

    def __len__(self) -> int:
        return self._put - self._taken

    @property
    def has_room(self) -> bool:
        """Whether it takes at least one item more."""
        return (
            len(self) < self._items_max and self._put_bytes - self._taken_bytes < self._bytes_max
        )

    def offer(self, items: list[Item], size_bytes: int) -> int:
        """Takes the first ones, as many as there is room for; says how many of
        the last it refused."""
        room = self._items_max - len(self) if self.has_room else 0
        if room > 0:
            self.put(items[:room], size_bytes)
        return max(0, len(items) - room)

    def put(self, items: list[Item], size_bytes: int = 0) -> None:
        """Takes them whether there is room or not."""
        self._put += len(items)
        self._put_bytes += size_bytes
        self._batches.put((items, size_bytes))

    def end(self) -> None:
        """Nothing more is put: `wait` says so behind the last batch."""
        self._batches.put(None)

    def take(self) -> list[Item]:
        """The next batch; an empty one if there is none now."""
        try:
            return self._take(self._batches.get_nowait())
        except queue.Empty:
            return []

    def wait(self) -> list[Item]:
        """The next batch, once there is one; an empty one at the end."""
        return self._take(self._batches.get())

    def _take(self, batch: Optional[tuple[list[Item], int]]) -> list[Item]:
        if batch is None:
            return []
        items, size_bytes = batch
        self._taken += len(items)
        self._taken_bytes += size_bytes
        return items
