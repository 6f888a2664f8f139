"""Sends tasks to the Celery application and tells their results.

    ask.py COUNT
"""

from __future__ import annotations

import os
import sys

import telling
from celery import Celery

PATIENCE_SECONDS = 90

if __name__ == "__main__":
    app = Celery("ask", broker=os.environ["BROKER"], backend="rpc://")
    sent = [app.send_task("jobs.work") for _ in range(int(sys.argv[1]))]
    for result in sent:
        telling.tell(**result.get(timeout=PATIENCE_SECONDS))
