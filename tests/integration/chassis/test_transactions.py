"""Transactions whose outcome is known: rolled back, committed though cancelled, verified after a lost answer."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from cli.stack.servers import Servers
from services.chassis import postgres
from services.chassis.alarms import Alarm, standing
from services.chassis.errors import Kind, ServiceError
from services.chassis.eventstore import PostgresEventStore
from services.chassis.postgres import Connection, Pool, acquire, create_pool, leadership, transaction
from tests.conftest import MakeDatabase
from tests.contract.samples import new_append

INSERT_SQL = "INSERT INTO dead_letters (source, consumer, channel, reason, payload) VALUES ($1, '', '', '', '')"
SOURCES_SQL = "SELECT source FROM dead_letters ORDER BY id"


@pytest.fixture
async def pool(database: MakeDatabase) -> AsyncIterator[Pool]:
    pool = await create_pool(await database("chassis"), size=3, statement_timeout_ms=1500, name="comity-test")
    yield pool
    await pool.close()


async def sources(pool: Pool) -> list[str]:
    async with acquire(pool) as connection:
        return [row["source"] for row in await connection.fetch(SOURCES_SQL)]


async def test_connections_are_set_up_as_promised(pool: Pool) -> None:
    """Every connection waits for the disk, gives statements and idle transactions up, and says whose it is."""
    names = ("application_name", "statement_timeout", "idle_in_transaction_session_timeout", "synchronous_commit")
    async with acquire(pool) as connection:
        values = [await connection.fetchval("SELECT current_setting($1)", name) for name in names]
    assert values == ["comity-test", "1500ms", "5s", "on"]


async def test_cancelled_commit_is_finished(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller cancelled during its COMMIT is told so, and only after the change is there."""
    started = asyncio.Event()
    commit = postgres._commit

    async def slow_commit(connection: Connection, running: object) -> BaseException | None:
        started.set()
        return await commit(connection, running)  # type: ignore[arg-type]

    monkeypatch.setattr(postgres, "_commit", slow_commit)

    async def change() -> None:
        async with transaction(pool) as connection:
            await connection.execute(INSERT_SQL, "here")

    task = asyncio.create_task(change())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await sources(pool) == ["here"]


async def test_cancelled_before_the_commit_leaves_nothing(pool: Pool) -> None:
    """A caller cancelled within its transaction has changed nothing, and its connection is fit for the next."""
    started = asyncio.Event()

    async def change() -> None:
        async with transaction(pool) as connection:
            await connection.execute(INSERT_SQL, "here")
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(change())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await sources(pool) == []


@pytest.mark.parametrize("committed", [True, False])
async def test_lost_answer_to_a_commit_is_verified(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """When the answer is lost, what is found in the database is told: done, or unknown, never a guess."""
    commit = postgres._commit

    async def losing(connection: Connection, running: object) -> BaseException | None:
        if committed:
            await commit(connection, running)  # type: ignore[arg-type]
        connection.terminate()
        return ConnectionResetError()

    monkeypatch.setattr(postgres, "_commit", losing)

    async def is_there(connection: Connection) -> bool:
        return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM dead_letters)"))

    async def change() -> None:
        async with transaction(pool, verify=is_there) as connection:
            await connection.execute(INSERT_SQL, "here")

    if committed:
        await change()
    else:
        with pytest.raises(ServiceError) as outage:
            await change()
        assert (outage.value.kind, outage.value.reason) == (Kind.UNAVAILABLE, "OUTCOME_UNKNOWN")
    assert await sources(pool) == (["here"] if committed else [])


async def test_statement_that_takes_too_long_is_an_outage(pool: Pool) -> None:
    """A timeout is UNAVAILABLE, says no value of the statement, and the pool goes on."""
    with pytest.raises(ServiceError) as outage:
        await _sleep_in(pool)
    assert (outage.value.kind, outage.value.reason) == (Kind.UNAVAILABLE, "DATABASE_TIMEOUT")
    assert await sources(pool) == []


async def _sleep_in(pool: Pool) -> None:
    async with transaction(pool) as connection:
        await connection.execute("SELECT pg_sleep(60)")


async def test_killed_connection_is_an_outage(pool: Pool) -> None:
    """A connection that dies is UNAVAILABLE, and the next caller gets a new one."""
    with pytest.raises(ServiceError) as outage:
        await _kill_own(pool)
    assert (outage.value.kind, outage.value.reason) == (Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert await sources(pool) == []


async def _kill_own(pool: Pool) -> None:
    async with transaction(pool) as connection:
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def test_bugs_are_not_outages(pool: Pool) -> None:
    """A wrong statement stays what it is: trying again would not help."""
    with pytest.raises(asyncpg.UndefinedTableError):
        await _read_nothing(pool)


async def _read_nothing(pool: Pool) -> None:
    async with acquire(pool) as connection:
        await connection.fetch("SELECT 1 FROM nobody_made_this")


async def test_database_that_is_not_there_is_an_outage() -> None:
    """A refused connection is UNAVAILABLE."""
    with pytest.raises(ServiceError) as outage:
        await create_pool("postgresql://nobody:x@127.0.0.1:1/nothing")
    assert outage.value.kind is Kind.UNAVAILABLE


async def test_one_process_leads_until_it_stops(pool: Pool, database: MakeDatabase, servers: Servers) -> None:
    """A second one waits for the lead, and has it when the first lets go or loses its connection."""
    order: list[str] = []
    released = asyncio.Event()

    async def lead(name: str) -> None:
        async with leadership(pool, "test"):
            order.append(name)
            await released.wait()

    async with leadership(pool, "test") as connection:
        second = asyncio.create_task(lead("second"))
        await asyncio.wait({second}, timeout=0.1)
        assert order == []
        assert await connection.fetchval("SELECT 1") == 1
    released.set()
    async with asyncio.timeout(50):
        await second
    assert order == ["second"]


async def test_full_disk_is_an_alarm_until_writes_go_through_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Postgres refuses for lack of room is told as that; it stands while it may last, and clears by itself."""
    room = postgres._Room()
    monkeypatch.setattr(postgres, "_room", room)
    monkeypatch.setattr(postgres, "FULL_FOR_S", 0.0)
    await fill_up(pool)
    async with transaction(pool) as connection:
        await connection.execute(INSERT_SQL, "here")
    assert Alarm.DATABASE_FULL not in standing()
    await fill_up(pool)
    await PostgresEventStore(pool).append(new_append("stream"))
    assert Alarm.DATABASE_FULL not in standing()


async def fill_up(pool: Pool) -> None:
    """Postgres says that there is no room."""
    with pytest.raises(ServiceError) as refused:
        async with transaction(pool) as connection:
            await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$")
    assert (refused.value.kind, refused.value.reason) == (Kind.UNAVAILABLE, "DATABASE_FULL")
    assert Alarm.DATABASE_FULL in standing()
