"""How far the joiner is, and what waits for its decision."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from services.chassis.dead_letters import IMPOSSIBLE_PLACE, impossible_place, put_aside
from services.chassis.events import ORIGIN, LogPosition
from services.chassis.postgres import Pool, acquire
from services.feedback.domain.attribution import Waiting
from services.feedback.store.rows import position_of

POSITION_SQL = "SELECT epoch, xid, position FROM join_positions WHERE reader = $1"
# All of it is joined anew: what is joined twice is recorded once.
FORGET_IMPOSSIBLE_SQL = f"DELETE FROM join_positions WHERE {IMPOSSIBLE_PLACE} RETURNING reader"
# Two joiners for a moment (the lock's connection broke) may write in any order: it never goes back.
ADVANCE_SQL = """
INSERT INTO join_positions AS held (reader, epoch, xid, position) VALUES ($1, $2, $3::xid8, $4)
ON CONFLICT (reader) DO UPDATE SET epoch = EXCLUDED.epoch, xid = EXCLUDED.xid, position = EXCLUDED.position
WHERE (held.epoch, held.xid, held.position) < (EXCLUDED.epoch, EXCLUDED.xid, EXCLUDED.position)
"""
# Only behavior that is still there, of somebody who was not erased: nothing is to wait for what is gone.
WAIT_SQL = """
INSERT INTO pending_outcomes (behavior_id, decision_id, since)
SELECT w.behavior_id, w.decision_id, w.since
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS w (behavior_id, decision_id, since)
JOIN events e ON e.event_id = w.behavior_id
WHERE (SELECT true FROM erased_members m WHERE m.member_id = e.subject_id FOR KEY SHARE) IS NULL
ON CONFLICT (behavior_id) DO NOTHING
"""
WAITING_FOR_SQL = "SELECT behavior_id, decision_id, since FROM pending_outcomes WHERE decision_id = ANY($1::text[])"
SETTLE_SQL = "DELETE FROM pending_outcomes WHERE behavior_id = ANY($1::uuid[])"
EXPIRE_SQL = "DELETE FROM pending_outcomes WHERE since < $1"


class PostgresProgress:
    """handlers.ports.Progress."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def forget_impossible(self) -> None:
        """See handlers.ports.Progress."""
        async with acquire(self._pool) as connection:
            readers = [row["reader"] for row in await connection.fetch(FORGET_IMPOSSIBLE_SQL)]
        await put_aside(self._pool, [impossible_place("feedback", f"join_positions/{reader}") for reader in readers])

    async def position(self, name: str) -> LogPosition:
        """See handlers.ports.Progress."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(POSITION_SQL, name)
        return position_of(row) if row is not None else ORIGIN

    async def advance(self, name: str, position: LogPosition) -> None:
        """See handlers.ports.Progress."""
        async with acquire(self._pool) as connection:
            await connection.execute(ADVANCE_SQL, name, position.epoch, position.xid, position.position)

    async def wait(self, waiting: Sequence[Waiting]) -> None:
        """See handlers.ports.Progress."""
        if not waiting:
            return
        async with acquire(self._pool) as connection:
            await connection.execute(
                WAIT_SQL,
                [UUID(entry.behavior_id) for entry in waiting],
                [entry.decision_id for entry in waiting],
                [entry.since for entry in waiting],
            )

    async def waiting_for(self, decision_ids: Sequence[str]) -> list[Waiting]:
        """See handlers.ports.Progress."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(WAITING_FOR_SQL, list(decision_ids))
        return [Waiting(str(row["behavior_id"]), row["decision_id"], row["since"]) for row in rows]

    async def settle(self, behavior_ids: Sequence[str]) -> None:
        """See handlers.ports.Progress."""
        async with acquire(self._pool) as connection:
            await connection.execute(SETTLE_SQL, [UUID(behavior_id) for behavior_id in behavior_ids])

    async def expire(self, before: datetime) -> int:
        """See handlers.ports.Progress."""
        async with acquire(self._pool) as connection:
            status = await connection.execute(EXPIRE_SQL, before)
        return int(status.rsplit(" ", 1)[-1])
