"""What one `publish()` costs, beside the calls that one would make instead.

    pip install -r benchmarks/requirements.txt
    python benchmarks/publish.py                 # a table
    python benchmarks/publish.py --json          # every round, as JSON
    python benchmarks/publish.py --write         # the table into RESULTS.md
    python benchmarks/publish.py --memory        # 10 million publishes, flat memory

Everything that it needs it starts itself, on free ports of loopback, and ends
it: a process that reads what is sent and throws
it away, and a redis-server and a nats-server where they are installed. What is
not installed is left out and named.

The contenders take turns, call by call in rounds, each round beginning with
another; so what disturbs the machine disturbs all of them. CPU is that of the
whole process, with the threads that a library has started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from hailmary import Publisher

TOPIC = "search.index.photo"
PAYLOAD = bytes(32)
KEY = b"4711"
ATTRIBUTES = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

# What a batch is to reach.
BATCH_EVENTS_PER_SECOND = 1_000_000

WHY_BUFFERS_WIN = """\
`publish()` hands each event to the kernel before it returns: one system call for each
event, of which the most part of its time is the kernel's, and which no code around it
makes cheaper. `nats` and `zmq` return when the event is in a buffer of the process, and a
thread or an event loop sends many by one call. So a client that buffers costs less per
call than any that does not; it loses what is in the buffer when the process dies, and its
publisher does not learn what the kernel refused. What compares with those is `linger_ms`,
which buffers too, and the batch."""

# How long a server may take until it answers.
PATIENCE_SECONDS = 20.0

# What the process may grow by, once it is warm: less than a byte in 10 events.
MEMORY_GROWTH_KB_MAX = 1024

# What the events of a batch are, in each call of its bulk form.
BULK_EVENTS = 1000

HERE = Path(__file__).resolve().parent

Calls = Callable[[int], None]


class Round(NamedTuple):
    """What a call cost in one round, in nanoseconds."""

    wall: float
    cpu: float


# --- What is sent to ----------------------------------------------------------


def drain() -> None:
    """Reads two UDP sockets till its own standard input ends."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for bound in sockets:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        bound.bind(("127.0.0.1", 0))
        bound.setblocking(False)
    print(*(bound.getsockname()[1] for bound in sockets), flush=True)
    buffer = bytearray(65_536)
    while True:
        readable, _, _ = select.select([sys.stdin, *sockets], [], [])
        if sys.stdin in readable:
            return
        for bound in sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    bound.recv_into(buffer)


def subscribe_zmq(address: str) -> None:
    """Reads what a ZeroMQ publisher sends, till its own standard input ends."""
    zmq = importlib.import_module("zmq")
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    subscriber.connect(address)
    poller = zmq.Poller()
    poller.register(sys.stdin, zmq.POLLIN)
    poller.register(subscriber, zmq.POLLIN)
    while all(ready is subscriber for ready, _ in poller.poll()):
        with contextlib.suppress(zmq.Again):
            while True:
                subscriber.recv(zmq.NOBLOCK)


@contextlib.contextmanager
def helper(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process of this file, which ends with its standard input."""
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)


@contextlib.contextmanager
def server(program: str, *arguments: str) -> Iterator[int]:
    """A server on a free port; `PORT` in its arguments stands for that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, *(argument.replace("PORT", str(port)) for argument in arguments)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            wait_for_port(port)
            yield port
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


def wait_for_port(port: int) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)


# --- The contenders -----------------------------------------------------------


def hailmary_publish(publisher: Publisher) -> Calls:
    def calls(count: int) -> None:
        for _ in range(count):
            publisher.publish(TOPIC, PAYLOAD)

    return calls


def hailmary_publish_all(publisher: Publisher) -> Calls:
    def calls(count: int) -> None:
        for _ in range(count):
            publisher.publish(TOPIC, PAYLOAD, key=KEY, attributes=ATTRIBUTES)

    return calls


def hailmary_linger(publisher: Publisher) -> Calls:
    def calls(count: int) -> None:
        for _ in range(count):
            publisher.publish(TOPIC, PAYLOAD)
        publisher.flush()

    return calls


def hailmary_batch(publisher: Publisher) -> Calls:
    def calls(count: int) -> None:
        with publisher.batch() as batch:
            for _ in range(count):
                batch.publish(TOPIC, PAYLOAD)

    return calls


def hailmary_bulk(publisher: Publisher, lengths: range) -> Calls:
    payloads = [bytes(lengths[number % len(lengths)]) for number in range(BULK_EVENTS)]

    def calls(count: int) -> None:
        with publisher.batch() as batch:
            for _ in range(count // BULK_EVENTS):
                batch.extend(TOPIC, payloads)

    return calls


def dogstatsd_increment(port: int) -> Calls:
    statsd = importlib.import_module("datadog.dogstatsd").DogStatsd("127.0.0.1", port)

    def calls(count: int) -> None:
        for _ in range(count):
            statsd.increment(TOPIC)

    return calls


def redis_publish(port: int) -> Calls:
    redis = importlib.import_module("redis").Redis("127.0.0.1", port)

    def calls(count: int) -> None:
        for _ in range(count):
            redis.publish(TOPIC, PAYLOAD)

    return calls


def nats_publish(port: int, stack: contextlib.ExitStack) -> Calls:
    nats = importlib.import_module("nats")
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    client = loop.run_until_complete(nats.connect(f"nats://127.0.0.1:{port}"))
    stack.callback(lambda: loop.run_until_complete(client.close()))

    async def publish(count: int) -> None:
        for _ in range(count):
            await client.publish(TOPIC, PAYLOAD)
        await client.flush(PATIENCE_SECONDS)

    return lambda count: loop.run_until_complete(publish(count))


def zmq_send(stack: contextlib.ExitStack) -> Calls:
    zmq = importlib.import_module("zmq")
    context = stack.enter_context(zmq.Context())
    publisher = stack.enter_context(context.socket(zmq.XPUB))
    publisher.setsockopt(zmq.LINGER, 0)
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    stack.enter_context(helper("--subscribe-zmq", f"tcp://127.0.0.1:{port}"))
    publisher.recv()  # The subscription, as an XPUB tells; else it is a PUB.

    def calls(count: int) -> None:
        for _ in range(count):
            publisher.send(PAYLOAD)

    return calls


def contenders(stack: contextlib.ExitStack) -> dict[str, Calls]:
    """All that can be had here, by name."""
    udp, statsd = drained_ports(stack)

    def publisher(linger_ms: float = 0) -> Publisher:
        return stack.enter_context(Publisher(f"127.0.0.1:{udp}", linger_ms=linger_ms))

    made = {
        "hailmary, publish": hailmary_publish(publisher()),
        "hailmary, publish with key and attributes": hailmary_publish_all(publisher()),
        "hailmary, publish with linger_ms=5": hailmary_linger(publisher(linger_ms=5)),
        "hailmary, batch.publish": hailmary_batch(publisher()),
        "hailmary, batch.extend": hailmary_bulk(publisher(), range(32, 33)),
        "hailmary, batch.extend, 16 to 48 bytes": hailmary_bulk(publisher(), range(16, 49)),
    }
    others: dict[str, Callable[[], Calls]] = {
        "dogstatsd, increment": lambda: dogstatsd_increment(statsd),
        "redis, publish": lambda: redis_publish(redis_server(stack)),
        "nats, publish": lambda: nats_publish(nats_server(stack), stack),
        "zmq, PUB send": lambda: zmq_send(stack),
    }
    for name, make in others.items():
        try:
            made[name] = make()
        except (ImportError, FileNotFoundError) as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
    return made


def drained_ports(stack: contextlib.ExitStack) -> list[int]:
    """Two UDP ports whose datagrams are read and thrown away."""
    reader = stack.enter_context(helper("--drain"))
    assert reader.stdout is not None
    return [int(port) for port in reader.stdout.readline().split()]


def redis_server(stack: contextlib.ExitStack) -> int:
    importlib.import_module("redis")
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    options = ("--port", "PORT", "--bind", "127.0.0.1", "--save", "", "--dir", directory)
    return stack.enter_context(server("redis-server", *options))


def nats_server(stack: contextlib.ExitStack) -> int:
    importlib.import_module("nats")
    program = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin")
    return stack.enter_context(server(program or "nats-server", "-a", "127.0.0.1", "-p", "PORT"))


# --- Measuring ----------------------------------------------------------------


def measure(calls: Calls, count: int) -> Round:
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    calls(count)
    wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    return Round(wall / count, cpu / count)


def compare(rounds: int, count: int) -> dict[str, list[Round]]:
    """The rounds of each contender. The one before the first warms up."""
    with contextlib.ExitStack() as stack:
        taking_part = list(contenders(stack).items())
        measured: dict[str, list[Round]] = {name: [] for name, _ in taking_part}
        for number in range(rounds + 1):
            taking_part.append(taking_part.pop(0))
            for name, calls in taking_part:
                one = measure(calls, count)
                if number:
                    measured[name].append(one)
    return {name: measured[name] for name in sorted(measured, key=lambda name: order(name))}


def order(name: str) -> tuple[bool, str]:
    return not name.startswith("hailmary"), name


def table(measured: dict[str, list[Round]]) -> str:
    lines = [
        "| call | wall, ns | from - to | CPU, ns | from - to | calls/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rounds in measured.items():
        wall, cpu = (sorted(values) for values in zip(*rounds))
        middle = statistics.median(wall)
        cells = [
            name,
            f"{middle:,.0f}",
            f"{wall[0]:,.0f} - {wall[-1]:,.0f}",
            f"{statistics.median(cpu):,.0f}",
            f"{cpu[0]:,.0f} - {cpu[-1]:,.0f}",
            f"{1e9 / middle:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(measured: dict[str, list[Round]]) -> str:
    """Which targets hold by these figures, and what stands in the way of the others."""
    wall = {
        name: statistics.median(one.wall for one in rounds) for name, rounds in measured.items()
    }
    ours = wall["hailmary, publish"]
    lines = [
        f"- `publish()` is faster than {name}: {'holds' if ours < theirs else 'does not hold'}, "
        f"{ours:,.0f} ns against {theirs:,.0f} ns."
        for name, theirs in wall.items()
        if not name.startswith("hailmary")
    ]
    per_second = 1e9 / wall["hailmary, batch.extend"]
    holds = "holds" if per_second > BATCH_EVENTS_PER_SECOND else "does not hold"
    lines.append(
        f"- A batch takes over {BATCH_EVENTS_PER_SECOND:,} events/s: {holds}, {per_second:,.0f}."
    )
    head = "The targets, by the medians of the wall time:"
    return "\n".join([head, "", *lines, "", WHY_BUFFERS_WIN])


def surroundings(arguments: argparse.Namespace) -> dict[str, str]:
    """What the figures depend on."""
    packages = ("protobuf", "datadog", "redis", "nats-py", "pyzmq")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.python_compiler()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "rounds": f"{arguments.rounds} of {arguments.calls:,} calls each",
    }


def commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# --- Memory -------------------------------------------------------------------


def resident_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def measure_memory(events: int) -> list[int]:
    """The resident memory in kB after each tenth of so many events."""
    with contextlib.ExitStack() as stack:
        address = f"127.0.0.1:{drained_ports(stack)[0]}"
        calls = hailmary_publish(stack.enter_context(Publisher(address)))
        resident = []
        for _ in range(10):
            calls(events // 10)
            resident.append(resident_kb())
    return resident


def memory_line(events: int, resident: list[int]) -> str:
    return (
        f"{events:,} publishes: {resident[0]:,} kB resident after the first tenth, "
        f"{resident[-1]:,} kB after the last, {max(resident):,} kB at most."
    )


# --- The program --------------------------------------------------------------


def write_results(facts: dict[str, str], text: str, memory: Optional[str]) -> None:
    lines = [
        "# What a call of `publish()` costs",
        "",
        "Written by `python benchmarks/publish.py --write`; what is compared, and how, is told",
        "there. Medians of rounds in which the contenders took turns, with the lowest and the",
        "highest; CPU is the whole process's, its threads and the kernel's work for it included.",
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
        "",
        text,
    ]
    if memory is not None:
        lines += ["", memory]
    (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20_000, help="in a round, of each")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    parser.add_argument("--memory", type=int, nargs="?", const=10_000_000, metavar="EVENTS")
    parser.add_argument("--drain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--subscribe-zmq", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.drain:
        drain()
    elif arguments.subscribe_zmq:
        subscribe_zmq(arguments.subscribe_zmq)
    elif arguments.memory and not arguments.write:
        resident = measure_memory(arguments.memory)
        print(memory_line(arguments.memory, resident))
        sys.exit(max(resident) - resident[0] > MEMORY_GROWTH_KB_MAX)
    else:
        report(arguments)


def report(arguments: argparse.Namespace) -> None:
    facts: dict[str, Any] = surroundings(arguments)
    measured = compare(arguments.rounds, arguments.calls)
    memory = None
    if arguments.memory:
        memory = memory_line(arguments.memory, measure_memory(arguments.memory))
    if arguments.write:
        write_results(facts, f"{table(measured)}\n\n{verdict(measured)}", memory)
    if arguments.json:
        rounds = {name: [one._asdict() for one in rounds] for name, rounds in measured.items()}
        print(json.dumps({**facts, "rounds_ns": rounds}, indent=1))
    else:
        print(table(measured))


if __name__ == "__main__":
    main()
