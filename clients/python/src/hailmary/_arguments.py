"""What both commands take: addresses, topics and numbers as words of a command line.

Owns their checks and the words for what is wrong, which argparse puts behind the
argument's name. They are those of the program `hailmary`.
"""

from __future__ import annotations

import argparse
import os
from typing import Callable, Optional

from ._address import BUS_ADDRESS, BUS_VARIABLE, UdpAddress, parse
from ._topic import check_pattern, check_topic


class Failure(Exception):
    """Ends the program with status 1 and these words."""


def address(text: str) -> str:
    """An address, written out."""
    try:
        parsed = parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(parsed, UdpAddress):
        return f"unix://{parsed.path}"
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return f"udp://{host}:{parsed.port}"


def default_address() -> str:
    """What the environment says, else loopback."""
    return os.environ.get(BUS_VARIABLE) or BUS_ADDRESS


def topic(text: str) -> str:
    """A topic."""
    return _checked(check_topic, text)


def pattern(text: str) -> str:
    """A topic pattern."""
    return _checked(check_pattern, text)


def seconds(text: str) -> float:
    """A time."""
    found = _number(text)
    if found is None or not 0.0 <= found <= 1e9:
        raise argparse.ArgumentTypeError("a time is 0 to 1e9 seconds")
    return found


def rate(text: str) -> float:
    """Events a second."""
    found = _number(text)
    if found is None or not 0.0 < found <= 1e9:
        raise argparse.ArgumentTypeError("a rate is over 0 and at most 1e9")
    return found


def share(text: str) -> float:
    """A sample."""
    found = _number(text)
    if found is None or not 0.0 < found <= 1.0:
        raise argparse.ArgumentTypeError(
            "a share is over 0 and at most 1; to take all events, leave the flag out"
        )
    return found


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number in these bounds."""

    def check(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"a whole number from {least} to {most}")
        return int(text)

    return check


def _number(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:
        return None


def _checked(check: Callable[[str], None], text: str) -> str:
    try:
        check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
