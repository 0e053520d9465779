"""The log of behavior and outcomes: sealed under the member's key, each in a stream that can hold it once."""

from collections.abc import Sequence
from datetime import datetime

from services.chassis.clock import Clock
from services.chassis.dead_letters import put_aside, read_each
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, Append, LogPosition, NewEvent, RecordedEvent, Sealed
from services.chassis.eventstore import recorded
from services.chassis.ids import uuid7
from services.chassis.ports import EventStore
from services.chassis.postgres import Pool, acquire
from services.chassis.sealing import Sealer, ToSeal
from services.chassis.tracing import traceparent
from services.feedback.domain.attribution import Answer, Outcome, outcome_stream_of
from services.feedback.domain.behavior import NewBehavior, NotRecorded, Stored
from services.feedback.store.rows import EVENT_COLUMNS, JOINER, position_of
from services.feedback.wire import (
    BEHAVIOR_RECORDED,
    OUTCOME_ATTRIBUTED,
    decode_answer,
    decode_behavior,
    encode_behavior,
    encode_outcome,
)

NEWEST_SQL = "SELECT epoch, xid, position FROM events ORDER BY epoch DESC, xid DESC, position DESC LIMIT 1"
STORED_SQL = f"SELECT {EVENT_COLUMNS} FROM events WHERE stream_id = ANY($1::text[]) ORDER BY version"
HELD_SQL = "SELECT stream_id FROM events WHERE stream_id = ANY($1::text[])"
BY_ID_SQL = f"SELECT {EVENT_COLUMNS} FROM events WHERE event_id = ANY($1::uuid[])"


class SealedBehaviorLog:
    """handlers.ports.BehaviorLog over an event store."""

    def __init__(self, pool: Pool, store: EventStore, sealer: Sealer, clock: Clock) -> None:
        self._pool = pool
        self._store = store
        self._sealer = sealer
        self._clock = clock

    async def record(self, behaviors: Sequence[NewBehavior]) -> list[LogPosition | NotRecorded]:
        """See handlers.ports.BehaviorLog.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        held = await self._held([stream_id for entry in behaviors for stream_id in entry.twin_stream_ids])
        payloads = await self._payloads(behaviors)
        now, trace = self._clock.now(), traceparent()
        appends = [
            _append(entry, payload, now, trace)
            for entry, payload in zip(behaviors, payloads, strict=True)
            if held.isdisjoint(entry.twin_stream_ids) and not isinstance(payload, ServiceError)
        ]
        appended = iter(await self._store.append_many(appends) if appends else ())
        answers: list[LogPosition | NotRecorded] = []
        for entry, payload in zip(behaviors, payloads, strict=True):
            if not held.isdisjoint(entry.twin_stream_ids):
                answers.append(NotRecorded.DUPLICATE)
            elif isinstance(payload, ServiceError):
                answers.append(_refused(payload))
            else:
                result = next(appended)
                answers.append(_refused(result) if isinstance(result, ServiceError) else result.position)
        return answers

    async def _payloads(self, behaviors: Sequence[NewBehavior]) -> list[Sealed | bytes | ServiceError]:
        """Each sealed for its member; what is nobody's has no key to be sealed with, and nothing to hide."""
        sealed = iter(
            await self._sealer.seal_many(
                [
                    ToSeal(entry.member_id, BEHAVIOR_RECORDED, encode_behavior(entry.behavior))
                    for entry in behaviors
                    if entry.member_id
                ]
            )
        )
        return [next(sealed) if entry.member_id else encode_behavior(entry.behavior) for entry in behaviors]

    async def _held(self, stream_ids: Sequence[str]) -> frozenset[str]:
        """Those of these streams that hold something."""
        if not stream_ids:
            return frozenset()
        async with acquire(self._pool) as connection:
            return frozenset(row["stream_id"] for row in await connection.fetch(HELD_SQL, list(stream_ids)))

    async def record_outcomes(self, outcomes: Sequence[tuple[Outcome, ...]]) -> None:
        """See handlers.ports.BehaviorLog.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        flat = [outcome for group in outcomes for outcome in group]
        sealed = iter(
            await self._sealer.seal_many(
                [ToSeal(outcome.member_id, OUTCOME_ATTRIBUTED, encode_outcome(outcome)) for outcome in flat]
            )
        )
        appends: list[Append] = []
        for group in outcomes:
            payloads = [next(sealed) for _ in group]
            events = self._outcome_events(group, [payload for payload in payloads if isinstance(payload, Sealed)])
            # All outcomes of a behavior are about one member: all of them can be sealed, or none.
            if len(events) == len(group):
                appends.append(Append(outcome_stream_of(group[0].behavior_id), 0, events))
        for result in await self._store.append_many(appends) if appends else ():
            if isinstance(result, ServiceError):
                _refused(result)

    def _outcome_events(self, group: Sequence[Outcome], payloads: Sequence[Sealed]) -> tuple[NewEvent, ...]:
        now = self._clock.now()
        return tuple(
            NewEvent(uuid7(now), OUTCOME_ATTRIBUTED, payload, outcome.occurred_at, outcome.member_id)
            for outcome, payload in zip(group, payloads, strict=False)
        )

    async def stored(self, stream_ids: Sequence[str]) -> dict[str, Stored]:
        """See handlers.ports.BehaviorLog."""
        async with acquire(self._pool) as connection:
            events = [recorded(row) for row in await connection.fetch(STORED_SQL, list(stream_ids))]
        opened = await self._sealer.open_many(events) if events else []
        found, letters = read_each(events, opened, lambda _, plain: decode_behavior(plain), "feedback", "track")
        await put_aside(self._pool, letters)
        readable = {event.event_id: behavior for event, behavior in found}
        return {event.stream_id: Stored(event.position, readable.get(event.event_id)) for event in events}

    async def newest(self) -> LogPosition:
        """See handlers.ports.BehaviorLog."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(NEWEST_SQL)
        return position_of(row) if row is not None else ORIGIN

    async def answers(self, after: LogPosition, *, limit: int) -> tuple[list[Answer], LogPosition]:
        """See handlers.ports.BehaviorLog."""
        events = await self._store.read_log(after, limit=limit)
        if not events:
            return [], after
        return await self._opened([e for e in events if e.type == BEHAVIOR_RECORDED]), events[-1].position

    async def answers_by_id(self, behavior_ids: Sequence[str]) -> list[Answer]:
        """See handlers.ports.BehaviorLog."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(BY_ID_SQL, list(behavior_ids))
        return await self._opened([recorded(row) for row in rows])

    async def _opened(self, events: Sequence[RecordedEvent]) -> list[Answer]:
        """Those that name a decision and can be opened; an erased person's behavior answers nothing any more."""
        opened = await self._sealer.open_many(events) if events else []
        found, letters = read_each(events, opened, decode_answer, "feedback", JOINER)
        await put_aside(self._pool, letters)
        return [answer for _, answer in found if answer is not None]


def _append(entry: NewBehavior, payload: Sealed | bytes, now: datetime, trace: str) -> Append:
    # A trace knows who made the call: what is nobody's does not lead there.
    traced = trace if entry.member_id else ""
    event = NewEvent(uuid7(now), BEHAVIOR_RECORDED, payload, entry.occurred_at, entry.member_id, traced)
    return Append(entry.stream_id, 0, (event,))


def _refused(error: ServiceError) -> NotRecorded:
    """What a refusal of one behavior means; an outage is the whole call's."""
    if error.kind is Kind.CONFLICT:
        return NotRecorded.DUPLICATE
    # By the key that is gone, or by the log's suppress list.
    if error.kind is Kind.NOT_FOUND or error.reason == "SUBJECT_ERASED":
        return NotRecorded.ERASED
    raise error
