"""Carries the trace of OpenTelemetry along with an event, as W3C Trace Context.

Owns the attributes `traceparent` and `tracestate`. It never imports
OpenTelemetry while something is published: who has a span has imported it. Where
nobody has, it costs a look into a dictionary.

`Topic.publish()` does by itself what `attributes()` does for a `Publisher`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Optional

from ._event import Event

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanContext

__all__ = ["attributes", "context_of"]

_TRACEPARENT = "traceparent"
_TRACESTATE = "tracestate"

# Looked up by name in what is imported, see above.
_API = "opentelemetry.trace"


def attributes(given: Optional[Mapping[str, str]] = None) -> Optional[Mapping[str, str]]:
    """The given attributes, and with them the current span's `traceparent`, and
    its `tracestate` if it has one.

        >>> attributes({"source": "upload"})
        {'source': 'upload'}

    Just those given where no span is current, where OpenTelemetry is not
    imported, and where they have a `traceparent` already. A `traceparent` adds 72
    bytes to an event, a `tracestate` up to 530 more. Never raises.
    """
    api = sys.modules.get(_API)
    if api is None:
        return given
    try:
        return _with_span(given or {}, api.get_current_span().get_span_context()) or given
    except Exception:
        # A tracer's mistake, or one that is still being imported: the event
        # goes without a trace. What is wrong with those given, the publisher says.
        return given


def _with_span(given: Mapping[str, str], span: SpanContext) -> Optional[Mapping[str, str]]:
    if not span.is_valid or _TRACEPARENT in given:
        return None
    trace = {_TRACEPARENT: f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"}
    if span.trace_state:
        trace[_TRACESTATE] = span.trace_state.to_header()
    return {**given, **trace}


def context_of(event: Event) -> Context:
    """The context of the span that was current where the event was published;
    without a span if there was none, or if the attributes do not say one.

    A span that follows from it:

        with tracer.start_as_current_span("index", context=context_of(event)):
            ...

    Raises `ImportError` if `opentelemetry-api` is not installed.
    """
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # From an empty context, so that the subscriber's own span is no parent.
    return TraceContextTextMapPropagator().extract(event.attributes, Context())
