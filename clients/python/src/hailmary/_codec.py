"""Turns values into payloads and back.

Owns what a codec is, and three of them: JSON, protobuf messages, raw bytes. A
codec is told nothing of the event around the payload and adds nothing to it: what
a payload is, the topic says, so both sides need only agree on the topic.
"""

from __future__ import annotations

from json import JSONDecoder, JSONEncoder
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

T = TypeVar("T")
MessageType = TypeVar("MessageType", bound="Message")


class Codec(Protocol[T]):
    """Any object with these two methods; `hailmary.json`, `hailmary.raw` and
    what `hailmary.protobuf()` returns are some.

    One for values that the standard library pickles, between programs that
    trust each other:

        >>> import pickle
        >>> class Pickled:
        ...     def encode(self, value: object) -> bytes:
        ...         return pickle.dumps(value)
        ...     def decode(self, payload: bytes) -> object:
        ...         return pickle.loads(payload)
        >>> Pickled().decode(Pickled().encode({1, 2}))
        {1, 2}

    It is called by any thread, so it keeps no state between calls.
    """

    def encode(self, value: T) -> bytes:
        """The value as a payload. Raises any exception if it cannot be one."""
        ...

    def decode(self, payload: bytes) -> T:
        """The value of a payload. Raises any exception if it is none: it may
        come from anybody who may publish."""
        ...


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


class _Json:
    """What `json.dumps` and `json.loads` take and give, strictly."""

    def __init__(self) -> None:
        self._encode = JSONEncoder(
            ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
        ).encode
        self._decode = JSONDecoder(parse_constant=_refuse_constant).decode

    def encode(self, value: Any) -> bytes:
        return self._encode(value).encode("utf-8")

    def decode(self, payload: bytes) -> Any:
        # Not `json.loads`, which would guess UTF-16 and UTF-32 too.
        return self._decode(payload.decode("utf-8"))


class _Raw:
    """Nothing to do. The publisher checks that it is bytes."""

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, payload: bytes) -> bytes:
        return payload


class _Protobuf:
    """Messages of one class."""

    def __init__(self, message_class: type[MessageType]) -> None:
        self._class = message_class

    def encode(self, value: Message) -> bytes:
        if not isinstance(value, self._class):
            raise TypeError(f"a {self._class.__name__} is published, not a {type(value).__name__}")
        return value.SerializeToString(deterministic=True)

    def decode(self, payload: bytes) -> Any:
        return self._class.FromString(payload)


json: Codec[Any] = _Json()
"""JSON as compact UTF-8, sorted by key, so that equal values are equal bytes.

    >>> json.encode({"id": 42, "by": "zoë"}).decode()
    '{"by":"zoë","id":42}'

Takes what `json.dumps` takes, but no NaN and no infinity, which are no JSON:
`TypeError`, `ValueError` or, nested too deep, `RecursionError`. Tuples come back
as lists, and a dictionary's keys as `str`.
"""

raw: Codec[bytes] = _Raw()
"""The bytes themselves.

    >>> raw.decode(raw.encode(b"42"))
    b'42'
"""


def protobuf(message_class: type[MessageType]) -> Codec[MessageType]:
    """Messages of this class, as protobuf writes them.

        >>> from google.protobuf.wrappers_pb2 import Int64Value
        >>> protobuf(Int64Value).encode(Int64Value(value=42))
        b'\\x08*'

    Encoding raises `TypeError` for anything else, and `EncodeError` of protobuf
    for a message that lacks a required field. Equal messages are equal bytes, as
    long as the protobuf library stays the same.
    """
    return _Protobuf(message_class)
