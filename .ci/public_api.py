"""Holds the Rust client's public API against the listing that is checked in.

Any difference fails, and is told by what it does to the client's users: what is
removed or changed breaks them, what is added does not. `--accept` writes the new
listing; it refuses to accept a break within a version that is tagged as released,
or one that semver takes for compatible with it.

Needs cargo-public-api. It reads what rustdoc writes as JSON, which stable compilers
do only if told that they may.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "hailmary-client"
LISTING = ROOT / "clients" / "rust" / "public-api.txt"


def run(*command):
    environment = {**os.environ, "RUSTC_BOOTSTRAP": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return result.stdout


def api():
    """One item a line; blanket traits apart. `Send` and the like are promises, too."""
    options = ["--all-features", "--omit", "blanket-impls", "--color", "never"]
    return run("cargo", "public-api", "-p", PACKAGE, *options)


def version():
    return run("cargo", "pkgid", "-p", PACKAGE).strip().rsplit("#", 1)[1].split("@")[-1]


def compatible(version):
    """What semver holds fixed of a version: 1 of 1.2.3, 0.1 of 0.1.2."""
    major, minor, _ = version.split(".", 2)
    return f"{major}.{minor}." if major == "0" else f"{major}."


def is_released(version):
    return bool(run("git", "tag", "--list", f"v{compatible(version)}*").strip())


def main(accept):
    recorded, found = LISTING.read_text() if LISTING.exists() else "", api()
    removed = sorted(set(recorded.splitlines()) - set(found.splitlines()))
    added = sorted(set(found.splitlines()) - set(recorded.splitlines()))
    for sign, lines in (("-", removed), ("+", added)):
        for line in lines:
            print(sign, line)
    if accept and removed and is_released(version()):
        return f"{version()} is compatible with what is released, and this is not: raise it"
    if accept:
        LISTING.write_text(found)
    elif found != recorded:
        kind = "breaks" if removed else "adds to"
        return f"this {kind} the client's API; where it shall, run {sys.argv[0]} --accept"
    return None


if __name__ == "__main__":
    sys.exit(main("--accept" in sys.argv[1:]))
