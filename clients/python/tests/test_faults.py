"""What a bus, a network and a machine can do to a client, by the cases that all
clients share: `tests/vectors/faults.json`, whose README tells what each step means.

Here is how this client is made to live through them, and nothing of what is
expected. The other clients' runners do the same.
"""

import contextlib
import dataclasses
import io
import logging
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional, Union

import pytest
from fault_bus import (
    FIRST_ID,
    LEASE_MS,
    PATIENCE_SECONDS,
    Script,
    Sockets,
    fits,
    kind_of,
    spoilt,
    stranger_says,
    wrong_counts,
)
from real_bus import PROGRAM, RealBus, needs_program, real_bus
from test_vectors import load

from hailmary import Publisher, Subscription, subscribe
from hailmary._session import Origin, Session
from hailmary._wire import bus_pb2

Case = dict[str, Any]
Way = Union[str, dict[str, int]]

CASES: list[Case] = load("faults.json")

if sys.platform != "linux":
    pytest.skip("the counts are those of Linux", allow_module_level=True)

# No step makes a client talk more often without time passing.
EXCHANGES_MAX = 100

# A day's renewals are fewer.
WAKE_UPS_MAX = 100_000


def cases(side: str) -> list[Any]:
    """A side's cases, once for each transport, but for those that are not for
    this client."""
    return [
        pytest.param(case, over, id=f"{case['name']}, over {over}")
        for case in CASES
        if case["side"] == side and "python" not in case.get("not_for", {})
        for over in case["over"]
    ]


def run_steps(world: Any, steps: list[Case]) -> None:
    """Each step is the world's method of that name."""
    for step in steps:
        arguments = {name: value for name, value in step.items() if name != "do"}
        getattr(world, f"do_{step['do']}")(**arguments)


def counts_of(stats: Any) -> dict[str, int]:
    """The counts by their names."""
    return {
        name: value for name, value in dataclasses.asdict(stats).items() if isinstance(value, int)
    }


def test_all_cases_are_of_a_side_that_is_run() -> None:
    names = [case["name"] + case["side"] for case in CASES]
    assert len(set(names)) == len(names)
    sides = {"publisher", "subscriber", "command", "program"}
    assert {case["side"] for case in CASES} == sides
    for case in CASES:
        assert case.get("not_for", {}).keys() < {"python", "rust"}, case["name"]


# Publishers


@pytest.mark.parametrize(("case", "over"), cases("publisher"))
def test_publisher(
    case: Case, over: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as cleanup:
        world = PublisherWorld(Sockets(over, tmp_path), cleanup, monkeypatch)
        run_steps(world, case["steps"])
        world.do_bus_reads()
        world.do_stats(case["stats"])
        world.check_frames(case["frames"])


class PublisherWorld:
    """One publisher, and a bus that may be there."""

    def __init__(
        self,
        sockets: Sockets,
        cleanup: contextlib.ExitStack,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        cleanup.callback(sockets.close)
        self._sockets = sockets
        self._cleanup = cleanup
        self._monkeypatch = monkeypatch
        self._others = open_sockets()
        self._publisher = cleanup.enter_context(Publisher(sockets.address, on_error="drop"))
        self._offered = 0
        self._frames: list[bus_pb2.Frame] = []

    def do_bus_starts(self) -> None:
        self._sockets.start()

    def do_bus_stops(self) -> None:
        self._sockets.stop()

    def do_bus_is_killed(self) -> None:
        self._sockets.kill()

    def do_bus_restarts(self) -> None:
        self._sockets.stop()
        self._sockets.start()

    def do_bus_moves(self) -> None:
        self._sockets.move()

    def do_bus_full(self) -> None:
        self._sockets.fill()

    def do_bus_reads(self) -> None:
        while (received := self._sockets.read()) is not None:
            self._frames.append(received[0])

    def do_publish(self, events: int = 1, wall_clock_unix_nano: Optional[str] = None) -> None:
        with self._monkeypatch.context() as patch:
            if wall_clock_unix_nano is not None:
                unix_nano = int(wall_clock_unix_nano)
                patch.setattr("time.time_ns", lambda: unix_nano)
                # Where the function was taken from its module once and for all.
                patch.setattr("hailmary._publisher.time_ns", lambda: unix_nano, raising=False)
            for _ in range(events):
                self._publish("a.b", b"payload")

    def do_publish_invalid(self, topic: str) -> None:
        self._publish(topic, b"")

    def do_publish_too_large(self) -> None:
        self._publish("a.b", bytes(65_507))

    def do_batch(
        self, events: int, payload_bytes: int = 7, invalid: int = 0, too_large: int = 0
    ) -> None:
        with self._publisher.batch() as batch:
            for _ in range(events):
                batch.publish("a.b", bytes(payload_bytes))
            for _ in range(invalid):
                batch.publish("a..b", b"")
            for _ in range(too_large):
                batch.publish("a.b", bytes(65_507))
        self._offered += events + invalid + too_large

    def do_another_publisher(self, events: int) -> None:
        with Publisher(self._sockets.address) as other:
            for _ in range(events):
                other.publish("a.b", b"payload")

    def do_fork_and_publish(self, events: int, stats: dict[str, Any]) -> None:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self._offered = 0
                self.do_publish(events)
                self.do_stats(stats)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0, "the child's stats, see above"

    def do_close_descriptor(self) -> None:
        os.close(self._descriptor())

    def do_replace_descriptor(self) -> None:
        descriptor = self._descriptor()
        with open(os.devnull, "wb") as file:
            os.dup2(file.fileno(), descriptor)
        self._cleanup.callback(os.close, descriptor)

    def do_no_descriptors(self) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        self._descriptors_again = self._cleanup.enter_context(contextlib.ExitStack())
        self._descriptors_again.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)

    def do_descriptors_again(self) -> None:
        self._descriptors_again.close()

    def do_close(self) -> None:
        self._publisher.close()

    def do_log_to_full_disk(self) -> None:
        disk = self._cleanup.enter_context(open("/dev/full", "wb", buffering=0))
        full = io.TextIOWrapper(disk, write_through=True)
        log, handler = logging.getLogger("hailmary"), logging.StreamHandler(full)
        log.addHandler(handler)
        self._cleanup.callback(log.removeHandler, handler)
        # Where the logging module tells of its own failures.
        self._monkeypatch.setattr(sys, "stderr", full)

    def do_stats(self, are: dict[str, Any]) -> None:
        stats = self._publisher.stats()
        counts = counts_of(stats)
        assert wrong_counts(counts, are) == {}
        assert (stats.offered, stats.sent + stats.dropped) == (self._offered, self._offered)

    def check_frames(self, told: list[list[Any]]) -> None:
        """What the bus got, in order, and whose it is."""
        names = dict.fromkeys(frame.stamp.sender for frame in self._frames)
        letters = dict(zip(names, "abc"))
        assert 0 not in letters
        got = [self._row(letters[frame.stamp.sender], frame) for frame in self._frames]
        assert len(got) == len(told), got
        for row, wanted in zip(got, told):
            counts = zip(row[1:4], wanted[1:4])
            assert row[0] == wanted[0] and all(fits(*count) for count in counts), (got, told)
            assert wanted[4:] in ([], row[4:]), (got, told)

    def _row(self, sender: str, frame: bus_pb2.Frame) -> list[Any]:
        stamp, events = frame.stamp, frame.events
        return [sender, stamp.sequence, stamp.dropped, len(events), str(events[0].time_unix_nano)]

    def _publish(self, topic: str, payload: bytes) -> None:
        self._publisher.publish(topic, payload)
        self._offered += 1

    def _descriptor(self) -> int:
        """The publisher's socket: no other was opened since."""
        (descriptor,) = open_sockets() - self._others - {self._sockets.descriptor}
        return descriptor


def open_sockets() -> set[int]:
    """The process's descriptors that are sockets."""
    found = set()
    for name in os.listdir("/dev/fd"):
        # The one that listed them is gone.
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


# Subscribers


@pytest.mark.parametrize(("case", "over"), cases("subscriber"))
def test_subscriber(case: Case, over: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as cleanup:
        on_session = over == "session"
        driver = SessionDriver() if on_session else SocketDriver(over, tmp_path, cleanup)
        world = SubscriberWorld(driver)
        run_steps(world, case["steps"])
        world.do_stats(case["stats"])
        # Over sockets, it depends on the machine's speed what is asked twice.
        if isinstance(driver, SessionDriver):
            assert driver.requests == unfolded(case["requests"])


def unfolded(requests: list[str]) -> list[str]:
    """`renew x 3` is three of them."""
    kinds = (request.partition(" x ") for request in requests)
    return [kind for kind, _, times in kinds for _ in range(int(times or 1))]


class SubscriberWorld:
    """One subscription, the runs of a bus, and the way between them.

    A case is over what its steps can be done with: no session has a socket, and
    nobody waits for a real clock.
    """

    def __init__(self, driver: "Union[SessionDriver, SocketDriver]") -> None:
        self._driver: Any = driver
        self._bus = Script(FIRST_ID)
        self._held: list[bytes] = []

    def do_subscribe(self) -> None:
        self._driver.subscribe()

    def do_bus_starts(self) -> None:
        self._driver.start(self._bus)

    def do_bus_restarts(self) -> None:
        self._driver.stop()
        self._bus = Script(self._bus.id + 1)
        self._driver.start(self._bus)

    def do_bus_moves(self) -> None:
        self._bus = Script(self._bus.id + 1)
        self._driver.move(self._bus)

    def do_bus_stands_still(self) -> None:
        self._driver.stop()

    def do_bus_goes_on(self) -> None:
        self._driver.start(self._bus)

    def do_bus_drops(self, events: int) -> None:
        self._bus.drop(events)

    def do_bus_refuses(self, reason: str) -> None:
        self._bus.refusal = reason

    def do_bus_admits(self) -> None:
        self._bus.refusal = None

    def do_lease(self, ms: int = LEASE_MS) -> None:
        self._bus.lease_ms = ms
        self._bus.has_granted = False
        self._driver.subscribe()
        self._driver.await_lease(self._bus)

    def do_lease_lapses(self) -> None:
        self._bus.forget()

    def do_events(self, events: int, way: Way = "straight") -> None:
        datagram = self._bus.events(events)
        if isinstance(way, dict):
            self._driver.deliver(spoilt(datagram, way))
        elif way == "held":
            self._held.append(datagram)
        else:
            for _ in range({"straight": 1, "lost": 0, "doubled": 2}[way]):
                self._driver.deliver(datagram)

    def do_release(self) -> None:
        while self._held:
            self._driver.deliver(self._held.pop())

    def do_stranger(self, sends: str) -> None:
        self._driver.deliver(stranger_says(sends, self._bus.id))

    def do_time_passes(self, ms: int) -> None:
        self._driver.pass_time(ms)

    def do_clock_jumps(self, ms: int) -> None:
        self._driver.jump(ms)

    def do_close(self) -> None:
        self._driver.close()

    def do_close_descriptor(self) -> None:
        self._driver.close_descriptor()

    def do_receive_fails(self) -> None:
        self._driver.receive_fails()

    def do_report(self, received: int, lost: int) -> None:
        report = self._bus.reports[-1]
        assert (report.bus, report.dropped) == (self._bus.id, 0)
        assert (report.received, report.lost) == (received, lost)

    def do_stats(self, are: dict[str, Any]) -> None:
        assert wrong_counts(self._driver.counts(), are) == {}


class SessionDriver:
    """A session without sockets, and a clock that is told what to say."""

    def __init__(self) -> None:
        # Sums of seconds are not exact; a case's milliseconds are.
        self._now_ms = 1_000_000
        self._now = self._now_ms / 1000
        self._session = Session(bus_pb2.Subscribe(topics=[">"]), 1, self._now)
        self._bus: Optional[Script] = None
        self.requests: list[str] = []

    def subscribe(self) -> None:
        """It begins by itself."""

    def start(self, bus: Script) -> None:
        self._bus = bus

    def stop(self) -> None:
        self._bus = None

    def await_lease(self, bus: Script) -> None:
        self._exchange()
        for _ in range(EXCHANGES_MAX):
            if bus.has_granted:
                return
            self._wake(self._session.wake_at)
            self._now_ms = round(self._now * 1000)
        raise AssertionError("no lease, however long it waits")

    def deliver(self, datagram: bytes) -> None:
        self._session.handle_datagram(self._now, Origin.ELSEWHERE, datagram)

    def pass_time(self, ms: int) -> None:
        until_ms = self._now_ms + ms
        self._exchange()
        for _ in range(WAKE_UPS_MAX):
            if self._session.wake_at > until_ms / 1000:
                break
            self._wake(self._session.wake_at)
        else:
            raise AssertionError("it turns in a circle")
        self._wake(until_ms / 1000)
        self._now_ms = until_ms

    def jump(self, ms: int) -> None:
        self._now_ms += ms
        self._now = self._now_ms / 1000

    def close(self) -> None:
        farewell = self._session.close()
        if farewell is not None:
            self._hear(farewell)

    def counts(self) -> dict[str, int]:
        return counts_of(self._session.stats())

    def _wake(self, at: float) -> None:
        self._now = max(self._now, at)
        self._exchange()
        self._session.handle_timeout(self._now)

    def _exchange(self) -> None:
        """Says what is due, and takes the answers, which come at once."""
        for _ in range(EXCHANGES_MAX):
            request = self._session.poll_transmit(self._now)
            if request is None:
                return
            answer = self._hear(request)
            if answer is not None:
                self._session.handle_datagram(self._now, Origin.BUS, answer)
        raise AssertionError("it talks without end")

    def _hear(self, datagram: bytes) -> Optional[bytes]:
        frame = bus_pb2.Frame.FromString(datagram)
        self.requests.append(kind_of(frame))
        return self._bus.answer(frame) if self._bus is not None else None


class SocketDriver:
    """A subscription as applications have it, at a bus with sockets."""

    def __init__(self, over: str, directory: Path, cleanup: contextlib.ExitStack) -> None:
        self._sockets = Sockets(over, directory)
        cleanup.callback(self._sockets.close)
        self._cleanup = cleanup
        self._others = open_sockets()
        self._subscribing: Optional[Future[Subscription]] = None
        self._subscription: Optional[Subscription] = None
        self._client: Any = None
        self._runs: set[int] = set()

    def subscribe(self) -> None:
        """In a thread, since it waits for the bus, which is this one."""
        if self._subscribing is None:
            pool = self._cleanup.enter_context(ThreadPoolExecutor(1))
            self._subscribing = pool.submit(
                lambda: subscribe(">", address=self._sockets.address, timeout=PATIENCE_SECONDS)
            )

    def start(self, bus: Script) -> None:
        self._sockets.start()

    def stop(self) -> None:
        self._sockets.stop()

    def move(self, bus: Script) -> None:
        self._sockets.move()

    def await_lease(self, bus: Script) -> None:
        self._runs.add(bus.id)
        self._wait_until(lambda: self._has_lease(bus))

    def deliver(self, datagram: bytes) -> None:
        """Each datagram of a case changes a count."""
        before = self.counts()
        self._sockets.egress.sendto(datagram, self._client)
        self._wait_until(self._has_changed(before))

    def close(self) -> None:
        self._held.close()

    def counts(self) -> dict[str, int]:
        return counts_of(self._held.stats())

    def close_descriptor(self) -> None:
        """Under the subscription: no other socket was opened since."""
        (descriptor,) = open_sockets() - self._others - {self._sockets.descriptor}
        os.close(descriptor)

    def receive_fails(self) -> None:
        with pytest.raises(OSError, match="."):
            self._held.recv(PATIENCE_SECONDS)

    @property
    def _held(self) -> Subscription:
        assert self._subscription is not None, "no lease yet"
        return self._subscription

    def _has_lease(self, bus: Script) -> bool:
        request = self._sockets.read()
        if request is not None:
            self._client = request[1]
            answer = bus.answer(request[0])
            if answer is not None:
                self._sockets.answer(answer, self._client)
        if self._subscription is not None:
            self._held.recv(timeout=0.01)
            return bus.has_granted and self._held.stats().bus_restarts == len(self._runs) - 1
        assert self._subscribing is not None
        if self._subscribing.done():
            self._subscription = self._subscribing.result()
            self._cleanup.callback(self._subscription.close)
        return self._subscription is not None

    def _has_changed(self, before: dict[str, int]) -> Callable[[], bool]:
        def has_changed() -> bool:
            while self._held.recv(timeout=0.01) is not None:
                pass
            return self.counts() != before

        return has_changed

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            assert time.monotonic() < until, "waited in vain"


# Commands: of both clients, for the other runner has none to run


COMMANDS = {"python": [sys.executable, "-m", "hailmary"], "rust": [PROGRAM]}


@needs_program
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("case", "over"), cases("command"))
def test_command(case: Case, over: str, command: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as cleanup:
        sockets = Sockets(over, tmp_path)
        cleanup.callback(sockets.close)
        outputs = {name: cleanup.enter_context(output(case[name])) for name in ("stdout", "stderr")}
        arguments = [*COMMANDS[command], *case["run"], "--from", sockets.address]
        process = cleanup.enter_context(subprocess.Popen(arguments, text=True, **outputs))
        cleanup.callback(process.kill)
        run_steps(CommandWorld(sockets), case["steps"])
        told = process.communicate(timeout=PATIENCE_SECONDS)
        assert fits(process.returncode, case["exit"]), told
        for text, wanted in zip(told, case["says"]):
            assert wanted in (text or ""), told
            assert "Traceback" not in (text or "") and "panicked" not in (text or ""), told


@contextlib.contextmanager
def output(kind: str) -> Iterator[Any]:
    """Where a command writes to: a full disk, a pipe that is read, or one that
    nobody reads any more."""
    if kind == "read":
        yield subprocess.PIPE
    elif kind == "full":
        with open("/dev/full", "wb", buffering=0) as disk:
            yield disk
    else:
        assert kind == "closed"
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb", buffering=0) as pipe:
            yield pipe


class CommandWorld:
    """The bus of a command's case."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._bus = Script(FIRST_ID)
        self._client: Any = None

    def do_bus_starts(self) -> None:
        self._sockets.start()

    def do_lease(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not self._bus.has_granted:
            assert time.monotonic() < until, "it asks for no lease"
            request = self._sockets.read()
            if request is None:
                time.sleep(0.001)
                continue
            self._client = request[1]
            answer = self._bus.answer(request[0])
            if answer is not None:
                self._sockets.answer(answer, self._client)

    def do_events(self, events: int) -> None:
        self._sockets.egress.sendto(self._bus.events(events), self._client)


# Many publishers, at the real program


# Fewer datagrams than the bus's socket holds whatever the kernel grants it.
BURST_PUBLISHERS = 50

# What the test itself has open, at most.
DESCRIPTORS_ASIDE = 200


@needs_program
@pytest.mark.parametrize(("case", "over"), cases("program"))
def test_program(case: Case, over: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as cleanup:
        allow_descriptors(case["at_once"] + DESCRIPTORS_ASIDE, cleanup)
        bus = cleanup.enter_context(real_bus(tmp_path))
        pacer = cleanup.enter_context(Publisher(bus.udp))
        for _ in range(0, case["publishers"], case["at_once"]):
            publish_in_turn(case["at_once"], bus.udp, pacer)
        scrape = bus.scrape()
        told = {
            "events": scrape.total("ingress_events_total"),
            "lost": scrape.total("ingress_lost_events_total"),
            "sender_dropped": scrape.total("ingress_sender_dropped_events_total"),
        }
        assert told == case["bus"]
        assert scrape.total("unmatched_events_total") == told["events"]
        assert resident_mib(bus) < case["memory_mib_max"]


def publish_in_turn(count: int, address: str, pacer: Publisher) -> None:
    """All of them publish, then drop one event each, and publish again."""
    with contextlib.ExitStack() as closing:
        publishers = [
            closing.enter_context(Publisher(address, on_error="drop")) for _ in range(count)
        ]
        for round_topics in (["a.b"], ["a..b", "a.b"]):
            for first in range(0, count, BURST_PUBLISHERS):
                for publisher in publishers[first : first + BURST_PUBLISHERS]:
                    for topic in round_topics:
                        publisher.publish(topic, b"payload")
                # Till the bus has read them all.
                assert pacer.ping(PATIENCE_SECONDS) is not None
        for publisher in publishers:
            stats = publisher.stats()
            assert (stats.sent, stats.invalid, stats.dropped) == (2, 1, 1)


def allow_descriptors(count: int, cleanup: contextlib.ExitStack) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"a process may have {hard} descriptors here, not {count}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
        cleanup.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))


def resident_mib(bus: RealBus) -> float:
    """The memory that the program has; 0 where the system does not tell."""
    status = Path(f"/proc/{bus.process_id}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))
