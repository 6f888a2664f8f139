"""The table of SECURITY.md: rows from what tests told, and which of them the tree's tests tell.

A row is what a test told, with when and on what it was measured. `results.json` beside this file holds
all rows, so that those of a run which is not repeated stay. So do those that a run was to tell and did
not, and they say so.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- Written by `python3 tests/evidence`: -->"
END = "<!-- End of what is written. -->"

# Where something is told by a name, in files that speak of evidence: the first word of `tell` and of
# a test's own functions around it, such as `tell_of`; or a file that a script writes.
TOLD = (
    re.compile(r'\btell(?:_\w+)?\(\s*f?"([a-z0-9_{}]+)"'),
    re.compile(r"""["/]([a-z0-9_${}]+)\.json\b"""),
)
SPEAKS_OF_EVIDENCE = re.compile(r"HAILMARY_EVIDENCE|\bevidence\b")
# What stands for a word that is filled in, `{kind}` or `$kind`, and all words that are.
FILLED_IN = re.compile(r"\$?\{\w+\}|\$\w+")
MEMBERS = {
    "fuzz_": ("admin", "config", "core", "flow", "frame", "ping", "routes", "subscription", "topics"),
    "isolation_": ("dead", "stopped", "stopped_unix", "gone"),
    "sanitize_": ("address", "thread"),
}
SOURCES = (".ci", "tests", "fuzz", "benches", "clients")
SUFFIXES = (".rs", ".py", "")
# What is built is not of the tree; and what only handles what others tell tells nothing itself.
LEFT_OUT = {"target", "__pycache__", "evidence", "evidence.py", "evidence.rs", "test_evidence.py", "test_record.py"}

Row = dict[str, Any]
Rows = dict[str, Row]


def read(directory: Path) -> Rows:
    """What tests have told into a directory, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))}


def merged(rows: Rows, told: Rows, run: str, stamp: Mapping[str, object]) -> Rows:
    """Rows that a run has told take the place of those that it told before."""
    new = {name: {**row, "run": run, **stamp} for name, row in told.items()}
    return dict(sorted({**rows, **new}.items()))


def kept(rows: Rows, names: Iterable[str], why: str) -> Rows:
    """Rows that were to be told anew and were not stay, and say why they are of an earlier time."""
    names = set(names)
    return {name: {**row, "not_repeated": why} if name in names else row for name, row in rows.items()}


def without_gone(rows: Rows, run: str, names: Iterable[str]) -> Rows:
    """Without those of a run that nothing in the tree tells any more."""
    names = set(names)
    return {name: row for name, row in rows.items() if row["run"] != run or name in names}


def rendered(rows: Rows, places: Mapping[str, str]) -> str:
    """The table, with what it was measured on."""
    machines = sorted({row["machine"] for row in rows.values()})
    letters = dict(zip(machines, string.ascii_uppercase)) if len(machines) > 1 else {}
    named = [f"{letters[machine]}: {machine}" if letters else machine for machine in machines]
    lines = [f"Measured on {'; '.join(named)}.\n"] if machines else ["Nothing is measured yet.\n"]
    lines += ["| fault | promise | figures | when | test |", "| --- | --- | --- | --- | --- |"]
    for name, row in rows.items():
        figures = "; ".join(map(figure, row["figures"]))
        place = places.get(name)
        test = f"[`{name}`]({place})" if place else f"`{name}`"
        when = ", ".join([row["date"], row["commit"], *letters.get(row["machine"], "")])
        if "not_repeated" in row:
            when += f"; **{row['not_repeated']}**"
        cells = (row["fault"], row["promise"], figures, when, test)
        lines.append("| " + " | ".join(map(escaped, cells)) + " |")
    return "\n".join(lines) + "\n"


def figure(told: Mapping[str, Any]) -> str:
    value, unit = told["value"], told["unit"]
    number = f"{value:,}" if isinstance(value, (int, float)) else str(value)
    return f"{told['what']}: {number} {unit}".rstrip()


def escaped(text: str) -> str:
    """What would end a cell of the table does not."""
    return " ".join(text.replace("|", "\\|").split())


def spliced(page: str, table: str) -> str:
    """The page with this table in the place of the one before."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no `{BEGIN}` with `{END}` after it")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def names_in(page: str) -> list[str]:
    """Those of the table's rows, by their last cells."""
    _, _, rest = page.partition(BEGIN)
    table, _, _ = rest.partition(END)
    return re.findall(r"\| \[?`([a-z0-9_]+)`(?:\]\([^)]*\))? \|$", table, re.MULTILINE)


def told_in(root: Path) -> Iterator[tuple[str, str]]:
    """The names that the tree's tests tell, and in which file."""
    for file in sources(root):
        text = file.read_text(errors="replace")
        if not SPEAKS_OF_EVIDENCE.search(text):
            continue
        for pattern in (found for told in TOLD for found in told.findall(text)):
            for name in filled_in(pattern):
                yield name, file.relative_to(root).as_posix()


def filled_in(pattern: str) -> Iterator[str]:
    """All names that a pattern stands for."""
    begin, *rest = FILLED_IN.split(pattern)
    if not rest:
        yield pattern
    elif begin in MEMBERS and rest == [""]:
        yield from (begin + member for member in MEMBERS[begin])
    else:
        raise ValueError(f"nothing here says which names `{pattern}` stands for")


def sources(root: Path) -> Iterator[Path]:
    for top in SOURCES:
        for file in sorted((root / top).rglob("*")):
            is_left_out = LEFT_OUT.intersection(file.relative_to(root).parts)
            if file.suffix in SUFFIXES and not is_left_out and file.is_file():
                yield file


def places(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Where each is told."""
    told = dict(told_in(root))
    return {name: told[name] for name in names if name in told}


def names_of(root: Path, tops: Iterable[str]) -> set[str]:
    """Those that are told in these files and directories."""
    tops = tuple(tops)
    return {name for name, place in told_in(root) if place in tops or place.startswith(tuple(f"{top}/" for top in tops))}


def stale(root: Path, names: Sequence[str]) -> Iterator[str]:
    """What the table lacks, and what it has that no test tells."""
    told = dict(told_in(root))
    for name, place in told.items():
        if name not in names:
            yield f"{place} tells `{name}`, of which the table has nothing"
    for name in names:
        if name not in told:
            yield f"the table has `{name}`, which no test tells"
