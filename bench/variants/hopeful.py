"""The wrong Revoke: a COMMIT whose answer was lost is reported as done, without a look whether it is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import services.consent.main as wiring
from services.chassis.lifecycle import run
from services.chassis.postgres import Connection, Pool, transaction
from services.consent.store import ledger


async def _surely(_: Connection) -> bool:
    return True


@asynccontextmanager
async def hopeful(pool: Pool, *, verify: Any = None) -> AsyncIterator[Connection]:
    """Stands where `transaction` stands."""
    async with transaction(pool, verify=_surely) as connection:
        yield connection


if __name__ == "__main__":
    with patch.object(ledger, "transaction", hopeful):
        run("consent", wiring.Settings, wiring.build)
