"""Keeps the members' ledgers: the facts and what stands of them, changed in one transaction, read in one statement.

A change locks the member before it writes anything. The lock is advisory, because a row lock would give the transaction
its id before it waits: the log is read in order of those ids, and of two changes to one ledger the later must have the
higher.

Reads go over a pool of their own, whose statements are given up early: a verdict that comes late is worth nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import asyncpg

from services.chassis.dead_letters import letter_of, passes, put_aside, read_each
from services.chassis.errors import ServiceError
from services.chassis.events import Append, Appended, NewEvent
from services.chassis.eventstore import (
    append_in,
    command_applied,
    find_command,
    own_request_id,
    recorded,
    scoped_request_id,
)
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.chassis.tracing import traceparent
from services.consent import wire
from services.consent.domain.commands import Change, Decide, RevokeCommand, View, revoke
from services.consent.domain.ledger import EVERY_PURPOSE, NEVER, Answer, Standing, State, evolve
from services.consent.domain.verdicts import Snapshot
from services.consent.store.policies import PostgresPolicies

_STATES = frozenset(map(int, State))
# Whose log it is and who reads it, as dead letters name them.
READER = ("consent", "history")
# A transaction whose COMMIT was not answered may still be running: the second try waits for it at the lock, and then
# finds its command, or applies it.
TRIES_MAX = 2
# The same try again: it may have been applied, or another person's command with this request id came in beside it.
AGAIN = frozenset({"OUTCOME_UNKNOWN", "COMMAND_RACING", "REQUEST_ID_REUSED"})

LOCK_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('consent.member.' || $1::text, 0))"

# One statement is one snapshot: the purposes and what stands belong together. It gives a row without a member when
# nothing stands for anybody. The members come out of a subquery of their own, so that the plan does not depend on how
# many they are: else Postgres plans every read anew as long as there are few, which costs more than the read.
STANDINGS_SQL = """
SELECT p.policy_version, statement_timestamp() AS now, s.member_id, s.purpose, s.state, s.consent_version,
       s.recorded_at, s.answered_at, s.expires_at, s.purpose_version, s.jurisdiction, s.expiry_recorded_for
FROM active_policy p LEFT JOIN consent_state s ON s.member_id = ANY((SELECT $1::text[])::text[])
"""

PUT_STANDINGS_SQL = """
INSERT INTO consent_state
    (member_id, purpose, state, consent_version, recorded_at, answered_at, expires_at, purpose_version, jurisdiction,
     expiry_recorded_for)
SELECT $1, * FROM unnest($2::text[], $3::smallint[], $4::int[], $5::timestamptz[], $6::timestamptz[],
                         $7::timestamptz[], $8::int[], $9::text[], $10::timestamptz[])
ON CONFLICT (member_id, purpose) DO UPDATE
SET state = EXCLUDED.state, consent_version = EXCLUDED.consent_version, recorded_at = EXCLUDED.recorded_at,
    answered_at = EXCLUDED.answered_at, expires_at = EXCLUDED.expires_at, purpose_version = EXCLUDED.purpose_version,
    jurisdiction = EXCLUDED.jurisdiction, expiry_recorded_for = EXCLUDED.expiry_recorded_for
"""

# What one transaction appended to a ledger is what one command did.
COMMAND_EVENTS_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at, key_id, nonce, payload,
       traceparent
FROM events WHERE stream_id = $1 AND epoch = $2 AND xid = $3 ORDER BY version
"""
HAS_EVENT_SQL = "SELECT EXISTS (SELECT FROM events WHERE event_id = $1)"
HISTORY_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at, key_id, nonce, payload,
       traceparent
FROM events WHERE stream_id = ANY($1::text[]) ORDER BY occurred_at, stream_id, version LIMIT $2
"""
# See domain.ledger.EVERY_PURPOSE.
CLOSE_SQL = """
INSERT INTO consent_state
    (member_id, purpose, state, consent_version, recorded_at, answered_at, expires_at, purpose_version)
SELECT $1, $2, 3, $3, statement_timestamp(), statement_timestamp(), 'infinity', 0
ON CONFLICT (member_id, purpose) DO NOTHING
"""
# Members with a grant that ran out and is not recorded to have; the condition is the index's, so that it is used.
# Whoever was erased has a ledger that is closed.
RAN_OUT_SQL = """
SELECT member_id FROM consent_state s
WHERE state = 1 AND expires_at < 'infinity' AND expiry_recorded_for <> expires_at AND expires_at <= now()
  AND NOT EXISTS (SELECT FROM erased_members e WHERE e.member_id = s.member_id)
ORDER BY expires_at LIMIT $1
"""


class PostgresLedger:
    """handlers.ledger.Ledger.

    Args:
        pool: for changes and histories.
        read_pool: for snapshots, with a short statement timeout.
    """

    def __init__(self, pool: Pool, read_pool: Pool, policies: PostgresPolicies) -> None:
        self._pool = pool
        self._read_pool = read_pool
        self._policies = policies

    async def change(self, member_id: str, request_id: str, digest: bytes, decide: Decide) -> Change:
        """See handlers.ledger.Ledger."""
        applied = command_applied(digest, request_id, scoped_request_id(request_id, member_id))
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                async with transaction(self._pool, verify=applied) as connection:
                    return await self._change(connection, member_id, request_id, digest, decide)
            except ServiceError as error:
                if error.reason not in AGAIN or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def snapshot(self, member_ids: Sequence[str]) -> Snapshot:
        """See handlers.ledger.Ledger."""
        async with acquire(self._read_pool) as connection:
            rows = await connection.fetch(STANDINGS_SQL, list(member_ids))
            policy = await self._policies.version_in(connection, rows[0]["policy_version"])
        return Snapshot(policy, _standings(rows))

    async def history(self, member_ids: Sequence[str], *, limit: int) -> list[tuple[str, Answer]]:
        """See handlers.ledger.Ledger."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(HISTORY_SQL, [_stream_id(one) for one in member_ids], limit)
        events = [recorded(row) for row in rows]
        found, letters = read_each(events, [b"" for _ in events], lambda event, _: wire.decode_answer(event), *READER)
        await put_aside(self._pool, letters)
        return [(event.subject_id, answer) for event, answer in found]

    async def expire(self, decide: Decide, *, limit: int) -> int:
        """See handlers.Ledger. Each member in a transaction of its own, so that none waits for another."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(RAN_OUT_SQL, limit)
        failed = False
        for member_id in dict.fromkeys(row["member_id"] for row in rows):
            try:
                async with transaction(self._pool) as connection:
                    await connection.execute(LOCK_SQL, member_id)
                    await self._decide(connection, member_id, decide)
            except Exception as error:
                if passes(error):
                    raise
                # Erased between the two statements; anything else is told, and keeps no other grant from running out.
                if not (isinstance(error, ServiceError) and error.reason == "SUBJECT_ERASED"):
                    letter = letter_of(error, "consent", "expiries", channel="consent_state")
                    await put_aside(self._pool, [replace(letter, subject_id=member_id)])
                    failed = True
        # What fails is found again each time, and is no reason to look again at once.
        return 0 if failed else len(rows)

    async def put_back(self, event_id: str, member_id: str, answer: Answer) -> bool:
        """Record a fact that this log once held, under its id and with its times; whether that changed anything.

        Nothing is recorded of somebody whose ledger an erasure has closed.
        """
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_SQL, member_id)
            standings = _standings(await connection.fetch(STANDINGS_SQL, [member_id])).get(member_id, {})
            if EVERY_PURPOSE in standings or await connection.fetchval(HAS_EVENT_SQL, event_id):
                return False
            version = max((one.consent_version for one in standings.values()), default=0)
            again = replace(answer, version=version + 1)
            event = replace(_event(member_id, again, again.recorded_at), event_id=event_id)
            await append_in(connection, [Append(_stream_id(member_id), version, (event,))])
            await _put(connection, member_id, standings, (again,))
        return True

    async def close_in(self, connection: Connection, member_id: str) -> None:
        """Revoke every purpose and close the member's ledger for good, in the caller's transaction.

        What the caller does to keep facts about the member out comes after it in the same transaction.
        """
        await connection.execute(LOCK_SQL, member_id)

        def revoke_all(view: View) -> tuple[Answer, ...]:
            return revoke(RevokeCommand(""), view) if view.policy.purposes else ()

        closed = await self._decide(connection, member_id, revoke_all)
        await connection.execute(CLOSE_SQL, member_id, EVERY_PURPOSE, closed.consent_version)

    async def _change(
        self, connection: Connection, member_id: str, request_id: str, digest: bytes, decide: Decide
    ) -> Change:
        await connection.execute(LOCK_SQL, member_id)
        request_id = await own_request_id(connection, request_id, digest, member_id=member_id, whose=_whose)
        done = await find_command(connection, request_id, digest)
        if done is not None:
            return await _repeated(connection, member_id, done)
        return await self._decide(connection, member_id, decide, request_id, digest)

    async def _decide(
        self,
        connection: Connection,
        member_id: str,
        decide: Decide,
        request_id: str | None = None,
        digest: bytes = b"",
    ) -> Change:
        """Decide on the ledger as it is under the lock, and write what was decided."""
        rows = await connection.fetch(STANDINGS_SQL, [member_id])
        policy = await self._policies.version_in(connection, rows[0]["policy_version"])
        standings = _standings(rows).get(member_id, {})
        version = max((one.consent_version for one in standings.values()), default=0)
        answers = decide(View(policy, standings, version, rows[0]["now"]))
        if answers:
            await append_in(connection, [_append(member_id, version, answers, request_id, digest)])
            await _put(connection, member_id, standings, answers)
        return Change(version + len(answers), answers)


async def _repeated(connection: Connection, member_id: str, done: Appended) -> Change:
    """What the command did when it was applied."""
    rows = await connection.fetch(COMMAND_EVENTS_SQL, _stream_id(member_id), done.position.epoch, done.position.xid)
    return Change(done.version, tuple(wire.decode_answer(recorded(row)) for row in rows), is_repeated=True)


async def _put(
    connection: Connection, member_id: str, standings: dict[str, Standing], answers: tuple[Answer, ...]
) -> None:
    """Make the table say what the fold says."""
    after = {answer.purpose: evolve(standings.get(answer.purpose), answer) for answer in answers}
    await connection.execute(
        PUT_STANDINGS_SQL,
        member_id,
        list(after),
        [int(one.state) for one in after.values()],
        [one.consent_version for one in after.values()],
        [one.recorded_at for one in after.values()],
        [one.answered_at for one in after.values()],
        [one.expires_at for one in after.values()],
        [one.purpose_version for one in after.values()],
        [one.jurisdiction for one in after.values()],
        [one.expiry_recorded_for for one in after.values()],
    )


def _standings(rows: Sequence[asyncpg.Record]) -> dict[str, dict[str, Standing]]:
    standings: dict[str, dict[str, Standing]] = {}
    for row in rows:
        if row["member_id"] is not None:
            standings.setdefault(row["member_id"], {})[row["purpose"]] = _standing(row)
    return standings


def _standing(row: asyncpg.Record) -> Standing:
    return Standing(
        # What a newer release wrote and this one does not know allows nothing, and costs no other answer its reader.
        state=State(row["state"]) if row["state"] in _STATES else State.DENIED,
        consent_version=row["consent_version"],
        recorded_at=row["recorded_at"],
        answered_at=row["answered_at"],
        expires_at=_or_never(row["expires_at"]),
        purpose_version=row["purpose_version"],
        jurisdiction=row["jurisdiction"],
        expiry_recorded_for=_or_never(row["expiry_recorded_for"]),
    )


def _or_never(at: datetime) -> datetime:
    """asyncpg gives infinity without a time zone."""
    return at if at.tzinfo else NEVER


def _append(member_id: str, version: int, answers: tuple[Answer, ...], request_id: str | None, digest: bytes) -> Append:
    return Append(
        stream_id=_stream_id(member_id),
        expected_version=version,
        events=tuple(_event(member_id, answer, answer.recorded_at) for answer in answers),
        request_id=request_id,
        request_digest=digest,
    )


def _event(member_id: str, answer: Answer, now: datetime) -> NewEvent:
    event_type, payload = wire.encode_answer(answer)
    return NewEvent(uuid7(now), event_type, payload, now, member_id, traceparent())


def _stream_id(member_id: str) -> str:
    return f"consent-{member_id}"


async def _whose(stream_id: str) -> str:
    return stream_id.removeprefix("consent-")
