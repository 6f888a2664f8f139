"""The package keeps the types that it ships."""

import subprocess
import sys
from pathlib import Path


def test_mypy_strict_finds_nothing() -> None:
    client = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir=/dev/null"]
    checked = subprocess.run(command, cwd=client, capture_output=True, text=True, check=False)
    assert checked.stdout == ""
    assert checked.returncode == 0, checked.stderr
