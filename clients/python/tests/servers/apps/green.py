"""Greenlets that publish and subscribe, in a patched process.

    green.py gevent|eventlet SCENARIO [late]

`late`: the module that publishes is imported before the library patches, as
under `gunicorn --preload --worker-class gevent`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hailmary import Publisher

GREENLETS = 20
THREADS = 4
EVENTS = 50

PATIENCE_SECONDS = 60.0

# More than any queue of a Unix socket holds.
MANY = 2000


class Gevent:
    """The few calls that the two libraries name differently."""

    def __init__(self) -> None:
        self._gevent: Any = importlib.import_module("gevent")

    def patch(self) -> None:
        importlib.import_module("gevent.monkey").patch_all()

    def spawn(self, body: Callable[..., Any], *arguments: Any) -> Any:
        return self._gevent.spawn(body, *arguments)

    def sleep(self, seconds: float = 0) -> None:
        self._gevent.sleep(seconds)

    def wait(self, greenlet: Any) -> Any:
        return greenlet.get()

    def kill(self, greenlet: Any) -> None:
        greenlet.kill()

    def in_thread(self, body: Callable[..., Any], *arguments: Any) -> Any:
        return self._gevent.get_hub().threadpool.spawn(body, *arguments)


class Eventlet:
    """As `Gevent`."""

    def __init__(self) -> None:
        self._eventlet: Any = importlib.import_module("eventlet")
        self._tpool: Any = importlib.import_module("eventlet.tpool")

    def patch(self) -> None:
        self._eventlet.monkey_patch()

    def spawn(self, body: Callable[..., Any], *arguments: Any) -> Any:
        return self._eventlet.spawn(body, *arguments)

    def sleep(self, seconds: float = 0) -> None:
        self._eventlet.sleep(seconds)

    def wait(self, greenlet: Any) -> Any:
        return greenlet.wait()

    def kill(self, greenlet: Any) -> None:
        greenlet.kill()

    def in_thread(self, body: Callable[..., Any], *arguments: Any) -> Any:
        return self.spawn(self._tpool.execute, body, *arguments)


green: Any = {"gevent": Gevent, "eventlet": Eventlet}[sys.argv[1]]()


@contextmanager
def ticking() -> Iterator[list[int]]:
    """A greenlet that counts its turns: it gets none while the hub is blocked."""
    turns = [0]

    def tick() -> None:
        while True:
            turns[0] += 1
            green.sleep(0.001)

    ticker = green.spawn(tick)
    try:
        yield turns
    finally:
        green.kill(ticker)


def publish_at_full_bus(publisher: Publisher) -> None:
    """Nobody reads the bus's socket: neither the process nor a greenlet waits."""
    import telling

    with ticking() as turns:
        for _ in range(MANY // 100):
            telling.publish(publisher, 100)
            green.sleep(0.001)
        telling.tell(turns=turns[0], **telling.facts(publisher))


def publish_from_all(publisher: Publisher) -> None:
    """Greenlets and real threads share a publisher."""
    import telling

    def publish(name: int) -> None:
        for number in range(EVENTS):
            telling.publish(publisher, 1, name=name, turn=number)
            if name < GREENLETS:
                green.sleep()

    greenlets = [green.spawn(publish, name) for name in range(GREENLETS)]
    threads = [green.in_thread(publish, GREENLETS + name) for name in range(THREADS)]
    for each in [*greenlets, *threads]:
        green.wait(each)
    telling.publish_until_sent(publisher, name=-1, turn=0)
    telling.tell(**telling.facts(publisher))


def fork(publisher: Publisher) -> None:
    """A child, and its greenlets, of a process whose greenlets publish."""
    import telling

    def publish() -> None:
        for _ in range(EVENTS):
            telling.publish(publisher, 1)
            green.sleep()

    def publish_in_greenlets() -> None:
        for greenlet in [green.spawn(publish) for _ in range(GREENLETS)]:
            green.wait(greenlet)
        telling.publish_until_sent(publisher)
        telling.tell(**telling.facts(publisher))

    telling.publish_until_sent(publisher)
    child = os.fork()
    publish_in_greenlets()
    if child == 0:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0


def subscribe(publisher: Publisher) -> None:
    """One greenlet iterates, others go on: what it waits for is published by one."""
    import telling

    import hailmary

    def take(subscription: hailmary.Subscription) -> list[bytes]:
        return [next(subscription).payload for _ in range(EVENTS)]

    with hailmary.subscribe("green.>") as subscription, ticking() as turns:
        taker = green.spawn(take, subscription)
        waited = turns[0]
        while turns[0] < waited + 10:
            green.sleep(0.001)
        for number in range(EVENTS):
            publisher.publish("green.event", b"%d" % number)
            green.sleep(0.001)
        taken = [int(payload) for payload in green.wait(taker)]
        pong = publisher.ping(PATIENCE_SECONDS)
        telling.tell(taken=taken, pinged=pong is not None)


SCENARIOS = {
    "full": publish_at_full_bus,
    "all": publish_from_all,
    "fork": fork,
    "subscribe": subscribe,
}


def main(scenario: str, *options: str) -> None:
    if "late" not in options:
        green.patch()
    import hailmary

    publisher = hailmary.Publisher()
    if "late" in options:
        publisher.publish("green.before", b'{"pid": %d, "name": -1, "turn": 0}' % os.getpid())
        green.patch()
    SCENARIOS[scenario](publisher)


if __name__ == "__main__":
    main(*sys.argv[2:])
