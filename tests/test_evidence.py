"""Tests of the table of evidence. `python3 tests/test_evidence.py`"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/evidence"), str(ROOT / "benches/record")]

import isolation
import table

# A program's file is named as no module may be imported by.
SPEC = importlib.util.spec_from_file_location("evidence_program", ROOT / "tests/evidence/__main__.py")
assert SPEC and SPEC.loader
evidence = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = evidence
SPEC.loader.exec_module(evidence)

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

    def test_what_a_run_tells_replaces_its_rows_and_no_others(self) -> None:
        rows = table.merged({}, {"a": told(), "b": told()}, "faults", STAMP)
        rows = table.merged(rows, {"c": told()}, "soak", STAMP)
        rows = table.merged(rows, {"b": told("Anew.")}, "faults", STAMP)
        self.assertEqual(list(rows), ["a", "b", "c"])
        self.assertEqual(rows["b"]["fault"], "Anew.")
        self.assertEqual(rows["c"]["run"], "soak")

    def test_a_row_that_is_not_told_again_says_so_till_it_is(self) -> None:
        rows = table.merged({}, {"a": told(), "b": told()}, "faults", STAMP)
        rows = table.kept(rows, ["b", "never_told"], "not held on 2000-01-02")
        lines = table.rendered(rows, {}).splitlines()
        self.assertEqual(["not held" in line for line in lines if "It breaks." in line], [False, True])
        self.assertNotIn("not_repeated", table.merged(rows, {"b": told()}, "faults", STAMP)["b"])

    def test_a_row_that_nothing_tells_any_more_goes(self) -> None:
        rows = table.merged({}, {"a": told(), "b": told()}, "faults", STAMP)
        rows = table.merged(rows, {"c": told()}, "soak", STAMP)
        self.assertEqual(list(table.without_gone(rows, "faults", ["b"])), ["b", "c"])

    def test_a_row_is_as_wide_as_the_head_whatever_is_told(self) -> None:
        rows = table.merged({}, {"a": told("One | two\nthree")}, "faults", STAMP)
        lines = table.rendered(rows, {"a": "tests/a.rs"}).splitlines()
        head, _, row = (line for line in lines if line.startswith("|"))
        self.assertEqual(row.replace("\\|", "").count("|"), head.count("|"))
        self.assertIn("lost: 12,345 events; verdict: a\\|b |", row)
        self.assertIn("2000-01-01, c0ffee", row)


class Page(unittest.TestCase):
    PAGE = f"before\n{table.BEGIN}\nof yesterday\n{table.END}\nafter\n"

    def test_of_several_machines_each_row_says_which_was_its_own(self) -> None:
        rows = table.merged({}, {"a": told()}, "faults", {**STAMP, "machine": "4 cores"})
        rows = table.merged(rows, {"b": told()}, "soak", STAMP)
        first, *_, a, b = table.rendered(rows, {}).splitlines()
        self.assertEqual(first, "Measured on A: 2 cores; B: 4 cores.")
        self.assertIn("| 2000-01-01, c0ffee, B |", a)
        self.assertIn("| 2000-01-01, c0ffee, A |", b)
        self.assertIn("| 2000-01-01, c0ffee |", table.rendered({"b": rows["b"]}, {}))

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
    PYTHON = 'import evidence\nevidence.tell(f"isolation_{kind}", fault)'
    SHELL = 'HAILMARY_EVIDENCE "$directory/sanitize_$kind.json"'
    ALL = ["in_rust", *(f"isolation_{kind}" for kind in table.MEMBERS["isolation_"])]
    ALL += ["sanitize_address", "sanitize_thread"]

    def test_what_no_row_has_and_what_no_test_tells_is_stale(self) -> None:
        with tree(rs=self.RUST, py=self.PYTHON, sh=self.SHELL) as root:
            self.assertEqual(list(table.stale(root, self.ALL)), [])
            for name in self.ALL:
                missing = list(table.stale(root, [other for other in self.ALL if other != name]))
                self.assertEqual(len(missing), 1)
                self.assertIn(f"`{name}`", missing[0])
            self.assertIn("gone", list(table.stale(root, [*self.ALL, "gone"]))[0])

    def test_a_pattern_of_unknown_names_is_refused(self) -> None:
        with tree(py='import evidence\nevidence.tell(f"unknown_{kind}", fault)') as root:
            with self.assertRaisesRegex(ValueError, "unknown_"):
                table.places(root, [])

    def test_a_row_leads_to_its_test(self) -> None:
        with tree(rs=self.RUST, py=self.PYTHON) as root:
            found = table.places(root, ["in_rust", "isolation_dead", "gone"])
            self.assertEqual(found, {"in_rust": "tests/test.rs", "isolation_dead": "tests/test.py"})

    def test_those_of_a_run_are_those_of_its_files(self) -> None:
        with tree(rs=self.RUST, py=self.PYTHON, sh=self.SHELL) as root:
            self.assertEqual(table.names_of(root, ["tests/test.rs"]), {"in_rust"})
            self.assertEqual(table.names_of(root, ["tests"]), set(self.ALL))
            self.assertEqual(table.names_of(root, ["test"]), set())


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

    def test_each_name_is_of_one_run(self) -> None:
        places = [place for run in evidence.RUNS.values() for place in run.places]
        names = [name for place in places for name in table.names_of(ROOT, [place])]
        self.assertEqual(sorted(names), sorted(name for name, _ in table.told_in(ROOT)))
        self.assertEqual(len(names), len(set(names)))

    def test_the_members_are_those_of_the_tree(self) -> None:
        targets = {file.stem for file in (ROOT / "fuzz/fuzz_targets").glob("*.rs")}
        self.assertEqual(set(table.MEMBERS["fuzz_"]), targets)
        self.assertEqual({*table.MEMBERS["isolation_"], isolation.LIVING}, set(isolation.KINDS))


class Runs(unittest.TestCase):
    EXPECTED = {"a", "b"}

    def entered(self, done: evidence.Done) -> table.Rows:
        there = table.merged({}, {"a": told(), "b": told(), "gone": told()}, "faults", {**STAMP, "date": "1999"})
        return evidence.entered(there, "faults", done, self.EXPECTED)

    def test_what_a_failed_run_told_counts_and_what_it_did_not_is_marked(self) -> None:
        done = evidence.Done({"a": told("Anew.")}, ["cargo test"])
        rows = self.entered(done)
        self.assertEqual(list(rows), ["a", "b"])
        self.assertEqual(rows["a"]["fault"], "Anew.")
        self.assertEqual(rows["b"]["date"], "1999")
        self.assertIn("not held", rows["b"]["not_repeated"])
        self.assertEqual(len(list(done.faults(self.EXPECTED))), 2)

    def test_what_is_skipped_is_a_fault_of_the_run(self) -> None:
        done = evidence.Done({"a": told()}, [])
        self.assertEqual(list(done.faults(self.EXPECTED)), ["`b` was not told"])
        self.assertIn("could not be measured", self.entered(done)["b"]["not_repeated"])
        self.assertEqual(list(done.faults({"a"})), [])


if __name__ == "__main__":
    unittest.main()
