"""A subscriber under whatever may come to its socket, made up by Hypothesis: it delivers what the
protobuf library reads and the lease permits, its books balance, it asks no more often than a timer
permits, and nothing is raised.

`HAILMARY_EXAMPLES` says how many examples each property is tried on. Without it they are few and
the same each time; with it they are others each time.
"""

import functools
import json
import math
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import pytest

pytest.importorskip("hypothesis")

from fake_bus import PATIENCE_SECONDS, fake_bus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_session import BUS, NONCE

from hailmary import Event, protobuf, raw, subscribe
from hailmary import json as json_codec
from hailmary._flow import GAPS_MAX, WINDOW_SECONDS, Tracker
from hailmary._lease import RETRY_SECONDS_MIN
from hailmary._session import NO_FRAME, Origin, Session
from hailmary._wire import bus_pb2

EXAMPLES = os.environ.get("HAILMARY_EXAMPLES")

# Those of each run of the tests: some seconds for all properties together.
EXAMPLES_IN_SHORT = 100

thorough = settings(
    max_examples=int(EXAMPLES or EXAMPLES_IN_SHORT),
    deadline=None,
    database=None,
    derandomize=EXAMPLES is None,
    # On a machine that has much else to do, making inputs up takes its time.
    suppress_health_check=[HealthCheck.too_slow],
)

# Requests that may go out in each of the shortest waits: one by the timer, one for a challenge and
# one for a lease that ended.
REQUESTS_PER_WAIT = 3

Property = Callable[..., None]

# How often each property was tried.
tried: dict[str, int] = {}


def holds_of(
    *strategies: st.SearchStrategy[Any], how: settings = thorough
) -> Callable[[Property], Property]:
    """A property of whatever these make up."""

    def decorate(holds: Property) -> Property:
        @functools.wraps(holds)
        def counted(**made: Any) -> None:
            tried[holds.__name__] = tried.get(holds.__name__, 0) + 1
            holds(**made)

        return how(given(*strategies)(counted))

    return decorate


@pytest.fixture(scope="module", autouse=True)
def what_was_tried(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tells it for the table of SECURITY.md, where somebody asks and everything held."""
    yield
    directory = os.environ.get("HAILMARY_EVIDENCE")
    if directory is None or request.session.testsfailed > 0:
        return
    row = {
        "fault": "any bytes for the Python subscriber",
        "promise": "It raises nothing, hands out what the protobuf library reads and its lease permits, "
        "asks no faster than its timer, and its books balance.",
        "figures": [
            {"what": "properties", "value": len(tried), "unit": "properties"},
            {"what": "tried on", "value": sum(tried.values()), "unit": "made-up inputs"},
        ],
    }
    (Path(directory) / "fuzz_python.json").write_text(json.dumps(row))


uint64 = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
nonces = st.one_of(st.just(NONCE), st.just(NONCE), uint64)
buses = st.sampled_from([BUS, BUS + 1, 0])
texts = st.text("a.*éß\N{CRAB}\0", max_size=12)
cookies = st.one_of(st.just(b"cookie"), st.binary(max_size=400))
pauses = st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.1, 1.0, 3.0, 40.0, 86_400.0])

stamps = st.builds(
    bus_pb2.Stamp,
    sender=buses,
    sequence=uint64,
    dropped=uint64,
    hops=st.integers(0, 2**32 - 1),
    weight=st.floats(),
)
events = st.builds(
    bus_pb2.Event,
    topic=texts,
    payload=st.binary(max_size=20),
    key=st.binary(max_size=5),
    time_unix_nano=uint64,
    attributes=st.dictionaries(texts, texts, max_size=2),
)
answers = st.one_of(
    st.builds(
        lambda **fields: {"challenge": bus_pb2.Challenge(**fields)}, cookie=cookies, nonce=nonces
    ),
    st.builds(
        lambda **fields: {"lease": bus_pb2.Lease(**fields)},
        bus=buses,
        lease_ms=st.sampled_from([0, 1, 3000, 30_000, 2**32 - 1]),
        cookie=cookies,
        nonce=nonces,
    ),
    st.builds(
        lambda **fields: {"refusal": bus_pb2.Refusal(**fields)},
        # Most of the others end all.
        reason=st.sampled_from([0, 4, 4, 5, 5, 5, 99, 1, 2, 3]),
        nonce=nonces,
    ),
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame, with a few bytes changed now and then."""
    control: dict[str, Any] = draw(st.one_of(st.just({}), answers))
    frame = bus_pb2.Frame(events=draw(st.lists(events, max_size=4)), **control)
    if draw(st.booleans()):
        frame.stamp.CopyFrom(draw(stamps))
    datagram = bytearray(frame.SerializeToString())
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(datagram)))
        datagram[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(datagram)


datagrams = st.one_of(frames(), frames(), st.binary(max_size=100))
steps = st.one_of(
    st.tuples(st.just("hand"), st.sampled_from(list(Origin)), datagrams),
    st.tuples(st.just("pause"), pauses),
    st.tuples(st.just("turn")),
)


class Driver:
    """A session, driven as its contract says, and what must hold of it."""

    def __init__(self) -> None:
        self.start = self.now = 1000.0
        self.session = Session(bus_pb2.Subscribe(topics=["a.>"]), NONCE, self.now)
        self.before = self.session.stats()
        self.requests = 0

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def turn(self) -> None:
        self.transmit()
        self.session.handle_timeout(self.now)
        assert self.session.wake_at > self.now, "no turning in a circle"

    def transmit(self) -> None:
        while (request := self.session.poll_transmit(self.now)) is not None:
            self.requests += 1
            assert 64 <= len(request) < 1000
            frame = bus_pb2.Frame.FromString(request)
            assert frame.subscribe.nonce == NONCE
            assert frame.subscribe.topics == ["a.>"]

    def hand(self, origin: Origin, datagram: bytes) -> None:
        ignored = self.session.stats().ignored_frames
        got = self.session.handle_datagram(self.now, origin, datagram)
        frame = decoded(datagram)
        if frame is None:
            assert got == [] and self.session.stats().ignored_frames == ignored + 1
            return
        lease = self.session._lease
        is_ours = frame.HasField("stamp") and frame.stamp.sender == lease.bus and not lease.ended
        expected = list(frame.events) if is_ours else []
        assert [fields_of(event) for event in got] == [fields_of(event) for event in expected]
        assert all(event.weight >= 1 and math.isfinite(event.weight) for event in got)
        if got:
            assert self.session.stats().ignored_frames == ignored

    def check(self) -> None:
        stats = self.session.stats()
        for name, count in asdict(stats).items():
            assert count >= (0 if name == "awaited" else getattr(self.before, name)), name
        self.before = stats
        assert len(self.session._ledger._flow._gaps) <= GAPS_MAX
        waits = 1 + (self.now - self.start) / RETRY_SECONDS_MIN
        assert self.requests <= REQUESTS_PER_WAIT * waits, "asked too often"


def decoded(datagram: bytes) -> Optional[bus_pb2.Frame]:
    try:
        return bus_pb2.Frame.FromString(datagram)
    except NO_FRAME:
        return None


def fields_of(event: Any) -> tuple[Any, ...]:
    return (
        event.topic,
        event.payload,
        event.key,
        event.time_unix_nano,
        dict(event.attributes),
    )


@holds_of(st.lists(steps, max_size=60))
def test_a_session_believes_and_says_what_it_may(taken: list[Any]) -> None:
    driver = Driver()
    driver.turn()
    for what, *arguments in taken:
        getattr(driver, what)(*arguments)
        driver.transmit()
        driver.check()
    driver.session.close()
    assert driver.session.handle_datagram(driver.now, Origin.BUS, b"") == []
    assert driver.session.stats().awaited == 0
    assert driver.session.wake_at == math.inf


said = st.sampled_from(
    [
        bus_pb2.Frame(challenge=bus_pb2.Challenge(cookie=b"c", nonce=NONCE)),
        bus_pb2.Frame(lease=bus_pb2.Lease(bus=BUS, cookie=b"c", nonce=NONCE)),
        bus_pb2.Frame(refusal=bus_pb2.Refusal(reason=bus_pb2.Refusal.UNKNOWN_LEASE, nonce=NONCE)),
        bus_pb2.Frame(refusal=bus_pb2.Refusal(reason=bus_pb2.Refusal.FULL, nonce=NONCE)),
    ]
)


@holds_of(st.lists(said, min_size=8, max_size=40), st.sampled_from([0.0, 0.01, 0.1]))
def test_no_bus_makes_a_session_talk_fast(answers: list[bus_pb2.Frame], wait: float) -> None:
    driver = Driver()
    driver.turn()
    for answer in answers:
        driver.hand(Origin.BUS, answer.SerializeToString())
        driver.transmit()
        driver.check()
        driver.pause(wait)


@holds_of(
    st.booleans(),
    st.lists(
        st.one_of(
            st.tuples(uint64, uint64, st.integers(0, 40_000)),
            st.tuples(st.integers(-70, 70), st.integers(-3, 70), st.integers(0, 9)),
        ),
        max_size=150,
    ),
    st.lists(pauses, min_size=1, max_size=20),
)
def test_no_stamp_makes_a_flow_count_back(
    begins: bool, told: list[tuple[int, int, int]], waits: list[float]
) -> None:
    now = 0.0
    flow = Tracker.from_first(now, 100, 5) if begins else Tracker.from_zero()
    for number, (sequence, dropped, count) in enumerate(told):
        now += waits[number % len(waits)]
        if abs(sequence) <= 70:
            # Near to where the flow is.
            sequence, dropped = max(0, flow.next + sequence), max(0, dropped)
        before = flow.counts()
        flow.record(now, min(sequence, 2**64 - 1), dropped, count)
        assert all(new >= old for new, old in zip(flow.counts(), before))
        assert len(flow._gaps) <= GAPS_MAX
        flow.settle(now)
        assert flow.poll_timeout() > now and flow.awaited >= 0


@holds_of(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("asld")), max_size=GAPS_MAX))
def test_the_books_of_an_honest_flow_balance(fates: list[tuple[int, str]]) -> None:
    """Frames that arrive, or arrive after the next, are lost, or dropped by the sender."""
    flow, now = Tracker.from_zero(), 0.0
    sequence = dropped = 0
    counts = dict.fromkeys("asld", 0)
    late: list[tuple[int, int, int]] = []
    for count, fate in fates:
        at = (sequence, dropped, count)
        sequence += count
        counts[fate] += count
        dropped += count if fate == "d" else 0
        if fate == "a":
            flow.record(now, *at)
            while late:
                flow.record(now, *late.pop())
        elif fate == "s":
            late.append(at)
        now += WINDOW_SECONDS / GAPS_MAX / 2
    for at in late:
        flow.record(now, *at)
    flow.record(now, sequence, dropped, 0)
    assert sum(flow.counts()) + flow.awaited == sequence
    flow.settle_all()
    assert flow.counts() == (counts["a"] + counts["s"], counts["l"], counts["d"], 0)


@holds_of(st.binary(max_size=300))
def test_what_is_no_payload_of_a_codec_is_a_value_error_or_the_librarys(payload: bytes) -> None:
    assert raw.decode(payload) == payload
    for codec in (json_codec, protobuf(bus_pb2.Frame)):
        try:
            value = codec.decode(payload)
            # What JSON's escapes and exponents can say is more than it can be made of.
            again = codec.decode(codec.encode(value))
        except (ValueError, RecursionError, *NO_FRAME):
            continue
        assert again == value or "nan" in str(value)


@holds_of(
    st.lists(st.tuples(st.booleans(), datagrams), max_size=30),
    how=settings(thorough, max_examples=max(1, int(EXAMPLES or EXAMPLES_IN_SHORT) // 10)),
)
def test_a_subscription_hands_out_what_is_its_own(sent: list[tuple[bool, bytes]]) -> None:
    """Over a real socket, between two events of the bus: from its own address and from others."""
    with fake_bus() as bus, ThreadPoolExecutor(1) as pool:
        begun = pool.submit(
            lambda: subscribe(">", address=bus.address, timeout=PATIENCE_SECONDS)
        )
        bus.let_in()
        with begun.result(PATIENCE_SECONDS) as subscription:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for is_of_bus, datagram in sent:
                    sender = bus.ingress if is_of_bus else stranger
                    sender.sendto(datagram, bus.subscriber)
            bus.send(b"the last of all")
            while (event := subscription.recv(PATIENCE_SECONDS)) is not None:
                assert isinstance(event, Event)
                if event.payload == b"the last of all":
                    return
            raise AssertionError("the bus's own event did not come")
