"""Forks in every way that Python knows, and in some that it does not.

    forks.py SCENARIO [METHOD]

Each process tells its stats when it has published its last event. Nothing here
judges: the test holds what was told against what came.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import telling

from hailmary import Publisher

THREADS = 4
CHILDREN = 40
CHILDREN_AT_ONCE = 4
EVENTS = 20
DEPTH = 5
WORKERS = 3
SILENT_CHILDREN = 30

publisher = Publisher()


def run_child(count: int = EVENTS, **more: object) -> None:
    """What every child does: it begins at zero, publishes, and tells."""
    begun = telling.facts(publisher)
    telling.publish(publisher, count - 1)
    telling.publish_until_sent(publisher)
    telling.tell(**telling.facts(publisher, begun=begun, **more))


def fork(body: Callable[[], None]) -> int:
    """A child that runs the body and is gone; its process id."""
    child = os.fork()
    if child == 0:
        os._exit(exit_status(body))
    return child


def exit_status(body: Callable[[], None]) -> int:
    try:
        body()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def reap(*pids: int) -> None:
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"child {pid} ended with {status}"


class Busy:
    """Threads that publish as fast as they can, while the context lasts."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(THREADS)]

    def _run(self) -> None:
        while not self._stop.is_set():
            telling.publish(publisher, 100)

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        telling.publish_until_sent(publisher)
        telling.tell(**telling.facts(publisher, role="parent"))


def under_threads() -> None:
    """Some thread is in the middle of publishing whenever a fork comes. The socket
    is open before: one that is only being opened belongs to nobody yet."""
    telling.publish_until_sent(publisher)
    with Busy():
        for _ in range(CHILDREN // CHILDREN_AT_ONCE):
            reap(*(fork(child_with_thread) for _ in range(CHILDREN_AT_ONCE)))


def child_with_thread() -> None:
    """Publishes from a thread of its own too."""
    thread = threading.Thread(target=telling.publish, args=(publisher, EVENTS))
    begun = telling.facts(publisher)
    thread.start()
    telling.publish(publisher, EVENTS)
    thread.join()
    telling.publish_until_sent(publisher)
    telling.tell(**telling.facts(publisher, begun=begun, role="child"))


def nested(depth: int = DEPTH) -> None:
    """Each child is a parent."""
    begun = telling.facts(publisher)
    telling.publish_until_sent(publisher)
    if depth > 1:
        reap(fork(lambda: nested(depth - 1)))
    telling.publish_until_sent(publisher)
    telling.tell(**telling.facts(publisher, begun=begun, depth=depth))


def by_multiprocessing(method: str) -> None:
    """Processes, and a pool of them, while threads publish."""
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        # So that the publisher is there before the fork, in the server.
        context.set_forkserver_preload(["forks"])
    telling.publish_until_sent(publisher)
    with Busy():
        processes = [context.Process(target=run_child) for _ in range(WORKERS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
            for told in pool.map(work, range(WORKERS * 4)):
                telling.tell(**told)


def work(_: int) -> dict[str, object]:
    """A task of a pool, whose processes have many."""
    telling.publish(publisher, EVENTS)
    telling.publish_until_sent(publisher)
    return telling.facts(publisher, role="pool")


def by_subprocess() -> None:
    """Another program gets no socket; code before its start does no harm."""
    telling.publish_until_sent(publisher)
    code = "import telling; telling.tell(inherited=telling.datagram_sockets())"
    with Busy():
        for close_fds in (True, False):
            subprocess.run([sys.executable, "-c", code], close_fds=close_fds, check=True)
        subprocess.run(["true"], preexec_fn=run_child, check=True)


def as_daemon(report: str) -> None:
    """Forks twice, leaves its session and closes all descriptors, as daemons do."""
    telling.publish_until_sent(publisher)
    reap(fork(lambda: leave(lambda: be_daemon(report))))
    telling.tell(**telling.facts(publisher, role="parent"))


def leave(body: Callable[[], None]) -> None:
    os.setsid()
    fork(body)


def be_daemon(report: str) -> None:
    """Publishes before it closes all descriptors, and after, when the number of
    its socket belongs to a file."""
    Path(report + ".pid").write_text(str(os.getpid()))
    telling.publish_until_sent(publisher)
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    # All numbers that there were, and more: they are somebody else's now.
    others = [os.open(os.devnull, os.O_RDWR) for _ in range(64)]
    telling.publish_until_sent(publisher)
    for descriptor in others:
        os.fstat(descriptor)
    os.dup2(os.open(report + ".part", os.O_WRONLY | os.O_CREAT), 1)
    telling.tell(**telling.facts(publisher, role="daemon"))
    os.rename(report + ".part", report)


def silent() -> None:
    """A fork in C that Python's hooks hear nothing of, as uWSGI's is, and threads
    that are the first to publish, all at once."""
    telling.publish_until_sent(publisher)
    library = ctypes.PyDLL(None)
    for _ in range(SILENT_CHILDREN):
        child = library.fork()
        if child == 0:
            os._exit(exit_status(publish_at_once))
        reap(child)
    telling.publish_until_sent(publisher)
    telling.tell(**telling.facts(publisher, role="parent"))


def publish_at_once() -> None:
    barrier = threading.Barrier(THREADS)
    threads = [threading.Thread(target=publish_after, args=(barrier,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    telling.publish_until_sent(publisher)
    telling.tell(**telling.facts(publisher, role="child"))


def publish_after(barrier: threading.Barrier) -> None:
    barrier.wait()
    telling.publish(publisher, EVENTS)


SCENARIOS: dict[str, Callable[..., None]] = {
    "under_threads": under_threads,
    "nested": nested,
    "multiprocessing": by_multiprocessing,
    "subprocess": by_subprocess,
    "daemon": as_daemon,
    "silent": silent,
}

if __name__ == "__main__":
    # Not as `__main__`, where the children of a fork server would not find it.
    import forks

    forks.SCENARIOS[sys.argv[1]](*sys.argv[2:])
