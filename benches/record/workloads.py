"""What is measured, in which order, how often: from a plan to samples.

Everything that is compared is measured in turns, round by round, so that both have the same
machine. The result is what `results.json` holds: sections of cases, each with the samples of
every contestant.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import loads
import overload
from loads import Load, Programs, Sample
from processes import Failed

# Datagrams of a turn in the benches of the core: BATCH of benches/load.
BATCH = 64

Samples = dict[str, list[Sample]]
Section = dict[str, Samples]
Contestants = Mapping[str, Callable[[], Sample]]

BUS, YARDSTICK, RELAY = "bus", "yardstick", "relay"
UNSCRAPED, SCRAPED = "no scrapes", "scrapes"
AT_CAPACITY, TWICE, TWICE_CHOSEN = "what it takes", "twice that", "twice that, with priorities"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float = 2.0
    """Of each measurement."""
    relay_seconds: float = 5.0
    fan_outs: tuple[int, ...] = (1, 4, 16)
    batches: tuple[int, ...] = (1, 9, 100)
    lingers_us: tuple[int, ...] = (0, 100, 200, 500, 1_000, 2_000)
    crowd: int = 10_000
    """Static subscribers whose series are scraped."""
    scrapes_per_second: float = 5.0
    scrape_seconds: float = 5.0
    overload_seconds: float = 5.0
    memory_events: tuple[int, ...] = (1_000_000, 5_000_000, 10_000_000)
    memory_seconds_max: float = 60.0
    idle_seconds: float = 5.0


def quick() -> Plan:
    """One short round, to see that all of it works."""
    return Plan(
        rounds=1,
        seconds=0.2,
        relay_seconds=0.2,
        fan_outs=(1, 4),
        batches=(1, 100),
        lingers_us=(0, loads.LINGER_US),
        crowd=100,
        scrapes_per_second=20.0,
        scrape_seconds=0.5,
        overload_seconds=0.5,
        memory_events=(1_000, 10_000),
        memory_seconds_max=10.0,
        idle_seconds=0.5,
    )


def in_turns(rounds: int, name: str, contestants: Contestants) -> Samples:
    samples: Samples = {contestant: [] for contestant in contestants}
    for number in range(rounds):
        for contestant, measure in contestants.items():
            say(f"{name}, {contestant}, round {number + 1} of {rounds}")
            samples[contestant].append(attempt(measure))
    return samples


def attempt(measure: Callable[[], Sample]) -> Sample:
    """Once more where it fails, as a busy machine may have it once in a while: a record has
    hundreds of measurements."""
    try:
        return measure()
    except Failed as failure:
        say(f"  once more: {failure}")
        return measure()


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def beside_yardstick(programs: Programs, load: Load) -> Contestants:
    contestants = {BUS: partial(loads.bus, programs, load)}
    if programs.yardstick:
        contestants[YARDSTICK] = partial(loads.yardstick, programs, load)
    return contestants


def throughput(programs: Programs, plan: Plan) -> Section:
    """At full speed, by fan-out and events a datagram: `FAN_OUT/EVENTS`."""
    section: Section = {}
    for batch in plan.batches:
        for fan_out in plan.fan_outs:
            load = Load(plan.seconds, fan_out=fan_out, events_per_datagram=batch)
            name = f"throughput at fan-out {fan_out}, {batch} events a datagram"
            section[f"{fan_out}/{batch}"] = in_turns(plan.rounds, name, beside_yardstick(programs, load))
    return section


def paced(plan: Plan) -> Load:
    return Load(plan.seconds, events_per_second=50_000)


def cost(programs: Programs, plan: Plan) -> Section:
    """CPU at 50,000 events/s without and with lingering."""
    load = paced(plan)
    contestants: dict[str, Callable[[], Sample]] = {
        f"linger {linger}": partial(loads.bus, programs, load.with_linger(linger)) for linger in (0, loads.LINGER_US)
    }
    if programs.yardstick:
        contestants[YARDSTICK] = partial(loads.yardstick, programs, load)
    return {"paced": in_turns(plan.rounds, "50,000 events/s", contestants)}


def lingering(programs: Programs, plan: Plan) -> Section:
    """Each `linger_us` at 50,000 events/s."""
    contestants = {
        str(linger): partial(loads.bench, programs, paced(plan).with_linger(linger)) for linger in plan.lingers_us
    }
    return {"paced": in_turns(plan.rounds, "lingering", contestants)}


def latency(programs: Programs, plan: Plan) -> Section:
    load = Load(plan.relay_seconds, fan_out=1, events_per_second=1_000)
    contestants = {BUS: partial(loads.bench, programs, load), RELAY: partial(loads.relay, programs, load)}
    return {"paced": in_turns(plan.rounds, "latency", contestants)}


def topics(programs: Programs, plan: Plan) -> Section:
    contestants = {
        str(topics): partial(loads.bench, programs, Load(plan.seconds, topics=topics)) for topics in (1, 1_000)
    }
    return {"full speed": in_turns(plan.rounds, "topics", contestants)}


def workers(programs: Programs, plan: Plan) -> Section:
    contestants = {
        str(workers): partial(loads.bus, programs, Load(plan.seconds, publishers=4, workers=workers))
        for workers in (1, 2)
    }
    return {"full speed": in_turns(plan.rounds, "workers", contestants)}


def scrapes(programs: Programs, plan: Plan) -> Section:
    """20,000 events/s that one of very many subscribers wants, without and with scrapes."""
    load = Load(plan.scrape_seconds, fan_out=1, events_per_second=20_000)
    contestants = {
        name: partial(loads.crowd, programs, load, plan.crowd, per_second)
        for name, per_second in ((UNSCRAPED, 0.0), (SCRAPED, plan.scrapes_per_second))
    }
    return {f"{plan.crowd}/{plan.scrapes_per_second:g}": in_turns(plan.rounds, "scrapes", contestants)}


def overloaded(programs: Programs, plan: Plan) -> Section:
    """At what the bus takes, and twice as much without and with priorities: `CAPACITY`."""
    say("what the bus takes")
    takes = overload.capacity(programs, plan.overload_seconds)
    measure = partial(overload.measure, programs, seconds=plan.overload_seconds)
    contestants = {
        AT_CAPACITY: partial(measure, takes, has_priorities=False),
        TWICE: partial(measure, 2 * takes, has_priorities=False),
        TWICE_CHOSEN: partial(measure, 2 * takes, has_priorities=True),
    }
    return {f"{takes:.0f}": in_turns(plan.rounds, "overload", contestants)}


SECTIONS: dict[str, Callable[[Programs, Plan], Section]] = {
    "throughput": throughput,
    "cost": cost,
    "lingering": lingering,
    "latency": latency,
    "topics": topics,
    "workers": workers,
    "scrapes": scrapes,
    "overload": overloaded,
}


def rest(programs: Programs, plan: Plan) -> dict[str, object]:
    """What is measured once: it differs little from run to run."""
    say("memory")
    found: dict[str, object] = {
        "resident_kib": loads.memory(programs, list(plan.memory_events), plan.memory_seconds_max)
    }
    strace = shutil.which("strace")
    if strace:
        say("system calls")
        calls = loads.idle_system_calls(programs, strace, plan.idle_seconds)
        found["idle"] = {"seconds": plan.idle_seconds, "system_calls": calls}
    return found


# Benchmarks of benches/instructions.rs: what each is called here, and its events.
INSTRUCTIONS = {
    "decode.of_1_event": ("decode a datagram of 1 event", 1),
    "decode.of_9_events": ("decode a datagram of 9 events", 9),
    "decode.of_100_events": ("decode a datagram of 100 events", 100),
    "turn.fan_out_1_of_1_event": ("a whole turn, fan-out 1, 1 event a datagram", BATCH),
    "turn.fan_out_4_of_1_event": ("a whole turn, fan-out 4, 1 event a datagram", BATCH),
    "turn.fan_out_16_of_1_event": ("a whole turn, fan-out 16, 1 event a datagram", BATCH),
    "turn.fan_out_4_of_9_events": ("a whole turn, fan-out 4, 9 events a datagram", 9 * BATCH),
    "turn.fan_out_4_of_100_events": ("a whole turn, fan-out 4, 100 events a datagram", 100 * BATCH),
    "turn.fan_out_4_of_100_events_and_1_000_topics": (
        "the same, 1,000 topics round robin",
        100 * BATCH,
    ),
    "features.plain": ("a turn, fan-out 4, 1 event with a key a datagram", BATCH),
    "features.a_group_by_key": ("the same, and the four are a group", BATCH),
    "features.a_group_without_keys": ("a group, and events without keys", BATCH),
    "features.all_in_a_sample": ("a sample of nearly all", BATCH),
    "features.half_in_a_sample": ("a sample of half", BATCH),
    "features.under_a_subscribers_rate": ("each of the four under its rate", BATCH),
    "features.over_a_subscribers_rate": ("each of the four over its rate", BATCH),
    "features.under_a_topics_rate": ("under the topic's rate", BATCH),
    "features.over_a_topics_rate": ("over the topic's rate", BATCH),
    "features.fresh": ("a topic with `max_age_ms`", BATCH),
    "features.of_low_priority": ("a topic with low priority", BATCH),
    "features.half_let_go": ("the same, half of it let go", BATCH),
    "features.nearly_all_let_go": ("the same, nearly all of it let go", BATCH),
    "route.of_10_000_topics_to_1_subscriber": (
        "take in events of 10,000 topics, all for 1 subscriber",
        160 * BATCH,
    ),
    "route.of_10_000_topics_to_1_000_subscribers": (
        "take in events of 10,000 topics, for 1,000 static subscribers with ten each",
        160 * BATCH,
    ),
}


def instructions_per_event(directory: Path) -> dict[str, float]:
    """By benchmark, as far as they were run."""
    counts = {name: loads.instructions(directory, name) for name in INSTRUCTIONS}
    return {name: count / INSTRUCTIONS[name][1] for name, count in counts.items() if count is not None}
