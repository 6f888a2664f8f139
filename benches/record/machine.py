"""What the figures were taken on: the machine, the state of the sources, the date."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

# What the record and tests/evidence write themselves does not make the sources others than their commit.
OUTPUT = re.compile(r"^(benches/(RESULTS\.md|results\.json|[a-z]+\.svg)|SECURITY\.md|tests/evidence/results\.json)$")


def machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "cpu": first_match("/proc/cpuinfo", r"model name\s*: (.+)") or platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "memory_kib": int(first_match("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0),
        "rmem_max_bytes": setting("rmem_max"),
        "wmem_max_bytes": setting("wmem_max"),
    }


def sources(root: Path) -> dict[str, object]:
    return {
        "commit": output(["git", "rev-parse", "HEAD"], root),
        "is_changed": is_changed(root),
        "rustc": output(["rustc", "--version"], root),
    }


def is_changed(root: Path) -> bool:
    """Whether there is anything that is not in the commit."""
    status = output(["git", "status", "--porcelain", "--untracked-files=all"], root)
    return any(not OUTPUT.match(line.split(maxsplit=1)[1]) for line in status.splitlines())


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def load() -> list[float]:
    """Of the last one, five and fifteen minutes: processes that ran or waited to run."""
    return [round(share, 2) for share in os.getloadavg()]


def first_match(path: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, Path(path).read_text())
    except OSError:
        return None
    return match and match.group(1)


def setting(name: str) -> int | None:
    text = first_match(f"/proc/sys/net/core/{name}", r"(\d+)")
    return None if text is None else int(text)


def output(command: list[str], root: Path) -> str:
    """Of a command that says something about the sources; nothing where it cannot."""
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
