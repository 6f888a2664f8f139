"""What a request would pay that handed its job to Celery itself.

Nothing of the application does it this way; the run measures it once while
RabbitMQ is stopped. Prints how long the call took, and its error.
"""

from __future__ import annotations

import json
import time

from celery import Celery

from . import settings


def main() -> None:
    # As Celery comes: `jobs.app` is configured for the relay.
    app = Celery("direct", broker=settings.broker_url())
    began, error = time.monotonic(), ""
    try:
        app.send_task("none", retry=True)
    except Exception as raised:
        error = type(raised).__name__
    print(json.dumps({"seconds": time.monotonic() - began, "error": error}), flush=True)


if __name__ == "__main__":
    main()
