"""Addresses, as the contract writes them."""

import socket

import pytest

from hailmary._address import UdpAddress, UnixAddress, parse, resolve


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7277", UdpAddress("127.0.0.1", 7277)),
        ("udp://bus.example:1", UdpAddress("bus.example", 1)),
        ("event_bus:65535", UdpAddress("event_bus", 65535)),
        ("[::1]:9", UdpAddress("::1", 9)),
        ("udp://[fe80::1%eth0]:9", UdpAddress("fe80::1%eth0", 9)),
        ("unix:///run/hailmary/bus.sock", UnixAddress("/run/hailmary/bus.sock")),
    ],
)
def test_the_three_forms_are_read(text: str, address: object) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("http://a:1", "scheme"),
        ("UDP://a:1", "scheme"),
        ("", "port"),
        ("localhost", "port"),
        ("a:0", "port"),
        ("a:65536", "port"),
        ("a:+1", "port"),
        ("a:1 ", "port"),
        ("a:1\n", "port"),
        ("a:\u0661", "port"),
        (":7277", "host"),
        ("a b:1", "host"),
        ("[a]:1", "brackets|host"),
        ("::1:7277", "brackets"),
        ("unix://a", "path"),
        ("unix:///", "path"),
        ("unix:///a\0b", "path"),
        ("unix:///" + "x" * 107, "path"),
    ],
)
def test_a_mistake_is_named(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse(text)


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAILMARY_BUS", raising=False)
    assert parse(None) == UdpAddress("127.0.0.1", 7277)
    monkeypatch.setenv("HAILMARY_BUS", "")
    assert parse(None) == UdpAddress("127.0.0.1", 7277)
    monkeypatch.setenv("HAILMARY_BUS", "unix:///a/b")
    assert parse(None) == UnixAddress("/a/b")


def test_ipv4_is_taken_where_a_name_has_both(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", 5, 0, 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 5)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert resolve(UdpAddress("localhost", 5)) == (socket.AF_INET, ("127.0.0.1", 5))
    both.pop()
    assert resolve(UdpAddress("localhost", 5)) == (socket.AF_INET6, ("::1", 5, 0, 0))
