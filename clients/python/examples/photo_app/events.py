"""What the application tells the bus: all of it may be lost, and nobody waits.

The index is built anew from the database when it is stale, and a spammer shows
by many signals, not by one. Each is one line where it happens; there is nothing
to catch and nothing to configure but `HAILMARY_BUS`.
"""

from __future__ import annotations

import json

from hailmary import Publisher, PublisherStats

DOCUMENTS = "search.index"
SIGNALS = "spam.signal"

# One for each process. It connects when it first publishes.
_publisher = Publisher()


def document(kind: str, id: int, text: str) -> None:
    """Something that can be searched for is new."""
    name = f"{kind}/{id}"
    payload = json.dumps({"name": name, "text": text}).encode()
    _publisher.publish(f"{DOCUMENTS}.{kind}", payload, key=name.encode())


def signal(kind: str, user: str) -> None:
    """A user did something that spammers do a lot. The key leads all signals of
    a user to the same worker."""
    _publisher.publish(f"{SIGNALS}.{kind}", user.encode(), key=user.encode())


def stats() -> PublisherStats:
    """What became of this process's events."""
    return _publisher.stats()
