"""Starts the programs under test and ends them with all that they started.

Owns process groups: a program gets one of its own, which is ended with it, so
that a server whose master hangs leaves no worker behind. What a program prints
goes to a file and is shown where it did not do what it should.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Far more than any step takes, also on a busy machine: only what is broken or
# deadlocked waits for it.
PATIENCE_SECONDS = 90.0

# How often a condition is looked at.
_TURN_SECONDS = 0.02

# What of a program's output is shown when it failed.
_TAIL_CHARACTERS = 4000

APPS = Path(__file__).resolve().parent / "apps"


def wait_until(is_so: Callable[[], object], what: str) -> None:
    """Returns once it is so. Raises `TimeoutError`, which says what was waited for."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(_TURN_SECONDS)


class Running:
    """A program, alone in its process group."""

    def __init__(
        self,
        command: Sequence[object],
        directory: Path,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._output = directory / "output"
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": _python_path(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Sends it to the program alone, not to its group."""
        # `Popen.send_signal` would forget a process that has ended.
        os.kill(self.pid, number)

    def has_ended(self) -> bool:
        """Whether it has; it stays known to the system until `stop`."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def wait_until(self, is_so: Callable[[], object], what: str) -> None:
        """Returns once it is so. Raises too if the program ended before."""

        def is_so_yet() -> object:
            # Looked at first: what it did before its end is done.
            ended = self.has_ended()
            is_so_now = is_so()
            assert is_so_now or not ended, f"the program ended before {what}"
            return is_so_now

        wait_until(is_so_yet, what)

    def wait(self) -> int:
        """Waits for its end; the exit status."""
        wait_until(self.has_ended, f"the program ended; it printed:\n{self.output()}")
        return self.stop()

    def stop(self) -> int:
        """Asks it to end, as a service manager would, then ends what is left of
        its group. The exit status."""
        if self._process.returncode is None:
            self.signal(signal.SIGTERM)
            try:
                wait_until(self.has_ended, "a program ended on SIGTERM")
            finally:
                # Before its number can be anybody else's.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()
        return self._process.returncode

    def output(self) -> str:
        """The end of what it printed."""
        return self._output.read_text(errors="replace")[-_TAIL_CHARACTERS:]

    def told(self) -> list[dict[str, Any]]:
        """The lines of JSON that it and its children printed."""
        lines = self._output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def children(self) -> set[int]:
        """The processes that it started and that run."""
        return children(self.pid)


@contextmanager
def running(
    command: Sequence[object],
    directory: Path,
    environment: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> Iterator[Running]:
    """A program that is ended with the context, and shown if that fails."""
    program = Running(command, directory, environment, pass_fds)
    try:
        yield program
    except BaseException:
        print(program.output(), file=sys.stderr)
        raise
    finally:
        program.stop()


def run(
    app: str, *arguments: object, directory: Path, environment: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Runs one of the apps to its end, which must be a good one; what it told."""
    command = (sys.executable, APPS / app, *arguments)
    with running(command, directory, environment) as program:
        assert program.wait() == 0, program.output()
        return program.told()


def _python_path() -> str:
    """Where the apps find each other, and what was searched before."""
    return os.pathsep.join(filter(None, (str(APPS), os.environ.get("PYTHONPATH"))))


def children(pid: int) -> set[int]:
    """The processes that a process started and that run."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return set()
    return {int(child) for child in text.split()}


@contextmanager
def stopped(pids: set[int]) -> Iterator[None]:
    """Processes that stand still as long as the context lasts."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(map(_stands_still, pids)), "processes stand still")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _stands_still(pid: int) -> bool:
    """Whether all threads of a process do."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    # Behind the name, which may be any.
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(descriptor).startswith("socket:")
    return count


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
