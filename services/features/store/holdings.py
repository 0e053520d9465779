"""What features holds about people: a state a member, and their part in the counts of items."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import structlog

from services.chassis.cache import VERSION_BYTES, split_version
from services.chassis.dead_letters import put_aside_in
from services.chassis.erasure import POSTGRES, Erasure, Step, count_in, delete_from_log
from services.chassis.events import ORIGIN
from services.chassis.holdings import VALKEY, HeldRecord, Holding, log_holdings, log_records
from services.chassis.inbox import KEEP_S
from services.chassis.ports import Cache
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.chassis.sealing import Sealer
from services.features.domain.aggregates import Tally
from services.features.domain.book import Book
from services.features.domain.item_counts import HEADER, blocks_of
from services.features.domain.members import (
    MEMBER_ID_CHARS,
    Behavior,
    MemberState,
    UnreadableStateError,
    decode,
    empty,
    encode,
)
from services.features.domain.requests import Source
from services.features.domain.withdrawal import Folded, withdraw
from services.features.store import (
    CONSUMER,
    PENDING_S_MAX,
    STATES_SQL,
    Books,
    cache_key,
    put_blocks,
    readable_blocks,
)

_log = structlog.get_logger(__name__)

PERSONALIZED = ("profile_personalization",)

# No state has this version: whoever read an old state before the erasure cannot put it over the tombstone.
TOMBSTONE_VERSION = 2**63 - 1
# Nobody holds a state for so long between reading it and filling the cache with it; then the key is gone, too.
TOMBSTONE_TTL_S = 600.0

SETS_SQL = "SELECT version, published_at FROM feature_sets ORDER BY sequence"
STATE_EXISTS_SQL = "SELECT EXISTS (SELECT FROM member_states WHERE member_id = $1)"
WITHDRAWN_SQL = "SELECT EXISTS (SELECT FROM withdrawn_members WHERE member_id = $1)"
# Numbers are given in commit order: a replica that has seen one must not miss a lower one that commits after it.
LOCK_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('features.withdrawn_members', 0))"
NOTE_WITHDRAWN_SQL = """
INSERT INTO withdrawn_members (member_id, erasure_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING number
"""
TAKEN_IN_SQL = """
SELECT event_id, received_at FROM inbox WHERE source = $1 AND consumer = $2 AND event_id = ANY($3::uuid[])
"""
NOW_SQL = "SELECT now()"
DELETE_STATES_SQL = """
WITH gone AS (DELETE FROM member_states WHERE member_id = ANY($1::text[]) RETURNING 1) SELECT count(*) FROM gone
"""
PENDING_SQL = """
SELECT member_id, type, item_id, occurred_s FROM pending_items WHERE member_id = ANY($1::text[]) ORDER BY number
"""
DELETE_PENDING_SQL = """
WITH gone AS (DELETE FROM pending_items WHERE member_id = ANY($1::text[]) RETURNING 1) SELECT count(*) FROM gone
"""
# Blocks that hold nothing any more: that somebody of a partition was here is said by nobody else than the erased.
DELETE_EMPTY_SQL = f"""
WITH gone AS (
    DELETE FROM item_blocks WHERE octet_length(state) >= {HEADER.size}
      AND substr(state, {HEADER.size} + 1) = decode(repeat('00', octet_length(state) - {HEADER.size}), 'hex')
    RETURNING 1
) SELECT count(*) FROM gone
"""


class BehaviorLog(Protocol):
    """Feedback's log."""

    def behavior_of(self, member_ids: Sequence[str]) -> AsyncIterator[list[tuple[str, Behavior]]]:
        """What is recorded under these members, with its event ids, a page at a time; of suppressed ones too.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        ...


class FeaturesHoldings:
    """chassis.holdings.Holdings of features."""

    def __init__(self, pool: Pool, cache: Cache, books: Books, sealer: Sealer, behavior: BehaviorLog) -> None:
        self._pool = pool
        self._cache = cache
        self._books = books
        self._sealer = sealer
        self._behavior = behavior

    def describe(self) -> Sequence[Holding]:
        """See chassis.holdings.Holdings."""
        state = "what the person's behavior adds up to: counts by type and by hashed categories, newest times"
        return [
            *log_holdings("who read what features hold", sealed=False, purposes=()),
            Holding(POSTGRES, "member_states", state, "deleted", False, PERSONALIZED, read_by=("decision",)),
            Holding(
                POSTGRES,
                "pending_items",
                "behavior on items that the catalog does not have yet: type, item and time",
                "deleted",
                False,
                PERSONALIZED,
                retention_days=round(PENDING_S_MAX / 86_400),
            ),
            Holding(VALKEY, "member:<member_id>", f"a copy: {state}", "deleted", False, PERSONALIZED),
            Holding(
                POSTGRES,
                "item_blocks",
                "how often items were clicked, shown and so on, by everybody together; no member",
                "the person's part is subtracted",
                read_by=("decision",),
            ),
            Holding(
                POSTGRES, "withdrawn_members", "that the member's part was subtracted", "kept: it is subtracted once"
            ),
        ]

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[HeldRecord]:
        """See chassis.holdings.Holdings. States as the counts they are, by their names."""
        book = await self._books.refresh()
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(STATES_SQL, list(member_ids))
        for row in rows:
            try:
                state = decode(book.member_layout, row["state"], row["member_id"], book.member_layouts)
            except UnreadableStateError as error:
                content: dict[str, Any] = {"unreadable": error.reason}
                yield HeldRecord(POSTGRES, "member_states", "member state", row["member_id"], None, content)
                continue
            at = None if state.position == ORIGIN else datetime.fromtimestamp(state.reference_s, UTC)
            yield HeldRecord(POSTGRES, "member_states", "member state", state.member_id, at, _told(book, state))
        async with acquire(self._pool) as connection:
            waiting = await connection.fetch(PENDING_SQL, list(member_ids))
        for row in waiting:
            at, content = datetime.fromtimestamp(row["occurred_s"], UTC), {"type": row["type"], "item": row["item_id"]}
            yield HeldRecord(
                POSTGRES, "pending_items", "behavior that waits for its item", row["member_id"], at, content
            )
        async for record in log_records(self._pool, self._sealer.open_many, member_ids):
            yield record

    async def erase(self, step: Step, erasure: Erasure) -> None:
        """See chassis.holdings.Holdings."""
        if step is Step.SUPPRESS:
            await self._forget(step, erasure)
        elif step is Step.WITHDRAW:
            for member_id in erasure.member_ids:
                await self._withdraw(erasure, member_id)
        elif step is Step.DELETE:
            async with transaction(self._pool) as connection:
                # First, and waited for: who folds such a row writes a state.
                pending = await connection.fetchval(DELETE_PENDING_SQL, list(erasure.member_ids))
                states = await connection.fetchval(DELETE_STATES_SQL, list(erasure.member_ids))
                blocks = await connection.fetchval(DELETE_EMPTY_SQL)
                counts = {
                    (POSTGRES, "pending_items"): pending,
                    (POSTGRES, "member_states"): states,
                    (POSTGRES, "item_blocks"): blocks,
                }
                await count_in(connection, erasure.erasure_id, step, counts)
            await self._forget(step, erasure)
            await delete_from_log(self._pool, erasure)

    async def _forget(self, step: Step, erasure: Erasure) -> None:
        """Put tombstones in the place of the cached states; they expire by themselves."""
        keys = [cache_key(member_id) for member_id in erasure.member_ids]
        held = [
            stored for stored in await self._cache.get_many(keys)
            if stored is not None and split_version(stored)[0] != TOMBSTONE_VERSION
        ]  # fmt: skip
        layout = self._books.book.member_layout
        version = TOMBSTONE_VERSION.to_bytes(VERSION_BYTES, "big")
        graves = {
            cache_key(member_id): version + encode(layout, empty(layout, member_id))
            for member_id in erasure.member_ids
            # The form of a state's id: what has another was never one.
            if len(member_id) == MEMBER_ID_CHARS
        }
        await self._cache.set_many(graves, ttl_s=TOMBSTONE_TTL_S)
        async with transaction(self._pool) as connection:
            await count_in(connection, erasure.erasure_id, step, {(VALKEY, "member:<member_id>"): len(held)})

    async def _withdraw(self, erasure: Erasure, member_id: str) -> None:
        """Subtract a member's part from the item blocks, once."""
        async with acquire(self._pool) as connection:
            if await connection.fetchval(WITHDRAWN_SQL, member_id):
                return
        recorded = [entry async for page in self._behavior.behavior_of((member_id,)) for entry in page]
        async with transaction(self._pool) as connection:
            # Who comes second waits here, and then finds that it is done.
            await connection.execute(LOCK_SQL)
            if await connection.fetchval(NOTE_WITHDRAWN_SQL, member_id, erasure.erasure_id) is None:
                return
            book = await self._books.whole(connection)
            folded = await _folded(connection, recorded)
            # A block that cannot be read holds up nobody's erasure: it is put aside, and told.
            before, letters = await readable_blocks(connection, book, blocks_of(one.behavior for one in folded))
            after = withdraw(book.item_layout, await _declared_s(connection, book), before, folded)
            await put_blocks(connection, book, after)
            counts = {(POSTGRES, "item_blocks"): len(after), (POSTGRES, "item_blocks: events"): len(folded)}
            if not recorded and await connection.fetchval(STATE_EXISTS_SQL, member_id):
                # Features was restored from before the erasure, and what would be subtracted is deleted or unreadable.
                _log.warning("item counts keep an erased person", erasure_id=erasure.erasure_id)
                counts[POSTGRES, "item_blocks: not subtracted"] = 1
            for letter in letters:
                await put_aside_in(connection, letter)
                counts[POSTGRES, "item_blocks: not subtracted"] = len(letters)
            await count_in(connection, erasure.erasure_id, Step.WITHDRAW, counts)


async def _folded(connection: Connection, recorded: Sequence[tuple[str, Behavior]]) -> list[Folded]:
    """Those that were folded here: their inbox row says so, or they are too old to still have one.

    An inbox row is written with the fold, and none for what came after the member was suppressed. When an event without
    one was folded is not known; when it was recorded is, and the fold is seconds behind.
    """
    ids = [UUID(event_id) for event_id, _ in recorded]
    rows = await connection.fetch(TAKEN_IN_SQL, Source.FEEDBACK, CONSUMER, ids)
    received = {row["event_id"]: row["received_at"].timestamp() for row in rows}
    now: datetime = await connection.fetchval(NOW_SQL)
    pruned_s = now.timestamp() - KEEP_S
    folded: list[Folded] = []
    for event_id, (_, behavior) in zip(ids, recorded, strict=True):
        recorded_s = (event_id.int >> 80) / 1000
        if event_id in received:
            folded.append(Folded(behavior, received[event_id]))
        elif recorded_s < pruned_s:
            folded.append(Folded(behavior, recorded_s))
    return folded


async def _declared_s(connection: Connection, book: Book) -> dict[Tally, float]:
    """When each tally of the items was first declared."""
    declared: dict[Tally, float] = {}
    for row in await connection.fetch(SETS_SQL):
        # A set that was published since the book was read declares nothing that the blocks count.
        feature_set = book.sets.get(row["version"])
        for tally in feature_set.counted.of_item if feature_set is not None else ():
            declared.setdefault(tally, row["published_at"].timestamp())
    return declared


def _told(book: Book, state: MemberState) -> dict[str, Any]:
    """A state by the names of what it counts."""
    layout = book.member_layout
    counts = [
        {"type": tally.event_type, "half_life_s": tally.half_life_s, "count": float(state.counts[slot])}
        for tally, slot in layout.tally_slots.items()
    ]
    spreads = [
        {
            "type": spread.event_type,
            "attributes": list(spread.attributes),
            "half_life_s": spread.half_life_s,
            "hashed_categories": {
                str(bucket): float(count)
                for bucket, count in enumerate(state.counts[offset : offset + spread.buckets])
                if count
            },
        }
        for spread, offset in layout.spread_offsets.items()
    ]
    newest = {
        event_type: datetime.fromtimestamp(float(state.newest_s[slot]), UTC).isoformat()
        for event_type, slot in layout.newest_slots.items()
        if state.newest_s[slot] > 0
    }
    return {"counts": counts, "categories": spreads, "newest": newest}
