"""What the joiner passed over: kept as dead letters, and joined after all when an operator retries them."""

from collections.abc import Awaitable, Callable

from services.chassis.dead_letters import After, Letter, put_aside, reason_of, where_of
from services.chassis.log_rows import recorded
from services.chassis.postgres import Connection, Pool, acquire
from services.chassis.sealing import Sealer
from services.feedback.domain.attribution import Answer, Arrival
from services.feedback.store.rows import DECISION_COLUMNS, EVENT_COLUMNS, JOINER, decision_of
from services.feedback.wire import BEHAVIOR_RECORDED, DECISION_MADE, decode_answer, decode_decided

DECISION_EVENT_SQL = "SELECT event_id FROM decision_facts WHERE decision_id = $1"
DECISION_SQL = f"SELECT {DECISION_COLUMNS} FROM decision_facts WHERE event_id = $1"
BEHAVIOR_SQL = f"SELECT {EVENT_COLUMNS} FROM events WHERE event_id = $1"
# What has arrived anew is walked by the joiner again.
ARRIVE_SQL = """
UPDATE decision_facts SET arrival_epoch = (SELECT epoch FROM log_epoch), arrival_xid = pg_current_xact_id(),
       arrival = DEFAULT
WHERE event_id = $1
"""


class JoinerLetters:
    """handlers.ports.Unread, and how its letters are retried."""

    def __init__(self, pool: Pool, sealer: Sealer) -> None:
        self._pool = pool
        self._sealer = sealer

    async def put_aside(self, item: Arrival | Answer, error: Exception) -> None:
        """See handlers.ports.Unread."""
        reason, detail = reason_of(error)
        is_answer = isinstance(item, Answer)
        event_id = item.behavior_id if isinstance(item, Answer) else await self._event_of(item.decision_id)
        letter = Letter(
            "feedback" if is_answer else "decision",
            JOINER,
            reason,
            detail,
            event_id=event_id,
            type=BEHAVIOR_RECORDED if is_answer else DECISION_MADE,
            subject_id=item.member_id,
            where=where_of(error),
        )
        await put_aside(self._pool, [letter])

    async def retry_decision(self, connection: Connection, letter: Letter) -> None:
        """Have a decision arrive again, if it can be read now: a dead_letters.Retry."""
        row = await connection.fetchrow(DECISION_SQL, letter.event_id)
        if row is not None:
            event = decision_of(row)
            decode_decided(event.subject_id, await self._sealer.open(event))
            await connection.execute(ARRIVE_SQL, letter.event_id)

    def retry_answer(
        self, join: Callable[[str], Awaitable[None]]
    ) -> Callable[[Connection, Letter], Awaitable[After | None]]:
        """Joins an answer if it can be read now: a dead_letters.Retry."""

        async def retry(connection: Connection, letter: Letter) -> After | None:
            row = await connection.fetchrow(BEHAVIOR_SQL, letter.event_id)
            if row is None:
                return None
            event = recorded(row)
            decode_answer(event, await self._sealer.open(event))
            # Inside the transaction: what cannot be joined keeps its letter. What was joined is recorded once.
            await join(letter.event_id)
            return None

        return retry

    async def _event_of(self, decision_id: str) -> str:
        async with acquire(self._pool) as connection:
            return str(await connection.fetchval(DECISION_EVENT_SQL, decision_id) or "")
