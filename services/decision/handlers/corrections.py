"""Records of what was answered where the log holds something else: a slate that came too late was not shown."""

import asyncio

import structlog

from services.chassis.deadline import carry_deadline
from services.chassis.errors import Kind, ServiceError
from services.decision.domain.record import DecisionRecord
from services.decision.handlers.ports import DecisionLog

# The record that is corrected may still be on its way into the log: a commit that waits for a disk, or for a Postgres
# that starts again. After about ten seconds it is not coming any more, and then there is nothing to correct.
PAUSES_S = (0.02, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0)
# In an outage every answer wants a correction; beyond this they are dropped, and the answers' learnable=false remains.
PENDING_MAX = 1_000
# A process that goes down is waited for by others.
DRAIN_S = 2.0

_log = structlog.get_logger(__name__)


class Corrections:
    """Adds corrections behind the answers' backs: an answer that is late already must not wait for one."""

    def __init__(self, log: DecisionLog) -> None:
        self._log = log
        self._pending: set[asyncio.Task[None]] = set()

    def add(self, record: DecisionRecord) -> None:
        """Correct the decision in the log to this record, soon."""
        if len(self._pending) >= PENDING_MAX:
            _log.warning("correction dropped", decision_id=record.decision_id)
            return
        task = asyncio.create_task(self._correct(record))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def drain(self) -> None:
        """Returns when none is pending any more; what does not get through in a moment is given up."""
        if self._pending:
            _, late = await asyncio.wait(self._pending, timeout=DRAIN_S)
            for task in late:
                task.cancel()

    async def _correct(self, record: DecisionRecord) -> None:
        # The call's own deadline is all but over, and is not this work's.
        carry_deadline(None)
        for pause_s in (*PAUSES_S, None):
            try:
                await self._log.add(record, correction=True)
                return
            except ServiceError as error:
                if error.reason == "SUBJECT_ERASED":
                    # Neither the record nor its correction is in the log, and neither will be.
                    return
                last = error
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        if last.kind is not Kind.CONFLICT:
            _log.warning("correction given up", decision_id=record.decision_id, reason=last.reason)
