"""Every SQL constant fits the tables."""

from collections.abc import Awaitable, Callable

import asyncpg

from services.feedback.store import archive, behavior, decisions, progress, schemas


async def test_statements_can_be_prepared(database: Callable[[str], Awaitable[str]]) -> None:
    """On a freshly migrated database."""
    modules = (archive, behavior, decisions, progress, schemas)
    constants = {name: text for module in modules for name, text in vars(module).items() if name.endswith("_SQL")}
    assert len(constants) > 15
    connection = await asyncpg.connect(await database("feedback"))
    try:
        for statement in constants.values():
            if not statement.startswith("LOCK"):
                await connection.prepare(statement)
    finally:
        await connection.close()
