"""All that comes and goes around a bus under a soak: publishers, subscribers, leases, topics.

It says what it did itself, for the bus's counts to be held against; it judges nothing.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import overload
import processes
import strangers
from processes import Bus

PUBLISHERS = 2
PUBLISHER_SECONDS = 5.0
# What subscribers that are processes want, in events a second: they print all of it.
CHURN_EVENTS_PER_SECOND = 200
# Those that come and go.
GOERS = 6
GOER_SECONDS = (2.0, 20.0)
LEASES_PER_TICK = 3
# The table of topics is full of those that never were before within half a minute.
TOPICS_PER_TICK = 100
# The table of publishers' flows is full, and forgets those that have ended, within as long.
STRANGERS_PER_TICK = 30
# Their topics, counted apart: what is lost of a publisher's only event, nobody can tell.
ONCE = "once"
# What those want that stay to the end, whose books are to balance to the event, and what the others do.
KEEPER_PATTERNS = ("churn.>", "churn.*.a", "churn.1.*", "churn.2.>")
PATTERNS = ("churn.>", "churn.*.a", "churn.1.>", "churn.*.*", "churn.3.b", "elsewhere.>")


@dataclass
class Books:
    """What the peers say themselves."""

    published: int = 0
    publishers: int = 0
    received: dict[str, int] = field(default_factory=dict)
    """And lost on the way and dropped by the bus, by subscriber."""
    scrapes: int = 0
    reloads: int = 0
    faults: list[str] = field(default_factory=list)


class Member:
    """A process that is to end by itself or be ended at a time, by a signal."""

    def __init__(self, command: processes.Command, end: float, how: signal.Signals) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.end, self.how = end, how

    def is_over(self, now: float) -> bool:
        if now >= self.end and self.process.poll() is None:
            self.process.send_signal(self.how)
            # Once is enough.
            self.end = float("inf")
        return self.process.poll() is not None

    def last_words(self) -> str:
        _, words = self.process.communicate(timeout=processes.PATIENCE_SECONDS)
        return words

    def stop(self) -> None:
        processes.end(self.process)
        if self.process.stderr:
            self.process.stderr.close()


class Churn:
    """All that comes and goes. Nothing here waits for long: `turn` is called at every tick."""

    def __init__(self, program: Path, bus: Bus, unix: Path, events_per_second: float, books: Books) -> None:
        self.program, self.bus, self.unix, self.books = program, bus, unix, books
        self.events_per_second = events_per_second
        self.publishers: dict[str, Member] = {}
        self.goers: dict[str, Member] = {}
        self.serial = 0
        self.stranger = strangers.Publisher(bus.port)
        self.keepers = {
            f"keeper-{number}": self.subscriber(
                f"keeper-{number}", [pattern], self.place(number), float("inf"), signal.SIGTERM
            )
            for number, pattern in enumerate(KEEPER_PATTERNS)
        }

    def place(self, number: int) -> str:
        return f"unix://{self.unix}" if number % 2 else f"127.0.0.1:{self.bus.port}"

    def subscriber(self, name: str, patterns: Sequence[str], bus: str, end: float, how: signal.Signals) -> Member:
        words = ["sub", *patterns, "--from", bus, "--name", name, "--format", "raw"]
        return Member([self.program, *words], end, how)

    def turn(self, now: float) -> None:
        self.turn_publishers(now)
        self.turn_goers(now)
        self.serial += 1
        self.stranger.publish([f"new.{self.serial}.{number}" for number in range(TOPICS_PER_TICK)])
        self.stranger.introduce([f"{ONCE}.{self.serial}"] * STRANGERS_PER_TICK)
        for number in range(LEASES_PER_TICK):
            self.lease(f"{self.serial}-{number}")

    def turn_publishers(self, now: float) -> None:
        share = self.events_per_second / PUBLISHERS
        rates = {f"load-{number}": share for number in range(PUBLISHERS)} | {"churn": CHURN_EVENTS_PER_SECOND}
        for slot, rate in rates.items():
            member = self.publishers.get(slot)
            if member and not member.is_over(now):
                continue
            if member:
                self.close_publisher(self.publishers.pop(slot))
            topic = f"churn.{random.randrange(5)}.{random.choice('ab')}" if slot == "churn" else f"{slot}.{self.serial}"
            to = ["--to", self.place(0), "--count", round(rate * PUBLISHER_SECONDS), "--rate", rate]
            command = [self.program, "pub", topic, overload.PAYLOAD, *to]
            self.publishers[slot] = Member(command, float("inf"), signal.SIGTERM)

    def close_publisher(self, member: Member) -> None:
        words = member.last_words()
        told = re.search(r"published (\d+), dropped (\d+)", words)
        if not told:
            self.books.faults.append(f"a publisher failed: {words}")
            return
        self.books.published += int(told.group(1))
        self.books.publishers += 1

    def turn_goers(self, now: float) -> None:
        for number in range(GOERS):
            # Half of them die without a word.
            how = signal.SIGTERM if number % 4 < 2 else signal.SIGKILL
            name = f"goer-{number}" if how == signal.SIGTERM else f"dying-{number}"
            member = self.goers.get(name)
            if member and not member.is_over(now):
                continue
            if member:
                self.close_subscriber(name, self.goers.pop(name))
            patterns = random.sample(PATTERNS, random.randrange(1, 4))
            end = now + random.uniform(*GOER_SECONDS)
            self.goers[name] = self.subscriber(name, patterns, self.place(number), end, how)

    def close_subscriber(self, name: str, member: Member) -> None:
        words = member.last_words()
        told = re.search(r"received (\d+), lost (\d+) on the way, dropped (\d+) by the bus", words)
        if told:
            known = self.books.received.get(name, 0)
            self.books.received[name] = known + sum(map(int, told.groups()))
        elif member.how != signal.SIGKILL:
            self.books.faults.append(f"{name} failed: {words}")

    def lease(self, name: str) -> None:
        """One more, which soon is no more."""
        way = strangers.lessee(self.bus.port, name) if random.random() < 0.5 else strangers.unix_lessee(self.unix, name)
        with way as lessee:
            # Once in a while one that gets events when it is dead.
            pattern = "churn.>" if random.random() < 0.05 else f"seldom.{name}.>"
            if not lessee.ask(pattern):
                return
            fate = random.random()
            if fate < 0.3:
                lessee.ask(f"other.{name}.*")
            if fate < 0.5:
                lessee.give_back()

    def stop_publishing(self) -> None:
        for member in self.publishers.values():
            member.process.send_signal(signal.SIGTERM)
            self.close_publisher(member)
        self.publishers.clear()
        # A last frame tells of all that was lost before it.
        self.stranger.publish(["new.last"])
        self.books.published += self.stranger.sent
        self.stranger.close()

    def leave(self) -> None:
        for members in (self.goers, self.keepers):
            for name, member in members.items():
                member.process.send_signal(member.how)
                self.close_subscriber(name, member)
            members.clear()

    def stop(self) -> None:
        """Also where something failed."""
        for member in [*self.publishers.values(), *self.goers.values(), *self.keepers.values()]:
            member.stop()
        self.stranger.close()
