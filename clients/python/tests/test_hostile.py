"""What strangers, and a bus gone mad, can send to a subscriber: it is never raised,
and no memory grows by it."""

import json
import random
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_bus import fake_bus
from test_session import BUS, NONCE, subscribed

from hailmary import Event, Runner
from hailmary._flow import GAPS_MAX
from hailmary._hand_over import HandOver
from hailmary._lease import Reason
from hailmary._session import Origin
from hailmary._wire import bus_pb2

VECTORS = Path(__file__).resolve().parents[3] / "tests" / "vectors" / "frames.json"

# Each of them some seconds; a longer hunt takes another seed and more.
SEEDS = range(4)
DATAGRAMS = 3000


def seeds_of_mutation() -> list[bytes]:
    """Frames of all kinds that are for the subscription of the tests."""
    stamp = bus_pb2.Stamp(sender=BUS, sequence=3, dropped=1, weight=2.0)
    event = bus_pb2.Event(topic="a.b", payload=b"p", key=b"k", attributes={"n": "v"})
    frames = [
        bus_pb2.Frame(events=[event] * 3, stamp=stamp),
        bus_pb2.Frame(stamp=stamp),
        bus_pb2.Frame(lease=bus_pb2.Lease(bus=BUS, lease_ms=1, cookie=b"c", nonce=NONCE)),
        bus_pb2.Frame(
            lease=bus_pb2.Lease(bus=BUS + 1, lease_ms=2**32 - 1, cookie=b"c", nonce=NONCE),
            stamp=stamp,
        ),
        bus_pb2.Frame(challenge=bus_pb2.Challenge(cookie=b"c", nonce=NONCE)),
        bus_pb2.Frame(refusal=bus_pb2.Refusal(reason=bus_pb2.Refusal.UNKNOWN_LEASE, nonce=NONCE)),
        bus_pb2.Frame(refusal=bus_pb2.Refusal(reason=bus_pb2.Refusal.FULL, nonce=NONCE)),
        bus_pb2.Frame(pong=bus_pb2.Pong(nonce=NONCE, bus=BUS)),
    ]
    own: list[bytes] = [frame.SerializeToString() for frame in frames]
    if not VECTORS.is_file():
        return own
    golden = json.loads(VECTORS.read_text())
    return own + [bytes.fromhex(case["hex"]) for case in golden if "repeat" not in case]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    datagram = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        at = rng.randrange(len(datagram) + 1)
        what = rng.randrange(4)
        if what == 0:
            datagram[at:at] = rng.randbytes(rng.randrange(1, 12))
        elif what == 1:
            del datagram[at : at + rng.randrange(1, 12)]
        elif what == 2 and at < len(datagram):
            datagram[at] ^= 1 << rng.randrange(8)
        else:
            datagram += rng.choice(seeds)
    return bytes(datagram)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_datagram_is_raised_and_the_counts_hold(seed: int) -> None:
    rng, seeds = random.Random(seed), seeds_of_mutation()
    subscriber = subscribed()
    before = subscriber.session.stats()
    for _ in range(DATAGRAMS):
        subscriber.now += rng.choice([0.0, 0.001, 0.5, 40.0])
        request = subscriber.session.poll_transmit(subscriber.now)
        assert request is None or 64 <= len(request) < 1000
        origin = rng.choice(list(Origin))
        events = subscriber.session.handle_datagram(subscriber.now, origin, mutated(rng, seeds))
        assert all(isinstance(event, Event) for event in events)
        subscriber.session.handle_timeout(subscriber.now)
        subscriber.session.poll_loss()
        stats = subscriber.session.stats()
        for name, count in vars(stats).items():
            assert count >= 0
            if name != "awaited":
                assert count >= getattr(before, name), name
        before = stats
        assert len(subscriber.session._ledger._flow._gaps) <= GAPS_MAX + 1
        if subscriber.session.refused is not None:
            assert isinstance(subscriber.session.refused, Reason)
            subscriber = subscribed()
            before = subscriber.session.stats()


def size_of(thing: Any, seen: set[int]) -> int:
    """Bytes of a thing and all that it alone refers to, roughly."""
    if id(thing) in seen or isinstance(thing, type):
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    slots = getattr(type(thing), "__slots__", ())
    parts = [getattr(thing, slot) for slot in slots if hasattr(thing, slot)]
    parts += list(getattr(thing, "__dict__", {}).values())
    if isinstance(thing, (list, tuple, set)) or type(thing).__name__ == "deque":
        parts += list(thing)
    size += thing.ByteSize() if hasattr(thing, "ByteSize") else 0
    return size + sum(size_of(part, seen) for part in parts)


def test_no_flow_of_stamps_grows_the_session() -> None:
    rng = random.Random(7)
    subscriber = subscribed()
    sequence = 0
    sizes = []
    for step in range(20_000):
        subscriber.now += 0.0001
        # Gaps without end, in order and out of it.
        sequence += rng.randrange(1, 5)
        subscriber.events(max(0, sequence - rng.choice([0, 0, 9])), 1, dropped=step % 7)
        subscriber.grant(cookie=bytes(rng.randrange(300)))
        if step % 1000 == 999:
            sizes.append(size_of(subscriber.session, set()))
    assert max(sizes[5:]) < 1.5 * max(sizes[:5])
    assert max(sizes) < 100_000


@pytest.mark.parametrize("seed", SEEDS)
def test_hand_overs_hold_no_more_than_they_may(seed: int) -> None:
    rng = random.Random(seed)
    hand_over: HandOver[int] = HandOver(50, 1000)
    waiting: list[int] = []
    offered = 0
    for _ in range(2000):
        if rng.random() < 0.4:
            taken = hand_over.take()
            assert taken == waiting[: len(taken)]
            del waiting[: len(taken)]
            continue
        items = list(range(offered, offered + rng.randrange(1, 40)))
        offered += len(items)
        refused = hand_over.offer(items, rng.randrange(400))
        waiting += items[: len(items) - refused]
        assert len(hand_over) == len(waiting) <= 50
        assert hand_over._put_bytes - hand_over._taken_bytes < 1000 + 400
        assert refused == 0 or not hand_over.has_room


def test_long_events_are_bounded_by_their_bytes() -> None:
    hand_over: HandOver[bytes] = HandOver(1000, 100_000)
    refused = sum(hand_over.offer([b"long"], 60_000) for _ in range(10))
    assert (len(hand_over), refused) == (2, 8)
    hand_over.take()
    assert hand_over.has_room and hand_over.offer([b"long"], 60_000) == 0


def test_a_runner_survives_what_strangers_send() -> None:
    came = threading.Event()
    rng, seeds = random.Random(1), seeds_of_mutation()

    def handle(event: Event) -> None:
        if event.payload == b"last":
            came.set()

    with fake_bus() as bus, Runner(handle, ">", address=bus.address) as runner:
        bus.let_in()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(500):
                stranger.sendto(mutated(rng, seeds)[:60_000], bus.subscriber)
        while not came.wait(0.05):
            bus.send(b"last")
        assert runner.stats().ignored_frames > 0
        assert not runner.wait(0)
