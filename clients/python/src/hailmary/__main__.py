"""`python -m hailmary`: publish and subscribe from the command line, or as a service.

The words, the output and the exit statuses are those of the program `hailmary`:
0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

from . import _pub, _sub
from ._arguments import Failure
from ._printer import tell


def main(words: Optional[Sequence[str]] = None) -> int:
    """Runs a command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m hailmary", description="Publish to and subscribe at a Hail Mary bus."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command, does in (
        ("sub", _sub, "print events as they come, or hand them to a function"),
        ("pub", _pub, "publish one event, or many"),
    ):
        parser_of_command = commands.add_parser(name, help=does, description=f"To {does}.")
        command.add_arguments(parser_of_command)
        parser_of_command.set_defaults(run=command.run, parser=parser_of_command)
    arguments = parser.parse_args(words)
    try:
        arguments.run(arguments.parser, arguments)
    except Failure as failure:
        tell(f"hailmary: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
