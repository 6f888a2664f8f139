#!/usr/bin/env python3
"""Writes the seeds anew: what each target begins with, small, from the shared vectors.

Inputs that are tapes of decisions need little: libFuzzer finds the decisions itself, but for those
that many others must come before, such as a lease. What has a grammar (frames, configurations,
HTTP) is given by example.
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parent / "tests" / "vectors"

# The longest seed, in bytes.
SEED_BYTES_MAX = 1_000


def write(target: str, name: str, data: bytes) -> None:
    directory = HERE / "seeds" / target
    directory.mkdir(parents=True, exist_ok=True)
    slug = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    if len(data) <= SEED_BYTES_MAX:
        (directory / slug[:60]).write_bytes(data)


def frames() -> None:
    for case in json.loads((VECTORS / "frames.json").read_text())[::4]:
        if "repeat" not in case:
            write("frame", case["name"], b"\0" + bytes.fromhex(case["hex"]))
    write("frame", "the most events", b"\3\x0a\0")
    write("frame", "a datagram full of events", b"\3\x0a\x09\x0a\x03a.b\x12\x02xx")
    write("frame", "a tape of shapes", b"\1" + bytes(range(2, 250)) * 2)


def topics() -> None:
    lines = ["a.b.c", "a.*.c", "a.>", ">", "*", "_hailmary.canary.0", "_hailmary.>", "A-Z_a:/9"]
    for first in range(0, len(lines), 2):
        write("topics", f"some {first}", "\n".join(lines[first:] + lines[:first]).encode())


def tapes() -> None:
    for target in ("core", "flow", "ping", "routes", "subscription"):
        write(target, "falling", bytes(range(255, -1, -1)))
        write(target, "rising", bytes(range(256)))
        write(target, "strides", bytes(n * 37 % 256 for n in range(400)))


# Rules of access, as src/core/make.rs reads them off a tape: everybody may, or nobody but for
# those that are added, by place in its tables.
ALL, NONE = 0, 3
NETWORK_10, ALL_V4, USER_7, GROUP_70, GROUP_7 = 0, 6, 8, 9, 10
EVERYTHING, BELOW_A, A_B = 0, 3, 4
ALLOW, DENY = 0, 1


def deed(base: int, *rules: tuple[int, int, int]) -> bytes:
    return bytes([base, len(rules), *(number for rule in rules for number in rule)])


def settings(
    publish: bytes, subscribe: bytes, leases: int = 8, leases_per_origin: int = 4
) -> bytes:
    # No own source, no shorter lease, no static subscribers, no policies.
    limits = [0, 8 - leases, 4 - leases_per_origin, 0, 0, 0, 0]
    return publish + subscribe + bytes(limits)


# Steps, as src/core/mod.rs reads them, each with its decisions. Sources are by place in SOURCES of
# src/core/make.rs.
PAUSE, RELOAD, JOIN, RENEW, LEAVE, FORGE = 0, 2, 16, 17, 18, 19
HOST, OTHERS = range(5), (5, 6, 7, 8, 9, 10, 12, 13, 14)
NOBODY, USER, UNBOUND = 10, 11, 15


def join(source: int, lease: int = 0) -> bytes:
    return bytes([JOIN, source, lease])


def renew(source: int, lease: int = 0) -> bytes:
    return bytes([RENEW, source, lease])


def leave(source: int) -> bytes:
    return bytes([LEAVE, source])


def forge(source: int, bit: int, is_leaving: bool) -> bytes:
    return bytes([FORGE, source, 0, bit, is_leaving])


def pause(seconds: int) -> bytes:
    return bytes([PAUSE, seconds, 2])


def publish(source: int, topic: int) -> bytes:
    # One event without anything but its topic, in a frame without a stamp.
    return bytes([7, 1, topic, 0, 0, 0, 0, 0, 0, source])


def joined(sources) -> bytes:
    return b"".join(join(source) for source in sources)


def core() -> None:
    everybody = deed(ALL)
    one = b"\0"  # One data thread.
    open_to_all = settings(everybody, everybody) + one
    life = joined([0, 5]) + renew(0) + publish(7, 1) + leave(0) + publish(7, 1)
    # It leaves and comes back, from one host after the other.
    again = b"".join(join(source) + leave(source) for source in (0, 1, 2, 0, 1, 2) * 2)
    write("core", "come and go", open_to_all + life + again)
    # One more than there may be of a host, and then one more when another has left.
    host = joined(HOST) + leave(1) + join(4) + join(1)
    write("core", "a host with too many", open_to_all + host)
    # One more than there may be at all, of several origins.
    others = joined(OTHERS) + leave(7) + joined([0, 1]) + publish(0, 1)
    write("core", "too many of many origins", open_to_all + others)
    ends = joined([0, 5, 8]) + pause(29) + renew(0) + pause(1) + publish(7, 1) + pause(1)
    write("core", "leases that end", open_to_all + ends + publish(7, 1) + joined([0, 1, 2, 3]))
    for bit in (0, 7):
        # A first request by the nonce that its subscriber has, so that a challenge is forged, too.
        asked = bytes([11, 5, 0, 0, 1 + 5, 0, 1]) + bytes(12)
        forged = forge(5, bit, False) + join(5) + forge(5, bit, False) + forge(5, bit, True)
        write("core", f"forged by bit {bit}", open_to_all + asked + forged + leave(5))
    # Who is denied everything, some topics, or not named at all.
    for name, rules in {
        "a network denied": deed(ALL, (NETWORK_10, EVERYTHING, DENY)),
        "a user denied": deed(ALL, (USER_7, EVERYTHING, DENY)),
        "a group denied": deed(ALL, (GROUP_70, EVERYTHING, DENY)),
        "a group denied a topic": deed(ALL, (GROUP_70, A_B, DENY)),
        "a user alone": deed(NONE, (USER_7, EVERYTHING, ALLOW)),
        "a group alone": deed(NONE, (GROUP_7, BELOW_A, ALLOW)),
        "all but a topic": deed(ALL, (ALL_V4, A_B, DENY)),
        "nobody": deed(NONE),
    }.items():
        some = joined([0, 5, 7, 8, 11, 12, 13, 14])
        events = b"".join(publish(source, 1) for source in range(16)) + publish(0, 5)
        apart = settings(everybody, rules) + one
        write("core", f"{name} - subscribing", apart + some + events + renew(10))
        write("core", f"{name} - publishing", settings(rules, everybody) + one + some + events)
        late = bytes([RELOAD]) + settings(rules, rules)
        write("core", f"{name} - of late", open_to_all + some + late + events + some)


# Steps of an honest sender's flow, as src/flow.rs reads them: so many events, what becomes of them,
# no time, or so many times 4 ms, and which frame under way arrives, if any is.
HELD, ARRIVES = 2, 5


def flow() -> None:
    for kind, zero in (("a subscriber", 1), ("the bus", 0)):
        begin = bytes([1, zero])
        gap = bytes([1, HELD, 0, 0, 2, ARRIVES, 0, 0])
        # More gaps than are awaited at once; the last arrives, then the first ones, too late.
        arrive = b"".join(bytes([0, ARRIVES, 0, 3, place]) for place in (66, 0, 1, 2))
        write("flow", f"many gaps at {kind}", begin + gap * 67 + arrive)
        # A second at a time: what is missing is given up when the window is over, not before.
        second = bytes([0, ARRIVES, 3, 250, 0])
        write("flow", f"a late frame at {kind}", begin + gap * 4 + second * 4 + gap)
        for seconds in (0, 1, 2, 3):
            late = second * seconds + bytes([0, ARRIVES, 3, 249, 3, 0])
            write("flow", f"after {seconds} seconds at {kind}", begin + gap * 2 + late)


# What comes to a subscriber, as src/subscription.rs reads it: from the bus, with its nonce.
CHALLENGE, GRANT, REFUSAL = 0, 1, 3


def granted(bus: int, lease: int = 0) -> bytes:
    return bytes([6, GRANT, bus, lease, 0, 0, 0, 0])


def received(bus: int, events: int, sequence: int) -> bytes:
    return bytes([11, events, 0, bus, 1, sequence, 1, 0, 0, 0])


def subscription() -> None:
    challenged = bytes([6, CHALLENGE, 0, 0, 0, 0])
    wait, timeout = bytes([1]), bytes([2])
    # A step of any kind has what is due sent after it.
    lease = timeout + challenged + granted(0)
    flow = received(0, 2, 0) + received(0, 0, 5) + received(0, 1, 5) + received(1, 3, 0)
    renewed = wait + timeout + granted(0)
    write("subscription", "a lease and events", lease + flow + renewed + flow)
    write("subscription", "another bus", lease + flow + wait + timeout + granted(1) + flow)
    again = wait + timeout + challenged + granted(0)
    write("subscription", "challenged anew", lease + flow + again + flow)
    write("subscription", "answers twice", lease + challenged + granted(1) + flow)
    over = bytes([0, 4, 2])
    write("subscription", "a lease that ends", timeout + granted(0, 1) + flow + over + flow)
    for reason in (0, 3, 5, 6, 7, 8, 9, 10):
        refused = bytes([6, REFUSAL, reason, 0, 0, 0])
        asked = lease + flow + wait + timeout + refused + flow + timeout + granted(0)
        write("subscription", f"refusal {reason} of a renewal", asked)
        first = timeout + challenged + refused + granted(0) + flow
        write("subscription", f"refusal {reason} of a proof", first)
    gone = bytes([5, 31])
    write("subscription", "given up", lease + flow + gone + flow + granted(1))
    moved = bytes([4, 7])
    write("subscription", "another socket", lease + flow + moved + flow + challenged + granted(0))


CONFIGURATIONS = {
    "listen": """[listen]
udp = ["127.0.0.1:7277", "[::1]:7277"]
unix = ["/run/hailmary/bus.sock"]
admin = "off"
admin_reload = true
""",
    "loop and limits": """[loop]
workers = 2
linger_us = 500
receive_buffer_bytes = 8388608
send_buffer_bytes = 8388608
[limits]
leases = 10
leases_per_source = 5
patterns_per_subscriber = 6
members_per_group = 7
subscriber_series = 8
lease_ms = 30000
lease_ms_max = 300000
[canary]
interval_ms = 1000
[confine]
mode = "required"
""",
    "access": """[access]
publish = [{ from = ["127.0.0.0/8", "::1", "uid:1000"], topics = [">"] }]
subscribe = [{ from = ["10.0.0.0/8"], topics = ["a.*", "b.>"], deny = true }]
""",
    "subscribers": """[[subscriber]]
name = "indexer"
address = "127.0.0.1:7301"
topics = ["search.>"]
max_frame_bytes = 1400
group = "indexers"
sample = 0.5
events_per_second = 100
[[subscriber]]
name = "beside"
address = "unix:///run/beside.sock"
topics = ["a"]
""",
    "topics": """[[topic]]
match = "spam.>"
events_per_second = 50000
priority = "low"
max_age_ms = 60000
[[topic]]
match = "*.high"
priority = "high"
""",
    "wrong in many ways": """[listen]
udp = ["nowhere", 'a"b']
[limits]
lease_ms = 999
[[topic]]
match = "a..b"
[[topic]]
match = ">"
""",
}

REQUESTS = {
    "metrics": "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "health": "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\nGET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n",
    "reload": "POST /-/reload HTTP/1.1\r\nHost: localhost:7278\r\nContent-Length: 0\r\n\r\n",
    "reload of a page": "POST /-/reload HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://a\r\n\r\n",
    "status": "GET /api/v1/status HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "topics": "GET /api/v1/topics?limit=7 HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "subscribers": "HEAD http://localhost/api/v1/subscribers HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "chunks": "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "expectation": "POST /metrics HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
}


def main() -> None:
    frames()
    topics()
    tapes()
    core()
    flow()
    subscription()
    for name, text in CONFIGURATIONS.items():
        write("config", name, text.encode())
    for name, text in REQUESTS.items():
        write("admin", name, b"\0" + text.encode())
        write("admin", f"{name} from elsewhere", b"\1" + text.encode())
    # Tapes: from each client, with an authority or none, hosts and headers.
    for client in range(10):
        plain = bytes([0, 0, client, 0])
        write("admin", f"a reload asked for by client {client}", bytes([128 + client]) + plain)
    for host in range(14):
        write("admin", f"a reload asked for of host {host}", bytes([128, 0, 0, host, 0]))
    for header in range(9):
        write("admin", f"a reload with header {header}", bytes([128, 0, 0, 0, 1, header]))


if __name__ == "__main__":
    main()
