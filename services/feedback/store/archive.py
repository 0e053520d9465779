"""The retained log in pages: keyset reads, so that the last page costs what the first did and memory stays flat."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from services.chassis.dead_letters import put_aside, read_each
from services.chassis.events import ORIGIN, LogPosition, RecordedEvent
from services.chassis.log_rows import HEAD_SQL, recorded
from services.chassis.postgres import Pool, acquire
from services.chassis.sealing import Sealer
from services.chassis.turns import TURN, in_turns
from services.feedback.domain.replay import Kind, Place, Range, Replayed
from services.feedback.store.behavior import NEWEST_SQL
from services.feedback.store.rows import DECISION_COLUMNS, EVENT_COLUMNS, decision_of, position_of
from services.feedback.wire import DECISION_MADE, KIND_OF, TYPE_OF, decode_decided, placement_of

# A decision is a few kilobytes: a page is about two megabytes, and its keys are one call to identity.
DECISIONS_PAGE = 500
EVENTS_PAGE = 2000

# A replay waits so long for transactions that were open when it began, of any service on the same Postgres.
OPEN_S_MAX = 5.0
OPEN_POLL_S = 0.02
_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, tzinfo=UTC)

# By its arrival a decision could not be bounded: corrected after the call began it would be left out.
LAST_DECISION_SQL = """
SELECT decided_at, decision_id FROM decision_facts ORDER BY decided_at DESC, decision_id DESC LIMIT 1
"""
DECISIONS_SQL = f"""
SELECT {DECISION_COLUMNS} FROM decision_facts
WHERE (decided_at, decision_id) > ($1, $2) AND (decided_at, decision_id) <= ($3, $4)
  AND decided_at >= $5 AND decided_at < $6
ORDER BY decided_at, decision_id LIMIT $7
"""
EVENTS_SQL = f"""
SELECT {EVENT_COLUMNS} FROM events
WHERE (epoch, xid, position) > ($1, $2::xid8, $3) AND (epoch, xid, position) <= ($4, $5::xid8, $6)
  AND type = ANY($7::text[]) AND occurred_at >= $8 AND occurred_at < $9
ORDER BY epoch, xid, position LIMIT $10
"""


# Of some members alone: which rows are theirs is looked up at once, and then they are read by their ids.
DECISION_IDS_SQL = """
SELECT decision_id FROM decision_facts
WHERE member_id = ANY($1::text[]) AND member_id <> '' AND decided_at >= $2 AND decided_at < $3
  AND (decided_at, decision_id) > ($4, $5)
ORDER BY decided_at, decision_id
"""
DECISIONS_BY_ID_SQL = f"""
SELECT {DECISION_COLUMNS} FROM decision_facts WHERE decision_id = ANY($1::text[]) ORDER BY decided_at, decision_id
"""
EVENT_IDS_SQL = """
SELECT event_id FROM events
WHERE subject_id = ANY($1::text[]) AND subject_id <> ''
  AND type = ANY($2::text[]) AND occurred_at >= $3 AND occurred_at < $4
  AND (epoch, xid, position) > ($5, $6::xid8, $7) AND (epoch, xid, position) <= ($8, $9::xid8, $10)
ORDER BY epoch, xid, position
"""
EVENTS_BY_ID_SQL = f"""
SELECT {EVENT_COLUMNS} FROM events WHERE event_id = ANY($1::uuid[]) ORDER BY epoch, xid, position
"""


class PostgresArchive:
    """handlers.ports.Archive."""

    def __init__(self, pool: Pool, sealer: Sealer) -> None:
        self._pool = pool
        self._sealer = sealer

    async def pages(
        self,
        kinds: frozenset[Kind],
        within: Range,
        *,
        placement_id: str,
        member_ids: Sequence[str],
        after: Place,
    ) -> AsyncIterator[tuple[list[Replayed], Place]]:
        """See handlers.ports.Archive. No connection is held while the reader of a page takes its time."""
        if Kind.DECISION in kinds:
            reads = self._decisions_of(within, after, member_ids) if member_ids else self._decisions(within, after)
        else:
            start = after.position
            reads = (
                self._events_of(kinds, within, start, member_ids) if member_ids else self._events(kinds, within, start)
            )
        async for events in reads:
            yield await self._opened(events, placement_id), _end_of(events)

    async def _decisions(self, within: Range, after: Place) -> AsyncIterator[list[RecordedEvent]]:
        start = after.decided_at or _FIRST, after.decision_id
        async with acquire(self._pool) as connection:
            end = await connection.fetchrow(LAST_DECISION_SQL)
        while end is not None:
            async with acquire(self._pool) as connection:
                rows = await connection.fetch(DECISIONS_SQL, *start, *end, *_bounds(within), DECISIONS_PAGE)
            if not rows:
                return
            yield [decision_of(row) for row in rows]
            start = rows[-1]["decided_at"], rows[-1]["decision_id"]

    async def _events(
        self, kinds: frozenset[Kind], within: Range, after: LogPosition
    ) -> AsyncIterator[list[RecordedEvent]]:
        end = await self._end()
        types = sorted(TYPE_OF[kind] for kind in kinds)
        while True:
            async with acquire(self._pool) as connection:
                rows = await connection.fetch(
                    EVENTS_SQL, *_parts(after), *_parts(end), types, *_bounds(within), EVENTS_PAGE
                )
            if not rows:
                return
            yield [recorded(row) for row in rows]
            after = position_of(rows[-1])

    async def _decisions_of(
        self, within: Range, after: Place, member_ids: Sequence[str]
    ) -> AsyncIterator[list[RecordedEvent]]:
        start = (after.decided_at or _FIRST, after.decision_id)
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(DECISION_IDS_SQL, list(member_ids), *_bounds(within), *start)
        ids = [row["decision_id"] for row in rows]
        for start_at in range(0, len(ids), DECISIONS_PAGE):
            async with acquire(self._pool) as connection:
                page = await connection.fetch(DECISIONS_BY_ID_SQL, ids[start_at : start_at + DECISIONS_PAGE])
            if page:
                yield [decision_of(row) for row in page]

    async def _events_of(
        self, kinds: frozenset[Kind], within: Range, after: LogPosition, member_ids: Sequence[str]
    ) -> AsyncIterator[list[RecordedEvent]]:
        end, types = await self._end(), sorted(TYPE_OF[kind] for kind in kinds)
        bounds = (*_bounds(within), *_parts(after), *_parts(end))
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(EVENT_IDS_SQL, list(member_ids), types, *bounds)
        ids = [row["event_id"] for row in rows]
        for start in range(0, len(ids), EVENTS_PAGE):
            async with acquire(self._pool) as connection:
                page = await connection.fetch(EVENTS_BY_ID_SQL, ids[start : start + EVENTS_PAGE])
            if page:
                yield [recorded(row) for row in page]

    async def _end(self) -> LogPosition:
        """Where the log ends now, once its readers can pass that: until then something before it may be committed.

        Where a transaction stays open too long, where readers can go: what lies beyond is for the next replay.
        """
        give_up_at_s = time.monotonic() + OPEN_S_MAX
        newest = await self._position(NEWEST_SQL)
        while True:
            head = await self._position(HEAD_SQL)
            if head >= newest or time.monotonic() >= give_up_at_s:
                return head
            await asyncio.sleep(OPEN_POLL_S)

    async def _position(self, newest_sql: str) -> LogPosition:
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(newest_sql)
        return ORIGIN if row is None else position_of(row)

    async def _opened(self, events: Sequence[RecordedEvent], placement_id: str) -> list[Replayed]:
        """Those that can be read, of the placement where one is named; one that cannot costs the others nothing."""
        opened = await self._sealer.open_many(events)
        source = "decision" if events[0].type == DECISION_MADE else "feedback"
        facts: list[Replayed] = []
        async for start in in_turns(len(events)):
            part = slice(start, start + TURN)
            found, letters = read_each(events[part], opened[part], _replayed, source, "replay")
            await put_aside(self._pool, letters)
            facts += [fact for _, (fact, placement) in found if placement_id in ("", placement)]
        return facts


def _replayed(event: RecordedEvent, plain: bytes) -> tuple[Replayed, str]:
    """The fact, and its placement, which shows that it can be read."""
    kind = KIND_OF.get(event.type, Kind.DECISION)
    fact = Replayed(
        kind=kind,
        event_id=event.event_id,
        member_id=event.subject_id,
        occurred_at=event.occurred_at,
        position=event.position,
        payload=plain,
    )
    placement_id = (
        decode_decided(event.subject_id, plain).placement_id if kind is Kind.DECISION else placement_of(kind, plain)
    )
    return fact, placement_id


def _end_of(events: Sequence[RecordedEvent]) -> Place:
    """Where a page ends: its last row, whether it can be read or not."""
    last = events[-1]
    if last.type == DECISION_MADE:
        return Place(last.occurred_at, last.stream_id)
    return Place(position=last.position)


def _bounds(within: Range) -> tuple[datetime, datetime]:
    return within.since or _FIRST, within.until or _LAST


def _parts(position: LogPosition) -> tuple[int, int, int]:
    return position.epoch, position.xid, position.position
