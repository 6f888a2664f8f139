"""What is shipped: the wheel, the source distribution, and what pip makes of them."""

import email
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from pathlib import Path, PurePosixPath

import pytest

CLIENT = Path(__file__).resolve().parent.parent

# What someone does who has nothing but the wheel.
SMOKE = """
import sys, hailmary, hailmary.testing, pathlib
assert pathlib.Path(sys.prefix) in pathlib.Path(hailmary.__file__).parents, hailmary.__file__
photos = hailmary.Topic("search.index.photo", codec=hailmary.json)
with hailmary.testing.recording() as recorder:
    photos.publish({"id": 42}, key=b"42")
assert recorder.values(photos) == [{"id": 42}]
hailmary.publish("search.index.photo", b"")
assert hailmary.default_publisher().stats().offered == 1
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the source distribution, and the wheel built from it."""
    into = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into)]
    ran = subprocess.run([*command, str(CLIENT)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return into


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def sources(directory: str) -> set[str]:
    """The files of the client below a directory, as a package lists them."""
    return {
        str(PurePosixPath(path.relative_to(CLIENT)))
        for path in (CLIENT / directory).rglob("*")
        if path.is_file() and path.suffix in (".py", ".pyi", ".typed")
    }


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "[pytest11]\nhailmary = pytest_hailmary" in archive.read(points).decode()
    assert names == {name[len("src/") :] for name in sources("src")}
    assert "hailmary/py.typed" in names


def test_the_source_distribution_has_what_builds_and_tests_it(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}
    for directory in ("src", "tests", "tools", "examples"):
        wanted |= sources(directory)
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name or "target" in name]


def test_the_metadata_is_complete(wheel: Path) -> None:
    told = metadata(wheel)
    versions = [f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 15)]
    assert set(versions) <= set(told.get_all("Classifier", []))
    assert "Typing :: Typed" in told.get_all("Classifier", [])
    assert told["Requires-Python"] == ">=3.9"
    assert (told["License-Expression"], told["License-File"]) == ("Apache-2.0", "LICENSE")
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload() == (CLIENT / "README.md").read_text(encoding="utf-8")
    needed = [name for name in told.get_all("Requires-Dist", []) if "extra ==" not in name]
    assert [name.partition("<")[0].partition(">")[0] for name in needed] == ["protobuf"]


def test_the_licence_is_the_one_of_the_project() -> None:
    project = CLIENT.parent.parent / "LICENSE"
    if not project.is_file():
        pytest.skip("the project is not around this copy of the client")
    assert (CLIENT / "LICENSE").read_text() == project.read_text()


def test_it_works_where_nothing_else_is_installed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HAILMARY", "PYTHON"))}
    for arguments in (
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)],
        ["-m", "pip", "check"],
        ["-I", "-W", "error", "-c", SMOKE],
    ):
        ran = subprocess.run(
            [str(python), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
