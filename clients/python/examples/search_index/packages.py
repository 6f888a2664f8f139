"""Reads the machine's Debian package index.

Either what is installed (`/var/lib/dpkg/status`) or, where there are lists, all
that could be (`apt-cache dumpavail`): tens of thousands.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

DPKG_STATUS = Path("/var/lib/dpkg/status")

SOURCES = ("auto", "apt", "dpkg")


class Package(TypedDict):
    """What is published of a package."""

    name: str
    version: str
    section: str
    summary: str
    description: str


def read_packages(source: str) -> Iterator[Package]:
    """All packages of a source; `auto` is `apt` where that has any, else `dpkg`."""
    if source == "dpkg":
        return parse(_dpkg_lines())
    if source == "apt":
        return parse(_apt_lines())
    return parse(_apt_lines() if any(_apt_lines()) else _dpkg_lines())


def parse(lines: Iterable[str]) -> Iterator[Package]:
    """Reads control paragraphs as deb-control(5) describes them."""
    fields: dict[str, str] = {}
    field = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line:
            yield from _package(fields)
            fields = {}
        elif line[0] in " \t":
            fields[field] = fields.get(field, "") + "\n" + line[1:]
        else:
            field, _, value = line.partition(":")
            fields[field] = value.strip()
    yield from _package(fields)


def _package(fields: dict[str, str]) -> Iterator[Package]:
    if "Package" not in fields:
        return
    description = fields.get("Description") or fields.get("Description-en", "")
    summary, _, rest = description.partition("\n")
    yield Package(
        name=fields["Package"],
        version=fields.get("Version", ""),
        section=fields.get("Section", ""),
        summary=summary,
        description=rest,
    )


def _dpkg_lines() -> Iterator[str]:
    with DPKG_STATUS.open(encoding="utf-8", errors="replace") as lines:
        yield from lines


def _apt_lines() -> Iterator[str]:
    program = shutil.which("apt-cache")
    if program is None:
        return
    with subprocess.Popen(
        [program, "dumpavail"], stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
    ) as dump:
        assert dump.stdout is not None
        yield from dump.stdout
