#!/usr/bin/env python3
"""Writes the seeds anew: what each target begins with, small, from the shared vectors.

Inputs that are tapes of decisions need little: libFuzzer finds the decisions itself. What has a
grammar (frames, configurations, HTTP) is given by example.
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
    # No rules against anybody, then: a challenge asked for and answered, and events.
    calm = bytes([7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    ask = bytes([11, 0, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    prove = bytes([11, 0, 6, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    publish = bytes([7, 3, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0])
    write("core", "a lease and events", calm + (ask + prove + publish) * 3)


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
    for name, text in CONFIGURATIONS.items():
        write("config", name, text.encode())
    for name, text in REQUESTS.items():
        write("admin", name, b"\0" + text.encode())
        write("admin", f"{name} from elsewhere", b"\1" + text.encode())


if __name__ == "__main__":
    main()
