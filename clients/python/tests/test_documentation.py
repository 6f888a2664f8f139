"""What is written for people holds: docstrings, their examples, the README's listings."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from readme import listings
from real_bus import needs_program

import hailmary
import hailmary.testing
from hailmary import Event, _subscription, _typed
from hailmary.testing import Recorder, recording

pytest_plugins = ["pytester"]

PUBLIC = (hailmary, hailmary.otel, hailmary.testing)

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(hailmary.__path__, "hailmary.")
    if "_wire" not in module.name and not module.name.endswith("__main__")
)

# Sections whose listings are run as they stand; the others are checked only, since
# what they do has no end or needs a bus.
RUN = ("Publish", "Typed events")


class FewEvents:
    """A subscription that ends after two events, in place of one that goes on."""

    def __init__(self, *patterns: str, **_: Any) -> None:
        self._left = [Event(patterns[0], b'{"id":42}', b"", 1, {}, 1.0)] * 2

    def recv(self, timeout: object = None) -> object:
        return self._left.pop() if self._left else None


@pytest.mark.parametrize("title", RUN)
def test_the_listings_of_the_readme_run(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_subscription, "subscribe", FewEvents)
    monkeypatch.setattr(hailmary, "Publisher", lambda *_, **__: Recorder())
    with recording():
        exec(compile(listings()[title], f"README.md, {title}", "exec"), {})


@pytest.fixture
def tests_of_the_readme(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(listings()["Test an application"])
    return pytester


def test_the_test_with_a_recorder_passes(tests_of_the_readme: pytest.Pytester) -> None:
    ran = tests_of_the_readme.runpytest_subprocess("-W", "error", "-k", "is_indexed")
    ran.assert_outcomes(passed=1, deselected=1)


@needs_program
def test_the_test_with_a_bus_passes(tests_of_the_readme: pytest.Pytester) -> None:
    ran = tests_of_the_readme.runpytest_subprocess("-W", "error", "-k", "arrives")
    ran.assert_outcomes(passed=1, deselected=1)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_are_true(name: str) -> None:
    with recording():
        module = importlib.import_module(name)
        assert doctest.testmod(module, extraglobs={"hailmary": hailmary}).failed == 0


def test_there_are_examples() -> None:
    found = doctest.DocTestFinder().find(_typed)
    assert sum(len(test.examples) for test in found) > 5


def public_objects() -> Iterator[tuple[str, Any]]:
    """What an application may use, with what is public in its classes."""
    for module in PUBLIC:
        yield module.__name__, module
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value):
                continue
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for member, of_class in vars(value).items():
                    if not member.startswith("_") and not is_field(value, member, of_class):
                        yield f"{name}.{member}", of_class


def is_field(owner: type, name: str, value: object) -> bool:
    """Fields and members of enumerations have their words in the source alone."""
    is_code = callable(value) or isinstance(value, (property, classmethod, staticmethod))
    return name in getattr(owner, "__dataclass_fields__", ()) or not is_code


def test_every_public_name_has_a_word() -> None:
    names = dict(public_objects())
    assert len(names) > 50
    assert [name for name, value in names.items() if not inspect.getdoc(value)] == []
