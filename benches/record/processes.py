"""Processes that a measurement starts: each ends with its block, by its own handle."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import re
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How long anything may take that takes milliseconds: far more, for machines under load.
PATIENCE_SECONDS = 20.0
LOOK_EVERY_SECONDS = 0.005
# Between what systems give to sockets that ask for any port and what they keep for known services.
PORTS = range(20_000, 32_000)

Command = Sequence[object]


class Failed(Exception):
    """A measurement could not be made."""


@contextlib.contextmanager
def running(command: Command, stdout: Any = subprocess.DEVNULL, stderr: Any = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True
    )
    try:
        yield process
    finally:
        end(process)
        if process.stdout:
            process.stdout.close()


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[str], patience: float) -> Any:
    """The JSON that a process prints till it ends by itself."""
    try:
        words, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{name_of(process)} does not end") from error
    try:
        return json.loads(words)
    except ValueError as error:
        raise Failed(f"{name_of(process)} ended with {process.returncode} and no result") from error


def said_at_end(process: subprocess.Popen[str]) -> Any:
    """The JSON that a process prints when it is told to end."""
    process.terminate()
    return said(process, PATIENCE_SECONDS)


def name_of(process: subprocess.Popen[str]) -> str:
    words = process.args if isinstance(process.args, list) else [process.args]
    return " ".join([Path(str(words[0])).name, *map(str, words[1:2])])


def wait_for(what: str, condition: Callable[[], Any], patience: float = PATIENCE_SECONDS) -> Any:
    """Whatever the condition is once it is true."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"waited too long for {what}")
        time.sleep(LOOK_EVERY_SECONDS)


@dataclass(frozen=True)
class Bus:
    """A running one, under test."""

    pid: int
    port: int
    admin: str = ""
    config: Path = Path()
    """Its configuration's file, read anew by a reload."""


@contextlib.contextmanager
def bus(program: Path, config: str, wrapper: Command = (), unix: Path | None = None) -> Iterator[Bus]:
    """A bus of this configuration, or of the default one where that is empty, on ports of its own,
    and on a Unix socket where a path is given. A wrapper may be put before it that becomes the bus."""
    listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"]
    listen += ["--listen", f"unix://{unix}"] if unix else []
    with tempfile.TemporaryDirectory(prefix="hailmary-record-") as directory:
        file, log = Path(directory, "bus.toml"), Path(directory, "bus.log")
        file.write_text(config)
        with log.open("w") as stderr:
            command = [*wrapper, program, "serve", *(["--config", file] if config else []), *listen]
            with running(command, stderr=stderr) as process:
                port, admin = wait_for("the bus to listen", lambda: places(process, log.read_text()))
                yield Bus(process.pid, port, admin, file)


def places(process: subprocess.Popen[str], log: str) -> tuple[int, str] | None:
    """Where a bus says that it listens, once it has said so of its admin, too."""
    if process.poll() is not None:
        raise Failed(f"the bus does not start: {log}")
    udp = re.search(r'"listening","address":"udp://127\.0\.0\.1:(\d+)"', log)
    admin = re.search(r'"admin listening","address":"http://([^"]+)"', log)
    return (int(udp.group(1)), admin.group(1)) if udp and admin else None


def page(bus: Bus) -> str:
    """All its metrics."""
    with urllib.request.urlopen(f"http://{bus.admin}/metrics", timeout=PATIENCE_SECONDS) as answer:
        return str(answer.read().decode())


def metric(bus: Bus, name: str) -> int:
    """A counter without labels."""
    match = re.search(rf"^hailmary_{name} (\d+)", page(bus), re.MULTILINE)
    return int(match.group(1)) if match else 0


def cpu_ns(pid: int) -> int:
    """Of all threads that live, on the processor, by the scheduler's own count."""
    return sum(int(stat.read_text().split()[0]) for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def resident_kib(pid: int, kind: str = "VmRSS") -> int:
    """In all, or of a kind of proc(5): `RssAnon` is what the process made itself."""
    match = re.search(rf"^{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(match.group(1)) if match else 0


def waiting_bytes(table: str) -> dict[int, int]:
    """Ports that are bound, by `/proc/net/udp`, and what waits in their sockets' buffers."""
    waiting: dict[int, int] = {}
    for row in table.splitlines()[1:]:
        columns = row.split()
        port = int(columns[1].split(":")[1], 16)
        waiting[port] = waiting.get(port, 0) + int(columns[4].split(":")[1], 16)
    return waiting


def queues() -> dict[int, int]:
    return waiting_bytes(Path("/proc/net/udp").read_text())


def await_bound(ports: Sequence[int]) -> None:
    wait_for("sockets to be bound", lambda: all(port in queues() for port in ports))


def await_empty(ports: Sequence[int]) -> float:
    """Waits till nothing waits at these ports, and says when that was."""
    looks: list[float] = []

    def is_empty() -> bool:
        now, waiting = time.monotonic(), queues()
        if any(waiting.get(port) for port in ports):
            looks.clear()
        else:
            looks.append(now)
        return len(looks) == 3

    wait_for("buffers to be empty", is_empty)
    return looks[0]


def free_ports(count: int) -> list[int]:
    """So many in a row, free a moment ago."""
    for _ in range(200):
        first = random.randrange(PORTS.start, PORTS.stop - count)
        ports = list(range(first, first + count))
        if all(map(is_free, ports)):
            return ports
    raise Failed(f"no {count} ports in a row are free")


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def printed(command: Command, patience: float) -> Any:
    """The JSON that a command prints."""
    with running(command, stdout=subprocess.PIPE) as process:
        return said(process, patience)


def quiet(stack: contextlib.ExitStack, command: Command) -> subprocess.Popen[str]:
    """A process whose output is kept for later, till the stack ends."""
    return stack.enter_context(running(command, stdout=subprocess.PIPE))


