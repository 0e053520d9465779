"""Spans as services use them: made only inside a sampled call, named and attributed from constants.

Whether a call is sampled is decided once, at its edge (chassis.telemetry). Everything here asks only whether the
current span records: where it does not, nothing at all is created and a call costs less than a microsecond.
This module knows the OpenTelemetry API and nothing of gRPC, SQL or Redis.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

# Attributes a span may carry beside OpenTelemetry's own; none of them tells who the person is. Values are scalars:
# backends search spans by an attribute's plain value, and do not find it in a list.
COMITY_DECISION_ID = "comity.decision.id"
COMITY_PLACEMENT_ID = "comity.placement.id"
COMITY_MODEL_VERSION = "comity.model.version"
COMITY_FEATURE_SET_VERSION = "comity.feature_set.version"
COMITY_CONSENT_POLICY_VERSION = "comity.consent_policy.version"
COMITY_DECISION_POLICY_VERSION = "comity.decision_policy.version"
COMITY_CATALOG_VERSION = "comity.catalog.version"
COMITY_SITE_VERSION = "comity.site.version"
COMITY_REASON = "comity.reason"
COMITY_LAYER = "comity.layer"
COMITY_FALLBACK = "comity.fallback"
COMITY_FALLBACK_REASON = "comity.fallback_reason"
COMITY_ERROR_REASON = "comity.error.reason"
COMITY_BATCH_SIZE = "comity.batch.size"
COMITY_ELIGIBLE_COUNT = "comity.eligible.count"
COMITY_ERASURE_STEP = "comity.erasure.step"
COMITY_STAGE_OUTCOME = "comity.stage.outcome"

# OpenTelemetry's own, of messages; a message is an EventBatch, a message's consumer group the consuming service.
MESSAGING_SYSTEM = "messaging.system"
MESSAGING_OPERATION_NAME = "messaging.operation.name"
MESSAGING_OPERATION_TYPE = "messaging.operation.type"
MESSAGING_DESTINATION_NAME = "messaging.destination.name"
MESSAGING_CONSUMER_GROUP_NAME = "messaging.consumer.group.name"
MESSAGING_MESSAGE_ID = "messaging.message.id"
MESSAGING_BODY_SIZE = "messaging.message.body.size"

TRACEPARENT = "traceparent"

Attributes = Mapping[str, AttributeValue]

_propagator = TraceContextTextMapPropagator()
_tracer: trace.Tracer = trace.NoOpTracer()
_client_interceptors: tuple[Any, ...] = ()
_NO_SPAN: AbstractContextManager[Span] = nullcontext(INVALID_SPAN)


def tracer() -> trace.Tracer:
    """The process's tracer; one that creates nothing until telemetry is set up."""
    return _tracer


def use_tracer(new: trace.Tracer | None, *, interceptors: Sequence[Any] = ()) -> None:
    """Make this the process's tracer, or with None no longer have one; *interceptors* trace calls on gRPC channels."""
    # Not OpenTelemetry's global: that can be set only once, and tests set up and shut down many times.
    global _tracer, _client_interceptors
    _tracer = new if new is not None else trace.NoOpTracer()
    _client_interceptors = tuple(interceptors)


def client_interceptors() -> tuple[Any, ...]:
    """What a gRPC channel needs to trace calls, of types that only chassis.rpc_client knows; empty when tracing is off.

    Kept here and not in chassis.telemetry, so that who calls a service needs no database driver for it.
    """
    return _client_interceptors


def sampled() -> bool:
    """Whether the current call is traced."""
    # Of a call that is not, the context is empty: that is told at a third of what looking for a span in it costs.
    return bool(get_current()) and trace.get_current_span().is_recording()


def span(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
    """A span of this step inside the current call; where the call is not sampled, nothing."""
    if not sampled():
        return _NO_SPAN
    return tracer().start_as_current_span(name, attributes=attributes)


def root_span(
    name: str, attributes: Attributes | None = None, *, links: Sequence[str] = (), kind: SpanKind = SpanKind.INTERNAL
) -> AbstractContextManager[Span]:
    """A span that begins a trace of its own, linked to the given traceparents; the sampler decides if it records."""
    contexts = [context for context in map(_span_context, links) if context is not None]
    return tracer().start_as_current_span(
        name, context=Context(), kind=kind, attributes=attributes, links=[Link(context) for context in contexts]
    )


def set_attributes(attributes: Attributes) -> None:
    """Put attributes on the current span, if it records."""
    if sampled():
        trace.get_current_span().set_attributes(attributes)


def add_links(parents: Iterable[str]) -> None:
    """Link the current span, if it records, to each of the spans that traceparents name."""
    if sampled():
        current = trace.get_current_span()
        for context in filter(None, map(_span_context, parents)):
            current.add_link(context)


def tell_decisions(decision_ids: Collection[str]) -> None:
    """Have the current span, if it records, found by each decision that it is about: an attribute, or an event each."""
    if not sampled():
        return
    current = trace.get_current_span()
    if len(decision_ids) == 1:
        current.set_attribute(COMITY_DECISION_ID, *decision_ids)
        return
    for decision_id in decision_ids:
        current.add_event("decision", {COMITY_DECISION_ID: decision_id})


def mark_failed(span: Span, error_type: str) -> None:
    """Mark what a span stands for as failed; *error_type* is one of few words."""
    span.set_status(StatusCode.ERROR)
    span.set_attribute(ERROR_TYPE, error_type)


def traceparent() -> str:
    """W3C trace context of the current span; empty when it is not sampled."""
    return format_traceparent(trace.get_current_span().get_span_context()) if sampled() else ""


def consumer_span(
    name: str, headers: Mapping[str, str], attributes: Attributes | None = None
) -> AbstractContextManager[Span]:
    """A span for handling a message: a trace of its own, linked to the producer's span.

    A link and not a child: a message may be handled hours later, or again, and one handling may serve many producers.
    Nothing is created when the producer was not sampled.
    """
    parent = headers.get(TRACEPARENT, "")
    context = _span_context(parent)
    if context is None or not context.trace_flags.sampled:
        return _NO_SPAN
    return root_span(name, attributes, links=(parent,), kind=SpanKind.CONSUMER)


def format_traceparent(context: SpanContext) -> str:
    """The span context as a W3C traceparent."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _span_context(parent: str) -> SpanContext | None:
    """The span context that a traceparent names; None when it is not one."""
    if not parent:
        return None
    context = trace.get_current_span(_propagator.extract({TRACEPARENT: parent}, context=Context())).get_span_context()
    return context if context.is_valid else None
