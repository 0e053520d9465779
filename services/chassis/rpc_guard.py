"""What stands between the wire and every handler: places, sizes, deadlines, limits, errors made statuses, metrics.

A guard is put around each method when its servicer is added, with all that can be known then: it is on the path of
every Decide. Why no interceptor: one would look the same up again for every call, and could be left out.
"""

import asyncio
import inspect
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
import structlog
from comity.common.v1 import options_pb2 as pb
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE

from services.chassis import metrics, tracing
from services.chassis.deadline import start_deadline
from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.chassis.limits import as_problems, check_of, refusal
from services.chassis.rpc_places import Held, Places
from services.chassis.status import to_status

# Generic for the type checker alone.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

REQUEST_BYTES_MAX = 262_144

_log = structlog.get_logger(__name__)


def guard(service: str, name: str, handler: Any, places: Places) -> "Handler | None":
    """The method's handler with its guard around it; None for a method that the servicer does not implement.

    Args:
        places: of all calls of the process.

    Raises:
        ValueError: the handler is not what grpc.aio can run without a thread, or streams without bounds.
    """
    method = _Method(service, name, handler.request_deserializer, places)
    behavior, wrap = _BEHAVIORS[handler.request_streaming, handler.response_streaming](handler)
    if behavior.__module__.endswith("_pb2_grpc"):
        # Inherited from generated code; gRPC itself answers UNIMPLEMENTED.
        return None
    if not (inspect.isasyncgenfunction if handler.response_streaming else inspect.iscoroutinefunction)(behavior):
        kind = "an async generator" if handler.response_streaming else "a coroutine function"
        raise ValueError(f"{method.path} must be {kind}")
    guarded = _guard_stream if handler.response_streaming else _guard_unary
    made: Handler = wrap(
        guarded(behavior, method, handler.request_streaming),
        request_deserializer=method.deserialize,
        response_serializer=handler.response_serializer,
    )
    return made


_BEHAVIORS: dict[tuple[bool, bool], Callable[[Any], tuple[Any, Any]]] = {
    (False, False): lambda handler: (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
    (False, True): lambda handler: (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
    (True, False): lambda handler: (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
    (True, True): lambda handler: (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
}


def is_public(service: str, name: str) -> bool:
    """Whether the method is for backends, too."""
    rules = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].GetOptions().Extensions[pb.rules]
    return rules.public


class _Method:
    """What is known of a method before it is called."""

    def __init__(self, service: str, name: str, deserialize: Callable[[bytes], Any], places: Places) -> None:
        descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        rules = descriptor.GetOptions().Extensions[pb.rules]
        bounds = (rules.concurrent_max, rules.idle_timeout_s, rules.deadline_s)
        if (descriptor.client_streaming or descriptor.server_streaming) and not all(bounds):
            raise ValueError(f"{name} streams: declare concurrent_max, idle_timeout_s and deadline_s in its rules")
        self.idle_timeout_s, self.deadline_s = rules.idle_timeout_s, rules.deadline_s or math.inf
        self._places = places
        self._own_places = Places(rules.concurrent_max, of=name) if rules.concurrent_max else None
        self.path = f"/{service}/{name}"
        self.name = name
        self.deadline_required = rules.deadline_required
        self.request_name = descriptor.input_type.name
        self._bytes_max = rules.request_bytes_max or REQUEST_BYTES_MAX
        self._parse = deserialize
        self._check = check_of(descriptor.input_type)
        self._ok = metrics.RPC_SERVER_LATENCY_S.labels(self.path, "OK")

    def deserialize(self, raw: bytes) -> Any:
        """The request, or the refusal that stands in its place: an error raised here would reach nobody as itself."""
        if len(raw) > self._bytes_max:
            problem = f"has {len(raw):,} bytes; at most {self._bytes_max:,} are allowed: send less in one call"
            return _refused("REQUEST_TOO_LARGE", self.request_name, problem)
        try:
            return self._parse(raw)
        except DecodeError:
            return _refused("MALFORMED_REQUEST", self.request_name, "cannot be parsed: send the message of this method")

    def place(self, context: Any) -> Held:
        """A place for the call while it runs; held by a with-statement."""
        # Who calls is looked up only where it is counted: every Decide comes by here.
        return Held(self._places, self._own_places, "" if self._own_places is None else context.peer())

    def admit(self, context: Any) -> None:
        """Take the call's deadline over, or refuse the call."""
        remaining_s = context.time_remaining()
        if remaining_s is None:
            if self.deadline_required:
                raise _refused("DEADLINE_REQUIRED", "deadline", f"is missing; give the call of {self.name} a timeout")
            if self.deadline_s != math.inf:
                start_deadline(self.deadline_s)
        elif remaining_s <= 0.0:
            raise ServiceError(Kind.DEADLINE, "DEADLINE_EXCEEDED", "the deadline had passed before the call was begun")
        else:
            start_deadline(min(remaining_s, self.deadline_s))

    def check(self, request: Any) -> None:
        """Returns when the request keeps its limits."""
        if request.__class__ is ServiceError:
            raise request
        if self._check is not None and (found := self._check(request)):
            raise refusal(as_problems(found))

    def observe(self, code: str, took_s: float) -> None:
        """Count the call."""
        (self._ok if code == "OK" else metrics.RPC_SERVER_LATENCY_S.labels(self.path, code)).observe(took_s)


def _refused(reason: str, field: str, problem: str) -> ServiceError:
    return ServiceError(Kind.INVALID, reason, f"{field}: {problem}", problems=(FieldProblem(field, problem),))


# In the place of a next message: the stream has ended.
_END: Any = object()


async def _checked(requests: AsyncIterator[Any], method: _Method) -> AsyncIterator[Any]:
    """The messages that a caller streams, each within its limits and its time."""
    while True:
        async with _bounded(method.idle_timeout_s, _idle(method, "sent")):
            request = await anext(requests, _END)
        if request is _END:
            return
        method.check(request)
        yield request


def _guard_unary(behavior: Any, method: _Method, request_streaming: bool) -> Any:
    async def guarded(request: Any, context: Any) -> Any:
        started_s, code = time.perf_counter(), "OK"
        try:
            with method.place(context):
                method.admit(context)
                if request_streaming:
                    async with _bounded(method.deadline_s, _too_long(method)):
                        return await behavior(_checked(aiter(request), method), context)
                method.check(request)
                return await behavior(request, context)
        except BaseException as error:
            code = _code_of(error)
            await _abort(error, context, method)
            raise
        finally:
            method.observe(code, time.perf_counter() - started_s)

    return guarded


def _guard_stream(behavior: Any, method: _Method, request_streaming: bool) -> Any:
    """Writes what the handler yields.

    gRPC would take a generator, too, but one that its caller leaves is then finished by whichever task collects it:
    late, and where the spans and deadlines inside cannot end, which is an ERROR in the log for each.
    """

    async def guarded(request: Any, context: Any) -> None:
        started_s, code = time.perf_counter(), "OK"
        try:
            with method.place(context):
                ends_at_s = _from_now(method.deadline_s)
                method.admit(context)
                if request_streaming:
                    request = _checked(aiter(request), method)
                else:
                    method.check(request)
                async with aclosing(behavior(request, context)) as responses:
                    while True:
                        async with _bounded_at(ends_at_s, _too_long(method)):
                            response = await anext(responses, _END)
                        if response is _END:
                            break
                        async with _bounded_at(
                            min(_from_now(method.idle_timeout_s), ends_at_s), _idle(method, "taken")
                        ):
                            # gRPC waits with it for as long as the caller takes nothing.
                            await context.write(response)
        except BaseException as error:
            code = _code_of(error)
            await _abort(error, context, method)
            raise
        finally:
            method.observe(code, time.perf_counter() - started_s)

    return guarded


@asynccontextmanager
async def _bounded_at(until_s: float, late: ServiceError) -> AsyncIterator[None]:
    """Raises *late* when what runs inside has not ended by *until_s* on the loop's clock."""
    try:
        async with asyncio.timeout_at(until_s) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise late from None


def _bounded(seconds: float, late: ServiceError) -> AbstractAsyncContextManager[None]:
    """Raises *late* when what runs inside takes longer."""
    return _bounded_at(_from_now(seconds), late)


def _from_now(seconds: float) -> float:
    """The moment, on the loop's clock."""
    return asyncio.get_running_loop().time() + seconds


def _idle(method: _Method, what: str) -> ServiceError:
    message = f"nothing was {what} for {method.idle_timeout_s} s; begin the call of {method.name} again"
    return ServiceError(Kind.DEADLINE, "STREAM_IDLE", message)


def _too_long(method: _Method) -> ServiceError:
    message = f"a call of {method.name} may take {method.deadline_s:g} s; ask for less in one call"
    return ServiceError(Kind.DEADLINE, "STREAM_TOO_LONG", message)


def _code_of(error: BaseException) -> str:
    if isinstance(error, ServiceError):
        return error.kind.value
    # GeneratorExit: the caller has left a stream.
    return "CANCELLED" if isinstance(error, asyncio.CancelledError | GeneratorExit) else Kind.INTERNAL.value


async def _abort(error: BaseException, context: Any, method: _Method) -> None:
    """End the call with the error's status; returns where the error ends it by itself: cancelled, aborted before."""
    tracing.set_attributes({ERROR_TYPE: _code_of(error)})
    if isinstance(error, ServiceError):
        tracing.set_attributes({tracing.COMITY_ERROR_REASON: error.reason})
        if error.kind is Kind.INTERNAL:
            _log.error("call failed", method=method.path, reason=error.reason, exc_info=error)
        status = to_status(error)
        await context.abort(status.code, status.details, status.trailing_metadata)
    if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
        # A bug. Its text may hold anything, so the caller is told nothing.
        _log.error("call failed", method=method.path, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "")
