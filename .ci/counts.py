"""Counts what has to be trusted: dependencies, and the project's own `unsafe`.

That every unsafe block says why it holds, and that only modules which expect `unsafe_code` have
any, lints see to; this sees to it that every package has these lints. Where HAILMARY_EVIDENCE
names a directory, the sums are told there, too. Needs Python 3.11.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Test code that neither lies in a directory of tests nor is called `tests`.
TEST_FILES = {"src/net/sys/faulty.rs", "src/net/sys/looped.rs"}
TEST_PLACE = re.compile(r"(^|/)(tests|benches|fuzz)(/|\.rs$)")
TEST_MODULE = re.compile(r"^#\[cfg\(test\)\]\nmod \w+ \{", re.MULTILINE)

# What may hold braces, or the word, without meaning it.
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\br(#*)".*?"\1|"(?:\\.|[^"\\])*"|'(?:\\.[^']*|[^\\'])'""", re.DOTALL
)
UNSAFE = re.compile(r"\bunsafe\s+(?:\{|(impl|fn|extern)\b)")


def run(*command: str) -> list[str]:
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout.splitlines()


def tracked(pattern: str) -> list[str]:
    return run("git", "ls-files", "--cached", "--others", "--exclude-standard", pattern)


def crates(*options: str) -> int:
    """Packages of others in a tree, each version of each once."""
    lines = run("cargo", "tree", "--quiet", "--locked", "--prefix", "none", *options)
    packages = {" ".join(line.split()[:2]) for line in lines if line and f"({ROOT}" not in line}
    return len(packages)


def dependencies() -> dict[str, int]:
    project = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    program, client = ("-p", "hailmary"), ("-p", "hailmary-client")
    return {
        "the program": crates(*program, "-e", "normal"),
        "the Rust client": crates(*client, "-e", "normal"),
        "the Rust client with all features": crates(*client, "-e", "normal", "--all-features"),
        "the program and the Rust client, with what builds and tests them": crates(
            "--workspace", "--all-features", "-e", "all"
        ),
        "the Python client, named by it": len(project["dependencies"]),
        "the Python client's tests and examples, named by it": len(
            {re.split(r"[\[<>=;]", name)[0] for names in optional.values() for name in names}
        ),
    }


def blank(text: str) -> str:
    """The code alone, every line in its place."""
    return NO_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def end_of(code: str, start: int) -> int:
    """Where the braces that follow are closed, or where a statement ends before any."""
    depth = 0
    for found in re.compile(r"[{};]").finditer(code, start):
        depth += {"{": 1, "}": -1, ";": 0}[found[0]]
        if depth == 0:
            return found.end()
    return len(code)


def count_unsafe(path: str) -> dict[str, Counter[str]]:
    """What a file has, and in how many lines, apart for production code and for tests."""
    code = blank((ROOT / path).read_text())
    module = TEST_MODULE.search(code)
    first_test = module.start() if module else len(code)
    if path in TEST_FILES or TEST_PLACE.search(path):
        first_test = 0
    counts: dict[str, Counter[str]] = {"production": Counter(), "tests": Counter()}
    lines: dict[str, set[int]] = {"production": set(), "tests": set()}
    for found in UNSAFE.finditer(code):
        kind = "production" if found.start() < first_test else "tests"
        counts[kind][found[1] or "block"] += 1
        # In an impl or a function of this kind a block says what is unsafe of it.
        end = found.end() if found[1] else end_of(code, found.start())
        first, last = (code.count("\n", 0, place) for place in (found.start(), end))
        lines[kind] |= set(range(first, last + 1))
    for kind, own in lines.items():
        counts[kind]["lines"] = len(own)
    return counts


def packages_without_lints() -> list[str]:
    wanted = {"unsafe_code", "undocumented_unsafe_blocks"}
    missing = []
    for path in tracked("*Cargo.toml"):
        manifest = tomllib.loads((ROOT / path).read_text())
        lints = manifest.get("lints", {})
        if lints.get("workspace") and "workspace" not in manifest:
            continue
        if lints.get("workspace"):
            lints = manifest["workspace"]["lints"]
        levels = {**lints.get("rust", {}), **lints.get("clippy", {})}
        if any(levels.get(lint) not in ("deny", "forbid") for lint in wanted):
            missing.append(path)
    return missing


def tell(figures: list[tuple[str, int, str]]) -> None:
    directory = os.environ.get("HAILMARY_EVIDENCE")
    if not directory:
        return
    told = {
        "fault": "code that the compiler does not check, and code of others",
        "promise": "every package has the lints by which each unsafe block says why it holds",
        "figures": [{"what": what, "value": value, "unit": unit} for what, value, unit in figures],
    }
    (Path(directory) / "counts.json").write_text(json.dumps(told))


def main() -> None:
    figures = []
    print("dependencies")
    for what, count in dependencies().items():
        print(f"{count:5}  {what}")
        figures.append((f"dependencies of {what}", count, "packages"))
    print("unsafe: blocks, impls, functions, externs, lines")
    by_file = {path: count_unsafe(path) for path in tracked("*.rs")}
    for kind in ("production", "tests"):
        total: Counter[str] = Counter()
        for path, counts in sorted(by_file.items()):
            total += counts[kind]
            if counts[kind]["lines"]:
                print(columns(counts[kind]), path)
        print(columns(total), f"in all, {kind}")
        what = "the project's own lines of unsafe" + (" in tests" if kind == "tests" else "")
        figures.append((what, total["lines"], "lines"))
    if missing := packages_without_lints():
        sys.exit(f"without the lints for unsafe code: {', '.join(missing)}")
    tell(figures)


def columns(counts: Counter[str]) -> str:
    kinds = ("block", "impl", "fn", "extern", "lines")
    return " ".join(f"{counts[kind]:5}" for kind in kinds)


if __name__ == "__main__":
    main()
