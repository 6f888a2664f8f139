"""Starts a bus for the example, on ports of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CONFIGURATION = """
[listen]
udp = ["127.0.0.1:0"]
admin = "127.0.0.1:0"
"""


class Bus(NamedTuple):
    """Where a bus is."""

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
    """Runs a bus until the context ends."""
    raise NotImplementedError
