"""Items at every version they have had."""

from collections.abc import Sequence
from typing import Any

import asyncpg

from services.chassis.clock import Clock
from services.chassis.dead_letters import Rows
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, Append, LogPosition, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Pool, acquire, transaction
from services.decision.domain.release import DeclaredItem
from services.decision.domain.site import Item
from services.decision.wire.facts import CATALOG_CHANGED, catalog_changed
from services.decision.wire.site import item_from_bytes

CATALOG_STREAM = "catalog"

LOCK_SQL = "SELECT catalog_version, catalog_stream_version FROM standing FOR UPDATE"
NEWEST_SQL = """
SELECT DISTINCT ON (item_id) item_id, item FROM items
WHERE item_id = ANY($1::text[]) AND catalog_version <= $2 ORDER BY item_id, catalog_version DESC
"""
INSERT_SQL = """
INSERT INTO items (item_id, catalog_version, item) SELECT a.item_id, $3, a.item
FROM unnest($1::text[], $2::bytea[]) AS a(item_id, item)
"""
ADVANCE_SQL = "UPDATE standing SET catalog_version = $1, catalog_stream_version = $2"
# The newest state of each item that changed, in the order the items first entered: rows of replicas that started at
# different times then agree.
CHANGED_SQL = """
SELECT newest.item_id, newest.item, head.catalog_version
FROM standing head
LEFT JOIN LATERAL (
    SELECT DISTINCT ON (item_id) item_id, item,
           (SELECT min(first.catalog_version) FROM items first WHERE first.item_id = items.item_id) AS entered
    FROM items WHERE (catalog_version > $1 OR item_id = ANY($2::text[])) AND catalog_version <= head.catalog_version
    ORDER BY item_id, catalog_version DESC
) AS newest ON true
ORDER BY newest.entered, newest.item_id
"""
# A thousand of them are a message or a few.
PAGE_ITEMS = 1000
PAGE_SQL = """
SELECT DISTINCT ON (item_id) item_id, item FROM items WHERE item_id > $1 ORDER BY item_id, catalog_version DESC LIMIT $2
"""
POSITION_SQL = """
SELECT epoch, xid, position FROM events WHERE stream_id = $1 ORDER BY version DESC LIMIT 1
"""


class PostgresCatalog:
    """handlers.ports.CatalogStore."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self.rows = Rows(pool, "decision", "catalog", "items", "item_id")

    @property
    def has_unread(self) -> bool:
        """See handlers.ports.CatalogStore."""
        return bool(self.rows.unread)

    async def changed_since(self, catalog_version: int) -> tuple[int, list[Item]]:
        """See handlers.ports.CatalogStore."""
        async with acquire(self._pool) as connection:
            again = self.rows.unread
            rows = await connection.fetch(CHANGED_SQL, catalog_version, [item_id for (item_id,) in again])
        items = await self._readable([row for row in rows if row["item"] is not None], again)
        return (rows[0]["catalog_version"] if rows else catalog_version), list(items.values())

    async def at(self, item_ids: Sequence[str], catalog_version: int) -> list[Item | None]:
        """See handlers.ports.CatalogStore."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(NEWEST_SQL, list(item_ids), catalog_version)
        found = await self._readable(rows)
        return [found.get(item_id) for item_id in item_ids]

    async def page(self, *, after: str = "") -> list[DeclaredItem]:
        """See handlers.ports.CatalogStore."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(PAGE_SQL, after, PAGE_ITEMS)
        found = await self._readable(rows)
        if rows and not found:
            # An empty page would pass for the end.
            return await self.page(after=rows[-1]["item_id"])
        return [DeclaredItem(found[row["item_id"]], row["item"]) for row in rows if row["item_id"] in found]

    async def _readable(self, rows: Sequence[asyncpg.Record], again: Sequence[tuple[Any, ...]] = ()) -> dict[str, Item]:
        """Items by id, less those that cannot be read: they are not offered, and keep no other from being."""
        return {row["item_id"]: item for row, item in await self.rows.read(rows, _item_of, again=again)}

    async def upsert(self, items: Sequence[DeclaredItem]) -> tuple[int, LogPosition]:
        """See handlers.ports.CatalogStore."""
        now = self._clock.now()
        async with transaction(self._pool) as connection:
            version, stream_version = await connection.fetchrow(LOCK_SQL) or (0, 0)
            ids = [declared.item.id for declared in items]
            rows = await connection.fetch(NEWEST_SQL, ids, version)
            known = {row["item_id"]: row["item"] for row in rows}
            changed = [declared for declared in items if known.get(declared.item.id) != declared.data]
            if not changed:
                row = await connection.fetchrow(POSITION_SQL, CATALOG_STREAM)
                return version, ORIGIN if row is None else LogPosition(row["epoch"], row["xid"], row["position"])
            version += 1
            data = [declared.data for declared in changed]
            await connection.execute(INSERT_SQL, [declared.item.id for declared in changed], data, version)
            events = tuple(
                NewEvent(uuid7(now), CATALOG_CHANGED, payload, now) for payload in catalog_changed(version, data)
            )
            await connection.execute(ADVANCE_SQL, version, stream_version + len(events))
            (appended,) = await append_in(connection, [Append(CATALOG_STREAM, stream_version, events)])
        return version, appended.position


def _item_of(row: asyncpg.Record) -> Item:
    item = item_from_bytes(row["item"])
    if item.id != row["item_id"]:
        raise ServiceError(Kind.INTERNAL, "ITEM_OF_OTHER_NAME", "the row holds another item than it is named after")
    return item
