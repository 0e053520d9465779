"""Brings a database's tables up to date: plain SQL files in dbmate's format, each applied once.

Files are immutable once applied: what ran is kept as a checksum, and a changed file is refused.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import asyncpg

from services.chassis.postgres import CONNECT_TIMEOUT_S, translate, translated

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Tables that every service has.
CHASSIS = Path(__file__).parent / "migrations"

# A migration waits this long for another process's, and for locks on tables in use; then it says so.
LOCK_TIMEOUT_MS = 60_000
NAME = re.compile(r"\d{4,}_[a-z0-9_]+\.sql")
UP = re.compile(r"^-- migrate:up[ \t]*$", re.MULTILINE)
DOWN = re.compile(r"^-- migrate:down[ \t]*$", re.MULTILINE)

LOCK_SQL = "SELECT pg_advisory_lock(hashtext('comity.migrations'))"
TABLE_SQL = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version text PRIMARY KEY, checksum bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
)
"""
APPLIED_SQL = "SELECT version, checksum FROM schema_migrations"
INSERT_SQL = "INSERT INTO schema_migrations (version, checksum) VALUES ($1, $2)"
HAS_LOG_SQL = "SELECT to_regclass('log_epoch') IS NOT NULL"
# Another cluster counts its transaction ids anew: what is written from now on comes after all there is.
EPOCH_SQL = """
UPDATE log_epoch SET epoch = log_epoch.epoch + 1, system_identifier = control.system_identifier
FROM pg_control_system() AS control WHERE log_epoch.system_identifier <> control.system_identifier
"""


class MigrationError(Exception):
    """The files and the database do not fit together; says which file and how to mend it."""


@dataclass(frozen=True, slots=True)
class _File:
    version: str
    checksum: bytes
    up: str


async def migrate(url: str, folder: Path) -> list[str]:
    """Apply the folder's files that have not been applied, in order of name; their names.

    The chassis' own folder comes first for every service: `migrate(url, CHASSIS)`, then the service's.

    Args:
        url: of the role that is to own the tables.
        folder: `<owner>/migrations` with `NNNN_name.sql` files that have a `-- migrate:up` line.

    Raises:
        MigrationError: a file was changed after it was applied, is not in the format, or its SQL fails.
        ServiceError: UNAVAILABLE when the database cannot be reached.
    """
    files = _read_all(folder)
    with translated():
        connection = await asyncpg.connect(
            url, timeout=CONNECT_TIMEOUT_S, server_settings={"lock_timeout": str(LOCK_TIMEOUT_MS)}
        )
        try:
            await connection.execute(LOCK_SQL)
            return await _apply_missing(connection, files)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)


async def _apply_missing(connection: Connection, files: list[_File]) -> list[str]:
    await connection.execute(TABLE_SQL)
    applied = {row["version"]: row["checksum"] for row in await connection.fetch(APPLIED_SQL)}
    for file in files:
        if applied.get(file.version, file.checksum) != file.checksum:
            raise MigrationError(
                f"{file.version} was changed after it was applied; restore it and write the change as a new file"
            )
    missing = [file for file in files if file.version not in applied]
    for file in missing:
        await _apply(connection, file)
    if await connection.fetchval(HAS_LOG_SQL):
        await connection.execute(EPOCH_SQL)
    return [file.version for file in missing]


async def _apply(connection: Connection, file: _File) -> None:
    """Run one file and note it, in one transaction."""
    try:
        async with connection.transaction():
            await connection.execute(file.up)
            await connection.execute(INSERT_SQL, file.version, file.checksum)
    except asyncpg.PostgresError as error:
        if translate(error) is not None:
            raise
        raise MigrationError(f"{file.version} cannot be applied: {error}") from error


def _read_all(folder: Path) -> list[_File]:
    return [_read(path) for path in sorted(folder.glob("*.sql"))]


def _read(path: Path) -> _File:
    """The file's part that goes up; its version is owner/name, so that services and chassis do not collide."""
    content = path.read_bytes()
    version = f"{path.parent.parent.name}/{path.name}"
    text = content.decode()
    begin = UP.search(text)
    if not NAME.fullmatch(path.name) or begin is None:
        raise MigrationError(f"{version} is no migration; name it NNNN_name.sql and begin with `-- migrate:up`")
    end = DOWN.search(text, begin.end())
    return _File(version, hashlib.sha256(content).digest(), text[begin.end() : end.start() if end else None])
