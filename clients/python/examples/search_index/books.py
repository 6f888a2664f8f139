"""What each hop says of the events, and whether it adds up.

Nothing here asks anybody: counts come in, a table and a list of contradictions
come out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

_SAMPLE = re.compile(r"^hailmary_(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


Series = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """The counters of a bus: since it began, or between two scrapes."""

    def __init__(self, counters: Mapping[Series, int]) -> None:
        self._counters = counters

    @classmethod
    def parse(cls, text: str) -> Scrape:
        """Reads Prometheus text."""
        counters: dict[Series, int] = {}
        for line in text.splitlines():
            match = _SAMPLE.match(line)
            if match and match["name"].endswith("_total"):
                labels = frozenset(_LABEL.findall(match["labels"] or ""))
                counters[match["name"], labels] = int(float(match["value"]))
        return cls(counters)

    def since(self, before: Scrape) -> Scrape:
        """What was counted after another scrape."""
        return Scrape(
            {
                series: value - before._counters.get(series, 0)
                for series, value in self._counters.items()
            }
        )

    def total(self, name: str, **labels: str) -> int:
        """The sum of a counter's series that have these labels."""
        return sum(value for _, value in self._of(name, labels))

    def by_reason(self, name: str, **labels: str) -> dict[str, int]:
        """The counter's series that are not zero, by their reason."""
        return {
            dict(found)["reason"]: value for found, value in self._of(name, labels) if value
        }

    def _of(
        self, name: str, labels: Mapping[str, str]
    ) -> list[tuple[frozenset[tuple[str, str]], int]]:
        wanted = frozenset(labels.items())
        return [
            (found, value)
            for (counter, found), value in self._counters.items()
            if counter == name and wanted <= found
        ]


@dataclass(frozen=True)
class Books:
    """All that is known at the end. Subscribers by their names."""

    published: Mapping[str, Any]
    bus: Scrape
    subscribers: Mapping[str, Mapping[str, Any]]

    def contradictions(self) -> list[str]:
        """The sums that do not come out, in words; none if the books balance."""
        wrong = []
        for what, left, right in self._laws():
            if left != right:
                wrong.append(f"{what}: {left} is not {right}")
        return wrong

    def table(self) -> str:
        """Every hop on a line, with what it lost and why."""
        bus, published = self.bus, self.published
        lines = [
            _line("published", published["offered"]),
            _line("  dropped by the publisher", published["dropped"]),
            _line(
                "  lost before the bus",
                bus.total("ingress_lost_events_total"),
                bus.by_reason("ingress_dropped_frames_total"),
            ),
            _line("taken by the bus", bus.total("ingress_events_total")),
            _line(
                "  dropped by the bus before routing",
                bus.total("ingress_dropped_events_total"),
                bus.by_reason("ingress_dropped_events_total"),
            ),
        ]
        for name, counts in self.subscribers.items():
            lines += self._subscriber_lines(name, counts)
        return "\n".join(lines)

    def _subscriber_lines(self, name: str, counts: Mapping[str, Any]) -> list[str]:
        dropped = self.bus.by_reason("egress_dropped_events_total", subscriber=name)
        sent = self.bus.total("egress_events_total", subscriber=name)
        return [
            f"{name}:",
            _line("  dropped by the bus", sum(dropped.values()), dropped),
            _line("  sent by the bus", sent),
            _line("  lost on the way", _missing(counts)),
            _line("  received", counts["received"]),
        ]

    def _laws(self) -> list[tuple[str, int, int]]:
        bus, published = self.bus, self.published
        taken = bus.total("ingress_events_total")
        lost_before = bus.total("ingress_lost_events_total")
        dropped_in = bus.total("ingress_dropped_events_total")
        routed = bus.total("matched_events_total") + bus.total("unmatched_events_total")
        sent = bus.total("egress_events_total")
        dropped_out = bus.total("egress_dropped_events_total")
        laws = [
            ("sent = taken by the bus + lost before it", published["sent"], taken + lost_before),
            (
                "dropped by the publisher = what its stamps told the bus",
                published["dropped"],
                bus.total("ingress_sender_dropped_events_total"),
            ),
            ("taken = dropped + routed", taken, dropped_in + routed),
            ("copies = sent + dropped", bus.total("copies_total"), sent + dropped_out),
        ]
        for name, counts in self.subscribers.items():
            laws += self._subscriber_laws(name, counts, lost_before + dropped_in)
        return laws

    def _subscriber_laws(
        self, name: str, counts: Mapping[str, Any], lost_before_routing: int
    ) -> list[tuple[str, int, int]]:
        dropped = self.bus.total("egress_dropped_events_total", subscriber=name)
        sent = self.bus.total("egress_events_total", subscriber=name)
        missing = _missing(counts)
        counted = lost_before_routing + self.published["dropped"] + dropped + missing
        return [
            (f"{name}: sent = received + lost", sent, counts["received"] + missing),
            (f"{name}: dropped = what its stamps told", dropped, counts["dropped_by_bus"]),
            (
                f"{name}: offered = received + counted losses",
                self.published["offered"],
                counts["received"] + counted,
            ),
            (f"{name}: the lease stood", counts["lapses"], 0),
        ]


def _missing(counts: Mapping[str, Any]) -> int:
    """What is still awaited after the last marker is as good as lost: on this
    way, nothing overtakes it."""
    return int(counts["lost"] + counts["awaited"])


def _line(what: str, count: int, reasons: Optional[Mapping[str, int]] = None) -> str:
    why = ", ".join(f"{reason} {number}" for reason, number in (reasons or {}).items())
    return f"{what:<40}{count:>10}" + (f"  ({why})" if why else "")
