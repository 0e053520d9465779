"""What keeps erased people out of a service whose database was restored: consent's erasure ledger, applied at start.

A backup holds people who were erased since, and not that they were. So a service whose database comes from one takes
every erasure of the ledger again before it is reachable, and waits for consent with that; on an ordinary start what is
new is applied behind its back. Steps are idempotent: what was taken already changes nothing.

    gate = ErasureGate(pool, holdings_service.erase, GrpcErasureLedger(consent_channel))
    await gate.open()                                  # in build(), before anything is served or consumed
    app.background("erasure ledger", gate.run)

A restore shows by the log's epoch (another cluster, chassis.migrations) or by the cluster's timeline (to a point in
time). A dump that is put back into the cluster it came from shows by neither: then the ledger is read on from where the
dump was made, which finds the same erasures, but beside serving.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import grpc
import structlog
from comity.consent.v1 import privacy_service_pb2 as pb
from comity.consent.v1.privacy_service_pb2_grpc import PrivacyServiceStub

from services.chassis.erasure import Counts, Erasure, Step
from services.chassis.errors import ServiceError
from services.chassis.postgres import Pool, acquire
from services.chassis.rpc_client import call
from services.chassis.tracing import root_span

TIMEOUT_S = 5.0
# How often a start that waits for consent asks again, and says so.
RETRY_S = 1.0
# Consent has every service take its steps; this finds only what a restore brought back.
LOOK_EVERY_S = 60.0

STANDS_SQL = """
SELECT (SELECT epoch FROM log_epoch) AS epoch, (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,
       a.number, a.epoch AS applied_epoch, a.timeline AS applied_timeline
FROM (VALUES (1)) AS always LEFT JOIN erasures_applied a ON true
"""
APPLIED_SQL = """
INSERT INTO erasures_applied AS a (number, epoch, timeline) VALUES ($1, $2, $3)
ON CONFLICT (only_row) DO UPDATE SET number = excluded.number, epoch = excluded.epoch, timeline = excluded.timeline
WHERE (a.epoch, a.timeline) <> (excluded.epoch, excluded.timeline) OR a.number < excluded.number
"""

# chassis.holdings.Eraser is one.
Take = Callable[[Step, Erasure], Awaitable[Counts]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """An erasure in the ledger, by its number there."""

    number: int
    erasure: Erasure


class ErasureLedger(Protocol):
    """Consent's ledger of erasures."""

    def after(self, number: int) -> AsyncIterator[Entry]:
        """Those after a number, oldest first.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...

    async def completed(self, erasure_id: str) -> bool:
        """Whether every service has taken every step of it.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...


class GrpcErasureLedger:
    """ErasureLedger over consent."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = PrivacyServiceStub(channel)

    async def after(self, number: int) -> AsyncIterator[Entry]:
        """See ErasureLedger."""
        while True:
            response = await call(self._stub.ListErasures, pb.ListErasuresRequest(after=number), TIMEOUT_S)
            if not response.erasures:
                return
            for one in response.erasures:
                yield Entry(one.number, Erasure(one.erasure_id, tuple(sorted(one.member_ids))))
                number = one.number

    async def completed(self, erasure_id: str) -> bool:
        """See ErasureLedger."""
        response = await call(self._stub.GetErasure, pb.GetErasureRequest(erasure_id=erasure_id), TIMEOUT_S)
        return bool(response.state == pb.ERASURE_STATE_COMPLETED)


@dataclass(frozen=True, slots=True)
class _Stands:
    """Where the database stands: what of the ledger it has applied, and whether it was restored since."""

    number: int
    epoch: int
    timeline: int
    restored: bool


class ErasureGate:
    """Applies the ledger to one service's database.

    Args:
        take: takes a step here.
    """

    def __init__(self, pool: Pool, take: Take, ledger: ErasureLedger, *, retry_s: float = RETRY_S) -> None:
        self._pool = pool
        self._take = take
        self._ledger = ledger
        self._retry_s = retry_s

    async def open(self) -> None:
        """Returns at once where the database was not restored; else once every erasure of the ledger is applied."""
        stands = await self._stands()
        if not stands.restored:
            return
        _log.warning("database restored", epoch=stands.epoch)
        while True:
            try:
                count = await self._apply(stands)
            except ServiceError as outage:
                # Whatever it is: to serve who was erased would be worse than not to serve.
                _log.warning("start waits for the erasure ledger", reason=outage.reason)
                await asyncio.sleep(self._retry_s)
            else:
                _log.info("erasures applied", count=count)
                return

    async def run(self) -> None:
        """Apply what is new in the ledger, for ever; outages are waited out."""
        while True:
            try:
                await self._apply(await self._stands())
            except ServiceError as outage:
                _log.warning("erasure ledger not read", reason=outage.reason)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _apply(self, stands: _Stands) -> int:
        """Take the steps of every erasure since; how many there were.

        Of one that still runs only that nothing about the person is stored: consent orders the other steps, because
        features must have read what feedback then deletes. It is looked at again until it is complete.
        """
        number, count, all_complete = stands.number, 0, True
        with root_span("erasure.ledger"):
            async for entry in self._ledger.after(stands.number):
                complete = await self._ledger.completed(entry.erasure.erasure_id)
                for step in Step if complete else (Step.SUPPRESS,):
                    await self._take(step, entry.erasure)
                all_complete = all_complete and complete
                number = entry.number if all_complete else number
                count += 1
        async with acquire(self._pool) as connection:
            await connection.execute(APPLIED_SQL, number, stands.epoch, stands.timeline)
        return count

    async def _stands(self) -> _Stands:
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(STANDS_SQL)
        assert row is not None, "one row, whatever the table holds"
        epoch, timeline = int(row["epoch"]), int(row["timeline"])
        if row["number"] is None:
            # The first epoch is that of the cluster that the database was made in; a backup from before this table.
            return _Stands(0, epoch, timeline, restored=epoch > 1)
        moved = row["applied_timeline"] != timeline and row["applied_timeline"] != 0
        restored = row["applied_epoch"] != epoch or moved
        # Numbers begin at 1; what is below them asks for all of it.
        return _Stands(0 if restored else max(0, int(row["number"])), epoch, timeline, restored)
