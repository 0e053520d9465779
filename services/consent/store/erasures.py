"""Keeps the ledger of erasures: the facts of each in a stream of its own, and where it stands.

An erasure begins in one transaction with the revocation of everything and the members' place on the suppress list: from
its commit on nobody is allowed anything about the person and nothing about them is recorded here.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import asyncpg

from services.chassis.clock import Clock
from services.chassis.erasure import POSTGRES, count_in, erased_in, suppress_in
from services.chassis.erasure import Step as SharedStep
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in, command_applied, find_command
from services.chassis.ids import uuid7
from services.chassis.ports import Access
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.chassis.tracing import traceparent
from services.consent import wire
from services.consent.domain.commands import Person
from services.consent.domain.erasure import Erasure, Progress, Step, refuse_overlap
from services.consent.domain.receipts import Counts, Signed
from services.consent.store.ledger import PostgresLedger

# Those that the worker goes through in one round; the others come when these are done.
RUNNING_MAX = 100
# With 256 members of 26 characters each, a page stays below a megabyte and a half.
PAGE_MAX = 200

# One erasure begins at a time, so that numbers are given out in the order of commits, and two of one person cannot
# both begin. Released with the commit.
LOCK_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('consent.erasures', 0))"
# One worker's steps at a time on each: their facts go into one stream.
LOCK_ONE_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('consent.erasure.' || $1::text, 0))"
NAMING_SQL = """
SELECT erasure_id, completed_at IS NULL AS runs FROM erasures WHERE member_ids && $1::text[] ORDER BY number
"""
STREAM_OF_COMMAND_SQL = "SELECT stream_id FROM commands WHERE request_id = $1"
PUT_SQL = """
INSERT INTO erasures (erasure_id, subject_id, member_ids, requested_at, stream_version) VALUES ($1, $2, $3, $4, 1)
"""
FIND_SQL = """
SELECT number, erasure_id, subject_id, member_ids, requested_at, completed_at, receipt, signature, key_id, public_key
FROM erasures WHERE erasure_id = $1
"""
RUNNING_SQL = """
SELECT number, erasure_id, subject_id, member_ids, requested_at, completed_at, receipt, signature, key_id, public_key
FROM erasures WHERE completed_at IS NULL ORDER BY number LIMIT $1
"""
AFTER_SQL = """
SELECT number, erasure_id, subject_id, member_ids, requested_at, completed_at, receipt, signature, key_id, public_key
FROM erasures WHERE number > $1 ORDER BY number LIMIT $2
"""
STEPS_SQL = """
SELECT erasure_id, service, step, taken_at, counts, waiting_for FROM erasure_steps WHERE erasure_id = ANY($1::text[])
"""
TOOK_SQL = """
INSERT INTO erasure_steps AS s (erasure_id, service, step, taken_at, counts)
VALUES ($1, $2, $3, $4, $5::text::jsonb)
ON CONFLICT (erasure_id, service, step) DO UPDATE
SET taken_at = EXCLUDED.taken_at, counts = EXCLUDED.counts, waiting_for = '' WHERE s.taken_at IS NULL
RETURNING 1
"""
WAITS_SQL = """
INSERT INTO erasure_steps AS s (erasure_id, service, step, waiting_for) VALUES ($1, $2, $3, $4)
ON CONFLICT (erasure_id, service, step) DO UPDATE SET waiting_for = EXCLUDED.waiting_for WHERE s.taken_at IS NULL
"""
NEXT_VERSION_SQL = """
UPDATE erasures SET stream_version = stream_version + 1 WHERE erasure_id = $1 RETURNING stream_version
"""
COMPLETE_SQL = """
UPDATE erasures SET completed_at = $2, receipt = $3, signature = $4, key_id = $5, public_key = $6 WHERE erasure_id = $1
"""

# The journal does not say who asked; the erasure's first record, which is lost with the database, did.
_PUT_BACK = Access("comity", "put back from the journal")


class PostgresErasures:
    """handlers.privacy_ports.ErasureLedger."""

    def __init__(self, pool: Pool, ledger: PostgresLedger, clock: Clock) -> None:
        self._pool = pool
        self._ledger = ledger
        self._clock = clock

    async def begin(
        self, erasure_id: str, person: Person, request_id: str, digest: bytes, access: Access
    ) -> tuple[str, bool]:
        """See handlers.privacy_ports.ErasureLedger."""
        async with transaction(self._pool, verify=command_applied(digest, request_id)) as connection:
            await connection.execute(LOCK_SQL)
            earlier = await _begun(connection, request_id, digest)
            if earlier is not None:
                return earlier, False
            refuse_overlap([(row["erasure_id"], row["runs"]) for row in await _naming(connection, person.member_ids)])
            now = self._clock.now()
            fact = wire.encode_erasure_requested(erasure_id, person.subject_id, person.member_ids, access)
            append = Append(_stream_id(erasure_id), 0, (_event(fact, now),), request_id, digest)
            await self._begin_in(connection, erasure_id, person, append)
        return erasure_id, True

    async def put_back(self, event_id: str, erasure_id: str, person: Person, requested_at: datetime) -> bool:
        """Begin an erasure again that this ledger once held; False where it holds it, or all members are erased."""
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_SQL)
            left = sorted(set(person.member_ids) - await erased_in(connection, person.member_ids))
            if not left or await _find(connection, erasure_id) is not None:
                return False
            person = replace(person, member_ids=tuple(left))
            fact = wire.encode_erasure_requested(erasure_id, person.subject_id, person.member_ids, _PUT_BACK)
            event = replace(_event(fact, requested_at), event_id=event_id)
            await self._begin_in(connection, erasure_id, person, Append(_stream_id(erasure_id), 0, (event,)))
        return True

    async def _begin_in(self, connection: Connection, erasure_id: str, person: Person, append: Append) -> None:
        """Close the members' ledgers and record the request, of which *append* is the fact."""
        member_ids = sorted(person.member_ids)
        for member_id in member_ids:
            await self._ledger.close_in(connection, member_id)
        await append_in(connection, [append])
        requested_at = append.events[0].occurred_at
        await connection.execute(PUT_SQL, erasure_id, person.subject_id, member_ids, requested_at)
        # Last: it keeps every writer of personal rows waiting until the commit, and facts about the members out.
        added = await suppress_in(connection, erasure_id, member_ids)
        await count_in(connection, erasure_id, SharedStep.SUPPRESS, {(POSTGRES, "erased_members"): added})

    async def begun(self, request_id: str, digest: bytes) -> str | None:
        """See handlers.privacy_ports.ErasureLedger."""
        async with acquire(self._pool) as connection:
            return await _begun(connection, request_id, digest)

    async def find(self, erasure_id: str) -> Erasure | None:
        """See handlers.privacy_ports.ErasureLedger."""
        async with acquire(self._pool) as connection:
            return await _find(connection, erasure_id)

    async def naming(self, member_ids: Sequence[str]) -> list[tuple[str, bool]]:
        """See handlers.privacy_ports.ErasureLedger."""
        async with acquire(self._pool) as connection:
            return [(row["erasure_id"], row["runs"]) for row in await _naming(connection, member_ids)]

    async def running(self) -> list[Erasure]:
        """See handlers.privacy_ports.ErasureLedger."""
        async with acquire(self._pool) as connection:
            return await _with_steps(connection, await connection.fetch(RUNNING_SQL, RUNNING_MAX))

    async def after(self, number: int) -> list[Erasure]:
        """See handlers.privacy_ports.ErasureLedger."""
        async with acquire(self._pool) as connection:
            return [_erasure(row, ()) for row in await connection.fetch(AFTER_SQL, number, PAGE_MAX)]

    async def took(self, erasure_id: str, service: str, step: Step, counts: Counts) -> None:
        """See handlers.privacy_ports.ErasureLedger."""
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_ONE_SQL, erasure_id)
            now = self._clock.now()
            if await connection.fetchval(TOOK_SQL, erasure_id, service, int(step), now, json.dumps(counts)):
                await _tell(connection, erasure_id, wire.encode_step_taken(erasure_id, service, step, counts), now)

    async def waits(self, erasure_id: str, service: str, step: Step, reason: str) -> None:
        """See handlers.privacy_ports.ErasureLedger."""
        async with acquire(self._pool) as connection:
            await connection.execute(WAITS_SQL, erasure_id, service, int(step), reason)

    async def complete(self, erasure_id: str, sign: Callable[[Erasure], Signed]) -> None:
        """See handlers.privacy_ports.ErasureLedger."""
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_ONE_SQL, erasure_id)
            found = await _find(connection, erasure_id)
            if found is None or found.completed_at is not None:
                return
            # As finely as the table keeps it: the receipt must say what the ledger says.
            now = self._clock.now()
            signed = sign(replace(found, completed_at=now))
            await _tell(connection, erasure_id, wire.encode_erasure_completed(erasure_id), now)
            await connection.execute(
                COMPLETE_SQL, erasure_id, now, signed.receipt, signed.signature, signed.key_id, signed.public_key
            )


async def _tell(connection: Connection, erasure_id: str, fact: tuple[str, bytes], now: datetime) -> None:
    """Append a fact to the erasure's stream, under its lock."""
    version = await connection.fetchval(NEXT_VERSION_SQL, erasure_id)
    await append_in(connection, [Append(_stream_id(erasure_id), version - 1, (_event(fact, now),))])


async def _begun(connection: Connection, request_id: str, digest: bytes) -> str | None:
    done = await find_command(connection, request_id, digest)
    if done is None:
        return None
    stream_id: str = await connection.fetchval(STREAM_OF_COMMAND_SQL, request_id)
    return stream_id.removeprefix(_stream_id(""))


async def _naming(connection: Connection, member_ids: Sequence[str]) -> list[asyncpg.Record]:
    return list(await connection.fetch(NAMING_SQL, list(member_ids)))


async def _find(connection: Connection, erasure_id: str) -> Erasure | None:
    found = await _with_steps(connection, await connection.fetch(FIND_SQL, erasure_id))
    return found[0] if found else None


async def _with_steps(connection: Connection, rows: Sequence[asyncpg.Record]) -> list[Erasure]:
    steps: dict[str, list[Progress]] = {row["erasure_id"]: [] for row in rows}
    for row in await connection.fetch(STEPS_SQL, list(steps)) if steps else ():
        # A step that cannot be read is as though it had not been taken: it is taken again, and answers the same.
        with suppress(ValueError, TypeError):
            counts = tuple((store, name, count) for store, name, count in json.loads(row["counts"]))
            steps[row["erasure_id"]].append(
                Progress(row["service"], Step(row["step"]), row["taken_at"], counts, row["waiting_for"])
            )
    return [_erasure(row, tuple(steps[row["erasure_id"]])) for row in rows]


def _erasure(row: Any, steps: tuple[Progress, ...]) -> Erasure:
    receipt = None
    if row["receipt"] is not None:
        receipt = Signed(row["receipt"], row["signature"], row["key_id"], row["public_key"])
    return Erasure(
        number=row["number"],
        erasure_id=row["erasure_id"],
        subject_id=row["subject_id"],
        member_ids=tuple(row["member_ids"]),
        requested_at=row["requested_at"],
        completed_at=row["completed_at"],
        receipt=receipt,
        steps=steps,
    )


def _event(fact: tuple[str, bytes], now: datetime) -> NewEvent:
    # About nobody, though it names them: the log refuses facts about who was erased.
    event_type, payload = fact
    return NewEvent(uuid7(now), event_type, payload, now, "", traceparent())


def _stream_id(erasure_id: str) -> str:
    return f"erasure-{erasure_id}"
