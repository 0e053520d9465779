"""States, blocks, catalog and feature sets in Postgres; member states in front of it in Redis."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import asyncpg
import structlog
from comity.features.v1 import feature_set_pb2
from google.protobuf.message import DecodeError

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.cache import split_version
from services.chassis.clock import Clock
from services.chassis.dead_letters import Letter, Rows, passes, read_rows, reason_of, where_of
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, Append, LogPosition, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.ports import Cache
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.features.domain.book import Book
from services.features.domain.catalog import CatalogItem, ItemVersion
from services.features.domain.columns import Standing
from services.features.domain.feature_set import FeatureSet
from services.features.domain.item_counts import Block, ItemCounts
from services.features.domain.item_counts import decode as decode_block
from services.features.domain.item_counts import encode as encode_block
from services.features.domain.members import MemberState, Pending, UnreadableStateError, decode, empty, encode
from services.features.domain.requests import Source
from services.features.metrics import PENDING_ITEMS_DROPPED, STATES_UNREADABLE
from services.features.wire import (
    FEATURE_SET_PUBLISHED,
    encode_published,
    feature_set_from_bytes,
    item_from_bytes,
    published_set,
    without_words,
)

# Durable name at both sources.
CONSUMER = "features"
STREAM = "feature_sets"
# Source, reader, table and keys of rows, as dead letters name them.
ITEM_ROWS = ("features", "item columns", "items", "id")
BLOCK_ROWS = ("features", "item columns", "item_blocks", "item_id", "partition")

BOOK_SQL = """
SELECT s.version, s.feature_set, s.declared, s.sequence FROM feature_sets s
WHERE s.sequence > $1 OR s.version = ANY($2::text[]) ORDER BY s.sequence
"""
PUBLISHED_SQL = "SELECT payload FROM events WHERE stream_id = $1 ORDER BY version"
ACTIVE_SQL = "SELECT version FROM active_feature_set"
LOCK_SETS_SQL = "LOCK TABLE feature_sets IN SHARE ROW EXCLUSIVE MODE"
STREAM_VERSION_SQL = "SELECT coalesce(max(version), 0) FROM events WHERE stream_id = $1"
DECLARED_SQL = "SELECT coalesce(declared, feature_set) FROM feature_sets WHERE version = $1"
KEPT_SQL = "SELECT declared, feature_set FROM feature_sets WHERE version = $1"
PUT_SET_SQL = """
INSERT INTO feature_sets AS s (version, feature_set, declared) VALUES ($1, $2, $3)
ON CONFLICT (version) DO UPDATE
SET declared = excluded.declared, feature_set = CASE WHEN $4 THEN excluded.feature_set ELSE s.feature_set END
"""
ACTIVATE_SQL = """
INSERT INTO active_feature_set (version) VALUES ($1) ON CONFLICT (one) DO UPDATE SET version = excluded.version
"""

# Raised when the cache did not take what it should have: of the states it holds only those of this generation are read.
GENERATION_SQL = "SELECT coalesce(max(generation), 0) FROM cache_generation"
NEXT_GENERATION_SQL = """
INSERT INTO cache_generation AS c (generation) VALUES ($1)
ON CONFLICT (one) DO UPDATE SET generation = greatest(c.generation + 1, excluded.generation)
RETURNING generation
"""
# Of somebody who was erased no state is read, and none is to be kept in the cache.
STATES_SQL = """
SELECT s.member_id, s.version, s.state FROM member_states s
WHERE s.member_id = ANY($1::text[]) AND NOT EXISTS (SELECT FROM erased_members e WHERE e.member_id = s.member_id)
"""
# What the cache may hold, and the generation that it is of, at one moment.
STATES_TO_CACHE_SQL = """
SELECT s.member_id, s.version, s.state, g.generation
FROM (SELECT coalesce(max(generation), 0) AS generation FROM cache_generation) g LEFT JOIN member_states s
ON s.member_id = ANY($1::text[]) AND NOT EXISTS (SELECT FROM erased_members e WHERE e.member_id = s.member_id)
"""
# In a fixed order, so that two consumers of one message never wait for each other.
STATES_TO_CHANGE_SQL = """
SELECT member_id, state FROM member_states WHERE member_id = ANY($1::text[]) ORDER BY member_id FOR UPDATE
"""
PUT_STATES_SQL = """
INSERT INTO member_states AS m (member_id, version, state)
SELECT member_id, 1, state FROM unnest($1::text[], $2::bytea[]) AS put (member_id, state) ORDER BY member_id
ON CONFLICT (member_id) DO UPDATE SET version = m.version + 1, state = excluded.state
"""
BLOCKS_TO_CHANGE_SQL = """
SELECT b.item_id, b.partition, b.state
FROM item_blocks b JOIN unnest($1::text[], $2::smallint[]) AS asked (item_id, partition) USING (item_id, partition)
ORDER BY b.item_id, b.partition FOR UPDATE OF b
"""
PUT_BLOCKS_SQL = """
INSERT INTO item_blocks (item_id, partition, state)
SELECT item_id, partition, state FROM unnest($1::text[], $2::smallint[], $3::bytea[]) AS put (item_id, partition, state)
ORDER BY item_id, partition
ON CONFLICT (item_id, partition) DO UPDATE SET state = excluded.state, xid = pg_current_xact_id()
"""
PUT_ITEMS_SQL = """
INSERT INTO items (id, item, since_s)
SELECT id, item, $3 FROM unnest($1::text[], $2::bytea[]) AS put (id, item) ORDER BY id
ON CONFLICT (id) DO UPDATE SET item = excluded.item, since_s = excluded.since_s, xid = pg_current_xact_id()
WHERE items.since_s IS NULL OR items.since_s <= excluded.since_s
"""
# A release before, still running beside this one, keeps items without their versions.
ITEM_VERSIONS_SQL = """
SELECT item_id, since_s, item FROM item_versions WHERE item_id = ANY($1::text[])
UNION ALL
SELECT id, '-infinity', item FROM items
WHERE id = ANY($1::text[]) AND NOT EXISTS (SELECT FROM item_versions WHERE item_id = id)
ORDER BY item_id, since_s
"""
PUT_ITEM_VERSIONS_SQL = """
INSERT INTO item_versions (item_id, since_s, item) SELECT * FROM unnest($1::text[], $2::float8[], $3::bytea[])
ON CONFLICT DO NOTHING
"""
FORGET_ITEM_VERSIONS_SQL = """
DELETE FROM item_versions v WHERE item_id = ANY($1::text[]) AND since_s <= (
    SELECT w.since_s FROM item_versions w WHERE w.item_id = v.item_id ORDER BY w.since_s DESC OFFSET $2 LIMIT 1
)
"""
# Who finds an item missing and who brings it take turns: else neither would see what the other has written.
LOCK_MISSING_SQL = "SELECT pg_advisory_xact_lock_shared(hashtextextended('features.pending_items', 0))"
LOCK_BRINGING_SQL = "SELECT pg_advisory_xact_lock(hashtextextended('features.pending_items', 0))"
PUT_PENDING_SQL = """
WITH put AS (
    INSERT INTO pending_items (item_id, member_id, type, occurred_s, layout)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[])
    LIMIT greatest(0, $6::bigint - (SELECT count(*) FROM (SELECT FROM pending_items LIMIT $6::bigint) held))
    RETURNING 1
) SELECT count(*) FROM put
"""
TAKE_PENDING_SQL = """
UPDATE pending_items SET folded = true WHERE item_id = ANY($1::text[]) AND NOT folded
RETURNING member_id, type, item_id, occurred_s, layout
"""
FOLDED_PENDING_SQL = "SELECT number, member_id FROM pending_items WHERE folded"
DROP_PENDING_SQL = "DELETE FROM pending_items WHERE number = ANY($1::bigint[])"
FORGET_PENDING_SQL = "DELETE FROM pending_items WHERE received_at < now() - make_interval(secs => $1)"

# With how many members were subtracted: blocks change by that, too.
POSITIONS_SQL = """
SELECT source, epoch, xid, position, 0::bigint AS withdrawn FROM inbox_positions WHERE consumer = $1
UNION ALL
SELECT '', 0, '0'::xid8, 0, coalesce(max(number), 0) FROM withdrawn_members
"""
XMIN_SQL = "SELECT pg_snapshot_xmin(pg_current_snapshot())"
# With what could not be read before: it may have been mended.
CHANGED_ITEMS_SQL = """
SELECT id, item FROM items WHERE xid >= $1
UNION ALL
SELECT id, item FROM items WHERE id = ANY($2::text[]) AND xid < $1
"""
CHANGED_BLOCKS_SQL = """
SELECT item_id, partition, state FROM item_blocks WHERE xid >= $1
UNION ALL
SELECT b.item_id, b.partition, b.state
FROM item_blocks b JOIN unnest($2::text[], $3::smallint[]) AS asked (item_id, partition) USING (item_id, partition)
WHERE b.xid < $1
"""

# A state's version in the cache: the generation in the upper bits, how often it was written in the lower ones.
GENERATION_SHIFT = 40
# Of one item: an hour's changes of a feed that flips a category every two minutes.
ITEM_VERSIONS_MAX = 32
# Some 10 MB. A site that tells of items it never catalogs fills it up, and loses nothing by it.
PENDING_MAX = 50_000
PENDING_S_MAX = 7 * 86_400.0
# What nobody reads goes: of who comes back later the first read fills it in again.
CACHE_TTL_S = 86_400.0
FILLS_MAX = 64

_log = structlog.get_logger(__name__)


class Books:
    """The feature sets, held in memory and read further when somebody names one that is not there yet."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._sequence = 0
        # In order of publication: layouts follow from it.
        self._sets: dict[int, FeatureSet] = {}
        self._missing: frozenset[str] = frozenset()
        self.rows = Rows(pool, "features", "feature sets", "feature_sets", "version")
        self.book = Book()

    async def refresh(self, connection: "Connection | None" = None) -> Book:
        """The book as the database has it now; inside a transaction when a connection is given."""
        if connection is not None:
            return await self._read(connection)
        async with acquire(self._pool) as own:
            return await self._read(own)

    async def whole(self, connection: "Connection") -> Book:
        """The book, for who writes counts: without one of its sets they would be in layouts that nobody can read.

        Raises:
            ServiceError: UNAVAILABLE (FEATURE_SET_UNREADABLE), until it is mended.
        """
        book = await self._read(connection)
        if not book.is_whole:
            raise ServiceError(
                Kind.UNAVAILABLE, "FEATURE_SET_UNREADABLE", "a published feature set cannot be read: counting waits"
            )
        return book

    async def named(self, feature_set: FeatureSet) -> FeatureSet:
        """The set under the version that one which computes the same was published under, if there is one."""
        return replace(feature_set, version=(await self.refresh()).version_of(feature_set))

    async def publish(self, message: feature_set_pb2.FeatureSet) -> Book:
        """Keep the set and make it the active one; publishing the active one again, word for word, changes nothing."""
        declared = message.SerializeToString(deterministic=True)
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_SETS_SQL)
            active, unread = await connection.fetchval(ACTIVE_SQL), (message.version,) in self.rows.unread
            same = active == message.version and await connection.fetchval(DECLARED_SQL, active) == declared
            if same and not unread:
                return await self._read(connection)
            # What cannot be read is put right; what can stays as releases before hash it.
            await connection.execute(PUT_SET_SQL, message.version, without_words(message), declared, unread)
            await connection.execute(ACTIVATE_SQL, message.version)
            now = self._clock.now()
            event = NewEvent(uuid7(now), FEATURE_SET_PUBLISHED, encode_published(message), now)
            version = await connection.fetchval(STREAM_VERSION_SQL, STREAM)
            await append_in(connection, [Append(STREAM, version, (event,))])
        return await self.refresh()

    async def message(self, version: str) -> bytes | None:
        """The set as it was last published, with its words where they can be read."""
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(KEPT_SQL, version)
        for kept in () if row is None else row:
            with suppress(Exception):
                feature_set_from_bytes(kept, version)
                return bytes(kept)
        return None

    async def _read(self, connection: Connection) -> Book:
        again = self.rows.unread
        rows = await connection.fetch(BOOK_SQL, self._sequence, [version for (version,) in again])
        active = await connection.fetchval(ACTIVE_SQL) or ""
        if not rows and not again and active == self.book.active:
            return self.book
        found = {row["sequence"]: feature_set for row, feature_set in await self.rows.read(rows, _set_of, again=again)}
        broken = [row for row in rows if row["sequence"] not in found and row["sequence"] not in self._sets]
        recovered = await _recovered(connection, broken) if broken else {}
        # A row that was asked for again and is not there any more was taken away: nothing is missing.
        self._missing = self._missing.difference([version for (version,) in again], [row["version"] for row in rows])
        self._missing |= {row["version"] for row in broken if row["sequence"] not in recovered}
        # Another task may have read them meanwhile.
        self._sequence = max([self._sequence, *(row["sequence"] for row in rows)])
        self._sets = dict(sorted({**self._sets, **recovered, **found}.items()))
        self.book = Book({one.version: one for one in self._sets.values()}, active, is_whole=not self._missing)
        set_alarm(Alarm.STORED_UNUSABLE, bool(self._missing))
        return self.book


def _set_of(row: asyncpg.Record) -> FeatureSet:
    return feature_set_from_bytes(row["feature_set"], row["version"])


async def _recovered(connection: Connection, rows: Sequence[asyncpg.Record]) -> dict[int, FeatureSet]:
    """Sets whose row cannot be read as it should be, from the other places that hold them."""
    published = [row["payload"] for row in await connection.fetch(PUBLISHED_SQL, STREAM)]
    recovered = {}
    for row in rows:
        for blob in (row["declared"] or b"", *map(published_set, published)):
            with suppress(Exception):
                recovered[row["sequence"]] = feature_set_from_bytes(blob, row["version"])
    return recovered


class MemberStates:
    """Member states, read from the cache and from Postgres where it has none.

    Postgres is the record. Of those without a state the cache holds nothing: most of them never agreed to anything.
    """

    def __init__(self, pool: Pool, cache: Cache) -> None:
        self._pool = pool
        self._cache = cache
        self._generation = 0
        self._fills: set[asyncio.Task[None]] = set()

    async def refresh(self) -> None:
        """Learn which generation of the cache is the present one: another replica may have raised it."""
        async with acquire(self._pool) as connection:
            self._now_at(await connection.fetchval(GENERATION_SQL))

    async def read(self, book: Book, member_ids: Sequence[str]) -> dict[str, MemberState]:
        """The states of these members; one that nothing is known of is absent.

        Raises:
            ServiceError: UNAVAILABLE when neither cache nor database answers.
        """
        found: dict[str, MemberState | None] = {}
        for member_id, stored in zip(member_ids, await self._cached(member_ids), strict=True):
            if stored is None:
                continue
            version, blob = split_version(stored)
            state = _readable(book, blob, member_id) if version >> GENERATION_SHIFT >= self._generation else None
            if state is not None:
                found[member_id] = None if state.position == ORIGIN else state
        missed = [member_id for member_id in member_ids if member_id not in found]
        if missed:
            stored_states, fill = await self._read_database(missed)
            found.update({member_id: _readable(book, blob, member_id) for member_id, blob in stored_states.items()})
            self._fill_later(fill)
        return {member_id: state for member_id, state in found.items() if state is not None}

    async def write_through(self, member_ids: Sequence[str]) -> None:
        """Bring the cache to what the database holds of these members, or have it passed over from now on.

        Raises:
            ServiceError: UNAVAILABLE when the database does not answer: what the cache holds may be old then.
        """
        try:
            _, fill = await self._read_database(member_ids)
            is_filled = await self._filled(fill)
        except Exception as error:
            if passes(error):
                raise
            _log.error("cache not filled", error=type(error).__name__, where=where_of(error))
            is_filled = False
        if not is_filled:
            # Stands until a write succeeds: from now on every reader tries one.
            set_alarm(Alarm.CACHE_TAKES_NO_WRITES, True)
            async with acquire(self._pool) as connection:
                self._now_at(await connection.fetchval(NEXT_GENERATION_SQL, self._generation + 1))

    async def close(self) -> None:
        """Give up what is still to be put into the cache."""
        for task in self._fills:
            task.cancel()
        await asyncio.gather(*self._fills, return_exceptions=True)

    async def _cached(self, member_ids: Sequence[str]) -> Sequence[bytes | None]:
        try:
            return await self._cache.get_many([cache_key(member_id) for member_id in member_ids])
        except ServiceError as outage:
            _log.warning("cache passed over", reason=outage.reason)
            return [None] * len(member_ids)

    def _fill_later(self, fill: Mapping[str, tuple[int, bytes]]) -> None:
        """Fill the cache once the answer is out; nobody is owed the saving: the next reader comes here again."""
        if fill and len(self._fills) < FILLS_MAX:
            task = asyncio.get_running_loop().create_task(self._fill(fill))
            self._fills.add(task)
            task.add_done_callback(self._fills.discard)

    async def _fill(self, fill: Mapping[str, tuple[int, bytes]]) -> None:
        await self._filled(fill)

    async def _filled(self, fill: Mapping[str, tuple[int, bytes]]) -> bool:
        """Whether the cache took these; then it takes writes."""
        if not fill:
            return True
        try:
            await self._cache.set_newer_many(fill, ttl_s=CACHE_TTL_S)
        except (ServiceError, OverflowError) as error:  # a generation that no state's version can hold
            _log.warning("cache not filled", reason=reason_of(error)[0])
            return False
        set_alarm(Alarm.CACHE_TAKES_NO_WRITES, False)
        return True

    async def _read_database(self, member_ids: Sequence[str]) -> tuple[dict[str, bytes], dict[str, tuple[int, bytes]]]:
        """Stored states of these members, and what the cache should hold of them.

        The generation is read with the states: one that was raised since, for a fold that this has not seen, makes
        what is put into the cache here count for nothing.
        """
        known = self._generation
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(STATES_TO_CACHE_SQL, list(member_ids))
        # What was known before the read was raised before it: it is seen here, even if the row was lost since.
        generation = max(known, rows[0]["generation"])
        self._now_at(generation)
        states = {row["member_id"]: row["state"] for row in rows if row["member_id"] is not None}
        fill = {
            cache_key(row["member_id"]): (generation << GENERATION_SHIFT | row["version"], row["state"])
            for row in rows
            if row["member_id"] is not None
        }
        return states, fill

    def _now_at(self, generation: int) -> None:
        self._generation = max(self._generation, generation)


def cache_key(member_id: str) -> str:
    """The cache's key of a member's state."""
    return f"member:{member_id}"


def _readable(book: Book, blob: bytes, member_id: str) -> MemberState | None:
    """The state in a blob, unless it is somebody else's or of a layout that this replica does not know."""
    try:
        return decode(book.member_layout, blob, member_id, book.member_layouts)
    except UnreadableStateError as error:
        STATES_UNREADABLE.labels(error.reason).inc()
        return None


async def states_to_change(connection: Connection, book: Book, member_ids: Iterable[str]) -> dict[str, MemberState]:
    """The states of these members, locked until the transaction ends; those without one begin empty.

    Raises:
        UnreadableStateError: a state cannot be read; overwriting it would forget a history.
    """
    layout = book.member_layout
    states = {member_id: empty(layout, member_id) for member_id in member_ids}
    for row in await connection.fetch(STATES_TO_CHANGE_SQL, sorted(states)):
        states[row["member_id"]] = decode(layout, row["state"], row["member_id"], book.member_layouts)
    return states


async def put_states(connection: Connection, book: Book, states: Sequence[MemberState]) -> None:
    """Store these states."""
    ordered = sorted(states, key=lambda state: state.member_id)
    blobs = [encode(book.member_layout, state) for state in ordered]
    await connection.execute(PUT_STATES_SQL, [state.member_id for state in ordered], blobs)


async def blocks_to_change(connection: Connection, book: Book, blocks: Iterable[Block]) -> dict[Block, ItemCounts]:
    """These blocks, locked until the transaction ends; those that do not exist are absent.

    Raises:
        UnreadableStateError: one cannot be read; overwriting it would forget what it counts.
    """
    rows = await _lock_blocks(connection, blocks)
    return {(row["item_id"], row["partition"]): _block_of(book, row) for row in rows}


async def readable_blocks(
    connection: Connection, book: Book, blocks: Iterable[Block]
) -> tuple[dict[Block, ItemCounts], list[Letter]]:
    """As blocks_to_change, less those that cannot be read, and their letters."""
    found, letters = read_rows(await _lock_blocks(connection, blocks), lambda row: _block_of(book, row), *BLOCK_ROWS)
    return {(row["item_id"], row["partition"]): counts for row, counts in found}, letters


async def _lock_blocks(connection: Connection, blocks: Iterable[Block]) -> list[asyncpg.Record]:
    asked = sorted(blocks)
    return list(await connection.fetch(BLOCKS_TO_CHANGE_SQL, [b[0] for b in asked], [b[1] for b in asked]))


def _block_of(book: Book, row: asyncpg.Record) -> ItemCounts:
    return decode_block(book.item_layout, row["state"], book.item_layouts)


def _item_of(row: asyncpg.Record) -> CatalogItem:
    item = item_from_bytes(row["item"])
    if item.id != row["id"]:
        raise ServiceError(Kind.INTERNAL, "ITEM_OF_OTHER_NAME", "the row holds another item than it is named after")
    return item


async def put_blocks(connection: Connection, book: Book, blocks: Mapping[Block, ItemCounts]) -> None:
    """Store these blocks."""
    ordered = sorted(blocks)
    blobs = [encode_block(book.item_layout, blocks[block]) for block in ordered]
    await connection.execute(PUT_BLOCKS_SQL, [b[0] for b in ordered], [b[1] for b in ordered], blobs)


async def versions_of(connection: Connection, item_ids: Iterable[str]) -> dict[str, list[ItemVersion]]:
    """Those of the items that the catalog has, as they were from when on, ascending in time.

    A version that cannot be read is passed over: what waits for it is folded when the item is brought again.
    """
    versions: dict[str, list[ItemVersion]] = {}
    for row in await connection.fetch(ITEM_VERSIONS_SQL, sorted(item_ids)):
        with suppress(DecodeError):
            versions.setdefault(row["item_id"], []).append(ItemVersion(row["since_s"], item_from_bytes(row["item"])))
    return {item_id: read for item_id, read in versions.items() if read}


async def versions_or_turn(connection: Connection, item_ids: Iterable[str]) -> dict[str, list[ItemVersion]]:
    """As versions_of; no item that is missing then enters the catalog before the transaction has ended."""
    asked = set(item_ids)
    found = await versions_of(connection, asked)
    if missing := asked - found.keys():
        await connection.execute(LOCK_MISSING_SQL)
        found |= await versions_of(connection, missing)
    return found


async def put_items(connection: Connection, items: Mapping[str, bytes], since_s: float) -> None:
    """Store items of the catalog as they are from a moment on; it is this transaction's turn to bring items."""
    await connection.execute(LOCK_BRINGING_SQL)
    ordered = sorted(items)
    before = await versions_of(connection, ordered)
    await connection.execute(PUT_ITEMS_SQL, ordered, [items[item_id] for item_id in ordered], since_s)
    changed = [item_id for item_id in ordered if _recategorized(before.get(item_id, ()), items[item_id], since_s)]
    if changed:
        blobs, times = [items[item_id] for item_id in changed], [since_s] * len(changed)
        await connection.execute(PUT_ITEM_VERSIONS_SQL, changed, times, blobs)
        await connection.execute(FORGET_ITEM_VERSIONS_SQL, changed, ITEM_VERSIONS_MAX)


def _recategorized(versions: Sequence[ItemVersion], blob: bytes, since_s: float) -> bool:
    """Whether the item has other categories than it had just before: only those are asked for later."""
    earlier = [version for version in versions if version.since_s <= since_s]
    return not earlier or earlier[-1].item.categories != item_from_bytes(blob).categories


async def put_pending(connection: Connection, pending: Sequence[Pending]) -> None:
    """Keep what waits for its item; above the bound it counts without the item's categories, and is counted."""
    columns = [(one.item_id, one.member_id, one.type, one.occurred_s, one.layout) for one in pending]
    put = await connection.fetchval(PUT_PENDING_SQL, *map(list, zip(*columns, strict=True)), PENDING_MAX)
    PENDING_ITEMS_DROPPED.inc(len(pending) - put)


async def take_pending(connection: Connection, item_ids: Iterable[str]) -> list[Pending]:
    """What waited for these items; it is folded in this transaction."""
    rows = await connection.fetch(TAKE_PENDING_SQL, sorted(item_ids))
    return [Pending(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since an earlier look.

    Args:
        since: where the next look begins: everything of earlier transactions has been seen.
    """

    standing: Standing
    since: int
    items: Mapping[str, CatalogItem]
    blocks: Mapping[Block, ItemCounts]


class ItemStore:
    """Catalog and item blocks, as what changed since the last look."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.items = Rows(pool, *ITEM_ROWS)
        self.blocks = Rows(pool, *BLOCK_ROWS)

    @property
    def has_unread(self) -> bool:
        """Whether there are items or blocks that could not be read."""
        return bool(self.items.unread or self.blocks.unread)

    async def standing(self) -> Standing:
        """How far behavior and catalog have been taken in."""
        async with acquire(self._pool) as connection:
            return await _standing(connection)

    async def changes(self, book: Book, since: int) -> Changes:
        """One moment of the database: positions, and every item and block written since."""
        async with (
            acquire(self._pool) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            standing = await _standing(connection)
            seen_to = await connection.fetchval(XMIN_SQL)
            items_again, blocks_again = self.items.unread, self.blocks.unread
            item_rows = await connection.fetch(CHANGED_ITEMS_SQL, since, [id_ for (id_,) in items_again])
            asked = [item_id for item_id, _ in blocks_again], [partition for _, partition in blocks_again]
            block_rows = await connection.fetch(CHANGED_BLOCKS_SQL, since, *asked)
        # One that cannot be read is as though it were not there; the columns of the others go on.
        items = await self.items.read(item_rows, _item_of, again=items_again)
        if book.is_whole:
            blocks = await self.blocks.read(block_rows, lambda row: _block_of(book, row), again=blocks_again)
        else:
            # Those in the layout of the set that cannot be read are as they should be: told of the set, not of them.
            blocks, _ = read_rows(block_rows, lambda row: _block_of(book, row), *BLOCK_ROWS)
        return Changes(
            standing,
            seen_to,
            {row["id"]: item for row, item in items},
            {(row["item_id"], row["partition"]): counts for row, counts in blocks},
        )


async def _standing(connection: Connection) -> Standing:
    rows = await connection.fetch(POSITIONS_SQL, CONSUMER)
    at = {row["source"]: LogPosition(row["epoch"], row["xid"], row["position"]) for row in rows}
    withdrawn = max(row["withdrawn"] for row in rows)
    return Standing(at.get(Source.FEEDBACK, ORIGIN), at.get(Source.DECISION, ORIGIN), withdrawn)
