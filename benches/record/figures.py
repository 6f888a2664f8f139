"""Arithmetic of the record: medians with their spread, ratios of pairs, and how numbers are told."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """A median, and the smallest and largest that were seen."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """One for each round: what was measured a moment apart is compared, and nothing else."""
    if len(of) != len(to):
        raise ValueError(f"{len(of)} rounds cannot be paired with {len(to)}")
    return [a / b for a, b in zip(of, to) if b]


def short(value: float) -> str:
    """Three digits, with k or M for thousands or millions."""
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return three_digits(value / factor) + letter
    return three_digits(value)


def three_digits(value: float) -> str:
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.01 or value == 0 else f"{value:.1g}"


def plain(value: float) -> str:
    """Three digits, and noughts in place of the rest."""
    return three_digits(value) if abs(value) < 999.5 else f"{float(f'{value:.3g}'):,.0f}"


def told(values: Sequence[float], number: Callable[[float], str] = plain) -> str:
    """`median [min..max]`, or a dash where there is nothing to tell."""
    if not values:
        return "–"
    median, low, high = map(number, spread(values))
    return f"{median} [{low}..{high}]"
