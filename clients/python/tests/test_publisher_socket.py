"""The publisher's socket, and what can befall it."""

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

import _socket
import pytest
from fake_bus import FakeBus, fake_bus

from hailmary import Publisher, PublisherStats
from hailmary import _link, _receiver


@pytest.fixture(params=["udp", "unix"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeBus]:
    path = tmp_path / "bus.sock" if request.param == "unix" else None
    with fake_bus(path) as bus:
        yield bus


def descriptor(publisher: Publisher) -> int:
    opened = publisher._sender.link._socket
    assert opened is not None
    return opened.fileno()


def sequences(bus: FakeBus) -> list[tuple[int, int]]:
    return [(frame.stamp.sequence, frame.stamp.dropped) for frame in bus.receive_all()]


def fail_with(publisher: Publisher, number: int) -> Callable[[bytes, int], int]:
    """Stands in for the errors that no socket here can be made to give."""

    def send(datagram: bytes, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    publisher._sender.link.send = send
    return send


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EAGAIN, "would_block"),
        (errno.ENOBUFS, "no_buffer"),
        (errno.ENOMEM, "no_buffer"),
        (errno.EMSGSIZE, "too_large"),
        (errno.ECONNREFUSED, "refused"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.EPERM, "failed"),
        (errno.EIO, "failed"),
    ],
)
def test_an_error_is_counted_and_the_socket_kept(number: int, reason: str) -> None:
    with fake_bus() as bus, Publisher(bus.address) as publisher:
        failing = fail_with(publisher, number)
        publisher.publish("a", b"")
        with publisher.batch() as batch:
            batch.extend("a", [b""] * 2)
        stats = publisher.stats()
        assert getattr(stats, reason) == stats.dropped == stats.offered == 3
        assert publisher._sender.link.send == failing


def test_a_datagram_that_is_too_long_is_dropped(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        kept = descriptor(publisher)
        # Longer than a datagram may be, or than the buffer of the socket is.
        publisher._sender.send(bytes(65_536 if bus.path is None else 16_000_000))
        publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(sent=2, too_large=1)
        assert descriptor(publisher) == kept
        assert sequences(bus) == [(0, 0), (2, 1)]


def test_a_descriptor_that_the_process_closed_is_replaced(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        os.close(descriptor(publisher))
        publisher.publish("a", b"lost")
        publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(sent=2, failed=1)
        assert sequences(bus) == [(0, 0), (2, 1)]


class Other:
    """Somebody else's file that gets the publisher's number, and its other end."""

    def __init__(self, mine: int, read: Callable[[], bytes]) -> None:
        self.mine = mine
        self.read = read


def a_file(stack: ExitStack, path: Path) -> Other:
    path.write_bytes(b"")
    file = stack.enter_context(path.open("wb"))
    return Other(file.fileno(), path.read_bytes)


def a_pipe(stack: ExitStack, path: Path) -> Other:
    theirs, mine = os.pipe()
    stack.callback(os.close, theirs)
    stack.callback(os.close, mine)
    os.set_blocking(theirs, False)
    return Other(mine, lambda: os.read(theirs, 100))


def a_tcp_connection(stack: ExitStack, path: Path) -> Other:
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = stack.enter_context(socket.create_connection(server.getsockname()))
        theirs = stack.enter_context(server.accept()[0])
    theirs.setblocking(False)
    return Other(mine.fileno(), lambda: theirs.recv(100))


def a_tcp_listener(stack: ExitStack, path: Path) -> Other:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return Other(server.fileno(), lambda: b"")


def an_unconnected_tcp_socket(stack: ExitStack, path: Path) -> Other:
    mine = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    return Other(mine.fileno(), lambda: b"")


def a_closed_tcp_connection(stack: ExitStack, path: Path) -> Other:
    other = a_tcp_connection(stack, path)
    shut = stack.enter_context(socket.socket(fileno=os.dup(other.mine)))
    shut.shutdown(socket.SHUT_WR)
    return other


def an_unconnected_datagram_socket(stack: ExitStack, path: Path) -> Other:
    mine = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    return Other(mine.fileno(), lambda: b"")


@pytest.mark.parametrize(
    "other_of",
    [
        a_file,
        a_pipe,
        a_tcp_connection,
        a_tcp_listener,
        an_unconnected_tcp_socket,
        a_closed_tcp_connection,
        an_unconnected_datagram_socket,
    ],
)
def test_a_number_that_is_anothers_by_now_is_left_alone(
    bus: FakeBus, other_of: Callable[[ExitStack, Path], Other], tmp_path: Path
) -> None:
    with ExitStack() as stack, Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        other = other_of(stack, tmp_path / "file")
        number = descriptor(publisher)
        os.dup2(other.mine, number)
        stack.callback(os.close, number)
        identity = os.fstat(number).st_ino
        publisher.publish("a", b"lost")
        publisher.publish("a", b"")
        stats = publisher.stats()
        publisher.close()
        assert os.fstat(number).st_ino == identity, "it was not closed"
        assert (stats.sent, stats.dropped) in ((2, 1), (3, 0)), "tried again where it met nobody"
        assert len(bus.receive_all()) == stats.sent
        try:
            assert other.read() == b""
        except BlockingIOError:
            pass


def test_a_number_that_is_anothers_is_not_connected_to_the_bus(tmp_path: Path) -> None:
    """A bus that is not there yet leaves a socket that waits to be connected."""
    path = tmp_path / "bus.sock"
    with Publisher(f"unix://{path}") as publisher:
        publisher.publish("a", b"")
        number = descriptor(publisher)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, fake_bus(path) as bus:
            os.dup2(other.fileno(), number)
            publisher.publish("a", b"")
            assert len(bus.receive_all()) == 1
            with pytest.raises(OSError):
                other.getpeername()
            os.close(number)


def test_a_child_leaves_alone_what_is_anothers(bus: FakeBus, tmp_path: Path) -> None:
    with ExitStack() as stack, Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        number = descriptor(publisher)
        os.dup2(a_pipe(stack, tmp_path).mine, number)
        stack.callback(os.close, number)
        publisher._begin_anew()
        os.fstat(number)


def test_a_peer_that_reads_no_more_costs_no_descriptors(tmp_path: Path) -> None:
    with fake_bus(tmp_path / "bus.sock") as bus, Publisher(bus.address) as publisher:
        bus.ingress.shutdown(socket.SHUT_RD)
        for _ in range(3):
            publisher.publish("a", b"")
        before = len(os.listdir("/dev/fd"))
        for _ in range(50):
            publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(failed=53), "EPIPE"
        assert len(os.listdir("/dev/fd")) == before


def test_a_path_that_is_a_new_socket_is_connected_to(tmp_path: Path) -> None:
    """The old one is still open, and full: a bus that hangs and was replaced."""
    path = tmp_path / "bus.sock"
    with fake_bus(path) as old, Publisher(old.address) as publisher:
        while not publisher.stats().would_block:
            publisher.publish("a", b"")
        path.unlink()
        with fake_bus(path) as new:
            publisher.publish("a", b"arrives")
            assert [frame.events[0].payload for frame in new.receive_all()] == [b"arrives"]
            assert publisher.stats().would_block == 1


def test_a_full_queue_is_no_reason_to_connect_each_time(tmp_path: Path) -> None:
    with fake_bus(tmp_path / "bus.sock") as bus, Publisher(bus.address) as publisher:
        link = publisher._sender.link
        while publisher.stats().would_block < 2:
            publisher.publish("a", b"")
        # The second one has found the same socket.
        assert link._reconnect_at > 0
        link._reconnect_at = float("inf")
        publisher.publish("a", b"")
        assert link.send != link._connect_and_send


def test_a_socket_that_waits_is_not_waited_for(tmp_path: Path) -> None:
    """Another that has the same socket, by a fork say, may have changed its mode."""
    with fake_bus(tmp_path / "bus.sock") as bus, Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        os.set_blocking(descriptor(publisher), True)
        while publisher.stats().would_block < 5:
            publisher.publish("a", b"")


def test_its_descriptor_is_where_others_hardly_come(bus: FakeBus) -> None:
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        assert descriptor(publisher) >= _link._DESCRIPTOR_MIN
        assert not os.get_inheritable(descriptor(publisher))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells it")
def test_its_descriptor_makes_the_kernel_grow_no_table() -> None:
    """Of descriptors, for which a process with threads would wait."""
    program = (
        "import hailmary\n"
        "def slots(): return [line for line in open('/proc/self/status') if 'FDSize' in line]\n"
        "before = slots()\n"
        "publisher = hailmary.Publisher('127.0.0.1:9')\n"
        "publisher.publish('a', b'')\n"
        "assert publisher.stats().sent == 1 and slots() == before, slots()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture
def no_inode(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS has it, for sockets of the internet."""
    fstat = os.fstat

    def without(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode):
            return status
        return os.stat_result((status.st_mode, 0, 0, *status[3:]))

    monkeypatch.setattr("hailmary._descriptor.os.fstat", without)


def test_where_sockets_have_no_inode_its_own_is_closed(no_inode: None) -> None:
    with fake_bus() as bus:
        publisher = Publisher(bus.address)
        publisher.publish("a", b"")
        number = descriptor(publisher)
        publisher.close()
        with pytest.raises(OSError):
            os.fstat(number)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize("is_bound", [True, False])
def test_where_sockets_have_no_inode_anothers_is_left_alone(
    no_inode: None, kind: socket.SocketKind, is_bound: bool
) -> None:
    with fake_bus() as bus, socket.socket(socket.AF_INET, kind) as other:
        if is_bound:
            other.bind(("127.0.0.1", 0))
        publisher = Publisher(bus.address)
        publisher.publish("a", b"")
        number = descriptor(publisher)
        os.dup2(other.fileno(), number)
        publisher.close()
        os.close(number)


def test_a_lower_limit_of_descriptors_will_do(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_link, "_DESCRIPTOR_MIN", 2**30)
    with Publisher(bus.address) as publisher:
        publisher.publish("a", b"")
        assert descriptor(publisher) < 2**30
        assert len(bus.receive_all()) == 1


def test_no_descriptor_free_is_a_dropped_event(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*_: object) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    with Publisher(bus.address) as publisher:
        with monkeypatch.context() as patch:
            patch.setattr(_link, "_open", no_socket)
            publisher.publish("a", b"")
        publisher.publish("a", b"")
        assert publisher.stats() == PublisherStats(sent=1, failed=1)


def test_no_descriptor_to_ask_by_is_no_answer(
    bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*_: object) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    with Publisher(bus.address) as publisher, monkeypatch.context() as patch:
        patch.setattr(_receiver, "_open", no_socket)
        assert publisher.ping() is None


def test_closing_under_a_sending_thread_closes_behind_it(bus: FakeBus) -> None:
    publisher = Publisher(bus.address)
    publisher.publish("a", b"")
    number = descriptor(publisher)
    sending = publisher._sender.link.send
    publisher.close()
    os.fstat(number)
    sending(b"", _socket.MSG_DONTWAIT)
    del sending
    with pytest.raises(OSError):
        os.fstat(number)


def test_a_publisher_that_is_forgotten_leaves_no_socket(bus: FakeBus) -> None:
    publisher = Publisher(bus.address)
    publisher.publish("a", b"")
    number = descriptor(publisher)
    del publisher
    with pytest.raises(OSError):
        os.fstat(number)
