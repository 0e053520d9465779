"""What consent itself holds about people, and that an erasure leaves it: pseudonyms, and what was agreed to.

But for dead letters, which prove nothing.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from comity.common.v1.holdings_pb2 import DescribeHoldingsRequest, ExportHoldingsRequest

from services.chassis.erasure import POSTGRES, Erasure, Step, count_in, delete_dead_letters_in
from services.chassis.events import RecordedEvent
from services.chassis.eventstore import recorded
from services.chassis.holdings import HeldRecord, Holding, HoldingsService, letter_records
from services.chassis.postgres import Pool, acquire, transaction
from services.consent import wire
from services.consent.domain.erasure import Step as DomainStep
from services.consent.domain.receipts import Counts

# Rows of one export page; a ledger of more is read on.
PAGE_MAX = 500

KEPT = "kept: pseudonyms only; it proves what was agreed to, and that the erasure was done"
NATS = "nats"
# The servicer asks nothing of whoever calls.
_NOBODY: Any = None

STREAMS_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at, key_id, nonce, payload,
       traceparent
FROM events WHERE stream_id = ANY($1::text[]) AND (stream_id, version) > ($2, $3) ORDER BY stream_id, version LIMIT $4
"""


class ConsentHoldings:
    """chassis.holdings.Holdings."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def describe(self) -> Sequence[Holding]:
        """See chassis.holdings.Holdings."""
        return (
            Holding(
                store=POSTGRES,
                name="events, consent_state",
                content="every answer to every purpose under a pseudonym: notice, mechanism, times, jurisdiction",
                erasure=KEPT,
                read_by=("consent",),
            ),
            Holding(
                store=POSTGRES,
                name="events (access-<subject_id>)",
                content="who read the person's history, receipts or export, when and why",
                erasure=KEPT,
                read_by=("consent",),
            ),
            Holding(
                store=POSTGRES,
                name="erasures, erasure_steps, erased_members",
                content="that and when the person was erased, and what went where",
                erasure=KEPT,
                read_by=("consent", "identity", "features", "decision", "feedback"),
            ),
            Holding(
                store=POSTGRES,
                name="dead_letters",
                content="facts of the ledger that could not be read: type and reason under a pseudonym",
                erasure="deleted",
                read_by=("consent",),
            ),
            Holding(
                store="file",
                name="journal (COMITY_CONSENT_JOURNAL_DIR)",
                content="refusals and erasures again, outside of every backup: pseudonym, purpose, verdict, times",
                erasure=KEPT,
                read_by=("consent",),
            ),
            Holding(
                store=NATS,
                name="ev.v1.*.consent.*",
                content="the facts of the ledger on their way to whoever wants them",
                erasure="runs out by itself",
                retention_days=7,
            ),
        )

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[HeldRecord]:
        """See chassis.holdings.Holdings."""
        members = {f"{kind}-{member_id}": member_id for member_id in member_ids for kind in ("consent", "access")}
        after, version = "", 0
        while True:
            async with acquire(self._pool) as connection:
                rows = await connection.fetch(STREAMS_SQL, list(members), after, version, PAGE_MAX)
            for row in rows:
                event = recorded(row)
                yield HeldRecord(
                    store=POSTGRES,
                    name="events",
                    schema=event.type,
                    member_id=members[event.stream_id],
                    occurred_at=event.occurred_at,
                    content=_content_of(event),
                )
            if len(rows) < PAGE_MAX:
                break
            after, version = rows[-1]["stream_id"], rows[-1]["version"]
        async for letter in letter_records(self._pool, member_ids):
            yield letter

    async def erase(self, step: Step, erasure: Erasure) -> None:
        """See chassis.holdings.Holdings: the ledger was closed when the erasure began, and is kept."""
        if step is Step.DELETE:
            async with transaction(self._pool) as connection:
                letters = await delete_dead_letters_in(connection, erasure.member_ids)
                await count_in(connection, erasure.erasure_id, step, letters)


def _content_of(event: RecordedEvent) -> dict[str, Any]:
    """What an event says; of one that cannot be read that it cannot, and the others are handed out all the same."""
    try:
        return wire.event_json(event)
    except Exception:  # whatever a row may hold
        return {"event_id": event.event_id, "unreadable": "UNREADABLE"}


class OwnParticipant:
    """handlers.privacy_ports.Participant: consent itself, without a call over the network."""

    def __init__(self, pool: Pool, holdings: ConsentHoldings) -> None:
        self._service = HoldingsService(pool, holdings, None)

    async def take(self, step: DomainStep, erasure_id: str, member_ids: Sequence[str]) -> Counts:
        """See handlers.privacy_ports.Participant."""
        request = wire.erase_request(step, erasure_id, member_ids)
        return wire.counts_of(await self._service.EraseHoldings(request, _NOBODY))

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[Any]:
        """See handlers.privacy_ports.Participant."""
        async for page in self._service.ExportHoldings(ExportHoldingsRequest(member_ids=member_ids), _NOBODY):
            yield page.records

    async def describe(self) -> Any:
        """See handlers.privacy_ports.Participant."""
        return (await self._service.DescribeHoldings(DescribeHoldingsRequest(), _NOBODY)).holdings
