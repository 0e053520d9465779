"""The decision log: one stream a decision, sealed under the member's key; the newest version is the decision."""

from services.chassis.clock import Clock
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, LogPosition, NewEvent, Sealed
from services.chassis.eventstore import SUBJECT_ERASED, subject_erased
from services.chassis.ids import uuid7
from services.chassis.ports import EventStore
from services.chassis.sealing import Sealer
from services.chassis.tracing import traceparent
from services.decision.domain.attempts import Logged, made_final
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

    async def add(self, record: DecisionRecord, attempt_id: str = "") -> LogPosition:
        """See handlers.ports.DecisionLog."""
        # The stream's place is the idempotency: a second decision with this id conflicts.
        return await self._append(record, 0, attempt_id)

    async def amend(self, logged: Logged, record: DecisionRecord) -> LogPosition:
        """See handlers.ports.DecisionLog."""
        if record.member_id != logged.record.member_id:
            # Sealed for somebody else it could be read under neither of the two.
            raise ServiceError(Kind.INTERNAL, "MEMBER_CHANGED", "A decision's next version is about its own member.")
        return await self._append(record, logged.version)

    async def _append(self, record: DecisionRecord, expected_version: int, event_id: str = "") -> LogPosition:
        plain = record_to_bytes(record)
        payload: bytes | Sealed = plain
        if record.member_id:
            payload = await self._seal(record.member_id, plain)
        event = NewEvent(
            event_id=event_id or uuid7(self._clock.now()),
            type=DECISION_MADE,
            payload=payload,
            occurred_at=record.decided_at,
            subject_id=record.member_id,
            traceparent=traceparent(),
        )
        appended = await self._store.append(Append(record.decision_id, expected_version, (event,)))
        return appended.position

    async def _seal(self, member_id: str, plain: bytes) -> Sealed:
        try:
            return await self._sealer.seal(member_id, DECISION_MADE, plain)
        except ServiceError as error:
            if error.reason != SUBJECT_ERASED:
                raise
            # The same answer whether the key or the suppress list says it.
            raise subject_erased() from error

    async def find(self, decision_id: str) -> Logged | None:
        """See handlers.ports.DecisionLog."""
        events = await self._store.read_stream(decision_id)
        if not events:
            return None
        newest = events[-1]
        record = record_from_bytes(await self._sealer.open(newest), newest.subject_id)
        # A release before withdrew without saying so, and never twice.
        record = made_final(record) if newest.version > 1 and not record.default_also_answered else record
        return Logged(record, newest.version, events[0].event_id, newest.position)
