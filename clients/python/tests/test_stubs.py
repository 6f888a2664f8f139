"""The committed stubs are those of the contract."""

from pathlib import Path

import generate_stubs
import pytest
from google.protobuf import descriptor_pb2

from hailmary._wire import bus_pb2


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not generate_stubs.CONTRACT_ROOT.is_dir():
        pytest.skip("the contract is not beside this copy of the client")
    into = tmp_path_factory.mktemp("stubs")
    generate_stubs.generate(into)
    return into


def test_describe_the_contract(generated: Path) -> None:
    contract = descriptor_pb2.FileDescriptorSet()
    contract.ParseFromString(Path(generated, "bus.desc").read_bytes())
    committed = descriptor_pb2.FileDescriptorProto.FromString(bus_pb2.DESCRIPTOR.serialized_pb)
    assert committed == _without_json_names(contract.file[0])


@pytest.mark.parametrize("name", generate_stubs.GENERATED)
def test_are_what_the_generator_makes(generated: Path, name: str) -> None:
    if generate_stubs.installed_generator() != generate_stubs.GENERATOR_VERSION:
        pytest.skip("the pinned generator has no build for this Python")
    assert Path(generate_stubs.WIRE, name).read_text() == Path(generated, name).read_text()


def _without_json_names(
    file: descriptor_pb2.FileDescriptorProto,
) -> descriptor_pb2.FileDescriptorProto:
    """A descriptor set spells names out that a module leaves to the rule."""
    for message in file.message_type:
        for part in (message, *message.nested_type):
            for field in part.field:
                field.ClearField("json_name")
    return file
