"""Runs a private RabbitMQ node for the time of a context.

Owns the node's processes, ports and data. Nothing of it meets a RabbitMQ that
the machine may have: the node has a name, a data directory, a cookie, an AMQP
port and an epmd of its own, listens on loopback alone, and loads no plugins.

    with RabbitMQ() as broker:
        connect(broker.url)
        broker.stop()   # gracefully; what is durable stays
        broker.start()  # at the same port, with the same queues

The program is found as `find_server` says. It need not be installed: Debian's
packages run from wherever they were unpacked, without any rights.

    mkdir -p target/rabbitmq && cd target/rabbitmq
    apt-get download rabbitmq-server $(python .../rabbitmq.py --packages)
    for package in *.deb; do dpkg -x "$package" .; done
    export HAILMARY_RABBITMQ=$PWD
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Callable, Optional

# The environment's variable that names a tree of unpacked packages.
TREE = "HAILMARY_RABBITMQ"

# What Debian's rabbitmq-server needs of Erlang to run without plugins.
ERLANG_PACKAGES = tuple(
    f"erlang-{name}"
    for name in (
        *("asn1", "base", "crypto", "eldap", "inets", "mnesia", "os-mon", "parsetools"),
        *("public-key", "runtime-tools", "ssl", "syntax-tools", "tools", "xmerl"),
    )
)

# Debian's program on the path changes to the user `rabbitmq`, who may not write
# to our directory. This is the one that it calls.
_INSTALLED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

# Erlang's own launcher in Debian's packages knows only the installed place.
_LAUNCHER = """\
#!/bin/sh
export ROOTDIR="{root}" BINDIR="{erts}/bin" EMU=beam PROGNAME=erl
exec "$BINDIR/erlexec" "$@"
"""

_CONFIGURATION = """\
listeners.tcp.default = 127.0.0.1:{port}
disk_free_limit.absolute = 1MB
"""

# Far more than a start or a stop takes: only what is broken waits for it.
_PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.1

_LOG_TAIL_CHARACTERS = 3000


class Missing(RuntimeError):
    """RabbitMQ cannot be run here; the text says what is missing."""


def find_server() -> Path:
    """`rabbitmq-server`: of the tree that `HAILMARY_RABBITMQ` names, as Debian
    installs it, or on the path. Raises `Missing`."""
    tree = _tree()
    if tree is not None:
        server = tree / _INSTALLED.relative_to("/")
        if not server.is_file():
            raise Missing(f"{TREE} names {tree}, where there is no {server}")
        return server
    found = shutil.which("rabbitmq-server")
    if _INSTALLED.is_file():
        return _INSTALLED
    if found is None:
        raise Missing(f"no rabbitmq-server on the path, and {TREE} names no unpacked one")
    return Path(found)


def _tree() -> Optional[Path]:
    tree = os.environ.get(TREE)
    return Path(tree).resolve() if tree else None


class RabbitMQ:
    """A node that runs from `start()`, which entering the context calls, to
    `stop()`, and can be started again. Raises `Missing` if there is no program."""

    def __init__(self) -> None:
        self._server = find_server()
        self._port = _free_port()
        self._stack = ExitStack()
        self._node: Optional[subprocess.Popen[bytes]] = None
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def __enter__(self) -> RabbitMQ:
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="rabbitmq-"))
            self._directory = Path(directory)
            self._environment = self._prepare()
            stack.enter_context(_epmd(self._environment))
            stack.callback(self.stop)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._stack.close()

    def start(self) -> None:
        """Starts the node and waits till it speaks AMQP."""
        with open(self._directory / "log", "ab") as log:
            node = subprocess.Popen(
                [self._server, "-noinput"],
                env=self._environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A terminal's Ctrl-C is for the program that uses the node.
                start_new_session=True,
            )
        self._node = node
        _wait_until(lambda: node.poll() is not None or self.answers())
        if node.poll() is not None:
            raise RuntimeError(f"RabbitMQ ended at its start:\n{self._log_tail()}")

    def stop(self) -> None:
        """Ends the node as a service manager would: by SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the node as a crash would: by SIGKILL."""
        self._end(signal.SIGKILL)

    def answers(self) -> bool:
        """Whether the node greets a client."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=5) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                # The first byte of a method frame: Connection.Start.
                return client.recv(1) == b"\x01"
        except OSError:
            return False

    def _end(self, number: signal.Signals) -> None:
        if self._node is not None:
            _end(self._node, number)
            self._node = None

    def _prepare(self) -> dict[str, str]:
        """Writes the node's files; returns its environment."""
        directory = self._directory
        (directory / "rabbitmq.conf").write_text(_CONFIGURATION.format(port=self._port))
        (directory / "enabled_plugins").write_text("[].\n")
        return {
            "PATH": os.pathsep.join([*self._launcher(), os.environ.get("PATH", os.defpath)]),
            "LANG": "C.UTF-8",
            # Where Erlang writes the cookie that its nodes know each other by.
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(_free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # So that the script becomes the node, and its process id the node's.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(directory / "logs"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_NODENAME": "hailmary@localhost",
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _launcher(self) -> Iterator[str]:
        """A directory with `erl`, if Erlang too is in a tree and not installed."""
        tree = _tree()
        root = None if tree is None else tree / "usr/lib/erlang"
        if root is None or not root.is_dir():
            return
        erts = next(root.glob("erts-*"))
        launcher = self._directory / "bin" / "erl"
        launcher.parent.mkdir()
        launcher.write_text(_LAUNCHER.format(root=root, erts=erts))
        launcher.chmod(0o755)
        yield str(launcher.parent)
        yield str(erts / "bin")

    def _log_tail(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]


@contextlib.contextmanager
def _epmd(environment: Mapping[str, str]) -> Iterator[None]:
    """Erlang's name service, which the node would start as a daemon otherwise
    and leave behind."""
    program = shutil.which("epmd", path=environment["PATH"])
    if program is None:
        raise Missing("no epmd, which belongs to Erlang, on the path")
    port = environment["ERL_EPMD_PORT"]
    epmd = subprocess.Popen(
        [program, "-port", port, "-address", "127.0.0.1"],
        env=environment,
        stdin=subprocess.DEVNULL,
        # It calls a client that only looks whether it listens a partial packet.
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until(lambda: epmd.poll() is not None or _listens(int(port)))
        yield
    finally:
        _end(epmd, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("RabbitMQ did not get on")
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    if sys.argv[1:] != ["--packages"]:
        sys.exit(f"usage: {sys.argv[0]} --packages")
    print(*ERLANG_PACKAGES)
