"""The published feature sets, and which is active."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import asyncpg
from comity.features.v1 import feature_set_pb2

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.clock import Clock
from services.chassis.dead_letters import Rows
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.features.domain.book import Book
from services.features.domain.feature_set import FeatureSet
from services.features.wire import (
    FEATURE_SET_PUBLISHED,
    encode_published,
    feature_set_from_bytes,
    published_set,
    without_words,
)

STREAM = "feature_sets"

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
