"""Charts as SVG: panels beside each other, with bars or lines over categories, and whiskers from
the smallest to the largest value. Colours follow the reader's choice of light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from figures import Spread, short

PANEL_WIDTH = 300
PANEL_HEIGHT = 240
# Around a panel's plot: room for the axis titles and labels.
LEFT, RIGHT, TOP, BOTTOM = 68, 12, 30, 50
HEAD = 64
BAR_SHARE = 0.76

STYLE = """
:root { --ground: #ffffff; --ink: #1f2328; --grid: #d8dee4; --a: #0b62c4; --b: #c2600a; --c: #5f6b76; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --ink: #e6edf3; --grid: #30363d; --a: #58a6ff; --b: #f0a04b; --c: #a5b0bb; }
}
text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.title { font-size: 15px; font-weight: 600; }
.panel { font-weight: 600; }
.ground { fill: var(--ground); }
.grid { stroke: var(--grid); }
.whisker { stroke: var(--ink); stroke-width: 1.2; }
.line { fill: none; stroke-width: 2; }
.s0 { fill: var(--a); } .s1 { fill: var(--b); } .s2 { fill: var(--c); }
.l0 { stroke: var(--a); } .l1 { stroke: var(--b); } .l2 { stroke: var(--c); }
"""


@dataclass(frozen=True)
class Series:
    """A value for each category."""

    name: str
    values: Sequence[Spread]


@dataclass(frozen=True)
class Panel:
    title: str
    x_title: str
    y_title: str
    categories: Sequence[str]
    series: Sequence[Series]
    shape: str = "bars"
    """`bars` or `lines`."""
    scale: str = "linear"
    """`linear`, from 0, or `log`."""


class Axis:
    """From values to heights, with ticks at round numbers."""

    def __init__(self, values: Sequence[float], scale: str) -> None:
        self.is_log = scale == "log"
        self.ticks = log_ticks(min(values), max(values)) if self.is_log else linear_ticks(max(values))

    def share(self, value: float) -> float:
        """How far up the axis, from 0 to 1."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.is_log:
            return math.log(max(value, low) / low) / math.log(high / low)
        return value / high


def linear_ticks(high: float) -> list[float]:
    """Four to eight of them, from 0 till past `high`."""
    if high <= 0:
        return [0.0, 1.0]
    rough = high / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    return [number * step for number in range(math.ceil(high / step * 0.999) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, or the powers alone where there are many."""
    if low <= 0:
        raise ValueError("a logarithmic axis has no place for 0")
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    begin = max(index for index, tick in enumerate(ticks) if tick <= low)
    end = next((index for index, tick in enumerate(ticks) if tick >= high), len(ticks) - 1)
    return ticks[begin : max(end, begin + 1) + 1]


def chart(title: str, panels: Sequence[Panel]) -> str:
    width, height = PANEL_WIDTH * len(panels) + 20, HEAD + PANEL_HEIGHT + 10
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}" rx="6"/>',
        text(14, 24, title, "title"),
        *legend(names),
    ]
    for number, panel in enumerate(panels):
        lines += [f'<g transform="translate({PANEL_WIDTH * number + 8} {HEAD})">']
        lines += [*plot(panel, names), "</g>"]
    return "\n".join([*lines, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", turn: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' transform="{turn}"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>{escape(words)}</text>'


def legend(names: Sequence[str]) -> Iterator[str]:
    x = 14.0
    for number, name in enumerate(names):
        yield f'<rect class="s{number}" x="{x:.0f}" y="37" width="11" height="11" rx="2"/>'
        yield text(x + 16, 47, name)
        x += 34 + 7 * len(name)


def plot(panel: Panel, names: Sequence[str]) -> Iterator[str]:
    values = [value for series in panel.series for spread in series.values for value in spread]
    axis = Axis(values, panel.scale)
    yield text((LEFT + PANEL_WIDTH - RIGHT) / 2, 16, panel.title, "panel", "middle")
    yield from frame(panel, axis)
    draw = bars if panel.shape == "bars" else line
    for place, series in enumerate(panel.series):
        yield from draw(panel, axis, place, names.index(series.name))


def frame(panel: Panel, axis: Axis) -> Iterator[str]:
    middle = (LEFT + PANEL_WIDTH - RIGHT) / 2
    for tick in axis.ticks:
        y = height_of(axis, tick)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{PANEL_WIDTH - RIGHT}"/>'
        yield text(LEFT - 6, y + 4, "0" if tick == 0 else tick_label(tick), anchor="end")
    for number, category in enumerate(panel.categories):
        yield text(middle_of(panel, number), PANEL_HEIGHT - BOTTOM + 17, category, anchor="middle")
    yield text(middle, PANEL_HEIGHT - BOTTOM + 36, panel.x_title, anchor="middle")
    y = (TOP + PANEL_HEIGHT - BOTTOM) / 2
    yield text(16, y, panel.y_title, anchor="middle", turn=f"rotate(-90 16 {y:.1f})")


def tick_label(tick: float) -> str:
    """Ticks are round, so what is after the point says nothing where it is 0."""
    label = short(tick)
    letter = label[-1] if label[-1] in "kM" else ""
    digits = label.rstrip("kM")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + letter


def height_of(axis: Axis, value: float) -> float:
    bottom = PANEL_HEIGHT - BOTTOM
    return bottom - axis.share(value) * (bottom - TOP)


def slot(panel: Panel) -> float:
    return (PANEL_WIDTH - LEFT - RIGHT) / len(panel.categories)


def middle_of(panel: Panel, category: int) -> float:
    return LEFT + slot(panel) * (category + 0.5)


def bars(panel: Panel, axis: Axis, place: int, colour: int) -> Iterator[str]:
    width = slot(panel) * BAR_SHARE / len(panel.series)
    bottom = PANEL_HEIGHT - BOTTOM
    for category, value in enumerate(panel.series[place].values):
        x = middle_of(panel, category) + width * (place - len(panel.series) / 2)
        y = height_of(axis, value.median)
        yield f'<rect class="s{colour}" x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{bottom - y:.1f}"/>'
        yield whisker(axis, x + (width - 1) / 2, value)


def line(panel: Panel, axis: Axis, place: int, colour: int) -> Iterator[str]:
    values = panel.series[place].values
    points = [(middle_of(panel, n), height_of(axis, value.median)) for n, value in enumerate(values)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    yield f'<path class="line l{colour}" d="M{path}"/>'
    for (x, y), value in zip(points, values):
        yield whisker(axis, x, value)
        yield f'<circle class="s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'


def whisker(axis: Axis, x: float, value: Spread) -> str:
    low, high = height_of(axis, value.low), height_of(axis, value.high)
    return f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
