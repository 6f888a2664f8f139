"""Users, by the steady load that they make: sign-ups, uploads, comments, searches.

Requests are due at a fixed rate, whatever became of those before, and their time
runs from when they were due. So a server that makes users wait does not get
fewer requests for it, and the waiting is in the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import threading
import time
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple, Optional
from urllib.parse import quote

CLIENTS = 16
USERS = 40
TIMEOUT_SECONDS = 5.0
TELL_SECONDS = 0.25

# What users do, over and over.
STEPS = ("upload", "comment", "search", "comment", "search")
SIGN_UP_EVERY = 10

IMAGE = bytes(x ^ y for y in range(64) for x in range(64))
WORDS = ("boat", "harbour", "sunset", "mountain", "lake", "street", "garden", "cat")


class Request(NamedTuple):
    """What is asked of the server."""

    kind: str
    method: str
    path: str
    body: Optional[bytes] = None


class Load:
    """The clients and what they saw since it was last told."""

    def __init__(self, address: str, rate: float) -> None:
        self._address = address
        self._rate = rate
        self._numbers = itertools.count()
        self._began = time.monotonic()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._answers: list[tuple[str, bool, float]] = []
        self._counts: dict[str, dict[str, int]] = {}
        self._photo = 0

    def run(self) -> None:
        """Makes the load until `end()` is called."""
        clients = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        while not self._ending.wait(TELL_SECONDS):
            self._tell("running")
        for client in clients:
            client.join()
        self._tell("ended")

    def end(self) -> None:
        self._ending.set()

    def _client(self) -> None:
        connection = HTTPConnection(self._address, timeout=TIMEOUT_SECONDS)
        while True:
            number = next(self._numbers)
            due = self._began + number / self._rate
            if self._ending.wait(max(0.0, due - time.monotonic())):
                return connection.close()
            self._ask(connection, self._request(number), due)

    def _ask(self, connection: HTTPConnection, request: Request, due: float) -> None:
        try:
            connection.request(request.method, request.path, request.body)
            answer = connection.getresponse()
            content = json.loads(answer.read()) if answer.status < 300 else None
            counts = answer.headers.get("Hail-Mary")
        except (OSError, HTTPException):
            connection.close()
            content, counts = None, None
        with self._lock:
            self._answers.append((request.kind, content is not None, time.monotonic() - due))
            if request.kind == "upload" and content is not None:
                self._photo = content["id"]
            if counts is not None:
                self._keep_counts(json.loads(counts))

    def _keep_counts(self, counts: dict[str, int]) -> None:
        """The newest of a process, whose answers may overtake one another."""
        process = str(counts.pop("process"))
        known = self._counts.setdefault(process, counts)
        self._counts[process] = {name: max(known[name], counts[name]) for name in counts}

    def _request(self, number: int) -> Request:
        if number % SIGN_UP_EVERY == 0:
            return Request("sign-up", "POST", f"/users/newcomer-{number}")
        # Each user does all that there is to do.
        kind = STEPS[number % len(STEPS)]
        user = f"user-{number // len(STEPS) % USERS}"
        words = quote(f"{WORDS[number % 8]} {WORDS[number // 8 % 8]}")
        if kind == "search":
            return Request(kind, "GET", f"/search?user={user}&words={words}")
        if kind == "comment" and self._photo:
            path = f"/photos/{self._photo}/comments?user={user}"
            return Request(kind, "POST", path, f"A {words} of mine".encode())
        return Request("upload", "POST", f"/photos?user={user}&title={words}", IMAGE)

    def _tell(self, state: str) -> None:
        with self._lock:
            answers, self._answers = self._answers, []
            told: dict[str, Any] = {"answers": answers, "counts": self._counts}
            line = json.dumps({"state": state, "at": time.time(), **told})
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("address", help="HOST:PORT of the application")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    arguments = parser.parse_args()
    load = Load(arguments.address, arguments.rate)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: load.end())
    load.run()


if __name__ == "__main__":
    main()
