"""Starts the site's processes, each as an operator would, on free ports.

All of them get what they need to know from this process's environment.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Optional

from books import Scrape
from bus import says
from processes import PATIENCE_SECONDS, Program

EXAMPLES = Path(__file__).resolve().parent.parent

# Where the program is after a build, from the repository's root.
_BUILT = ("target/release/hailmary", "target/debug/hailmary")

_CONFIGURATION = """\
[listen]
udp = []
unix = ["{path}"]
admin = "127.0.0.1:0"
"""

_GUNICORN = ("--config", Path(__file__).with_name("gunicorn.conf.py"))
_CELERY = ("--concurrency", "2", "--without-gossip", "--without-mingle", "--loglevel", "warning")


class Bus:
    """A Hail Mary bus that can be stopped and started again at its address."""

    def __init__(self, directory: Path) -> None:
        self._program = find_program()
        self._configuration = directory / "hailmary.toml"
        self._process: Optional[Program] = None
        self._admin: Optional[str] = None
        path = directory / "bus.sock"
        self._configuration.write_text(_CONFIGURATION.format(path=path))
        self.address = f"unix://{path}"

    def start(self) -> None:
        """Starts it and waits until it listens."""
        command = (self._program, "serve", "--config", self._configuration)
        self._process = Program(
            *command, "--log-format", "json", name="the bus", told_on="stderr"
        )
        line = self._process.wait_for(lambda line: says(line, "admin listening"))
        self._admin = line["address"]

    def stop(self) -> None:
        """Ends it as a service manager would."""
        self._admin = None
        if self._process is not None:
            self._process.stop()
            self._process = None

    def scrape(self) -> Optional[Scrape]:
        """What it counts since it started; nothing while it is stopped.

        Another thread may stop it meanwhile."""
        admin = self._admin
        try:
            return None if admin is None else _scrape(admin)
        except (OSError, HTTPException):
            if admin == self._admin:
                raise
            return None


class Worker(Program):
    """A module of this application that tells of itself in lines of JSON."""

    def __init__(self, module: str, *arguments: object) -> None:
        name = " ".join(str(part) for part in (module, *arguments))
        super().__init__(sys.executable, "-m", f"photo_app.{module}", *arguments, name=name)

    def __enter__(self) -> Worker:
        return self

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()
        self._process.wait()


def find_program() -> str:
    """The bus's program: by `HAILMARY_PROGRAM`, on the path, or as it was built."""
    root = EXAMPLES.parent.parent.parent
    built = (str(root / path) for path in _BUILT if (root / path).is_file())
    program = os.environ.get("HAILMARY_PROGRAM") or shutil.which("hailmary") or next(built, None)
    if program is None:
        raise SystemExit("no bus: set HAILMARY_PROGRAM, or run `cargo build --release`")
    return program


def gunicorn(address: str) -> tuple[object, ...]:
    """The command of the web server."""
    return ("gunicorn", "photo_app.web:app", "--bind", address, *_GUNICORN)


def celery() -> tuple[object, ...]:
    """The command of the workers that do the jobs."""
    return ("celery", "--app", "photo_app.jobs", "worker", *_CELERY)


def relay() -> tuple[object, ...]:
    """The command of what hands jobs to the broker."""
    return ("photo_app.relay",)


@contextmanager
def service(command: tuple[object, ...], directory: Path) -> Iterator[None]:
    """Runs a Python module until the context ends; what it says goes to a file."""
    with (directory / f"{command[0]}.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A terminal's Ctrl-C is for this program, which then ends the others.
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_server(address: str) -> None:
    """Waits until something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + PATIENCE_SECONDS
    while not _listens(host, int(port)):
        if time.monotonic() > until:
            raise TimeoutError("the web server did not get on")
        time.sleep(0.1)


def _scrape(admin: str) -> Scrape:
    with urllib.request.urlopen(f"{admin}/metrics", timeout=10) as answer:
        return Scrape.parse(answer.read().decode())


def _listens(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0
