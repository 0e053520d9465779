"""Calls to other services: channels that survive restarts, deadlines that shrink, errors that come back typed."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import metrics, tracing
from services.chassis.deadline import shave
from services.chassis.errors import Kind, ServiceError
from services.chassis.status import from_call_error

Response = TypeVar("Response")

# The way back of an answer, and the caller's own last steps with it.
SHAVE_S = 0.002
RESPONSE_BYTES_MAX = 8 * 1024 * 1024

# For commands that run for long: so often is a call made whose failure may pass, with twice as long a pause each time.
TRIES_MAX = 6
PAUSE_S = 0.5
_PASSING = (Kind.DEADLINE, Kind.UNAVAILABLE, Kind.EXHAUSTED)

# Retried is only what no server has seen, or what one refused as it went down; commands are idempotent by request id.
# The throttle ends a retry storm: when more than half of the calls fail, none is retried.
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.010s",
                    "maxBackoff": "0.100s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.1},
    }
)
CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # Services are in the same machine or cluster; a proxy that a shell or an image names for the web (http_proxy)
    # does not know them.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config", SERVICE_CONFIG),
    # The resolver must not put another policy in its place.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A service that was restarted is found again within a second; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
    # Twenty problems with long paths exceed the 8 KiB a header block may have by default.
    ("grpc.max_metadata_size", 32_768),
)

_log = logging.getLogger(__name__)

# "Decided: not sampled". Without it the next service would throw dice of its own and trace half a call.
_NOT_SAMPLED = ((tracing.TRACEPARENT, f"00-{1:032x}-{1:016x}-00"),)


def connect(address: str) -> grpc.aio.Channel:
    """A channel to every replica behind the address, connecting from now on; it never fails, its calls may.

    Needs a running loop.
    """
    plain = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    plain.get_state(try_to_connect=True)
    interceptors = tracing.client_interceptors()
    if not interceptors:
        return plain
    return _SwitchingChannel(
        plain, grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS, interceptors=interceptors)
    )


async def warm(channel: grpc.aio.Channel, *, timeout_s: float = 5.0) -> bool:
    """Connect and make one call, in at most *timeout_s*; False when nobody answers yet: services start in any order.

    A first call on a cold channel takes longer than a Decide may.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await channel.channel_ready()
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except (TimeoutError, grpc.aio.AioRpcError):
        return False
    return True


async def call(
    method: Callable[..., Awaitable[Response]], request: Any, timeout_s: float, *, shave_s: float = SHAVE_S
) -> Response:
    """The answer of a unary method (`stub.Resolve`), within *timeout_s* and what the current call has left.

    Args:
        shave_s: kept back of what the current call has left, for the way back.

    Raises:
        ServiceError: as the other service raised it (kind, reason, message, problems), or UNAVAILABLE or DEADLINE.
    """
    try:
        return await method(request, timeout=_allowed_s(timeout_s, shave_s))
    except grpc.aio.AioRpcError as error:
        raise _counted(error, call_name(request)) from error


async def call_again(method: Callable[..., Awaitable[Response]], request: Any, timeout_s: float) -> Response:
    """As `call`, and again while its failure may pass: for requests that are idempotent, in commands that run for long.

    Args:
        timeout_s: of each try.
    """
    return await tried_again(call_name(request), lambda: call(method, request, timeout_s))


async def tried_again(name: str, work: Callable[[], Awaitable[Response]]) -> Response:
    """What *work* gives, begun again while its failure may pass; each time that is told as a warning.

    Raises:
        ServiceError: what it failed with the last time, naming the call and how often it was made.
    """
    for tries in range(1, TRIES_MAX + 1):
        try:
            return await work()
        except ServiceError as error:
            if error.kind not in _PASSING:
                raise
            if tries == TRIES_MAX:
                message = f"{name} was tried {tries} times, at last: {error.message}"
                raise ServiceError(error.kind, error.reason, message, problems=error.problems) from error
            _log.warning("%s: %s; it is tried again (%d of %d)", name, error.message, tries + 1, TRIES_MAX)
            await asyncio.sleep(PAUSE_S * 2 ** (tries - 1) * random.uniform(1.0, 1.5))
    raise AssertionError("the last try returns or raises")


def call_name(request: Any) -> str:
    """The call that takes this request, `decision.Replay`: every method has a request of its own."""
    if not isinstance(request, Message):
        return "the call"  # of a stream of requests
    package, _, message = request.DESCRIPTOR.full_name.rpartition(".")
    return f"{package.split('.')[1]}.{message.removesuffix('Request')}"


async def stream(
    method: Callable[..., AsyncIterable[Response]], request: Any, timeout_s: float, *, shave_s: float = SHAVE_S
) -> AsyncGenerator[Response, None]:
    """The answers of a streaming method, as they come; time and errors as of `call`."""
    try:
        async for response in method(request, timeout=_allowed_s(timeout_s, shave_s)):
            yield response
    except grpc.aio.AioRpcError as error:
        raise _counted(error, call_name(request)) from error


def _allowed_s(timeout_s: float, shave_s: float) -> float:
    """How long a call may take.

    Raises:
        ServiceError: DEADLINE when no time is left.
    """
    allowed_s = min(timeout_s, shave(shave_s))
    if allowed_s <= 0.0:
        raise ServiceError(Kind.DEADLINE, "DEADLINE_EXCEEDED", "no time was left to ask another service")
    return allowed_s


def _counted(error: grpc.aio.AioRpcError, name: str) -> ServiceError:
    metrics.RPC_CLIENT_FAILURES.labels(error.code().name).inc()
    return from_call_error(error, name)


class _Switch:
    """One method: traced inside a sampled call; elsewhere plain, because interceptors cost about as much as a call."""

    __slots__ = ("_plain", "_traced")

    def __init__(self, plain: Any, traced: Any) -> None:
        self._plain = plain
        self._traced = traced

    def __call__(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        if tracing.sampled():
            return self._traced(*args, metadata=metadata, **kwargs)
        return self._plain(*args, metadata=metadata or _NOT_SAMPLED, **kwargs)


class _SwitchingChannel(grpc.aio.Channel):
    """Two channels over the same connections, with and without interceptors; each call takes one of them."""

    def __init__(self, plain: grpc.aio.Channel, traced: grpc.aio.Channel) -> None:
        self._plain = plain
        self._traced = traced

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """A method with one request and one response."""
        return _Switch(self._plain.unary_unary(*args, **kwargs), self._traced.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """A method that answers with a stream."""
        return _Switch(self._plain.unary_stream(*args, **kwargs), self._traced.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """A method that takes a stream."""
        return _Switch(self._plain.stream_unary(*args, **kwargs), self._traced.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """A method that takes and answers with a stream."""
        return _Switch(self._plain.stream_stream(*args, **kwargs), self._traced.stream_stream(*args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        """Close both."""
        await self._plain.close(grace)
        await self._traced.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """State of the connections."""
        return self._plain.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when the state is another."""
        await self._plain.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when calls can be made."""
        await self._plain.channel_ready()
        await self._traced.channel_ready()

    async def __aenter__(self) -> "_SwitchingChannel":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
