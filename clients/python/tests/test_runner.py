"""Handlers in threads, at a bus that does as it is told."""

import logging
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Union

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus

from hailmary import Event, Loss, Refused, Runner, RunnerStats, run
from hailmary._receiver import Receiver
from hailmary._wire import bus_pb2


@pytest.fixture(params=["udp", "unix"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    path = tmp_path / "bus.sock" if request.param == "unix" else None
    with fake_bus(path) as bus:
        yield bus


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.fixture
def start() -> Iterator[Callable[..., Runner]]:
    """Starts runners that have a lease, and that are stopped in the end."""
    runners = []
    before = threading.active_count()

    def start(bus: FakeBus, handler: Any, lease_ms: int = 30_000, **arguments: Any) -> Runner:
        runner = Runner(handler, ">", address=bus.address, **arguments)
        runners.append(runner)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(runner.start, PATIENCE_SECONDS)
            bus.let_in(lease_ms)
            assert held.result()
        return runner

    yield start
    for runner in runners:
        assert runner.stop()
    assert threading.active_count() == before


def send_keyed(bus: FakeBus, *keys: bytes) -> None:
    events = [
        bus_pb2.Event(topic="a.b", key=key, payload=b"%d" % (bus.sequence + number))
        for number, key in enumerate(keys)
    ]
    stamp = bus_pb2.Stamp(sender=bus.id, sequence=bus.sequence)
    bus.sequence += len(events)
    frame = bus_pb2.Frame(events=events, stamp=stamp)
    bus.egress.sendto(frame.SerializeToString(), bus.subscriber)


Start = Callable[..., Runner]


def test_every_event_is_handled_and_counted(bus: FakeBus, start: Start) -> None:
    came: list[bytes] = []
    runner = start(bus, lambda event: came.append(event.payload))
    bus.send(b"1", b"2")
    bus.send(b"3")
    wait_until(lambda: runner.stats().handled == 3)
    assert came == [b"1", b"2", b"3"], "one worker keeps the order of all"
    assert runner.stats() == RunnerStats(received=3, handled=3)
    assert runner.stop()
    assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"


def test_events_of_a_key_keep_their_order_in_one_thread(bus: FakeBus, start: Start) -> None:
    threads: dict[bytes, set[int]] = defaultdict(set)
    came: dict[bytes, list[int]] = defaultdict(list)

    def handle(event: Event) -> None:
        threads[event.key].add(threading.get_ident())
        came[event.key].append(int(event.payload))

    runner = start(bus, handle, workers=4)
    keys = [b"key-%d" % number for number in range(20)]
    for _ in range(20):
        send_keyed(bus, *keys)
        wait_until(lambda: runner.stats().received == bus.sequence)
    assert runner.stop()
    assert all(len(idents) == 1 for idents in threads.values())
    assert len(set.union(*threads.values())) > 1
    assert all(numbers == sorted(numbers) for numbers in came.values())
    assert runner.stats().handled == 400


def test_events_without_a_key_go_to_who_has_least_to_do(bus: FakeBus, start: Start) -> None:
    go_on = threading.Event()

    def handle(event: Event) -> None:
        if event.payload == b"slow":
            go_on.wait(PATIENCE_SECONDS)

    runner = start(bus, handle, workers=2)
    bus.send(b"slow")
    wait_until(lambda: runner.stats().received == 1)
    for number in range(10):
        bus.send(b"1")
        # Were they dealt out in turn, half of them would wait.
        bus.send(b"2")
        wait_until(lambda: runner.stats().handled >= 1 + number // 2)
    go_on.set()
    wait_until(lambda: runner.stats().handled == 21)


def test_what_finds_no_room_is_dropped_counted_and_reported(start: Start) -> None:
    go_on = threading.Event()
    came: list[bytes] = []

    def handle(event: Event) -> None:
        go_on.wait(PATIENCE_SECONDS)
        came.append(event.payload)

    with fake_bus() as bus:
        runner = start(bus, handle, lease_ms=300, queue_events=3)
        bus.send(b"taken up")
        wait_until(lambda: runner.stats().received == 1)
        wait_until(lambda: len(runner._workers[0].hand_over) == 0)
        bus.send(b"1", b"2")
        bus.send(b"3", b"4", b"5")
        bus.send(b"6")
        wait_until(lambda: runner.stats().received == 7)
        # The lease is renewed although the handler stands still.
        for _ in range(3):
            request = bus.receive().subscribe
            bus.grant(request.nonce, 300)
        assert (request.report.received, request.report.dropped) == (7, 3)
        assert runner.stats().dropped == 3
        go_on.set()
        assert runner.stop()
    assert came == [b"taken up", b"1", b"2", b"3"]
    stats = runner.stats()
    assert (stats.handled, stats.lapses) == (4, 0)
    assert stats.received == stats.handled + stats.dropped


def test_a_stuck_worker_takes_no_room_from_the_others(bus: FakeBus, start: Start) -> None:
    go_on = threading.Event()

    def handle(event: Event) -> None:
        if event.key == b"stuck":
            go_on.wait(PATIENCE_SECONDS)

    runner = start(bus, handle, workers=2, queue_events=8)
    other = next(key for key in (b"%d" % n for n in range(99)) if (hash(key) - hash(b"stuck")) % 2)
    for number in range(20):
        send_keyed(bus, b"stuck", other)
        wait_until(lambda: runner.stats().handled == number + 1)
    assert runner.stats().dropped == 20 - 1 - 4
    go_on.set()


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(1), KeyboardInterrupt()])
def test_what_a_handler_raises_is_counted_and_seldom_logged(
    start: Start, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def handle(event: Event) -> None:
        raise error

    with fake_bus() as bus:
        runner = start(bus, handle)
        bus.send(*[b"1"] * 50)
        bus.send(b"2")
        wait_until(lambda: runner.stats().handler_errors == 51)
        assert runner.stop()
    assert runner.stats() == RunnerStats(received=51, handled=51, handler_errors=51)
    assert [record.message for record in caplog.records] == [
        f"a handler raised, given an event of 'a.b': {error!r}"
    ]
    (logged,) = caplog.records
    assert logged.exc_info is not None and logged.exc_info[1] is error
    assert logged.levelno == logging.ERROR


def test_stopping_finishes_what_waits(bus: FakeBus, start: Start) -> None:
    runner = start(bus, lambda event: time.sleep(0.002), workers=2)
    bus.send(*[b"1"] * 50)
    wait_until(lambda: runner.stats().received == 50)
    assert runner.stop()
    assert runner.stats() == RunnerStats(received=50, handled=50)


def test_stopping_gives_up_in_time_what_takes_too_long(bus: FakeBus, start: Start) -> None:
    runner = start(bus, lambda event: time.sleep(0.05), workers=2)
    bus.send(*[b"1"] * 500)
    wait_until(lambda: runner.stats().handled > 2)
    began = time.monotonic()
    runner.stop(timeout=0.1)
    assert runner.stop()
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    stats = runner.stats()
    assert stats.received == 500 == stats.handled + stats.dropped
    assert stats.dropped > 0


def test_a_handler_that_never_returns_is_left_behind(start: Start) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handle(event: Event) -> None:
        begun.set()
        go_on.wait(PATIENCE_SECONDS)

    with fake_bus() as bus:
        runner = start(bus, handle)
        bus.send(b"1")
        assert begun.wait(PATIENCE_SECONDS)
        assert not runner.stop(timeout=0)
        go_on.set()
        assert runner.stop()


def test_a_handler_may_stop_it(bus: FakeBus, start: Start) -> None:
    stopped: list[bool] = []
    runner: Runner = start(bus, lambda event: stopped.append(runner.stop()))
    bus.send(b"1")
    assert runner.wait(PATIENCE_SECONDS)
    wait_until(lambda: stopped == [True])


def test_a_signal_handler_may_stop_it(bus: FakeBus, start: Start) -> None:
    runner = start(bus, lambda event: None)
    previous = signal.signal(signal.SIGALRM, lambda number, frame: [runner.stop()] and None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert runner.wait(PATIENCE_SECONDS)
    finally:
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_a_signal_stops_it_cleanly(number: signal.Signals) -> None:
    handlers = signal.getsignal(number)
    with fake_bus() as bus, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            bus.let_in()
            bus.send(b"1")

        serving = pool.submit(serve)
        stats = run(lambda event: os.kill(os.getpid(), number), ">", address=bus.address)
        serving.result()
        assert (stats.received, stats.handled, stats.handler_errors) == (1, 1, 0)
        assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"
    assert signal.getsignal(number) == handlers


def test_in_the_foreground_a_refusal_is_raised() -> None:
    with fake_bus() as bus, ThreadPoolExecutor(1) as pool:
        pool.submit(bus.refuse, bus_pb2.Refusal.NOT_ALLOWED)
        with pytest.raises(Refused):
            run(lambda event: None, ">", address=bus.address)


def test_starting_tells_a_refusal(bus: FakeBus) -> None:
    runner = Runner(lambda event: None, ">", address=bus.address)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(bus.refuse, bus_pb2.Refusal.NOT_ALLOWED)
        with pytest.raises(Refused):
            runner.start(PATIENCE_SECONDS)
    with pytest.raises(Refused):
        runner.wait()
    assert runner.stop()


def test_a_socket_that_another_closed_is_told(
    bus: FakeBus, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    runner = start(bus, lambda event: None, lease_ms=300)
    assert runner._endpoint is not None
    os.close(runner._endpoint.receiver.fileno())
    with pytest.raises(OSError):
        runner.wait(PATIENCE_SECONDS)
    assert runner.stop()
    assert "the subscription ends" in caplog.text


def test_starting_does_not_wait_for_a_bus(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    came = threading.Event()
    with Runner(lambda event: came.set(), ">", address=f"unix://{path}") as runner:
        assert runner.stats() == RunnerStats()
        with fake_bus(path) as bus:
            bus.let_in()
            bus.send(b"1")
            assert came.wait(PATIENCE_SECONDS)
    assert runner.stats().handled == 1


def test_a_name_without_an_address_is_waited_for_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Runner(lambda event: None, ">", address="bus.invalid:1") as runner:
        wait_until(lambda: len(caplog.records) == 1)
        assert not runner.wait(0.01)
    assert caplog.records[0].message.startswith("cannot subscribe yet to >: ")
    assert caplog.records[0].levelno == logging.WARNING


def test_losses_are_told_to_the_handler_where_asked_for(bus: FakeBus, start: Start) -> None:
    came: list[Union[Event, Loss]] = []
    runner = start(bus, came.append, notices=True)
    bus.drop(3)
    bus.lose(2)
    bus.send(b"1")
    wait_until(lambda: len(came) == 2)
    assert runner.stop()
    assert [came[0], came[2]] == [Loss(0, 3), Loss(2, 0)]
    assert isinstance(came[1], Event)
    stats = runner.stats()
    assert (stats.lost, stats.dropped_by_bus, stats.handled) == (2, 3, 1)


def test_a_child_leaves_the_parents_runner_alone(bus: FakeBus, start: Start) -> None:
    runner = start(bus, lambda event: None, workers=2)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            stopped = runner.stop()
            runner.stats()
            os._exit(0 if stopped else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert bus.receive_all() == []
    bus.send(b"1")
    wait_until(lambda: runner.stats().handled == 1)


def test_a_runner_may_be_made_before_a_fork_and_started_after_it() -> None:
    with fake_bus() as bus:
        runner = Runner(lambda event: os._exit(7), ">", address=bus.address)
        child = os.fork()
        if child == 0:
            runner.start()
            time.sleep(PATIENCE_SECONDS)
            os._exit(1)
        bus.let_in()
        bus.send(b"1")
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7


def test_without_threads_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    descriptors = len(os.listdir("/dev/fd"))
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def fail(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    runner = Runner(lambda event: None, ">", workers=2)
    with pytest.raises(RuntimeError, match="new thread"):
        runner.start()
    assert runner.stop()
    wait_until(lambda: threading.active_count() == before)
    assert len(os.listdir("/dev/fd")) == descriptors


def test_it_starts_once() -> None:
    with Runner(lambda event: None, ">", address="127.0.0.1:9") as runner:
        with pytest.raises(RuntimeError, match="once"):
            runner.start()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"workers": 0}, ValueError),
        ({"workers": 257}, ValueError),
        ({"workers": 5, "queue_events": 4}, ValueError),
        ({"address": "nowhere"}, ValueError),
        ({"sample": 2.0}, ValueError),
        ({"handler": "no function"}, TypeError),
        ({"unknown": 1}, TypeError),
    ],
)
def test_a_wrong_argument_is_told_at_once(wrong: Any, error: type[Exception]) -> None:
    handler = wrong.pop("handler", print)
    with pytest.raises(error):
        Runner(handler, ">", **wrong)


def test_waiting_costs_no_processor_time(
    bus: FakeBus, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    wait = Receiver.wait

    def counted(receiver: Receiver, seconds: float, *also: Any) -> None:
        waits.append(seconds)
        wait(receiver, seconds, *also)

    monkeypatch.setattr(Receiver, "wait", counted)
    start(bus, lambda event: None, workers=4)
    before = len(waits)
    renewal = bus.receive()
    assert renewal.subscribe.cookie, "so a renewal's time has passed"
    assert len(waits) - before <= 4, "one wait till the renewal, and a few around it"


if TYPE_CHECKING:

    def types_tell_what_is_handled() -> None:
        """Never called: mypy reads it."""

        def handle_event(event: Event) -> None: ...

        def handle_both(item: Union[Event, Loss]) -> None: ...

        Runner(handle_event, ">")
        Runner(handle_both, ">", notices=True, group="g", sample=0.5)
        Runner(handle_event, ">", notices=True)  # type: ignore[arg-type]
        run(handle_event, ">", unknown=1)  # type: ignore[call-overload]
