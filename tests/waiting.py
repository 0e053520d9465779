"""Waiting for a condition, with a bound: no test sleeps for a time that is hoped to be enough."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PAUSE_S = 0.01


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float = 20.0) -> None:
    """Returns once the condition holds; fails the test when it does not in time."""
    give_up_at = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < give_up_at, f"{condition.__name__} did not become true within {within_s} s"
        await asyncio.sleep(PAUSE_S)
