"""A bus whose name gets another address."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus

from hailmary import _look_up, subscribe
from hailmary._address import Peer, UdpAddress, UnixAddress
from hailmary._look_up import LOOK_UP_SECONDS_MIN, LookUp, is_name

NAME = UdpAddress("bus.example", 7277)


class Names:
    """A resolver that is told what to answer."""

    def __init__(self) -> None:
        self.answer: Any = []
        self.asked = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def set(self, *address: object, family: socket.AddressFamily = socket.AF_INET) -> None:
        self.answer = [(family, socket.SOCK_DGRAM, 0, "", address)]

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.asked += 1
        answer = self.answer
        self.go_on.wait(PATIENCE_SECONDS)
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names)
    yield names
    names.go_on.set()


def found(look_up: LookUp, now: float) -> Any:
    """What it finds once its thread has ended."""
    thread = look_up._thread
    assert thread is not None and thread.daemon
    thread.join(PATIENCE_SECONDS)
    return look_up.poll(now)


def test_it_looks_up_seldom_and_gives_what_it_found_once(names: Names) -> None:
    names.set("192.0.2.1", 7277)
    look_up = LookUp(NAME, socket.AF_INET)
    assert look_up.poll(1000.0) is None
    assert found(look_up, 1001.0) == Peer(socket.AF_INET, ("192.0.2.1", 7277))
    assert look_up.poll(1000.0 + LOOK_UP_SECONDS_MIN - 0.1) is None
    assert names.asked == 1
    names.set("192.0.2.2", 7277)
    assert look_up.poll(1000.0 + LOOK_UP_SECONDS_MIN) is None
    assert found(look_up, 1011.0) == Peer(socket.AF_INET, ("192.0.2.2", 7277))
    assert names.asked == 2


def test_a_slow_resolver_holds_nobody_and_is_asked_once(names: Names) -> None:
    names.set("192.0.2.1", 7277)
    names.go_on.clear()
    look_up = LookUp(NAME, socket.AF_INET)
    for now in range(1000, 1100):
        assert look_up.poll(now) is None
    assert names.asked == 1
    names.go_on.set()
    assert found(look_up, 1100.0) is not None


def test_what_cannot_be_used_is_not_found(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = LookUp(NAME, socket.AF_INET)
    names.answer = OSError("no such name")
    look_up.poll(1000.0)
    assert found(look_up, 1001.0) is None
    names.set("2001:db8::1", 7277, 0, 0, family=socket.AF_INET6)
    look_up.poll(1020.0)
    assert found(look_up, 1021.0) is None, "the socket is of another family"

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    names.set("192.0.2.1", 7277)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        assert look_up.poll(1040.0) is None
    assert look_up.poll(1060.0) is None
    assert found(look_up, 1061.0) is not None


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        (NAME, True),
        (UdpAddress("localhost", 1), True),
        (UdpAddress("127.0.0.1", 1), False),
        (UdpAddress("::1", 1), False),
        (UdpAddress("fe80::1%eth0", 1), False),
        (UnixAddress("/run/hailmary/bus.sock"), False),
    ],
)
def test_numbers_and_paths_are_no_names(address: Any, is_one: bool) -> None:
    assert is_name(address) is is_one


def let_in(bus: FakeBus, lease_ms: int = 300) -> None:
    bus.let_in(lease_ms)


def begin(names: Names, bus: FakeBus) -> Any:
    names.set("127.0.0.1", bus.port)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            lambda: subscribe(">", address="bus.example:7277", timeout=PATIENCE_SECONDS)
        )
        let_in(bus)
        return future.result()


def advance_until(subscription: Any, is_so: Callable[[], bool]) -> Any:
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < until
        subscription.recv(timeout=0.05)


def test_a_bus_at_another_address_is_followed(names: Names) -> None:
    with fake_bus() as new, ThreadPoolExecutor(1) as pool:
        with fake_bus() as old:
            subscription = begin(names, old)
        names.set("127.0.0.1", new.port)

        def come_back() -> None:
            let_in(new)
            new.send(b"here")

        back = pool.submit(come_back)
        event = subscription.recv(PATIENCE_SECONDS)
        assert event is not None and event.payload == b"here"
        back.result()
        stats = subscription.stats()
        assert (stats.lapses, stats.bus_restarts, stats.lost) == (1, 1, 0)
        assert names.asked == 2
        subscription.close()


def test_a_bus_that_answers_is_not_looked_up_again(names: Names) -> None:
    with fake_bus() as bus:
        with begin(names, bus) as subscription:
            for _ in range(3):
                advance_until(subscription, lambda: len(bus.receive_all()) > 0)
                bus.grant(subscription._session._lease._request.nonce, 300)
        assert names.asked == 1


def test_a_slow_resolver_holds_no_caller(names: Names) -> None:
    with fake_bus() as bus:
        subscription = begin(names, bus)
    names.go_on.clear()
    advance_until(subscription, lambda: names.asked == 2)
    began = time.monotonic()
    assert subscription.recv(timeout=0.05) is None
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    subscription.close()


def test_the_time_between_look_ups_is_bounded_by_more_than_a_request(names: Names) -> None:
    with fake_bus() as bus:
        subscription = begin(names, bus)
    advance_until(subscription, lambda: names.asked == 2)
    requests = subscription._session._lease.requests_unheard
    advance_until(
        subscription, lambda: subscription._session._lease.requests_unheard >= requests + 2
    )
    assert names.asked == 2
    assert _look_up.LOOK_UP_SECONDS_MIN > 2
    subscription.close()
