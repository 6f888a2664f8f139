"""What a topic and a topic pattern may be.

The rules are the contract's, so that a mistake shows where it is made and not
as a refusal or a counted drop at the bus. Which pattern matches which topic is
the bus's to know.
"""

from __future__ import annotations

import re

_BYTES_MAX = 255

_TOKEN = r"[A-Za-z0-9_:/-]+"
# Two spellings of one bound: up to 16 tokens are up to 15 and one more.
_TOPIC = re.compile(rf"(?:{_TOKEN}\.){{0,15}}{_TOKEN}")
_PATTERN = re.compile(rf"(?:(?:{_TOKEN}|\*)\.){{0,15}}(?:{_TOKEN}|\*|>)")

_TOKENS_RULE = "up to 16 tokens of A-Z a-z 0-9 _ : / - joined by single dots"


def check_topic(topic: str) -> None:
    """Raises `TypeError` if it is no text, `ValueError` if it is no topic."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a str, not {type(topic).__name__}")
    if len(topic) > _BYTES_MAX or not _TOPIC.fullmatch(topic):
        raise ValueError(f"{topic!r:.300} is no topic: 1 to 255 bytes, {_TOKENS_RULE}")


def check_pattern(pattern: str) -> None:
    """Raises `TypeError` if it is no text, `ValueError` if it is no pattern."""
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern is a str, not {type(pattern).__name__}")
    if len(pattern) > _BYTES_MAX or not _PATTERN.fullmatch(pattern):
        raise ValueError(
            f"{pattern!r:.300} is no pattern: 1 to 255 bytes, {_TOKENS_RULE}; "
            "a token may be *, the last one may be >"
        )
