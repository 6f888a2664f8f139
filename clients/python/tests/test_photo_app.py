"""The example with two paths, run as a whole and in short."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from photo_app import rabbitmq
from real_bus import needs_program

EXAMPLES = Path(rabbitmq.__file__).resolve().parent.parent

# Those during which no worker of the group comes or goes.
STEADY = (
    *("all is well", "RabbitMQ is stopped", "RabbitMQ starts", "RabbitMQ is back"),
    "all is well again",
)

# How long the load's clients wait for an answer.
CLIENT_TIMEOUT_SECONDS = 5.0

KILLED = "spam-3"

UNTOLD_SHARE_MAX = 0.01


def why_not() -> Optional[str]:
    """What is missing to run it."""
    for module in ("celery", "flask", "gunicorn"):
        if importlib.util.find_spec(module) is None:
            return f"the extra photo-app is not installed: no {module}"
    try:
        rabbitmq.find_server()
    except rabbitmq.Missing as missing:
        return str(missing)
    return None


MISSING = why_not()

pytestmark = [needs_program, pytest.mark.skipif(MISSING is not None, reason=MISSING or "")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The figures of a run, which has ended well."""
    file = tmp_path_factory.mktemp("photo_app") / "report.json"
    command = (sys.executable, "-m", "photo_app", "--seconds-per-phase", "2", "--json", str(file))
    ran = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    yield json.loads(file.read_text())


def phase(report: Any, name: str) -> Any:
    (found,) = (phase for phase in report["phases"] if phase["name"] == name)
    return found


def test_no_request_fails_or_waits_in_any_phase(report: Any) -> None:
    for phase in report["phases"][:-1]:
        assert phase["counts"]["requests"] > 0, phase
        assert phase["counts"]["failed"] == 0, phase
        assert phase["longest"] < CLIENT_TIMEOUT_SECONDS, phase


def test_every_accepted_job_has_its_effect_once(report: Any) -> None:
    truth = report["truth"]
    counts = report["whole"]["counts"]
    assert truth["jobs"] == counts["accepted upload"] + counts["accepted sign-up"] > 0
    assert truth["jobs_undone"] == 0
    assert truth["effects_twice"] == 0


def test_jobs_wait_for_rabbitmq_and_are_done_when_it_is_back(report: Any) -> None:
    stopped = phase(report, "RabbitMQ is stopped")
    assert stopped["waiting"] > 0
    later = (phase(report, name)["counts"] for name in ("RabbitMQ starts", "RabbitMQ is back"))
    assert sum(counts["done"] for counts in later) > stopped["waiting"]


def test_events_flow_while_rabbitmq_is_stopped(report: Any) -> None:
    counts = phase(report, "RabbitMQ is stopped")["counts"]
    assert counts["indexed"] > 0
    assert counts["counted"] > 0


def test_jobs_are_done_while_the_bus_is_stopped(report: Any) -> None:
    stopped = phase(report, "the bus is stopped")
    assert stopped["counts"]["done"] > 0
    assert stopped["lost"]["no bus"] > 0


def test_every_event_arrived_or_was_counted_as_lost(report: Any) -> None:
    whole = report["whole"]
    assert whole["counts"]["indexed"] > 0
    assert whole["counts"]["counted"] > 0
    # What a bus drops between its last scrape and its end, it can tell nobody.
    assert 0 <= whole["untold"] <= whole["counts"]["events"] * UNTOLD_SHARE_MAX


def test_a_loss_in_the_index_is_mended_from_the_database(report: Any) -> None:
    truth = report["truth"]
    assert truth["documents_missing"] > 0
    assert truth["documents_missing_rebuilt"] == 0


def test_all_signals_of_a_user_come_to_one_worker(report: Any) -> None:
    for name in STEADY:
        for user, workers in phase(report, name)["workers_of_users"].items():
            assert len(workers) == 1, (name, user)


def test_the_users_of_a_killed_worker_move_and_no_others(report: Any) -> None:
    before = phase(report, "RabbitMQ is back")["workers_of_users"]
    after = phase(report, "all is well again")["workers_of_users"]
    assert any(workers == [KILLED] for workers in before.values())
    for user, workers in after.items():
        assert KILLED not in workers
        assert workers == before.get(user, workers) or before[user] == [KILLED]
