"""The catalog's items, what is counted of them, and what waits for them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import asyncpg
from google.protobuf.message import DecodeError

from services.chassis.dead_letters import Letter, Rows, read_rows
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, LogPosition
from services.chassis.postgres import Connection, Pool, acquire
from services.features.domain.book import Book
from services.features.domain.catalog import CatalogItem, ItemVersion
from services.features.domain.columns import Standing
from services.features.domain.item_counts import Block, ItemCounts, decode, encode
from services.features.domain.members import Pending
from services.features.domain.requests import Source
from services.features.metrics import PENDING_ITEMS_DROPPED
from services.features.wire import item_from_bytes

# Durable name at both sources.
CONSUMER = "features"
# Source, reader, table and keys of rows, as dead letters name them.
ITEM_ROWS = ("features", "item columns", "items", "id")
BLOCK_ROWS = ("features", "item columns", "item_blocks", "item_id", "partition")

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

# Of one item: an hour's changes of a feed that flips a category every two minutes.
ITEM_VERSIONS_MAX = 32
# Some 10 MB. A site that tells of items it never catalogs fills it up, and loses nothing by it.
PENDING_MAX = 50_000
PENDING_S_MAX = 7 * 86_400.0


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
    return decode(book.item_layout, row["state"], book.item_layouts)


def _item_of(row: asyncpg.Record) -> CatalogItem:
    item = item_from_bytes(row["item"])
    if item.id != row["id"]:
        raise ServiceError(Kind.INTERNAL, "ITEM_OF_OTHER_NAME", "the row holds another item than it is named after")
    return item


async def put_blocks(connection: Connection, book: Book, blocks: Mapping[Block, ItemCounts]) -> None:
    """Store these blocks."""
    ordered = sorted(blocks)
    blobs = [encode(book.item_layout, blocks[block]) for block in ordered]
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
