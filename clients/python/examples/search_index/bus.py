"""Starts a bus for the example, on ports of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from processes import Line, Program

CONFIGURATION = """
[listen]
udp = ["127.0.0.1:0"]
admin = "127.0.0.1:0"
"""


class Bus(NamedTuple):
    """Where a bus is: its address, and HOST:PORT of its admin listener."""

    address: str
    admin: str


def find_program() -> str:
    """The program `hailmary`, by the environment's `HAILMARY_PROGRAM` or the path."""
    program = os.environ.get("HAILMARY_PROGRAM") or shutil.which("hailmary")
    if program is None:
        raise SystemExit("no bus: set HAILMARY_PROGRAM, or give --address and --admin")
    return program


@contextmanager
def start_bus(program: str, directory: Path) -> Iterator[Bus]:
    """Runs a bus until the context ends. It says in its log where it listens."""
    configuration = directory / "hailmary.toml"
    configuration.write_text(CONFIGURATION)
    command = (program, "serve", "--config", configuration, "--log-format", "json")
    with Program(*command, name="the bus", told_on="stderr") as bus:
        listening = bus.wait_for(lambda line: says(line, "listening"))
        admin = bus.wait_for(lambda line: says(line, "admin listening"))
        yield Bus(listening["address"], admin["address"].removeprefix("http://"))


def says(line: Line, message: str) -> bool:
    """Whether a line of the log is this message."""
    return bool(line.get("message") == message)
