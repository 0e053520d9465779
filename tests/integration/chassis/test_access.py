"""Reads of personal data become facts, in order, whoever reads at once."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as types_pb

from services.chassis.access import PERSONAL_DATA_ACCESSED, UNSTATED, PostgresAccessLog, access_of, stream_of
from services.chassis.clock import SystemClock
from services.chassis.eventstore import PostgresEventStore
from services.chassis.ports import Access
from services.chassis.postgres import Pool, create_pool
from tests.conftest import MakeDatabase

ALICE = "a" * 26
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
