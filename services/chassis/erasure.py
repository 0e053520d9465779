"""Erased members in one service's database: the suppress list, and the deletion that every service shares.

Whoever stores something about a person asks `erased_in` in the transaction that stores it. `suppress_in` waits for
every transaction that has asked and keeps new ones waiting until it is committed: so each of them either was finished
before (and what it stored is deleted with the rest) or sees the member on the list. The event log (chassis.eventstore)
and the inbox ask by themselves. Owns no order of steps: consent's erasure has it.

Whoever asks in SQL of its own says FOR KEY SHARE: that is what holds the table against suppress_in, also where no row
is found. Mere readers of the list, and a backup that is being taken, wait for nobody and keep nobody waiting.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.chassis import envelope
from services.chassis.errors import ServiceError, invalid
from services.chassis.postgres import Connection, Pool, transaction

# A statement within its timeout; more than that are deleted in several transactions, so that none is long.
DELETE_MAX = 2_000

POSTGRES = "postgres"

# Writers that ask hold the table in ROW SHARE mode (FOR KEY SHARE). Not ACCESS EXCLUSIVE: pg_dump would conflict with
# that for as long as it runs, and every writer would wait behind.
LOCK_SQL = "LOCK TABLE erased_members IN EXCLUSIVE MODE"
# Those who store something wait behind this: better to give up and come again than to keep them.
LOCK_TIMEOUT_SQL = "SELECT set_config('lock_timeout', '1s', true)"
SUPPRESS_SQL = """
WITH added AS (
    INSERT INTO erased_members (member_id, erasure_id) SELECT m, $1 FROM unnest($2::text[]) AS m ORDER BY m
    ON CONFLICT DO NOTHING RETURNING 1
) SELECT count(*) FROM added
"""
ERASED_SQL = "SELECT member_id FROM erased_members WHERE member_id = ANY($1::text[]) FOR KEY SHARE"

# What refuse_change() lets through, until the transaction ends.
ERASING_SQL = "SELECT set_config('comity.erasing', 'on', true)"
DELETE_EVENTS_SQL = """
DELETE FROM events WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM events WHERE subject_id = ANY($1::text[]) AND subject_id <> '' LIMIT $2
)) RETURNING stream_id
"""
DELETE_COMMANDS_SQL = """
WITH gone AS (DELETE FROM commands WHERE stream_id = ANY($1::text[]) RETURNING 1) SELECT count(*) FROM gone
"""
DELETE_LETTERS_SQL = """
WITH gone AS (DELETE FROM dead_letters WHERE subject_id = ANY($1::text[]) AND subject_id <> '' RETURNING 1)
SELECT count(*) FROM gone
"""
# Ids of members lie in an EventBatch as they are, so a message that names one holds its bytes, decodable or not.
LETTERS_NAMING_SQL = """
SELECT id, payload FROM dead_letters d WHERE subject_id = ''
  AND EXISTS (SELECT FROM unnest($1::text[]) AS m WHERE position(convert_to(m, 'UTF8') IN d.payload) > 0)
ORDER BY id FOR UPDATE
"""
DELETE_LETTER_SQL = "DELETE FROM dead_letters WHERE id = $1"
TRIM_LETTER_SQL = "UPDATE dead_letters SET payload = $2 WHERE id = $1"

COUNT_SQL = """
INSERT INTO erased_counts AS c (erasure_id, step, store, name, count)
SELECT $1, $2, k.store, k.name, k.count FROM unnest($3::text[], $4::text[], $5::bigint[]) AS k (store, name, count)
ORDER BY k.store, k.name
ON CONFLICT (erasure_id, step, store, name) DO UPDATE SET count = c.count + excluded.count
"""
COUNTS_SQL = "SELECT store, name, count FROM erased_counts WHERE erasure_id = $1 AND step = $2 ORDER BY store, name"

# (store, name) → how many.
Counts = Mapping[tuple[str, str], int]


class Step(StrEnum):
    """Steps of an erasure, in their order; ErasureStep of holdings.proto."""

    SUPPRESS = "SUPPRESS"
    WITHDRAW = "WITHDRAW"
    DESTROY_KEYS = "DESTROY_KEYS"
    DELETE = "DELETE"


# What identity derives (services/identity/domain/identities.py); the suppress list has the same as a CHECK.
MEMBER_ID = re.compile("[a-z2-7]{26}")


@dataclass(frozen=True, slots=True)
class Erasure:
    """Whose erasure it is, under which id.

    Raises:
        ServiceError: INVALID (INVALID_FIELD) where it names nobody, or names what is no member: the empty id is that of
            all facts about nobody, and a letter is found in anybody's bytes.
    """

    erasure_id: str
    member_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what erases nobody, or more than somebody."""
        if not self.member_ids:
            raise invalid("member_ids", "names nobody; give the members of the person who is erased")
        if not all(map(MEMBER_ID.fullmatch, self.member_ids)):
            raise invalid("member_ids", f"holds what is no id of a member; one matches {MEMBER_ID.pattern}")


async def suppress_in(connection: Connection, erasure_id: str, member_ids: Sequence[str]) -> int:
    """Put these members on the suppress list; when the transaction is committed nothing about them is stored any more.

    Keep the transaction short: every writer of personal rows waits for it.

    Returns:
        How many were not on it before.

    Raises:
        ServiceError: UNAVAILABLE when a transaction that stores something does not end; try again.
    """
    await connection.execute(LOCK_TIMEOUT_SQL)
    await connection.execute(LOCK_SQL)
    added: int = await connection.fetchval(SUPPRESS_SQL, erasure_id, list(member_ids))
    return added


async def erased_in(connection: Connection, member_ids: Collection[str]) -> set[str]:
    """Those of these members who were erased; ask in the transaction that stores something about them.

    Once it has asked, no member gets on the list before the transaction has ended.
    """
    rows = await connection.fetch(ERASED_SQL, list(member_ids))
    return {row["member_id"] for row in rows}


async def delete_member_events_in(
    connection: Connection, member_ids: Sequence[str], *, limit: int = DELETE_MAX
) -> Counter[tuple[str, str]]:
    """Delete events recorded under these members, at most *limit*, and the commands of their streams.

    Returns:
        What went, by (store, name); fewer events than *limit* means that none are left.
    """
    await connection.execute(ERASING_SQL)
    rows = await connection.fetch(DELETE_EVENTS_SQL, list(member_ids), limit)
    streams = sorted({row["stream_id"] for row in rows})
    commands = await connection.fetchval(DELETE_COMMANDS_SQL, streams) if streams else 0
    return Counter({(POSTGRES, "events"): len(rows), (POSTGRES, "commands"): commands})


async def delete_dead_letters_in(connection: Connection, member_ids: Sequence[str]) -> Counter[tuple[str, str]]:
    """Delete what was put aside about these members; a whole message loses their events and keeps the others'."""
    count = await connection.fetchval(DELETE_LETTERS_SQL, list(member_ids))
    for row in await connection.fetch(LETTERS_NAMING_SQL, list(member_ids)):
        left = _without(row["payload"], set(member_ids))
        if left is None:
            await connection.execute(DELETE_LETTER_SQL, row["id"])
        else:
            await connection.execute(TRIM_LETTER_SQL, row["id"], left)
        count += 1
    return Counter({(POSTGRES, "dead_letters"): count})


async def delete_from_log(pool: Pool, erasure: Erasure) -> None:
    """Delete events, commands and dead letters of these members, counted as step DELETE, in short transactions."""
    events_count = DELETE_MAX
    while events_count == DELETE_MAX:
        async with transaction(pool) as connection:
            counts = await delete_member_events_in(connection, erasure.member_ids)
            await count_in(connection, erasure.erasure_id, Step.DELETE, counts)
        events_count = counts[POSTGRES, "events"]
    async with transaction(pool) as connection:
        letters = await delete_dead_letters_in(connection, erasure.member_ids)
        await count_in(connection, erasure.erasure_id, Step.DELETE, letters)


async def count_in(connection: Connection, erasure_id: str, step: Step, counts: Counts) -> None:
    """Add to what a step took away, in the transaction that took it: the sum is true however often it stops."""
    keys = sorted(counts)
    await connection.execute(
        COUNT_SQL,
        erasure_id,
        step.value,
        [store for store, _ in keys],
        [name for _, name in keys],
        [counts[key] for key in keys],
    )


async def counts_in(connection: Connection, erasure_id: str, step: Step) -> dict[tuple[str, str], int]:
    """What a step took away in all."""
    rows = await connection.fetch(COUNTS_SQL, erasure_id, step.value)
    return {(row["store"], row["name"]): row["count"] for row in rows}


def _without(payload: bytes, member_ids: set[str]) -> bytes | None:
    """The message without these members' events; None where nothing else can be told from it."""
    try:
        kept = [event for event in envelope.decode_batch(payload) if event.subject_id not in member_ids]
    except ServiceError:
        return None
    left = envelope.encode_batch(kept)
    # Named elsewhere than as whom the event is about: a stream id, a plain payload.
    if not kept or any(member.encode() in left for member in member_ids):
        return None
    return left
