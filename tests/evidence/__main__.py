"""The table of SECURITY.md, by one command: runs what proves a promise, and writes down what it saw.

    python3 tests/evidence [NAME]...
    python3 tests/evidence --quick [NAME]...
    python3 tests/evidence --check

Without a name it runs all of:

{runs}

Each brings faults about, fails where a promise is broken, and tells what it measured. What a run was to
tell and did not keeps its row, which says so, and the run fails: what is lacking here is no evidence.
Needs Python 3.11 and Rust, on Linux; what else a run needs it says itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import table

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "tests/evidence/results.json"
PAGE = ROOT / "SECURITY.md"

# What the record of figures says of a machine is said in the same words here.
sys.path.insert(0, str(ROOT / "benches/record"))
import machine  # noqa: E402

Command = Sequence[str]
PROGRAM = "{program}"


@dataclass(frozen=True)
class Run:
    """Commands that tell something."""

    what: str
    commands: Sequence[Command]
    places: Sequence[str]
    """Files and directories that tell what it is to tell."""
    quick: Sequence[Command] = ()
    """In short, with what the tests have built. None where the tests themselves do it already."""


@dataclass(frozen=True)
class Done:
    """What commands told, and which of them failed."""

    told: table.Rows
    failed: Sequence[str]

    def faults(self, expected: set[str]) -> Iterator[str]:
        yield from (f"`{command}` failed" for command in self.failed)
        yield from (f"`{name}` was not told" for name in sorted(expected.difference(self.told)))


ISOLATION: Command = ["python3", "benches/record/isolation.py", "--program", PROGRAM]
SOAK: Command = ["python3", "benches/record/soak.py", "--program", PROGRAM]
END_TO_END: Command = ["cargo", "test", "--release", "--test", "end_to_end"]
PYTHON: Command = ["env", "HAILMARY_EXAMPLES=3000", "cargo", "test", "--release", "--test", "python"]
SIMULATOR: Command = ["env", "HAILMARY_SIM_SEEDS=100000", "cargo", "test", "--release", "--test", "sim", "seeds"]
# With full numbers, and one after the other: none is to be measured amid the others' floods.
FAULTS: Command = ["env", "HAILMARY_FAULTS_LONG=1", *END_TO_END, "faults::", "--"]
FAULTS_PLACE = "tests/end_to_end/faults"

RUNS = {
    "faults": Run(
        "the catalogue of faults, with full numbers, 8 minutes",
        [[*FAULTS, "--include-ignored", "--test-threads=1"]],
        [FAULTS_PLACE],
    ),
    "sim": Run("the simulator, 100,000 histories, some minutes", [SIMULATOR], ["tests/sim"]),
    "fuzz": Run(
        "fuzzing, an hour",
        [["fuzz/run", "--seconds", "400"], PYTHON],
        ["fuzz/run", "clients/python/tests/test_fuzz_receive.py"],
    ),
    "confined": Run(
        "what a bus that is taken over may still do, seconds",
        [[*END_TO_END, "confined::"]],
        ["tests/end_to_end/confined.rs"],
    ),
    "counts": Run("dependencies, and unsafe code, seconds", [["python3", ".ci/counts.py"]], [".ci/counts.py"]),
    "sanitizers": Run(
        "the tests under sanitizers, a quarter of an hour and their builds",
        [["tests/sanitize", "address"], ["tests/sanitize", "thread"]],
        ["tests/sanitize"],
    ),
    "isolation": Run(
        "what the living notice of the dead, 20 minutes",
        [ISOLATION],
        ["benches/record/isolation.py"],
        [[*ISOLATION, "--rounds", "1", "--seconds", "0.5", "--companies", "10"]],
    ),
    "soak": Run(
        "an hour at 70 % load",
        [SOAK],
        ["benches/record/soak.py"],
        [[*SOAK, "--seconds", "75", "--reload-every", "7", "--capacity-seconds", "0.5"]],
    ),
}


def main() -> int:
    arguments = parse()
    if arguments.check:
        faults = list(table.stale(ROOT, table.names_in(PAGE.read_text())))
        print("\n".join(faults) or "the table is as the tests are")
        return int(bool(faults))
    names = arguments.names or list(RUNS)
    return quick(names) if arguments.quick else record(names)


def record(names: Sequence[str]) -> int:
    """Runs, and writes after each, so that what comes later cannot spoil it."""
    program = build("--release")
    faults: list[str] = []
    for name in names:
        done = run(RUNS[name].commands, program)
        expected = table.names_of(ROOT, RUNS[name].places)
        faults += [f"{name}: {fault}" for fault in done.faults(expected)]
        write(entered(rows(), name, done, expected))
    return conclude(faults)


def entered(there: table.Rows, name: str, done: Done, expected: set[str]) -> table.Rows:
    """These rows with what a run told, and a word at those that it did not tell."""
    current = stamp()
    there = table.merged(there, done.told, name, current)
    why = "not held" if done.failed else "could not be measured"
    missing = expected.difference(done.told)
    there = table.kept(there, missing, f"{why} on {current['date']}")
    return table.without_gone(there, name, expected.union(done.told))


def quick(names: Sequence[str]) -> int:
    """In short, to see that it works: prints the table and writes nothing."""
    program = build()
    faults: list[str] = []
    there: table.Rows = {}
    for name in names:
        done = run(RUNS[name].quick, program)
        # Here a run may lack what it needs: it says so.
        faults += [f"{name}: {fault}" for fault in done.faults(set())]
        there = table.merged(there, done.told, name, stamp())
    print(table.rendered(there, table.places(ROOT, there)))
    return conclude(faults)


def conclude(faults: Sequence[str]) -> int:
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


def build(*flags: str) -> Path:
    command = ["cargo", "build", "--bin", "hailmary", *flags, "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return Path(next(message["executable"] for message in messages if message.get("executable")))


def run(commands: Sequence[Command], program: Path) -> Done:
    """Runs them all, whichever fail."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hailmary-evidence-") as directory:
        environment = {**os.environ, "HAILMARY_EVIDENCE": directory}
        lines = [filled_in(command, program) for command in commands]
        failed = [line for line in lines if subprocess.run(line, cwd=ROOT, env=environment).returncode]
        told = table.read(Path(directory))
    print(f"{len(told)} rows in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return Done(told, [" ".join(line) for line in failed])


def filled_in(command: Command, program: Path) -> list[str]:
    return [word.replace(PROGRAM, str(program)) for word in command]


def stamp() -> Mapping[str, object]:
    """When a row was measured and on what, without a word of whose machine it was."""
    sources, there = machine.sources(ROOT), machine.machine()
    changed = " with changes" if sources["is_changed"] else ""
    memory = f"{float(str(there['memory_kib'])) / 2**20:.0f} GiB"
    return {
        "date": machine.now().split()[0],
        "commit": str(sources["commit"])[:10] + changed,
        "machine": f"{there['cores']} cores of {there['cpu']}, {memory}, {there['kernel']}",
    }


def rows() -> table.Rows:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def write(all_rows: table.Rows) -> None:
    page = table.spliced(PAGE.read_text(), table.rendered(all_rows, table.places(ROOT, all_rows)))
    # Each whole or not at all: a run that is ended leaves what was there.
    for path, text in ((RESULTS, json.dumps(all_rows, indent=1) + "\n"), (PAGE, page)):
        part = path.with_name(f"{path.name}.part")
        part.write_text(text)
        os.replace(part, path)


def parse() -> argparse.Namespace:
    runs = "\n".join(f"    {name:<12}{one.what}" for name, one in RUNS.items())
    parser = argparse.ArgumentParser(
        prog="python3 tests/evidence",
        description=str(__doc__).format(runs=runs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="in short, with an unoptimised program; writes nothing")
    parser.add_argument(
        "--check", action="store_true", help="whether the table has what the tree's tests tell; runs nothing"
    )
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in RUNS:
            parser.error(f"{name} is none of {', '.join(RUNS)}")
        if arguments.quick and not RUNS[name].quick:
            parser.error(f"{name} has no short form: the tests run it as it is")
    if arguments.quick and not arguments.names:
        arguments.names = [name for name, one in RUNS.items() if one.quick]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
