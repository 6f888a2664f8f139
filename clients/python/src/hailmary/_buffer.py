"""Events that wait a moment, so that a thread sends many in one datagram.

Owns the buffer that `linger_ms` asks for, its bounds, and the thread that
empties it. It refuses to make a publisher wait: what finds it full is dropped.
Adding takes no lock. A buffer belongs to one process: a child has another.
"""

from __future__ import annotations

# At the import, so that lock and thread are of one kind, whatever takes them away
# later: gevent and eventlet put theirs in their place, and a native lock that one
# of theirs waits for would hold up all of them.
from _thread import RLock, allocate_lock, start_new_thread
from collections import deque
from time import monotonic
from typing import Optional

from ._batch import Bundle, batch_bytes
from ._sender import Sender

BUFFER_SLOTS = 16_384
"""What a buffer holds. Each event takes a slot for each 1,024 bytes that it has
begun, so it holds 16,384 events and 16 MiB at most; and where several threads
find the last slot at the same moment, an event of each."""

_SLOT_BYTES = 1_024

# Early, since the thread takes a moment to begin, and the rest fills meanwhile.
_HALF = BUFFER_SLOTS // 2

# More slots than there are: nobody wakes the thread, for it is at work.
_NEVER = 2 * BUFFER_SLOTS

# How often a full buffer is taken as a hint that its thread was not woken, as an
# exception out of a signal handler may have it.
_WAKE_AGAIN_SECONDS = 1.0

# The longest that closing waits for the thread to end what it is sending. It
# never waits itself, so this passes only where it gets no turn at all.
_TURN_SECONDS_MAX = 1.0


class Buffer:
    """The events of one sender that wait for `linger_seconds` at most."""

    def __init__(self, sender: Sender, linger_seconds: float) -> None:
        self._sender = sender
        self._linger_seconds = linger_seconds
        # An event, and a None for each slot more that it takes.
        self._slots: deque[Optional[bytes]] = deque()
        # Released to wake the thread, which alone takes it.
        self._alarm = allocate_lock()
        self._alarm.acquire()
        # With so many slots in use, who publishes wakes the thread.
        self._wake_at = 1
        self._wake_again_at = 0.0
        # The thread that gets it out is the one, for as long as it runs.
        self._unstarted = [True]
        self._stopped = False
        # Held while sending, so that events keep their order. Never by publish().
        self._turn = RLock()

    def send(self, event: bytes) -> None:
        """Adds an event, or drops and counts it."""
        if self._stopped:
            self._sender.send(event)
            return
        slots = self._slots
        more = (len(event) - 1) // _SLOT_BYTES
        if len(slots) + more >= BUFFER_SLOTS:
            self._drop()
            return
        slots.append(event)
        if more:
            slots.extend([None] * more)
        if len(slots) >= self._wake_at or self._stopped:
            self._wake()

    def flush(self, wait_seconds_max: float = _TURN_SECONDS_MAX) -> None:
        """Sends what there is now. Waits at most for another thread to send what
        it has begun to; 0 leaves all to that one."""
        if not self._turn.acquire(timeout=wait_seconds_max):
            return
        try:
            self._send_all()
        finally:
            self._turn.release()

    def stop(self) -> None:
        """Sends what there is, ends the thread, and is no buffer any more: what
        is published later is sent at once."""
        self._stopped = True
        self.flush()
        self._ring()

    def _send_all(self) -> None:
        bundle = Bundle(self._sender, batch_bytes(self._sender.link.peer))
        # No more than there are now: others may add for ever.
        for _ in range(len(self._slots)):
            try:
                event = self._slots.popleft()
            except IndexError:  # A signal handler in the midst of this sent them.
                break
            if event is not None:
                bundle.add(event)
        bundle.send()

    def _drop(self) -> None:
        self._sender.drop("buffer_full", f"{BUFFER_SLOTS} slots are in use")
        now = monotonic()
        if now >= self._wake_again_at:
            self._wake_again_at = now + _WAKE_AGAIN_SECONDS
            self._wake()

    def _wake(self) -> None:
        try:
            self._wake_at = _NEVER
            if self._stopped:  # Since it was looked at, that is.
                self.flush(wait_seconds_max=0)
            elif self._unstarted:
                self._start()
            else:
                self._ring()
        except BaseException:  # Out of a signal handler: the next event wakes it.
            self._wake_at = 1
            raise

    def _ring(self) -> None:
        try:
            self._alarm.release()
        except RuntimeError:  # It rings already.
            pass

    def _start(self) -> None:
        try:
            # Not threading.Thread, whose start waits and takes a lock.
            start_new_thread(self._run, ())
        except RuntimeError:  # The system has no thread left, or the interpreter ends.
            self._wake_at = 1
            self.flush(wait_seconds_max=0)

    def _run(self) -> None:
        try:
            self._unstarted.pop()
        except IndexError:  # Another was started at the same moment.
            return
        try:
            self._send_by_and_by()
        finally:
            # There is no thread: the next event starts one.
            self._unstarted.append(True)
            self._wake_at = 1

    def _send_by_and_by(self) -> None:
        while not self._stopped:
            self._wake_at = 1
            if not self._slots:
                self._alarm.acquire()
            self._wake_at = _HALF
            if not self._stopped:
                self._alarm.acquire(timeout=self._linger_seconds)
            self._wake_at = _NEVER
            self.flush()
