"""Where things are, by the environment that whoever starts the processes sets.

The bus is where `HAILMARY_BUS` says, which the client reads by itself.
"""

import os
from pathlib import Path

BROKER = "PHOTO_APP_BROKER"
DIRECTORY = "PHOTO_APP_DIRECTORY"


def broker_url() -> str:
    """Of RabbitMQ."""
    return os.environ.get(BROKER, "amqp://guest:guest@127.0.0.1//")


def application() -> Path:
    """The database that requests write, and the relay, which empties the outbox."""
    return _directory() / "application.db"


def results() -> Path:
    """The database that jobs write. A file of its own, as a service has a database
    of its own: SQLite lets one writer at a time into a file."""
    return _directory() / "results.db"


def index() -> Path:
    """What the search feed writes."""
    return _directory() / "index.db"


def _directory() -> Path:
    return Path(os.environ.get(DIRECTORY, "."))
