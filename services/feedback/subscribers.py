"""What happens on facts from elsewhere: decisions are kept, and the joiner is told."""

import asyncio
from collections.abc import Sequence

import structlog

from services.chassis import tracing
from services.chassis.errors import ServiceError
from services.chassis.events import RecordedEvent
from services.chassis.postgres import Connection, Pool, leadership
from services.feedback.handlers.join import JoinOutcomes
from services.feedback.store import take_in
from services.feedback.wire import DECISION_MADE

_log = structlog.get_logger(__name__)

# How often a joiner looks without being told: another replica may have taken the decision or the behavior in.
POLL_S = 0.25
RETRY_S = 0.5
# A step costs the same few round trips for one decision as for a thousand: what comes meanwhile is taken together.
GATHER_S = 0.05
LEADERSHIP = "comity.feedback.joiner"


async def on_decision_events(connection: Connection, events: list[RecordedEvent]) -> None:
    """Keep the decisions among what decision emits, in the inbox's transaction."""
    decisions = [event for event in events if event.type == DECISION_MADE]
    tracing.tell_decisions({event.stream_id for event in decisions})
    await take_in(connection, decisions)


class Joiner:
    """Runs the joining while this replica is the one to do it."""

    def __init__(self, pool: Pool, join: JoinOutcomes) -> None:
        self._pool = pool
        self._join = join
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Something came in or was tracked: look now and not at the next poll."""
        self._news.set()

    async def on_committed(self, _: Sequence[RecordedEvent]) -> None:
        """Decisions were taken in."""
        self.wake()

    async def run(self) -> None:
        """Join until cancelled; outages are waited out."""
        while True:
            try:
                # Who lost the lead without noticing does no harm for a step: joining twice records nothing twice.
                async with leadership(self._pool, LEADERSHIP) as connection:
                    await self._join.begin()
                    while not connection.is_closed():
                        await self._take()
            except ServiceError as error:
                _log.warning("joining waits", reason=error.reason)
                await asyncio.sleep(RETRY_S)

    async def _take(self) -> None:
        # Cleared before looking, so that news that comes meanwhile is not lost.
        self._news.clear()
        found = await self._join.step()
        await asyncio.sleep(GATHER_S)
        if not found:
            await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):
                await self._news.wait()
        except TimeoutError:
            return
