"""Client of Hail Mary, a best-effort event bus on datagrams.

    from hailmary import Publisher, subscribe

    Publisher().publish("search.index.photo", b"42")

    for event in subscribe("search.>"):
        print(event.topic, event.payload)

What is published may be lost; every loss is counted. See `Publisher`,
`subscribe` and the README.
"""

import importlib
from typing import TYPE_CHECKING

from . import otel
from ._batch import Batch
from ._codec import Codec, protobuf, raw
from ._codec import json as json  # not in __all__: `*` must not hide the library's
from ._default import default_publisher, publish
from ._event import Event, Loss
from ._publisher import Publisher
from ._sender import Pong, PublisherStats
from ._typed import DecodeError, Topic, TopicSubscription

if TYPE_CHECKING:
    from ._endpoint import Refused
    from ._lease import Reason
    from ._runner import Runner, RunnerStats, run
    from ._session import SubscriptionStats
    from ._subscription import Subscription, subscribe

__all__ = [
    "Batch",
    "Codec",
    "DecodeError",
    "Event",
    "Loss",
    "Pong",
    "Publisher",
    "PublisherStats",
    "Reason",
    "Refused",
    "Runner",
    "RunnerStats",
    "Subscription",
    "SubscriptionStats",
    "Topic",
    "TopicSubscription",
    "default_publisher",
    "otel",
    "protobuf",
    "publish",
    "raw",
    "run",
    "subscribe",
]

# What subscribing takes is imported where it is first asked for: it needs protobuf,
# which takes longer to import than all that publishing needs.
_MODULES = {
    "Reason": "_lease",
    "Refused": "_endpoint",
    "Runner": "_runner",
    "RunnerStats": "_runner",
    "Subscription": "_subscription",
    "SubscriptionStats": "_session",
    "run": "_runner",
    "subscribe": "_subscription",
}

if not TYPE_CHECKING:  # To a type checker, all attributes would be there.

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *_MODULES})
