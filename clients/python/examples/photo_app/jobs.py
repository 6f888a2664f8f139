"""The jobs that must not be lost: Celery's, by way of RabbitMQ.

A job may run twice: it is acknowledged when it is done, and whoever hands it
over does so again if in doubt. So each writes under a key, and once is enough.
"""

from __future__ import annotations

import sqlite3

from celery import Celery

from . import database, settings

THUMBNAIL_PIXELS = 16

app = Celery("photo_app", broker=settings.broker_url())
app.conf.update(
    # Only what RabbitMQ has confirmed counts as handed over.
    broker_transport_options={"confirm_publish": True},
    # A job whose worker died is for another one.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    # The workers wait for a broker for as long as it takes.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    worker_cancel_long_running_tasks_on_connection_loss=True,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS thumbnails
    (photo INTEGER PRIMARY KEY, image BLOB NOT NULL, runs INTEGER NOT NULL DEFAULT 1);
CREATE TABLE IF NOT EXISTS mails
    (user TEXT PRIMARY KEY, text TEXT NOT NULL, runs INTEGER NOT NULL DEFAULT 1);
"""

# The second run changes nothing but the count of runs, which is for the figures.
_KEEP_THUMBNAIL = """
INSERT INTO thumbnails (photo, image) VALUES (?, ?)
ON CONFLICT DO UPDATE SET runs = runs + 1
"""
_KEEP_MAIL = """
INSERT INTO mails (user, text) VALUES (?, ?)
ON CONFLICT DO UPDATE SET runs = runs + 1
"""


@app.task(name="make_thumbnail")
def make_thumbnail(photo: int) -> None:
    """Makes the small picture of a photo."""
    source = database.connect(settings.application())
    (image,) = source.execute("SELECT image FROM photos WHERE id = ?", (photo,)).fetchone()
    source.close()
    _keep(_KEEP_THUMBNAIL, photo, shrink(image))


@app.task(name="send_welcome")
def send_welcome(user: str) -> None:
    """Puts a mail where the mail server takes it from."""
    _keep(_KEEP_MAIL, user, f"Welcome, {user}!")


def shrink(image: bytes, pixels: int = THUMBNAIL_PIXELS) -> bytes:
    """A square picture in grey, a byte a pixel, as one of `pixels` x `pixels`."""
    side = int(len(image) ** 0.5)
    step = side // pixels
    rows = [image[y * side : (y + 1) * side] for y in range(side)]
    return bytes(
        sum(sum(row[x : x + step]) for row in rows[y : y + step]) // step**2
        for y in range(0, pixels * step, step)
        for x in range(0, pixels * step, step)
    )


def results_database() -> sqlite3.Connection:
    """Where the jobs' results are."""
    return database.connect(settings.results(), _SCHEMA)


def _keep(statement: str, *values: object) -> None:
    results = results_database()
    with results:
        results.execute(statement, values)
    results.close()
