from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("events", "stamp", "subscribe", "unsubscribe", "challenge", "lease", "refusal", "ping", "pong", "seal", "padding")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBE_FIELD_NUMBER: _ClassVar[int]
    UNSUBSCRIBE_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    stamp: Stamp
    subscribe: Subscribe
    unsubscribe: Unsubscribe
    challenge: Challenge
    lease: Lease
    refusal: Refusal
    ping: Ping
    pong: Pong
    seal: Seal
    padding: bytes
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping[str, object]]]] = ..., stamp: _Optional[_Union[Stamp, _Mapping[str, object]]] = ..., subscribe: _Optional[_Union[Subscribe, _Mapping[str, object]]] = ..., unsubscribe: _Optional[_Union[Unsubscribe, _Mapping[str, object]]] = ..., challenge: _Optional[_Union[Challenge, _Mapping[str, object]]] = ..., lease: _Optional[_Union[Lease, _Mapping[str, object]]] = ..., refusal: _Optional[_Union[Refusal, _Mapping[str, object]]] = ..., ping: _Optional[_Union[Ping, _Mapping[str, object]]] = ..., pong: _Optional[_Union[Pong, _Mapping[str, object]]] = ..., seal: _Optional[_Union[Seal, _Mapping[str, object]]] = ..., padding: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("topic", "payload", "key", "time_unix_nano", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    topic: str
    payload: bytes
    key: bytes
    time_unix_nano: int
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, topic: _Optional[str] = ..., payload: _Optional[bytes] = ..., key: _Optional[bytes] = ..., time_unix_nano: _Optional[int] = ..., attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Stamp(_message.Message):
    __slots__ = ("sender", "sequence", "dropped", "hops", "weight")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    sender: int
    sequence: int
    dropped: int
    hops: int
    weight: float
    def __init__(self, sender: _Optional[int] = ..., sequence: _Optional[int] = ..., dropped: _Optional[int] = ..., hops: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class Subscribe(_message.Message):
    __slots__ = ("topics", "group", "name", "lease_ms", "cookie", "max_frame_bytes", "sample", "events_per_second", "report", "nonce")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    group: str
    name: str
    lease_ms: int
    cookie: bytes
    max_frame_bytes: int
    sample: float
    events_per_second: int
    report: Report
    nonce: int
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., group: _Optional[str] = ..., name: _Optional[str] = ..., lease_ms: _Optional[int] = ..., cookie: _Optional[bytes] = ..., max_frame_bytes: _Optional[int] = ..., sample: _Optional[float] = ..., events_per_second: _Optional[int] = ..., report: _Optional[_Union[Report, _Mapping[str, object]]] = ..., nonce: _Optional[int] = ...) -> None: ...

class Unsubscribe(_message.Message):
    __slots__ = ("cookie", "nonce")
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    cookie: bytes
    nonce: int
    def __init__(self, cookie: _Optional[bytes] = ..., nonce: _Optional[int] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("cookie", "nonce")
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    cookie: bytes
    nonce: int
    def __init__(self, cookie: _Optional[bytes] = ..., nonce: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("bus", "lease_ms", "cookie", "nonce")
    BUS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    COOKIE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    bus: int
    lease_ms: int
    cookie: bytes
    nonce: int
    def __init__(self, bus: _Optional[int] = ..., lease_ms: _Optional[int] = ..., cookie: _Optional[bytes] = ..., nonce: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "nonce")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Refusal.Reason]
        NOT_ALLOWED: _ClassVar[Refusal.Reason]
        BAD_TOPIC: _ClassVar[Refusal.Reason]
        BAD_REQUEST: _ClassVar[Refusal.Reason]
        FULL: _ClassVar[Refusal.Reason]
        UNKNOWN_LEASE: _ClassVar[Refusal.Reason]
    UNSPECIFIED: Refusal.Reason
    NOT_ALLOWED: Refusal.Reason
    BAD_TOPIC: Refusal.Reason
    BAD_REQUEST: Refusal.Reason
    FULL: Refusal.Reason
    UNKNOWN_LEASE: Refusal.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    reason: Refusal.Reason
    nonce: int
    def __init__(self, reason: _Optional[_Union[Refusal.Reason, str]] = ..., nonce: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("bus", "received", "lost", "dropped")
    BUS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    bus: int
    received: int
    lost: int
    dropped: int
    def __init__(self, bus: _Optional[int] = ..., received: _Optional[int] = ..., lost: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("nonce", "bus", "received", "lost")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    BUS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    bus: int
    received: int
    lost: int
    def __init__(self, nonce: _Optional[int] = ..., bus: _Optional[int] = ..., received: _Optional[int] = ..., lost: _Optional[int] = ...) -> None: ...

class Seal(_message.Message):
    __slots__ = ("key_id", "time_unix", "mac")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    key_id: int
    time_unix: int
    mac: bytes
    def __init__(self, key_id: _Optional[int] = ..., time_unix: _Optional[int] = ..., mac: _Optional[bytes] = ...) -> None: ...
