"""The record of figures, by one command: builds the release program, measures it, and writes
RESULTS.md, results.json and the charts.

    python3 benches/record [--limit PATH] [--rounds N]
    python3 benches/record --quick --out DIR
    python3 benches/record --draw

Needs Python 3.9 and Rust, on Linux. Takes about ten minutes, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import loads
import machine
import page
import workloads
from processes import Failed

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    arguments = parse(sys.argv[1:])
    out: Path = arguments.out or ROOT / "benches"
    try:
        if not arguments.draw:
            write_json(out, record(arguments))
        page.write(out, json.loads((out / "results.json").read_text()))
    except (Failed, OSError, subprocess.SubprocessError, json.JSONDecodeError) as error:
        print(f"no record: {error}", file=sys.stderr)
        return 1
    return 0


def stop(_number: int, _frame: object) -> NoReturn:
    """Leaves all blocks, so that what was started ends."""
    raise SystemExit(1)


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 benches/record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=Path, metavar="PATH", help="the yardstick, a program or its source in C")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="how often all is measured (5)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (benches)")
    parser.add_argument("--quick", action="store_true", help="one short round of an unoptimised program")
    parser.add_argument("--draw", action="store_true", help="page and charts anew from results.json; measures nothing")
    arguments = parser.parse_args(words)
    if arguments.quick and not arguments.out:
        parser.error("--quick is no record: say where it may write with --out DIR")
    return arguments


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def record(arguments: argparse.Namespace) -> dict[str, Any]:
    plan = workloads.quick() if arguments.quick else workloads.Plan(arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="hailmary-record-") as directory:
        programs = build(arguments, Path(directory))
        counts = {} if arguments.quick else instructions()
        sources, begin, load_begin = machine.sources(ROOT), machine.now(), machine.load()
        sections = {name: measure(programs, plan) for name, measure in workloads.SECTIONS.items()}
        rest = workloads.rest(programs, plan)
    return {
        "machine": machine.machine(),
        "sources": sources,
        "build": "dev, not optimised" if arguments.quick else "release",
        "command": command(arguments),
        "begin": begin,
        "end": machine.now(),
        "load_begin": load_begin,
        "load_end": machine.load(),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "has_yardstick": programs.yardstick is not None,
        "sections": sections,
        "instructions_per_event": counts,
        **rest,
    }


def command(arguments: argparse.Namespace) -> str:
    """What to type for the same again."""
    words = ["python3 benches/record", f"--rounds {arguments.rounds}"]
    words += [f"--limit {arguments.limit.name}"] if arguments.limit else []
    words += ["--quick --out DIR"] if arguments.quick else []
    return " ".join(words)


def build(arguments: argparse.Namespace, directory: Path) -> loads.Programs:
    if arguments.quick:
        # What the tests have built already.
        built = cargo("build", "--workspace", "--bench", "relay", "--bin", "hailmary")
    else:
        # The program apart and last: what benches need changes libraries that it shares with them.
        built = cargo("build", "--release", "--bench", "relay")
        built.update(cargo("build", "--release", "--bin", "hailmary"))
    return loads.Programs(built["hailmary"], built["relay"], yardstick(arguments.limit, directory))


def cargo(*words: str) -> dict[str, Path]:
    """Builds, and says where the programs are."""
    command = ["cargo", *words, "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    built = [message for message in messages if message.get("executable")]
    return {message["target"]["name"]: Path(message["executable"]) for message in built}


def yardstick(path: Path | None, directory: Path) -> Path | None:
    """The program given, or the one that its source makes."""
    if path is None or path.suffix != ".c":
        return path and path.resolve(strict=True)
    program = directory / path.stem
    subprocess.run(["cc", "-O2", "-o", str(program), str(path)], check=True)
    return program


def instructions() -> dict[str, float]:
    """Counts them where there is what it takes."""
    if not (shutil.which("valgrind") and shutil.which("gungraun-runner")):
        return {}
    words = ["bench", "--bench", "instructions", "--", "--save-summary=json"]
    subprocess.run(["cargo", *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    metadata = ["cargo", "metadata", "--no-deps", "--format-version", "1"]
    target = json.loads(machine.output(metadata, ROOT))["target_directory"]
    return workloads.instructions_per_event(Path(target, "gungraun/hailmary/instructions/core"))


def write_json(out: Path, results: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    # Written whole or not at all: a run that fails leaves the last record as it is.
    part = out / "results.json.part"
    part.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(part, out / "results.json")


if __name__ == "__main__":
    sys.exit(main())
