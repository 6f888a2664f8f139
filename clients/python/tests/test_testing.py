"""The doubles for tests of applications, and the plugin in a run of its own."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from real_bus import PROGRAM, needs_program

import hailmary
from hailmary import Publisher, PublisherStats, Topic
from hailmary.testing import Bus, Recorder, find_program, matches, recording

pytest_plugins = ["pytester"]

VECTORS = Path(__file__).resolve().parents[3] / "tests" / "vectors" / "topics.json"


def payloads(recorder: Recorder) -> list[bytes]:
    return [event.payload for event in recorder.events]


def test_a_recorder_is_a_publisher_that_sends_nowhere() -> None:
    publisher: Publisher = Recorder()
    with publisher:
        publisher.publish("a.b", b"1")
        publisher.resolve()
        assert publisher.ping(timeout=0.01) is None
        assert publisher.stats() == PublisherStats(sent=1)
    publisher.publish("a.b", b"2")
    assert publisher.stats() == PublisherStats(sent=1, closed=1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("a..b", b""), ValueError),
        (("a.b", "text"), TypeError),
        (("a.b", bytes(65_500)), ValueError),
        (("a.b", b"", "key"), TypeError),
        (("a.b", b"", b"", {"n": 1}), TypeError),
        (("a.b", b"", b"", None, -1), ValueError),
    ],
)
def test_a_recorder_finds_what_production_would_raise(
    arguments: Any, error: type[Exception]
) -> None:
    names = ("topic", "payload", "key", "attributes", "time_unix_nano")
    recorder = Recorder()
    for publisher in (recorder, Publisher("127.0.0.1:7277")):
        with publisher, pytest.raises(error):
            publisher.publish(**dict(zip(names, arguments)))
    assert recorder.events == []


def test_a_recorder_is_bounded_and_tells() -> None:
    recorder = Recorder()
    for number in range(10_010):
        recorder.publish("a.b", b"%d" % number)
    assert recorder.stats() == PublisherStats(sent=10_000, would_block=10)
    assert payloads(recorder)[-1] == b"9999"
    recorder.clear()
    recorder.publish("a.b", b"again")
    assert payloads(recorder) == [b"again"]


def test_a_recorder_takes_batches() -> None:
    recorder = Recorder()
    with recorder.batch() as batch:
        batch.publish("a.b", b"1")
        batch.extend("a.c", [b"2", b"3"])
    assert payloads(recorder) == [b"1", b"2", b"3"]
    assert recorder.stats() == PublisherStats(sent=3)


def test_a_recorder_records_where_publishing_is_turned_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HAILMARY_DISABLE", "1")
    recorder = Recorder()
    Topic("a.b", codec=hailmary.raw).publish(b"1", publisher=recorder)
    assert payloads(recorder) == [b"1"]


def test_a_recorder_serves_many_threads() -> None:
    recorder = Recorder()

    def publish() -> None:
        for _ in range(500):
            recorder.publish("a.b", b"")
            assert recorder.events

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorder.events) == recorder.stats().sent == 4000


def test_a_recorder_goes_on_in_a_child() -> None:
    recorder = Recorder()
    recorder.publish("a.b", b"parent")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            recorder.publish("a.b", b"child")
            status = 0 if payloads(recorder) == [b"parent", b"child"] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert payloads(recorder) == [b"parent"]


def test_values_are_those_of_the_topic() -> None:
    topic = Topic("a.b", codec=hailmary.json)
    other = Topic("a.c", codec=hailmary.json)
    recorder = Recorder()
    topic.publish({"id": 1}, publisher=recorder)
    other.publish({"id": 2}, publisher=recorder)
    assert recorder.values(topic) == [{"id": 1}]
    recorder.publish("a.b", b"not JSON")
    with pytest.raises(hailmary.DecodeError):
        recorder.values(topic)


@pytest.mark.skipif(not VECTORS.is_file(), reason="the vectors are not beside this copy")
def test_patterns_match_as_at_the_bus() -> None:
    cases = json.loads(VECTORS.read_text())["matches"]
    assert len(cases) > 20
    for case in cases:
        assert matches(case["topic"], case["pattern"]) == case["matches"], case


def test_a_recorder_filters_by_patterns() -> None:
    recorder = Recorder()
    for topic in ("a", "a.b", "a.b.c"):
        recorder.publish(topic, b"")
    assert [event.topic for event in recorder.matching("a", "*.b")] == ["a", "a.b"]
    assert recorder.matching() == []
    with pytest.raises(ValueError, match="no pattern"):
        recorder.matching("a.>.b")


def test_recording_is_put_back_also_after_an_error() -> None:
    with recording() as outer:
        with pytest.raises(KeyError), recording() as inner:
            hailmary.publish("a.b", b"inner")
            raise KeyError
        hailmary.publish("a.b", b"outer")
        assert hailmary.default_publisher() is outer
    assert payloads(inner) == [b"inner"]
    assert payloads(outer) == [b"outer"]
    assert not isinstance(hailmary.default_publisher(), Recorder)


@needs_program
def test_a_bus_runs_and_counts_and_stops() -> None:
    with Bus(PROGRAM) as bus, Publisher(bus.address) as publisher:
        with hailmary.subscribe("a.*", address=bus.address, name="s", timeout=20) as subscription:
            publisher.publish("a.b", b"1")
            event = subscription.recv(timeout=20)
            assert event is not None and event.payload == b"1"
        while bus.scrape()["hailmary_ingress_events_total"] < 1:
            pass
        assert bus.scrape()['hailmary_egress_events_total{subscriber="s"}'] == 1
        assert bus.stop() == 0
    assert not [thread for thread in threading.enumerate() if "_read" in thread.name]


def test_a_program_that_does_not_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "hailmary"
    program.write_text("#!/bin/sh\nprintf '[]\\n{}\\nno bus today' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"(?s)status 3.*no bus today"):
        Bus(str(program))
    with pytest.raises(OSError):
        Bus(str(tmp_path / "none"))


def test_the_program_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAILMARY_PROGRAM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program() is None
    (tmp_path / "hailmary").touch(mode=0o755)
    assert find_program() == str(tmp_path / "hailmary")
    monkeypatch.setenv("HAILMARY_PROGRAM", "/elsewhere")
    assert find_program() == "/elsewhere"


RECORDER_TESTS = """
import hailmary

photos = hailmary.Topic("search.index.photo", codec=hailmary.json)

def upload(id):
    photos.publish({"id": id})

def test_one(hailmary_recorder):
    upload(1)
    assert hailmary_recorder.values(photos) == [{"id": 1}]

def test_each_has_its_own(hailmary_recorder):
    assert hailmary_recorder.events == []
    assert hailmary.default_publisher() is hailmary_recorder
"""

BUS_TESTS = """
import os, hailmary

def test_bus(hailmary_bus):
    assert os.environ["HAILMARY_BUS"] == hailmary_bus.address
    with hailmary.subscribe("a.>", timeout=20) as subscription:
        hailmary.publish("a.b", b"1")
        assert subscription.recv(timeout=20).payload == b"1"

def test_it_is_gone():
    assert "HAILMARY_BUS" not in os.environ
    assert "127.0.0.1:7277" == os.environ.get("HAILMARY_BUS", "127.0.0.1:7277")
"""


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(tests)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *options)


def test_the_recorder_fixture(pytester: pytest.Pytester) -> None:
    run(pytester, RECORDER_TESTS).assert_outcomes(passed=2)


@needs_program
def test_the_bus_fixture(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAILMARY_BUS", raising=False)
    run(pytester, BUS_TESTS).assert_outcomes(passed=2)


def test_without_a_program_the_bus_fixture_skips(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HAILMARY_PROGRAM", raising=False)
    monkeypatch.delenv("HAILMARY_BUS", raising=False)
    monkeypatch.setenv("PATH", str(pytester.path))
    result = run(pytester, BUS_TESTS, "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*HAILMARY_PROGRAM names none*"])


def test_the_plugin_alone_loads_nothing(pytester: pytest.Pytester) -> None:
    tests = """
import sys

def test_nothing_is_loaded(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("hailmary")
    assert not [name for name in sys.modules if name.split(".")[0] in ("hailmary", "google")]
"""
    run(pytester, tests).assert_outcomes(passed=1)
