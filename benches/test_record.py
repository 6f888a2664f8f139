"""Tests of the record's arithmetic, parsing, charts and page. `python3 benches/test_record.py`"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent / "record"))

import churn
import evidence
import figures
import isolation
import loads
import machine
import overload
import page
import processes
import scrapes
import soak
import strangers
import svg
import workloads


class Figures(unittest.TestCase):
    def test_a_ratio_is_that_of_each_rounds_pair(self) -> None:
        # The machine became ten times slower between the rounds; the ratio does not tell of it.
        self.assertEqual(figures.told(figures.ratios([90, 9], [100, 10])), "0.90 [0.90..0.90]")

    def test_rounds_without_a_partner_are_refused(self) -> None:
        with self.assertRaises(ValueError):
            figures.ratios([1, 2], [1])

    def test_a_spread_is_the_median_and_both_ends(self) -> None:
        self.assertEqual(figures.spread([5, 1, 100]), (5, 1, 100))
        self.assertEqual(figures.told([]), "–")

    def test_numbers_have_three_digits_at_every_step(self) -> None:
        cases = {0: "0.00", 0.004: "0.004", 1.234: "1.23", 9.996: "10.0", 99.96: "100", 999.4: "999"}
        cases |= {999.6: "1.00k", 12_345: "12.3k", 999_600: "1.00M", 33_000_000: "33.0M"}
        for value, words in cases.items():
            self.assertEqual(figures.short(value), words)
        for value, words in {1.234: "1.23", 999.4: "999", 999.6: "1,000", 12_345: "12,300"}.items():
            self.assertEqual(figures.plain(value), words)


class Parsing(unittest.TestCase):
    TABLE = (
        "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        "   10: 0100007F:1C6D 00000000:0000 07 00000000:00000300 00:00000000 00000000     0\n"
        "   10: 0100007F:1C6D 00000000:0000 07 00000000:00000010 00:00000000 00000000     0\n"
        "   11: 0100007F:1C6E 00000000:0000 07 00000009:00000000 00:00000000 00000000     0\n"
    )

    def test_what_waits_is_added_up_over_the_sockets_of_a_port(self) -> None:
        self.assertEqual(processes.waiting_bytes(self.TABLE), {7277: 0x310, 7278: 0})

    def test_late_frames_are_those_past_the_bucket_of_a_millisecond(self) -> None:
        name = "hailmary_forward_latency_seconds"
        text = "".join(
            f'{name}_bucket{{le="{end}"}} {count}\n'
            for end, count in (("0.000262144", 5), ("0.001048576", 7), ("0.004194304", 9), ("+Inf", 10))
        )
        self.assertEqual(scrapes.forwarded(f"{text}{name}_sum 1\n{name}_count 10\n"), (10, 3))
        with self.assertRaises(processes.Failed):
            scrapes.forwarded("")

    def test_series_are_added_up_by_their_labels(self) -> None:
        text = 'hailmary_a_total{x="1",y="z"} 5\nhailmary_a_total{x="2",y="z"} 7\nhailmary_a_total_more 1\n'
        self.assertEqual(overload.total(text, "a_total"), 12)
        self.assertEqual(overload.total(text, "a_total", 'x="2"'), 7)
        self.assertEqual(overload.total("hailmary_b 3\n", "b"), 3)

    def test_only_calls_within_the_time_count(self) -> None:
        trace = "7 9.9 brk(NULL) = 0\n7 10.0 read(3) = 0\n8 14.9 <... futex resumed>) = 0\n7 15.0 exit(0)\n\n"
        self.assertEqual(loads.calls_between(trace, 10.0, 15.0), 2)

    def test_a_report_of_the_bench_becomes_a_sample(self) -> None:
        report = {
            "published": {"events": 10, "events_per_second": 5.0},
            "received": {"events": 30, "events_per_second": 15.0},
            "bus": {"cpu_ns_per_copy": 7.0},
            "latency_us": {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99_9": 4.0, "max": 5.0},
        }
        sample = loads.sample_of_bench(report, loads.Load(1.0, fan_out=4))
        self.assertEqual(sample["lost_share"], 0.25)
        self.assertEqual(sample["p99_9_us"], 4.0)

    def test_counts_of_a_first_and_of_a_later_run_are_read(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            for values in ('{"new": 640}', '{"both": [640, 999]}'):
                summary = Path(directory, "turn.fan_out_4_of_1_event", "summary.json")
                summary.parent.mkdir(exist_ok=True)
                total = f'{{"metrics": {{"Ir": {{"values": {values}}}}}}}'
                summary.write_text(f'{{"profiles": [{{"data": {{"total": {total}}}}}]}}')
                counts = workloads.instructions_per_event(Path(directory))
                self.assertEqual(counts, {"turn.fan_out_4_of_1_event": 10.0})

    def test_the_benches_that_are_told_of_are_there(self) -> None:
        source = Path(__file__).with_name("instructions.rs").read_text()
        there = re.findall(r"#\[bench::(\w+)\(", source)
        self.assertLessEqual({name.split(".")[1] for name in workloads.INSTRUCTIONS}, set(there))

    def test_a_batch_is_that_of_the_benches(self) -> None:
        source = Path(__file__).parent.joinpath("load", "mod.rs").read_text()
        self.assertIn(f"pub const BATCH: usize = {workloads.BATCH};", source)

    def test_what_the_record_writes_is_no_change_of_the_sources(self) -> None:
        record = ["benches/RESULTS.md", "benches/results.json", "benches/throughput.svg"]
        for path in [*record, "SECURITY.md", "tests/evidence/results.json"]:
            self.assertTrue(machine.OUTPUT.match(path), path)
        for path in ("benches/load/mod.rs", "benches/record/svg.py", "src/results.json", "tests/evidence/table.py"):
            self.assertFalse(machine.OUTPUT.match(path), path)


class Isolation(unittest.TestCase):
    def samples(self, dead_us: list[float], living_us: list[float]) -> isolation.Samples:
        def of(all_us: list[float]) -> list[isolation.Sample]:
            return [{"published": 10, "lost": 0, "p99_us": us} for us in all_us]

        return {("living", 0): of(living_us), ("living", 10): of(living_us), ("dead", 10): of(dead_us)}

    def test_a_difference_in_all_rounds_is_no_chance_and_one_to_and_fro_is(self) -> None:
        self.assertEqual(isolation.chance([1.0] * 10), 2**-10)
        self.assertEqual(isolation.chance([-1.0] * 10), 1.0)
        self.assertGreater(isolation.chance([5.0, -5.0] * 5), 0.5)

    def test_only_a_difference_that_is_no_chance_is_called_one_and_fails(self) -> None:
        living = [100.0 + number for number in range(10)]
        higher = self.samples([1.5 * us for us in living], living)
        told = isolation.verdict(higher, "dead", [10])
        self.assertIn("higher beside 10; with 99% confidence, beside 10: 1.50 times (at most 1.50)", told)
        self.assertEqual([kind for kind, _ in isolation.faults(higher)], ["dead"])
        alike = self.samples(living[::-1], living)
        self.assertIn("no difference was found", isolation.verdict(alike, "dead", [10]))
        self.assertEqual(list(isolation.faults(alike)), [])
        few = self.samples([2 * us for us in living[:3]], living[:3])
        self.assertIn("too few", isolation.verdict(few, "dead", [10]))
        self.assertEqual(list(isolation.faults(few)), [])

    def test_a_lost_event_fails(self) -> None:
        samples = self.samples([100.0] * 10, [100.0] * 10)
        samples["dead", 10][3]["lost"] = 1
        self.assertEqual(list(isolation.faults(samples)), [("dead", "beside 10 dead: 1 events are lost")])

    def test_what_hardly_is_chance_once_is_more_likely_among_many(self) -> None:
        # Of eight rounds a difference in each is as likely as one in 256.
        living = [100.0] * 8
        samples = self.samples([110.0] * 8, living)
        self.assertEqual(isolation.higher(samples), {("dead", 10)})
        for count in range(11, 22):
            samples["living", count] = samples["living", 10]
            samples["dead", count] = samples["living", 10]
        self.assertEqual(isolation.higher(samples), set())

    def test_an_upper_bound_is_above_the_mean_and_shrinks_as_rounds_are_more_alike(self) -> None:
        narrow, wide = ([0.1 + spread * (-1) ** number for number in range(12)] for spread in (0.01, 0.2))
        bounds = [isolation.upper_bound(narrow), isolation.upper_bound(wide)]
        self.assertLess(0.1, bounds[0])
        self.assertLess(bounds[0], 0.12)
        self.assertLess(bounds[0] + 0.05, bounds[1])
        self.assertLess(isolation.chance([bounds[1] + 0.01 - one for one in wide]), isolation.CHANCE_MAX)

    def test_the_usual_record_can_find_a_difference(self) -> None:
        comparisons = len(isolation.FAULTS) * len(isolation.COMPANIES)
        self.assertLess(0.5**isolation.ROUNDS_MAX, isolation.CHANCE_MAX / comparisons)

    def test_each_company_is_as_large_as_it_says_and_has_no_address_twice(self) -> None:
        for kind, company in isolation.KINDS.items():
            with company(7) as addresses:
                self.assertEqual(len(set(addresses)), 7, kind)


class Soak(unittest.TestCase):
    PAGE = (
        'hailmary_ingress_events_total 9\nhailmary_ingress_dropped_events_total{reason="rate_limit"} 2\n'
        "hailmary_unmatched_events_total 3\nhailmary_matched_events_total 4\nhailmary_copies_total 8\n"
        'hailmary_egress_events_total{subscriber="a"} 5\n'
        'hailmary_egress_dropped_events_total{subscriber="a",reason="refused"} 3\n'
    )

    def test_each_law_is_looked_at(self) -> None:
        self.assertIsNone(soak.broken_law(self.PAGE))
        for broken, name in (("unmatched_events_total 3", "ingress"), ('refused"} 3', "copies")):
            self.assertIn(name, soak.broken_law(self.PAGE.replace(broken, broken[:-1] + "4")) or "")

    def result(self, resident_kib: list[int]) -> soak.Result:
        looks = [soak.Look(10.0 * number, kib, 20, 3) for number, kib in enumerate(resident_kib)]
        books = churn.Books(published=9, received={"keeper-0": 0, "goer-1": 0})
        return soak.Result(looks[0], looks, looks[0], self.PAGE, books)

    def test_what_is_as_it_is_to_be_has_no_verdict(self) -> None:
        self.assertEqual(list(soak.verdicts(self.result([8_000] * 60), 600.0)), [])

    def test_each_fault_has_its_verdict(self) -> None:
        growing = self.result([8_000 + 100 * number for number in range(60)])
        self.assertIn("memory grew", "".join(soak.verdicts(growing, 600.0)))
        for change, words in (
            ({"after": soak.Look(0, 0, 21, 3)}, "21 descriptors at rest, and 20 before"),
            ({"after": soak.Look(0, 0, 20, 4)}, "4 threads"),
            ({"books": churn.Books(published=10)}, "1 events are missing"),
            ({"books": churn.Books(published=9, received={"keeper-0": 1})}, "keeper-0 accounts for 1"),
            ({"books": churn.Books(published=9, faults=["scrape 7"])}, "scrape 7"),
        ):
            result = self.result([8_000] * 60)
            for name, value in change.items():
                setattr(result, name, value)
            self.assertIn(words, "".join(soak.verdicts(result, 600.0)))

    def test_a_short_run_is_judged_by_what_else_still_fills_and_a_shorter_one_is_not(self) -> None:
        leaking = self.result([8_000 + 200 * number for number in range(30)])
        self.assertIn("memory grew", "".join(soak.verdicts(leaking, 299.0)))
        filling = self.result([8_000 + 60 * number for number in range(30)])
        self.assertEqual(list(soak.verdicts(filling, 299.0)), [])
        self.assertEqual(list(soak.verdicts(leaking, 59.0)), [])
        self.assertIn("not judged", soak.memory(soak.warm(leaking.looks, 59.0), 59.0)[0][1])

    def test_a_line_has_its_slope(self) -> None:
        self.assertAlmostEqual(soak.slope([(0, 5.0), (1, 7.0), (2, 9.0)]), 2.0)
        self.assertEqual(soak.slope([(3, 5.0)]), 0.0)


class Strangers(unittest.TestCase):
    def test_a_frame_is_a_stamp_and_events(self) -> None:
        # A stamp of sender 1 and sequence 300, and one event of topic "a" with payload "x".
        self.assertEqual(strangers.frame(1, 300, ["a"]).hex(), "120c09010000000000000010ac020a060a0161120178")

    def test_cookies_of_answers_are_found_and_events_have_none(self) -> None:
        challenge = strangers.of_bytes(
            strangers.CHALLENGE, strangers.of_bytes(1, b"cookie") + strangers.of_fixed64(2, 7)
        )
        self.assertEqual(strangers.cookie(challenge), b"cookie")
        lease = strangers.of_fixed64(1, 9) + strangers.of_varint(2, 2_000) + strangers.of_bytes(3, b"other")
        self.assertEqual(strangers.cookie(strangers.of_bytes(strangers.LEASE, lease)), b"other")
        self.assertIsNone(strangers.cookie(strangers.frame(1, 0, ["a"])))


class Evidence(unittest.TestCase):
    def test_it_is_told_where_somebody_asks_for_it(self) -> None:
        figures_told: list[evidence.Figure] = [("lost", 0, "events")]
        with tempfile.TemporaryDirectory() as directory:
            with mock.patch.dict(os.environ, {evidence.DIRECTORY: directory}):
                evidence.tell("a_name", "It breaks.", "It holds.", figures_told)
            told = json.loads(Path(directory, "a_name.json").read_text())
        figures_there = [{"what": "lost", "value": 0, "unit": "events"}]
        self.assertEqual(told, {"fault": "It breaks.", "promise": "It holds.", "figures": figures_there})


class Processes(unittest.TestCase):
    def test_a_process_ends_with_its_block_even_when_that_fails(self) -> None:
        with self.assertRaises(KeyError):
            with processes.running(["sleep", "1000"]) as process:
                raise KeyError
        self.assertIsNotNone(process.poll())

    def test_one_that_says_nothing_of_use_is_an_error(self) -> None:
        with self.assertRaisesRegex(processes.Failed, "echo"):
            processes.printed(["echo", "bind: Address already in use"], 10)

    def test_ports_in_a_row_are_free(self) -> None:
        ports = processes.free_ports(17)
        self.assertEqual(ports, list(range(ports[0], ports[0] + 17)))
        self.assertTrue(all(map(processes.is_free, ports)))


class Charts(unittest.TestCase):
    def test_ticks_hold_all_values(self) -> None:
        for low, factor in itertools.product((0.03, 1.0, 7.0, 99.0), (1.0, 1.5, 30.0, 1e5)):
            linear, log = svg.linear_ticks(low * factor), svg.log_ticks(low, low * factor)
            self.assertEqual(linear[0], 0)
            self.assertGreaterEqual(linear[-1] * 1.001, low * factor)
            self.assertLessEqual(log[0], low * 1.001)
            self.assertGreaterEqual(log[-1] * 1.001, low * factor)
            self.assertLessEqual(max(len(linear), len(log)), 11)

    def test_an_axis_runs_from_bottom_to_top(self) -> None:
        for scale in ("linear", "log"):
            axis = svg.Axis([10.0, 1_000.0], scale)
            self.assertLess(axis.share(10.0), 0.02)
            self.assertEqual(axis.share(1_000.0), 1.0)

    def test_a_chart_is_well_formed_and_inside_its_frame(self) -> None:
        values = [figures.Spread(2.0, 1.0, 3.0), figures.Spread(900.0, 800.0, 1_000.0)]
        for shape, scale in itertools.product(("bars", "lines"), ("linear", "log")):
            panel = svg.Panel("a < b", "x", "y", ["1", "2"], [svg.Series("bus & co", values)], shape, scale)
            drawing = ElementTree.fromstring(svg.chart("title", [panel, panel]))
            width = float(drawing.attrib["width"])
            for mark in drawing.iter("{http://www.w3.org/2000/svg}rect"):
                self.assertGreaterEqual(float(mark.get("height", 0)), 0)
                self.assertLessEqual(float(mark.get("x", 0)) + float(mark.get("width", 0)), width)


class Page(unittest.TestCase):
    def results(self, contestants: list[str]) -> dict[str, object]:
        sample = {"delivered_per_second": 2e6, "cpu_ns_per_copy": 80.0, "lost_share": 0.0}
        sample |= {"p50_us": 50.0, "p99_us": 90.0, "p99_9_us": 400.0}
        sample |= {"late_share": 0.01, "scrape_ms": 20.0, "scrape_bytes": 9e6}
        sample |= {"offered_per_second": 2e5, "copies_per_second": 9e5, "low_let_go_share": 0.5}
        sample |= {"high_lost_share": 0.0, "low_lost_share": 0.1}

        def case(*names: str) -> dict[str, object]:
            return {name: [sample] for name in names}

        return {
            "machine": machine.machine(),
            "sources": {"commit": "c0ffee", "is_changed": False, "rustc": "rustc"},
            "build": "release",
            **{"command": "record", "begin": "then", "end": "now", "rounds": 1, "seconds": 1.0},
            **{"load_begin": [0, 0, 0], "load_end": [1, 1, 1]},
            "has_yardstick": "yardstick" in contestants,
            "sections": {
                "throughput": {"1/1": case(*contestants), "4/100": case(*contestants)},
                "cost": {"paced": case("linger 0", "linger 500", *contestants[1:])},
                "lingering": {"paced": case("0", "500")},
                "latency": {"paced": case("bus", "relay")},
                "topics": {"full speed": case("1", "1000")},
                "workers": {"full speed": case("1", "2")},
                "scrapes": {"10000/5": case("no scrapes", "scrapes")},
                "overload": {"60000": case("what it takes", "twice that", "twice that, with priorities")},
            },
            "instructions_per_event": {},
            "resident_kib": {"idle": 4096, "1000000": 6144},
        }

    def test_the_yardsticks_columns_are_there_if_it_was(self) -> None:
        with_it = "\n".join(page.page(self.results(["bus", "yardstick"])))
        self.assertIn("yardstick, events/s", with_it)
        without = "\n".join(page.page(self.results(["bus"])))
        self.assertNotIn("yardstick", without)

    def test_rows_are_as_wide_as_their_heads(self) -> None:
        for contestants in (["bus"], ["bus", "yardstick"]):
            lines = list(page.page(self.results(contestants)))
            for upper, lower in zip(lines, lines[1:]):
                if upper.startswith("|") and lower.startswith("|"):
                    self.assertEqual(upper.count("|"), lower.count("|"), lower)

    def test_a_record_without_later_measurements_is_drawn_as_before(self) -> None:
        for section, head, words in (
            ("scrapes", "## Scrapes", "10,000 static ones"),
            ("overload", "## Overload", "The bus takes 60,000 events/s"),
        ):
            results = self.results(["bus"])
            self.assertIn(words, "\n".join(page.page(results)))
            del results["sections"][section]  # type: ignore[attr-defined]
            self.assertNotIn(head, "\n".join(page.page(results)))

    def test_page_and_charts_are_written(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            page.write(Path(directory), self.results(["bus", "yardstick"]))
            text = Path(directory, "RESULTS.md").read_text()
            for chart in re.findall(r"\((\w+\.svg)\)", text):
                ElementTree.parse(Path(directory, chart))


class CommandLine(unittest.TestCase):
    def test_a_quick_run_may_not_overwrite_the_record(self) -> None:
        program = str(Path(__file__).with_name("record"))
        done = subprocess.run([sys.executable, program, "--quick"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--out", done.stderr)


if __name__ == "__main__":
    unittest.main()
