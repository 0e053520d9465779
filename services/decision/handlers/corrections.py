"""What attempts that answered the default have still to tell the log: a slate that came too late was not shown."""

import asyncio

import structlog

from services.chassis.deadline import carry_deadline
from services.chassis.errors import ServiceError
from services.decision.domain.attempts import settled
from services.decision.domain.record import DecisionRecord
from services.decision.handlers.ports import DecisionLog
from services.decision.metrics import CORRECTIONS_LOST

# For about a minute: a Postgres that starts again, or fails over. The log waits by itself for one that is slow; these
# are for when it gave up, and for other attempts that were faster.
PAUSES_S = (0.02, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# In an outage every answer wants a correction; beyond this they are dropped, and the answers' learnable=false remains.
PENDING_MAX = 1_000
# A process that goes down is waited for by others.
DRAIN_S = 2.0

_log = structlog.get_logger(__name__)


class Corrections:
    """Settles attempts behind the answers' backs: an answer that is late already must not wait for it."""

    def __init__(self, log: DecisionLog) -> None:
        self._log = log
        self._pending: set[asyncio.Task[None]] = set()

    def add(self, answered: DecisionRecord, attempt_id: str) -> None:
        """Have the log say what this attempt answered, as far as it has to, soon; see domain.attempts."""
        if len(self._pending) >= PENDING_MAX:
            _lost("too_many", answered)
            return
        task = asyncio.create_task(self._correct(answered, attempt_id))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def drain(self) -> None:
        """Returns when none is pending any more; what does not get through in a moment is given up."""
        if self._pending:
            _, late = await asyncio.wait(self._pending, timeout=DRAIN_S)
            for task in late:
                CORRECTIONS_LOST.labels("stopped").inc()
                task.cancel()

    async def _correct(self, answered: DecisionRecord, attempt_id: str) -> None:
        # The call's own deadline is all but over, and is not this work's.
        carry_deadline(None)
        for pause_s in (*PAUSES_S, None):
            try:
                await self._settle(answered, attempt_id)
                return
            except ServiceError as error:
                if error.reason == "SUBJECT_ERASED":
                    # Neither the record nor its correction is in the log, and neither will be.
                    return
                last = error
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        _lost(last.reason, answered)

    async def _settle(self, answered: DecisionRecord, attempt_id: str) -> None:
        logged = await self._log.find(answered.decision_id)
        record = settled(logged, attempt_id, answered)
        if record is None:
            return
        if logged is None:
            # What is still on its way conflicts from here on. By another id: neither must be taken for the other.
            await self._log.add(record)
        else:
            await self._log.amend(logged, record)


def _lost(why: str, answered: DecisionRecord) -> None:
    """What is in the log may be a slate that was not shown, and nothing says so."""
    CORRECTIONS_LOST.labels(why).inc()
    _log.warning("correction lost", decision_id=answered.decision_id, reason=why)
