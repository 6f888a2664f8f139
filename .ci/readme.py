"""Runs the README as a newcomer would, on the ports that it names.

Every command and every listing of the README is run here as it stands there. One that this file
does not know is an error, so the README cannot outgrow its test.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

# How long any step may take once its program runs; and how long one may take to be built.
PATIENCE_SECONDS = 60
BUILD_SECONDS = 1200


def commands(heading: str) -> list[str]:
    """The indented lines of a section that call a program."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = re.findall(r"^    (\S.*)$", section, re.MULTILINE)
    return [line for line in lines if re.match(r"([A-Z_]+=\S+ )?(cargo|python3|target/\S+) ", line)]


def listings(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


class Running:
    """A program that runs until the context ends, and every line that it has printed."""

    def __init__(self, command: str, directory: Path = ROOT) -> None:
        self.command = command
        # `exec`, so that the signal goes to the program and not to a shell.
        self._process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.append(line.rstrip().replace("\t", " "))

    def wait_for(self, wanted: str, seconds: float = PATIENCE_SECONDS) -> None:
        wait_until(lambda: wanted in self._lines, f"{self.command}: no line {wanted!r}", seconds)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        print(f"-- {self.command}", *self._lines, sep="\n   ")


def wait_until(is_so: Callable[[], bool], otherwise: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            sys.exit(otherwise)
        time.sleep(0.05)


def run(command: str, directory: Path = ROOT, statuses: frozenset[int] = frozenset({0})) -> str:
    print(f"-- {command}", flush=True)
    ran = subprocess.run(command, shell=True, cwd=directory, stdout=subprocess.PIPE, text=True)
    if ran.returncode not in statuses:
        sys.exit(f"{command}: ended with {ran.returncode}")
    return ran.stdout


def get(path: str) -> str:
    """What the admin answers; nothing while there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:7278{path}") as answer:
            return answer.read().decode()
    except urllib.error.URLError:
        return ""


def subscribers() -> int:
    return len(json.loads(get("/api/v1/subscribers")))


def build_rust(directory: Path) -> list[Path]:
    """The Rust listings as programs, each in a `main` of its own."""
    (directory / "src/bin").mkdir(parents=True)
    (directory / "Cargo.toml").write_text(
        '[package]\nname = "readme"\nedition = "2024"\n[workspace]\n[dependencies]\n'
        f'hailmary-client = {{ path = "{ROOT}/clients/rust" }}\n'
    )
    programs = []
    for number, listing in enumerate(listings("rust")):
        (directory / f"src/bin/listing{number}.rs").write_text(
            f"fn main() -> Result<(), Box<dyn std::error::Error>> {{\n{listing}Ok(())\n}}\n"
        )
        programs.append(ROOT / f"target/readme/debug/listing{number}")
    run(f"cargo build --quiet --target-dir {ROOT}/target/readme", directory)
    return programs


def write_python(directory: Path) -> list[str]:
    """The Python listings as files, with the interpreter that runs them."""
    for number, listing in enumerate(listings("python")):
        (directory / f"listing{number}.py").write_text(listing)
    return [f"target/venv/bin/python {file}" for file in sorted(directory.glob("listing*.py"))]


def check_configuration(check: str, directory: Path) -> None:
    for listing in listings("toml"):
        tomllib.loads(listing)
        (directory / "hailmary.toml").write_text(listing)
        run(f"{ROOT}/{check}", directory)


def check_host(doctor: str) -> None:
    """What it finds is this machine's matter; that it finds the bus, and asks it, is not."""
    either = frozenset({0, 1})
    run(doctor, statuses=either)
    findings = json.loads(run(f"{doctor} --json", statuses=either))["findings"]
    told = {finding["check"] for finding in findings if finding["severity"] != "unknown"}
    if missing := {"bus", "kernel-drops", "receive-buffer"} - told:
        sys.exit(f"{doctor}: says nothing of {missing}: {findings}")


def main() -> None:
    os.environ.pop("HAILMARY_BUS", None)
    serve, sub, pub, test = commands("The first minute")
    venv, install, example = commands("From an application")
    on_terms = commands("Groups, samples and rates")
    (doctor,) = commands("What a host loses events by")
    bench, bench_running = commands("How much a host bears")
    print_config, check = commands("Configuration")
    if test != "cargo test --workspace":
        sys.exit(f"the README's test command is {test!r}, which .ci/run does not run")
    known = {serve, sub, pub, test, venv, install, example, print_config, check}
    known |= {doctor, bench, bench_running, *on_terms}
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    if unknown := {line for heading in headings for line in commands(heading)} - known:
        sys.exit(f"nobody runs these: {unknown}")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run(venv)
        run(install)
        rust_pub, rust_sub = build_rust(directory)
        python_pub, python_sub = write_python(directory)
        stack.enter_context(Running(serve))
        wait_until(lambda: get("/-/ready") != "", f"{serve}: is not ready", BUILD_SECONDS)
        receiving = [
            stack.enter_context(Running(str(command)))
            for command in (sub, rust_sub, python_sub)
        ]
        wait_until(lambda: subscribers() == 3, "not all are subscribed", PATIENCE_SECONDS)
        for number, command in enumerate((pub, rust_pub, python_pub)):
            run(str(command))
            for subscriber in receiving:
                subscriber.wait_for(f"search.index.photo photo {42 + number} has changed")
        for command in on_terms:
            stack.enter_context(Running(command))
        everybody = len(receiving) + len(on_terms)
        wait_until(lambda: subscribers() == everybody, "not all have terms", PATIENCE_SECONDS)
        run(example)
        check_host(doctor)
        run(bench)
        run(bench_running)
        run(print_config)
        check_configuration(check, directory)


if __name__ == "__main__":
    main()
