"""Has the embedded servers put away what they no longer need, so that a scan of their files sees what is kept.

Postgres leaves the bytes of a deleted row in its page, and in its write-ahead log, until it needs the room. That is
within the horizon that a receipt names; a scan right after an erasure asks for it to be done now.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from redis.asyncio import Redis

from cli.output import Progress
from cli.stack.state import DataDir, State
from services.chassis.errors import Kind, ServiceError

TIMEOUT_S = 300.0
POLL_S = 0.02
RUNNING_SQL = """
SELECT pid, xact_start FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
"""
DATABASES_SQL = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"


def folders_of(data_dir: Path) -> list[Path]:
    """The data directory, and what lies elsewhere: Postgres' folder, and consent's journal.

    Raises:
        ServiceError: FAILED_PRECONDITION when there is no such folder.
    """
    folder = DataDir(data_dir)
    if not folder.path.is_dir():
        raise _refusal("NOT_A_DATA_DIR", f"{data_dir} is no folder; name one with --data-dir")
    state = folder.read()
    postgres = folder.postgres(state.stack_id) if state is not None else folder.path
    elsewhere = (one for one in (postgres, folder.journal()) if not one.is_relative_to(folder.path) and one.is_dir())
    return [folder.path, *elsewhere]


@asynccontextmanager
async def settled(data_dir: Path, tell: Progress) -> AsyncIterator[None]:
    """While the block runs: Postgres holds no bytes of deleted rows, and Valkey's memory lies in a file.

    Tables are locked for a moment each while they are written anew.

    Raises:
        ServiceError: FAILED_PRECONDITION where the servers are not embedded, or do not run.
    """
    folder = DataDir(data_dir)
    state = folder.read()
    if state is None or {"postgres", "valkey"} & set(state.external):
        raise _refusal("NOT_EMBEDDED", "--settle is for servers that `comity up` started; settle others yourself")
    try:
        await _settle_postgres(state, tell)
        dump = await _dump_valkey(state, folder, tell)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise _refusal("NOT_SETTLED", f"the servers of {data_dir} do not answer ({type(error).__name__})") from error
    try:
        yield
    finally:
        dump.unlink(missing_ok=True)


async def _settle_postgres(state: State, tell: Progress) -> None:
    admin = await asyncpg.connect(state.urls["postgres"], command_timeout=TIMEOUT_S)
    try:
        for row in await admin.fetch(DATABASES_SQL):
            name = row["datname"]
            tell(f"vacuuming {name}")
            parts = urlsplit(state.urls["postgres"])
            connection = await asyncpg.connect(urlunsplit(parts._replace(path=f"/{name}")), command_timeout=TIMEOUT_S)
            try:
                await _older_ended(connection)
                # FULL writes each table anew; a plain one leaves the bytes in the page.
                await connection.execute("VACUUM (FULL)")
            finally:
                await connection.close()
        tell("ending the write-ahead log")
        # Twice, because the first checkpoint still needs the segment that it was begun in.
        for _ in range(2):
            await admin.execute("SELECT pg_switch_wal()")
            await admin.execute("CHECKPOINT")
    finally:
        await admin.close()


async def _older_ended(connection: asyncpg.Connection) -> None:
    """Returns once every transaction that runs now has ended: rows that one of them may still see are written anew."""
    older = set(await connection.fetch(RUNNING_SQL))
    async with asyncio.timeout(TIMEOUT_S):
        while older:
            await asyncio.sleep(POLL_S)
            older &= set(await connection.fetch(RUNNING_SQL))


async def _dump_valkey(state: State, folder: DataDir, tell: Progress) -> Path:
    tell("dumping valkey")
    client: Redis = Redis.from_url(state.urls["valkey"], socket_timeout=TIMEOUT_S)
    try:
        # Compressed strings would hide what is looked for.
        await client.config_set("rdbcompression", "no")
        await client.save()
    finally:
        await client.aclose()
    return folder.valkey / "dump.rdb"


def _refusal(reason: str, message: str) -> ServiceError:
    return ServiceError(Kind.FAILED_PRECONDITION, reason, message)
