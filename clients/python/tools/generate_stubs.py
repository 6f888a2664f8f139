"""Makes `hailmary/_wire/bus_pb2.py` and its type stubs from the contract.

Run it after a change to `bus.proto`, with the `test` extra installed:

    python clients/python/tools/generate_stubs.py

The generator is pinned to the newest one whose output loads under every
protobuf runtime from 4.25 on. Later ones make modules that refuse all runtimes
but those of their own and the next major version.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

GENERATOR_VERSION = "1.64.3"

CLIENT = Path(__file__).resolve().parent.parent
WIRE = CLIENT / "src" / "hailmary" / "_wire"
# Not part of the source distribution: beside the client in the repository.
CONTRACT_ROOT = CLIENT.parent.parent / "proto"

# The path under which the file is known to protobuf's registry of descriptors,
# which all modules of a process share: `bus.proto` alone would meet others.
CONTRACT = "hailmary/v1/bus.proto"

GENERATED = ("bus_pb2.py", "bus_pb2.pyi")


def installed_generator() -> str:
    """The version of grpcio-tools that is installed."""
    return importlib.metadata.version("grpcio-tools")


def generate(into: Path) -> None:
    """Writes the generated files, and `bus.desc`, into the directory `into`."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={CONTRACT_ROOT}",
                f"--proto_path={files('grpc_tools') / '_proto'}",
                f"--python_out={scratch}",
                f"--pyi_out={scratch}",
                f"--descriptor_set_out={into / 'bus.desc'}",
                CONTRACT,
            ]
        )
        if status != 0:
            raise RuntimeError(f"protoc failed with status {status}")
        for name in GENERATED:
            shutil.copy(Path(scratch, CONTRACT).with_name(name), into / name)
    complete_types(into / "bus_pb2.pyi")


def complete_types(stubs: Path) -> None:
    """Says what the generator leaves open: mappings of what to what. Else the
    types of all that touches a message count as partly unknown."""
    stubs.write_text(stubs.read_text().replace("_Mapping]", "_Mapping[str, object]]"))


def main() -> int:
    if installed_generator() != GENERATOR_VERSION:
        print(f"needs grpcio-tools {GENERATOR_VERSION}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        for name in GENERATED:
            shutil.copy(Path(scratch, name), WIRE / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
