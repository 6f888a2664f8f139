"""Groups, samples, rates and old events at the real program."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_bus import PATIENCE_SECONDS
from real_bus import RealBus, needs_program, real_bus

from hailmary import Event, Publisher, Reason, Refused, Subscription, SubscriptionStats, subscribe

pytestmark = needs_program

# Events that are published before it is looked whether the bus has them: fewer
# than its smallest buffer holds.
AT_ONCE = 100


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[RealBus]:
    with real_bus(tmp_path) as bus:
        yield bus


def wait_for(bus: RealBus, metric: str, least: int) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while bus.scrape().total(metric) < least:
        assert time.monotonic() < until


def publish(bus: RealBus, topic: str, keys: list[bytes]) -> None:
    """One event for each key, none of which a full buffer loses."""
    before = bus.scrape().total("ingress_events_total")
    with Publisher(bus.udp) as publisher:
        for count, key in enumerate(keys, 1):
            publisher.publish(topic, b"", key=key)
            if count % AT_ONCE == 0 or count == len(keys):
                wait_for(bus, "ingress_events_total", before + count)


def take_all(
    bus: RealBus, name: str, subscription: Subscription
) -> tuple[list[Event], SubscriptionStats]:
    """What comes till all that the bus had for it is told of: with the next renewal."""
    scrape = bus.scrape()
    sent = scrape.total("egress_events_total", subscriber=name)
    dropped = scrape.total("egress_dropped_events_total", subscriber=name)
    until = time.monotonic() + PATIENCE_SECONDS
    events = []
    while (subscription.stats().received, subscription.stats().dropped_by_bus) != (sent, dropped):
        assert time.monotonic() < until
        event = subscription.recv(timeout=0.05)
        if event is not None:
            events.append(event)
    while True:
        event = subscription.recv(timeout=0)
        if event is None:
            return events, subscription.stats()
        events.append(event)


def test_of_a_group_one_member_gets_each_key(bus: RealBus) -> None:
    keys = [b"user-%d" % number for number in range(200)] * 2
    names = ("a", "b", "c")
    members = {
        name: subscribe(
            "x", address=bus.udp, name=name, group="g", timeout=PATIENCE_SECONDS
        )
        for name in names
    }
    alone = subscribe("x", address=bus.udp, name="alone", timeout=PATIENCE_SECONDS)
    publish(bus, "x", keys)
    owned = {}
    for name, member in members.items():
        with member:
            events, stats = take_all(bus, name, member)
        owned[name] = Counter(event.key for event in events)
        assert len(owned[name]) > len(keys) / 2 / 5
        assert (stats.lost, stats.dropped_by_bus) == (0, 0)
    assert sum(owned.values(), Counter()) == Counter(keys)
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        assert not owned[one].keys() & owned[other].keys()
    with alone:
        assert [event.key for event in take_all(bus, "alone", alone)[0]] == keys


def test_a_sample_comes_with_its_weight(bus: RealBus) -> None:
    share, number = 0.25, 1000
    keys = [b"user-%d" % key for key in range(number)]
    with subscribe(
        ">", address=bus.udp, name="quarter", sample=share, timeout=PATIENCE_SECONDS
    ) as quarter:
        publish(bus, "x", keys * 2)
        events, stats = take_all(bus, "quarter", quarter)
    assert {event.weight for event in events} == {4.0}
    assert set(Counter(event.key for event in events).values()) == {2}
    # The keys are always the same, and so is the sum. Four standard deviations of
    # a weighted binomial count, for keys that come twice.
    error = sum(event.weight for event in events) - 2 * number
    assert abs(error) < 2 * 4 * math.sqrt(number * (1 - share) / share)
    scrape = bus.scrape()
    dropped = scrape.by_reason("egress_dropped_events_total", subscriber="quarter")
    assert dropped == {"sampled": stats.dropped_by_bus}
    assert stats.received + stats.dropped_by_bus == scrape.total("copies_total")
    assert (stats.lost, stats.awaited, stats.received) == (0, 0, len(events))


def test_two_buses_keep_the_same_keys(tmp_path: Path) -> None:
    keys = [b"user-%d" % key for key in range(300)]
    kept = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with real_bus(tmp_path / name) as bus:
            with subscribe(
                ">", address=bus.udp, name="n", sample=0.1, timeout=PATIENCE_SECONDS
            ) as subscription:
                publish(bus, "x", keys)
                kept.append([event.key for event in take_all(bus, "n", subscription)[0]])
    assert kept[0] == kept[1] != []


def test_a_rate_drops_what_exceeds_it(bus: RealBus) -> None:
    rate = 30
    start = time.monotonic()
    with subscribe(
        "x", address=bus.udp, name="few", events_per_second=rate, timeout=PATIENCE_SECONDS
    ) as few:
        publish(bus, "x", [b""] * 200)
        scrape = bus.scrape()
        passed = scrape.total("egress_events_total", subscriber="few")
        assert rate <= passed <= rate + rate * (time.monotonic() - start)
        dropped = scrape.by_reason("egress_dropped_events_total", subscriber="few")
        assert dropped == {"rate_limit": 200 - passed}
        events, stats = take_all(bus, "few", few)
    assert len(events) == stats.received == passed
    assert {event.weight for event in events} == {1.0}


def test_old_events_are_dropped_where_the_topic_says_so(tmp_path: Path) -> None:
    policy = '[[topic]]\nmatch = "x"\nmax_age_ms = 3600000\n'
    with real_bus(tmp_path, more=policy) as bus, Publisher(bus.udp) as publisher:
        with subscribe(">", address=bus.udp, timeout=PATIENCE_SECONDS) as subscription:
            publisher.publish("x", b"old", time_unix_nano=time.time_ns() - 3700 * 10**9)
            publisher.publish("x", b"untold", time_unix_nano=0)
            publisher.publish("x", b"now")
            publisher.publish("y", b"old, elsewhere", time_unix_nano=1)
            came = [subscription.recv(PATIENCE_SECONDS) for _ in range(3)]
        assert [event and event.payload for event in came] == [b"untold", b"now", b"old, elsewhere"]
        wait_for(bus, "ingress_events_total", 4)
        assert bus.scrape().by_reason("ingress_dropped_events_total") == {"stale": 1}


def test_a_full_group_is_waited_for(tmp_path: Path) -> None:
    with real_bus(tmp_path, more="[limits]\nmembers_per_group = 1\n") as bus:
        with subscribe("x", address=bus.udp, group="g", timeout=PATIENCE_SECONDS):
            with pytest.raises(TimeoutError, match="its group for another member"):
                subscribe("x", address=bus.udp, group="g", timeout=0.5)
            subscribe("x", address=bus.udp, group="h", timeout=PATIENCE_SECONDS).close()
        subscribe("x", address=bus.udp, group="g", timeout=PATIENCE_SECONDS).close()


def test_a_sample_that_is_too_small_to_be_one_keeps_hardly_anything(bus: RealBus) -> None:
    with subscribe(
        ">", address=bus.udp, name="none", sample=5e-324, timeout=PATIENCE_SECONDS
    ) as subscription:
        publish(bus, "x", [b"user-%d" % key for key in range(100)])
        events, stats = take_all(bus, "none", subscription)
    assert (events, stats.dropped_by_bus) == ([], 100)


def test_a_bus_refuses_what_is_no_name_for_a_group(bus: RealBus) -> None:
    # Past this client's own check, as another one might.
    from hailmary._address import parse, resolve
    from hailmary._endpoint import Endpoint
    from hailmary._wire import bus_pb2

    for terms in ({"group": "a b"}, {"group": "g" * 65}, {"sample": -1.0}, {"sample": math.nan}):
        request = bus_pb2.Subscribe(topics=[">"], **terms)
        address = parse(bus.udp)
        subscription = Subscription(Endpoint(request, address, resolve(address)), False)
        with pytest.raises(Refused) as raised:
            subscription.recv(PATIENCE_SECONDS)
        assert raised.value.reason is Reason.BAD_REQUEST
