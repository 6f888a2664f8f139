"""Feeds an SQLite full-text index from `search.index.>`, or asks it.

    python index.py packages.db
    python index.py packages.db --query "http server"

An index is a good use of the bus: it is rebuilt now and then from what it
indexes, so an event that got lost is a stale entry for a while and no more.
Entries are keyed by the package's name, so an event that comes twice is no harm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Optional

from follow import close_on_signals, marker_of, report

from hailmary import Subscription, subscribe

# How many packages are written in one go. While that lasts, a few milliseconds,
# events wait in the socket's buffer, which takes a few hundred.
BATCH_PACKAGES = 50

# How long what was written waits for a commit, which takes far longer than
# writing it.
COMMIT_SECONDS = 1.0

_CREATE = """
CREATE VIRTUAL TABLE IF NOT EXISTS packages
USING fts5(name, summary, description, version UNINDEXED, section UNINDEXED)
"""
_PUT = """
INSERT OR REPLACE INTO packages (rowid, name, summary, description, version, section)
VALUES (?, ?, ?, ?, ?, ?)
"""

# A word in the name says most of what a package is, one in the summary more than
# one in the description.
_SEARCH = """
SELECT name, summary FROM packages WHERE packages MATCH ?
ORDER BY bm25(packages, 4.0, 8.0, 1.0) LIMIT ?
"""


class Index:
    """A full-text index of packages in a file."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path)
        # A rebuilt index needs no protection from a power cut.
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute(_CREATE)
        self._batch: list[bytes] = []
        self._committed_at = time.monotonic()

    def add(self, payload: bytes) -> None:
        """Takes a package as it was published."""
        self._batch.append(payload)
        if len(self._batch) >= BATCH_PACKAGES:
            self.write()

    def write(self) -> None:
        """Writes what was added."""
        rows = [_row(json.loads(payload)) for payload in self._batch]
        self._batch.clear()
        self._database.executemany(_PUT, rows)
        if time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self._commit()

    def flush(self) -> None:
        """Writes what was added and makes it visible to other connections."""
        self.write()
        self._commit()

    def _commit(self) -> None:
        self._database.commit()
        self._committed_at = time.monotonic()

    def search(self, query: str, limit: int = 10) -> list[tuple[str, str]]:
        """Names and summaries, the best first."""
        words = " ".join('"' + word.replace('"', '""') + '"' for word in query.split())
        return self._database.execute(_SEARCH, (words, limit)).fetchall()

    def count(self) -> int:
        """How many packages are in it."""
        (rows,) = self._database.execute("SELECT count(*) FROM packages").fetchone()
        return int(rows)

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._database.close()


def _row(package: dict[str, str]) -> tuple[object, ...]:
    return (
        _row_id(package["name"]),
        package["name"],
        package["summary"],
        package["description"],
        package["version"],
        package["section"],
    )


def _row_id(name: str) -> int:
    """The same for the same name, in 63 bits, which is what SQLite has."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def feed(index: Index, subscription: Subscription) -> None:
    """Indexes what comes, till the subscription is closed."""
    while not subscription.closed:
        event = subscription.recv(timeout=COMMIT_SECONDS)
        marker = None if event is None else marker_of(event)
        if event is None:
            index.flush()
        elif marker is None:
            index.add(event.payload)
        else:
            index.flush()
            report(subscription, "marker", marker=marker, indexed=index.count())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("--address", help="of the bus; by default $HAILMARY_BUS")
    parser.add_argument("--query", help="print what matches these words, and end")
    arguments = parser.parse_args()
    index = Index(arguments.database)
    try:
        run(index, arguments.address, arguments.query)
    finally:
        index.close()
    return 0


def run(index: Index, address: Optional[str], query: Optional[str]) -> None:
    """One of the two uses."""
    if query is not None:
        for name, summary in index.search(query):
            print(f"{name}: {summary}")
        return
    with subscribe("search.index.>", address=address, name="search-index") as subscription:
        close_on_signals(subscription)
        report(subscription, "subscribed")
        feed(index, subscription)
        report(subscription, "ended", indexed=index.count())


if __name__ == "__main__":
    sys.exit(main())
