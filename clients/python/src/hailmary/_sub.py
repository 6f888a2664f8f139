"""`python -m hailmary sub`: prints events as they come, or hands them to a function."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import re
import time
from typing import Any, Callable, Union

from . import _arguments
from ._address import parse, resolve
from ._arguments import Failure
from ._endpoint import Endpoint, Refused
from ._event import Event, Loss
from ._printer import FORMATS, Printer, summary, tell
from ._runner import WORKERS_MAX, Runner
from ._signals import stopped_by_signals
from ._subscription import Subscription, Terms, deadline, make_request

_LOOK_UP_SECONDS = 0.1
"""How often it is looked whether the bus has refused, before there is a lease."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All but those of the command itself."""
    add = parser.add_argument
    add(
        "patterns",
        nargs="+",
        metavar="PATTERN",
        type=_arguments.pattern,
        help="what to subscribe to: '*' stands for one token, a last '>' for one or more",
    )
    add(
        "--from",
        dest="address",
        metavar="ADDR",
        type=_arguments.address,
        default=_arguments.default_address(),
        help="the bus: HOST:PORT, udp://HOST:PORT or unix:///PATH [default: %(default)s]",
    )
    add("--group", type=_name, help="share the events with the group's other members")
    add("--name", type=_name, help="what the bus's metrics call this subscriber")
    add(
        "--sample",
        metavar="SHARE",
        type=_arguments.share,
        default=0.0,
        help="take this share of the events, over 0 and at most 1; equal keys together",
    )
    add(
        "--max-rate",
        metavar="EVENTS_PER_SECOND",
        type=_arguments.whole(1, 2**32 - 1),
        default=0,
        help="take at most so many events a second; the bus drops the others",
    )
    add("--format", choices=list(FORMATS), help="how events are printed [default: text]")
    add("--count", type=_arguments.whole(0, 2**64 - 1), help="end after so many events")
    add(
        "--timeout",
        metavar="SECONDS",
        type=_arguments.seconds,
        help="end after so long; with --count, exit 1 if they have not come by then",
    )
    add(
        "--notices",
        action="store_true",
        help="tell of losses where they are known: on standard error, as objects among the "
        "events with --format json, or to the function with --call",
    )
    add(
        "--call",
        metavar="MODULE:FUNCTION",
        type=_function_name,
        help="print nothing, and call this with each event",
    )
    add("--workers", type=_arguments.whole(1, WORKERS_MAX), help="how many threads call it [1]")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Till enough events came, the time is over, or a signal comes.

    Raises `Failure`.
    """
    if arguments.call is None:
        if arguments.workers is not None:
            parser.error("argument --workers: goes with --call")
        _print_events(arguments)
        return
    for flag in ("format", "count"):
        if getattr(arguments, flag) is not None:
            parser.error(f"argument --{flag}: not allowed with argument --call")
    _call_function(arguments)


def _print_events(arguments: argparse.Namespace) -> None:
    give_up_at = deadline(arguments.timeout)
    wanted = math.inf if arguments.count is None else arguments.count
    printer = Printer(arguments.format or "text", arguments.notices)
    subscription = _open(arguments)
    try:
        with stopped_by_signals(subscription.close):
            _follow(subscription, printer, wanted, give_up_at, arguments.address)
    finally:
        subscription.close()
    printer.finish(subscription.stats())
    if printer.failure is not None:
        raise Failure(f"cannot print the events: {printer.failure.strerror}")
    if printer.printed < wanted < math.inf and time.monotonic() >= give_up_at:
        raise Failure(f"{printer.printed} of {wanted} events came in time")


def _follow(
    subscription: Subscription[Union[Event, Loss]],
    printer: Printer,
    wanted: float,
    give_up_at: float,
    address: str,
) -> None:
    is_announced = False
    while printer.printed < wanted and printer.works and not subscription.closed:
        rest = give_up_at - time.monotonic()
        if rest <= 0.0:
            return
        if not is_announced:
            is_announced = _announce(subscription, address)
            rest = rest if is_announced else min(rest, _LOOK_UP_SECONDS)
        item = _receive(subscription, 0.0)
        if item is None:
            # All is shown before it waits.
            printer.flush()
            item = _receive(subscription, rest)
        if item is not None:
            printer.print(item)


def _announce(subscription: Subscription[Union[Event, Loss]], address: str) -> bool:
    """Says once there is a lease. A bus that is full is not waited for here."""
    if subscription.has_lease:
        tell("subscribed")
        return True
    if subscription.refusal is not None:
        raise Failure(f"cannot subscribe at {address}: {subscription.refusal.value}")
    return False


def _receive(
    subscription: Subscription[Union[Event, Loss]], timeout: float
) -> Union[Event, Loss, None]:
    try:
        return subscription.recv(None if timeout == math.inf else timeout)
    except (Refused, OSError) as error:
        raise Failure(str(error)) from None


def _open(arguments: argparse.Namespace) -> Subscription[Union[Event, Loss]]:
    request = make_request(tuple(arguments.patterns), **_terms(arguments))
    bus = parse(arguments.address)
    try:
        endpoint = Endpoint(request, bus, resolve(bus))
    except OSError as error:
        why = error.strerror or error
        raise Failure(f"cannot subscribe at {arguments.address}: {why}") from None
    return Subscription(endpoint, True)


def _call_function(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    give_up_at = deadline(arguments.timeout)
    runner = Runner(
        _load(arguments.call),
        *arguments.patterns,
        workers=arguments.workers or 1,
        notices=arguments.notices,
        address=arguments.address,
        **_terms(arguments),
    )
    try:
        with stopped_by_signals(runner.ask_to_stop):
            if runner.start(arguments.timeout):
                tell("subscribed")
            rest = give_up_at - time.monotonic()
            runner.wait(None if rest == math.inf else max(0.0, rest))
    except (Refused, OSError) as error:
        raise Failure(str(error)) from None
    finally:
        runner.stop()
        tell(summary(runner.stats()))


def _terms(arguments: argparse.Namespace) -> Terms:
    return {
        "name": arguments.name or "",
        "group": arguments.group or "",
        "sample": arguments.sample,
        "events_per_second": arguments.max_rate,
    }


def _load(name: str) -> Callable[[Any], object]:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise Failure(f"cannot call {name}: {error}") from error
    if not callable(found):
        raise Failure(f"cannot call {name}: it is no function")
    function: Callable[[Any], object] = found
    return function


def _function_name(text: str) -> str:
    module, _, path = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
        raise argparse.ArgumentTypeError("write MODULE:FUNCTION, as in shop.search:index")
    return text


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a name is 1 to 64 of A-Z a-z 0-9 . _ and -")
    return text
