"""One subscription against everything that a bus and a network can do.

No socket, no clock: the times are made up, and so are the datagrams.
"""

from typing import Optional

import pytest

from hailmary._event import Event, Loss
from hailmary._flow import WINDOW_SECONDS, FlowCounts
from hailmary._lease import (
    RENEWAL_SECONDS_MAX,
    RETRY_SECONDS_MAX,
    RETRY_SECONDS_MIN,
    Reason,
    padded,
)
from hailmary._session import UNHEARD_REQUESTS, Origin, Session, SubscriptionStats
from hailmary._wire import bus_pb2

NONCE = 0x1122334455667788
BUS = 77
LEASE_MS = 30_000


class Subscriber:
    """A session, its clock, and short words for what happens to it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.session = Session(bus_pb2.Subscribe(topics=["a.>"], name="n"), NONCE, self.now)

    def request(self) -> Optional[bus_pb2.Subscribe]:
        """What it says now, if anything."""
        datagram = self.session.poll_transmit(self.now)
        return None if datagram is None else bus_pb2.Frame.FromString(datagram).subscribe

    def next_request(self) -> bus_pb2.Subscribe:
        """What it says next, with time passing until then."""
        self.now = max(self.now, self.session.transmit_at)
        request = self.request()
        assert request is not None
        return request

    def get(self, frame: bus_pb2.Frame, origin: Origin = Origin.BUS) -> list[Event]:
        return self.session.handle_datagram(self.now, origin, frame.SerializeToString())

    def challenge(self, cookie: bytes = b"challenge", nonce: int = NONCE) -> None:
        self.get(bus_pb2.Frame(challenge=bus_pb2.Challenge(cookie=cookie, nonce=nonce)))

    def grant(
        self,
        bus: int = BUS,
        lease_ms: int = LEASE_MS,
        cookie: bytes = b"lease",
        at: Optional[tuple[int, int]] = None,
    ) -> None:
        """Grants a lease; `at` are the sequence and the dropped events of a stamp on it."""
        lease = bus_pb2.Lease(bus=bus, lease_ms=lease_ms, cookie=cookie, nonce=NONCE)
        frame = bus_pb2.Frame(lease=lease)
        if at is not None:
            sequence, dropped = at
            stamp = bus_pb2.Stamp(sender=bus, sequence=sequence, dropped=dropped)
            frame.stamp.CopyFrom(stamp)
        self.get(frame)

    def refuse(self, reason: "bus_pb2.Refusal.Reason") -> None:
        self.get(bus_pb2.Frame(refusal=bus_pb2.Refusal(reason=reason, nonce=NONCE)))

    def events(
        self, sequence: int, count: int, *, dropped: int = 0, bus: int = BUS, weight: float = 0.0
    ) -> list[Event]:
        """A frame of events, from the socket that a bus sends them from."""
        stamp = bus_pb2.Stamp(sender=bus, sequence=sequence, dropped=dropped, weight=weight)
        events = [bus_pb2.Event(topic="a.b", payload=b"%d" % at) for at in range(count)]
        return self.get(bus_pb2.Frame(stamp=stamp, events=events), Origin.ELSEWHERE)

    def stats(self) -> SubscriptionStats:
        """The counts once nothing is awaited any more."""
        self.session.handle_timeout(self.now + WINDOW_SECONDS)
        return self.session.stats()


def subscribed() -> Subscriber:
    subscriber = Subscriber()
    subscriber.next_request()
    subscriber.challenge()
    subscriber.next_request()
    subscriber.grant()
    assert subscriber.session.held
    return subscriber


def test_the_handshake() -> None:
    subscriber = Subscriber()
    first = subscriber.request()
    assert first == bus_pb2.Subscribe(topics=["a.>"], name="n", nonce=NONCE)
    assert subscriber.request() is None

    subscriber.challenge(b"prove it")
    proof = subscriber.request()
    assert proof is not None and proof.cookie == b"prove it" and proof.nonce == NONCE
    assert not subscriber.session.held

    subscriber.grant()
    assert subscriber.session.held
    assert subscriber.request() is None


@pytest.mark.parametrize("cookie", [b"", b"x" * 7, b"x" * 60])
def test_every_request_ispadded(cookie: bytes) -> None:
    subscriber = Subscriber()
    if cookie:
        subscriber.request()
        subscriber.challenge(cookie)
    datagram = subscriber.session.poll_transmit(subscriber.now)
    assert datagram is not None and len(datagram) >= 64


@pytest.mark.parametrize("length", range(66))
def test_padding_adds_nothing_that_is_read(length: int) -> None:
    frame = bus_pb2.Frame(subscribe=bus_pb2.Subscribe(name="x" * length))
    datagram = padded(frame)
    assert max(64, frame.ByteSize()) <= len(datagram) <= max(66, frame.ByteSize())
    assert bus_pb2.Frame.FromString(datagram).subscribe == frame.subscribe


def test_a_silent_bus_is_asked_ever_less_often_and_for_ever() -> None:
    subscriber = Subscriber()
    times = []
    for _ in range(12):
        assert subscriber.next_request().cookie == b""
        times.append(subscriber.now)
    waits = [later - sooner for sooner, later in zip(times, times[1:])]
    assert waits[:5] == pytest.approx([RETRY_SECONDS_MIN * 2**n for n in range(5)])
    assert waits[5:] == pytest.approx([RETRY_SECONDS_MAX] * 6)


def test_renewals_come_in_time_with_the_newest_cookie_and_a_report() -> None:
    subscriber = subscribed()
    granted = subscriber.now
    assert subscriber.events(0, 3) != []
    assert subscriber.events(5, 1, dropped=1) != []
    renewal = subscriber.next_request()
    assert subscriber.now - granted == pytest.approx(RENEWAL_SECONDS_MAX)
    assert renewal.cookie == b"lease"
    assert renewal.report == bus_pb2.Report(bus=BUS, received=4), "one may come yet"
    subscriber.grant(cookie=b"newer")
    subscriber.session.handle_timeout(granted + WINDOW_SECONDS)
    second = subscriber.next_request()
    assert second.cookie == b"newer"
    assert second.report == bus_pb2.Report(bus=BUS, received=4, lost=1)


@pytest.mark.parametrize(("lease_ms", "seconds"), [(1500, 0.5), (0, 0.1), (2**32 - 1, 2.0)])
def test_a_short_lease_is_renewed_in_time_and_never_without_pause(
    lease_ms: int, seconds: float
) -> None:
    subscriber = subscribed()
    subscriber.next_request()
    subscriber.grant(lease_ms=lease_ms)
    granted = subscriber.now
    subscriber.next_request()
    assert subscriber.now - granted == pytest.approx(seconds)


def test_events_are_handed_over_as_they_were_made() -> None:
    subscriber = subscribed()
    made = bus_pb2.Event(
        topic="a.b", payload=b"\0", key=b"k", time_unix_nano=5, attributes={"n": "v"}
    )
    frame = bus_pb2.Frame(events=[made], stamp=bus_pb2.Stamp(sender=BUS))
    (event,) = subscriber.get(frame, Origin.ELSEWHERE)
    assert event == Event("a.b", b"\0", b"k", 5, {"n": "v"}, 1.0)


@pytest.mark.parametrize(
    ("told", "taken"),
    [(0.0, 1.0), (8.0, 8.0), (0.5, 1.0), (-3.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0)],
)
def test_a_weight_is_at_least_one(told: float, taken: float) -> None:
    (event,) = subscribed().events(0, 1, weight=told)
    assert event.weight == taken


def test_events_of_a_foreign_sender_are_ignored() -> None:
    subscriber = subscribed()
    assert subscriber.events(0, 2, bus=BUS + 1) == []
    frame = bus_pb2.Frame(events=[bus_pb2.Event(topic="a.b")])
    assert subscriber.get(frame) == [], "without a stamp, even from the bus's address"
    assert subscriber.session.stats().received == 0
    assert subscriber.session.stats().ignored_frames == 2


def test_events_before_the_lease_are_ignored_and_told_as_lost() -> None:
    subscriber = Subscriber()
    subscriber.next_request()
    assert subscriber.events(0, 2) == []
    subscriber.grant()
    assert len(subscriber.events(2, 1)) == 1
    assert subscriber.stats().lost == 2


@pytest.mark.parametrize("datagram", [b"\xff", b"\x0a\x05abc", b"\x12\xff\xff\xff\xff\xff\x7f"])
def test_what_is_no_frame_is_counted_and_ignored(datagram: bytes) -> None:
    subscriber = subscribed()
    for origin in Origin:
        assert subscriber.session.handle_datagram(subscriber.now, origin, datagram) == []
    assert subscriber.session.stats().ignored_frames == 2
    assert subscriber.session.held


def test_an_answer_with_another_nonce_is_ignored() -> None:
    subscriber = Subscriber()
    subscriber.next_request()
    subscriber.challenge(nonce=NONCE + 1)
    lease = bus_pb2.Lease(bus=BUS, lease_ms=LEASE_MS, cookie=b"c", nonce=NONCE + 1)
    subscriber.get(bus_pb2.Frame(lease=lease))
    refusal = bus_pb2.Refusal(reason=bus_pb2.Refusal.NOT_ALLOWED, nonce=NONCE + 1)
    subscriber.get(bus_pb2.Frame(refusal=refusal))
    assert not subscriber.session.held
    assert subscriber.session.refused is None
    assert subscriber.request() is None
    assert subscriber.session.stats().ignored_frames == 3


def test_an_answer_from_another_address_is_ignored() -> None:
    subscriber = Subscriber()
    subscriber.next_request()
    lease = bus_pb2.Lease(bus=BUS, lease_ms=LEASE_MS, cookie=b"c", nonce=NONCE)
    subscriber.get(bus_pb2.Frame(lease=lease), Origin.ELSEWHERE)
    assert not subscriber.session.held
    assert subscriber.session.stats().ignored_frames == 1


@pytest.mark.parametrize("cookie", [b"", b"x" * 257])
def test_a_cookie_that_cannot_be_carried_is_ignored(cookie: bytes) -> None:
    subscriber = Subscriber()
    subscriber.next_request()
    subscriber.challenge(cookie)
    assert subscriber.request() is None
    assert subscriber.next_request().cookie == b""


def test_a_bus_that_only_challenges_is_not_asked_in_a_circle() -> None:
    subscriber = Subscriber()
    subscriber.next_request()
    began, requests = subscriber.now, 0
    while subscriber.now < began + 10.0:
        subscriber.challenge(b"%d" % requests)
        if subscriber.request() is None:
            subscriber.now = subscriber.session.transmit_at
        else:
            requests += 1
    assert requests <= 11, "one at once, then by the timer: 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2 ... s"


def test_repeated_answers_change_nothing() -> None:
    subscriber = subscribed()
    due = subscriber.session.transmit_at
    subscriber.now += 0.5
    subscriber.challenge()
    subscriber.grant(bus=BUS + 1)
    assert subscriber.session.transmit_at == due
    assert subscriber.session.held
    assert subscriber.session.stats().bus_restarts == 0


def test_a_lost_answer_is_asked_for_again_with_the_same_cookie() -> None:
    subscriber = subscribed()
    first = subscriber.next_request()
    sent = subscriber.now
    second = subscriber.next_request()
    assert second.cookie == first.cookie == b"lease"
    assert subscriber.now - sent == pytest.approx(RETRY_SECONDS_MIN)
    subscriber.grant()
    assert subscriber.session.stats().lapses == 0


def test_a_restarted_bus_is_a_new_flow() -> None:
    subscriber = subscribed()
    subscriber.events(0, 5)
    subscriber.next_request()
    subscriber.challenge(b"of the new bus")
    proof = subscriber.request()
    assert proof is not None and proof.cookie == b"of the new bus"
    subscriber.grant(bus=BUS + 1)
    assert subscriber.events(0, 2, bus=BUS) == [], "the old one is gone"
    assert len(subscriber.events(1, 2, bus=BUS + 1)) == 2
    stats = subscriber.stats()
    assert (stats.received, stats.lost) == (7, 1)
    assert (stats.bus_restarts, stats.lapses) == (1, 1)
    assert subscriber.next_request().report == bus_pb2.Report(bus=BUS + 1, received=2, lost=1)


def test_a_lapsed_lease_is_a_new_flow_of_the_same_bus() -> None:
    subscriber = subscribed()
    subscriber.events(0, 5)
    subscriber.next_request()
    subscriber.challenge()
    assert subscriber.request() is not None, "answered at once"
    assert len(subscriber.events(0, 2)) == 2, "the first events overtake the grant"
    subscriber.grant()
    subscriber.events(2, 1)
    stats = subscriber.session.stats()
    assert (stats.received, stats.lost) == (8, 0)
    assert (stats.bus_restarts, stats.lapses) == (0, 1)


def test_a_bus_that_falls_silent_is_asked_anew_after_the_lease() -> None:
    subscriber = subscribed()
    granted = subscriber.now
    while subscriber.session.held:
        subscriber.next_request()
    assert subscriber.now - granted == pytest.approx(LEASE_MS / 1000, abs=RETRY_SECONDS_MAX)
    assert subscriber.session.stats().lapses == 1
    subscriber.grant()
    assert subscriber.session.held


def test_a_standstill_beyond_the_lease_delivers_what_waits_and_recovers() -> None:
    subscriber = subscribed()
    subscriber.events(0, 5)
    subscriber.now += 2 * LEASE_MS / 1000
    assert subscriber.request() is not None
    assert len(subscriber.events(5, 3)) == 3, "still in the socket"
    subscriber.challenge()
    subscriber.next_request()
    subscriber.grant()
    assert len(subscriber.events(0, 2)) == 2, "the new flow"
    subscriber.events(4, 1)
    stats = subscriber.stats()
    assert (stats.received, stats.lost, stats.lapses) == (11, 2, 1)


@pytest.mark.parametrize("at", [None, (0, 0)])
def test_a_cookie_that_outlived_its_lease_begins_a_flow_too(
    at: Optional[tuple[int, int]],
) -> None:
    subscriber = subscribed()
    subscriber.events(0, 5)
    subscriber.now += 2 * LEASE_MS / 1000
    subscriber.request()
    subscriber.events(5, 3)
    subscriber.grant(at=at)
    subscriber.events(0, 2)
    stats = subscriber.stats()
    assert (stats.received, stats.lost, stats.duplicates) == (10, 0, 0)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (bus_pb2.Refusal.NOT_ALLOWED, Reason.NOT_ALLOWED),
        (bus_pb2.Refusal.BAD_TOPIC, Reason.BAD_TOPIC),
        (bus_pb2.Refusal.BAD_REQUEST, Reason.BAD_REQUEST),
    ],
)
def test_a_final_refusal_ends_it(reason: "bus_pb2.Refusal.Reason", told: Reason) -> None:
    subscriber = Subscriber()
    subscriber.next_request()
    subscriber.refuse(reason)
    assert subscriber.session.refused is told
    subscriber.now += 1000
    assert subscriber.request() is None
    assert subscriber.session.close() is None
    subscriber.grant()
    assert not subscriber.session.held


@pytest.mark.parametrize("reason", [bus_pb2.Refusal.FULL, bus_pb2.Refusal.UNSPECIFIED, 99])
def test_other_refusals_are_asked_again_by_the_timer(reason: "bus_pb2.Refusal.Reason") -> None:
    subscriber = Subscriber()
    for _ in range(20):
        subscriber.next_request()
        subscriber.refuse(reason)
        assert subscriber.request() is None
    assert subscriber.session.refused is None
    assert subscriber.session.refusal in (Reason.FULL, Reason.OTHER)
    subscriber.grant()
    assert subscriber.session.refusal is None


def test_an_unknown_lease_is_asked_anew_at_once_without_its_cookie() -> None:
    subscriber = subscribed()
    subscriber.next_request()
    subscriber.refuse(bus_pb2.Refusal.UNKNOWN_LEASE)
    again = subscriber.request()
    assert again is not None and again.cookie == b""
    subscriber.refuse(bus_pb2.Refusal.UNKNOWN_LEASE)
    assert subscriber.request() is None, "the next one by the timer"


def test_challenges_and_refusals_in_turn_are_answered_by_the_timer() -> None:
    subscriber = Subscriber()
    subscriber.next_request()
    subscriber.challenge()
    assert subscriber.request() is not None
    for _ in range(3):
        subscriber.refuse(bus_pb2.Refusal.UNKNOWN_LEASE)
        subscriber.challenge(b"another")
        assert subscriber.request() is None
    assert subscriber.session.transmit_at >= subscriber.now + RETRY_SECONDS_MIN
    assert subscriber.next_request().cookie == b"another"


def test_closing_gives_the_lease_up() -> None:
    subscriber = subscribed()
    farewell = subscriber.session.close()
    assert farewell is not None
    unsubscribe = bus_pb2.Frame.FromString(farewell).unsubscribe
    assert unsubscribe == bus_pb2.Unsubscribe(cookie=b"lease", nonce=NONCE)
    assert subscriber.events(0, 1) == []
    subscriber.now += 1000
    assert subscriber.request() is None
    assert subscriber.session.close() is None


def test_absurd_stamps_neither_raise_nor_spoil_the_report() -> None:
    subscriber = subscribed()
    largest = 2**64 - 1
    for sequence in (largest, largest - 5, 2**63):
        assert len(subscriber.events(sequence, 1, dropped=largest)) == 1
    assert subscriber.stats() == SubscriptionStats(duplicates=3)
    ledger = subscriber.session._ledger
    ledger._ended_of_bus = FlowCounts(received=2 * largest, lost=2 * largest)
    report = subscriber.next_request().report
    assert report == bus_pb2.Report(bus=BUS, received=largest, lost=largest)


def test_the_stamp_on_a_renewal_tells_of_what_no_frame_told() -> None:
    subscriber = subscribed()
    subscriber.events(0, 3)
    subscriber.next_request()
    subscriber.grant(at=(8, 4))
    stats = subscriber.session.stats()
    assert (stats.received, stats.lost, stats.dropped_by_bus, stats.awaited) == (3, 0, 4, 1)
    stats = subscriber.stats()
    assert (stats.received, stats.lost, stats.dropped_by_bus, stats.awaited) == (3, 1, 4, 0)


def test_the_stamp_on_an_answer_that_is_not_believed_tells_nothing() -> None:
    subscriber = subscribed()
    subscriber.grant(at=(9, 0))
    assert subscriber.stats().lost == 0
    assert subscriber.session.stats().ignored_frames == 1
    subscriber.next_request()
    foreign = bus_pb2.Stamp(sender=BUS + 1, sequence=9)
    lease = bus_pb2.Lease(bus=BUS, lease_ms=LEASE_MS, cookie=b"c", nonce=NONCE)
    subscriber.get(bus_pb2.Frame(lease=lease, stamp=foreign))
    assert subscriber.stats().lost == 0


def test_a_lease_that_only_the_bus_saw_lapse_begins_a_flow() -> None:
    subscriber = subscribed()
    subscriber.events(0, 5)
    for sequence in (5, 0):
        subscriber.next_request()
        subscriber.grant(at=(sequence, 0))
    assert subscriber.session.stats().lapses == 0, "it stood, by the clock here"
    subscriber.events(1, 2)
    stats = subscriber.stats()
    assert (stats.received, stats.lost, stats.duplicates) == (7, 1, 0)


def test_it_wakes_up_for_what_is_no_longer_awaited() -> None:
    subscriber = subscribed()
    subscriber.events(1, 1)
    began = subscriber.now
    while subscriber.session.stats().lost == 0:
        assert subscriber.session.wake_at > subscriber.now
        subscriber.now = subscriber.session.wake_at
        if subscriber.request() is not None:
            subscriber.grant()
        subscriber.session.handle_timeout(subscriber.now)
    assert subscriber.now == pytest.approx(began + WINDOW_SECONDS)
    assert subscriber.session.wake_at == subscriber.session.transmit_at


def test_losses_are_told_once_and_only_if_there_are_any() -> None:
    subscriber = subscribed()
    subscriber.events(0, 1)
    assert subscriber.session.poll_loss() is None
    subscriber.events(801, 1, dropped=788)
    assert subscriber.session.poll_loss() == Loss(lost=0, dropped_by_bus=788)
    assert subscriber.session.poll_loss() is None
    subscriber.stats()
    assert subscriber.session.poll_loss() == Loss(lost=12, dropped_by_bus=0)
    subscriber.events(1, 1)
    assert subscriber.session.poll_loss() is None, "too late, and never taken back"


def test_losses_that_nobody_asked_for_add_up() -> None:
    subscriber = subscribed()
    subscriber.events(812, 1, dropped=700)
    subscriber.events(813, 1, dropped=800)
    subscriber.stats()
    loss = subscriber.session.poll_loss()
    assert loss == Loss(lost=12, dropped_by_bus=800)
    assert loss.events == 812
    assert str(loss) == "812 events lost, 800 of them dropped by the bus"


def test_what_is_awaited_in_the_end_is_lost() -> None:
    subscriber = subscribed()
    subscriber.events(2, 1)
    subscriber.session.close()
    stats = subscriber.session.stats()
    assert (stats.received, stats.lost, stats.awaited) == (1, 2, 0)
    assert subscriber.session.poll_loss() == Loss(lost=2, dropped_by_bus=0)


def test_what_was_dropped_here_is_reported_by_bus_and_told_once() -> None:
    subscriber = subscribed()
    subscriber.events(0, 5)
    subscriber.session.drop(2)
    subscriber.session.drop(0)
    report = subscriber.next_request().report
    assert (report.received, report.dropped) == (5, 2)
    subscriber.grant(bus=BUS + 1)
    subscriber.events(0, 3, bus=BUS + 1)
    subscriber.session.drop(1)
    report = subscriber.next_request().report
    assert (report.bus, report.received, report.dropped) == (BUS + 1, 3, 1)
    stats = subscriber.stats()
    assert (stats.received, stats.dropped, stats.lost) == (8, 3, 0)
    assert subscriber.session.poll_loss() == Loss(0, 0, 3)
    assert subscriber.session.poll_loss() is None


def test_a_notice_says_who_dropped() -> None:
    assert str(Loss(12, 800)) == "812 events lost, 800 of them dropped by the bus"
    assert Loss(1, 2, 3).events == 6
    assert str(Loss(1, 2, 3)) == "6 events lost, 2 of them dropped by the bus, 3 on this side"


def test_a_bus_is_silent_without_a_lease_and_without_answers() -> None:
    subscriber = subscribed()
    while subscriber.session.held:
        assert not subscriber.session.silent, "the lease still stands"
        subscriber.next_request()
    assert subscriber.session.silent
    subscriber.challenge()
    assert not subscriber.session.silent
    for _ in range(UNHEARD_REQUESTS):
        assert not subscriber.session.silent
        subscriber.next_request()
    assert subscriber.session.silent
    subscriber.refuse(bus_pb2.Refusal.FULL)
    assert not subscriber.session.silent, "it is there, and full"
