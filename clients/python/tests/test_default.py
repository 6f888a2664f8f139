"""The process's default publisher: when it is made, and where to."""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_bus import FakeBus, fake_bus

import hailmary
from hailmary import Publisher, PublisherStats, _default


@pytest.fixture(autouse=True)
def not_made_yet() -> Iterator[None]:
    """Each test begins as a process does."""
    before = dict(_default._publishers)
    _default._publishers.clear()
    yield
    for publisher in _default._publishers.values():
        publisher.close()
    _default._publishers.clear()
    _default._publishers.update(before)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a name server knows: none of the names that a test does not put in."""
    known: dict[str, str] = {}
    real: Any = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **arguments: Any) -> Any:
        is_number = host.replace(".", "").isdigit()
        if is_number or arguments.get("flags", 0) & socket.AI_NUMERICHOST:
            return real(host, port, **arguments)
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")
        return real(known[host], port, **arguments)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name server: who asks for a name fails the test."""
    real: Any = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **arguments: Any) -> Any:
        if not arguments.get("flags", 0) & socket.AI_NUMERICHOST:
            pytest.fail(f"{host} is looked up")
        return real(host, port, **arguments)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_it_goes_to_the_bus_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_bus() as bus:
        monkeypatch.setenv("HAILMARY_BUS", bus.address)
        hailmary.publish("a.b", b"p", key=b"k", attributes={"n": "v"}, time_unix_nano=5)
        hailmary.Topic("a.c", codec=hailmary.json).publish([1])
        first, second = bus.receive_all()
    assert (first.events[0].payload, first.events[0].key) == (b"p", b"k")
    assert (dict(first.events[0].attributes), first.events[0].time_unix_nano) == ({"n": "v"}, 5)
    assert (second.events[0].topic, second.events[0].payload) == ("a.c", b"[1]")
    assert first.stamp.sender == second.stamp.sender


def test_it_is_one_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_bus() as bus, ThreadPoolExecutor(8) as pool:
        monkeypatch.setenv("HAILMARY_BUS", bus.address)
        gate = threading.Barrier(8)

        def first() -> Publisher:
            gate.wait()
            hailmary.publish("a.b", b"")
            return hailmary.default_publisher()

        publishers = {id(future.result()) for future in [pool.submit(first) for _ in range(8)]}
        assert len(publishers) == 1
        assert len({frame.stamp.sender for frame in bus.receive_all()}) == 1
        assert hailmary.default_publisher().stats().sent == 8


@pytest.mark.usefixtures("no_names")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_what_needs_no_name_server_is_ready_at_once(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_bus() as bus:
        monkeypatch.setenv("HAILMARY_BUS", f"{host}:{bus.port}")
        hailmary.publish("a.b", b"")
        assert len(bus.receive_all()) == 1


@pytest.mark.usefixtures("no_names")
def test_a_unix_path_is_ready_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_bus(tmp_path / "bus.sock") as bus:
        monkeypatch.setenv("HAILMARY_BUS", bus.address)
        hailmary.publish("a.b", b"")
        assert len(bus.receive_all()) == 1


@pytest.mark.usefixtures("no_names")
def test_no_name_is_looked_up_while_something_is_published(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("HAILMARY_BUS", "bus.example:7277")
    for _ in range(3):
        hailmary.publish("a.b", b"")
    assert _default.ready_publisher().stats() == PublisherStats(unreachable=3)
    ours = [record for record in caplog.records if "default_publisher()" in record.message]
    assert len(ours) == 1


def test_a_name_is_looked_up_by_who_asks_for_the_publisher(
    names: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    names["bus.example"] = "127.0.0.1"
    with fake_bus() as bus:
        monkeypatch.setenv("HAILMARY_BUS", f"bus.example:{bus.port}")
        assert hailmary.default_publisher() is hailmary.default_publisher()
        names.clear()
        hailmary.default_publisher()
        hailmary.publish("a.b", b"")
        assert len(bus.receive_all()) == 1
    assert caplog.records == []


def test_a_look_up_that_fails_is_done_again_when_asked_for(
    names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_bus() as bus:
        monkeypatch.setenv("HAILMARY_BUS", f"bus.example:{bus.port}")
        hailmary.publish("a.b", b"")
        publisher = hailmary.default_publisher()
        publisher.publish("a.b", b"")
        assert publisher.stats() == PublisherStats(unreachable=2)
        names["bus.example"] = "127.0.0.1"
        assert hailmary.default_publisher() is publisher
        hailmary.publish("a.b", b"")
        (frame,) = bus.receive_all()
    assert (frame.stamp.sequence, frame.stamp.dropped) == (2, 2)


@pytest.mark.usefixtures("no_names")
def test_a_wrong_environment_warns_and_drops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("HAILMARY_BUS", "7277")
    hailmary.publish("a.b", b"")
    assert hailmary.default_publisher().stats() == PublisherStats(unreachable=1)
    ours = [record.message for record in caplog.records if "7277" in record.message]
    assert len(ours) == 1 and "HAILMARY_BUS: '7277'" in ours[0]


@pytest.mark.parametrize("value", ["7277", "http://x", "::", "unix://", "a" * 300, "a..b:1"])
def test_an_import_never_fails_for_the_environment(value: str) -> None:
    program = "import hailmary; hailmary.publish('a.b', b'')"
    environment = {**os.environ, "HAILMARY_BUS": value}
    subprocess.run([sys.executable, "-W", "error", "-c", program], env=environment, check=True)


def test_mistakes_of_the_program_are_raised() -> None:
    with pytest.raises(ValueError, match="no topic"):
        hailmary.publish("a..b", b"")
    with pytest.raises(TypeError, match="payload"):
        hailmary.publish("a.b", "text")  # type: ignore[arg-type]


def test_a_child_goes_on_with_a_flow_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_bus() as bus:
        monkeypatch.setenv("HAILMARY_BUS", bus.address)
        hailmary.publish("a.b", b"parent")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                hailmary.publish("a.b", b"child")
                status = hailmary.default_publisher().stats().offered - 1
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        hailmary.publish("a.b", b"parent again")
        frames = received(bus)
    assert frames["child"][1:] == (0, 0)
    assert frames["parent again"] == (frames["parent"][0], 1, 0)
    assert frames["child"][0] != frames["parent"][0]


def received(bus: FakeBus) -> dict[str, tuple[int, int, int]]:
    return {
        frame.events[0].payload.decode(): (
            frame.stamp.sender,
            frame.stamp.sequence,
            frame.stamp.dropped,
        )
        for frame in bus.receive_all()
    }


def test_publishing_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    topic = hailmary.Topic("a.b", codec=hailmary.json)
    with fake_bus() as bus:
        monkeypatch.setenv("HAILMARY_BUS", bus.address)
        monkeypatch.setenv("HAILMARY_DISABLE", "1")
        hailmary.publish("a.b", b"")
        topic.publish({"id": 42})
        topic.publish({1, 2})
        assert hailmary.default_publisher().stats() == PublisherStats()
        assert bus.receive_all() == []
