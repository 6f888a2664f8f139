"""A Celery application whose module makes the publisher, as most do.

The parent publishes when it is ready and for each `jobs.work` that it hands to a
child, the children in each, and beat, where it is embedded, for the first tasks
that it sends. Each tells what it has published. So all of them come to rest
though beat goes on.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import telling
from celery import Celery, signals

from hailmary import Publisher

EVENTS_PER_TASK = 3

# So often does beat send a task of its own, and for so many does it publish.
BEAT_SECONDS = 0.1
BEATS = 10

publisher = Publisher()

app = Celery("jobs", broker=os.environ["BROKER"], backend="rpc://")
app.conf.update(
    beat_schedule={"often": {"task": "jobs.nothing", "schedule": BEAT_SECONDS}},
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


def work() -> dict[str, Any]:
    """Publishes, and returns the facts of the process that ran it."""
    telling.publish(publisher, EVENTS_PER_TASK)
    telling.publish_until_sent(publisher)
    return telling.facts(publisher, role="child")


def nothing() -> None:
    """What beat sends."""


def publish_as(role: str) -> None:
    telling.publish_until_sent(publisher)
    telling.tell(**telling.facts(publisher, role=role))


def on_ready(**_: Any) -> None:
    publish_as("parent")


def on_received(request: Any, **_: Any) -> None:
    if request.name == "jobs.work":
        publish_as("parent")


def on_beat(beats: Any = itertools.count(), **_: Any) -> None:
    if next(beats) < BEATS:
        publish_as("beat")


app.task(work, name="jobs.work")
app.task(nothing, name="jobs.nothing", ignore_result=True)
signals.worker_ready.connect(on_ready, weak=False)
signals.task_received.connect(on_received, weak=False)
# The worker's own processes send no tasks.
signals.after_task_publish.connect(on_beat, weak=False)
