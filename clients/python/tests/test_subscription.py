"""Subscriptions over real sockets, at a bus that does as it is told."""

import os
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Optional, Union, cast

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus

from hailmary import Event, Loss, Reason, Refused, Subscription, SubscriptionStats, subscribe
from hailmary._address import Peer, parse, resolve
from hailmary._flow import WINDOW_SECONDS
from hailmary._endpoint import Endpoint
from hailmary._receiver import Receiver
from hailmary._subscription import make_request
from hailmary._wire import bus_pb2


@pytest.fixture(params=["udp", "unix"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    path = tmp_path / "bus.sock" if request.param == "unix" else None
    with fake_bus(path) as bus:
        yield bus


def begin(bus: FakeBus, *patterns: str, **arguments: Any) -> "Future[Subscription]":
    """Subscribes in a thread, since it waits for the bus, which is this thread."""
    with_patience = {"timeout": PATIENCE_SECONDS, **arguments}
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(
            lambda: subscribe(*(patterns or (">",)), address=bus.address, **with_patience)
        )
    finally:
        pool.shutdown(wait=False)


def subscribed(bus: FakeBus, *patterns: str, **arguments: Any) -> Subscription:
    future = begin(bus, *patterns, **arguments)
    bus.let_in()
    return future.result(PATIENCE_SECONDS)


def noticed(bus: FakeBus) -> "Subscription[Union[Event, Loss]]":
    subscription: Any = subscribed(bus, notices=True)
    return cast("Subscription[Union[Event, Loss]]", subscription)


def test_the_request_says_what_was_asked_for(bus: FakeBus) -> None:
    asked: dict[str, Any] = dict(
        name="n",
        group="g",
        sample=0.5,
        events_per_second=9,
        lease_ms=1234,
        max_frame_bytes=1400,
    )
    future = begin(bus, "a.*", "b.>", **asked)
    first = bus.receive().subscribe
    assert first.nonce != 0
    assert first == bus_pb2.Subscribe(topics=["a.*", "b.>"], nonce=first.nonce, **asked)
    bus.challenge(first.nonce)
    bus.answer()
    future.result(PATIENCE_SECONDS).close()


def test_events_come_one_by_one_in_order(bus: FakeBus) -> None:
    with subscribed(bus) as subscription:
        bus.send(b"1", b"2")
        bus.send(b"3")
        assert [next(subscription).payload for _ in range(3)] == [b"1", b"2", b"3"]
        assert subscription.stats() == SubscriptionStats(received=3)


def payload(item: Union[Event, Loss]) -> bytes:
    assert isinstance(item, Event)
    return item.payload


def test_a_loss_stands_where_it_became_known(bus: FakeBus) -> None:
    with noticed(bus) as subscription:
        bus.send(b"1", b"2")
        bus.drop(3)
        bus.send(b"3", b"4")
        assert [payload(next(subscription)) for _ in range(2)] == [b"1", b"2"]
        assert next(subscription) == Loss(lost=0, dropped_by_bus=3)
        assert [payload(next(subscription)) for _ in range(2)] == [b"3", b"4"]
        assert subscription.recv(timeout=0) is None


def test_a_loss_is_told_while_nothing_comes(bus: FakeBus) -> None:
    with noticed(bus) as subscription:
        bus.lose(2)
        bus.drop(1)
        bus.send(b"1")
        assert next(subscription) == Loss(lost=0, dropped_by_bus=1)
        assert payload(next(subscription)) == b"1"
        began = time.monotonic()
        assert next(subscription) == Loss(lost=2, dropped_by_bus=0)
        assert time.monotonic() >= began + 0.9 * WINDOW_SECONDS
        assert subscription.recv(timeout=0) is None


def test_a_closed_subscription_tells_of_what_was_awaited_last(bus: FakeBus) -> None:
    subscription = noticed(bus)
    bus.lose(2)
    bus.send(b"1", b"2")
    assert payload(next(subscription)) == b"1"
    subscription.close()
    assert [type(item) for item in subscription] == [Event, Loss]
    assert subscription.recv() is None
    stats = subscription.stats()
    assert (stats.lost, stats.awaited) == (2, 0)


def test_without_notices_only_events_come(bus: FakeBus) -> None:
    subscription = subscribed(bus)
    bus.drop(1)
    bus.lose(1)
    bus.send(b"1")
    assert next(subscription).payload == b"1"
    subscription.close()
    assert list(subscription) == []
    assert subscription.stats() == SubscriptionStats(received=1, lost=1, dropped_by_bus=1)


if TYPE_CHECKING:
    from typing_extensions import assert_type

    def types_tell_what_comes(asked: bool) -> None:
        """Never called: mypy reads it."""
        only_events: Subscription = subscribe(">", notices=False)
        assert_type(next(only_events), Event)
        assert_type(subscribe(">").recv(), Optional[Event])
        assert_type(next(subscribe(">", notices=True)), Union[Event, Loss])
        assert_type(subscribe(">", notices=asked).recv(), Union[Event, Loss, None])


def test_recv_gives_up_after_its_timeout(bus: FakeBus) -> None:
    with subscribed(bus) as subscription:
        assert subscription.recv(timeout=0) is None
        assert subscription.recv(timeout=0.01) is None
        bus.send(b"1")
        event = subscription.recv(timeout=PATIENCE_SECONDS)
        assert event is not None and event.payload == b"1"


def test_a_flood_of_foreign_datagrams_does_not_hold_the_caller() -> None:
    with fake_bus() as bus, subscribed(bus) as subscription:
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                bus.egress.sendto(b"no frame", bus.subscriber)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            assert subscription.recv(timeout=0.05) is None
        finally:
            stop.set()
            flooding.join()
        assert subscription.stats().ignored_frames > 0


def test_a_bus_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            lambda: subscribe(">", address=f"unix://{path}", timeout=PATIENCE_SECONDS)
        )
        with fake_bus(path) as bus:
            bus.let_in()
            future.result().close()


def test_a_timeout_ends_the_wait_for_a_bus(bus: FakeBus) -> None:
    with pytest.raises(TimeoutError, match="no answer"):
        subscribe(">", address=bus.address, timeout=0.01)
    first = bus.receive_all()[0].subscribe
    assert first.cookie == b""


def test_a_request_that_cannot_be_sent_is_named_in_the_end(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="No such file"):
        subscribe(">", address=f"unix://{tmp_path}/bus.sock", timeout=0.01)


def test_a_full_bus_is_asked_again_and_named_in_the_end(bus: FakeBus) -> None:
    future = begin(bus, timeout=1.0)
    bus.refuse(bus_pb2.Refusal.FULL)
    bus.refuse(bus_pb2.Refusal.FULL)
    with pytest.raises(TimeoutError, match="no place"):
        future.result(PATIENCE_SECONDS)


def test_a_refusal_is_raised(bus: FakeBus) -> None:
    future = begin(bus)
    bus.refuse(bus_pb2.Refusal.NOT_ALLOWED)
    with pytest.raises(Refused, match="does not allow") as raised:
        future.result(PATIENCE_SECONDS)
    assert raised.value.reason is Reason.NOT_ALLOWED


def test_a_refused_renewal_is_raised_from_the_iterator(bus: FakeBus) -> None:
    future = begin(bus)
    nonce = bus.receive().subscribe.nonce
    bus.grant(nonce, lease_ms=1)
    subscription = future.result(PATIENCE_SECONDS)
    refusing = threading.Thread(target=bus.refuse, args=[bus_pb2.Refusal.NOT_ALLOWED])
    refusing.start()
    with pytest.raises(Refused):
        next(subscription)
    refusing.join()
    assert subscription.recv() is None


def test_the_lease_is_renewed_while_the_iterator_is_advanced(bus: FakeBus) -> None:
    future = begin(bus)
    bus.grant(bus.receive().subscribe.nonce, lease_ms=300)
    with future.result(PATIENCE_SECONDS) as subscription:
        bus.send(b"1", b"2", b"3")
        assert next(subscription).payload == b"1"
        while bus.receive_all() == []:
            # Also between the events of one datagram, which may be many.
            bus.send(b"more")
            next(subscription)


def test_a_restarted_bus_is_followed(bus: FakeBus) -> None:
    future = begin(bus)
    bus.grant(bus.receive().subscribe.nonce, lease_ms=300)
    with future.result(PATIENCE_SECONDS) as subscription:
        bus.send(b"old")
        assert next(subscription).payload == b"old"
        bus.id += 1
        bus.sequence = 2

        def come_back() -> None:
            bus.let_in()
            bus.send(b"new")

        back = threading.Thread(target=come_back)
        back.start()
        assert next(subscription).payload == b"new"
        back.join()
        stats = subscription.stats()
        assert (stats.bus_restarts, stats.lapses, stats.awaited) == (1, 1, 2)
    assert subscription.stats().lost == 2


def test_an_answer_from_another_port_is_ignored() -> None:
    with fake_bus() as bus, fake_bus() as stranger:
        future = begin(bus, timeout=1.0)
        nonce = bus.receive().subscribe.nonce
        stranger.subscriber = bus.subscriber
        stranger.grant(nonce)
        with pytest.raises(TimeoutError):
            future.result(PATIENCE_SECONDS)


def test_closing_unsubscribes_and_ends_the_iteration(bus: FakeBus) -> None:
    subscription = subscribed(bus)
    bus.send(b"1", b"2")
    assert next(subscription).payload == b"1"
    assert not subscription.closed
    subscription.close()
    subscription.close()
    assert subscription.closed
    farewell = bus.receive_all()
    assert [frame.WhichOneof("control") for frame in farewell] == ["unsubscribe"]
    assert [event.payload for event in subscription] == [b"2"], "it had been received"
    assert subscription.recv() is None


def test_a_signal_handler_may_close_it(bus: FakeBus) -> None:
    subscription = subscribed(bus)

    def close(number: int, frame: Optional[FrameType]) -> None:
        subscription.close()

    previous = signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert list(subscription) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_child_leaves_the_parents_subscription_alone(bus: FakeBus) -> None:
    future = begin(bus)
    bus.grant(bus.receive().subscribe.nonce, lease_ms=300)
    with future.result(PATIENCE_SECONDS) as subscription:
        bus.send(b"1", b"2")
        assert next(subscription).payload == b"1"
        bus.send(b"3")
        # Only a call of the parent renews, and on a busy machine that one may have taken till then.
        bus.receive_all()
        child = os.fork()
        if child == 0:
            # It says nothing, and takes nothing but its copy of what was received.
            ended = subscription.closed and [event.payload for event in subscription] == [b"2"]
            ended = ended and subscription.recv(timeout=0.5) is None
            subscription.close()
            os._exit(0 if ended else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert bus.receive_all() == []
        assert [next(subscription).payload for _ in range(2)] == [b"2", b"3"]


def test_a_child_leaves_the_parents_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "somewhere else")
    with fake_bus(tmp_path / "bus.sock") as bus, subscribed(bus) as subscription:
        child = os.fork()
        if child == 0:
            subscription.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        bus.send(b"1")
        assert next(subscription).payload == b"1"


def test_a_unix_bus_that_comes_back_under_its_path_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    with fake_bus(path) as bus:
        future = begin(bus)
        bus.grant(bus.receive().subscribe.nonce, lease_ms=300)
        subscription = future.result(PATIENCE_SECONDS)
    while subscription.stats().lapses == 0:
        assert subscription.recv(timeout=0.05) is None
    with fake_bus(path) as bus, ThreadPoolExecutor(1) as pool:

        def come_back() -> None:
            bus.let_in()
            bus.send(b"back")

        back = pool.submit(come_back)
        assert next(subscription).payload == b"back"
        back.result()
        subscription.close()


def test_a_signal_handler_may_close_it_before_there_is_a_lease(bus: FakeBus) -> None:
    address = parse(bus.address)
    subscription: Subscription = Subscription(
        Endpoint(make_request((">",)), address, resolve(address)), False
    )
    previous = signal.signal(signal.SIGALRM, lambda number, frame: subscription.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        subscription.await_lease(None)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert list(subscription) == []


def test_an_event_of_the_longest_datagram_arrives(bus: FakeBus) -> None:
    with subscribed(bus) as subscription:
        bus.send(bytes(65_400))
        assert len(next(subscription).payload) == 65_400


def test_a_file_is_bound_where_there_are_no_abstract_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "somewhere else")
    with fake_bus(tmp_path / "bus.sock") as bus:
        subscription = subscribed(bus)
        own = Path(bus.subscriber)
        assert own.is_socket()
        bus.send(b"1")
        assert next(subscription).payload == b"1"
        subscription.close()
        assert not own.parent.exists()


def test_a_large_buffer_is_asked_for() -> None:
    receiver = Receiver(Peer(socket.AF_INET, ("127.0.0.1", 1)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as usual:
        option = (socket.SOL_SOCKET, socket.SO_RCVBUF)
        usual.setsockopt(*option, 4 * 1024 * 1024)
        assert receiver._socket.getsockopt(*option) == usual.getsockopt(*option)
    receiver.close()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"name": "a b"}, ValueError),
        ({"name": "x" * 65}, ValueError),
        ({"name": "a\n"}, ValueError),
        ({"group": "a b"}, ValueError),
        ({"group": "g" * 65}, ValueError),
        ({"sample": -0.1}, ValueError),
        ({"sample": 7}, ValueError),
        ({"sample": 1.5}, ValueError),
        ({"sample": float("nan")}, ValueError),
        ({"events_per_second": -1}, ValueError),
        ({"events_per_second": 2**64 - 1}, ValueError),
        ({"lease_ms": 2**32}, ValueError),
        ({"max_frame_bytes": 2**32}, ValueError),
        ({"lease_ms": 0.5}, TypeError),
        ({"address": "nowhere"}, ValueError),
        ({"address": "bus.invalid:1"}, OSError),
        ({"address": "bus..example:1"}, OSError),
    ],
)
def test_a_wrong_argument_is_told_at_once(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        subscribe(">", **wrong)


@pytest.mark.parametrize("patterns", [(), ("a.>.b",), ("a*",), ("",), ("a", "b..c")])
def test_a_wrong_pattern_is_told_at_once(patterns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="pattern"):
        subscribe(*patterns)


def test_a_request_that_fits_no_datagram_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="fit into a datagram"):
        subscribe(*["a" * 255] * 300)


def test_waiting_costs_no_processor_time(bus: FakeBus) -> None:
    with subscribed(bus) as subscription:
        began = time.process_time()
        subscription.recv(timeout=0.5)
        assert time.process_time() - began < 0.25
