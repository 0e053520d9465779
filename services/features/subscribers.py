"""What happens on facts from elsewhere: behavior is folded, the catalog is kept.

The inbox alone says whether an event was folded before. Positions do not: an event that a stream lost is republished
after newer ones, and must still count. What is counted does not depend on the order.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

from services.chassis.clock import Clock, SystemClock
from services.chassis.dead_letters import passes
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, RecordedEvent
from services.chassis.eventstore import SUBJECT_ERASED
from services.chassis.inbox import KEEP_S
from services.chassis.postgres import Connection, Pool, acquire
from services.chassis.sealing import Sealer
from services.features.domain.book import Book
from services.features.domain.item_counts import blocks_of, fold_items
from services.features.domain.members import (
    Behavior,
    MemberState,
    Pending,
    UnreadableStateError,
    contributions_of,
    fold,
    fold_pending,
    pending_of,
)
from services.features.handlers import Settled
from services.features.metrics import BEHAVIOR_FOLDED, STATES_UNREADABLE
from services.features.store import (
    DROP_PENDING_SQL,
    FOLDED_PENDING_SQL,
    FORGET_PENDING_SQL,
    PENDING_S_MAX,
    Books,
    MemberStates,
    blocks_to_change,
    put_blocks,
    put_items,
    put_pending,
    put_states,
    states_to_change,
    take_pending,
    versions_of,
    versions_or_turn,
)
from services.features.wire import BEHAVIOR_RECORDED, CATALOG_CHANGED, behavior_from, items_from

FORGET_EVERY_S = 3600.0


class BehaviorIntake:
    """Folds behavior into the states of members and items, in the inbox's transaction; then into the cache."""

    def __init__(
        self, books: Books, sealer: Sealer, states: MemberStates, settled: Settled, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._books = books
        self._sealer = sealer
        self._states = states
        self._settled = settled

    async def handle(self, connection: Connection, events: list[RecordedEvent]) -> None:
        """Fold these events.

        Raises:
            ServiceError: UNAVAILABLE when their keys cannot be had, or a feature set cannot be read.
        """
        now_s = self._clock.now().timestamp()
        behavior = await self._opened(
            [event for event in events if event.type == BEHAVIOR_RECORDED and not _rectified_long_after(event, now_s)]
        )
        if not behavior:
            return
        self._settled.begin()
        book = await self._books.whole(connection)
        await _fold_members(connection, book, behavior)
        await _fold_items(connection, book, behavior)
        BEHAVIOR_FOLDED.inc(len(behavior))

    async def after_commit(self, events: Sequence[RecordedEvent]) -> None:
        """Bring the cache up to date; one that takes no writes is passed over from now on, and folding goes on."""
        members = sorted({event.subject_id for event in events if event.type == BEHAVIOR_RECORDED and event.subject_id})
        with _ending(self._settled):
            if members:
                await self._states.write_through(members)

    async def _opened(self, events: Sequence[RecordedEvent]) -> list[Behavior]:
        """What can be read of these; behavior of somebody who was erased meanwhile is gone."""
        opened: list[Behavior] = []
        for event, payload in zip(events, await self._sealer.open_many(events), strict=True):
            if isinstance(payload, bytes):
                opened.append(behavior_from(event, payload))
            elif payload.reason != SUBJECT_ERASED:
                raise payload
        return opened


def _rectified_long_after(event: RecordedEvent, now_s: float) -> bool:
    """Whether it is a later version of an event that was folded so long ago that the inbox has forgotten it.

    A rectified event keeps its id, so that the inbox knows it; and what is counted no rectification changes.
    """
    return event.version > 1 and (UUID(event.event_id).int >> 80) / 1000 < now_s - KEEP_S


class CatalogIntake:
    """Keeps the items among what decision emits, and folds what waited for them."""

    def __init__(self, pool: Pool, books: Books, states: MemberStates, settled: Settled) -> None:
        self._pool = pool
        self._books = books
        self._states = states
        self._settled = settled

    async def handle(self, connection: Connection, events: list[RecordedEvent]) -> None:
        """Keep these items.

        Raises:
            ServiceError: INVALID (CATALOG_SEALED); UNAVAILABLE when a feature set cannot be read.
        """
        item_ids: set[str] = set()
        for event in events:
            if event.type == CATALOG_CHANGED:
                if not isinstance(event.payload, bytes):
                    raise ServiceError(Kind.INVALID, "CATALOG_SEALED", "a catalog is about nobody and is never sealed")
                items = items_from(event.payload)
                await put_items(connection, items, event.occurred_at.timestamp())
                item_ids.update(items)
        pending = await take_pending(connection, item_ids) if item_ids else []
        if pending:
            self._settled.begin()
            await _fold_pending(connection, await self._books.whole(connection), pending)

    async def after_commit(self, events: Sequence[RecordedEvent]) -> None:
        """Bring the cache up to date about whoever something was folded for, in an earlier try, too."""
        with _ending(self._settled):
            async with acquire(self._pool) as connection:
                rows = await connection.fetch(FOLDED_PENDING_SQL)
            if rows:
                await self._states.write_through(sorted({row["member_id"] for row in rows}))
                async with acquire(self._pool) as connection:
                    await connection.execute(DROP_PENDING_SQL, [row["number"] for row in rows])

    async def forget(self) -> None:
        """For ever: what waited for too long counts without its item's categories."""
        while True:
            async with acquire(self._pool) as connection:
                await connection.execute(FORGET_PENDING_SQL, PENDING_S_MAX)
            await asyncio.sleep(FORGET_EVERY_S)


@contextmanager
def _ending(settled: Settled) -> Iterator[None]:
    """What is under way ends with the body, also where that fails for good; after an outage the body is repeated."""
    try:
        yield
    except Exception as error:
        if not passes(error):
            settled.end()
        raise
    settled.end()


async def _fold_members(connection: Connection, book: Book, behavior: Sequence[Behavior]) -> None:
    layout = book.member_layout
    # What was stored without its person counts for the items alone.
    behavior = [one for one in behavior if one.member_id]
    spread = {item_id for one in behavior if one.type in layout.spreads_of for item_id in one.item_ids}
    contributions = contributions_of(layout, await versions_or_turn(connection, spread) if spread else {})
    if pending := pending_of(layout, behavior, contributions):
        await put_pending(connection, pending)
    of_member: dict[str, list[Behavior]] = {}
    for one in behavior:
        of_member.setdefault(one.member_id, []).append(one)
    states = await states_to_change(connection, book, of_member)
    folded = []
    for member_id, state in states.items():
        after = fold(layout, replace(state, position=ORIGIN), of_member[member_id], contributions)
        folded.append(replace(after, position=max(after.position, state.position)))
    await put_states(connection, book, folded)


async def _fold_pending(connection: Connection, book: Book, pending: Sequence[Pending]) -> None:
    layout = book.member_layout
    contributions = contributions_of(layout, await versions_of(connection, {one.item_id for one in pending}))
    of_member: dict[str, list[Pending]] = {}
    for one in pending:
        of_member.setdefault(one.member_id, []).append(one)
    states = await _readable_states(connection, book, of_member)
    folded = [
        fold_pending(layout, state, of_member[member_id], contributions, book.member_layouts)
        for member_id, state in states.items()
    ]
    await put_states(connection, book, folded)


async def _readable_states(connection: Connection, book: Book, member_ids: Iterable[str]) -> dict[str, MemberState]:
    """As states_to_change, without those that cannot be read: one member's state must not keep an item away."""
    states: dict[str, MemberState] = {}
    for member_id in sorted(member_ids):
        try:
            states |= await states_to_change(connection, book, (member_id,))
        except UnreadableStateError as error:
            STATES_UNREADABLE.labels(error.reason).inc()
    return states


async def _fold_items(connection: Connection, book: Book, behavior: Sequence[Behavior]) -> None:
    before = await blocks_to_change(connection, book, blocks_of(behavior))
    unplaced = {block: replace(counts, position=ORIGIN) for block, counts in before.items()}
    after = fold_items(book.item_layout, unplaced, behavior)
    put = {
        block: replace(counts, position=max(counts.position, before[block].position)) if block in before else counts
        for block, counts in after.items()
    }
    await put_blocks(connection, book, put)
