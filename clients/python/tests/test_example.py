"""The example, and the books that it keeps."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import packages
import pytest
from books import Books, Scrape
from index import Index
from real_bus import PROGRAM, needs_program

EXAMPLE = Path(packages.__file__).parent

CONTROL = """\
Package: one
Version: 1
Section: admin
Description: the first
 Says more
 .
  - with a list

Package: two
Description-en: the second
"""

METRICS = """\
# HELP hailmary_ingress_events_total events in the frames used
# TYPE hailmary_ingress_events_total counter
hailmary_ingress_events_total 90
hailmary_ingress_lost_events_total 8
hailmary_ingress_sender_dropped_events_total 2
hailmary_ingress_dropped_frames_total{reason="kernel_buffer"} 3
hailmary_ingress_dropped_frames_total{reason="hops"} 0
hailmary_ingress_dropped_events_total{reason="rate_limit"} 10
hailmary_matched_events_total 80
hailmary_copies_total 80
hailmary_egress_events_total{subscriber="s"} 75
hailmary_egress_dropped_events_total{subscriber="s",reason="would_block"} 5
hailmary_leases 1
"""


def books(**changes: Any) -> Books:
    subscriber = {"received": 70, "lost": 3, "awaited": 2, "dropped_by_bus": 5, "lapses": 0}
    published = {"offered": 100, "sent": 98, "dropped": 2}
    subscriber.update({name: value for name, value in changes.items() if name in subscriber})
    published.update({name: value for name, value in changes.items() if name in published})
    return Books(published, Scrape.parse(changes.get("metrics", METRICS)), {"s": subscriber})


def test_books_that_balance_are_left_alone() -> None:
    assert books().contradictions() == []
    table = books().table()
    assert re.search(r"lost before the bus +8 +\(kernel_buffer 3\)", table)
    assert re.search(r"dropped by the bus +5 +\(would_block 5\)", table)


@pytest.mark.parametrize(
    ("change", "contradictions"),
    [
        ({"received": 69}, 2),
        ({"lost": 4}, 2),
        ({"dropped_by_bus": 4}, 1),
        ({"lapses": 1}, 1),
        ({"sent": 97}, 1),
        ({"dropped": 3}, 2),
        ({"offered": 101}, 1),
        ({"metrics": METRICS.replace("copies_total 80", "copies_total 81")}, 1),
        ({"metrics": METRICS.replace("matched_events_total 80", "matched_events_total 79")}, 1),
    ],
)
def test_books_that_do_not_are_found_out(change: dict[str, Any], contradictions: int) -> None:
    assert len(books(**change).contradictions()) == contradictions


def test_a_scrape_counts_from_another_on() -> None:
    later = Scrape.parse(METRICS.replace("matched_events_total 80", "matched_events_total 100"))
    assert later.since(Scrape.parse(METRICS)).total("matched_events_total") == 20
    assert later.since(Scrape.parse("")).total("matched_events_total") == 100


def test_packages_are_read_from_control_paragraphs() -> None:
    first, second = packages.parse(CONTROL.splitlines(keepends=True))
    assert first == {
        "name": "one",
        "version": "1",
        "section": "admin",
        "summary": "the first",
        "description": "Says more\n.\n - with a list",
    }
    assert (second["name"], second["summary"]) == ("two", "the second")


def test_the_index_takes_a_package_twice_and_finds_it_once(tmp_path: Path) -> None:
    index = Index(tmp_path / "packages.db")
    for package in [*packages.parse(CONTROL.splitlines())] * 2:
        index.add(json.dumps(package).encode())
    index.flush()
    assert index.count() == 2
    assert index.search("list says") == [("one", "the first")]
    assert index.search('no such "thing') == []
    index.close()


@needs_program
@pytest.mark.skipif(not packages.DPKG_STATUS.is_file(), reason="no Debian package index here")
@pytest.mark.parametrize("rate", [2000, 0])
def test_the_example_ends_with_balanced_books(rate: int) -> None:
    command: list[Any] = [sys.executable, EXAMPLE / "run.py", "--source", "dpkg", "--rate", str(rate)]
    ran = subprocess.run(
        [*command, "--query", "dpkg"],
        env={"HAILMARY_PROGRAM": PROGRAM},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "the books balance" in ran.stdout
    installed = sum(1 for _ in packages.read_packages("dpkg"))
    published = re.search(r"^published +(\d+)$", ran.stdout, re.MULTILINE)
    assert published and int(published[1]) > installed, "every package, and a marker"
    assert "\n  dpkg: " in ran.stdout
