"""The states of members in Postgres, and in front of it in Redis."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import structlog

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.cache import split_version
from services.chassis.dead_letters import passes, reason_of, where_of
from services.chassis.errors import ServiceError
from services.chassis.events import ORIGIN
from services.chassis.ports import Cache
from services.chassis.postgres import Connection, Pool, acquire
from services.features.domain.book import Book
from services.features.domain.members import MemberState, UnreadableStateError, decode, empty, encode
from services.features.metrics import STATES_UNREADABLE

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

# A state's version in the cache: the generation in the upper bits, how often it was written in the lower ones.
GENERATION_SHIFT = 40
# What nobody reads goes: of who comes back later the first read fills it in again.
CACHE_TTL_S = 86_400.0
FILLS_MAX = 64

_log = structlog.get_logger(__name__)


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
