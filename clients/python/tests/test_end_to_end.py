"""Publishers and subscribers at the real program."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union

import pytest
from fake_bus import PATIENCE_SECONDS
from lossy_way import lossy_way
from real_bus import RealBus, needs_program, real_bus

from hailmary import (
    Event,
    Loss,
    Publisher,
    Reason,
    Refused,
    Runner,
    Subscription,
    aio,
    subscribe,
)

pytestmark = needs_program

# Fewer datagrams than a Unix socket's queue holds (net.unix.max_dgram_qlen, 10).
UNIX_QUEUE_DATAGRAMS = 8

# What a subscriber takes at once. The bus drops an event that does not fit.
FAR_FRAME_BYTES = 600


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[RealBus]:
    with real_bus(tmp_path, unix=str(tmp_path / "bus.sock")) as bus:
        yield bus


@pytest.fixture(params=["udp", "unix"])
def address(request: pytest.FixtureRequest, bus: RealBus) -> Any:
    return getattr(bus, request.param)


def subscribed(address: str, *patterns: str, **arguments: Any) -> Subscription:
    return subscribe(*patterns, address=address, timeout=PATIENCE_SECONDS, **arguments)


def receive(subscription: Subscription) -> Event:
    event = subscription.recv(PATIENCE_SECONDS)
    assert event is not None
    return event


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def publish_until_received(publisher: Publisher, subscription: Subscription) -> Event:
    """Events are lost as long as there is no bus or no lease, and not from then on."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        publisher.publish("a.b", b"again")
        event = subscription.recv(timeout=0.05)
        if event is not None:
            return event
    raise AssertionError("nothing arrived")


def test_an_event_arrives_as_it_was_published(address: str) -> None:
    with subscribed(address, "a.>", name="n") as subscription, Publisher(address) as publisher:
        publisher.publish("a.b", b"\0\xff", key=b"k", attributes={"n": "é"}, time_unix_nano=5)
        assert receive(subscription) == Event("a.b", b"\0\xff", b"k", 5, {"n": "é"}, 1.0)


def test_publisher_and_subscriber_may_use_different_ways(bus: RealBus) -> None:
    with subscribed(bus.udp, ">") as by_udp, subscribed(bus.unix, ">") as by_unix:
        for address in (bus.udp, bus.unix):
            with Publisher(address) as publisher:
                publisher.publish("a", address.encode())
            assert receive(by_udp).payload == receive(by_unix).payload == address.encode()


def test_patterns_choose_what_comes(address: str) -> None:
    with subscribed(address, "a.*", "b.>") as subscription, Publisher(address) as publisher:
        for topic in ("a", "a.b", "a.b.c", "b", "b.c.d", "c"):
            publisher.publish(topic, b"")
        assert [receive(subscription).topic for _ in range(2)] == ["a.b", "b.c.d"]


def test_many_events_arrive_in_order_and_are_all_counted(address: str) -> None:
    with subscribed(address, ">") as subscription, Publisher(address) as publisher:
        sent, received = 0, []
        for number in range(3000):
            publisher.publish("a", b"%d" % number)
            if publisher.stats().sent > sent + UNIX_QUEUE_DATAGRAMS:
                received.append(int(receive(subscription).payload))
                sent += 1
        while len(received) < publisher.stats().sent:
            received.append(int(receive(subscription).payload))
        stats = publisher.stats()
        assert received == sorted(set(received))
        assert stats.offered == 3000
        assert subscription.stats().received == len(received)
        assert subscription.stats().lost == 0


def test_the_longest_event_arrives(address: str) -> None:
    with subscribed(address, ">") as subscription, Publisher(address) as publisher:
        payload = bytes(65_459 - 20)
        publisher.publish("a", payload, time_unix_nano=1)
        assert receive(subscription).payload == payload


def test_what_a_full_socket_loses_is_told_by_hop(bus: RealBus) -> None:
    with subscribed(bus.udp, ">", name="slow") as slow, Publisher(bus.udp) as publisher:
        while bus.scrape().total("egress_events_total", subscriber="slow") < 2000:
            for _ in range(100):
                publisher.publish("a", bytes(10_000))
        while slow.recv(timeout=0) is not None:
            pass

        def is_told() -> bool:
            slow.recv(timeout=0.01)
            stats = slow.stats()
            sent = bus.scrape().total("egress_events_total", subscriber="slow")
            return stats.received + stats.lost == sent

        wait_until(is_told)
        assert slow.stats().lost > 0


def test_a_restarted_bus_is_followed(tmp_path: Path) -> None:
    path = str(tmp_path / "bus.sock")
    with real_bus(tmp_path, unix=path) as old:
        udp = old.udp
        by_udp, by_unix = subscribed(udp, ">"), subscribed(old.unix, ">")
        publishers = Publisher(udp), Publisher(old.unix)
        assert old.stop() == 0
    for publisher in publishers:
        publisher.publish("a.b", b"nobody is there")
    with real_bus(tmp_path, udp=udp[len("udp://") :], unix=path), by_udp, by_unix:
        for publisher, subscription in zip(publishers, (by_udp, by_unix)):
            assert publish_until_received(publisher, subscription).payload == b"again"
            assert subscription.stats().bus_restarts == 1
            assert subscription.stats().lost == 0
            publisher.close()


def test_a_bus_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    with Publisher(f"unix://{path}") as publisher, ThreadPoolExecutor(1) as pool:
        publisher.publish("a.b", b"too early")
        future = pool.submit(subscribed, f"unix://{path}", ">")
        with real_bus(tmp_path, unix=str(path)), future.result() as subscription:
            assert publish_until_received(publisher, subscription).payload == b"again"


def test_a_lapsed_lease_is_had_again(bus: RealBus) -> None:
    with subscribed(bus.udp, ">", lease_ms=1000) as subscription:
        with Publisher(bus.udp) as publisher:
            publisher.publish("a.b", b"in the socket")
            wait_until(lambda: bus.scrape().total("leases_expired_total") == 1)
            publisher.publish("a.b", b"missed")
            assert receive(subscription).payload == b"in the socket"
            assert publish_until_received(publisher, subscription).payload == b"again"
        stats = subscription.stats()
        assert (stats.lapses, stats.bus_restarts, stats.lost) == (1, 0, 0)


def test_closing_ends_the_lease_at_once(address: str, bus: RealBus) -> None:
    subscribed(address, "a.>").close()
    with Publisher(address) as publisher:

        def is_unmatched() -> bool:
            publisher.publish("a.b", b"")
            return bus.scrape().total("unmatched_events_total") > 0

        wait_until(is_unmatched)


def test_losses_are_reported_to_the_bus(tmp_path: Path) -> None:
    with real_bus(tmp_path) as bus, Publisher(bus.udp) as publisher:
        with subscribed(bus.udp, ">", name="reporting", lease_ms=1000) as subscription:
            while subscription.stats().awaited + subscription.stats().lost == 0:
                for _ in range(500):
                    publisher.publish("a", bytes(30_000))
                while subscription.recv(timeout=0.01) is not None:
                    pass

            def is_told() -> bool:
                subscription.recv(timeout=0.01)
                told = bus.scrape().total("subscriber_lost_events_total", subscriber="reporting")
                stats = subscription.stats()
                return told == stats.lost > 0 and stats.awaited == 0

            wait_until(is_told)


@contextmanager
def running(runner: Runner) -> Iterator[None]:
    """A runner that has a lease, and that is stopped in the end."""
    try:
        assert runner.start(PATIENCE_SECONDS)
        yield
    finally:
        runner.stop()


def test_what_a_runner_drops_is_reported_to_the_bus(bus: RealBus) -> None:
    go_on = threading.Event()

    def wait(event: Event) -> None:
        go_on.wait(PATIENCE_SECONDS)

    runner = Runner(wait, ">", address=bus.unix, name="busy", lease_ms=1000, queue_events=4)
    with running(runner), Publisher(bus.unix) as publisher:
        for number in range(1, 21):
            publisher.publish("a", b"")
            wait_until(lambda: runner.stats().received == number)
        dropped = runner.stats().dropped
        assert dropped >= 20 - 4 - 2

        def is_told() -> bool:
            told = bus.scrape().total("subscriber_dropped_events_total", subscriber="busy")
            return told == dropped

        wait_until(is_told)
        go_on.set()
    stats = runner.stats()
    assert (stats.received, stats.handled, stats.dropped) == (20, 20 - dropped, dropped)


def test_two_runners_of_a_group_share_the_keys(bus: RealBus) -> None:
    came: dict[str, list[bytes]] = {"1": [], "2": []}

    def member(name: str) -> Runner:
        return Runner(
            lambda event: came[name].append(event.key),
            ">",
            address=bus.udp,
            group="g",
            name=name,
        )

    one, two = member("1"), member("2")
    with running(one), running(two), Publisher(bus.udp) as publisher:
        keys = [b"key-%d" % number for number in range(40)]
        for key in keys * 2:
            publisher.publish("a", b"", key=key)
        wait_until(lambda: one.stats().handled + two.stats().handled == 80)
    assert not set(came["1"]) & set(came["2"])
    assert set(came["1"]) | set(came["2"]) == set(keys)
    assert came["1"] and came["2"]


def test_an_event_loop_publishes_and_subscribes(address: str) -> None:
    async def main() -> list[bytes]:
        with Publisher(address) as publisher:
            async with aio.subscribe(">", address=address, timeout=PATIENCE_SECONDS) as events:
                for number in range(UNIX_QUEUE_DATAGRAMS):
                    publisher.publish("a", b"%d" % number)
                return [(await events.__anext__()).payload for _ in range(UNIX_QUEUE_DATAGRAMS)]

    assert asyncio.run(main()) == [b"%d" % number for number in range(UNIX_QUEUE_DATAGRAMS)]


def test_an_event_loop_follows_a_restarted_bus(tmp_path: Path) -> None:
    path = str(tmp_path / "bus.sock")

    async def main() -> None:
        with real_bus(tmp_path, unix=path) as old:
            events = await aio.subscribe(">", address=old.unix).__aenter__()
        with real_bus(tmp_path, unix=path) as new, Publisher(new.unix) as publisher:
            event = None
            while event is None:
                publisher.publish("a", b"again")
                event = await events.recv(timeout=0.05)
            assert event.payload == b"again"
            assert events.stats().bus_restarts == 1
            events.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_SECONDS * 2))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_books_balance_over_a_way_that_loses_reorders_and_doubles(
    bus: RealBus, seed: int
) -> None:
    with lossy_way(bus.udp, seed) as way, Publisher(bus.udp) as publisher:
        subscription = subscribe(
            ">",
            address=way.address,
            name="far",
            max_frame_bytes=FAR_FRAME_BYTES,
            timeout=PATIENCE_SECONDS,
            notices=True,
        )
        with subscription:
            items: list[Union[Event, Loss]] = []

            def take(seconds: float) -> None:
                item = subscription.recv(seconds)
                while item is not None:
                    items.append(item)
                    item = subscription.recv(timeout=0)

            for _ in range(150):
                for _ in range(20):
                    publisher.publish("a.b", bytes(50))
                publisher.publish("a.b", bytes(FAR_FRAME_BYTES))
                take(0.005)
            way.calm()

            def is_all_told() -> bool:
                # No more events, so what got lost last is told by a renewal.
                take(0.2)
                stats, scrape = subscription.stats(), bus.scrape()
                sent = scrape.total("egress_events_total", subscriber="far")
                dropped = scrape.total("egress_dropped_events_total", subscriber="far")
                reported = scrape.total("subscriber_lost_events_total", subscriber="far")
                return (
                    sent == stats.received + stats.lost
                    and dropped == stats.dropped_by_bus
                    and reported == stats.lost
                    and stats.awaited == 0
                )

            wait_until(is_all_told)
            stats = subscription.stats()
        assert min(stats.received, stats.lost, stats.dropped_by_bus, stats.duplicates) > 0
        assert (stats.lapses, stats.bus_restarts) == (0, 0)
        losses = [item for item in items if isinstance(item, Loss)]
        assert sum(loss.lost for loss in losses) == stats.lost
        assert sum(loss.dropped_by_bus for loss in losses) == stats.dropped_by_bus
        assert len(items) - len(losses) == stats.received + stats.duplicates


def test_a_publisher_learns_what_the_bus_received_and_lost(bus: RealBus) -> None:
    with lossy_way(bus.udp, seed=3) as way, Publisher(way.address) as publisher:
        way.calm()
        publisher.publish("a.b", b"the first that the bus hears of")
        pong = publisher.ping(PATIENCE_SECONDS)
        assert pong is not None and (pong.sent, pong.lost) == (1, 0)
        way.storm()
        for _ in range(500):
            publisher.publish("a.b", b"")
            time.sleep(0.0005)
        way.calm()
        pong = publisher.ping(PATIENCE_SECONDS)
        assert pong is not None
        assert pong.sent == pong.received + pong.lost == publisher.stats().sent == 501
        assert 0 < pong.lost < 500
        wait_until(lambda: bus.scrape().total("ingress_lost_events_total") == pong.lost)
        assert publisher.stats().pong == pong


def test_a_subscription_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    with real_bus(tmp_path, more="[access]\nsubscribe = []\n") as bus:
        with pytest.raises(Refused) as raised:
            subscribed(bus.udp, ">")
    assert raised.value.reason is Reason.NOT_ALLOWED
