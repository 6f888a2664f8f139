"""Threads that share a publisher: one flow, in which each keeps its order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_bus import RealBus

from hailmary import subscribe
from servers.running import PATIENCE_SECONDS, run
from servers.tap import Tap

THREADS = 20
EVENTS = 300


def publish(directory: Path, bus: str) -> dict[str, Any]:
    (told,) = run("threads.py", EVENTS, directory=directory, environment={"HAILMARY_BUS": bus})
    return told


def test_each_keeps_its_order_and_all_are_counted(tap: Tap, directory: Path) -> None:
    told = publish(directory, tap.address)
    assert told["offered"] > THREADS * EVENTS
    assert len(told["sockets"]) == 1
    tap.check([told])
    assert len(tap.accounts()) == 1
    for name in range(THREADS):
        numbers = [event["number"] for event in tap.payloads() if event["name"] == name]
        assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("way", ["udp", "unix"])
def test_each_keeps_its_order_through_the_bus(bus: RealBus, directory: Path, way: str) -> None:
    address = getattr(bus, way)
    with subscribe(">", address=bus.udp, timeout=PATIENCE_SECONDS) as subscription:
        told = publish(directory, address)
        came: dict[int, list[int]] = {}
        while -1 not in came:
            event = subscription.recv(PATIENCE_SECONDS)
            assert event is not None
            payload = json.loads(event.payload)
            came.setdefault(payload["name"], []).append(payload["number"])
        stats = subscription.stats()
    scrape = bus.scrape()
    taken = scrape.total("ingress_events_total")
    assert told["sent"] == taken + scrape.total("ingress_lost_events_total")
    assert taken == stats.received + stats.lost + stats.awaited + stats.dropped_by_bus
    assert all(numbers == sorted(set(numbers)) for numbers in came.values())
