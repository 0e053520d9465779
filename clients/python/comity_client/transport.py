"""Calls that come back on time: an answer, or the word for why there is none."""

import asyncio
import os
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

try:
    from opentelemetry import trace
except ImportError:  # the caller traces nothing, or not with it
    trace = None  # type: ignore[assignment]

from comity_client.errors import FieldError, ForkedError, InvalidAddressError, InvalidRequestError, invalid_request
from comity_client.timing import with_retries, within

# What the way back to the caller takes: the server must be done by then.
SHAVE_S = 0.002
TIMEOUT_S_MIN = 0.001
CAUSE_CHARACTERS_MAX = 300
_HOST_AND_PORT = re.compile(r"(?:dns:(?:///)?)?(?:[\w.-]+|\[[\da-fA-F:.%]+\]):(\d{1,5})", re.ASCII)
# gRPC's other ways to name a server.
_TARGETS = ("unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:")
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
        cause: the same for people: where, what and, as far as it can be told, what to do.
        refusal: what it was refused for, by the server or here; None where it was not.
        is_mistake: the refusal tells of a mistake in the program.
    """

    answer: Any | None = None
    why: str = ""
    cause: str = ""
    refusal: InvalidRequestError | None = None
    is_mistake: bool = False


class Transport:
    """Channels to a few addresses, and unary calls over them.

    A channel belongs to the event loop that made it, so each loop has its own; those of loops that ended are closed.
    In a child of a process that was connected gRPC hangs or crashes, so nothing there touches it.

    Args:
        retries_max: further tries while the server is unavailable and time is left.
        raise_on_invalid: whether a mistake in the program raises: a refusal that tells of one, a fork.
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
        self._channels: dict[asyncio.AbstractEventLoop, dict[str, grpc.aio.Channel]] = {}
        self._closed = False

    def connect(self, address: str) -> grpc.aio.Channel:
        """The running loop's channel to the address; it begins to connect when it is first asked for.

        Raises:
            ForkedError: a client was connected before this process was forked.
        """
        if self._closed:
            raise ConnectionError("the client is closed")
        if _is_forked():
            raise ForkedError
        channels = self._of_loop(asyncio.get_running_loop())
        channel = channels.get(address)
        if channel is None:
            _note_process(self)
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(address, self._credentials, options=_OPTIONS)
            channel.get_state(try_to_connect=True)
            channels[address] = channel
        return channel

    def _of_loop(self, loop: asyncio.AbstractEventLoop) -> dict[str, grpc.aio.Channel]:
        # gRPC closes a channel that nobody holds any more; close() itself would need the loop that is gone. Each step
        # is one of the dictionary's own, because other threads are here, too.
        for ended in [one for one in list(self._channels) if one.is_closed()]:
            self._channels.pop(ended, None)
        return self._channels.setdefault(loop, {})

    def refuse(self, error: FieldError) -> Outcome:
        """How a call ends whose request cannot be sent.

        Raises:
            InvalidRequestError: a mistake in the program is why (unless raise_on_invalid is off).
        """
        if self._raise_on_invalid and not error.from_visitor:
            raise error.as_invalid_request() from None
        return unsent(error)

    async def close(self) -> None:
        """Close the channels; calls in flight end without an answer."""
        self._closed = True
        if _is_forked():
            return
        channels, self._channels = self._channels, {}
        for channel in channels.pop(asyncio.get_running_loop(), {}).values():
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
            ForkedError: a client was connected before this process was forked (unless raise_on_invalid is off).
        """
        if _is_forked():
            if self._raise_on_invalid:
                raise ForkedError
            return Outcome(why="CLIENT_FORKED", cause=str(ForkedError()))
        traceparent = traceparent or _current_trace_context()
        metadata = (("traceparent", traceparent),) if _is_trace_context(traceparent) else ()
        time_s = deadline_at - asyncio.get_running_loop().time()

        async def once(left_s: float) -> Any:
            call = method(self.connect(address))
            return await call(request, timeout=max(TIMEOUT_S_MIN, left_s - SHAVE_S), metadata=metadata)

        work = with_retries(once, deadline_at=deadline_at, retries_max=self._retries_max)
        try:
            return Outcome(await within(work, time_s))
        except TimeoutError:
            return Outcome(why="CLIENT_DEADLINE_EXCEEDED", cause=self._late(address, time_s))
        except grpc.aio.AioRpcError as error:
            outcome = _failed(error, address)
            if outcome.is_mistake and outcome.refusal is not None and self._raise_on_invalid:
                raise outcome.refusal from error
            return outcome
        except Exception as error:  # whatever else goes wrong between here and the server is an outage to the caller
            return Outcome(why="CLIENT_ERROR", cause=_cause(address, f"{type(error).__name__}: {error}"))

    def _late(self, address: str, time_s: float) -> str:
        """Why there is no answer in time: one that is late, or nobody that could be reached."""
        channel = self._channels.get(asyncio.get_running_loop(), {}).get(address)
        state = "CLOSED" if channel is None else channel.get_state().name
        return _cause(address, f"no answer within {time_s * 1000:.0f} ms; the connection is {state}")


def check_address(field: str, address: object) -> None:
    """Refuse what cannot be an address, which would else look like an outage for ever.

    Raises:
        InvalidAddressError: it is none.
    """
    if isinstance(address, str):
        found = _HOST_AND_PORT.fullmatch(address)
        if address.startswith(_TARGETS) or (found is not None and 0 < int(found[1]) < 65536):
            return
    raise InvalidAddressError(field, is_url=isinstance(address, str) and "://" in address)


def unsent(error: FieldError) -> Outcome:
    """How a call ends whose request cannot be sent."""
    mistake = error.as_invalid_request()
    return Outcome(why="CLIENT_REFUSED", cause=str(error), refusal=mistake, is_mistake=not error.from_visitor)


def _failed(error: grpc.aio.AioRpcError, address: str) -> Outcome:
    code = error.code()
    cause = _cause(address, f"{code.name}: {error.details()}")
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return Outcome(why="CLIENT_ERROR", cause=cause, refusal=invalid_request(error))
    if code is grpc.StatusCode.UNIMPLEMENTED:
        told = "the service there does not answer this call: give feedback_address, consent_address, identity_address"
        return Outcome(why="CLIENT_ERROR", cause=_cause(address, f"{code.name}: {told} where they are others"))
    if code not in _REFUSALS:
        return Outcome(why=_OUTAGES.get(code, "CLIENT_ERROR"), cause=cause)
    refusal = invalid_request(error)
    return Outcome(why="CLIENT_REFUSED", cause=cause, refusal=refusal, is_mistake=refusal.reason != _NOBODY)


def _cause(address: str, text: str) -> str:
    """One line for a log: whoever answers may be anybody."""
    return "".join(c if c.isprintable() else " " for c in f"{address}: {text}")[:CAUSE_CHARACTERS_MAX]


def _current_trace_context() -> str:
    """W3C trace context of the caller's current OpenTelemetry span; empty where there is none."""
    context = None if trace is None else trace.get_current_span().get_span_context()
    if context is None or not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _is_trace_context(text: object) -> bool:
    return isinstance(text, str) and _TRACEPARENT.fullmatch(text) is not None


# Of the process, not of a client: gRPC's threads are, and a fork leaves all of them behind.
_transports: weakref.WeakSet[Transport] = weakref.WeakSet()
_connected_pids: list[int] = []
_inherited: list[object] = []


def _note_process(transport: Transport) -> None:
    """Remember that this process uses gRPC, and which channels a child must keep: to free one there hangs."""
    if not _connected_pids:
        _connected_pids.append(os.getpid())
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
            os.register_at_fork(after_in_child=lambda: _inherited.extend([one._channels for one in _transports]))
    _transports.add(transport)


def _is_forked() -> bool:
    return bool(_connected_pids) and _connected_pids[0] != os.getpid()
