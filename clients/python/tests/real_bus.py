"""The real program, started as a user would."""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from books import Scrape
from bus import says
from processes import Program

PROGRAM = os.environ.get("HAILMARY_PROGRAM", "")

needs_program = pytest.mark.skipif(
    not PROGRAM, reason="HAILMARY_PROGRAM does not name the program to test against"
)


class RealBus:
    """A bus that listens at `udp` and, if there is one, at the path `unix`."""

    def __init__(self, directory: Path, udp: str, unix: str, more: str) -> None:
        configuration = directory / "hailmary.toml"
        configuration.write_text(
            f'[listen]\nudp = ["{udp}"]\nunix = [{unix and repr(unix)}]\n'
            f'admin = "127.0.0.1:0"\n{more}'
        )
        command = (PROGRAM, "serve", "--config", configuration, "--log-format", "json")
        self._program = Program(*command, name="the bus", told_on="stderr")
        listening = self._program.wait_for(lambda line: says(line, "listening"))
        admin = self._program.wait_for(lambda line: says(line, "admin listening"))
        self.udp: str = listening["address"]
        self.unix = f"unix://{unix}"
        self._metrics = f"{admin['address']}/metrics"

    @property
    def process_id(self) -> int:
        """The program's."""
        return self._program.process_id

    def scrape(self) -> Scrape:
        """What it counts."""
        with urllib.request.urlopen(self._metrics, timeout=10) as answer:
            return Scrape.parse(answer.read().decode())

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        return self._program.stop()


@contextmanager
def real_bus(
    directory: Path, udp: str = "127.0.0.1:0", unix: str = "", more: str = ""
) -> Iterator[RealBus]:
    """A bus that is stopped in the end."""
    bus = RealBus(directory, udp, unix, more)
    try:
        yield bus
    finally:
        bus.stop()
