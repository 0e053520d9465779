"""One among the replicas at a time, by an advisory lock that ends with its connection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from services.chassis.postgres import Pool, acquire

TRY_SQL = "SELECT pg_try_advisory_lock(hashtext($1))"
RELEASE_SQL = "SELECT pg_advisory_unlock(hashtext($1))"
# How long nobody leads when a leader has died.
TRY_EVERY_S = 0.5


@asynccontextmanager
async def leading(pool: Pool, name: str) -> AsyncIterator[Callable[[], bool]]:
    """Waits until this process leads under *name*; gives a function that says whether it still does.

    The answer can be late by a step: what a leader does must be right also when two of them do it.
    """
    while True:
        async with acquire(pool) as connection:
            if await connection.fetchval(TRY_SQL, name):
                try:
                    yield lambda: not connection.is_closed()
                finally:
                    if not connection.is_closed():
                        await connection.execute(RELEASE_SQL, name)
                return
        await asyncio.sleep(TRY_EVERY_S)
