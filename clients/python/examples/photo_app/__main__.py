"""Runs the whole site under load, lets each path fail, and shows both.

    python -m photo_app

Starts RabbitMQ, a bus, gunicorn, Celery and the rest on free ports, prints a row
a second, and in the end a table of the phases. Ends with status 1 if a job was
lost or a request failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from . import services, settings
from .figures import Phase, moved, table
from .rabbitmq import Missing, RabbitMQ, free_port
from .run import Run
from .services import Bus, Worker
from .truth import Truth, find_truth
from .watch import Watch

RATE = 60.0
SECONDS = 10.0

SPAM_WORKERS = ("spam-1", "spam-2", "spam-3")


def main() -> int:
    arguments = read_arguments()
    # What is ended ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with start_site(arguments.rate) as run:
            run.all_phases(arguments.seconds_per_phase)
            whole = run.settle()
            truth = find_truth()
    except Missing as missing:
        raise SystemExit(str(missing)) from None
    print_end(run, whole, truth)
    if arguments.json:
        arguments.json.write_text(json.dumps(report(run, whole, truth)))
    failed = sum(phase.counts["failed"] for phase in run.phases)
    return 1 if failed or truth.jobs_undone or truth.effects_twice else 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds-per-phase", type=float, default=SECONDS)
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


@contextmanager
def start_site(rate: float) -> Iterator[Run]:
    """Starts everything, each once what it needs is there, and ends it in reverse."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="photo-app-")))
        broker = stack.enter_context(RabbitMQ())
        bus = Bus(directory)
        set_environment(directory, broker, bus)
        stack.callback(bus.stop)
        bus.start()
        search = stack.enter_context(Worker("search"))
        spam = {name: stack.enter_context(Worker("spam", name)) for name in SPAM_WORKERS}
        for subscriber in (search, *spam.values()):
            # It tells its counts from when it has a lease.
            subscriber.wait_for(lambda line: True)
        web = f"127.0.0.1:{free_port()}"
        for command in (services.relay(), services.celery(), services.gunicorn(web)):
            stack.enter_context(services.service(command, directory))
        services.wait_for_server(web)
        load = stack.enter_context(Worker("load", web, "--rate", rate))
        watch = stack.enter_context(closing(Watch(bus, load, search, spam)))
        yield Run(broker, bus, spam[SPAM_WORKERS[-1]], watch)


def set_environment(directory: Path, broker: RabbitMQ, bus: Bus) -> None:
    """Tells all that is started from here where everything is."""
    path = os.environ.get("PYTHONPATH")
    os.environ.update(
        {
            settings.DIRECTORY: str(directory),
            settings.BROKER: broker.url,
            "HAILMARY_BUS": bus.address,
            "PYTHONPATH": os.pathsep.join([str(services.EXAMPLES), *([path] if path else [])]),
        }
    )


def print_end(run: Run, whole: Phase, truth: Truth) -> None:
    """The final table, and what it means."""
    print("\n" + table([*run.phases, whole]))
    print(f"\nevents: {sum(whole.lost.values())} of {whole.counts['events']} lost, {whole.untold} untold")
    print(truth)
    before, after = run.around_kill()
    moves, total = moved(before, after), len(before.workers_of_users())
    print(f"spam: of {total} users, {len(moves)} moved to another worker when theirs was killed")
    print(
        "while RabbitMQ was stopped, a request that had called Celery itself would have waited"
        f" {run.direct['seconds']:.2f} s, for a {run.direct['error'] or 'success'}"
    )


def report(run: Run, whole: Phase, truth: Truth) -> dict[str, Any]:
    """All figures, for another program."""
    return {
        "phases": [phase.as_json() for phase in run.phases],
        "whole": whole.as_json(),
        "truth": dataclasses.asdict(truth),
        "direct": run.direct,
        "moved": moved(*run.around_kill()),
    }


if __name__ == "__main__":
    sys.exit(main())
