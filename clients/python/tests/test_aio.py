"""Subscriptions in an event loop, and what they leave behind there: nothing."""

import asyncio
import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus

from hailmary import Event, Loss, Reason, Refused, SubscriptionStats, aio
from hailmary._wire import bus_pb2

Main = Callable[[], Coroutine[Any, Any, None]]


def use_uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    """Runs a coroutine in a loop of its own, and looks at what it leaves behind."""
    make = use_uvloop if request.param == "uvloop" else asyncio.new_event_loop
    loop = make()
    loop.set_debug(False)
    trouble: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: trouble.append(context))

    def run(main: Main) -> None:
        with no_descriptor_left(loop):
            task = loop.create_task(main())
            watchdog = threading.Timer(
                PATIENCE_SECONDS, loop.call_soon_threadsafe, [task.cancel]
            )
            watchdog.start()
            try:
                loop.run_until_complete(task)
            finally:
                watchdog.cancel()
                watchdog.join()
            loop.run_until_complete(nothing_is_left())
            loop.run_until_complete(loop.shutdown_default_executor())
        assert trouble == []

    try:
        yield run
    finally:
        loop.close()


async def nothing_is_left() -> None:
    """No task but this one, no reader but the loop's own, no timer."""
    # Whoever awaited a task refers to it, and so to its exception's traceback,
    # till the loop turns.
    await asyncio.sleep(0)
    gc.collect()
    loop = asyncio.get_running_loop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [handle for handle in getattr(loop, "_scheduled", []) if not handle.cancelled()] == []
    selector = getattr(loop, "_selector", None)
    assert selector is None or len(selector.get_map()) == 1


@contextlib.contextmanager
def no_descriptor_left(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    # A loop opens some of its own when it first runs.
    loop.run_until_complete(asyncio.sleep(0))
    before = set(os.listdir("/dev/fd"))
    yield
    gc.collect()
    assert set(os.listdir("/dev/fd")) <= before


@pytest.fixture(params=["udp", "unix"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    path = tmp_path / "bus.sock" if request.param == "unix" else None
    with fake_bus(path) as bus:
        yield bus


async def apart(step: Callable[[], Any]) -> Any:
    """Does what waits for the subscriber, which needs the loop meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(None, step)


def let_in(bus: FakeBus, *payloads: bytes, lease_ms: int = 30_000) -> "asyncio.Future[Any]":
    """Grants a lease to who asks next, and sends it events."""

    def step() -> None:
        bus.let_in(lease_ms)
        for payload in payloads:
            bus.send(payload)

    return asyncio.ensure_future(apart(step))


@contextlib.asynccontextmanager
async def subscribed(
    bus: FakeBus, lease_ms: int = 30_000, **arguments: Any
) -> AsyncIterator["aio.Subscription[Any]"]:
    granted = let_in(bus, lease_ms=lease_ms)
    async with aio.subscribe(">", address=bus.address, **arguments) as subscription:
        await granted
        yield subscription


def payload(item: Union[Event, Loss, None]) -> bytes:
    assert isinstance(item, Event)
    return item.payload


def test_it_is_iterated_as_it_stands(bus: FakeBus, run: Callable[[Main], None]) -> None:
    async def main() -> None:
        granted = let_in(bus, b"1", b"2", b"3")
        came = []
        async for event in aio.subscribe(">", address=bus.address):
            came.append(event.payload)
            if len(came) == 3:
                break
        assert came == [b"1", b"2", b"3"]
        await granted
        # It is closed although nobody closed it.
        assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"

    run(main)


def test_a_context_begins_with_a_lease_and_ends_with_a_farewell(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        async with subscribed(bus) as subscription:
            bus.send(b"1", b"2")
            assert payload(await subscription.recv()) == b"1"
            assert subscription.stats() == SubscriptionStats(received=2)
        assert subscription.closed
        assert payload(await subscription.recv()) == b"2", "it had been received"
        assert await subscription.recv() is None
        assert [item async for item in subscription] == []
        assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"

    run(main)


def test_the_request_is_the_synchronous_one(run: Callable[[Main], None]) -> None:
    asked: dict[str, Any] = dict(
        name="n", group="g", sample=0.5, events_per_second=9, lease_ms=1234, max_frame_bytes=1400
    )

    async def main() -> None:
        with fake_bus() as bus:
            waiting = asyncio.ensure_future(
                aio.subscribe("a.*", "b.>", address=bus.address, **asked).recv()
            )
            first = (await apart(bus.receive)).subscribe
            assert first == bus_pb2.Subscribe(topics=["a.*", "b.>"], nonce=first.nonce, **asked)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run(main)


def test_the_lease_is_renewed_while_the_consumer_is_elsewhere(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        async with subscribed(bus, lease_ms=300) as subscription:
            for number in range(8):
                request = (await apart(bus.receive)).subscribe
                assert request.report.received == number
                bus.grant(request.nonce, 300)
                bus.send(b"%d" % number)
            came = [payload(await subscription.recv()) for _ in range(8)]
            assert came == [b"%d" % number for number in range(8)]
            assert subscription.stats().lapses == 0

    run(main)


def test_what_finds_no_room_is_dropped_counted_and_reported(
    run: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "EVENTS_MAX", 5)

    async def main() -> None:
        with fake_bus() as bus:
            async with subscribed(bus, lease_ms=300, notices=True) as subscription:
                bus.send(b"1", b"2", b"3")
                bus.send(b"4", b"5", b"6", b"7")
                bus.send(b"8")
                while subscription.stats().received < 8:
                    await asyncio.sleep(0.01)
                while True:
                    request = (await apart(bus.receive)).subscribe
                    bus.grant(request.nonce, 300)
                    if request.report.dropped:
                        break
                assert (request.report.received, request.report.dropped) == (8, 3)
                came = [payload(await subscription.recv()) for _ in range(5)]
                assert came == [b"1", b"2", b"3", b"4", b"5"]
                assert await subscription.recv() == Loss(lost=0, dropped_by_bus=0, dropped=3)
                bus.send(b"9")
                assert payload(await subscription.recv()) == b"9"
                stats = subscription.stats()
                assert (stats.received, stats.dropped, stats.lost) == (9, 3, 0)

    run(main)


def test_losses_are_told_as_by_the_iterator(bus: FakeBus, run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with subscribed(bus, notices=True) as subscription:
            bus.drop(3)
            bus.lose(2)
            bus.send(b"1")
            assert await subscription.recv() == Loss(lost=0, dropped_by_bus=3)
            assert payload(await subscription.recv()) == b"1"
        assert await subscription.recv() == Loss(lost=2, dropped_by_bus=0)
        assert await subscription.recv() is None
        assert (subscription.stats().lost, subscription.stats().awaited) == (2, 0)

    run(main)


def test_recv_gives_up_after_its_timeout(bus: FakeBus, run: Callable[[Main], None]) -> None:
    async def main() -> None:
        subscription = aio.subscribe(">", address=bus.address)
        assert await subscription.recv(timeout=0.01) is None, "no lease yet"
        granted = let_in(bus)
        while not granted.done():
            assert await subscription.recv(timeout=0.01) is None
        assert await subscription.recv(timeout=0) is None
        bus.send(b"1")
        assert payload(await subscription.recv(timeout=0)) == b"1", "it is in the socket"
        bus.send(b"2")
        assert payload(await subscription.recv(timeout=PATIENCE_SECONDS)) == b"2"
        subscription.close()

    run(main)


def test_polling_lets_other_tasks_run(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        with fake_bus() as bus:
            async with subscribed(bus) as subscription:
                others_turns = 0

                async def other() -> None:
                    nonlocal others_turns
                    while True:
                        others_turns += 1
                        await asyncio.sleep(0)

                task = asyncio.ensure_future(other())
                for _ in range(10):
                    assert await subscription.recv(timeout=0) is None
                assert others_turns >= 9
                task.cancel()
                await asyncio.wait([task])

    run(main)


def test_a_consumer_that_never_waits_lets_other_tasks_run(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        with fake_bus() as bus:
            async with subscribed(bus) as subscription:
                for _ in range(50):
                    bus.send(b"1", b"2")
                turns = 0

                async def other() -> None:
                    nonlocal turns
                    while True:
                        turns += 1
                        await asyncio.sleep(0)

                task = asyncio.ensure_future(other())
                for _ in range(100):
                    await subscription.recv()
                    time.sleep(0.0005)
                assert turns > 5
                task.cancel()
                await asyncio.wait([task])

    run(main)


def test_a_wait_for_events_may_be_cancelled_and_taken_up_again(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        async with subscribed(bus) as subscription:
            for number in range(20):
                waiting = asyncio.ensure_future(subscription.recv())
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                bus.send(b"%d" % number)
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert payload(await waiting) == b"%d" % number
                    continue
                assert payload(await subscription.recv()) == b"%d" % number

    run(main)


@pytest.mark.parametrize("turns", range(6))
def test_cancelling_at_any_point_of_the_beginning_leaves_nothing(
    run: Callable[[Main], None], turns: int
) -> None:
    async def enter(bus: FakeBus) -> None:
        async with aio.subscribe(">", address=bus.address):
            raise AssertionError("there is no lease")

    async def iterate(bus: FakeBus) -> None:
        async for _ in aio.subscribe(">", address=bus.address):
            raise AssertionError("there is no lease")

    async def main() -> None:
        with fake_bus() as bus:
            for consume in (enter, iterate):
                task = asyncio.ensure_future(consume(bus))
                for _ in range(turns):
                    await asyncio.sleep(0.002 if turns == 5 else 0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                del task
                await nothing_is_left()

    run(main)


@pytest.mark.parametrize("has_context", [True, False])
def test_a_cancelled_consumer_leaves_nothing(
    bus: FakeBus, run: Callable[[Main], None], has_context: bool
) -> None:
    async def consume(arrived: asyncio.Event) -> None:
        if has_context:
            async with aio.subscribe(">", address=bus.address) as subscription:
                async for _ in subscription:
                    arrived.set()
        else:
            async for _ in aio.subscribe(">", address=bus.address):
                arrived.set()

    async def main() -> None:
        arrived = asyncio.Event()
        task = asyncio.ensure_future(consume(arrived))
        await let_in(bus, b"1")
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        await nothing_is_left()
        assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"

    run(main)


def test_an_exception_of_the_consumer_leaves_nothing(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        granted = let_in(bus, b"1")
        with pytest.raises(ZeroDivisionError):
            async for _ in aio.subscribe(">", address=bus.address):
                raise ZeroDivisionError
        await granted
        await nothing_is_left()

    run(main)


def test_closing_by_another_task_ends_the_iteration(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        async with subscribed(bus) as subscription:
            waiting = asyncio.ensure_future(subscription.recv())
            await asyncio.sleep(0.01)
            subscription.close()
            assert await waiting is None

    run(main)


def test_closed_before_it_began_it_opens_no_socket(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        subscription = aio.subscribe(">")
        assert (subscription.closed, subscription.stats()) == (False, SubscriptionStats())
        subscription.close()
        assert subscription.closed
        assert [event async for event in subscription] == []
        async with subscription:
            pass

    run(main)


def test_two_tasks_at_once_are_told_so(bus: FakeBus, run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with subscribed(bus) as subscription:
            waiting = asyncio.ensure_future(subscription.recv())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await subscription.recv()
            bus.send(b"1")
            assert payload(await waiting) == b"1"

    run(main)


def test_a_bus_that_is_not_there_is_waited_for_so_long(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match="no answer"):
            async with aio.subscribe(">", address=bus.address, timeout=0.05):
                raise AssertionError
        with pytest.raises(TimeoutError, match="no answer"):
            async for _ in aio.subscribe(">", address=bus.address, timeout=0.05):
                raise AssertionError
        await nothing_is_left()

    run(main)


def test_a_bus_that_comes_late_is_found(tmp_path: Path, run: Callable[[Main], None]) -> None:
    path = tmp_path / "bus.sock"

    async def main() -> None:
        waiting = asyncio.ensure_future(aio.subscribe(">", address=f"unix://{path}").recv())
        await asyncio.sleep(0.05)
        with fake_bus(path) as bus:
            await let_in(bus, b"1")
            assert payload(await waiting) == b"1"

    run(main)


def test_a_bus_that_is_gone_leaves_nothing_but_what_closing_ends(
    tmp_path: Path, run: Callable[[Main], None]
) -> None:
    path = tmp_path / "bus.sock"

    async def main() -> None:
        with fake_bus(path) as bus:
            granted = let_in(bus, b"1", lease_ms=300)
            subscription = aio.subscribe(">", address=f"unix://{path}")
            assert payload(await subscription.recv()) == b"1"
            await granted
        while subscription.stats().lapses == 0:
            assert await subscription.recv(timeout=0.05) is None
        with fake_bus(path) as bus:
            back = let_in(bus, b"2")
            assert payload(await subscription.recv()) == b"2"
            await back
        assert subscription.stats().bus_restarts == 1
        subscription.close()
        await nothing_is_left()

    run(main)


def test_a_socket_that_another_closed_is_told_once(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        async with subscribed(bus, lease_ms=300) as subscription:
            assert subscription._feed is not None
            os.close(subscription._feed.endpoint.receiver.fileno())
            with pytest.raises(OSError):
                await subscription.recv()
            assert subscription.closed
            assert await subscription.recv() is None
            await nothing_is_left()

    run(main)


def test_a_refusal_is_raised_once(bus: FakeBus, run: Callable[[Main], None]) -> None:
    async def main() -> None:
        refused = asyncio.ensure_future(
            apart(partial(bus.refuse, bus_pb2.Refusal.NOT_ALLOWED))
        )
        subscription = aio.subscribe(">", address=bus.address)
        with pytest.raises(Refused) as raised:
            await subscription.recv()
        assert raised.value.reason is Reason.NOT_ALLOWED
        assert await subscription.recv() is None
        assert subscription.closed
        await refused

    run(main)


def test_a_closed_loop_leaves_no_socket(bus: FakeBus) -> None:
    before = set(os.listdir("/dev/fd"))
    kept: list[aio.Subscription[Event]] = []

    async def main() -> None:
        granted = let_in(bus, b"1")
        kept.append(aio.subscribe(">", address=bus.address))
        assert payload(await kept[0].recv()) == b"1"
        await granted

    asyncio.run(main())
    kept.clear()
    gc.collect()
    assert set(os.listdir("/dev/fd")) <= before
    assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"


def test_another_loop_is_told_so(bus: FakeBus) -> None:
    kept: list[aio.Subscription[Event]] = []

    async def begin() -> None:
        granted = let_in(bus)
        kept.append(await aio.subscribe(">", address=bus.address).__aenter__())
        await granted

    async def go_on() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await kept[0].recv()

    asyncio.run(begin())
    asyncio.run(go_on())
    kept[0].close()


def test_the_last_reference_may_go_in_another_thread(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        granted = let_in(bus)
        kept = [await aio.subscribe(">", address=bus.address).__aenter__()]
        await granted
        await apart(kept.clear)
        while not bus.receive_all():
            await asyncio.sleep(0.01)
        await nothing_is_left()

    run(main)


def test_the_loop_turns_while_a_name_is_looked_up(
    run: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **more: Any) -> Any:
        looked_up.set()
        go_on.wait(PATIENCE_SECONDS)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.0.1", 9))]

    async def main() -> None:
        if "uvloop" in type(asyncio.get_running_loop()).__module__:
            pytest.skip("uvloop looks names up by itself")
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        task = asyncio.ensure_future(aio.subscribe(">", address="bus.example:9").recv())
        while not looked_up.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    run(main)


@pytest.mark.parametrize("name", ["bus.invalid", "bus..example", "x" * 64])
def test_a_name_without_an_address_is_told(run: Callable[[Main], None], name: str) -> None:
    async def main() -> None:
        with pytest.raises(OSError):
            async with aio.subscribe(">", address=f"{name}:1"):
                raise AssertionError

    run(main)


def test_what_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="pattern"):
        aio.subscribe("a..b")
    with pytest.raises(ValueError):
        aio.subscribe(">", address="nowhere")


def test_a_child_leaves_the_parents_subscription_alone(
    bus: FakeBus, run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        async with subscribed(bus) as subscription:
            bus.send(b"1")
            child = os.fork()
            if child == 0:
                is_closed = subscription.closed
                subscription.close()
                os._exit(0 if is_closed else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert payload(await subscription.recv()) == b"1"
            bus.send(b"2")
            await asyncio.sleep(0.01)
            assert payload(await subscription.recv()) == b"2", "the reader is still there"
            assert bus.receive_all() == []

    run(main)


if TYPE_CHECKING:
    from typing_extensions import assert_type

    async def types_tell_what_comes(asked: bool) -> None:
        """Never called: mypy reads it."""
        only_events: aio.Subscription = aio.subscribe(">", notices=False)
        assert_type(await only_events.recv(), Optional[Event])
        async for event in aio.subscribe(">"):
            assert_type(event, Event)
        async with aio.subscribe(">", notices=True) as subscription:
            assert_type(await subscription.recv(), Union[Event, Loss, None])
            async for item in subscription:
                assert_type(item, Union[Event, Loss])
