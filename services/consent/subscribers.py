"""What happens without anybody asking: grants run out, and the ledger says so."""

import asyncio

import structlog

from services.chassis.errors import Kind, ServiceError
from services.chassis.postgres import Pool, leadership
from services.consent.handlers.ledger import ConsentHandlers

_log = structlog.get_logger(__name__)

# Verdicts know by themselves that a grant is over; the fact is for whoever reads the ledger, and may come late.
POLL_S = 5.0
RETRY_S = 1.0
LEADERSHIP = "comity.consent.expiries"


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
