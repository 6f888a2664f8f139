"""A WSGI application whose module makes the publisher, as most do.

Each answer tells what its process has published so far. An event at the import
opens the socket there: in the master, if the server loads the application before
it forks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any, Callable

import telling

from hailmary import Publisher

EVENTS_PER_REQUEST = 3

publisher = Publisher(linger_ms=float(os.environ["LINGER_MS"]))
telling.publish(publisher, 1, "web.loaded")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Publishes, and answers with the facts."""
    telling.publish(publisher, EVENTS_PER_REQUEST, "web.request")
    body = json.dumps(telling.facts(publisher)).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
