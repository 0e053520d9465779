"""Wrong readers: what a cancelled read leaves behind is handed to whoever asks next.

SharedConnection is what Redis clients did in 2023: a connection on which a cancelled command's reply stays behind, so
that every later command is told what the one before it asked for. ClosingRanks is a gatherer that forgets who left
while their batch was under way, and hands the results to those who stayed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Connection

from services.chassis.gather import Gatherer

# A reply takes a moment to arrive, as over a network; here it would be there too soon for anybody to leave before it.
ON_THE_WAY_S = 0.001


class SharedConnection:
    """Stands where a RedisCache stands: everybody's reads on one connection, a turn each."""

    def __init__(self, url: str, *, prefix: str) -> None:
        where = urlsplit(url)
        self._connection = Connection(
            host=where.hostname or "127.0.0.1", port=where.port or 6379, password=where.password, protocol=2
        )
        self._prefix = prefix
        self._turn = asyncio.Lock()

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Whatever reply is next, which is the own one as long as nobody was ever cancelled."""
        async with self._turn:
            await self._connection.send_command("MGET", *(self._prefix + key for key in keys))
            await asyncio.sleep(ON_THE_WAY_S)
            reply: list[bytes | None] = await self._connection.read_response(disconnect_on_error=False)
            return reply

    async def set_newer_many(self, values: Mapping[str, tuple[int, bytes]], *, ttl_s: float) -> None:
        """Nothing: reads are what is tried."""

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.disconnect(nowait=True)


class ClosingRanks(Gatherer[Any, Any]):
    """Stands where a Gatherer stands, and gives results in order to those who still wait."""

    def __class_getitem__(cls, _: object) -> "type[ClosingRanks]":
        return cls

    async def _run(self, batch: list[Any], first: Any) -> None:
        try:
            results = await self._send([waiter.query for waiter in batch])
        except Exception as error:
            results = [error] * len(batch)
        waiting = [waiter for waiter in batch if not waiter.future.done()]
        for waiter, result in zip(waiting, results, strict=False):
            if isinstance(result, Exception):
                waiter.future.set_exception(result)
            else:
                waiter.future.set_result(result)
