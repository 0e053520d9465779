"""The decision log: one stream a decision, sealed under the member's key; a correction is the stream's next event."""

from services.chassis.clock import Clock
from services.chassis.errors import ServiceError
from services.chassis.events import Append, LogPosition, NewEvent, Sealed
from services.chassis.eventstore import SUBJECT_ERASED, subject_erased
from services.chassis.ids import uuid7
from services.chassis.ports import EventStore
from services.chassis.sealing import Sealer
from services.chassis.tracing import traceparent
from services.decision.domain.record import DecisionRecord
from services.decision.wire.record import DECISION_MADE, record_from_bytes, record_to_bytes


class SealedDecisionLog:
    """handlers.ports.DecisionLog over an event store."""

    def __init__(self, store: EventStore, sealer: Sealer, clock: Clock) -> None:
        self._store = store
        self._sealer = sealer
        self._clock = clock

    def holds_key(self, member_id: str) -> bool:
        """See handlers.ports.DecisionLog."""
        return self._sealer.holds(member_id)

    async def fetch_key(self, member_id: str) -> None:
        """See handlers.ports.DecisionLog."""
        await self._sealer.prepare(member_id)

    async def add(self, record: DecisionRecord, *, correction: bool = False) -> LogPosition:
        """See handlers.ports.DecisionLog."""
        plain = record_to_bytes(record)
        payload: bytes | Sealed = plain
        if record.member_id:
            payload = await self._seal(record.member_id, plain)
        event = NewEvent(
            event_id=uuid7(self._clock.now()),
            type=DECISION_MADE,
            payload=payload,
            occurred_at=record.decided_at,
            subject_id=record.member_id,
            traceparent=traceparent(),
        )
        # The stream's place is the idempotency: a second decision with this id conflicts.
        appended = await self._store.append(Append(record.decision_id, 1 if correction else 0, (event,)))
        return appended.position

    async def _seal(self, member_id: str, plain: bytes) -> Sealed:
        try:
            return await self._sealer.seal(member_id, DECISION_MADE, plain)
        except ServiceError as error:
            if error.reason != SUBJECT_ERASED:
                raise
            # The same answer whether the key or the suppress list says it.
            raise subject_erased() from error

    async def find(self, decision_id: str) -> DecisionRecord | None:
        """See handlers.ports.DecisionLog."""
        events = await self._store.read_stream(decision_id)
        if not events:
            return None
        newest = events[-1]
        return record_from_bytes(await self._sealer.open(newest), newest.subject_id)
