"""What a process under test says of itself.

Owns no process and no publisher. A line is written by one system call, so those
of many processes and threads do not mix.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from typing import Any

from hailmary import Publisher


def facts(publisher: Publisher, **more: Any) -> dict[str, Any]:
    """The counts of this process and the datagram sockets that it has."""
    stats = publisher.stats()
    return {
        "pid": os.getpid(),
        "sent": stats.sent,
        "dropped": stats.dropped,
        "offered": stats.offered,
        "sockets": datagram_sockets(),
        **more,
    }


def tell(**told: Any) -> None:
    """Prints a line of JSON."""
    os.write(1, (json.dumps(told) + "\n").encode())


def publish(publisher: Publisher, count: int, topic: str = "servers.test", **more: Any) -> None:
    """So many events that say who published them, numbered from 0."""
    for number in range(count):
        payload = {"pid": os.getpid(), "number": number, **more}
        publisher.publish(topic, json.dumps(payload).encode())


def publish_until_sent(publisher: Publisher, topic: str = "servers.test", **more: Any) -> None:
    """Till one is sent: its stamp tells of all that were dropped before."""
    sent = publisher.stats().sent
    while publisher.stats().sent == sent:
        publish(publisher, 1, topic, **more)


def datagram_sockets() -> list[int]:
    """The inodes of this process's open datagram sockets: no two sockets of a
    machine have the same at a time."""
    found = set()  # Other threads may be looking too, and hold copies.
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode) and _is_datagram(int(name)):
                found.add(status.st_ino)
    return sorted(found)


def _is_datagram(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return copy.type == socket.SOCK_DGRAM
