"""The pytest plugin: fixtures for applications that publish.

Stands beside the package and imports it in the fixtures alone, so that a test run
that uses none of them does not load it, nor protobuf with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hailmary.testing import Bus, Recorder


@pytest.fixture
def hailmary_recorder() -> Iterator[Recorder]:
    """Records what the test publishes by the default publisher; nothing is sent."""
    from hailmary.testing import recording

    with recording() as recorder:
        yield recorder


@pytest.fixture
def hailmary_bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """A real bus of the test's own, where the default publisher and, by
    `HAILMARY_BUS`, subscribers and child processes find it. Skips the test if the
    program `hailmary` is neither on the path nor named by `HAILMARY_PROGRAM`."""
    from hailmary import Publisher
    from hailmary.testing import Bus, find_program, publishing_by

    program = find_program()
    if program is None:
        pytest.skip("no program `hailmary` on the path, and HAILMARY_PROGRAM names none")
    with Bus(program) as bus, Publisher(bus.address) as publisher, publishing_by(publisher):
        monkeypatch.setenv("HAILMARY_BUS", bus.address)
        yield bus
