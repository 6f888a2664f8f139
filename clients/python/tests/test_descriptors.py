"""Subscriptions whose descriptor the process closed and gave to something else."""

import asyncio
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus

from hailmary import Publisher, Runner, Subscription, _ping, aio, subscribe
from hailmary._descriptor import OwnSocket
from hailmary._receiver import _LOOK_SECONDS, Receiver


class Other(NamedTuple):
    """What has the number now."""

    number: int
    read: Callable[[], bytes]
    """Takes what was there for it, which nobody else took."""
    told: Callable[[], bytes]
    """What it was made to say to its peer."""


@contextmanager
def a_file(number: int, directory: Path) -> Iterator[Other]:
    path = directory / "file"
    path.write_bytes(b"for the other")
    with path.open("r+b") as file:
        os.dup2(file.fileno(), number)
        try:
            yield Other(number, file.read, lambda: path.read_bytes()[len(b"for the other") :])
        finally:
            os.close(number)


@contextmanager
def a_socket_pair(number: int, kind: socket.SocketKind) -> Iterator[Other]:
    mine, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with mine, theirs:
        os.dup2(mine.fileno(), number)
        theirs.send(b"for the other")
        theirs.setblocking(False)
        mine.setblocking(False)

        def told() -> bytes:
            try:
                return theirs.recv(100)
            except BlockingIOError:
                return b""

        try:
            yield Other(number, lambda: mine.recv(100), told)
        finally:
            os.close(number)


def a_stream(number: int, directory: Path) -> Any:
    return a_socket_pair(number, socket.SOCK_STREAM)


def a_datagram_socket(number: int, directory: Path) -> Any:
    return a_socket_pair(number, socket.SOCK_DGRAM)


@contextmanager
def a_udp_socket(number: int, directory: Path) -> Iterator[Other]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.bind(("127.0.0.1", 0))
        mine.setblocking(False)
        mine.sendto(b"for the other", mine.getsockname())
        os.dup2(mine.fileno(), number)
        try:
            yield Other(number, lambda: mine.recv(100), lambda: b"")
        finally:
            os.close(number)


Take = Callable[[int, Path], Any]

others = pytest.mark.parametrize("take", [a_file, a_stream, a_datagram_socket, a_udp_socket])


@contextmanager
def is_left_alone(take: Take, number: int, directory: Path) -> Iterator[Other]:
    """What takes the number is open in the end, and was neither read nor written."""
    with take(number, directory) as other:
        identity = os.fstat(number).st_ino
        yield other
        gc.collect()
        assert os.fstat(number).st_ino == identity
        assert other.told() == b""
        assert other.read() == b"for the other"


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with fake_bus() as bus:
        yield bus


def subscribed(bus: FakeBus, **arguments: Any) -> Subscription:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            lambda: subscribe(">", address=bus.address, timeout=PATIENCE_SECONDS)
        )
        bus.let_in(**arguments)
        return future.result()


def descriptor(subscription: Any) -> int:
    return int(subscription._endpoint.receiver.fileno())


@others
def test_close_leaves_it_alone(bus: FakeBus, take: Take, tmp_path: Path) -> None:
    subscription = subscribed(bus)
    with is_left_alone(take, descriptor(subscription), tmp_path):
        subscription.close()
        assert subscription.closed
    assert bus.receive_all() == [], "nor is the farewell sent by it"


@others
def test_who_forgets_a_subscription_leaves_it_alone(
    bus: FakeBus, take: Take, tmp_path: Path
) -> None:
    subscription = subscribed(bus)
    with is_left_alone(take, descriptor(subscription), tmp_path):
        del subscription


@others
def test_recv_says_so_once_and_reads_nothing(bus: FakeBus, take: Take, tmp_path: Path) -> None:
    subscription = subscribed(bus)
    with is_left_alone(take, descriptor(subscription), tmp_path):
        time.sleep(_LOOK_SECONDS)
        with pytest.raises(OSError, match="something else"):
            subscription.recv(PATIENCE_SECONDS)
        assert subscription.closed
        assert subscription.recv(0.0) is None
        subscription.close()


@others
def test_it_is_noticed_behind_events_too(bus: FakeBus, take: Take, tmp_path: Path) -> None:
    subscription = subscribed(bus)
    bus.send(b"1")
    assert subscription.recv(PATIENCE_SECONDS) is not None
    assert subscription.recv(0.0) is None
    with is_left_alone(take, descriptor(subscription), tmp_path):
        with pytest.raises(OSError, match="something else"):
            subscription.recv(PATIENCE_SECONDS)


@others
def test_it_is_noticed_where_datagrams_never_end(
    bus: FakeBus, take: Take, tmp_path: Path
) -> None:
    subscription = subscribed(bus)
    bus.send(b"1")
    now = time.monotonic()
    assert subscription._endpoint.receive(now)
    with is_left_alone(take, descriptor(subscription), tmp_path):
        with pytest.raises(OSError, match="something else"):
            subscription._endpoint.receive(now + _LOOK_SECONDS)


@others
def test_a_renewal_is_not_sent_by_it(bus: FakeBus, take: Take, tmp_path: Path) -> None:
    subscription = subscribed(bus, lease_ms=300)
    with is_left_alone(take, descriptor(subscription), tmp_path):
        time.sleep(max(0.0, subscription._session.transmit_at - time.monotonic()))
        with pytest.raises(OSError, match="something else"):
            subscription._endpoint.transmit(time.monotonic())
        assert subscription.closed


def test_a_signal_handler_that_closes_it_at_any_moment_is_no_other(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = subscribed(bus)
    is_ours = OwnSocket.is_ours

    def interrupted(own: OwnSocket) -> bool:
        monkeypatch.setattr(OwnSocket, "is_ours", is_ours)
        subscription.close()
        return own.is_ours()

    monkeypatch.setattr(OwnSocket, "is_ours", interrupted)
    time.sleep(_LOOK_SECONDS)
    assert subscription.recv(PATIENCE_SECONDS) is None
    assert subscription.closed


@others
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_leaves_it_alone(bus: FakeBus, take: Take, tmp_path: Path) -> None:
    subscription = subscribed(bus)
    number = descriptor(subscription)
    with is_left_alone(take, number, tmp_path):
        identity = os.fstat(number).st_ino
        child = os.fork()
        if not child:
            status = 1
            try:
                subscription.close()
                status = int(os.fstat(number).st_ino != identity)
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        subscription.close()


@others
def test_a_ping_that_loses_its_socket_is_no_answer(
    bus: FakeBus, take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack, Publisher(bus.address) as publisher:

        class LosesIt(Receiver):
            def wait(self, seconds: float, *also: Any) -> None:
                stack.enter_context(is_left_alone(take, self.fileno(), tmp_path))

        monkeypatch.setattr(_ping, "Receiver", LosesIt)
        assert publisher.ping(PATIENCE_SECONDS) is None


@others
def test_a_runner_ends_and_leaves_it_alone(bus: FakeBus, take: Take, tmp_path: Path) -> None:
    runner = Runner(lambda event: None, ">", address=bus.address)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(runner.start, PATIENCE_SECONDS)
        bus.let_in(lease_ms=300)
        assert held.result()
    with is_left_alone(take, descriptor(runner), tmp_path):
        with pytest.raises(OSError, match="something else"):
            runner.wait(PATIENCE_SECONDS)
        assert runner.stop()


@others
@pytest.mark.parametrize("end", [0, 1])
def test_what_wakes_a_runner_is_left_alone(
    bus: FakeBus, take: Take, end: int, tmp_path: Path
) -> None:
    runner = Runner(lambda event: None, ">", address=bus.address)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(runner.start, PATIENCE_SECONDS)
        bus.let_in(lease_ms=300)
        assert held.result()
    assert runner._wake is not None
    with is_left_alone(take, runner._wake[end].fileno(), tmp_path):
        stopped = threading.Thread(target=runner.stop, args=[PATIENCE_SECONDS])
        stopped.start()
        stopped.join()
        assert runner._receiving is not None
        assert not runner._receiving.is_alive()


def use_uvloop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


@pytest.fixture(params=[asyncio.new_event_loop, use_uvloop])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop: asyncio.AbstractEventLoop = request.param()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


async def subscribed_here(bus: FakeBus) -> "aio.Subscription[Any]":
    granted = asyncio.get_running_loop().run_in_executor(None, bus.let_in)
    subscription = aio.subscribe(">", address=bus.address, timeout=PATIENCE_SECONDS)
    await subscription.__aenter__()
    await granted
    return subscription


@others
def test_in_an_event_loop_close_leaves_it_alone(
    bus: FakeBus, loop: asyncio.AbstractEventLoop, take: Take, tmp_path: Path
) -> None:
    async def main() -> None:
        subscription = await subscribed_here(bus)
        assert subscription._feed is not None
        with is_left_alone(take, subscription._feed.endpoint.receiver.fileno(), tmp_path) as other:
            subscription.close()
            if take is a_file:
                return
            # Nothing is left in the loop that would be in its way.
            came = asyncio.Event()
            loop.add_reader(other.number, came.set)
            await asyncio.wait_for(came.wait(), PATIENCE_SECONDS)
            loop.remove_reader(other.number)

    loop.run_until_complete(main())
    assert bus.receive_all() == []


@pytest.mark.parametrize("take", [a_stream, a_udp_socket])
def test_the_others_reader_stays_in_the_event_loop(
    bus: FakeBus, loop: asyncio.AbstractEventLoop, take: Take, tmp_path: Path
) -> None:
    async def main() -> None:
        subscription = await subscribed_here(bus)
        assert subscription._feed is not None
        with is_left_alone(take, subscription._feed.endpoint.receiver.fileno(), tmp_path) as other:
            theirs = threading.Event().set
            kept = weakref.ref(theirs)
            loop.add_reader(other.number, theirs)
            del theirs
            subscription.close()
            assert kept() is not None, "the loop has it still"
            loop.remove_reader(other.number)
            assert kept() is None

    loop.run_until_complete(main())


def test_in_an_event_loop_the_garbage_collector_leaves_it_alone(
    bus: FakeBus, loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        subscription = await subscribed_here(bus)
        assert subscription._feed is not None
        with is_left_alone(a_file, subscription._feed.endpoint.receiver.fileno(), tmp_path):
            del subscription
            gc.collect()

    loop.run_until_complete(main())
