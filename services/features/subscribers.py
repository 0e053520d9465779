"""What happens on facts from elsewhere: behavior is folded, the catalog is kept.

The inbox alone says whether an event was folded before. Positions do not: an event that a stream lost is republished
after newer ones, and must still count. What is counted does not depend on the order.
"""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from services.chassis import metrics
from services.chassis.clock import Clock, SystemClock
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, RecordedEvent
from services.chassis.eventstore import SUBJECT_ERASED
from services.chassis.inbox import KEEP_S
from services.chassis.postgres import Connection
from services.chassis.sealing import Sealer
from services.features.domain.book import Book
from services.features.domain.item_counts import blocks_of, fold_items
from services.features.domain.members import Behavior, contribution, fold
from services.features.handlers import Settled
from services.features.store import (
    Books,
    MemberStates,
    blocks_to_change,
    items_by_id,
    put_blocks,
    put_items,
    put_states,
    states_to_change,
)
from services.features.wire import BEHAVIOR_RECORDED, CATALOG_CHANGED, behavior_from, items_from


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
            ServiceError: UNAVAILABLE when their keys cannot be had.
        """
        now_s = self._clock.now().timestamp()
        behavior = await self._opened(
            [event for event in events if event.type == BEHAVIOR_RECORDED and not _rectified_long_after(event, now_s)]
        )
        if not behavior:
            return
        self._settled.begin()
        book = await self._books.refresh(connection)
        await _fold_members(connection, book, behavior)
        await _fold_items(connection, book, behavior)
        metrics.BEHAVIOR_FOLDED.inc(len(behavior))

    async def after_commit(self, events: Sequence[RecordedEvent]) -> None:
        """Bring the cache up to date; one that takes no writes is passed over from now on, and folding goes on."""
        members = sorted({event.subject_id for event in events if event.type == BEHAVIOR_RECORDED and event.subject_id})
        if members:
            await self._states.write_through(members)
        self._settled.end()

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


async def on_decision_events(connection: Connection, events: list[RecordedEvent]) -> None:
    """Keep the items among what decision emits."""
    items: dict[str, bytes] = {}
    for event in events:
        if event.type == CATALOG_CHANGED:
            if not isinstance(event.payload, bytes):
                raise ServiceError(Kind.INVALID, "CATALOG_SEALED", "a catalog is about nobody and is never sealed")
            items.update(items_from(event.payload))
    if items:
        await put_items(connection, items)


async def _fold_members(connection: Connection, book: Book, behavior: Sequence[Behavior]) -> None:
    layout = book.member_layout
    # What was stored without its person counts for the items alone.
    behavior = [one for one in behavior if one.member_id]
    spread = {item_id for one in behavior if one.type in layout.spreads_of for item_id in one.item_ids}
    items = await items_by_id(connection, spread) if spread else {}
    contributions = {item_id: contribution(layout, item) for item_id, item in items.items()}
    of_member: dict[str, list[Behavior]] = {}
    for one in behavior:
        of_member.setdefault(one.member_id, []).append(one)
    states = await states_to_change(connection, book, of_member)
    folded = []
    for member_id, state in states.items():
        after = fold(layout, replace(state, position=ORIGIN), of_member[member_id], contributions.get)
        folded.append(replace(after, position=max(after.position, state.position)))
    await put_states(connection, book, folded)


async def _fold_items(connection: Connection, book: Book, behavior: Sequence[Behavior]) -> None:
    before = await blocks_to_change(connection, book, blocks_of(behavior))
    unplaced = {block: replace(counts, position=ORIGIN) for block, counts in before.items()}
    after = fold_items(book.item_layout, unplaced, behavior)
    put = {
        block: replace(counts, position=max(counts.position, before[block].position)) if block in before else counts
        for block, counts in after.items()
    }
    await put_blocks(connection, book, put)
