"""RESULTS.md and its charts, from what results.json holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from figures import Spread, ratios, short, spread, told
from svg import Panel, Series, chart
from workloads import AT_CAPACITY, BUS, INSTRUCTIONS, RELAY, SCRAPED, UNSCRAPED, YARDSTICK, Samples

Results = dict[str, Any]
DASH = "–"
QUANTILES = {"p50_us": "median", "p99_us": "99th percentile", "p99_9_us": "99.9th percentile"}
INSTRUCTIONS_AIMS = {"turn.fan_out_4_of_1_event": "under 600"}

INTRO = """\
# Record of figures

Written by `{command}`, with all charts; `results.json`
beside it holds every sample.

Every figure is `median [smallest..largest]` of {rounds_told}. What is compared is measured in
turns, and a ratio is that of each round's pair: absolute figures hold for one machine and hour,
ratios for longer. The bus, publishers and subscribers share the machine's cores and loopback, so a
figure is that of the whole host. Payloads have 128 bytes. The aim is what the project
holds itself to.
"""

YARDSTICK_WORDS = """\
The yardstick is a program with everything left out: one thread that receives batches, copies
nothing, knows one topic, and sends to fixed addresses, without leases, stamps, counts or checks.
It is one C file, given by its path and compiled with `cc -O2`. Its own publishers and
subscribers load both it and the bus.
"""


def write(out: Path, results: Results) -> None:
    for name, drawing in charts(results).items():
        (out / f"{name}.svg").write_text(drawing)
    (out / "RESULTS.md").write_text("\n".join(page(results)))


def page(results: Results) -> Iterator[str]:
    rounds = results["rounds"]
    yield INTRO.format(command=results["command"], rounds_told="1 round" if rounds == 1 else f"{rounds} rounds")
    if results["has_yardstick"]:
        yield YARDSTICK_WORDS
    sections = (where, throughput, cost, lingering, latency, topics, workers, scrapes, overload, memory, instructions)
    for section in sections:
        yield from section(results)
        yield ""


def table(*rows: Sequence[str]) -> Iterator[str]:
    """The first row is the head. Columns that hold nothing are left out."""
    kept = [number for number in range(len(rows[0])) if any(row[number] not in ("", DASH) for row in rows[1:])]
    for place, row in enumerate(rows):
        yield "| " + " | ".join(row[number] for number in kept) + " |"
        if place == 0:
            yield "| " + " | ".join("---" for _ in kept) + " |"


def where(results: Results) -> Iterator[str]:
    machine, sources = results["machine"], results["sources"]
    commit = sources["commit"] + (", with changes" if sources["is_changed"] else "")
    loads = [" ".join(f"{share:.2f}" for share in results[name]) for name in ("load_begin", "load_end")]
    yield "## Where and when\n"
    yield from table(
        ("what", "which"),
        ("commit", commit),
        ("build", results["build"]),
        ("measured", f"{results['begin']} to {results['end']}"),
        ("processor", f"{machine['cores']} cores of {machine['cpu']}"),
        ("memory", f"{machine['memory_kib'] / 2**20:.1f} GiB"),
        ("kernel", machine["kernel"]),
        ("`net.core.rmem_max`, `wmem_max`", f"{machine['rmem_max_bytes']}, {machine['wmem_max_bytes']} bytes"),
        ("compiler", sources["rustc"]),
        ("load average over 1, 5 and 15 minutes, before", loads[0]),
        ("the same, after", loads[1]),
    )
    yield "\nBeyond the builds just made, the load before is work of others, which shares the cores with all"
    yield "that is measured: the higher it is, the less the figures say."


def column(samples: Samples, contestant: str, name: str) -> list[float]:
    return [sample[name] for sample in samples.get(contestant, []) if name in sample]


def pairs(samples: Samples, of: str, to: str, name: str) -> str:
    if of not in samples or to not in samples:
        return DASH
    return told(ratios(column(samples, of, name), column(samples, to, name)))


def throughput(results: Results) -> Iterator[str]:
    rows = [throughput_row(case, samples) for case, samples in results["sections"]["throughput"].items()]
    yield "## Delivered at full speed\n"
    yield f"One publisher that never waits, for {results['seconds']:g} s; events that arrived, at all subscribers.\n"
    yield "![Delivered events per second by fan-out and events a datagram](throughput.svg)\n"
    yield from table(
        (
            *("events a datagram", "fan-out", "bus, events/s", "yardstick, events/s", "ratio", "aim"),
            *("CPU of the bus, ns a copy", "of the yardstick", "ratio of CPU", "of published, not delivered"),
        ),
        *rows,
    )


def throughput_row(case: str, samples: Samples) -> tuple[str, ...]:
    fan_out, batch = case.split("/")
    delivered, cpu = "delivered_per_second", "cpu_ns_per_copy"
    aim = "at least 0.90" if batch == "1" else "at least 0.80"
    return (
        batch,
        fan_out,
        *(told(column(samples, contestant, delivered), short) for contestant in (BUS, YARDSTICK)),
        pairs(samples, BUS, YARDSTICK, delivered),
        aim if YARDSTICK in samples else "",
        *(told(column(samples, contestant, cpu)) for contestant in (BUS, YARDSTICK)),
        pairs(samples, BUS, YARDSTICK, cpu),
        percent(column(samples, BUS, "lost_share")),
    )


def percent(shares: Sequence[float]) -> str:
    return f"{100 * spread(shares).median:.1f} %" if shares else DASH


def cost(results: Results) -> Iterator[str]:
    samples: Samples = results["sections"]["cost"]["paced"]
    aims = {"linger 0": "at most 1.15", "linger 500": "at most 0.60"} if YARDSTICK in samples else {}
    yield "## What a copy costs\n"
    yield "50,000 events/s, one a datagram, fan-out 4.\n"
    yield from table(
        ("contestant", "CPU, ns a copy", "to the yardstick", "aim"),
        *(
            (
                name.replace("linger ", "bus, `linger_us` = "),
                told(column(samples, name, "cpu_ns_per_copy")),
                DASH if name == YARDSTICK else pairs(samples, name, YARDSTICK, "cpu_ns_per_copy"),
                aims.get(name, ""),
            )
            for name in samples
        ),
    )


def lingering(results: Results) -> Iterator[str]:
    samples: Samples = results["sections"]["lingering"]["paced"]
    yield "## Lingering\n"
    yield "What `linger_us` trades, by `hailmary bench --rate 50000 --fan-out 4`. With the default, 500,"
    yield "the aim is a 99.9th percentile under 1.5 ms.\n"
    yield "![CPU and latency by linger_us](lingering.svg)\n"
    yield from table(
        ("`linger_us`", "CPU, ns a copy", *(f"{words}, µs" for words in QUANTILES.values())),
        *(
            (name, *(told(column(samples, name, key)) for key in ("cpu_ns_per_copy", *QUANTILES)))
            for name in samples
        ),
    )


def latency(results: Results) -> Iterator[str]:
    samples: Samples = results["sections"]["latency"]["paced"]
    aims = {"p50_us": "at most 1.25", "p99_9_us": "at most 2"}
    yield "## Latency of events that come alone\n"
    yield "1,000 events/s, fan-out 1, from when an event was to be sent to its arrival, beside"
    yield "`benches/relay.rs`: a thread that receives and sends on with blocking calls, and knows nothing"
    yield "of events. Lingering is as by default, which events that come alone are never kept for.\n"
    yield "![Latency of bus and relay](latency.svg)\n"
    yield from table(
        ("latency", "bus, µs", "relay, µs", "ratio", "aim"),
        *(
            (
                words,
                *(told(column(samples, contestant, key)) for contestant in (BUS, RELAY)),
                pairs(samples, BUS, RELAY, key),
                aims.get(key, ""),
            )
            for key, words in QUANTILES.items()
        ),
    )


def topics(results: Results) -> Iterator[str]:
    samples: Samples = results["sections"]["topics"]["full speed"]
    yield "## Many topics\n"
    yield "One publisher at full speed, four subscribers by one wildcard each, by `hailmary bench`.\n"
    yield from against_one(samples, "topics", "at least 0.80")


def workers(results: Results) -> Iterator[str]:
    samples: Samples = results["sections"]["workers"]["full speed"]
    yield "## Data threads\n"
    yield "Four publishers at full speed, fan-out 4, one event a datagram. All clients run on the same"
    yield f"{results['machine']['cores']} cores, so a second thread has only what they leave.\n"
    yield from against_one(samples, "`workers`", "")


def against_one(samples: Samples, what: str, aim: str) -> Iterator[str]:
    delivered = "delivered_per_second"
    yield from table(
        (what, "delivered, events/s", "to that of 1", "aim", "CPU of the bus, ns a copy"),
        *(
            (
                f"{int(name):,}",
                told(column(samples, name, delivered), short),
                DASH if name == "1" else pairs(samples, name, "1", delivered),
                "" if name == "1" else aim,
                told(column(samples, name, "cpu_ns_per_copy")),
            )
            for name in samples
        ),
    )


def scrapes(results: Results) -> Iterator[str]:
    # A record made before this was measured has none.
    for case, samples in results["sections"].get("scrapes", {}).items():
        crowd, per_second = case.split("/")
        size, took = column(samples, SCRAPED, "scrape_bytes"), column(samples, SCRAPED, "scrape_ms")
        yield "## Scrapes\n"
        yield f"20,000 events/s on a topic that one subscriber wants, beside {int(crowd):,} static ones with series"
        yield f"of their own: without scrapes, and with {per_second} a second. A scrape has"
        yield f"{told([size / 2**20 for size in size])} MiB and takes {told(took)} ms. The admin thread, the scraper and all"
        yield "clients share the cores with the data thread.\n"
        yield from table(
            ("", *(f"{words}, µs" for words in QUANTILES.values()), "frames forwarded later than 1 ms", "lost"),
            *(scrapes_row(name, samples) for name in (UNSCRAPED, SCRAPED)),
            ("ratio", *(pairs(samples, SCRAPED, UNSCRAPED, key) for key in QUANTILES), "", ""),
        )


def scrapes_row(name: str, samples: Samples) -> tuple[str, ...]:
    late = [100 * share for share in column(samples, name, "late_share")]
    times = (told(column(samples, name, key)) for key in QUANTILES)
    return (name, *times, f"{told(late)} %", percent(column(samples, name, "lost_share")))


def overload(results: Results) -> Iterator[str]:
    # A record made before this was measured has none.
    for takes, samples in results["sections"].get("overload", {}).items():
        yield "## Overload\n"
        yield f"The bus takes {int(takes):,} events/s and loses less than 1 % of them, where each goes to 16"
        yield "subscribers in datagrams of 508 bytes that nobody reads. A quarter of the events has a topic of high"
        yield "priority, the others one of low priority. The aim: of the first nothing to speak of is lost at twice"
        yield "that load, and no fewer copies are made than at what the bus takes.\n"
        yield from table(
            (
                "load",
                "offered, events/s",
                "copies/s",
                "to those at what it takes",
                "high lost",
                "low lost unchosen",
                "low let go by key",
            ),
            *(overload_row(name, samples) for name in samples),
        )
        yield ""


def overload_row(name: str, samples: Samples) -> tuple[str, ...]:
    lost = (percent(column(samples, name, key)) for key in ("high_lost_share", "low_lost_share", "low_let_go_share"))
    ratio = DASH if name == AT_CAPACITY else pairs(samples, name, AT_CAPACITY, "copies_per_second")
    rates = (told(column(samples, name, key), short) for key in ("offered_per_second", "copies_per_second"))
    return (name, *rates, ratio, *lost)


def memory(results: Results) -> Iterator[str]:
    resident = results["resident_kib"]
    yield "## Memory and rest\n"
    yield "Default configuration, four publishers at full speed with 100 events a datagram, four"
    yield "subscribers. The aim is less than 16 MiB, and no growth.\n"
    yield from table(
        ("bus", "resident, MiB"),
        *((moment(mark), f"{kib / 1024:.1f}") for mark, kib in resident.items()),
    )
    idle = results.get("idle")
    if idle:
        calls = f"{idle['system_calls']} in {idle['seconds']:g} seconds"
        yield f"\nSystem calls of an idle bus, all threads, by strace: {calls}. The aim is 0."


def moment(mark: str) -> str:
    return mark if mark == "idle" else f"{int(mark):,} events counted"


def instructions(results: Results) -> Iterator[str]:
    counts = results["instructions_per_event"]
    yield "## Instructions\n"
    if not counts:
        yield "Not counted: that takes valgrind and `gungraun-runner`."
        return
    yield "In user space, by callgrind, of the core alone: from datagrams in memory to stamped copies in"
    yield "memory. They are the same in every run.\n"
    yield from table(
        ("work", "instructions an event", "aim"),
        *((INSTRUCTIONS[name][0], f"{count:.0f}", INSTRUCTIONS_AIMS.get(name, "")) for name, count in counts.items()),
    )
    yield from routing(counts)


def routing(counts: dict[str, float]) -> Iterator[str]:
    one, many = (counts.get(f"route.of_10_000_topics_to_{who}") for who in ("1_subscriber", "1_000_subscribers"))
    if one and many:
        yield f"\n1,000 subscribers cost {short(many / one)} times what one costs; the aim is at most 2."


def charts(results: Results) -> dict[str, str]:
    sections = results["sections"]
    paced = sections["lingering"]["paced"]
    return {
        "throughput": chart("Delivered at full speed", throughput_panels(sections["throughput"])),
        "lingering": chart("Lingering, at 50,000 events/s and fan-out 4", lingering_panels(paced)),
        "latency": chart("Latency at 1,000 events/s", [latency_panel(sections["latency"]["paced"])]),
    }


def throughput_panels(section: dict[str, Samples]) -> list[Panel]:
    batches = list(dict.fromkeys(case.split("/")[1] for case in section))
    return [throughput_panel(section, batch) for batch in batches]


def throughput_panel(section: dict[str, Samples], batch: str) -> Panel:
    cases = {case.split("/")[0]: samples for case, samples in section.items() if case.split("/")[1] == batch}
    contestants = [name for name in (BUS, YARDSTICK) if all(name in samples for samples in cases.values())]
    events = "1 event" if batch == "1" else f"{batch} events"
    return Panel(
        f"{events} a datagram",
        "subscribers (fan-out)",
        "delivered events/s",
        list(cases),
        [
            Series(name, [spread(column(samples, name, "delivered_per_second")) for samples in cases.values()])
            for name in contestants
        ],
    )


def lingering_panels(samples: Samples) -> list[Panel]:
    def series(name: str, key: str) -> Series:
        return Series(name, spreads(samples, list(samples), key))

    x_title = "linger_us, µs"
    cpu = [series("CPU of the bus", "cpu_ns_per_copy")]
    late = [series("99.9th percentile of latency", "p99_9_us"), series("median latency", "p50_us")]
    return [
        Panel("CPU", x_title, "CPU, ns a copy", list(samples), cpu, "lines"),
        Panel("Latency", x_title, "latency, µs", list(samples), late, "lines", "log"),
    ]


def spreads(samples: Samples, names: Sequence[str], key: str) -> list[Spread]:
    return [spread(column(samples, name, key)) for name in names]


def latency_panel(samples: Samples) -> Panel:
    by_name = [
        Series(name, [spread(column(samples, name, key)) for key in QUANTILES]) for name in (BUS, RELAY)
    ]
    return Panel("Fan-out 1", "share of events", "latency, µs", ["50 %", "99 %", "99.9 %"], by_name, "lines", "log")
