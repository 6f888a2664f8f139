"""What the tests of servers share: a real bus, and the tap in front of it."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_bus import PROGRAM, RealBus, real_bus

from servers.tap import Tap, tapped


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test whose components are missing says which, and is skipped."""
    if not item.path.is_relative_to(Path(__file__).parent):
        return
    if sys.platform != "linux":
        pytest.skip("processes are looked at by Linux's /proc")
    if not PROGRAM:
        pytest.skip("HAILMARY_PROGRAM does not name the program to test against")
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"{name} is not installed")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, as a Unix socket's must be."""
    with tempfile.TemporaryDirectory(prefix="hailmary-") as path:
        yield Path(path)


@pytest.fixture
def bus(directory: Path) -> Iterator[RealBus]:
    with real_bus(directory, unix=str(directory / "bus.sock")) as bus:
        yield bus


@pytest.fixture
def tap(directory: Path, bus: RealBus) -> Iterator[Tap]:
    with tapped(directory, bus) as tap:
        yield tap
