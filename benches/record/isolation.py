"""Isolation: what a living subscriber notices of 1, 10 and 100 others beside it that are dead, stopped
or gone, at a rate far below what the bus takes.

    python3 benches/record/isolation.py [--program PATH] [--rounds N] [--seconds S]

More subscribers are more copies to send, whoever they are. So the company of the dead is compared
with as much company of the living, not with solitude; solitude is told beside it. All companies
take turns, round by round. The living one is to lose nothing in any of them. Whether its latency
is higher is judged by a permutation test: were the dead as good as the living, each round's ratio of the
two would be as likely the other way round; in how many of all ways to turn them their product is
at least as large is the probability of seeing such a difference by chance. That none was found says
little by itself: so it is told, too, which ratio the same test excludes, for the living and for none.

It fails where the living one lost an event, or where its latency is higher.

Hosts that are gone take a network namespace of the bus's own: addresses on a cable at whose other
end nobody answers ARP. Where none can be had, they are left out with a word. The living one is always
on this host; one on another host beside those that are gone is tests/end_to_end/faults' matter.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import evidence
import figures
import overload
import processes
from processes import Failed

# A hundredth of what a bus takes at such a fan-out: none of its queues fills by load alone.
EVENTS_PER_SECOND = 300
COMPANIES = (1, 10, 100)
# A whole record finds a difference where there is none with this probability at most; and what it says
# of a ratio's upper bound is wrong with this one, each.
CHANCE_MAX = 0.01
# All ways to choose signs are tried: 65,536 at most.
ROUNDS_MAX = 16
# To this factor an upper bound is found.
PRECISION = 1e-3
# How often the living read what waits for them: seldom, so that they take few turns on a processor.
READ_EVERY_SECONDS = 0.05

INSIDE = "HAILMARY_INSIDE_NAMESPACE"
UNSHARE = ["unshare", "--user", "--map-root-user", "--net"]
# The range is for tests of devices (RFC 2544).
GONE_NETWORK = "198.18.0"
CABLE = f"""set -e
ip link set lo up
ip link add cable type veth peer name other
ip address add {GONE_NETWORK}.1/24 dev cable
ip link set cable up
ip link set other up
"""

Addresses = list[str]
Company = Callable[[int], "contextlib.AbstractContextManager[Addresses]"]


@contextlib.contextmanager
def living(count: int) -> Iterator[Addresses]:
    """Sockets whose datagrams are read and thrown away."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
        stack.enter_context(reading(sockets))
        yield [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


@contextlib.contextmanager
def reading(sockets: Sequence[socket.socket]) -> Iterator[None]:
    is_over = threading.Event()

    def read() -> None:
        with selectors.DefaultSelector() as selector:
            for one in sockets:
                selector.register(one, selectors.EVENT_READ)
            while not is_over.wait(READ_EVERY_SECONDS):
                for key, _ in selector.select(0):
                    empty(key.fileobj)  # type: ignore[arg-type]

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(processes.PATIENCE_SECONDS)


def empty(one: socket.socket) -> None:
    buffer = bytearray(overload.FRAME_BYTES)
    with contextlib.suppress(BlockingIOError):
        while True:
            one.recv_into(buffer)


@contextlib.contextmanager
def dead(count: int) -> Iterator[Addresses]:
    """Ports that are nobody's: the kernel answers with ICMP errors."""
    yield [f"127.0.0.1:{port}" for port in processes.free_ports(count)]


@contextlib.contextmanager
def stopped(count: int) -> Iterator[Addresses]:
    """UDP sockets that nobody reads and that are full at once."""
    with contextlib.ExitStack() as stack:
        yield [f"127.0.0.1:{stack.enter_context(overload.unread())}" for _ in range(count)]


@contextlib.contextmanager
def stopped_unix(count: int) -> Iterator[Addresses]:
    """Unix sockets that nobody reads: their queues are full after a few datagrams."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hailmary-record-"))
        paths = [str(Path(directory, f"{number}.sock")) for number in range(count)]
        for path in paths:
            one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            one.bind(path)
        yield [f"unix://{path}" for path in paths]


@contextlib.contextmanager
def gone(count: int) -> Iterator[Addresses]:
    """Hosts on the cable that do not answer ARP."""
    yield [f"{GONE_NETWORK}.{2 + number}:9" for number in range(count)]


LIVING, DEAD, STOPPED, STOPPED_UNIX, GONE = "living", "dead", "stopped", "stopped_unix", "gone"
KINDS: dict[str, Company] = {LIVING: living, DEAD: dead, STOPPED: stopped, STOPPED_UNIX: stopped_unix, GONE: gone}
FAULTS = {
    DEAD: "Up to 100 subscribers are dead: their ports are closed.",
    STOPPED: "Up to 100 subscribers are stopped: their receive buffers are full.",
    STOPPED_UNIX: "Up to 100 subscribers over Unix sockets are stopped: their queues are full.",
    GONE: "Up to 100 subscribers are gone with their hosts, which do not answer ARP.",
}
PROMISE = "The one beside them loses nothing, and its latency is that beside as many living ones."

Sample = dict[str, float]
# By kind and how many there are.
Samples = dict[tuple[str, int], list[Sample]]


def measure(program: Path, kind: str, count: int, seconds: float) -> Sample:
    """What the living one saw."""
    with KINDS[kind](count) as addresses, processes.bus(program, config(addresses)) as bus:
        against = ["--against", f"127.0.0.1:{bus.port}", "--admin", bus.admin]
        load = ["--rate", EVENTS_PER_SECOND, "--duration", seconds]
        report = processes.printed(
            [program, "bench", "--json", *against, *load], seconds + 3 * processes.PATIENCE_SECONDS
        )
        if overload.total(processes.page(bus), "copies_total") != (1 + count) * report["published"]["events"]:
            raise Failed("the company did not get its copies")
    return sample_of(report)


def config(addresses: Addresses) -> str:
    return "".join(
        f'[[subscriber]]\nname = "s{number}"\naddress = "{address}"\ntopics = ["bench.>"]\n'
        for number, address in enumerate(addresses)
    )


def sample_of(report: Any) -> Sample:
    published, received = report["published"]["events"], report["received"]["events"]
    return {"published": published, "lost": published - received, "p99_us": report["latency_us"]["p99"]}


def record(program: Path, rounds: int, seconds: float, companies: Sequence[int], kinds: Sequence[str]) -> Samples:
    cases = [(LIVING, 0), *itertools.product(kinds, companies)]
    samples: Samples = {case: [] for case in cases}
    for number in range(rounds):
        print(f"isolation, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for kind, count in cases:
            samples[kind, count].append(measure(program, kind, count, seconds))
    return samples


def chance(differences: Sequence[float]) -> float:
    """How likely a mean at least this large is if each difference might as well have the other sign."""
    seen = sum(differences)
    sums = [0.0]
    for one in differences:
        sums = [total + sign * one for total in sums for sign in (1.0, -1.0)]
    # What is equal but for rounding is equal.
    return sum(total >= seen - 1e-6 * abs(seen) for total in sums) / len(sums)


def upper_bound(differences: Sequence[float]) -> float:
    """The least shift of all that the test excludes: what lies behind them is hardly above it."""
    low, high = statistics.fmean(differences), max(differences) + PRECISION
    while high - low > PRECISION:
        middle = (low + high) / 2
        if chance([middle - one for one in differences]) <= CHANCE_MAX:
            high = middle
        else:
            low = middle
    return high


def differences(samples: Samples, kind: str, count: int, others: int) -> list[float]:
    """Logarithms of how many times as high the 99th percentile is as beside so many living, round by
    round. Of ratios, for what a busy machine does to a round is a factor, and a single round is not to
    outweigh all others."""
    pairs = zip(samples[kind, count], samples[LIVING, others])
    return [math.log(one["p99_us"] / other["p99_us"]) for one, other in pairs]


def is_judged(samples: Samples) -> bool:
    """Whether there are rounds enough for any difference to be told from chance."""
    return 0.5 ** len(samples[LIVING, 0]) <= CHANCE_MAX / max(1, len(compared(samples)))


def compared(samples: Samples) -> list[tuple[str, int]]:
    return [(kind, count) for kind, count in samples if kind != LIVING]


def higher(samples: Samples) -> set[tuple[str, int]]:
    """Beside whom the latency is higher than beside as many living: Holm's procedure, by which many
    comparisons find no more by chance than one."""
    likely = {(kind, count): chance(differences(samples, kind, count, count)) for kind, count in compared(samples)}
    found = set()
    for number, case in enumerate(sorted(likely, key=likely.__getitem__)):
        if likely[case] > CHANCE_MAX / (len(likely) - number):
            break
        found.add(case)
    return found


def faults(samples: Samples) -> Iterator[tuple[str, str]]:
    """Of which kind, and what is not as promised."""
    for (kind, count), of_case in samples.items():
        if lost := sum(int(sample["lost"]) for sample in of_case):
            yield kind, f"beside {count} {kind}: {lost} events are lost"
    for kind, count in sorted(higher(samples)):
        yield kind, f"the 99th percentile beside {kind} {ratio(samples, kind, count, count)}"


def tell(samples: Samples, kind: str) -> None:
    counts = sorted(count for other, count in samples if other == kind)
    of_kind = [sample for count in counts for sample in samples[kind, count]]
    told: list[evidence.Figure] = [
        ("published", sum(int(sample["published"]) for sample in of_kind), "events"),
        ("lost by the one beside them", sum(int(sample["lost"]) for sample in of_kind), "events"),
        (f"99th percentile beside {counts[-1]}", p99(samples, kind, counts[-1]), "µs"),
        (f"beside {counts[-1]} living", p99(samples, LIVING, counts[-1]), "µs"),
        ("beside none", p99(samples, LIVING, 0), "µs"),
        ("verdict", verdict(samples, kind, counts), ""),
    ]
    evidence.tell(f"isolation_{kind}", FAULTS[kind], PROMISE, told)


def p99(samples: Samples, kind: str, count: int) -> str:
    return figures.told([sample["p99_us"] for sample in samples[kind, count]])


def ratio(samples: Samples, kind: str, count: int, others: int) -> str:
    """How many times as high as beside so many living: the median of rounds, and what it hardly is above."""
    logs = differences(samples, kind, count, others)
    median, bound = (math.exp(one) for one in (statistics.median(logs), upper_bound(logs)))
    beside = f"{others} living" if others else "none"
    return f"{count}: {median:.2f} times (at most {bound:.2f}) that beside {beside}"


def verdict(samples: Samples, kind: str, counts: Sequence[int]) -> str:
    if not is_judged(samples):
        return "none: too few rounds to tell a difference from chance"
    found = [count for count in counts if (kind, count) in higher(samples)]
    pairs = [(count, count) for count in counts] + [(count, 0) for count in counts]
    ratios = ", beside ".join(ratio(samples, kind, count, others) for count, others in pairs)
    judged = f"higher beside {' and '.join(map(str, found))}" if found else "no difference was found"
    return f"{judged}; with {1 - CHANCE_MAX:.0%} confidence, beside {ratios}"


def page(samples: Samples) -> Iterator[str]:
    yield f"{'beside':>18}  {'lost':>14}  {'99th percentile, µs':>26}  times that beside living  by chance"
    for (kind, count), of_case in samples.items():
        lost, published = (sum(int(sample[name]) for sample in of_case) for name in ("lost", "published"))
        seen = f"{lost:>4} of {published:>6}  {p99(samples, kind, count):>26}"
        yield f"{count:>5} {kind:<12}  {seen}  {comparison(samples, kind, count)}".rstrip()


def comparison(samples: Samples, kind: str, count: int) -> str:
    if kind == LIVING:
        return ""
    logs = differences(samples, kind, count, count)
    return f"{math.exp(statistics.median(logs)):>24.2f}  {chance(logs):.4f}"


def enter_namespace() -> None:
    """Becomes this program anew in a network namespace of its own, if it can be had and this is not
    in one already."""
    if INSIDE in os.environ or not shutil.which(UNSHARE[0]):
        return
    if subprocess.run([*UNSHARE, "sh", "-c", CABLE], capture_output=True).returncode != 0:
        return
    os.environ[INSIDE] = "1"
    os.execvp(UNSHARE[0], [*UNSHARE, "sh", "-c", f'{CABLE}exec "$@"', "sh", sys.executable, *sys.argv])


def main() -> int:
    arguments = parse()
    enter_namespace()
    kinds = [kind for kind in KINDS if kind != GONE or INSIDE in os.environ]
    if GONE not in kinds:
        print(f"hosts that are gone: left out, `{' '.join(UNSHARE)}` does not work here", file=sys.stderr)
    samples = record(arguments.program, arguments.rounds, arguments.seconds, arguments.companies, kinds)
    print("\n".join(page(samples)))
    broken = list(faults(samples))
    for kind in kinds[1:]:
        # A broken promise is not told as kept.
        if kind not in {one for one, _ in broken}:
            tell(samples, kind)
    print("\n".join(f"FAULT: {what}" for _, what in broken) or "all as promised")
    return int(bool(broken))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=Path("target/release/hailmary"), metavar="PATH")
    parser.add_argument("--rounds", type=int, choices=range(1, ROUNDS_MAX + 1), default=ROUNDS_MAX, metavar="N")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of each measurement (4)")
    parser.add_argument("--companies", type=int, nargs="+", default=COMPANIES, metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
