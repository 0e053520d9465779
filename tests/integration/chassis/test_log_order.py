"""The Postgres log where the contract suite cannot look: commit order, lost answers, cancelled callers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import asyncpg
import pytest

from cli.stack.servers import Servers
from services.chassis import eventstore, log_rows
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, Append, Appended, LogPosition, RecordedEvent
from services.chassis.eventstore import (
    PAYLOAD_BYTES_MAX,
    PostgresEventStore,
    append_in,
    command_applied,
    find_command,
)
from services.chassis.log_rows import recorded
from services.chassis.postgres import Connection, Pool, acquire, create_pool, transaction
from tests.conftest import MakeDatabase
from tests.contract.samples import new_append, new_event
from tests.waiting import eventually

BY_POSITION_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at,
       key_id, nonce, payload, traceparent
FROM events WHERE position > $1 ORDER BY position LIMIT $2
"""


@pytest.fixture
async def url(database: MakeDatabase) -> str:
    return await database("chassis")


@pytest.fixture
async def pool(url: str) -> AsyncIterator[Pool]:
    pool = await create_pool(url, size=6)
    yield pool
    await pool.close()


@pytest.fixture
async def store(pool: Pool) -> AsyncIterator[PostgresEventStore]:
    store = PostgresEventStore(pool)
    yield store
    await store.drain()


async def test_a_warmed_log_has_its_connections_and_statements(store: PostgresEventStore, pool: Pool) -> None:
    """The first append of a process may have milliseconds; nothing was written for it."""
    await store.warm()
    assert await store.head() == ORIGIN
    assert pool.get_size() == eventstore.WARM_CONNECTIONS
    async with AsyncExitStack() as stack:
        for _ in range(pool.get_size()):
            connection = await stack.enter_async_context(acquire(pool))
            prepared = await connection.fetch("SELECT statement FROM pg_prepared_statements")
            assert {log_rows.APPEND_SQL, log_rows.STREAM_SQL} <= {row["statement"] for row in prepared}


async def read_by_position(pool: Pool, after: LogPosition, limit: int) -> list[RecordedEvent]:
    """What a reader would do that takes insert order for commit order."""
    async with acquire(pool) as connection:
        rows = await connection.fetch(BY_POSITION_SQL, after.position, limit)
    return [recorded(row) for row in rows]


async def test_event_that_commits_late_with_a_low_position_is_not_missed(pool: Pool, store: PostgresEventStore) -> None:
    """A reader that tails the log sees the late event; one that goes by position alone has passed it for ever."""
    running = pool.acquire()
    slow = await running
    late = slow.transaction()
    await late.start()
    (low,) = await append_in(slow, [new_append("slow")])
    high = await store.append(new_append("fast"))
    assert low.position.position < high.position.position

    ours = await store.read_log(ORIGIN, limit=10)
    naive = await read_by_position(pool, ORIGIN, 10)
    assert ours == []
    assert [event.stream_id for event in naive] == ["fast"]

    await late.commit()
    await pool.release(slow)
    ours += await store.read_log(ours[-1].position if ours else ORIGIN, limit=10)
    naive += await read_by_position(pool, naive[-1].position, 10)
    assert {event.stream_id for event in ours} == {"slow", "fast"}
    assert {event.stream_id for event in naive} == {"fast"}, "the naive reader is expected to miss it"


async def test_tailing_reader_sees_every_event_of_racing_writers(pool: Pool, store: PostgresEventStore) -> None:
    """24 writers with transactions of uneven length, and a reader beside them: nothing missed, nothing twice."""
    writers_count, appends_count = 24, 12
    seen: list[str] = []

    async def write(writer: int) -> None:
        for number in range(appends_count):
            if writer % 3:
                await store.append(new_append(f"{writer}/{number}"))
                continue
            async with transaction(pool) as connection:
                await append_in(connection, [new_append(f"{writer}/{number}")])
                # The uneven part: the event has its position now and commits later.
                await connection.execute("SELECT pg_sleep($1)", 0.001 * (writer % 5))

    async def read(done: asyncio.Event) -> None:
        after = ORIGIN
        while True:
            finished = done.is_set()
            page = await store.read_log(after, limit=50)
            seen.extend(event.stream_id for event in page)
            after = page[-1].position if page else after
            if finished and not page and len(seen) >= writers_count * appends_count:
                return
            await asyncio.sleep(0)

    done = asyncio.Event()
    reader = asyncio.create_task(read(done))
    await asyncio.gather(*(write(writer) for writer in range(writers_count)))
    done.set()
    async with asyncio.timeout(50):
        await reader
    assert len(seen) == len(set(seen)) == writers_count * appends_count


async def test_restored_log_goes_on_after_what_it_held(pool: Pool, store: PostgresEventStore) -> None:
    """In a new epoch, ids from before count as ended however high they are, and new events come after them."""
    async with acquire(pool) as connection:
        await connection.execute(
            """
            INSERT INTO events (epoch, xid, event_id, stream_id, version, type, subject_id, occurred_at, payload,
                                traceparent)
            VALUES (1, '9000000000', gen_random_uuid(), 'old', 1, 't', '', now(), '', '')
            """
        )
    assert await store.read_log(ORIGIN, limit=10) == []
    async with acquire(pool) as connection:
        await connection.execute("UPDATE log_epoch SET epoch = 2")
    await store.append(new_append("new"))
    assert [event.stream_id for event in await store.read_log(ORIGIN, limit=10)] == ["old", "new"]
    assert (await store.head()).epoch == 2


async def test_cancelled_caller_does_not_cancel_the_batch(store: PostgresEventStore) -> None:
    """Appends that left together are recorded, also those whose callers have gone."""
    tasks = [asyncio.create_task(store.append(new_append(f"s{number}"))) for number in range(20)]
    await asyncio.sleep(0)  # they are queued …
    await asyncio.sleep(0)  # … and leave
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Appended) for result in results[1::2])
    await store.drain()
    assert len(await store.read_log(ORIGIN, limit=100)) == 20


async def test_caller_that_leaves_before_its_batch_takes_its_append_along(store: PostgresEventStore) -> None:
    """An append that had not been sent when its caller was cancelled is not recorded: nobody waits for it."""
    task = asyncio.create_task(store.append(new_append("s")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.drain()
    assert await store.read_stream("s") == []


async def test_lost_answer_is_looked_up_and_not_written_twice(
    store: PostgresEventStore, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the connection dies after the commit, the caller is told of the success, and it happened once."""
    record = eventstore._record
    lost = 0

    async def record_and_lose(connection: Connection, *args: object, **kwargs: object) -> object:
        nonlocal lost
        result = await record(connection, *args, **kwargs)  # type: ignore[arg-type]
        if lost < 1:
            lost += 1
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return result

    monkeypatch.setattr(eventstore, "_record", record_and_lose)
    done = await store.append(new_append("s", count=2, request_id="r", digest=b"d"))
    assert lost == 1
    assert (done.version, done.duplicate) == (2, False)
    assert done.position == (await store.read_stream("s"))[-1].position
    assert len(await store.read_log(ORIGIN, limit=10)) == 2


async def test_other_events_at_the_place_are_a_conflict_also_after_a_lost_answer(
    store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking up tells own events from somebody else's: an append that lost the race is refused."""
    await store.append(new_append("s"))
    attempt = store._try

    async def lose_first(appends: object, *, again: bool) -> object:
        if not again:
            raise ServiceError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "gone")
        return await attempt(appends, again=again)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_try", lose_first)
    with pytest.raises(ServiceError) as refusal:
        await store.append(new_append("s"))
    assert refusal.value.reason == "VERSION_CONFLICT"


async def test_database_that_stays_away_is_an_unknown_outcome(
    store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append that could not be looked up is never reported as done nor as refused."""

    async def gone(appends: object, *, again: bool) -> object:
        raise ServiceError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "gone")

    monkeypatch.setattr(store, "_try", gone)
    monkeypatch.setattr(eventstore, "RETRY_PAUSES_S", (0.0, 0.0))
    with pytest.raises(ServiceError) as outage:
        await store.append(new_append("s"))
    assert (outage.value.kind, outage.value.reason) == (Kind.UNAVAILABLE, "OUTCOME_UNKNOWN")


async def test_killed_backends_lose_nothing_acknowledged_and_double_nothing(
    store: PostgresEventStore, url: str
) -> None:
    """While every connection of the pool is killed again and again, what was acknowledged is in the log, once."""
    acknowledged: set[str] = set()
    stop = asyncio.Event()

    async def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            stream_id = f"{writer}/{number}"
            number += 1
            try:
                await store.append(new_append(stream_id))
            except ServiceError as outage:
                assert outage.kind is Kind.UNAVAILABLE  # noqa: PT017
            else:
                acknowledged.add(stream_id)

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    killer = await asyncpg.connect(url)
    try:
        for _ in range(10):
            reached = len(acknowledged) + 20

            async def more(reached: int = reached) -> bool:
                return len(acknowledged) >= reached

            await eventually(more)
            await killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await eventually(more)
    finally:
        stop.set()
        await killer.close()
    await asyncio.gather(*writers)
    await store.drain()
    recorded: list[str] = []

    async def read() -> bool:
        """A connection that was killed unnoticed is met once, and said to be away."""
        with suppress(ServiceError):
            recorded.extend(event.stream_id for event in await store.read_log(ORIGIN, limit=1_000_000))
        return bool(recorded)

    await eventually(read)
    assert len(recorded) == len(set(recorded))
    assert acknowledged <= set(recorded)


async def test_append_in_is_part_of_the_callers_transaction(pool: Pool, store: PostgresEventStore) -> None:
    """Events and command are there when the transaction is, and not when it is rolled back."""
    with pytest.raises(RuntimeError, match="rolled back"):
        await _append_and_fail(pool)
    assert await store.read_stream("s") == []
    async with transaction(pool) as connection:
        assert await find_command(connection, "r", b"d") is None
        (done,) = await append_in(connection, [new_append("s", count=2, request_id="r", digest=b"d")])
    async with transaction(pool, verify=command_applied(b"d", "r")) as connection:
        assert await find_command(connection, "r", b"d") == replace(done, duplicate=True)
        assert await command_applied(b"d", "r")(connection)
        assert not await command_applied(b"other", "r", "s")(connection), "another command's id proves nothing"
        with pytest.raises(ServiceError) as refusal:
            await find_command(connection, "r", b"other")
    assert refusal.value.reason == "REQUEST_ID_REUSED"


async def _append_and_fail(pool: Pool) -> None:
    async with transaction(pool) as connection:
        await append_in(connection, [new_append("s", request_id="r", digest=b"d")])
        raise RuntimeError("rolled back")


async def test_one_refusal_in_append_in_refuses_all(pool: Pool, store: PostgresEventStore) -> None:
    """append_in is all or none: the transaction of a refused append leaves nothing."""
    with pytest.raises(ServiceError) as refusal:
        await _append_both(pool)
    assert refusal.value.reason == "VERSION_CONFLICT"
    assert await store.head() == ORIGIN


async def _append_both(pool: Pool) -> None:
    async with transaction(pool) as connection:
        await append_in(connection, [new_append("good"), new_append("bad", 5)])


async def test_one_request_id_on_two_streams_at_once_is_applied_once(store: PostgresEventStore) -> None:
    """Two commands racing under one request id: one is applied, the other refused or answered as its duplicate."""
    for number in range(10):
        results = await asyncio.gather(
            store.append_many([new_append(f"a{number}", request_id=f"r{number}", digest=b"d")]),
            store.append_many([new_append(f"b{number}", request_id=f"r{number}", digest=b"d")]),
        )
        duplicates = [result.duplicate for (result,) in results if isinstance(result, Appended)]
        assert sorted(duplicates) == [False, True]
        streams = [await store.read_stream(f"{name}{number}") for name in "ab"]
        assert sorted(map(len, streams)) == [0, 1]


async def test_event_too_large_for_the_bus_is_refused_at_the_edge(store: PostgresEventStore) -> None:
    """What could never be published is never recorded."""
    await store.append(Append("s", 0, (new_event(bytes(PAYLOAD_BYTES_MAX)),)))
    with pytest.raises(ServiceError) as refusal:
        await store.append(Append("t", 0, (new_event(bytes(PAYLOAD_BYTES_MAX + 1)),)))
    assert (refusal.value.kind, refusal.value.reason) == (Kind.INVALID, "EVENT_TOO_LARGE")


@pytest.mark.parametrize("statement", ["UPDATE events SET type = ''", "DELETE FROM events", "TRUNCATE events"])
async def test_recorded_events_cannot_be_changed(pool: Pool, store: PostgresEventStore, statement: str) -> None:
    """Not even the owner of the tables changes a fact by accident."""
    await store.append(new_append("s"))
    async with acquire(pool) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)


async def test_erasure_that_says_so_may_delete(pool: Pool, store: PostgresEventStore) -> None:
    """Erasing is the one way in which facts leave the log."""
    await store.append(new_append("s"))
    async with transaction(pool) as connection:
        await connection.execute("SET LOCAL comity.erasing = 'on'")
        await connection.execute("DELETE FROM events")
    assert await store.read_stream("s") == []


async def test_killed_server_loses_nothing_acknowledged(store: PostgresEventStore, servers: Servers) -> None:
    """SIGKILL of Postgres in the middle of traffic: what was acknowledged is in the log, once, and writers go on."""
    acknowledged: set[str] = set()
    stop = asyncio.Event()

    async def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (result,) = await asyncio.gather(store.append(new_append(f"{writer}/{number}")), return_exceptions=True)
            if isinstance(result, Appended):
                acknowledged.add(f"{writer}/{number}")
            else:
                assert isinstance(result, ServiceError)

    async def more() -> bool:
        return len(acknowledged) >= reached

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    for _ in range(3):
        reached = len(acknowledged) + 50
        await eventually(more)
        await servers.postgres.process.kill()
        await servers.postgres.start(may_move=False)
    reached = len(acknowledged) + 50
    await eventually(more)
    stop.set()
    await asyncio.gather(*writers)
    await store.drain()
    recorded_ids = [event.stream_id for event in await store.read_log(ORIGIN, limit=1_000_000)]
    assert len(recorded_ids) == len(set(recorded_ids))
    assert acknowledged <= set(recorded_ids)
