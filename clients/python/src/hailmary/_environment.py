"""What the environment says about publishing at all.

A value that is none is warned of and never an error: an environment is set far
from the code that reads it, and must not be able to stop an import.
"""

from __future__ import annotations

import os

from ._trouble import warn

DISABLE_VARIABLE = "HAILMARY_DISABLE"
"""The environment variable that turns publishing off."""

_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


def is_disabled() -> bool:
    """Whether the environment turns publishing off."""
    value = os.environ.get(DISABLE_VARIABLE, "").strip().lower()
    if value not in _YES + _NO:
        warn("%s=%.100r is neither 1 nor 0; events are published", DISABLE_VARIABLE, value)
    return value in _YES
