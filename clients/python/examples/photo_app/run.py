"""The run: the phases that the site goes through while it is under load."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

from processes import Line

from .figures import Look, Phase, live_heads
from .rabbitmq import RabbitMQ
from .services import Bus, Worker
from .watch import Watch

# How often a row is printed while it runs.
ROW_SECONDS = 1.0

# How many rows until the heads are printed again.
HEADS_ROWS = 20

# How long a phase may go on for its condition: only what is broken does.
PATIENCE_SECONDS = 120.0

# Before the last counts: a subscriber takes a renewal and a wait to count a loss.
SETTLING_SECONDS = 8.0


class Run:
    """The site under load, with what is needed to harm and to watch it."""

    def __init__(self, broker: RabbitMQ, bus: Bus, victim: Worker, watch: Watch) -> None:
        self._broker = broker
        self._bus = bus
        self._victim = victim
        self._watch = watch
        self._began = Look(time.time(), Counter(), {})
        self._newest = watch.look()
        self._rows = 0
        self._latencies: list[float] = []
        self.phases: list[Phase] = []
        self.direct: Line = {}
        """What a request would have paid that had asked Celery itself."""

    def all_phases(self, seconds: float) -> None:
        """Lets each path fail while the other one and the requests go on."""
        self._phase("the first requests", 0, until=lambda look: look.counts["done"] > 0)
        self._phase("all is well", seconds)
        self._phase("RabbitMQ is stopped", seconds, self._stop_broker)
        self._phase("RabbitMQ starts", 0, self._broker.start)
        self._phase("RabbitMQ is back", seconds, until=_hardly_a_job_waits)
        self._phase("a spam worker is killed", seconds, self._victim.kill, self._victim_is_gone)
        self._phase("the bus is stopped", seconds, self._bus.stop)
        self._phase("the bus starts", 0, self._bus.start, self._subscribers_are_back)
        self._phase("all is well again", seconds)

    def settle(self) -> Phase:
        """Ends the load and waits for what is underway; returns the whole run."""
        self._watch.load.worker.stop()
        self._phase("the load has ended", SETTLING_SECONDS, until=_no_job_waits)
        return Phase.between("the whole run", self._began, self._newest, self._latencies)

    def around_kill(self) -> tuple[Phase, Phase]:
        """The phases before and after a worker of the group was killed, in which
        none came or went."""
        phases = {phase.name: phase for phase in self.phases}
        return phases["RabbitMQ is back"], phases["all is well again"]

    def _phase(
        self,
        name: str,
        seconds: float,
        action: Callable[[], Any] = lambda: None,
        until: Callable[[Look], bool] = lambda look: True,
    ) -> None:
        """Does something, and watches till it is done and a condition holds, for
        some seconds at least."""
        begin, latencies = self._newest, list[float]()
        with ThreadPoolExecutor(1) as executor:
            doing = executor.submit(action)
            while True:
                latencies += self._row(name)
                now = self._newest
                if doing.done() and now.at - begin.at >= seconds and until(now):
                    break
                if now.at - begin.at > seconds + PATIENCE_SECONDS:
                    raise TimeoutError(f"{name}: this went on for too long")
        doing.result()
        self.phases.append(Phase.between(name, begin, self._newest, latencies))
        self._latencies += latencies

    def _row(self, name: str) -> list[float]:
        """Looks, prints what is new, and returns the newest latencies."""
        if self._rows % HEADS_ROWS == 0:
            print(live_heads())
        self._rows += 1
        time.sleep(ROW_SECONDS)
        before, self._newest = self._newest, self._watch.look()
        latencies = self._watch.load.take_latencies()
        row = Phase.between(name, before, self._newest, latencies).live_row(self._newest)
        print(row, flush=True)
        return latencies

    def _stop_broker(self) -> None:
        self._broker.stop()
        with Worker("direct") as direct:
            self.direct = direct.wait_for(lambda line: True)

    def _victim_is_gone(self, _: Look) -> bool:
        """Whether the bus gives the killed worker's users to the others."""
        return self._watch.bus.total("leases_expired_total") > 0

    def _subscribers_are_back(self, _: Look) -> bool:
        """Whether all that live have a lease of the new bus."""
        return all(voice.line["bus_restarts"] for voice in self._watch.living())


def _no_job_waits(look: Look) -> bool:
    return look.counts["accepted"] == look.counts["done"]


def _hardly_a_job_waits(look: Look) -> bool:
    """While new ones come, some always do."""
    return look.counts["accepted"] - look.counts["done"] < 10
