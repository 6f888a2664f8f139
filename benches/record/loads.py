"""One measurement each: a load on a bus for a while, and what came of it.

Where there is a yardstick, its publishers and subscribers load the bus as they load the yardstick
itself. Else `hailmary bench` does, whose subscribers decode all that they get.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import processes
import scrapes
from processes import Failed

# As `[loop]` has it.
LINGER_US = 500
PAYLOAD_BYTES = 128
# What both buses fill datagrams to on this host.
FRAME_BYTES = 60_000

Sample = dict[str, float]


@dataclass(frozen=True)
class Load:
    """What is published, to how many, and how the bus is configured for it."""

    seconds: float
    fan_out: int = 4
    events_per_datagram: int = 1
    events_per_second: float = 0
    """Of all publishers together; 0 for all they can."""
    publishers: int = 1
    topics: int = 1
    linger_us: int = LINGER_US
    workers: int = 1

    def config(self) -> str:
        return f"[loop]\nworkers = {self.workers}\nlinger_us = {self.linger_us}\n"

    def with_linger(self, linger_us: int) -> Load:
        return replace(self, linger_us=linger_us)


@dataclass(frozen=True)
class Programs:
    """What there is to be measured and to measure with."""

    hailmary: Path
    relay: Path
    yardstick: Path | None


def bus(programs: Programs, load: Load) -> Sample:
    """The bus, by the same clients as the yardstick where there is one."""
    if programs.yardstick is None:
        return bench(programs, load)
    ports = processes.free_ports(load.fan_out)
    config = load.config() + "".join(
        f'[[subscriber]]\nname = "s{port}"\naddress = "127.0.0.1:{port}"\ntopics = ["search.>"]\n' for port in ports
    )
    with processes.bus(programs.hailmary, config) as running:
        return clients_of_yardstick(programs.yardstick, load, running, ports)


def yardstick(programs: Programs, load: Load) -> Sample:
    if programs.yardstick is None:
        raise Failed("there is no yardstick")
    own, *ports = processes.free_ports(load.fan_out + 1)
    command = [programs.yardstick, "bus", own, load.fan_out, ports[0], FRAME_BYTES]
    with processes.running(command) as process:
        processes.await_bound([own])
        return clients_of_yardstick(programs.yardstick, load, processes.Bus(process.pid, own), ports)


def clients_of_yardstick(program: Path, load: Load, bus: processes.Bus, ports: list[int]) -> Sample:
    with contextlib.ExitStack() as stack:
        subscribers = [processes.quiet(stack, [program, "sub", port]) for port in ports]
        processes.await_bound(ports)
        cpu_before, start = processes.cpu_ns(bus.pid), time.monotonic()
        rate = load.events_per_second / load.publishers
        words = ["pub", bus.port, PAYLOAD_BYTES, load.seconds, load.events_per_datagram, rate]
        publishers = [processes.quiet(stack, [program, *words]) for _ in range(load.publishers)]
        patience = load.seconds + processes.PATIENCE_SECONDS
        published = sum(processes.said(publisher, patience)["events"] for publisher in publishers)
        seconds = processes.await_empty([bus.port, *ports]) - start
        cpu = processes.cpu_ns(bus.pid) - cpu_before
        received = sum(processes.said_at_end(subscriber)["events"] for subscriber in subscribers)
    return {
        "published_per_second": published / seconds,
        "delivered_per_second": received / seconds,
        "lost_share": 1 - received / max(1, published * load.fan_out),
        "cpu_ns_per_copy": cpu / max(1, received),
    }


def bench(programs: Programs, load: Load) -> Sample:
    """`hailmary bench`, which knows the latency, too."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(load.config())
        config.flush()
        command = [programs.hailmary, "bench", "--json", "--config", config.name, *bench_flags(load)]
        report = processes.printed(command, load.seconds + 3 * processes.PATIENCE_SECONDS)
    return sample_of_bench(report, load)


def bench_flags(load: Load) -> list[object]:
    flags: list[object] = ["--payload", PAYLOAD_BYTES, "--topics", load.topics, "--fan-out", load.fan_out]
    flags += ["--publishers", load.publishers, "--events-per-datagram", load.events_per_datagram]
    flags += ["--duration", load.seconds]
    return flags + (["--rate", load.events_per_second] if load.events_per_second else [])


def crowd(programs: Programs, load: Load, subscribers: int, scrapes_per_second: float) -> Sample:
    """A bus with so many static subscribers, none of which wants what `hailmary bench` publishes
    to its own, while the series of all are scraped."""
    config = load.config() + "".join(
        f'[[subscriber]]\nname = "idle-{number}"\naddress = "127.1.{number >> 8}.{number & 255}:9"\n'
        f'topics = ["elsewhere.{number}"]\n'
        for number in range(subscribers)
    )
    with processes.bus(programs.hailmary, config) as bus:
        against = ["--against", f"127.0.0.1:{bus.port}", "--admin", bus.admin]
        command = [programs.hailmary, "bench", "--json", *against, *bench_flags(load)]
        frames_before, late_before = scrapes.forwarded(processes.page(bus))
        cpu_before = processes.cpu_ns(bus.pid)
        with scrapes.scraped(bus, scrapes_per_second) as scraper:
            report = processes.printed(command, load.seconds + 3 * processes.PATIENCE_SECONDS)
        cpu = processes.cpu_ns(bus.pid) - cpu_before
        frames, late = scrapes.forwarded(processes.page(bus))
    return {
        **sample_of_bench(report, load),
        "cpu_ns_per_copy": cpu / max(1, report["received"]["events"]),
        "late_share": (late - late_before) / max(1, frames - frames_before),
        **(scraper.sample() if scraper else {}),
    }


def sample_of_bench(report: dict[str, dict[str, float]], load: Load) -> Sample:
    published, received = report["published"], report["received"]
    latency = report["latency_us"] or {}
    return {
        "published_per_second": published["events_per_second"],
        "delivered_per_second": received["events_per_second"],
        "lost_share": 1 - received["events"] / max(1, published["events"] * load.fan_out),
        "cpu_ns_per_copy": report["bus"]["cpu_ns_per_copy"],
        **{f"{name}_us": latency[name] for name in ("p50", "p99", "p99_9") if name in latency},
    }


def relay(programs: Programs, load: Load) -> Sample:
    rate = round(load.events_per_second)
    command = [programs.relay, rate, max(1, round(rate * load.seconds))]
    report = processes.printed(command, load.seconds + 2 * processes.PATIENCE_SECONDS)
    return {f"{name}_us": value for name, value in report["latency_us"].items()}


def memory(programs: Programs, marks: list[int], seconds_max: float) -> dict[str, float]:
    """Resident KiB of a bus of default configuration: idle, and once it has counted so many
    events, from four publishers at full speed."""
    load = Load(seconds=seconds_max, publishers=4, events_per_datagram=100)
    with processes.bus(programs.hailmary, "") as bus:
        resident: dict[str, float] = {"idle": processes.resident_kib(bus.pid)}
        against = ["--against", f"127.0.0.1:{bus.port}", "--admin", bus.admin]
        command = [programs.hailmary, "bench", *against, *bench_flags(load)]
        with processes.running(command, stderr=subprocess.DEVNULL):
            for mark in marks:
                processes.wait_for(f"{mark} events", events_reach(bus, mark), seconds_max)
                resident[str(mark)] = processes.resident_kib(bus.pid)
    return resident


def events_reach(bus: processes.Bus, mark: int) -> Callable[[], bool]:
    return lambda: processes.metric(bus, "ingress_events_total") >= mark


def idle_system_calls(programs: Programs, strace: str, seconds: float) -> int:
    """What a bus that has nothing to do asks of the kernel in so many seconds."""
    with tempfile.NamedTemporaryFile(prefix="hailmary-record-") as trace:
        wrapper = [strace, "-D", "-f", "-ttt", "-o", trace.name]
        with processes.bus(programs.hailmary, "", wrapper):
            time.sleep(1)
            start = time.time()
            time.sleep(seconds)
        # Read once strace has ended, too, so that all it kept back is there.
        return calls_between(trace_of(trace.name), start, start + seconds)


def trace_of(name: str) -> str:
    """A whole trace: its last line tells of an exit."""

    def text() -> str:
        trace = Path(name).read_text()
        return trace if trace.rstrip().endswith("+++ exited with 0 +++") else ""

    return str(processes.wait_for("strace to end", text))


def calls_between(trace: str, start: float, end: float) -> int:
    """Lines of a trace with a time in between; each begins with a thread and a time."""
    times = (float(line.split()[1]) for line in trace.splitlines() if len(line.split()) > 2)
    return sum(start <= time < end for time in times)


def instructions(directory: Path, name: str) -> int | None:
    """What gungraun counted of a benchmark, by the summary that it saved."""
    try:
        summary = json.loads((directory / name / "summary.json").read_text())
    except OSError:
        return None
    values = summary["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]
    return int(values["new"] if "new" in values else values["both"][0])
