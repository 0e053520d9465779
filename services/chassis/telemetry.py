"""Tracing of a process: exporters, head sampling, and the official instrumentations of gRPC, asyncpg and Redis.

Whether a call is traced is decided once, before any interceptor works for it: by its caller's traceparent, else by the
dice. A call that is not traced creates nothing at all: the instrumentations of asyncpg and Redis stand behind a gate
that asks whether the current span records, because what they do before they ask costs ten times as much (9 µs a
query, measured). What leaves the process is scrubbed (chassis.span_export).
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg.connection
import asyncpg.cursor
import asyncpg.prepared_stmt
import grpc
import redis.asyncio
import redis.asyncio.client
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.semconv.attributes.deployment_attributes import DEPLOYMENT_ENVIRONMENT_NAME
from opentelemetry.semconv.attributes.service_attributes import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_NAMESPACE,
    SERVICE_VERSION,
)
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from services.chassis import tracing
from services.chassis.settings import ServiceSettings
from services.chassis.span_export import FileExporter, ScrubbingExporter, SpanQueue

# A person who has just decided wants to see the trace; an exporter that is away must not fill the memory.
EXPORT_DELAY_MS = 500
QUEUE_SPANS_MAX = 8192
ATTRIBUTE_CHARACTERS_MAX = 2048

# The collector is in the same machine or cluster: a proxy for the web (http_proxy) does not know it.
_COLLECTOR_OPTIONS: Any = (("grpc.enable_http_proxy", 0),)

# Health checks and reflection: a probe a second would bury what matters.
UNTRACED_PREFIX = "/grpc."

_GATED_ASYNCPG = (
    *((asyncpg.connection.Connection, name) for name in ("execute", "executemany", "fetch", "fetchval", "fetchrow")),
    *((asyncpg.cursor.Cursor, name) for name in ("fetch", "forward", "fetchrow")),
    (asyncpg.cursor.CursorIterator, "__anext__"),
    *(
        (asyncpg.prepared_stmt.PreparedStatement, name)
        for name in ("fetch", "fetchval", "fetchrow", "executemany", "fetchmany")
    ),
)
_GATED_REDIS = (
    (redis.asyncio.Redis, "execute_command"),
    (redis.asyncio.client.Pipeline, "execute"),
    (redis.asyncio.client.Pipeline, "immediate_execute_command"),
)


class Telemetry:
    """A process's tracing; without an exporter it does nothing and costs nothing.

    Args:
        ratio: see ServiceSettings.trace_ratio.
        process: resource attributes of its spans, beside the service's name.
    """

    def __init__(
        self, service: str, exporter: SpanExporter | None, *, ratio: float, process: Mapping[str, str] | None = None
    ) -> None:
        self._ratio = ratio
        self._exporter = exporter
        self._plain: list[tuple[type, str, Any]] = []
        self._provider: TracerProvider | None = None
        if exporter is not None:
            self._provider = _provider(Resource.create({SERVICE_NAME: service, **(process or {})}), exporter, ratio)
            self._install(self._provider)

    def server_interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """What a gRPC server needs to trace the calls that are sampled."""
        if self._provider is None:
            return []
        interceptor = aio_server_interceptor(self._provider, filter_=self.sampled_call)  # type: ignore[no-untyped-call]
        # The guard writes its streams (chassis.rpc_guard): each is one call that is awaited, and ends where it began.
        interceptor._intercept_aio_server_stream = interceptor._intercept_aio_server_unary
        return [interceptor]

    def sampled_call(self, call: grpc.HandlerCallDetails) -> bool:
        """Whether to trace the call: as its caller decided, else by the dice."""
        if call.method.startswith(UNTRACED_PREFIX):
            return False
        for key, value in call.invocation_metadata or ():
            if key == tracing.TRACEPARENT:
                # The last two digits are the flags; bit 0 says sampled.
                return len(value) == 55 and str(value)[54] in "13579bdf"
        return random.random() < self._ratio

    def flush(self) -> None:
        """Export what has ended so far; blocks."""
        if self._provider is not None:
            self._provider.force_flush()

    def delete_old(self) -> None:
        """Delete traces in files that are too old; to be called once a day."""
        if isinstance(self._exporter, FileExporter):
            self._exporter.delete_old()

    def shutdown(self) -> None:
        """Export what has not been exported, stop, and leave gRPC, asyncpg and Redis as they were; blocks."""
        if self._provider is None:
            return
        tracing.use_tracer(None)
        for owner, name, plain in self._plain:
            setattr(owner, name, plain)
        AsyncPGInstrumentor().uninstrument()  # type: ignore[no-untyped-call]
        RedisInstrumentor().uninstrument()
        self._provider.shutdown()
        self._provider = None

    def _install(self, provider: TracerProvider) -> None:
        interceptors = aio_client_interceptors(provider)  # type: ignore[no-untyped-call]
        tracing.use_tracer(provider.get_tracer("comity"), interceptors=interceptors)
        gates = [(owner, name, getattr(owner, name)) for owner, name in (*_GATED_ASYNCPG, *_GATED_REDIS)]
        AsyncPGInstrumentor().instrument(tracer_provider=provider)  # type: ignore[no-untyped-call]
        RedisInstrumentor().instrument(tracer_provider=provider)
        for owner, name, plain in gates:
            instrumented = getattr(owner, name)
            # What uninstrument() expects to find again.
            self._plain.append((owner, name, owner.__dict__[name]))
            setattr(owner, name, _gate(plain, instrumented))


def setup(service: str, settings: ServiceSettings) -> Telemetry:
    """Set up tracing for this process; once, before the first channel or pool is made."""
    exporter: SpanExporter | None = None
    if settings.otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=True, channel_options=_COLLECTOR_OPTIONS)
    elif settings.traces_dir:
        exporter = FileExporter(Path(settings.traces_dir), service)
    return Telemetry(service, exporter, ratio=settings.trace_ratio, process=process_of(settings))


def process_of(settings: ServiceSettings) -> dict[str, str]:
    """Which process spans are from, beside its service's name; what is not known is left out."""
    told = {
        SERVICE_NAMESPACE: settings.namespace,
        # Not the process id: that of every container is 1.
        SERVICE_INSTANCE_ID: settings.instance or uuid4().hex,
        SERVICE_VERSION: settings.version,
        DEPLOYMENT_ENVIRONMENT_NAME: settings.environment,
    }
    return {name: value for name, value in told.items() if value}


class HeadSampler(Sampler):
    """Samples the roots that were decided on before the span was begun, and other roots by the dice.

    A server span is begun only once the filter has said yes, a consumer span only for a sampled producer: to throw
    the dice for those again would square the ratio.
    """

    def __init__(self, ratio: float) -> None:
        self._by_dice = TraceIdRatioBased(ratio)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Whether the root records."""
        decided = kind in (SpanKind.SERVER, SpanKind.CONSUMER)
        sampler: Sampler = ALWAYS_ON if decided else self._by_dice
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """The sampler by name."""
        return f"HeadSampler({self._by_dice.rate})"


def _provider(resource: Resource, exporter: SpanExporter, ratio: float) -> TracerProvider:
    provider = TracerProvider(
        sampler=ParentBased(HeadSampler(ratio)),
        resource=resource,
        span_limits=SpanLimits(max_attribute_length=ATTRIBUTE_CHARACTERS_MAX),
        # The lifecycle shuts it down in its order.
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        SpanQueue(ScrubbingExporter(exporter), spans_max=QUEUE_SPANS_MAX, delay_ms=EXPORT_DELAY_MS)
    )
    return provider


def _gate(plain: Callable[..., Any], instrumented: Callable[..., Any]) -> Callable[..., Any]:
    """The instrumented function inside a sampled call, the plain one elsewhere."""

    @functools.wraps(plain)
    def gated(*args: Any, **kwargs: Any) -> Any:
        return (instrumented if tracing.sampled() else plain)(*args, **kwargs)

    return gated
