"""Bringing tables up to date: once each, in order, and never over a changed file."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from services.chassis.migrations import CHASSIS, MigrationError, migrate
from tests.conftest import MakeDatabase

FIRST = "-- migrate:up\nCREATE TABLE things (name text);\n\n-- migrate:down\nDROP TABLE things;\n"
SECOND = "-- migrate:up\nALTER TABLE things ADD COLUMN size integer;\nINSERT INTO things VALUES ('a', 1);\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A service's folder of migrations."""
    folder = tmp_path / "testing" / "migrations"
    folder.mkdir(parents=True)
    (folder / "0001_first.sql").write_text(FIRST)
    return folder


async def test_files_are_applied_once_in_order(database: MakeDatabase, folder: Path) -> None:
    """What is new is applied, what was applied is left alone."""
    url = await database("chassis")
    (folder / "0002_second.sql").write_text(SECOND)
    assert await migrate(url, folder) == ["testing/0001_first.sql", "testing/0002_second.sql"]
    assert await migrate(url, folder) == []
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM things") == 1
    await connection.close()


async def test_changed_file_is_refused_before_anything_is_applied(database: MakeDatabase, folder: Path) -> None:
    """A file that was changed after it ran is named, with the remedy; nothing new is applied beside it."""
    url = await database("chassis")
    await migrate(url, folder)
    (folder / "0001_first.sql").write_text(FIRST.replace("text", "bytea"))
    (folder / "0002_second.sql").write_text(SECOND)
    with pytest.raises(MigrationError, match=r"testing/0001_first\.sql was changed after it was applied; restore it"):
        await migrate(url, folder)
    (folder / "0001_first.sql").write_text(FIRST)
    assert await migrate(url, folder) == ["testing/0002_second.sql"]


async def test_failing_file_leaves_nothing(database: MakeDatabase, folder: Path) -> None:
    """A file is applied whole or not at all, and can be mended because it was not applied."""
    url = await database("chassis")
    (folder / "0002_second.sql").write_text(SECOND + "INSERT INTO nobody_made_this VALUES (1);\n")
    with pytest.raises(MigrationError, match=r"testing/0002_second\.sql"):
        await migrate(url, folder)
    (folder / "0002_second.sql").write_text(SECOND)
    assert await migrate(url, folder) == ["testing/0002_second.sql"]


@pytest.mark.parametrize(("name", "text"), [("0002_x.sql", "CREATE TABLE x ();"), ("x.sql", FIRST)])
async def test_file_of_another_format_is_refused(database: MakeDatabase, folder: Path, name: str, text: str) -> None:
    """A file without `-- migrate:up`, or without its number, is told how to look."""
    (folder / name).write_text(text)
    with pytest.raises(MigrationError, match=r"name it NNNN_name\.sql"):
        await migrate(await database("chassis"), folder)


async def test_processes_that_start_together_migrate_once(database: MakeDatabase, folder: Path) -> None:
    """The first takes the lock, the others find it done."""
    url = await database("chassis")
    applied = await asyncio.gather(*(migrate(url, folder) for _ in range(4)))
    assert sorted(applied) == [[], [], [], ["testing/0001_first.sql"]]


async def test_log_in_another_cluster_begins_a_new_epoch(database: MakeDatabase) -> None:
    """A log restored where transaction ids start again is given a higher epoch, once."""
    url = await database("chassis")
    connection = await asyncpg.connect(url)
    await connection.execute("UPDATE log_epoch SET system_identifier = system_identifier + 1")
    await migrate(url, CHASSIS)
    await migrate(url, CHASSIS)
    assert await connection.fetchval("SELECT epoch FROM log_epoch") == 2
    await connection.close()
