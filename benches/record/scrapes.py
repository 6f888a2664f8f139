"""A scraper beside a load, and what its scrapes take."""

from __future__ import annotations

import contextlib
import re
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator

import processes

# The end of the bucket of `forward_latency_seconds` that comes nearest to 1 ms.
LATE_SECONDS = "0.001048576"


class Scraper(threading.Thread):
    """Scrapes so often till it is told to end."""

    def __init__(self, bus: processes.Bus, per_second: float) -> None:
        super().__init__(daemon=True)
        self.url = f"http://{bus.admin}/metrics"
        self.period = 1 / per_second
        self.is_over = threading.Event()
        self.seconds: list[float] = []
        self.bytes = 0
        self.error: OSError | None = None

    def run(self) -> None:
        due = time.monotonic()
        while not self.is_over.wait(max(0, due - time.monotonic())):
            start = time.monotonic()
            try:
                self.bytes = len(scrape(self.url))
            except OSError as error:
                self.error = error
                return
            self.seconds.append(time.monotonic() - start)
            due += self.period

    def sample(self) -> dict[str, float]:
        if self.error or not self.seconds:
            raise processes.Failed(f"no scrape: {self.error}")
        return {"scrape_ms": 1_000 * statistics.median(self.seconds), "scrape_bytes": self.bytes}


def scrape(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=processes.PATIENCE_SECONDS) as page:
        return bytes(page.read())


@contextlib.contextmanager
def scraped(bus: processes.Bus, per_second: float) -> Iterator[Scraper | None]:
    """A scraper as long as the block lasts; none at 0 a second."""
    if not per_second:
        yield None
        return
    scraper = Scraper(bus, per_second)
    scraper.start()
    try:
        yield scraper
    finally:
        scraper.is_over.set()
        scraper.join(processes.PATIENCE_SECONDS)


def forwarded(page: str) -> tuple[int, int]:
    """Frames that have been forwarded, and those of them that took longer than LATE_SECONDS."""
    name = r"^hailmary_forward_latency_seconds"
    in_time = re.search(rf'{name}_bucket{{le="{re.escape(LATE_SECONDS)}"}} (\d+)', page, re.MULTILINE)
    frames = re.search(rf"{name}_count (\d+)", page, re.MULTILINE)
    if not (in_time and frames):
        raise processes.Failed("the bus does not tell its forward latency")
    return int(frames.group(1)), int(frames.group(1)) - int(in_time.group(1))
