"""Traces, by the real OpenTelemetry."""

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import hailmary
from hailmary import Event, Topic, otel
from hailmary.testing import Recorder

TOPIC = Topic("a.b", codec=hailmary.raw)
TRACER = TracerProvider().get_tracer("test")


def published(**arguments: Any) -> Event:
    recorder = Recorder()
    TOPIC.publish(b"", publisher=recorder, **arguments)
    (event,) = recorder.events
    return event


def remote(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


def test_the_current_span_goes_along_and_is_found_again() -> None:
    with TRACER.start_as_current_span("publish") as span:
        event = published()
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
    assert event.attributes == carrier
    found = remote(otel.context_of(event))
    ours = span.get_span_context()
    assert (found.trace_id, found.span_id) == (ours.trace_id, ours.span_id)
    assert found.trace_flags == ours.trace_flags
    assert found.is_remote
    with TRACER.start_as_current_span("index", context=otel.context_of(event)) as child:
        assert child.get_span_context().trace_id == ours.trace_id


def test_a_trace_state_goes_along() -> None:
    state = TraceState([("vendor", "x"), ("other", "y")])
    span = NonRecordingSpan(SpanContext(1, 2, False, TraceFlags(0), state))
    with trace.use_span(span):
        event = published(attributes={"n": "v"})
    assert event.attributes == {
        "n": "v",
        "traceparent": f"00-{'1':0>32}-{'2':0>16}-00",
        "tracestate": "vendor=x,other=y",
    }
    assert remote(otel.context_of(event)).trace_state == state


def test_a_span_that_is_not_sampled_says_so() -> None:
    tracer = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    with tracer.start_as_current_span("publish"):
        found = remote(otel.context_of(published()))
    assert found.is_valid and not found.trace_flags.sampled


def test_a_traceparent_that_is_given_stands() -> None:
    with TRACER.start_as_current_span("publish"):
        assert published(attributes={"traceparent": "mine"}).attributes == {"traceparent": "mine"}


def test_without_a_span_nothing_goes_along() -> None:
    assert published().attributes == {}
    assert otel.attributes() is None
    given = {"n": "v"}
    assert otel.attributes(given) is given


def test_the_attributes_given_are_left_as_they_are() -> None:
    given = {"n": "v"}
    with TRACER.start_as_current_span("publish"):
        assert otel.attributes(given) != given
    assert given == {"n": "v"}


@pytest.mark.parametrize("given", [5, ["n"], "traceparent"])
def test_what_are_no_attributes_the_publisher_refuses(given: Any) -> None:
    with TRACER.start_as_current_span("publish"), pytest.raises(TypeError):
        published(attributes=given)


def test_a_broken_span_costs_the_trace_and_not_the_event() -> None:
    class Broken(NonRecordingSpan):
        def get_span_context(self) -> SpanContext:
            raise RuntimeError("a tracer's mistake")

    with trace.use_span(Broken(trace.INVALID_SPAN_CONTEXT)):
        assert published(attributes={"n": "v"}).attributes == {"n": "v"}


@pytest.mark.parametrize(
    "attributes",
    [{}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-{'0' * 16}-01"}],
)
def test_an_event_without_a_trace_has_no_remote_span(attributes: dict[str, str]) -> None:
    event = Event("a.b", b"", b"", 0, attributes, 1.0)
    with TRACER.start_as_current_span("the subscriber's own"):
        assert not remote(otel.context_of(event)).is_valid


def test_a_traceparent_adds_what_is_documented() -> None:
    def fits(size: int) -> bool:
        try:
            TOPIC.publish(bytes(size), publisher=Recorder(), time_unix_nano=1)
        except ValueError:
            return False
        return True

    size = 65_459 - 22
    assert fits(size) and not fits(size + 1)
    with TRACER.start_as_current_span("publish"):
        assert fits(size - 72) and not fits(size - 71)


def test_opentelemetry_is_not_imported_for_it() -> None:
    program = """
import sys, hailmary, hailmary.testing
topic = hailmary.Topic("a.b", codec=hailmary.json)
with hailmary.testing.recording() as recorder:
    topic.publish({})
assert recorder.events[0].attributes == {}
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
