"""What the run saw, phase by phase: counts, latencies, users of the group.

Nothing here asks anybody. Counts are cumulative and named; a phase's figures are
the differences between two looks, which `watch` takes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Counts of events that did not arrive begin with this, and go on with where.
LOST = "lost: "

# Which worker counted how many signals of which user.
Owners = Mapping[str, Counter[str]]

_LIVE = "{:<24}{:>6}{:>7}{:>7}{:>7}{:>7} |{:>7}{:>8}{:>7} |{:>7}{:>8}{:>8}{:>6}"
_LIVE_HEADS = (
    ("", "req/s", "failed", "p50 ms", "p99 ms", "max ms"),
    ("outbox", "broker", "done"),
    ("events", "indexed", "counted", "lost"),
)
_FINAL = "{:<24}{:>4}{:>6}{:>7}{:>7}{:>7}{:>7} |{:>9}{:>6}{:>8} |{:>7}{:>8}{:>8}{:>6}  {}"
_FINAL_HEADS = (
    ("phase", "s", "req/s", "failed", "p50 ms", "p99 ms", "max ms"),
    ("accepted", "done", "waiting"),
    ("events", "indexed", "counted", "lost", "where"),
)


@dataclass(frozen=True)
class Look:
    """All counts at one moment since the run began."""

    at: float
    counts: Counter[str]
    owners: Owners


@dataclass(frozen=True)
class Phase:
    """What happened between two looks."""

    name: str
    seconds: float
    latencies: Sequence[float]
    counts: Counter[str]
    waiting: int
    owners: Owners

    @classmethod
    def between(cls, name: str, begin: Look, end: Look, latencies: Iterable[float]) -> Phase:
        return cls(
            name,
            end.at - begin.at,
            sorted(latencies),
            _difference(end.counts, begin.counts),
            end.counts["accepted"] - end.counts["done"],
            {
                worker: _difference(users, begin.owners.get(worker, Counter()))
                for worker, users in end.owners.items()
            },
        )

    @property
    def untold(self) -> int:
        """Events of which nobody told what became of them. Between two looks, also
        those that were underway; after all, such as what a bus dropped between
        its last scrape and its end."""
        counts = self.counts
        return counts["events"] - counts["indexed"] - counts["counted"] - sum(self.lost.values())

    @property
    def lost(self) -> dict[str, int]:
        """Events that did not arrive, by where they were lost."""
        return {
            name[len(LOST) :]: number
            for name, number in sorted(self.counts.items())
            if name.startswith(LOST) and number
        }

    def workers_of_users(self) -> dict[str, list[str]]:
        """Which workers counted each user's signals: one, while none comes or goes."""
        workers = defaultdict(list)
        for worker, users in sorted(self.owners.items()):
            for user, number in users.items():
                if number:
                    workers[user].append(worker)
        return dict(workers)

    def row(self) -> str:
        """A line of the final table."""
        counts = self.counts
        return _FINAL.format(
            *(self.name, round(self.seconds), *self._requests()),
            *(counts["accepted"], counts["done"], self.waiting),
            *(counts["events"], counts["indexed"], counts["counted"]),
            *(sum(self.lost.values()), _in_words(self.lost)),
        ).rstrip()

    def live_row(self, end: Look) -> str:
        """A line while it runs: the requests of late, and the counts since the
        run began."""
        counts = end.counts
        in_broker = counts["accepted"] - counts["outbox"] - counts["done"]
        lost = sum(number for name, number in counts.items() if name.startswith(LOST))
        return _LIVE.format(
            *(self.name, *self._requests()),
            *(counts["outbox"], in_broker, counts["done"]),
            *(counts["events"], counts["indexed"], counts["counted"], lost),
        )

    def as_json(self) -> dict[str, Any]:
        """All of it, for another program."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "p50": percentile(self.latencies, 0.5),
            "p99": percentile(self.latencies, 0.99),
            "longest": percentile(self.latencies, 1.0),
            "counts": dict(self.counts),
            "waiting": self.waiting,
            "lost": self.lost,
            "untold": self.untold,
            "workers_of_users": self.workers_of_users(),
        }

    def _requests(self) -> tuple[str, ...]:
        return (
            f"{len(self.latencies) / self.seconds:.0f}",
            f"{self.counts['failed']}",
            *(f"{1000 * percentile(self.latencies, share):.1f}" for share in (0.5, 0.99, 1.0)),
        )


def live_heads() -> str:
    """What stands above the rows that are printed while it runs."""
    return _heads(_LIVE, _LIVE_HEADS)


def table(phases: Iterable[Phase]) -> str:
    """The phases side by side."""
    return "\n".join([_heads(_FINAL, _FINAL_HEADS), *(phase.row() for phase in phases)])


def moved(before: Phase, after: Phase) -> dict[str, tuple[list[str], list[str]]]:
    """The users that another worker counts than in an earlier phase."""
    earlier, later = before.workers_of_users(), after.workers_of_users()
    return {
        user: (earlier[user], later[user])
        for user in sorted(earlier.keys() & later.keys())
        if earlier[user] != later[user]
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of an ordered sequence does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _heads(line: str, heads: Sequence[Sequence[str]]) -> str:
    titles = line.replace("|", " ").format(*(head for group in heads for head in group))
    widths = [len(part) for part in line.format(*[""] * line.count("{")).split("|")]
    groups = ("requests", "must not be lost: jobs", "may be lost")
    names = (group.center(width) for group, width in zip(groups, widths))
    return "|".join(names).rstrip() + "\n" + titles.rstrip()


def _difference(end: Counter[str], begin: Counter[str]) -> Counter[str]:
    return Counter({name: end[name] - begin[name] for name in end})


def _in_words(lost: Mapping[str, int]) -> str:
    return ", ".join(f"{where} {number}" for where, number in lost.items())
