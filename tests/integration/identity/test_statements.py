"""Every SQL constant fits the tables."""

from typing import Any

from services.identity.store import holdings, keys, links, secrets, subjects


async def test_statements_can_be_prepared(identity: Any) -> None:
    """On a freshly migrated database."""
    constants = {
        name: text for module in (holdings, keys, links, secrets, subjects) for name, text in vars(module).items()
    }
    async with identity.pool.acquire() as connection:
        for statement in (text for name, text in constants.items() if name.endswith("_SQL")):
            await connection.prepare(statement)
