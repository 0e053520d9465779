"""The copy of the decision log: taken in sealed, opened only where behavior or a replay asks."""

from collections.abc import Sequence
from uuid import UUID

from services.chassis.dead_letters import put_aside, read_each
from services.chassis.events import ORIGIN, LogPosition, RecordedEvent, Sealed
from services.chassis.postgres import Connection, Pool, acquire
from services.chassis.sealing import Sealer
from services.feedback.domain.attribution import Arrival, Decided
from services.feedback.store.rows import DECISION_COLUMNS, JOINER, decision_of
from services.feedback.wire import decode_decided

# A correction is the next version of a decision's stream, and the newest version is the decision.
# It arrives anew, so that what is done with arrivals is done with what was really answered.
TAKE_IN_SQL = """
INSERT INTO decision_facts (decision_id, version, event_id, member_id, decided_at, key_id, nonce, payload,
                            epoch, xid, position, arrival_epoch)
SELECT fact.*, log_epoch.epoch
FROM log_epoch, unnest($1::text[], $2::integer[], $3::uuid[], $4::text[], $5::timestamptz[], $6::text[], $7::bytea[],
                       $8::bytea[], $9::integer[], $10::xid8[], $11::bigint[]) AS fact
ON CONFLICT (decision_id) DO UPDATE
SET version = EXCLUDED.version, event_id = EXCLUDED.event_id, member_id = EXCLUDED.member_id,
    decided_at = EXCLUDED.decided_at, key_id = EXCLUDED.key_id, nonce = EXCLUDED.nonce, payload = EXCLUDED.payload,
    epoch = EXCLUDED.epoch, xid = EXCLUDED.xid, position = EXCLUDED.position, arrival_epoch = EXCLUDED.arrival_epoch,
    arrival_xid = pg_current_xact_id(), arrival = DEFAULT
WHERE decision_facts.version < EXCLUDED.version
"""
DECIDED_SQL = f"SELECT {DECISION_COLUMNS} FROM decision_facts WHERE decision_id = ANY($1::text[])"
ARRIVALS_SQL = """
SELECT decision_id, member_id, arrival_epoch, arrival_xid, arrival FROM decision_facts
WHERE (arrival_epoch, arrival_xid, arrival) > ($1, $2::xid8, $3)
  AND (arrival_epoch < (SELECT epoch FROM log_epoch) OR arrival_xid < pg_snapshot_xmin(pg_current_snapshot()))
ORDER BY arrival_epoch, arrival_xid, arrival LIMIT $4
"""
NEWEST_ARRIVAL_SQL = """
SELECT arrival_epoch, arrival_xid, arrival FROM decision_facts
ORDER BY arrival_epoch DESC, arrival_xid DESC, arrival DESC LIMIT 1
"""


async def take_in(connection: Connection, events: Sequence[RecordedEvent]) -> None:
    """Keep decisions as they came, in one statement; runs for every decision that is made, so it opens none."""
    # One statement cannot touch a row twice: of the versions of one decision the last counts.
    newest: dict[str, RecordedEvent] = {}
    for event in events:
        held = newest.get(event.stream_id)
        if held is None or held.version < event.version:
            newest[event.stream_id] = event
    if newest:
        await connection.execute(TAKE_IN_SQL, *zip(*(_fact(event) for event in newest.values()), strict=True))


def _fact(event: RecordedEvent) -> tuple[object, ...]:
    sealed = event.payload if isinstance(event.payload, Sealed) else None
    return (
        event.stream_id,
        event.version,
        UUID(event.event_id),
        event.subject_id,
        event.occurred_at,
        sealed.key_id if sealed is not None else None,
        sealed.nonce if sealed is not None else None,
        sealed.ciphertext if sealed is not None else event.payload,
        event.position.epoch,
        event.position.xid,
        event.position.position,
    )


class PostgresDecisions:
    """handlers.ports.Decisions."""

    def __init__(self, pool: Pool, sealer: Sealer) -> None:
        self._pool = pool
        self._sealer = sealer

    async def decided(self, decision_ids: Sequence[str]) -> dict[str, Decided]:
        """See handlers.ports.Decisions."""
        if not decision_ids:
            return {}
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(DECIDED_SQL, list(decision_ids))
        events = [decision_of(row) for row in rows]
        opened = await self._sealer.open_many(events) if rows else []
        found, letters = read_each(
            events, opened, lambda event, plain: decode_decided(event.subject_id, plain), "decision", JOINER
        )
        await put_aside(self._pool, letters)
        return {event.stream_id: decided for event, decided in found}

    async def arrivals(self, after: LogPosition, *, limit: int) -> list[Arrival]:
        """See handlers.ports.Decisions."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(ARRIVALS_SQL, after.epoch, after.xid, after.position, limit)
        return [
            Arrival(
                row["decision_id"],
                row["member_id"],
                LogPosition(row["arrival_epoch"], row["arrival_xid"], row["arrival"]),
            )
            for row in rows
        ]

    async def newest_arrival(self) -> LogPosition:
        """See handlers.ports.Decisions."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(NEWEST_ARRIVAL_SQL)
        return LogPosition(row["arrival_epoch"], row["arrival_xid"], row["arrival"]) if row is not None else ORIGIN
