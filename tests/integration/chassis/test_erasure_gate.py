"""A restored database: whoever was erased since the backup is gone before anything is served."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.chassis.erasure import Counts, Erasure, Step
from services.chassis.erasure_gate import Entry, ErasureGate
from services.chassis.errors import Kind, ServiceError
from services.chassis.postgres import Pool, create_pool
from tests.conftest import MakeDatabase
from tests.waiting import eventually

ALL = list(Step)


class Ledger:
    """Consent's ledger in memory; away while *down*, and erasures run that are not in *complete*."""

    def __init__(self, *erasure_ids: str) -> None:
        self.entries = [
            Entry(number, Erasure(erasure_id, ("m" * 26,))) for number, erasure_id in enumerate(erasure_ids, start=1)
        ]
        self.complete = set(erasure_ids)
        self.down = False
        self.asked_after: list[int] = []

    async def after(self, number: int) -> AsyncIterator[Entry]:
        """See ErasureLedger."""
        self.asked_after.append(number)
        if self.down:
            raise ServiceError(Kind.UNAVAILABLE, "DOWN", "as in the test")
        for entry in self.entries[number:]:
            yield entry

    async def completed(self, erasure_id: str) -> bool:
        """See ErasureLedger."""
        return erasure_id in self.complete


class Taken:
    """Notes the steps that were taken."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Step]] = []

    async def __call__(self, step: Step, erasure: Erasure) -> Counts:
        """See chassis.holdings.Eraser."""
        self.steps.append((erasure.erasure_id, step))
        return {}


@pytest.fixture
async def pool(database: MakeDatabase) -> AsyncIterator[Pool]:
    pool = await create_pool(await database("chassis"), size=4)
    yield pool
    await pool.close()


async def restore(pool: Pool) -> None:
    """What the migrator does when it finds the log in another cluster."""
    await pool.execute("UPDATE log_epoch SET epoch = epoch + 1")


async def look(pool: Pool, ledger: Ledger, taken: Taken) -> None:
    """One round of the background loop."""
    task = asyncio.create_task(ErasureGate(pool, taken, ledger).run())
    asked = len(ledger.asked_after)

    async def noted() -> bool:
        return len(ledger.asked_after) > asked and await pool.fetchval("SELECT count(*) FROM erasures_applied") == 1

    await eventually(noted)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_new_database_waits_for_nobody(pool: Pool) -> None:
    """An ordinary start asks consent for nothing before it serves."""
    ledger, taken = Ledger("e1"), Taken()
    ledger.down = True
    await ErasureGate(pool, taken, ledger).open()
    assert (ledger.asked_after, taken.steps) == ([], [])


async def test_a_restored_database_is_not_opened_before_the_ledger_is_applied(pool: Pool) -> None:
    """It waits while consent is away, then takes every step of every erasure from the first on, and only once."""
    ledger, taken = Ledger("e1", "e2"), Taken()
    await look(pool, ledger, taken)
    await restore(pool)
    ledger.down, taken.steps = True, []
    opening = asyncio.create_task(ErasureGate(pool, taken, ledger, retry_s=0.01).open())

    async def asked_often() -> bool:
        return ledger.asked_after.count(0) >= 4

    await eventually(asked_often)
    assert not opening.done()
    ledger.down = False
    await opening
    assert taken.steps == [("e1", step) for step in ALL] + [("e2", step) for step in ALL]
    taken.steps = []
    await ErasureGate(pool, taken, ledger).open()
    assert taken.steps == []


@pytest.mark.parametrize(
    "sign",
    [
        # A backup from before there was a note of what is applied.
        "DELETE FROM erasures_applied",
        # Restored to a point in time: the cluster is the same and its timeline is another.
        "UPDATE erasures_applied SET timeline = timeline + 1",
    ],
)
async def test_every_sign_of_a_restore_counts(pool: Pool, sign: str) -> None:
    """Both are read, and the ledger is applied from its beginning."""
    ledger, taken = Ledger("e1"), Taken()
    await look(pool, ledger, taken)
    await pool.execute(sign)
    if sign.startswith("DELETE"):
        await restore(pool)
    taken.steps = []
    await ErasureGate(pool, taken, ledger).open()
    assert taken.steps == [("e1", step) for step in ALL]


async def test_what_is_new_is_applied_behind_the_back(pool: Pool) -> None:
    """The loop goes on after the last number that it has applied."""
    ledger, taken = Ledger("e1"), Taken()
    await look(pool, ledger, taken)
    assert taken.steps == [("e1", step) for step in ALL]
    await look(pool, ledger, taken)
    assert ledger.asked_after[-1] == 1
    assert len(taken.steps) == len(ALL)


async def test_of_an_erasure_that_runs_only_the_list_is_taken(pool: Pool) -> None:
    """Consent orders the rest; it is looked at again until it is complete, and what came after it too."""
    ledger, taken = Ledger("e1", "e2"), Taken()
    ledger.complete.remove("e1")
    await restore(pool)
    await ErasureGate(pool, taken, ledger).open()
    assert taken.steps == [("e1", Step.SUPPRESS)] + [("e2", step) for step in ALL]
    ledger.complete.add("e1")
    taken.steps = []
    await look(pool, ledger, taken)
    assert ("e1", Step.DELETE) in taken.steps
    assert await pool.fetchval("SELECT number FROM erasures_applied") == 2
