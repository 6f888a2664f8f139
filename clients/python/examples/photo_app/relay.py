"""Hands jobs from the outbox to RabbitMQ, a process of its own.

A job leaves the outbox once RabbitMQ has confirmed it. If that never comes, or
this process dies first, the job is handed over again. It can be ended at any
point without harm, so it handles no signal.
"""

from __future__ import annotations

import sqlite3
import time

from kombu.connection import Connection
from kombu.exceptions import OperationalError

from . import jobs, settings
from .database import connect, oldest_jobs, remove_jobs

BATCH_JOBS = 50

# How often it looks into an empty outbox, and for a broker that is away.
IDLE_SECONDS = 0.05
RETRY_SECONDS = 0.5

# Far more than a broker takes that is well.
CONFIRM_SECONDS = 10.0


def relay_batch(database: sqlite3.Connection, connection: Connection) -> int:
    """Hands over the oldest jobs; says how many. Raises the connection's errors."""
    batch = oldest_jobs(database, BATCH_JOBS)
    with jobs.app.amqp.Producer(connection) as producer:
        for job in batch:
            jobs.app.send_task(
                job.task,
                (job.argument,),
                producer=producer,
                retry=False,
                confirm_timeout=CONFIRM_SECONDS,
            )
    if batch:
        remove_jobs(database, through=batch[-1].id)
    return len(batch)


def main() -> None:
    database = connect(settings.application())
    connection = jobs.app.connection_for_write()
    away = (OperationalError, *connection.connection_errors, *connection.channel_errors)
    while True:
        try:
            connection.ensure_connection(max_retries=1)
            handed_over = relay_batch(database, connection)
            time.sleep(0 if handed_over else IDLE_SECONDS)
        except away as error:
            print(f"the broker is away: {error!r}", flush=True)
            connection.close()
            time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
