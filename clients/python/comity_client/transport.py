"""Calls that come back on time: an answer, or the word for why there is none."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from comity_client.errors import InvalidRequestError, invalid_request
from comity_client.timing import with_retries, within

# What the way back to the caller takes: the server must be done by then.
SHAVE_S = 0.002
TIMEOUT_S_MIN = 0.001
# W3C trace context. Anything else could be refused by gRPC itself, and costs the trace, never the answer.
_TRACEPARENT = re.compile(r"[\da-f]{2}-[\da-f]{32}-[\da-f]{16}-[\da-f]{2}", re.ASCII)
# Codes of a mistake in the program, not of an outage.
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
)
# What the server says where the person, not the program, is why: who is meant is nobody, or did not allow it.
_NOBODY = "NOBODY_NAMED"
_OUTAGES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "CLIENT_DEADLINE_EXCEEDED",
    grpc.StatusCode.UNAVAILABLE: "CLIENT_UNAVAILABLE",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "CLIENT_OVERLOADED",
}
_OPTIONS = (
    # Services are in the backend's own network; a proxy for the web (http_proxy) does not know them.
    ("grpc.enable_http_proxy", 0),
    ("grpc.lb_policy_name", "round_robin"),
    # Retries are ours: they must know the deadline and keep the request id.
    ("grpc.enable_retries", 0),
    # A server that comes back is used again within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 60_000),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended.

    Args:
        answer: None where there is none.
        why: the word for why there is none.
        refusal: what the server refused it for; None where it did not refuse.
        is_mistake: the refusal tells of a mistake in the program.
    """

    answer: Any | None = None
    why: str = ""
    refusal: InvalidRequestError | None = None
    is_mistake: bool = False


class Transport:
    """Channels to a few addresses, and unary calls over them.

    Args:
        retries_max: further tries while the server is unavailable and time is left.
        raise_on_invalid: whether a refusal that tells of a mistake in the program raises.
        credentials: for TLS; None: plain text.
    """

    def __init__(
        self,
        *,
        retries_max: int,
        raise_on_invalid: bool,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self._retries_max = retries_max
        self._raise_on_invalid = raise_on_invalid
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closed = False

    def connect(self, address: str) -> grpc.aio.Channel:
        """The channel to the address; it begins to connect when it is first asked for."""
        if self._closed:
            raise ConnectionError("the client is closed")
        channel = self._channels.get(address)
        if channel is None:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(address, self._credentials, options=_OPTIONS)
            channel.get_state(try_to_connect=True)
            self._channels[address] = channel
        return channel

    async def close(self) -> None:
        """Close the channels; calls in flight end without an answer."""
        self._closed = True
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def ask(
        self,
        address: str,
        method: Callable[[grpc.aio.Channel], Any],
        request: Any,
        deadline_at: float,
        *,
        traceparent: str = "",
    ) -> Outcome:
        """The answer, or why there is none, by *deadline_at* on the loop's clock.

        Args:
            method: gives the stub's method for a channel.
            traceparent: W3C trace context that the server's spans belong under; one that is malformed is left out.

        Raises:
            InvalidRequestError: the server refused the request as wrong (unless raise_on_invalid is off).
        """
        metadata = (("traceparent", traceparent),) if _is_trace_context(traceparent) else ()

        async def once(left_s: float) -> Any:
            call = method(self.connect(address))
            return await call(request, timeout=max(TIMEOUT_S_MIN, left_s - SHAVE_S), metadata=metadata)

        work = with_retries(once, deadline_at=deadline_at, retries_max=self._retries_max)
        try:
            return Outcome(await within(work, deadline_at - asyncio.get_running_loop().time()))
        except TimeoutError:
            return Outcome(why="CLIENT_DEADLINE_EXCEEDED")
        except grpc.aio.AioRpcError as error:
            outcome = _failed(error)
            if outcome.is_mistake and outcome.refusal is not None and self._raise_on_invalid:
                raise outcome.refusal from error
            return outcome
        except Exception:  # whatever else goes wrong between here and the server is an outage to the caller
            return Outcome(why="CLIENT_ERROR")


def _failed(error: grpc.aio.AioRpcError) -> Outcome:
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return Outcome(why="CLIENT_ERROR", refusal=invalid_request(error))
    if error.code() not in _REFUSALS:
        return Outcome(why=_OUTAGES.get(error.code(), "CLIENT_ERROR"))
    refusal = invalid_request(error)
    return Outcome(why="CLIENT_REFUSED", refusal=refusal, is_mistake=refusal.reason != _NOBODY)


def _is_trace_context(text: object) -> bool:
    return isinstance(text, str) and _TRACEPARENT.fullmatch(text) is not None
