"""The process's own publisher, for who needs no more than one.

Owns when it is made, and which one it is. It may be made by the first `publish()`,
and then no name is looked up, since that may wait: a look-up happens in
`default_publisher()` alone. There is no lock, since a child may be forked while
another thread is here.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Optional

from ._address import BUS_VARIABLE, Address, Peer, UnixAddress, parse
from ._publisher import Publisher
from ._trouble import warn

# At most one publisher, by this name: `setdefault` lets exactly one of several
# threads win.
_DEFAULT = "default"
_publishers: dict[str, Publisher] = {}


def default_publisher() -> Publisher:
    """The publisher that `hailmary.publish` and `Topic.publish` use: to the bus
    that the environment's `HAILMARY_BUS` names, else the one at `127.0.0.1:7277`.

    Call it when the program starts if `HAILMARY_BUS` may hold a host's name: the
    name is looked up here, which may wait for a name server, and never while
    something is published. Until then, events are dropped as `unreachable`, and a
    warning says so. It is looked up by each call until that succeeds. Addresses in
    numbers, `localhost` and Unix paths need no look-up.

    Never raises. Where `HAILMARY_BUS` is no address, a warning says so, and all
    events are dropped as `unreachable`.

    One for all threads; a child after a fork goes on with a flow of its own.
    """
    publisher = _publishers.get(_DEFAULT) or _made()
    if isinstance(publisher, _DefaultPublisher):
        publisher.look_up()
    return publisher


def publish(
    topic: str,
    payload: bytes,
    *,
    key: bytes = b"",
    attributes: Optional[Mapping[str, str]] = None,
    time_unix_nano: Optional[int] = None,
) -> None:
    """Publishes by the process's default publisher; see `Publisher.publish`, and
    `default_publisher` for where to.

        >>> import hailmary
        >>> hailmary.publish("search.index.photo", b"42", key=b"42")
    """
    ready_publisher().publish(
        topic, payload, key=key, attributes=attributes, time_unix_nano=time_unix_nano
    )


def ready_publisher() -> Publisher:
    """The default publisher as it is, or made without looking a name up."""
    publisher = _publishers.get(_DEFAULT)
    if publisher is None:
        publisher = _made()
        if isinstance(publisher, _DefaultPublisher) and publisher.leaves_name:
            warn(
                f"events are dropped: {BUS_VARIABLE} names a host, and a name is looked up by "
                "hailmary.default_publisher() alone; call it when the program starts"
            )
    return publisher


@contextmanager
def publishing_by(publisher: Publisher) -> Generator[None, None, None]:
    """Makes it the default publisher until the context ends."""
    before = _publishers.get(_DEFAULT)
    _publishers[_DEFAULT] = publisher
    try:
        yield
    finally:
        if before is None:
            _publishers.pop(_DEFAULT, None)
        else:
            _publishers[_DEFAULT] = before


def _made() -> Publisher:
    return _publishers.setdefault(_DEFAULT, _DefaultPublisher())


class _DefaultPublisher(Publisher):
    """To the bus that the environment names. Making it does not wait."""

    leaves_name = False
    """Whether there is a name, which was not looked up when it was made."""

    _is_made = False

    def __init__(self) -> None:
        super().__init__()
        self._is_made = True

    def look_up(self) -> None:
        """Looks the bus's name up, unless it is known."""
        if self._sender.link.peer is None:
            self.resolve()

    def _find_bus(self) -> bool:
        if self._is_made:
            return super()._find_bus()
        try:
            peer = _peer_without_look_up(parse(None))
        except ValueError:  # There is nothing to look up, and this says so.
            return super()._find_bus()
        if peer is None:
            self.leaves_name = True
            return False
        self._sender.move(peer)
        return True


def _peer_without_look_up(address: Address) -> Optional[Peer]:
    """The peer of a Unix path, of numbers, or of `localhost`, which is loopback
    whatever a name server says (RFC 6761, section 6.3); `None` of other names."""
    if isinstance(address, UnixAddress):
        return Peer(socket.AF_UNIX, address.path)
    host = "127.0.0.1" if address.host.lower() == "localhost" else address.host
    try:
        found = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError):
        return None
    family, _, _, _, socket_address = found[0]
    return Peer(family, socket_address)
