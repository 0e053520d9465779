"""What feedback holds about people: behavior and outcomes, a copy of the decision log, answers that wait."""

from collections.abc import AsyncIterator, Sequence

from services.chassis.erasure import POSTGRES, Erasure, Step, count_in, delete_from_log
from services.chassis.holdings import HeldRecord, Holding, log_holdings, log_records
from services.chassis.postgres import Pool, acquire, transaction
from services.chassis.sealing import Sealer
from services.feedback.wire import DECISION_MADE

MEASURED = ("measurement", "model_training")
# A decision is a few kilobytes: what goes in one statement.
DELETE_MAX = 1_000

FACTS_SQL = """
SELECT decision_id, member_id, decided_at FROM decision_facts
WHERE member_id = ANY($1::text[]) AND member_id <> '' ORDER BY decided_at, decision_id
"""
WAITING_SQL = """
SELECT w.behavior_id, w.decision_id, w.since, e.subject_id FROM pending_outcomes w
JOIN events e ON e.event_id = w.behavior_id WHERE e.subject_id = ANY($1::text[]) AND e.subject_id <> ''
ORDER BY w.since, w.behavior_id
"""
RECTIFIED_SQL = """
SELECT request_id, count, recorded_at FROM rectifications WHERE member_ids && $1::text[] ORDER BY recorded_at
"""
# Before the events, by which it is known whose they are.
DELETE_WAITING_SQL = """
WITH gone AS (
    DELETE FROM pending_outcomes w USING events e
    WHERE e.event_id = w.behavior_id AND e.subject_id = ANY($1::text[]) AND e.subject_id <> '' RETURNING 1
) SELECT count(*) FROM gone
"""
DELETE_FACTS_SQL = """
WITH gone AS (
    DELETE FROM decision_facts WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM decision_facts WHERE member_id = ANY($1::text[]) AND member_id <> '' LIMIT $2
    )) RETURNING decision_id
), waiting AS (
    DELETE FROM pending_outcomes w USING gone WHERE w.decision_id = gone.decision_id RETURNING 1
) SELECT (SELECT count(*) FROM gone) AS facts, (SELECT count(*) FROM waiting) AS waiting
"""
DELETE_RECTIFIED_SQL = """
WITH gone AS (DELETE FROM rectifications WHERE member_ids && $1::text[] RETURNING 1) SELECT count(*) FROM gone
"""


class FeedbackHoldings:
    """chassis.holdings.Holdings of feedback."""

    def __init__(self, pool: Pool, sealer: Sealer) -> None:
        self._pool = pool
        self._sealer = sealer

    def describe(self) -> Sequence[Holding]:
        """See chassis.holdings.Holdings."""
        behavior = "what the person did or was shown, and which decisions it answered"
        return [
            *log_holdings(behavior, sealed=True, purposes=MEASURED, read_by=("features", "learning")),
            Holding(
                POSTGRES, "decision_facts", "a copy of the decisions made for the person", "deleted", True, MEASURED
            ),
            Holding(
                POSTGRES, "pending_outcomes", "that an answer waits for its decision", "deleted", False, MEASURED, 7
            ),
            Holding(POSTGRES, "rectifications", "that something about the person was put right", "deleted"),
        ]

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[HeldRecord]:
        """See chassis.holdings.Holdings. Of decisions, which is here; decision gives them out whole."""
        async for record in log_records(self._pool, self._sealer.open_many, member_ids):
            yield record
        async with acquire(self._pool) as connection:
            facts = await connection.fetch(FACTS_SQL, list(member_ids))
            waiting = await connection.fetch(WAITING_SQL, list(member_ids))
            rectified = await connection.fetch(RECTIFIED_SQL, list(member_ids))
        for row in facts:
            content = {"decision_id": row["decision_id"], "copy_of": DECISION_MADE}
            yield HeldRecord(
                POSTGRES, "decision_facts", "copy of a decision", row["member_id"], row["decided_at"], content
            )
        for row in waiting:
            content = {"behavior_id": str(row["behavior_id"]), "decision_id": row["decision_id"]}
            yield HeldRecord(POSTGRES, "pending_outcomes", "waiting answer", row["subject_id"], row["since"], content)
        for row in rectified:
            yield HeldRecord(
                POSTGRES, "rectifications", "rectification", "", row["recorded_at"], {"count": row["count"]}
            )

    async def erase(self, step: Step, erasure: Erasure) -> None:
        """See chassis.holdings.Holdings."""
        if step is not Step.DELETE:
            return
        async with transaction(self._pool) as connection:
            counts = {
                (POSTGRES, "pending_outcomes"): await connection.fetchval(DELETE_WAITING_SQL, list(erasure.member_ids)),
                (POSTGRES, "rectifications"): await connection.fetchval(DELETE_RECTIFIED_SQL, list(erasure.member_ids)),
            }
            await count_in(connection, erasure.erasure_id, step, counts)
        facts_count = DELETE_MAX
        while facts_count == DELETE_MAX:
            async with transaction(self._pool) as connection:
                row = await connection.fetchrow(DELETE_FACTS_SQL, list(erasure.member_ids), DELETE_MAX)
                assert row is not None, "counts are one row"
                facts_count = row["facts"]
                gone = {(POSTGRES, "decision_facts"): facts_count, (POSTGRES, "pending_outcomes"): row["waiting"]}
                await count_in(connection, erasure.erasure_id, step, gone)
        await delete_from_log(self._pool, erasure)
