"""Starts programs and reads what they print, line by line, with patience."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from types import TracebackType
from typing import Any, Callable, Literal, Optional

# Far more than any step takes: only what is broken waits for it.
PATIENCE_SECONDS = 60.0

Line = dict[str, Any]


class Program:
    """A process that tells of each step in a line of JSON, on its standard
    output or, as daemons do, its standard error."""

    def __init__(
        self, *command: object, name: str, told_on: Literal["stdout", "stderr"] = "stdout"
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if told_on == "stdout" else None,
            stderr=subprocess.PIPE if told_on == "stderr" else None,
            encoding="utf-8",
        )
        self._told = getattr(self._process, told_on)
        self._lines: queue.Queue[Optional[str]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def process_id(self) -> int:
        """As the system knows it."""
        return self._process.pid

    def wait_for(
        self, wanted: Callable[[Line], bool], seconds: float = PATIENCE_SECONDS
    ) -> Line:
        """The next line that is wanted.

        Raises `TimeoutError`, or `RuntimeError` if the program ended before.
        """
        until = time.monotonic() + min(seconds, threading.TIMEOUT_MAX / 2)
        while True:
            try:
                text = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"{self.name} did not get on") from None
            if text is None:
                status = self._process.wait()
                raise RuntimeError(f"{self.name} ended with status {status}")
            line: Line = json.loads(text)
            if wanted(line):
                return line

    def say(self, text: str) -> None:
        """Writes a line to its input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def stop(self) -> int:
        """Ends it as a service manager would, and says its exit status."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._told):
            if pipe is not None:
                pipe.close()
        return self._process.returncode

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.stop()

    def _read(self) -> None:
        for line in self._told or ():
            self._lines.put(line)
        self._lines.put(None)


