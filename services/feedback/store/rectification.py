"""Behavior put right in the log: an event's next version in the place of the one before, under the same event id.

The same id, because outcomes, waiting answers and inboxes elsewhere name it; a consumer that has taken the event in
sees it as a repetition, and what features count (type, items, time) no rectification changes.
"""

from collections.abc import Callable, Sequence
from uuid import UUID

from services.chassis.dead_letters import put_aside, read_each
from services.chassis.erasure import ERASING_SQL, erased_in
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import RecordedEvent, Sealed
from services.chassis.eventstore import subject_erased
from services.chassis.holdings import events_of
from services.chassis.log_rows import recorded
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.chassis.sealing import Sealer, ToSeal
from services.feedback.domain.behavior import Behavior
from services.feedback.domain.rectification import Rectification, put_right
from services.feedback.store.rows import EVENT_COLUMNS
from services.feedback.wire import BEHAVIOR_RECORDED, decode_behavior, encode_behavior

BEGIN_SQL = """
INSERT INTO rectifications AS r (request_id, digest, member_ids, count) VALUES ($1, $2, $3, $4)
ON CONFLICT (request_id) DO UPDATE SET count = r.count + excluded.count WHERE r.digest = excluded.digest
RETURNING count
"""
BY_ID_SQL = f"SELECT {EVENT_COLUMNS} FROM events WHERE event_id = $1 AND subject_id = ANY($2::text[]) AND type = $3"
# Who changes an event locks it by deleting it: two rectifications of one event come one after the other, and the
# second finds no such version.
REPLACE_SQL = """
WITH gone AS (
    DELETE FROM events e USING unnest($1::uuid[], $2::integer[], $3::text[], $4::bytea[], $5::bytea[])
        AS put (event_id, version, key_id, nonce, payload)
    WHERE e.event_id = put.event_id AND e.version = put.version
    RETURNING e.event_id, e.stream_id, e.version, e.type, e.subject_id, e.occurred_at, e.traceparent,
              put.key_id, put.nonce, put.payload
)
INSERT INTO events (epoch, event_id, stream_id, version, type, subject_id, occurred_at,
                    key_id, nonce, payload, traceparent)
SELECT (SELECT epoch FROM log_epoch), event_id, stream_id, version + 1, type, subject_id, occurred_at,
       key_id, nonce, payload, traceparent
FROM gone ORDER BY stream_id
RETURNING event_id
"""


class PostgresRecordedBehavior:
    """handlers.ports.RecordedBehavior.

    Args:
        on_commit: called after a transaction that wrote something.
    """

    def __init__(self, pool: Pool, sealer: Sealer, *, on_commit: Callable[[], None]) -> None:
        self._pool = pool
        self._sealer = sealer
        self._on_commit = on_commit

    async def holds(self, event_id: str, member_ids: Sequence[str], behavior_type: str) -> bool:
        """See handlers.ports.RecordedBehavior."""
        events = await self._event(event_id, member_ids)
        return any(behavior.type == behavior_type for _, behavior in await self._readable(events))

    async def put_right(self, asked: Rectification) -> int:
        """See handlers.ports.RecordedBehavior. A page a transaction: what is interrupted goes on where it stopped."""
        count = await self._replace(asked, [])
        if asked.event_id:
            return await self._page(asked, await self._event(asked.event_id, asked.member_ids)) or count
        async for page in events_of(self._pool, asked.member_ids):
            count = await self._page(asked, [event for event in page if event.type == BEHAVIOR_RECORDED]) or count
        return count

    async def _page(self, asked: Rectification, events: Sequence[RecordedEvent]) -> int:
        """Put right what is wrong among these; how many by the request so far, 0 where nothing is."""
        wrong = [
            (event, behavior)
            for event, recorded_as in await self._readable(events)
            if (behavior := put_right(recorded_as, asked)) is not None
        ]
        if not wrong:
            return 0
        payloads = await self._sealer.seal_many(
            [ToSeal(event.subject_id, BEHAVIOR_RECORDED, encode_behavior(behavior)) for event, behavior in wrong]
        )
        right = [
            (event, payload) for (event, _), payload in zip(wrong, payloads, strict=True) if isinstance(payload, Sealed)
        ]
        return await self._replace(asked, right)

    async def _replace(self, asked: Rectification, right: Sequence[tuple[RecordedEvent, Sealed]]) -> int:
        async with transaction(self._pool) as connection:
            if await erased_in(connection, asked.member_ids):
                raise subject_erased()
            replaced = await _replace_in(connection, right) if right else 0
            count = await connection.fetchval(
                BEGIN_SQL, asked.request_id, asked.digest, list(asked.member_ids), replaced
            )
            if count is None:
                raise ServiceError(
                    Kind.ALREADY_EXISTS,
                    "REQUEST_ID_REUSED",
                    "This request_id was used for another rectification: use a new one for a new command.",
                )
        if replaced:
            self._on_commit()
        return int(count)

    async def _readable(self, events: Sequence[RecordedEvent]) -> list[tuple[RecordedEvent, Behavior]]:
        """Those that can be read; the others are put aside, and keep nobody's rectification waiting."""
        opened = await self._sealer.open_many(events)
        found, letters = read_each(events, opened, lambda _, plain: decode_behavior(plain), "feedback", "rectification")
        await put_aside(self._pool, letters)
        return found

    async def _event(self, event_id: str, member_ids: Sequence[str]) -> list[RecordedEvent]:
        try:
            wanted = UUID(event_id)
        except ValueError:
            return []
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(BY_ID_SQL, wanted, list(member_ids), BEHAVIOR_RECORDED)
        return [recorded(row) for row in rows]


async def _replace_in(connection: Connection, right: Sequence[tuple[RecordedEvent, Sealed]]) -> int:
    await connection.execute(ERASING_SQL)
    rows = await connection.fetch(
        REPLACE_SQL,
        [UUID(event.event_id) for event, _ in right],
        [event.version for event, _ in right],
        [payload.key_id for _, payload in right],
        [payload.nonce for _, payload in right],
        [payload.ciphertext for _, payload in right],
    )
    return len(rows)
