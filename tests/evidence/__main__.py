"""The table of SECURITY.md, by one command: runs what proves a promise, and writes down what it saw.

    python3 tests/evidence [NAME]...
    python3 tests/evidence --quick [NAME]...
    python3 tests/evidence --check

Without a name it runs all of:

{runs}

Each brings faults about, fails where a promise is broken, and tells what it measured. A run that fails
keeps its rows as they were. Needs Python 3.9 and Rust, on Linux; what else a run needs it says itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
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
    quick: Sequence[Command] = ()
    """In short, with what the tests have built. None where the tests themselves do it already."""


ISOLATION: Command = ["python3", "benches/record/isolation.py", "--program", PROGRAM]
SOAK: Command = ["python3", "benches/record/soak.py", "--program", PROGRAM]
END_TO_END: Command = ["cargo", "test", "--release", "--test", "end_to_end"]
SIMULATOR: Command = ["env", "HAILMARY_SIM_SEEDS=100000", "cargo", "test", "--release", "--test", "sim", "seeds"]

RUNS = {
    "faults": Run("the catalogue of faults", [[*END_TO_END, "faults", "--", "--include-ignored"]]),
    "sim": Run("the simulator", [SIMULATOR]),
    "fuzz": Run("fuzzing, an hour in all", [["fuzz/run", "--seconds", "400"]]),
    "counts": Run("dependencies, and unsafe code", [["python3", ".ci/counts.py"]]),
    "sanitizers": Run("the tests under sanitizers", [["tests/sanitize", "address"], ["tests/sanitize", "thread"]]),
    "isolation": Run(
        "what the living notice of the dead",
        [ISOLATION],
        [[*ISOLATION, "--rounds", "1", "--seconds", "0.5", "--companies", "10"]],
    ),
    "soak": Run(
        "an hour at 70 % load",
        [SOAK],
        [[*SOAK, "--seconds", "30", "--reload-every", "7", "--capacity-seconds", "0.5"]],
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
    failed = []
    for name in names:
        told = run(RUNS[name].commands, program)
        if told is None:
            failed.append(name)
            continue
        write(table.merged(rows(), told, name, stamp()))
    return conclude(failed)


def quick(names: Sequence[str]) -> int:
    """In short, to see that it works: prints the table and writes nothing."""
    program = build()
    told = {name: run(RUNS[name].quick, program) for name in names}
    there: table.Rows = {}
    for name, rows_of_run in told.items():
        there = table.merged(there, rows_of_run or {}, name, stamp())
    print(table.rendered(there, table.places(ROOT, there)))
    return conclude([name for name, rows_of_run in told.items() if rows_of_run is None])


def conclude(failed: Sequence[str]) -> int:
    for name in failed:
        print(f"{name}: failed", file=sys.stderr)
    return int(bool(failed))


def build(*flags: str) -> Path:
    command = ["cargo", "build", "--bin", "hailmary", *flags, "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return Path(next(message["executable"] for message in messages if message.get("executable")))


def run(commands: Sequence[Command], program: Path) -> table.Rows | None:
    """What was told; nothing where one failed. All are run."""
    with tempfile.TemporaryDirectory(prefix="hailmary-evidence-") as directory:
        environment = {**os.environ, "HAILMARY_EVIDENCE": directory}
        results = [subprocess.run(filled_in(command, program), cwd=ROOT, env=environment) for command in commands]
        return None if any(result.returncode for result in results) else table.read(Path(directory))


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
