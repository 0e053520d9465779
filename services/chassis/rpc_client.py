"""Calls to other services: channels that survive restarts, deadlines that shrink, errors that come back typed."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

Response = TypeVar("Response")


def connect(address: str) -> grpc.aio.Channel:
    """A channel to every replica behind the address, connecting from now on; it never fails, its calls may."""
    raise NotImplementedError


async def warm(channel: grpc.aio.Channel, *, timeout_s: float = 5.0) -> bool:
    """Wait until the channel is connected, at most *timeout_s*; False when it is not yet. Services start in any order."""
    raise NotImplementedError


async def call(
    method: Callable[..., Awaitable[Response]], request: Any, timeout_s: float, *, shave_s: float = 0.002
) -> Response:
    """The answer of a unary method (`stub.Resolve`), within *timeout_s* and what the current call has left.

    Raises:
        ServiceError: as the other service raised it (kind, reason, message, problems), or UNAVAILABLE or DEADLINE.
    """
    raise NotImplementedError
