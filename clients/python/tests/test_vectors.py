"""The golden datagrams, topics and flows that all implementations share."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest
from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError

from hailmary._flow import Tracker
from hailmary._session import Origin, Session
from hailmary._topic import check_pattern, check_topic
from hailmary._wire import bus_pb2

# Not part of the source distribution: in the repository's root.
VECTORS = Path(__file__).resolve().parents[3] / "tests" / "vectors"


def load(name: str) -> Any:
    path = VECTORS / name
    if not path.is_file():
        pytest.skip("the golden datagrams are not beside this copy of the client", allow_module_level=True)
    return json.loads(path.read_text())


ALL_FRAMES = load("frames.json")
FRAMES = [case for case in ALL_FRAMES if not case.get("implementations_differ")]
TOPICS = load("topics.json")


def datagram(case: dict[str, Any]) -> bytes:
    return bytes.fromhex(case["hex"]) * int(case.get("repeat", 1))


def events_of(frame: bus_pb2.Frame) -> list[dict[str, Any]]:
    return [
        {
            "topic": event.topic,
            "payload_hex": event.payload.hex(),
            "key_hex": event.key.hex(),
            "time_unix_nano": str(event.time_unix_nano),
            "attributes": dict(event.attributes),
        }
        for event in frame.events
    ]


def stamp_of(frame: bus_pb2.Frame) -> Optional[dict[str, Any]]:
    stamp = frame.stamp
    if not frame.HasField("stamp"):
        return None
    return {
        "sender": str(stamp.sender),
        "sequence": str(stamp.sequence),
        "dropped": str(stamp.dropped),
        "hops": stamp.hops,
        "weight": stamp.weight,
    }


def seal_of(frame: bus_pb2.Frame) -> Optional[dict[str, Any]]:
    if not frame.HasField("seal"):
        return None
    return {
        "key_id": frame.seal.key_id,
        "time_unix": str(frame.seal.time_unix),
        "mac_hex": frame.seal.mac.hex(),
    }


@pytest.mark.parametrize("case", [c for c in FRAMES if c["valid"]], ids=lambda case: case["name"])
def test_a_valid_frame_reads_as_told(case: dict[str, Any]) -> None:
    frame = bus_pb2.Frame.FromString(datagram(case))
    assert events_of(frame) == case["events"] * int(case.get("repeat", 1))
    assert stamp_of(frame) == case["stamp"]
    assert frame.WhichOneof("control") == case["control"]
    assert seal_of(frame) == case["seal"]


@pytest.mark.parametrize("case", [c for c in FRAMES if not c["valid"]], ids=lambda case: case["name"])
def test_an_invalid_frame_is_an_error(case: dict[str, Any]) -> None:
    if api_implementation.Type() == "python":
        pytest.skip("the pure Python implementation reads more than there is")
    with pytest.raises(DecodeError):
        bus_pb2.Frame.FromString(datagram(case))


def test_whatever_arrives_a_subscriber_stays_calm() -> None:
    session = Session(bus_pb2.Subscribe(topics=[">"]), 1, 0.0)
    session.poll_transmit(0.0)
    rng = random.Random(7277)
    datagrams = [datagram(case) for case in ALL_FRAMES]
    for _ in range(5_000):
        short = rng.choice(datagrams)[:2_000]
        datagrams.append(spoilt(rng, short))
    for arriving in datagrams:
        for origin in Origin:
            session.handle_datagram(0.0, origin, arriving)
    assert session.stats().ignored_frames > 0


def spoilt(rng: random.Random, intact: bytes) -> bytes:
    """The datagram with a few bytes changed, taken out or put in."""
    changed = bytearray(intact)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(changed) + 1)
        changed[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(changed)


def test_the_pure_python_implementation_serves_as_well() -> None:
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    files = [Path(__file__), Path(__file__).with_name("test_session.py")]
    others = ["-k", "not pure_python"]
    ran = subprocess.run(
        [*command, *others, *files], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("case", TOPICS["topics"], ids=lambda case: repr(case["topic"])[:40])
def test_topics_are_checked_as_told(case: dict[str, Any]) -> None:
    if "why" not in case:
        check_topic(case["topic"])
        return
    with pytest.raises(ValueError, match="is no topic"):
        check_topic(case["topic"])


@pytest.mark.parametrize("case", TOPICS["patterns"], ids=lambda case: repr(case["pattern"])[:40])
def test_patterns_are_checked_as_told(case: dict[str, Any]) -> None:
    if "why" not in case:
        check_pattern(case["pattern"])
        return
    with pytest.raises(ValueError, match="is no pattern"):
        check_pattern(case["pattern"])


@pytest.mark.parametrize("case", load("flows.json"), ids=lambda case: case["name"])
def test_flows_are_followed_as_told(case: dict[str, Any]) -> None:
    flow = tracker(case["first"])
    for step in case["steps"]:
        apply(step, flow)
        assert {**flow.counts()._asdict(), "awaited": flow.awaited} == step["then"], step


def tracker(first: Optional[dict[str, Any]]) -> Tracker:
    if first is None:
        return Tracker.from_zero()
    now = first["at_ms"] / 1000
    return Tracker.from_first(now, int(first["sequence"]), int(first["dropped"]))


def apply(step: dict[str, Any], flow: Tracker) -> None:
    if step["at_ms"] is None:
        flow.settle_all()
    elif step["frame"] is None:
        flow.settle(step["at_ms"] / 1000)
    else:
        frame = step["frame"]
        sequence, dropped = int(frame["sequence"]), int(frame["dropped"])
        flow.record(step["at_ms"] / 1000, sequence, dropped, frame["events"])
