"""Tests of the table of evidence. `python3 tests/test_evidence.py`"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/evidence"))

import table

STAMP = {"date": "2000-01-01", "commit": "c0ffee", "machine": "2 cores"}


def told(fault: str = "It breaks.") -> table.Row:
    figures = [{"what": "lost", "value": 12_345, "unit": "events"}, {"what": "verdict", "value": "a|b", "unit": ""}]
    return {"fault": fault, "promise": "It holds.", "figures": figures}


@contextlib.contextmanager
def tree(**files: str) -> Iterator[Path]:
    """One with these files, by suffix."""
    with tempfile.TemporaryDirectory() as directory:
        tests = Path(directory, "tests")
        tests.mkdir()
        for suffix, text in files.items():
            tests.joinpath("script" if suffix == "sh" else f"test.{suffix}").write_text(text)
        yield Path(directory)


class Rows(unittest.TestCase):
    def test_what_tests_told_is_read_by_name(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "a_fault.json").write_text(json.dumps(told()))
            self.assertEqual(table.read(Path(directory)), {"a_fault": told()})

    def test_a_run_replaces_its_own_rows_and_no_others(self) -> None:
        rows = table.merged({}, {"a": told(), "b": told()}, "faults", STAMP)
        rows = table.merged(rows, {"c": told()}, "soak", STAMP)
        rows = table.merged(rows, {"b": told("Anew.")}, "faults", STAMP)
        self.assertEqual(list(rows), ["b", "c"])
        self.assertEqual(rows["b"]["fault"], "Anew.")
        self.assertEqual(rows["c"]["run"], "soak")

    def test_a_row_is_as_wide_as_the_head_whatever_is_told(self) -> None:
        rows = table.merged({}, {"a": told("One | two\nthree")}, "faults", STAMP)
        lines = table.rendered(rows, {"a": "tests/a.rs"}).splitlines()
        head, _, row = (line for line in lines if line.startswith("|"))
        self.assertEqual(row.replace("\\|", "").count("|"), head.count("|"))
        self.assertIn("lost: 12,345 events; verdict: a\\|b |", row)
        self.assertIn("2000-01-01, c0ffee", row)


class Page(unittest.TestCase):
    PAGE = f"before\n{table.BEGIN}\nof yesterday\n{table.END}\nafter\n"

    def test_the_table_alone_is_replaced_and_its_names_are_found(self) -> None:
        rows = table.merged({}, {"a_b": told(), "c": told()}, "faults", STAMP)
        page = table.spliced(self.PAGE, table.rendered(rows, {"c": "tests/c.rs"}))
        self.assertEqual(table.names_in(page), ["a_b", "c"])
        self.assertNotIn("yesterday", page)
        self.assertTrue(page.startswith("before\n") and page.endswith("\nafter\n"))
        self.assertEqual(table.spliced(page, table.rendered(rows, {"c": "tests/c.rs"})), page)

    def test_a_page_without_its_marks_is_left_alone(self) -> None:
        for page in ("", table.BEGIN, f"{table.END}{table.BEGIN}"):
            with self.assertRaises(ValueError):
                table.spliced(page, "")


class Names(unittest.TestCase):
    RUST = 'use evidence::tell;\n tell_of(\n  "in_rust",\n  x);\n tell(name, fault);'
    PYTHON = 'import evidence\nevidence.tell(f"by_{kind}", fault)'
    SHELL = 'HAILMARY_EVIDENCE "$directory/under_$kind.json"'

    def test_what_no_row_has_and_what_no_test_tells_is_stale(self) -> None:
        with tree(rs=self.RUST, py=self.PYTHON, sh=self.SHELL) as root:
            self.assertEqual(list(table.stale(root, ["in_rust", "by_one", "by_other", "under_it"])), [])
            missing = list(table.stale(root, ["in_rust", "by_one"]))
            self.assertEqual(len(missing), 1)
            self.assertIn("tests/script", missing[0])
            self.assertIn("gone", list(table.stale(root, ["in_rust", "by_one", "under_it", "gone"]))[0])

    def test_a_row_leads_to_its_test(self) -> None:
        with tree(rs=self.RUST, py=self.PYTHON) as root:
            found = table.places(root, ["in_rust", "by_one", "gone"])
            self.assertEqual(found, {"in_rust": "tests/test.rs", "by_one": "tests/test.py"})


class ThisTree(unittest.TestCase):
    def test_the_catalogue_is_found(self) -> None:
        found = table.places(ROOT, ["subscriber_killed", "isolation_dead", "soak"])
        self.assertEqual(
            found,
            {
                "subscriber_killed": "tests/end_to_end/faults/subscribers.rs",
                "isolation_dead": "benches/record/isolation.py",
                "soak": "benches/record/soak.py",
            },
        )


if __name__ == "__main__":
    unittest.main()
