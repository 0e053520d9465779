"""The suppress list and the deletion every service shares: who is on the list leaves no new trace, and no old one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from comity.common.v1 import holdings_pb2 as pb

from services.chassis import envelope
from services.chassis.access import PostgresAccessLog, stream_of
from services.chassis.bus import NatsBus
from services.chassis.clock import SystemClock
from services.chassis.erasure import (
    Erasure,
    Step,
    count_in,
    counts_in,
    delete_from_log,
    erased_in,
    suppress_in,
)
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, LogPosition, RecordedEvent
from services.chassis.eventstore import PostgresEventStore, append_in
from services.chassis.holdings import HeldRecord, Holding, HoldingsService
from services.chassis.inbox import FRESH_SQL, Subscription
from services.chassis.memory import MemoryBus
from services.chassis.migrations import CHASSIS
from services.chassis.ports import Access
from services.chassis.postgres import Connection, Pool, acquire, create_pool, transaction
from services.chassis.reads import new_operation, operation_to_pb
from tests.conftest import MakeDatabase
from tests.contract.samples import new_event
from tests.waiting import eventually

GONE, KEPT = "g" * 26, "k" * 26
LETTER_SQL = """
INSERT INTO dead_letters (source, consumer, channel, event_id, subject_id, reason, payload)
VALUES ('s', 'c', 'ch', gen_random_uuid(), $1, 'R', $2)
"""
COUNT_EVENTS_SQL = "SELECT subject_id, count(*) AS n FROM events GROUP BY subject_id"


@pytest.fixture
async def pool(database: MakeDatabase) -> AsyncIterator[Pool]:
    pool = await create_pool(await database("chassis"), size=6)
    yield pool
    await pool.close()


def recorded(member_id: str, number: int) -> RecordedEvent:
    event = new_event(f"of {member_id}".encode(), subject_id=member_id)
    position = LogPosition(1, 700 + number, number)
    return RecordedEvent(
        event.event_id, event.type, event.payload, event.occurred_at, member_id, "", f"s{number}", 1, position
    )


async def suppress(pool: Pool, *member_ids: str) -> None:
    async with transaction(pool) as connection:
        await suppress_in(connection, "e1", member_ids)


async def test_the_list_is_exact_for_writers_in_flight(pool: Pool) -> None:
    """Who asked before the member got on the list ends first; who asks while it is being put there sees it."""
    order: list[str] = []
    asked = asyncio.Event()
    release = asyncio.Event()

    async def writer() -> None:
        async with transaction(pool) as connection:
            assert await erased_in(connection, (GONE,)) == set()
            asked.set()
            await release.wait()
            order.append("writer")

    async def late_writer() -> None:
        async with transaction(pool) as connection:
            assert await erased_in(connection, (GONE, KEPT)) == {GONE}
        order.append("late writer")

    async def suppressor() -> None:
        await suppress(pool, GONE)
        order.append("suppressed")

    async with asyncio.TaskGroup() as group:
        group.create_task(writer())
        await asked.wait()
        group.create_task(suppressor())
        await _until_it_waits(pool)
        group.create_task(late_writer())
        await asyncio.sleep(0)
        release.set()
    assert order[0] == "writer"
    assert set(order) == {"writer", "suppressed", "late writer"}


async def _until_it_waits(pool: Pool) -> None:
    async def waits() -> bool:
        async with acquire(pool) as connection:
            return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))

    await eventually(waits)


async def test_a_backup_in_the_making_keeps_nobody_waiting(pool: Pool) -> None:
    """Whoever only reads the list, for as long as pg_dump does, neither waits for a suppression nor holds it up."""
    async with pool.acquire() as dump, dump.transaction(isolation="repeatable_read", readonly=True):
        await dump.execute("LOCK TABLE erased_members IN ACCESS SHARE MODE")
        await suppress(pool, GONE)
    async with acquire(pool) as connection:
        assert await erased_in(connection, (GONE,)) == {GONE}


async def test_who_stores_is_not_kept_waiting_for_long(pool: Pool) -> None:
    """A suppression that cannot be had within a second gives up, so that those behind it go on; it is asked again."""
    async with transaction(pool) as connection:
        assert await erased_in(connection, (GONE,)) == set()
        with pytest.raises(ServiceError) as refusal:
            await suppress(pool, GONE)
        assert refusal.value.kind is Kind.UNAVAILABLE
    await suppress(pool, GONE)


@pytest.mark.parametrize("name", ["append", "intake"])
async def test_every_way_in_holds_the_list(pool: Pool, name: str) -> None:
    """An append and an intake under way, about anybody, are waited for: without FOR KEY SHARE they would not be."""
    async with transaction(pool) as connection:
        if name == "append":
            await append_in(connection, [Append("s", 0, (new_event(subject_id=KEPT),))])
        else:
            ids, subjects = [UUID(new_event().event_id)], [KEPT]
            await connection.fetch(FRESH_SQL, "source", "test", ids, None, None, None, subjects)
        with pytest.raises(ServiceError):
            await suppress(pool, GONE)


async def test_everything_in_the_log_goes_and_the_rest_stays(pool: Pool) -> None:
    """Events, their commands, dead letters and whole messages that name the member go; other people's stay."""
    store = PostgresEventStore(pool)
    await store.append(Append("gone", 0, (new_event(subject_id=GONE), new_event(subject_id=GONE)), "r1", b"d"))
    await store.append(Append("kept", 0, (new_event(subject_id=KEPT),), "r2", b"d"))
    await store.append(Append("nobody", 0, (new_event(),), "r3", b"d"))
    both = envelope.encode_batch([recorded(GONE, 1), recorded(KEPT, 2)])
    async with acquire(pool) as connection:
        for subject, payload in (
            (GONE, b"x"),
            (KEPT, b"x"),
            ("", both),
            ("", b"\xff" + GONE.encode()),
            ("", b"\xffother"),
        ):
            await connection.execute(LETTER_SQL, subject, payload)
    await suppress(pool, GONE)
    for _ in range(2):
        await delete_from_log(pool, Erasure("e1", (GONE,)))
    async with acquire(pool) as connection:
        left = {row["subject_id"]: row["n"] for row in await connection.fetch(COUNT_EVENTS_SQL)}
        commands = await connection.fetch("SELECT request_id FROM commands ORDER BY request_id")
        letters = await connection.fetch("SELECT subject_id, payload FROM dead_letters ORDER BY id")
        counts = await counts_in(connection, "e1", Step.DELETE)
    assert left == {KEPT: 1, "": 1}
    assert [row["request_id"] for row in commands] == ["r2", "r3"]
    assert [row["subject_id"] for row in letters] == [KEPT, "", ""]
    assert [event.subject_id for event in envelope.decode_batch(letters[1]["payload"])] == [KEPT]
    assert not [row for row in letters if GONE.encode() in row["payload"]]
    assert counts == {("postgres", "events"): 2, ("postgres", "commands"): 1, ("postgres", "dead_letters"): 3}


async def test_facts_go_only_by_the_switch(pool: Pool) -> None:
    """The role that writes the log cannot take a fact away by mistake, nor change one with the switch on."""
    await PostgresEventStore(pool).append(Append("s", 0, (new_event(subject_id=GONE),)))
    async with acquire(pool) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM events")
        async with connection.transaction():
            await connection.execute("SELECT set_config('comity.erasing', 'on', true)")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute("UPDATE events SET type = ''")
        # The switch ended with its transaction.
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM events")


async def test_old_messages_create_nothing(pool: Pool, nats_url: str) -> None:
    """A redelivery about an erased member has no effect, and leaves no inbox row and no dead letter; others do."""
    handled: list[str] = []
    told: list[str] = []

    async def handle(connection: Connection, events: list[RecordedEvent]) -> None:
        handled.extend(event.subject_id for event in events)

    async def after_commit(events: Sequence[RecordedEvent]) -> None:
        told.extend(event.subject_id for event in events)

    async with acquire(pool) as connection:
        await connection.execute("INSERT INTO erased_members (member_id, erasure_id) VALUES ($1, 'e1')", GONE)
    bus = await NatsBus.connect(nats_url, ack_wait_s=1.0)
    try:
        batch = [recorded(GONE, 1), recorded(KEPT, 2)]
        # One message of both, as no relay would send it: the consumer must not rely on the sender.
        message = envelope.OutMessage("ev.v1.0.source.Happened", "m", tuple(batch), envelope.encode_batch(batch))
        await bus.ensure_stream("source")
        headers = envelope.headers("source", message, watermark=batch[-1].position)
        await bus.publish(message.channel, message.payload, message_id="m", headers=headers)
        undecodable = b"\xff" + GONE.encode()
        await bus.publish("ev.v1.0.source.Happened", undecodable, message_id="n", headers={})
        after = [recorded(KEPT, 3)]
        last = envelope.OutMessage("ev.v1.0.source.Happened", "o", tuple(after), envelope.encode_batch(after))
        headers = envelope.headers("source", last, watermark=after[-1].position)
        await bus.publish(last.channel, last.payload, message_id="o", headers=headers)
        subscription = Subscription(pool, bus, "source", "test", handle, after_commit)
        task = asyncio.create_task(subscription.run())
        await subscription.await_position(after[-1].position, 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    finally:
        await bus.close()
    assert handled == [KEPT, KEPT]
    assert set(told) == {KEPT}
    async with acquire(pool) as connection:
        assert await connection.fetchval("SELECT count(*) FROM inbox") == 2
        assert await connection.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_who_is_erased_between_two_tries_leaves_nothing_begun(pool: Pool) -> None:
    """What the first try began is ended, though nothing of the message is left: told of no event."""
    told: list[list[str]] = []

    async def erased_meanwhile(connection: Connection, events: list[RecordedEvent]) -> None:
        await pool.execute("INSERT INTO erased_members (member_id, erasure_id) VALUES ($1, 'e1')", GONE)
        raise ServiceError(Kind.UNAVAILABLE, "AWAY", "away")

    async def after_commit(events: Sequence[RecordedEvent]) -> None:
        told.append([event.subject_id for event in events])

    bus, event = MemoryBus(), recorded(GONE, 1)
    await bus.publish("ev.v1.0.source.Happened", envelope.encode_batch([event]), message_id="m", headers={})
    task = asyncio.create_task(Subscription(pool, bus, "source", "test", erased_meanwhile, after_commit).run())

    async def is_told() -> bool:
        return bool(told)

    await eventually(is_told)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert told == [[]]


class OneTable:
    """Holdings of a service that keeps notes about people."""

    def __init__(self, pool: Pool, count: int = 250) -> None:
        self._pool = pool
        self._count = count

    def describe(self) -> Sequence[Holding]:
        return [Holding("postgres", "events", "what they did", "deleted", sealed=True, purposes=("measurement",))]

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[HeldRecord]:
        # The first page is of records that name nobody, as identity's links are.
        for number in range(self._count):
            member_id = "" if number < 100 else member_ids[0]
            yield HeldRecord("postgres", "events", "note", member_id, content={"number": number, "list": [1, "a"]})

    async def erase(self, step: Step, erasure: Erasure) -> None:
        if step is Step.DELETE:
            await delete_from_log(self._pool, erasure)
        if step is Step.WITHDRAW:
            async with transaction(self._pool) as connection:
                await count_in(connection, erasure.erasure_id, step, {("postgres", "items"): 2})


async def test_a_step_taken_again_answers_the_same(pool: Pool) -> None:
    """The servicer suppresses, deletes and answers the same counts however often it is asked; keys are forgotten."""
    forgotten: list[str] = []
    service = HoldingsService(pool, OneTable(pool), None, forget=forgotten.extend)
    store = PostgresEventStore(pool)
    await store.append(Append("gone", 0, (new_event(subject_id=GONE),)))
    context: Any = None
    answers = []
    for step in (pb.ERASURE_STEP_SUPPRESS, pb.ERASURE_STEP_DESTROY_KEYS, pb.ERASURE_STEP_DELETE) * 2:
        request = pb.EraseHoldingsRequest(erasure_id="e1", member_ids=[GONE, KEPT], step=step)
        answers.append(await service.EraseHoldings(request, context))
    assert answers[:3] == answers[3:]
    assert [(count.name, count.count) for count in answers[0].counts] == [("erased_members", 2)]
    assert {count.name: count.count for count in answers[2].counts}["events"] == 1
    assert await store.read_stream("gone") == []
    assert set(forgotten) == {GONE, KEPT}


@pytest.mark.parametrize("member_ids", [(), ("",), (GONE, ""), ("a",), (GONE.upper(),)], ids=str)
def test_erasure_of_nobody_is_refused(member_ids: tuple[str, ...]) -> None:
    """Neither an empty list, nor one that names what is no member, is anybody's erasure."""
    with pytest.raises(ServiceError) as refusal:
        Erasure("e1", member_ids)
    assert (refusal.value.kind, refusal.value.problems[0].field) == (Kind.INVALID, "member_ids")


async def test_list_takes_members_alone(pool: Pool) -> None:
    """The table refuses what is no member's id, whoever writes it."""
    for member_id in ("", "a", "A" * 26):
        with pytest.raises(asyncpg.CheckViolationError):
            await pool.execute("INSERT INTO erased_members (member_id, erasure_id) VALUES ($1, 'e1')", member_id)


async def test_nobody_on_the_list_is_taken_off_by_the_update(pool: Pool) -> None:
    """Entries of an earlier release that are no members go; until then facts about nobody are stored all the same."""
    named = (CHASSIS / "0008_erased_members_named.sql").read_text()
    up, down = named.removeprefix("-- migrate:up").split("-- migrate:down")
    await pool.execute(down)
    await pool.execute(
        "INSERT INTO erased_members (member_id, erasure_id) SELECT m, 'e1' FROM unnest($1::text[]) AS m",
        ["", "a", GONE],
    )
    store = PostgresEventStore(pool)
    assert await store.append(Append("site", 0, (new_event(),)))
    async with acquire(pool) as connection:
        taken = await connection.fetch(
            FRESH_SQL, "source", "test", [UUID(new_event().event_id)], None, None, None, [""]
        )
        assert len(taken) == 1
        await connection.execute(up)
        assert await connection.fetchval("SELECT array_agg(member_id) FROM erased_members") == [GONE]


async def test_export_comes_in_pages(pool: Pool) -> None:
    """Every record comes once, in order, in pages of a bounded size; the record of processing tells of them."""
    service = HoldingsService(pool, OneTable(pool), PostgresAccessLog(pool, SystemClock()))
    context: Any = None
    request = pb.ExportHoldingsRequest(member_ids=[KEPT])
    pages = [page async for page in service.ExportHoldings(request, context)]
    assert [len(page.records) for page in pages] == [100, 100, 50]
    numbers = [record.content["number"] for page in pages for record in page.records]
    assert numbers == list(range(250))
    described = await service.DescribeHoldings(pb.DescribeHoldingsRequest(), context)
    assert [(one.name, one.sealed, list(one.purposes)) for one in described.holdings] == [
        ("events", True, ["measurement"])
    ]


async def test_export_leaves_a_fact_about_whom_it_gives_out(pool: Pool) -> None:
    """Once a call, or once an operation; of whom nothing is held nothing is recorded either, or that would be held."""
    accesses = PostgresAccessLog(pool, SystemClock())
    service, nothing = (HoldingsService(pool, OneTable(pool, count), accesses) for count in (250, 0))
    store, context = PostgresEventStore(pool), cast(Any, None)
    unnamed = pb.ExportHoldingsRequest(member_ids=[KEPT])
    assert not [page async for page in nothing.ExportHoldings(unnamed, context)]
    operation = new_operation(Access("officer", "a request of the person"))
    named = pb.ExportHoldingsRequest(member_ids=[GONE], operation=operation_to_pb(operation))
    for request in (unnamed, named, named):
        assert [page async for page in service.ExportHoldings(request, context)]
    assert [event.subject_id for event in await store.read_stream(stream_of(KEPT))] == [KEPT]
    assert await store.read_stream(stream_of(GONE)) == []
    assert await store.read_stream(stream_of("")) == [], "records that name nobody are somebody's all the same"
    (once,) = await store.read_stream(f"access-op-{operation.id}")
    assert once.subject_id == ""
