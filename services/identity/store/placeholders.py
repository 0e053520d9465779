"""The values that the site says name nobody, held in memory and read again every second: no Resolve waits for them."""

import asyncio
from collections.abc import Sequence

from services.chassis.postgres import Pool, acquire, transaction
from services.identity.domain.presented import Placeholders, placeholders

POLL_S = 1.0

VALUES_SQL = "SELECT value FROM placeholders ORDER BY value"
# One publisher at a time, or the lists of two would be mixed.
LOCK_SQL = "LOCK TABLE placeholders IN EXCLUSIVE MODE"
DELETE_SQL = "DELETE FROM placeholders"
INSERT_SQL = "INSERT INTO placeholders (value) SELECT unnest($1::text[])"


class PostgresPlaceholders:
    """handlers.PlaceholderBook; load it before it is asked."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._values: list[str] = []
        self._known = placeholders()

    @property
    def known(self) -> Placeholders:
        """See handlers.PlaceholderBook."""
        return self._known

    async def load(self) -> None:
        """Read what is published now."""
        async with acquire(self._pool) as connection:
            self._hold([row["value"] for row in await connection.fetch(VALUES_SQL)])

    async def publish(self, values: Sequence[str]) -> bool:
        """See handlers.PlaceholderBook."""
        wanted = sorted(set(values))
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_SQL)
            changed = wanted != [row["value"] for row in await connection.fetch(VALUES_SQL)]
            if changed:
                await connection.execute(DELETE_SQL)
                await connection.execute(INSERT_SQL, wanted)
        self._hold(wanted)
        return changed

    async def run(self) -> None:
        """Keep up with what other replicas publish, for ever."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.load()

    def _hold(self, values: list[str]) -> None:
        if values != self._values:
            self._values, self._known = values, placeholders(values)
