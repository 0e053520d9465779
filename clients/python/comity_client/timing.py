"""The two things that keep a call inside its deadline: a timer of our own, and retries that know when to stop."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc

from comity_client.errors import retry_delay_s

T = TypeVar("T")
# Longest first pause between tries, doubled each time and drawn from [0, it): many clients must not come back at once.
RETRY_PAUSE_S = 0.01
# Of those who were told to wait equally long not all come back at the same moment.
SPREAD_MAX = 1.5
# The server cannot be reached; or the call met another one that changed the same thing, and is to be sent again.
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)


async def within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """What *work* gives, or TimeoutError on time even when *work* does not heed its cancellation.

    asyncio.timeout waits for what it cancels; a call that hangs in its cleanup would make it late. So the work
    is a task of its own that is told to stop and left behind.

    Raises:
        ConnectionAbortedError: the work was cancelled from below, as by closing its channel.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    finally:
        if not task.done():
            task.add_done_callback(_swallow)
            task.cancel()
    if not done:
        raise TimeoutError
    if task.cancelled():
        raise ConnectionAbortedError
    return task.result()


async def with_retries(call: Callable[[float], Awaitable[T]], *, deadline_at: float, retries_max: int) -> T:
    """What *call(seconds left)* gives, tried again while the server is unavailable or busy, and time is left.

    A server that takes no more says how long to wait: where that is too long, nothing is waited for.

    Args:
        deadline_at: on the loop's clock.
    """
    loop = asyncio.get_running_loop()
    attempt = 0
    while True:
        try:
            return await call(deadline_at - loop.time())
        except grpc.aio.AioRpcError as error:
            pause_s = _pause_s(error, attempt)
            if pause_s is None or attempt >= retries_max or loop.time() + pause_s >= deadline_at:
                raise
        await asyncio.sleep(pause_s)
        attempt += 1


def _pause_s(error: grpc.aio.AioRpcError, attempt: int) -> float | None:
    """How long to wait before the next try; None: another one is of no use."""
    if error.code() in _AGAIN:
        return random.uniform(0, RETRY_PAUSE_S * 2**attempt)
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    told_s = retry_delay_s(error)
    return None if told_s is None else told_s * random.uniform(1, SPREAD_MAX)


def _swallow(task: "asyncio.Task[Any]") -> None:
    """Take the outcome of work that nobody waits for any more, so that asyncio does not complain about it."""
    if not task.cancelled():
        task.exception()
