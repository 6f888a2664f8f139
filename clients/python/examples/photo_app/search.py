"""The search feed: `search.index.>` into an SQLite full-text index.

What was lost is missing in the index until `rebuild` reads the database, which
has everything. An event that comes twice replaces itself.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from follow import close_on_signals, report

from hailmary import Subscription, subscribe

from . import database, events, settings

# How often what was indexed is committed, and the counts are told.
TELL_SECONDS = 0.25

FOUND_MAX = 10

_SCHEMA = "CREATE VIRTUAL TABLE IF NOT EXISTS documents USING fts5(name UNINDEXED, text);"
_SEARCH = "SELECT name FROM documents WHERE text MATCH ? LIMIT ?"
_ALL = """
SELECT 'photo/' || id, title FROM photos UNION ALL SELECT 'comment/' || id, text FROM comments
"""


def open_index(path: Path) -> sqlite3.Connection:
    index = database.connect(path, _SCHEMA)
    # An index that can be built anew needs no protection from a power cut.
    index.execute("PRAGMA synchronous = OFF")
    return index


def put(index: sqlite3.Connection, documents: Iterable[tuple[str, str]]) -> None:
    """Indexes documents by name and text."""
    rows = ((_row_id(name), name, text) for name, text in documents)
    index.executemany("INSERT OR REPLACE INTO documents (rowid, name, text) VALUES (?, ?, ?)", rows)


def rebuild(index: sqlite3.Connection, source: sqlite3.Connection) -> None:
    """Indexes what is in the application's database, and so mends every loss."""
    with index:
        put(index, source.execute(_ALL))


def find(path: Path, words: str) -> list[str]:
    """The names of documents that have these words."""
    index = open_index(path)
    quoted = " ".join('"' + word.replace('"', '""') + '"' for word in words.split())
    names = [name for (name,) in index.execute(_SEARCH, (quoted, FOUND_MAX))]
    index.close()
    return names


def feed(index: sqlite3.Connection, subscription: Subscription) -> None:
    """Indexes what comes, until the subscription is closed."""
    tell_at = 0.0
    while not subscription.closed:
        event = subscription.recv(timeout=TELL_SECONDS)
        if event is not None:
            document = json.loads(event.payload)
            put(index, [(document["name"], document["text"])])
        if time.monotonic() >= tell_at:
            index.commit()
            report(subscription, "indexing", at=time.time())
            tell_at = time.monotonic() + TELL_SECONDS


def _row_id(name: str) -> int:
    """The same for the same name, in 63 bits, which is what SQLite has."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def main() -> None:
    index = open_index(settings.index())
    with subscribe(f"{events.DOCUMENTS}.>", name="search") as subscription:
        close_on_signals(subscription)
        feed(index, subscription)
    index.commit()
    index.close()


if __name__ == "__main__":
    main()
