"""What happens without anybody asking: grants run out, erasures go on until they are done, the journal is written."""

import asyncio

import structlog

from services.chassis.errors import Kind, ServiceError
from services.chassis.postgres import Pool, leadership
from services.consent.handlers.erasing import EraseWorker
from services.consent.handlers.ledger import ConsentHandlers
from services.consent.store.journal import PostgresJournal

_log = structlog.get_logger(__name__)

# Verdicts know by themselves that a grant is over; the fact is for whoever reads the ledger, and may come late.
POLL_S = 5.0
RETRY_S = 1.0
LEADERSHIP = "comity.consent.expiries"
# Another replica may have begun an erasure, or a service that was away may be back.
ERASURES_POLL_S = 0.5
ERASURES_LEADERSHIP = "comity.consent.erasures"
JOURNAL_LEADERSHIP = "comity.consent.journal"


class Expiries:
    """Records that grants ran out, while this replica is the one to do it."""

    def __init__(self, pool: Pool, handlers: ConsentHandlers, *, poll_s: float = POLL_S) -> None:
        self._pool = pool
        self._handlers = handlers
        self._poll_s = poll_s

    async def run(self) -> None:
        """Record until cancelled; outages are waited out."""
        while True:
            try:
                # Who lost the lead without noticing does no harm: under the member's lock an expiry is recorded once.
                async with leadership(self._pool, LEADERSHIP) as connection:
                    while not connection.is_closed():
                        if not await self._handlers.expire():
                            await asyncio.sleep(self._poll_s)
            except ServiceError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.CONFLICT):
                    raise
                _log.warning("recording expiries waits", reason=error.reason)
                await asyncio.sleep(RETRY_S)


class Erasures:
    """Continues erasures, while this replica is the one to do it."""

    def __init__(self, pool: Pool, worker: EraseWorker, *, poll_s: float = ERASURES_POLL_S) -> None:
        self._pool = pool
        self._worker = worker
        self._poll_s = poll_s
        self._news = asyncio.Event()

    def wake(self) -> None:
        """There is something to do: look now and not at the next poll."""
        self._news.set()

    async def run(self) -> None:
        """Continue until cancelled; outages are waited out."""
        while True:
            try:
                # Who lost the lead without noticing does no harm: steps can be taken twice, and are recorded once.
                async with leadership(self._pool, ERASURES_LEADERSHIP) as connection:
                    while not connection.is_closed():
                        self._news.clear()
                        if not await self._worker.step():
                            await self._wait()
            except ServiceError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.CONFLICT):
                    raise
                _log.warning("erasing waits", reason=error.reason)
                await asyncio.sleep(RETRY_S)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await self._news.wait()
        except TimeoutError:
            return


class Journaling:
    """Writes the log into the journal, while this replica is the one to do it."""

    def __init__(self, pool: Pool, journal: PostgresJournal) -> None:
        self._pool = pool
        self._journal = journal

    async def run(self) -> None:
        """Write until cancelled; outages, a disk that takes nothing and a file that is broken are waited out."""
        while True:
            try:
                async with leadership(self._pool, JOURNAL_LEADERSHIP) as connection:
                    await self._journal.lead(connection)
            except ServiceError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.FAILED_PRECONDITION):
                    raise
                _log.warning("the journal waits", reason=error.reason, exc_info=error)
                await asyncio.sleep(RETRY_S)
