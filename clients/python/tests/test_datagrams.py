"""What this client says, byte for byte, by `tests/vectors/datagrams.json`.

Sender ids and nonces are random, and so are put in place of the golden ones where
they cannot be told.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus
from test_vectors import load

from hailmary import Publisher
from hailmary._session import Origin, Session
from hailmary._wire import bus_pb2

GOLDEN = load("datagrams.json")
SENDER, NONCE = int(GOLDEN["sender"]), int(GOLDEN["nonce"])


def by_name(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", GOLDEN[kind], ids=lambda case: case["name"])


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with fake_bus() as bus:
        yield bus


def publish_before(publisher: Publisher, bus: FakeBus, case: dict[str, Any]) -> None:
    """So much that the stamp is the golden one."""
    for _ in range(case["dropped"]):
        publisher.publish("not..legal", b"")
    for _ in range(case["sent"]):
        publisher.publish("a", b"")
        bus.receive()


def fields_of(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": bytes.fromhex(event["key_hex"]),
        "attributes": event["attributes"],
        "time_unix_nano": int(event["time_unix_nano"]),
    }


def receive(bus: FakeBus) -> bytes:
    """The next datagram, with the golden ids."""
    datagram, _ = bus.ingress.recvfrom(65_536)
    frame = bus_pb2.Frame.FromString(datagram)
    ids = {frame.stamp.sender: SENDER, frame.ping.nonce: NONCE}
    for ours, golden in ids.items():
        if ours:
            old, new = (id.to_bytes(8, "little") for id in (ours, golden))
            assert datagram.count(old) == 1
            datagram = datagram.replace(old, new)
    return datagram


@by_name("published")
def test_published(case: dict[str, Any], bus: FakeBus) -> None:
    with Publisher(bus.address, on_error="drop") as publisher:
        publish_before(publisher, bus, case)
        events = [
            (event["topic"], bytes.fromhex(event["payload_hex"]), fields_of(event))
            for event in case["events"]
        ]
        with publisher.batch() as batch:
            for topic, payload, fields in events:
                batch.publish(topic, payload, **fields)
        assert receive(bus).hex() == case["hex"]
    if len(events) > 1:
        return
    with Publisher(bus.address, on_error="drop") as publisher:
        publish_before(publisher, bus, case)
        publisher.publish(events[0][0], events[0][1], **events[0][2])
        assert receive(bus).hex() == case["hex"]


@by_name("dialogues")
def test_dialogue(case: dict[str, Any]) -> None:
    session = Session(bus_pb2.Subscribe(**case["request"]), NONCE, 0.0)
    for step in case["steps"]:
        now = step["at_ms"] / 1000
        if "hears" in step:
            session.handle_datagram(now, Origin.BUS, bytes.fromhex(step["hears"]))
            continue
        session.handle_timeout(now)
        said = session.poll_transmit(now) if "says" in step else session.close()
        assert said is not None and said.hex() == step.get("says", step.get("leaves")), step
        assert session.poll_transmit(now) is None


@by_name("pings")
def test_ping(case: dict[str, Any], bus: FakeBus) -> None:
    with Publisher(bus.address, on_error="drop") as publisher, ThreadPoolExecutor(1) as pool:
        publish_before(publisher, bus, case)
        asked = pool.submit(publisher.ping, 0.01)
        assert receive(bus).hex() == case["hex"]
        assert asked.result(PATIENCE_SECONDS) is None
