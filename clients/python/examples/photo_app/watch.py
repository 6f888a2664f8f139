"""Looks at both paths from outside: what processes print, databases, metrics."""

from __future__ import annotations

import time
from collections import Counter
from typing import Optional

from books import Scrape
from processes import Line

from . import database, jobs, settings
from .figures import LOST, Look
from .services import Bus, Worker


class Voice:
    """What a worker told last. A worker that is killed has told all that it will."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.line: Line = worker.wait_for(lambda line: True)
        self.ended = False

    def hear(self, moment: float) -> None:
        """Reads up to what was told after a moment."""

        def take(line: Line) -> bool:
            self.take(line)
            return bool(line["at"] >= moment)

        try:
            if not self.ended:
                self.worker.wait_for(take)
        except RuntimeError:
            self.ended = True

    def take(self, line: Line) -> None:
        self.line = line


class LoadVoice(Voice):
    """What the load saw of the requests; latencies since they were last taken."""

    def __init__(self, worker: Worker) -> None:
        self.counts: Counter[str] = Counter()
        self._latencies: list[float] = []
        super().__init__(worker)
        self.take(self.line)

    def take(self, line: Line) -> None:
        super().take(line)
        for kind, succeeded, seconds in line["answers"]:
            self.counts["requests"] += 1
            self.counts["failed"] += not succeeded
            self.counts[f"accepted {kind}"] += succeeded
            self._latencies.append(seconds)

    def publishers(self, count: str) -> int:
        """A count of the web server's publishers, over all its processes."""
        return sum(counts[count] for counts in self.line["counts"].values())

    def take_latencies(self) -> list[float]:
        latencies, self._latencies = self._latencies, []
        return latencies


class BusCounts:
    """A bus's counts over its restarts, each of which begins at zero."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._ended: list[Scrape] = []
        self._newest: Optional[Scrape] = None

    def refresh(self) -> None:
        """Asks the bus; while it is stopped, what it told last stands."""
        scrape = self._bus.scrape()
        if scrape is None and self._newest is not None:
            self._ended.append(self._newest)
        if scrape is not None or self._ended:
            self._newest = scrape

    def total(self, name: str, **labels: str) -> int:
        return sum(scrape.total(name, **labels) for scrape in self._scrapes())

    def dropped(self) -> Counter[str]:
        """Copies that the bus did not send, by reason."""
        reasons: Counter[str] = Counter()
        for scrape in self._scrapes():
            reasons.update(scrape.by_reason("egress_dropped_events_total"))
        return reasons

    def _scrapes(self) -> list[Scrape]:
        return self._ended + ([] if self._newest is None else [self._newest])


class Watch:
    """Takes looks at everything."""

    def __init__(self, bus: Bus, load: Worker, search: Worker, spam: dict[str, Worker]) -> None:
        self.bus = BusCounts(bus)
        self.load = LoadVoice(load)
        self.search = Voice(search)
        self.spam = {name: Voice(worker) for name, worker in spam.items()}
        self._application = database.connect(settings.application())
        self._results = jobs.results_database()

    def look(self) -> Look:
        """All counts as of now; subscribers and the load tell theirs a moment later."""
        self.bus.refresh()
        now = time.time()
        for voice in (self.load, self.search, *self.spam.values()):
            voice.hear(now)
        counts = Counter(self.load.counts)
        counts.update(self._job_counts())
        counts.update(self._event_counts())
        owners = {name: Counter[str](voice.line["users"]) for name, voice in self.spam.items()}
        return Look(now, counts, owners)

    def living(self) -> list[Voice]:
        """The subscribers that have not ended."""
        return [voice for voice in (self.search, *self.spam.values()) if not voice.ended]

    def close(self) -> None:
        self._application.close()
        self._results.close()

    def _lost_with_worker(self) -> int:
        """What the bus sent to workers that died before they told of it."""
        return sum(
            self.bus.total("egress_events_total", subscriber=name) - voice.line["received"]
            for name, voice in self.spam.items()
            if voice.ended
        )

    def _job_counts(self) -> dict[str, int]:
        # In this order, for all of them grow: what is done was accepted before.
        done = sum(database.count(self._results, table) for table in ("thumbnails", "mails"))
        waiting = database.count(self._application, "outbox")
        accepted = sum(database.count(self._application, table) for table in ("photos", "users"))
        return {"accepted": accepted, "outbox": waiting, "done": done}

    def _event_counts(self) -> dict[str, int]:
        subscribers = (self.search, *self.spam.values())
        counts = {
            "events": self.load.publishers("offered"),
            "indexed": self.search.line["received"],
            "counted": sum(voice.line["received"] for voice in self.spam.values()),
            f"{LOST}no bus": self.load.publishers("refused"),
            f"{LOST}full queue of the bus": self.load.publishers("otherwise dropped"),
            f"{LOST}no subscriber": self.bus.total("unmatched_events_total"),
            f"{LOST}with the killed worker": self._lost_with_worker(),
            f"{LOST}on the way": sum(voice.line["lost"] for voice in subscribers),
        }
        for reason, number in self.bus.dropped().items():
            counts[f"{LOST}bus dropped ({reason})"] = number
        return counts
