"""The package keeps the types that it ships, for both checkers and for its users."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from readme import listings

CLIENT = Path(__file__).resolve().parent.parent


def pyright(*arguments: str) -> str:
    """What it says of the package as it is here."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *arguments]
    # An editable installation is no place where it looks for the types of a package.
    environment = {
        **os.environ,
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
        "PYTHONPATH": str(CLIENT / "src"),
    }
    ran = subprocess.run(
        command, cwd=CLIENT, env=environment, capture_output=True, text=True, check=False
    )
    return ran.stdout + ran.stderr


def test_mypy_strict_finds_nothing() -> None:
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir=/dev/null"]
    checked = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, check=False)
    assert checked.stdout == ""
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("version", ["3.9", "3.14"])
def test_pyright_strict_finds_nothing(version: str) -> None:
    said = pyright("--pythonversion", version)
    assert re.search(r"^0 errors, 0 warnings", said, re.MULTILINE), said


def test_all_public_types_are_known() -> None:
    """But for those of protobuf's own stubs, which leave some open."""
    said = pyright("--verifytypes", "hailmary", "--ignoreexternal")
    assert "Type completeness score: 100%" in said, said


def test_the_listings_of_the_readme_have_the_types_that_they_seem_to(tmp_path: Path) -> None:
    for title, listing in listings().items():
        name = re.sub(r"\W", "_", title).lower()
        (tmp_path / f"{name}.py").write_text(listing)
    command = [sys.executable, "-m", "mypy", "--check-untyped-defs", "--no-error-summary"]
    checked = subprocess.run(
        [*command, "--config-file=", "--cache-dir=/dev/null", "--ignore-missing-imports", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout + checked.stderr == ""
    assert len(listings()) >= 4
