"""The real program, run for the time of a test.

Owns finding it, starting it on free ports, and stopping it. It installs nothing,
and touches no bus that it did not start.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections import deque
from concurrent.futures import Future
from http.client import HTTPConnection
from types import TracebackType
from typing import Optional

PROGRAM_VARIABLE = "HAILMARY_PROGRAM"
"""The environment variable that names the program where it is not on the path."""

# Far more than any step takes; only what is broken is waited for so long.
_PATIENCE_SECONDS = 30.0

# What is kept of its log, to say why it did not start.
_LOG_LINES_MAX = 20


def find_program() -> Optional[str]:
    """The program `hailmary`, by the environment's `HAILMARY_PROGRAM` or the
    path; `None` if there is none."""
    return os.environ.get(PROGRAM_VARIABLE) or shutil.which("hailmary")


class Bus:
    """A bus of its own: the real program, on free ports of loopback.

        with Bus("hailmary") as bus, hailmary.Publisher(bus.address) as publisher:
            publisher.publish("search.index.photo", b"42")

    It listens once this returns, some milliseconds later, and runs till `stop()`.
    Raises `OSError` if the program cannot be run, and `RuntimeError` with the end
    of its log if it does not listen, after 30 seconds at the latest.
    """

    def __init__(self, program: str) -> None:
        command = [program, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        self._process = subprocess.Popen(
            [*command, "--log-format", "json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        self._log: deque[str] = deque(maxlen=_LOG_LINES_MAX)
        self._told: dict[str, Future[str]] = {"listening": Future(), "admin listening": Future()}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._address = self._wait_for("listening")
        self._admin = self._wait_for("admin listening").rpartition("//")[2]

    @property
    def address(self) -> str:
        """Where it listens, as publishers and subscribers take it."""
        return self._address

    def scrape(self) -> dict[str, float]:
        """What it counts, by series as Prometheus writes them, such as
        `hailmary_ingress_events_total` or `hailmary_egress_events_total{subscriber="s"}`.

        Events are counted before the bus sleeps, so after publishing wait for the
        count that a test looks at. Raises `OSError` if the bus does not answer.
        """
        connection = HTTPConnection(self._admin, timeout=_PATIENCE_SECONDS)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] not in ("", "#"))
        return {series: float(value) for series, value in samples}

    def stop(self) -> int:
        """Ends it as a service manager would, and says its exit status: 0."""
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        return self._process.returncode

    def __enter__(self) -> Bus:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.stop()

    def _wait_for(self, message: str) -> str:
        try:
            return self._told[message].result(_PATIENCE_SECONDS)
        except Exception:
            status = self.stop()
            log = "".join(self._log)
            raise RuntimeError(f"the bus did not start (status {status}):\n{log}") from None

    def _read(self) -> None:
        """Takes in all that it logs, so that it never waits for a reader."""
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._log.append(line)
                self._listen_to(line)
        for told in self._told.values():
            if not told.done():
                told.set_exception(EOFError())

    def _listen_to(self, line: str) -> None:
        try:
            said: dict[str, str] = json.loads(line)
            told = self._told.get(said["message"])
            if told is not None and not told.done():
                told.set_result(said["address"])
        except (ValueError, KeyError, TypeError):
            return  # Not a line of the kind that is waited for.
