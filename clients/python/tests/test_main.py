"""`python -m hailmary`, as users and service managers start it, held against the
program where that is at hand."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from fake_bus import PATIENCE_SECONDS, FakeBus, fake_bus
from real_bus import PROGRAM, RealBus, needs_program, real_bus

from hailmary import Event, Publisher
from hailmary.__main__ import main
from hailmary._printer import printable
from hailmary._wire import bus_pb2

PYTHON = [sys.executable, "-m", "hailmary"]

HANDLERS = """
import os, sys

def note(event):
    if event.payload == b"wrong":
        raise ValueError("it is wrong")
    if event.payload == b"stop":
        os.kill(os.getpid(), 15)
    print(event.topic, event.payload.decode(), flush=True)

def item(item):
    print(item, flush=True)

number = 7
"""


class Command:
    """A command that runs, and what it prints line by line."""

    def __init__(self, *words: str, program: Optional[list[str]] = None, **more: Any) -> None:
        self.process = subprocess.Popen(
            [*(program or PYTHON), *words],
            stdin=subprocess.PIPE,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        self.out: list[bytes] = []
        self.err: list[bytes] = []
        self._readers = [
            threading.Thread(target=self._read, args=each)
            for each in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any, lines: list[bytes]) -> None:
        for line in pipe or ():
            lines.append(line)
            self.lines.put(line)

    def wait_for(self, line: bytes) -> None:
        while self.lines.get(timeout=PATIENCE_SECONDS).rstrip(b"\n") != line:
            pass

    def end(self) -> int:
        """Waits for it; the exit status."""
        status = self.process.wait(PATIENCE_SECONDS)
        self.close()
        return status

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    @property
    def summary(self) -> bytes:
        return self.err[-1].rstrip(b"\n")


@contextlib.contextmanager
def command(*words: str, **more: Any) -> Iterator[Command]:
    command = Command(*words, **more)
    try:
        yield command
    finally:
        command.close()


def sub(bus: FakeBus, *words: str, **more: Any) -> "contextlib._GeneratorContextManager[Command]":
    return command("sub", ">", "--from", bus.address, *words, **more)


def let_in(bus: FakeBus, command: Command) -> None:
    bus.let_in()
    command.wait_for(b"subscribed")


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with fake_bus() as bus:
        yield bus


def finished(*words: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*PYTHON, *words], capture_output=True, timeout=PATIENCE_SECONDS, **more
    )


def test_events_are_printed_till_there_are_enough(bus: FakeBus) -> None:
    with sub(bus, "--count", "2") as command:
        let_in(bus, command)
        bus.send(b"1", b"2", b"3")
        assert command.end() == 0
        assert command.out == [b"a.b\t1\n", b"a.b\t2\n"]
        assert command.err == [
            b"subscribed\n",
            b"received 3, lost 0 on the way, dropped 0 by the bus\n",
        ]
    assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(bus: FakeBus, number: signal.Signals) -> None:
    with sub(bus, "--format", "raw") as command:
        let_in(bus, command)
        bus.send(b"1")
        command.wait_for(b"1")
        command.process.send_signal(number)
        assert command.end() == 0
        assert command.summary == b"received 1, lost 0 on the way, dropped 0 by the bus"
    assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"


def test_a_signal_ends_the_wait_for_a_bus_cleanly(bus: FakeBus) -> None:
    with sub(bus) as command:
        bus.receive()
        command.process.send_signal(signal.SIGTERM)
        assert command.end() == 0
        assert command.err == [b"received 0, lost 0 on the way, dropped 0 by the bus\n"]


def test_the_time_ends_it_with_what_is_missing(bus: FakeBus) -> None:
    with sub(bus, "--count", "2", "--timeout", "1.5") as command:
        let_in(bus, command)
        bus.send(b"1")
        assert command.end() == 1
        assert command.summary == b"hailmary: 1 of 2 events came in time"
        assert command.out == [b"a.b\t1\n"]


@pytest.mark.parametrize(
    ("format", "told"),
    [
        ("text", b"3 events lost, 3 of them dropped by the bus\n"),
        ("json", b'{"dropped_by_bus":3,"lost":0}\n'),
    ],
)
def test_losses_are_told_where_they_are_known(bus: FakeBus, format: str, told: bytes) -> None:
    with sub(bus, "--count", "1", "--notices", "--format", format) as command:
        let_in(bus, command)
        bus.drop(3)
        bus.send(b"1")
        assert command.end() == 0
        assert told in (command.err if format == "text" else command.out[:1])
        assert command.summary == b"received 1, lost 0 on the way, dropped 3 by the bus"


def test_what_is_still_missing_at_the_end_is_told(bus: FakeBus) -> None:
    with sub(bus, "--count", "1", "--notices") as command:
        let_in(bus, command)
        bus.lose(2)
        bus.send(b"1")
        assert command.end() == 0
        assert command.err[1:] == [
            b"2 events lost, 0 of them dropped by the bus\n",
            b"received 1, lost 2 on the way, dropped 0 by the bus\n",
        ]


def test_it_ends_when_nobody_reads_any_more(bus: FakeBus) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with sub(bus, stdout=writing) as command:
        os.close(writing)
        let_in(bus, command)
        bus.send(b"1")
        assert command.end() == 0
        assert command.summary == b"received 1, lost 0 on the way, dropped 0 by the bus"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_full_disk_is_a_failure(bus: FakeBus, format: str) -> None:
    with open("/dev/full", "wb") as full, sub(bus, "--format", format, stdout=full) as command:
        let_in(bus, command)
        bus.send(b"1")
        assert command.end() == 1
        assert command.err[1:] == [
            b"received 1, lost 0 on the way, dropped 0 by the bus\n",
            b"hailmary: cannot print the events: No space left on device\n",
        ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_what_it_says_of_itself_may_be_lost(bus: FakeBus) -> None:
    with open("/dev/full", "wb") as full, sub(bus, "--count", "1", stderr=full) as command:
        bus.let_in()
        # It cannot say when it is subscribed.
        bus.receive()
        bus.send(b"1")
        assert command.end() == 0
        assert command.out == [b"a.b\t1\n"]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (bus_pb2.Refusal.NOT_ALLOWED, b"the bus does not allow this subscription from here"),
        (bus_pb2.Refusal.FULL, b"the bus has no place for another subscriber"),
    ],
)
def test_a_refusal_is_a_failure(
    bus: FakeBus, reason: "bus_pb2.Refusal.Reason", words: bytes
) -> None:
    with sub(bus) as command:
        bus.refuse(reason)
        assert command.end() == 1
        assert words in command.summary and command.summary.startswith(b"hailmary: ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sub", "PATTERN"),
        ("sub a..b", "is no pattern"),
        ("sub a --from nowhere", "--from: 'nowhere': no valid port"),
        ("sub a --group a,b", "--group: a name is"),
        ("sub a --name=", "--name: a name is"),
        ("sub a --sample 0", "--sample: a share is"),
        ("sub a --max-rate 0", "--max-rate: a whole number from 1"),
        ("sub a --timeout nan", "--timeout: a time is"),
        ("sub a --count x", "--count: a whole number from 0"),
        ("sub a --format xml", "--format: invalid choice"),
        ("sub a --workers 2", "--workers: goes with --call"),
        ("sub a --call handlers", "--call: write MODULE:FUNCTION"),
        ("sub a --call m:f --workers 0", "--workers: a whole number from 1"),
        ("sub a --call m:f --count 1", "--count: not allowed"),
        ("sub a --call m:f --format raw", "--format: not allowed"),
        ("pub", "TOPIC"),
        ("pub a.>", "is no topic"),
        ("pub a x --lines", "--lines: not allowed"),
        ("pub a --lines --count 2", "--lines: not allowed"),
        ("pub a --attr =x", "--attr: an attribute is"),
        ("pub a --attr x=\udcff", "--attr: an attribute is UTF-8"),
        ("pub a --rate 0", "--rate: a rate is"),
        ("pub a --to x://y", "--to: 'x://y': unknown scheme"),
        ("", "COMMAND"),
        ("sing", "invalid choice"),
    ],
)
def test_wrong_usage_is_told_with_status_2(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(words.split())
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: python -m hailmary")
    assert told in printed.splitlines()[-1]


def test_the_environment_says_where_the_bus_is(bus: FakeBus) -> None:
    environment = {**os.environ, "HAILMARY_BUS": bus.address}
    assert finished("pub", "a.b", "x", "--key", "k", env=environment).returncode == 0
    event = bus.receive().events[0]
    assert (event.topic, event.payload, event.key) == ("a.b", b"x", b"k")
    wrong = finished("pub", "a.b", env={**environment, "HAILMARY_BUS": "nowhere"})
    assert wrong.returncode == 2


def test_an_event_is_published_as_it_is_told(bus: FakeBus) -> None:
    words = ["--attr", "a=1", "--attr", "b==", "--time-unix-nano", "5"]
    done = finished("pub", "a.b", "é", "--to", bus.address, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    event = bus.receive().events[0]
    assert (event.payload, event.time_unix_nano) == ("é".encode(), 5)
    assert dict(event.attributes) == {"a": "1", "b": "="}


def test_many_events_and_lines_are_counted(bus: FakeBus) -> None:
    done = finished("pub", "a.b", "x", "--to", bus.address, "--count", "3", "--rate", "1000")
    assert (done.returncode, done.stderr) == (0, b"published 3, dropped 0\n")
    assert len(bus.receive_all()) == 3
    done = finished("pub", "a.b", "--lines", "--to", bus.address, input=b"1\n\n\xff\r\nlast")
    assert (done.returncode, done.stderr) == (0, b"published 4, dropped 0\n")
    payloads = [frame.events[0].payload for frame in bus.receive_all()]
    assert payloads == [b"1", b"", b"\xff\r", b"last"]


def test_a_line_that_is_too_long_is_dropped_alone(bus: FakeBus) -> None:
    lines = b"x" * 70_000 + b"\nshort\n"
    done = finished("pub", "a.b", "--lines", "--to", bus.address, input=lines)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == b"published 1, dropped 1"
    assert [frame.events[0].payload for frame in bus.receive_all()] == [b"short"]


def test_what_was_dropped_is_a_failure(tmp_path: Path) -> None:
    done = finished("pub", "a.b", "--to", f"unix://{tmp_path}/nobody.sock")
    assert done.returncode == 1
    assert b"hailmary: 1 events were dropped before they left" in done.stderr
    done = finished("pub", "a.b", "--to", "bus.invalid:1")
    assert done.returncode == 1
    assert done.stderr.startswith(b"hailmary: cannot publish to udp://bus.invalid:1: ")


def test_a_signal_ends_the_wait_for_lines(bus: FakeBus) -> None:
    with command("pub", "a.b", "--lines", "--to", bus.address) as publishing:
        assert publishing.process.stdin is not None
        publishing.process.stdin.write(b"1\n")
        publishing.process.stdin.flush()
        bus.receive()
        publishing.process.send_signal(signal.SIGTERM)
        assert publishing.end() == 0
        assert publishing.summary == b"published 1, dropped 0"


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return tmp_path


def test_a_function_is_called_as_a_service_would(bus: FakeBus, handlers: Path) -> None:
    words = ("--call", "handlers:note", "--workers", "2", "--group", "g", "--name", "n")
    with sub(bus, *words, cwd=handlers) as service:
        request = bus.receive().subscribe
        assert (request.group, request.name) == ("g", "n")
        bus.challenge(request.nonce)
        bus.answer()
        service.wait_for(b"subscribed")
        bus.send(b"wrong", b"1")
        service.wait_for(b"a.b 1")
        bus.send(b"stop")
        assert service.end() == 0
        assert service.out == [b"a.b 1\n", b"a.b stop\n"]
        assert service.summary == (
            b"received 3, lost 0 on the way, dropped 0 by the bus, 1 errors of the handler"
        )
        assert any(b": ValueError('it is wrong')" in line for line in service.err)
    assert bus.receive_all()[-1].WhichOneof("control") == "unsubscribe"


def test_a_function_is_told_of_losses(bus: FakeBus, handlers: Path) -> None:
    words = ("--call", "handlers:item", "--notices", "--timeout", "1.5")
    with sub(bus, *words, cwd=handlers) as service:
        let_in(bus, service)
        bus.drop(3)
        bus.send(b"1")
        assert service.end() == 0
        assert service.out[0] == b"3 events lost, 3 of them dropped by the bus\n"


@pytest.mark.parametrize("name", ["nowhere:note", "handlers:nothing", "handlers:number"])
def test_a_function_that_is_none_is_a_failure(handlers: Path, name: str) -> None:
    done = finished("sub", "a", "--call", name, cwd=handlers)
    assert done.returncode == 1
    assert done.stderr.startswith(f"hailmary: cannot call {name}: ".encode())


def test_a_refusal_ends_a_service(bus: FakeBus, handlers: Path) -> None:
    with sub(bus, "--call", "handlers:note", cwd=handlers) as service:
        bus.refuse(bus_pb2.Refusal.NOT_ALLOWED)
        assert service.end() == 1
        assert b"does not allow" in service.summary


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ("é\x1b[2J\n\t".encode(), "é\\u{1b}[2J\\n\\t"),
        (b"a\xffb\xe2\x82", "a\\xffb\\xe2\\x82"),
        ("\x7f\x85 \u00a0 \u202e".encode(), "\\u{7f}\\u{85} \u00a0 \u202e"),
        (b"", ""),
    ],
)
def test_a_payload_does_not_steer_the_terminal(payload: bytes, text: str) -> None:
    assert printable(payload) == text


# What differs if anything does: no text, controls, no key, a time, attributes.
EVENTS = [
    Event("a.b", b"text \xc3\xa9 \"quoted\" \\ \x1b[2J\n\x85", b"", 0, {}, 1.0),
    Event("a.b", b"\xff\x00\xe2\x82", b"\xfe", 5, {"b": "\u00e9\u2028", "a": ""}, 1.0),
    Event("a/b:c", b"", b"key", 2**64 - 1, {}, 1.0),
]


@needs_program
@pytest.mark.parametrize("format", ["text", "json", "raw"])
def test_it_prints_what_the_program_prints(tmp_path: Path, format: str) -> None:
    with real_bus(tmp_path) as bus:
        words = ["sub", ">", "--from", bus.udp, "--count", str(len(EVENTS)), "--format", format]
        with command(*words) as ours, command(*words, program=[PROGRAM]) as theirs:
            ours.wait_for(b"subscribed")
            theirs.wait_for(b"subscribed")
            publish_all(bus)
            assert ours.end() == theirs.end() == 0
            assert ours.out == theirs.out
            assert ours.err == theirs.err
            if format == "json":
                assert [json.loads(line)["topic"] for line in ours.out] == [
                    event.topic for event in EVENTS
                ]


def publish_all(bus: RealBus) -> None:
    with Publisher(bus.udp) as publisher:
        for event in EVENTS:
            publisher.publish(
                event.topic,
                event.payload,
                key=event.key,
                attributes=event.attributes,
                time_unix_nano=event.time_unix_nano,
            )


@needs_program
@pytest.mark.parametrize(
    "words",
    [
        ["sub", "a", "--from", "bus.invalid:1"],
        ["sub", "a", "--from", "127.0.0.1:9", "--timeout", "0.3"],
        ["sub", "a", "--from", "127.0.0.1:9", "--timeout", "0.3", "--count", "1"],
        ["pub", "a", "--to", "[::1]:9", "--count", "0"],
    ],
)
def test_it_fails_as_the_program_fails(words: list[str]) -> None:
    ours = finished(*words)
    theirs = subprocess.run([PROGRAM, *words], capture_output=True, timeout=PATIENCE_SECONDS)
    assert ours.returncode == theirs.returncode
    assert ours.stdout == theirs.stdout
    # The resolver's words go through two libraries.
    shorten = b"failed to lookup address information: "
    assert ours.stderr == theirs.stderr.replace(shorten, b"")


@needs_program
def test_it_is_refused_as_the_program_is(tmp_path: Path) -> None:
    with real_bus(tmp_path, more="[access]\nsubscribe = []\n") as bus:
        words = ["sub", "a", "--from", bus.udp]
        with command(*words) as ours, command(*words, program=[PROGRAM]) as theirs:
            assert ours.end() == theirs.end() == 1
            assert ours.err == theirs.err
