"""The application's database, which is the source of truth, and its outbox.

A job that must not be lost is a row of the outbox, written in the same
transaction as what the job is about. So there is a job exactly if there is a
photo, whatever the broker does meanwhile; `relay` hands it on.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import NamedTuple, Union

# How long a writer waits for another one. They hold the file for milliseconds.
LOCK_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS photos
    (id INTEGER PRIMARY KEY, user TEXT NOT NULL, title TEXT NOT NULL, image BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS comments
    (id INTEGER PRIMARY KEY, photo INTEGER NOT NULL, user TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outbox
    (id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, argument TEXT NOT NULL);
"""

_threads = threading.local()


class Job(NamedTuple):
    """A row of the outbox."""

    id: int
    task: str
    argument: Union[int, str]


def connect(path: Path, schema: str = _SCHEMA) -> sqlite3.Connection:
    """A connection to a database, whose tables are made if need be."""
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS)
    connection.execute("PRAGMA journal_mode = WAL")
    # What is committed stays, also through a power cut.
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(schema)
    return connection


def of_thread(path: Path) -> sqlite3.Connection:
    """The calling thread's own connection to the application's database."""
    if not hasattr(_threads, "connection"):
        _threads.connection = connect(path)
    connection: sqlite3.Connection = _threads.connection
    return connection


def add_user(database: sqlite3.Connection, name: str) -> None:
    """Keeps a new user, and that a welcome is due."""
    with database:
        database.execute("INSERT INTO users VALUES (?)", (name,))
        _put_job(database, "send_welcome", name)


def add_photo(database: sqlite3.Connection, user: str, title: str, image: bytes) -> int:
    """Keeps a photo, and that its thumbnail is due; returns its id."""
    with database:
        photo = _insert(database, "photos (user, title, image)", user, title, image)
        _put_job(database, "make_thumbnail", photo)
    return photo


def add_comment(database: sqlite3.Connection, photo: int, user: str, text: str) -> int:
    """Keeps a comment, about which nothing else is due; returns its id."""
    with database:
        return _insert(database, "comments (photo, user, text)", photo, user, text)


def oldest_jobs(database: sqlite3.Connection, limit: int) -> list[Job]:
    """What waits in the outbox, the oldest first."""
    rows = database.execute("SELECT * FROM outbox ORDER BY id LIMIT ?", (limit,))
    return [Job(id, task, json.loads(argument)) for id, task, argument in rows]


def remove_jobs(database: sqlite3.Connection, through: int) -> None:
    """Forgets the jobs up to an id: they are the broker's now."""
    with database:
        database.execute("DELETE FROM outbox WHERE id <= ?", (through,))


def count(database: sqlite3.Connection, table: str) -> int:
    """How many rows a table has."""
    (rows,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(rows)


def _put_job(database: sqlite3.Connection, task: str, argument: Union[int, str]) -> None:
    _insert(database, "outbox (task, argument)", task, json.dumps(argument))


def _insert(database: sqlite3.Connection, columns: str, *values: object) -> int:
    places = ", ".join("?" * len(values))
    row = database.execute(f"INSERT INTO {columns} VALUES ({places})", values).lastrowid
    assert row is not None
    return row
