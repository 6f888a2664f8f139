"""Tells what a measurement of a promise saw, for the table of SECURITY.md, as tests/support/evidence.rs
does for tests in Rust: a file NAME.json in the directory that HAILMARY_EVIDENCE names, if it does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Union

DIRECTORY = "HAILMARY_EVIDENCE"

# What was measured, its value and its unit.
Figure = tuple[str, Union[int, float, str], str]


def tell(name: str, fault: str, promise: str, figures: Sequence[Figure]) -> None:
    """What goes wrong, what is promised nevertheless, and what was seen. Whoever tells it has
    checked the promise."""
    directory = os.environ.get(DIRECTORY)
    if not directory:
        return
    told = [{"what": what, "value": value, "unit": unit} for what, value, unit in figures]
    text = json.dumps({"fault": fault, "promise": promise, "figures": told})
    Path(directory, f"{name}.json").write_text(text)
