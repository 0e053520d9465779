"""Waiting for a condition, with a bound: no test sleeps for a time that is hoped to be enough."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from services.chassis.rpc_server import RpcServer

PAUSE_S = 0.01


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_s: float = 60.0) -> None:
    """Returns once the condition holds; fails the test when it does not in time."""
    name = getattr(condition, "func", condition).__name__
    give_up_at = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < give_up_at, f"{name} did not become true within {within_s} s"
        await asyncio.sleep(PAUSE_S)


async def until_served(server: RpcServer) -> str:
    """The server's address, once it is reachable: it says so nowhere else."""

    async def is_served() -> bool:
        return server.port != 0

    await eventually(is_served)
    return f"127.0.0.1:{server.port}"
