"""Reads of personal data become facts, in order, whoever reads at once."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as types_pb

from services.chassis.access import EVERYBODY, PERSONAL_DATA_ACCESSED, PostgresAccessLog, stream_of
from services.chassis.clock import SystemClock
from services.chassis.eventstore import PostgresEventStore
from services.chassis.ports import Access
from services.chassis.postgres import Pool, create_pool
from services.chassis.reads import (
    UNSTATED,
    access_of,
    carry,
    new_operation,
    operation_of,
    operation_to_pb,
    running,
)
from tests.conftest import MakeDatabase

ALICE, BOB = "a" * 26, "b" * 26
METHOD = "comity.decision.v1.DecisionService/Explain"


@pytest.fixture
async def pool(database: MakeDatabase) -> AsyncIterator[Pool]:
    pool = await create_pool(await database("chassis"), size=8)
    yield pool
    await pool.close()


async def test_a_read_is_a_fact_that_says_who_what_and_why(pool: Pool) -> None:
    """The event lies under the person's pseudonym and is readable without the person's key."""
    await PostgresAccessLog(pool, SystemClock()).accessed(ALICE, Access("officer", "a request of the person"), METHOD)
    (event,) = await PostgresEventStore(pool).read_stream(stream_of(ALICE))
    assert (event.type, event.subject_id) == (PERSONAL_DATA_ACCESSED, ALICE)
    assert isinstance(event.payload, bytes)
    fact = holdings_pb.PersonalDataAccessed.FromString(event.payload)
    assert (fact.access.accessor, fact.access.reason, fact.method) == ("officer", "a request of the person", METHOD)


async def test_reads_at_once_are_all_recorded(pool: Pool) -> None:
    """None of many readers of one person fails or is lost."""
    log = PostgresAccessLog(pool, SystemClock())
    await asyncio.gather(*(log.accessed(ALICE, Access(f"reader {n}"), METHOD) for n in range(20)))
    events = await PostgresEventStore(pool).read_stream(stream_of(ALICE))
    assert [event.version for event in events] == list(range(1, 21))
    times = [event.occurred_at for event in events]
    assert times == sorted(times)


def test_who_does_not_say_who_they_are_or_why_is_recorded_as_such() -> None:
    """A caller that was built before it was asked still leaves a trace, and no reason is not an empty one."""
    assert access_of(types_pb.Access(reason="why")) == Access(UNSTATED, "why")
    assert access_of(types_pb.Access(accessor="officer")) == Access("officer", UNSTATED)


async def facts(pool: Pool, stream_id: str) -> list[tuple[str, str, str]]:
    """Accessor, purpose and whom it is about, of each fact in a stream."""
    events = await PostgresEventStore(pool).read_stream(stream_id)
    told = [(holdings_pb.PersonalDataAccessed.FromString(bytes(event.payload)), event) for event in events]  # type: ignore[arg-type]  # plain
    return [(fact.access.accessor, fact.purpose, event.subject_id) for fact, event in told]


async def test_an_operation_is_recorded_once(pool: Pool) -> None:
    """However many calls it makes, at once or later, over how many replicas and about how many people."""
    operation = new_operation(Access("trainer", "training"))
    replicas = [PostgresAccessLog(pool, SystemClock()) for _ in range(2)]
    calls = [replicas[n % 2].operated(operation, METHOD, member_ids=[ALICE, BOB], purpose="training") for n in range(8)]
    await asyncio.gather(*calls)
    await replicas[0].operated(new_operation(Access("trainer", "again")), METHOD)
    assert await facts(pool, f"access-op-{operation.id}") == [("trainer", "training", "")]
    assert await pool.fetchval("SELECT count(*) FROM events") == 2


async def test_a_read_of_no_operation_is_recorded_about_each_person(pool: Pool) -> None:
    """Whoever names none reads of each of them; where it is everybody, of everybody."""
    log, unnamed = PostgresAccessLog(pool, SystemClock()), operation_of(types_pb.Operation())
    await asyncio.gather(*(log.operated(unnamed, METHOD, member_ids=[BOB, ALICE]) for _ in range(5)))
    await log.operated(unnamed, METHOD, purpose="training")
    for member_id in (ALICE, BOB):
        assert await facts(pool, stream_of(member_id)) == [(UNSTATED, "", member_id)] * 5
    assert await facts(pool, stream_of(EVERYBODY)) == [(UNSTATED, "training", "")]


async def test_a_read_about_who_is_being_erased_is_recorded_without_them(pool: Pool) -> None:
    """The log takes no fact about them any more, and nothing is read unrecorded."""
    await pool.execute("INSERT INTO erased_members (member_id, erasure_id) VALUES ($1, 'e1')", ALICE)
    log = PostgresAccessLog(pool, SystemClock())
    await log.operated(operation_of(types_pb.Operation()), METHOD, member_ids=[ALICE])
    assert await facts(pool, stream_of(ALICE)) == []
    assert await facts(pool, stream_of(EVERYBODY)) == [(UNSTATED, "", "")]
    await log.operated(operation_of(types_pb.Operation()), METHOD, member_ids=[ALICE, BOB])
    assert await facts(pool, stream_of(ALICE)) == []
    assert await facts(pool, stream_of(BOB)) == [(UNSTATED, "", BOB)], "one who is erased hides nobody else"
    assert await facts(pool, stream_of(EVERYBODY)) == [(UNSTATED, "", "")] * 2


async def test_what_a_call_asks_of_others_is_part_of_its_operation() -> None:
    """An operation is one under its own id everywhere; a caller that named none begins one for what follows."""

    async def asked(message: types_pb.Operation) -> tuple[str, Access]:
        carry(operation_of(message))
        going_on = running()
        assert going_on is not None
        return going_on.id, going_on.access

    begun = new_operation(Access("officer", "a request of the person"))
    assert await asyncio.create_task(asked(operation_to_pb(begun))) == (begun.id, begun.access)
    unnamed = await asyncio.gather(*(asyncio.create_task(asked(types_pb.Operation())) for _ in range(2)))
    assert unnamed[0][0] != unnamed[1][0]
    assert running() is None
