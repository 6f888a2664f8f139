"""Where a bus is: the address as people and configurations write it.

Owns parsing, the environment's default, and the one look-up of a name. It opens
no socket. Nothing here runs while an event is published, so that publishing
never waits for a name server.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple, Optional, Union

BUS_VARIABLE = "HAILMARY_BUS"
"""The environment variable that clients take their default address from."""

BUS_ADDRESS = "127.0.0.1:7277"
"""Where a bus listens unless told otherwise: loopback alone."""

# `sockaddr_un` holds 108 bytes on Linux, the closing zero included (unix(7)).
_UNIX_PATH_BYTES_MAX = 107

# Letters, digits, hyphens and dots, at most 253 of them (RFC 1035, section
# 2.3.4). Underscores are no part of a host's name, but container networks use
# them.
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_PORT = re.compile(r"[0-9]{1,5}")
_FORMS = "write HOST:PORT, udp://HOST:PORT or unix:///PATH"

# A path, or a host and port with what the family adds.
SocketAddress = Union[str, tuple[object, ...]]


class UdpAddress(NamedTuple):
    """A UDP socket by its host, a name or a number without brackets, and port."""

    host: str
    port: int


class UnixAddress(NamedTuple):
    """A Unix datagram socket by its absolute path."""

    path: str


Address = Union[UdpAddress, UnixAddress]


class Peer(NamedTuple):
    """A socket of another's, as the socket calls want it."""

    family: socket.AddressFamily
    address: SocketAddress


def parse(text: Optional[str]) -> Address:
    """Reads an address; `None` stands for the environment's, or the default.

    Raises `ValueError` if the text is no address.
    """
    if text is None:
        text = os.environ.get(BUS_VARIABLE) or BUS_ADDRESS
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _parse_udp(text, text)
    if scheme == "udp":
        return _parse_udp(text, rest)
    if scheme == "unix":
        return _parse_unix(text, rest)
    raise ValueError(f"{text!r}: unknown scheme; {_FORMS}")


def _parse_udp(text: str, host_and_port: str) -> UdpAddress:
    host, separator, port = host_and_port.rpartition(":")
    if not separator or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{text!r}: no valid port at the end; {_FORMS}")
    return UdpAddress(_parse_host(text, host), int(port))


def _parse_host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
        return host[1:-1]
    if ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, as in [::1]:7277")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{text!r}: no valid host before the port; {_FORMS}")
    return host


def _is_ipv6(host: str) -> bool:
    # The scope of a link-local address is taken off: Python 3.9 knows it,
    # but not every name that an interface can have.
    try:
        ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _parse_unix(text: str, path: str) -> UnixAddress:
    names_a_file = path.startswith("/") and not path.endswith("/") and "\0" not in path
    if not names_a_file or len(os.fsencode(path)) > _UNIX_PATH_BYTES_MAX:
        raise ValueError(
            f"{text!r}: no absolute path of 2 to {_UNIX_PATH_BYTES_MAX} bytes; {_FORMS}"
        )
    return UnixAddress(path)


def resolve(address: Address) -> Peer:
    """Looks a host up, which may wait for a name server.

    Where a name has both kinds of address, an IPv4 one is taken: a bus listens
    at 127.0.0.1 by default, and a datagram to the ::1 of `localhost` would find
    nobody without a word. Raises `OSError` if the name has no address.
    """
    if isinstance(address, UnixAddress):
        return Peer(socket.AF_UNIX, address.path)
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    except UnicodeError as error:  # A part of the name is empty or too long.
        raise OSError(f"{address.host!r} is no name") from error
    return choose(address, found)


def choose(address: UdpAddress, found: Iterable[tuple[Any, ...]]) -> Peer:
    """The one of what `getaddrinfo` found; see `resolve`."""
    usable = [
        Peer(family, socket_address)
        for family, _, _, _, socket_address in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]
    if not usable:
        raise OSError(f"{address.host!r} has no IP address")
    return min(usable, key=lambda peer: peer.family != socket.AF_INET)
