"""Every statement is a constant, and fits the tables of the service that runs it."""

import ast
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from services.consent.store.ledger import STANDINGS_SQL
from services.identity.store.keys import KEYS_SQL
from services.identity.store.subjects import SUBJECTS_SQL
from tests.arch.code import SERVICES, name_of, service_modules, source_files, tree

STATEMENT = re.compile(r"(SELECT|INSERT|UPDATE|DELETE|WITH|TRUNCATE|LOCK|MERGE|COPY)\s", re.IGNORECASE)
RUNNERS = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany", "cursor", "prepare"}


def statements() -> Iterator[tuple[str, str, str]]:
    """(service, name, SQL) of every constant that is a statement; the chassis' are tried on identity's database."""
    for module in service_modules():
        service = module.__name__.split(".")[1]
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, str) and STATEMENT.match(value.lstrip()):
                yield (service if service in SERVICES else "identity", f"{module.__name__}.{name}", value)


ALL = sorted(statements())


@pytest.mark.parametrize("service", SERVICES)
async def test_every_statement_prepares_on_a_migrated_database(
    database: Callable[[str], Awaitable[str]], service: str
) -> None:
    """No statement names a table, column or type that the service's migrations do not give."""
    connection = await asyncpg.connect(await database(service))
    problems = []
    try:
        for owner, name, sql in ALL:
            if owner == service:
                try:
                    await connection.prepare(sql)
                except asyncpg.PostgresError as error:
                    problems.append(f"{name}: {error}")
    finally:
        await connection.close()
    assert not problems, "\n".join(problems)


# Asked for every batch of Decides, about as many people as happen to wait.
OF_EVERY_DECIDE = [("consent", STANDINGS_SQL), ("identity", SUBJECTS_SQL), ("identity", KEYS_SQL)]
# Postgres plans a statement anew so often before it considers one plan for all.
TRIED_FIRST = 5


@pytest.mark.parametrize(("service", "sql"), OF_EVERY_DECIDE)
async def test_a_read_of_every_decide_is_not_planned_anew(
    database: Callable[[str], Awaitable[str]], service: str, sql: str
) -> None:
    """However many people it is about: planning it would cost more than running it."""
    connection = await asyncpg.connect(await database(service))
    try:
        read = await connection.prepare(sql, name="read")
        for people_count in range(1, 3 * TRIED_FIRST):
            await read.fetch([f"person-{k}" for k in range(people_count)])
        planned = await connection.fetchval("SELECT custom_plans FROM pg_prepared_statements WHERE name = 'read'")
    finally:
        await connection.close()
    assert planned == TRIED_FIRST


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_statements_to_try(service: str) -> None:
    """The test above finds what it looks for."""
    assert sum(owner == service for owner, _, _ in ALL) >= 3


def test_statements_are_constants() -> None:
    """No statement is written, or put together, where it is run: then nothing could try it beforehand."""
    assert not [problem for path in source_files("services") for problem in inline_statements(path)]


def inline_statements(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RUNNERS:
            for argument in node.args[:1]:
                literal = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                if literal or isinstance(argument, ast.JoinedStr | ast.BinOp):
                    yield f"{name_of(path)}:{node.lineno}: {ast.unparse(argument)[:60]}"
