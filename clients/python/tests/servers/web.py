"""Runs a WSGI server and asks it, as a load balancer would.

Owns the listening socket, which the server inherits: so there is a port before
there is a server, and no request is refused while it starts.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .running import PATIENCE_SECONDS, Running, running, stopped

# How many clients ask at once.
CLIENTS = 4

Command = Callable[[str], Sequence[object]]


class Server:
    """A server that was started, and all that it answered."""

    def __init__(self, program: Running, port: int) -> None:
        self.program = program
        self.answers: list[dict[str, Any]] = []
        self._port = port

    def ask(self) -> dict[str, Any]:
        """One request on a connection of its own. Raises if it is not answered."""
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS)
        try:
            client.request("GET", "/", headers={"Connection": "close"})
            answer = client.getresponse()
            body = answer.read()
        finally:
            client.close()
        assert answer.status == 200, body
        facts: dict[str, Any] = json.loads(body)
        self.answers.append(facts)
        return facts

    def pids(self) -> set[int]:
        """The processes that answered."""
        return {facts["pid"] for facts in self.answers}

    def ask_till_all_answered(self, pids: Callable[[], set[int]], count: int) -> None:
        """Asks until so many processes, all of those, have answered."""

        def have_all_answered() -> bool:
            running = pids()
            return len(running) == count and running <= self.pids()

        with self.asked():
            self.program.wait_until(have_all_answered, f"{count} workers answered")

    def ask_each_alone(self, pids: set[int]) -> list[dict[str, Any]]:
        """What each of those answers while nobody else asks. The others stand still
        meanwhile, for who is quicker may take all there is."""
        answers = []
        for pid in pids:
            with stopped(pids - {pid}):
                answers.append(self.ask())
        assert {facts["pid"] for facts in answers} == pids
        return answers

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Clients ask all the time. Raises in the end if a request failed."""
        stop = threading.Event()
        failures: list[BaseException] = []

        def ask_on() -> None:
            try:
                while not stop.is_set():
                    self.ask()
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=ask_on) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures, failures


@contextmanager
def serving(
    command: Command, directory: Path, bus: str, linger_ms: int = 0
) -> Iterator[Server]:
    """A server of `apps/web.py`. The command is told the listener's `fd://`."""
    environment = {"HAILMARY_BUS": bus, "LINGER_MS": str(linger_ms)}
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        number = listener.fileno()
        with running(
            command(f"fd://{number}"), directory, environment, pass_fds=[number]
        ) as program:
            yield Server(program, listener.getsockname()[1])
