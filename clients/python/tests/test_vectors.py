"""The golden datagrams and topics that all implementations share."""

import json
from pathlib import Path
from typing import Any, Optional

import pytest
from google.protobuf.message import DecodeError

from hailmary._topic import check_pattern, check_topic
from hailmary._wire import bus_pb2

# Not part of the source distribution: in the repository's root.
VECTORS = Path(__file__).resolve().parents[3] / "tests" / "vectors"


def load(name: str) -> Any:
    path = VECTORS / name
    if not path.is_file():
        pytest.skip("the golden datagrams are not beside this copy of the client", allow_module_level=True)
    return json.loads(path.read_text())


FRAMES = [case for case in load("frames.json") if not case.get("implementations_differ")]
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
    with pytest.raises(DecodeError):
        bus_pb2.Frame.FromString(datagram(case))


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
