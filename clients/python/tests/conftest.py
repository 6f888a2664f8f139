"""What all tests need: the tools and the example importable, and a log that is not yet quiet."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hailmary._sender import trouble

CLIENT = Path(__file__).resolve().parent.parent

for directory in ("tools", "examples/search_index"):
    sys.path.insert(0, str(CLIENT / directory))


@pytest.fixture(autouse=True)
def nothing_was_told() -> Iterator[None]:
    """Troubles are logged once a minute; each test has its own first time."""
    trouble.begin_anew()
    yield
