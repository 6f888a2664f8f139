"""Client of Hail Mary, a best-effort event bus on datagrams.

    from hailmary import Publisher, subscribe

    Publisher().publish("search.index.photo", b"42")

    for event in subscribe("search.>"):
        print(event.topic, event.payload)

What is published may be lost; every loss is counted. See `Publisher`,
`subscribe` and the README.
"""

from ._batch import Batch
from ._endpoint import Refused
from ._event import Event, Loss
from ._lease import Reason
from ._ping import Pong
from ._publisher import Publisher
from ._runner import Runner, RunnerStats, run
from ._sender import PublisherStats
from ._session import SubscriptionStats
from ._subscription import Subscription, subscribe

__all__ = [
    "Batch",
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
    "run",
    "subscribe",
]
