"""Dead letters: what cannot be read, or can never have its effect, put aside with its reason so that the rest goes on.

A letter is an event or a message as it came, or a row that stays where it is: then the letter holds no payload and says
where. It is counted, logged and an alarm; `comity doctor` lists them, and an operator retries or discards them.
Nothing is kept about somebody who was erased.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import structlog

from services.chassis import metrics
from services.chassis.alarms import Alarm, set_alarm
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import RecordedEvent
from services.chassis.postgres import Connection, Pool, acquire, transaction, translate
from services.chassis.uncancelled import uncancelled

T = TypeVar("T")

# A replica that did not put a letter aside learns of it this late.
WATCH_EVERY_S = 30.0
LIST_MAX = 500

# Of somebody who was erased nothing is kept aside either; a whole message is searched for its bytes. A reader meets the
# same row again and again, and says so once.
PUT_SQL = """
INSERT INTO dead_letters (source, consumer, channel, event_id, type, subject_id, reason, detail, payload)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9
WHERE NOT EXISTS (
    SELECT FROM erased_members m
    WHERE m.member_id = $6 OR ($6 = '' AND position(convert_to(m.member_id, 'UTF8') IN $9) > 0) FOR KEY SHARE
) AND NOT EXISTS (
    SELECT FROM dead_letters d
    WHERE d.source = $1 AND d.consumer = $2 AND d.channel = $3 AND d.event_id IS NOT DISTINCT FROM $4
      AND d.subject_id = $6 AND d.payload = $9
)
RETURNING id
"""
COUNT_SQL = "SELECT count(*) FROM dead_letters WHERE discarded_at IS NULL"
LIST_SQL = """
SELECT id, source, consumer, channel, event_id, type, subject_id, reason, detail, payload, received_at
FROM dead_letters WHERE id > $1 AND discarded_at IS NULL ORDER BY id LIMIT $2
"""
TAKE_SQL = """
DELETE FROM dead_letters WHERE id = $1 AND discarded_at IS NULL
RETURNING id, source, consumer, channel, event_id, type, subject_id, reason, detail, payload, received_at
"""
# The letter of a row is kept, so that its next reader does not tell it anew.
DISCARD_SQL = """
WITH gone AS (
    DELETE FROM dead_letters WHERE id = ANY($1::bigint[]) AND payload <> '' RETURNING 1
), kept AS (
    UPDATE dead_letters SET discarded_at = now()
    WHERE id = ANY($1::bigint[]) AND payload = '' AND discarded_at IS NULL RETURNING 1
) SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM kept)
"""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Letter:
    """Something put aside.

    Args:
        source: service that it is from.
        consumer: what could not read it: a durable consumer, or a reader of a log or a table.
        reason: UPPER_SNAKE code.
        detail: a sentence or a word more, without values.
        channel: where it came from: a channel, or table/key of a row.
        event_id: empty where not even that can be read.
        payload: an EventBatch, or whatever came instead; empty where the row stays where it is.
        id: 0 before it is stored.
    """

    source: str
    consumer: str
    reason: str
    detail: str = ""
    channel: str = ""
    event_id: str = ""
    type: str = ""
    subject_id: str = ""
    payload: bytes = field(default=b"", repr=False)
    where: str = ""
    id: int = 0
    received_at: datetime | None = None


# What has to be done once a retry is committed.
After = Callable[[], Awaitable[None]]
# No row of a database can have a place in its log beyond this moment: a reader there would pass over all that comes.
IMPOSSIBLE_PLACE = "(epoch, xid) > (SELECT epoch, pg_snapshot_xmax(pg_current_snapshot()) FROM log_epoch)"
# Gives the letter its effect inside the transaction that takes it away; raises what would put it aside again.
Retry = Callable[[Connection, Letter], Awaitable[After | None]]


def passes(error: Exception) -> bool:
    """Whether time may mend it, also where it is the database driver's own."""
    known = error if isinstance(error, ServiceError) else translate(error)
    return known is not None and known.passes


def letter_of(
    error: Exception, source: str, consumer: str, *, event: RecordedEvent | None = None, channel: str = ""
) -> Letter:
    """The letter of a row that stays where it is, by what reading it raised."""
    reason, detail = reason_of(error)
    return Letter(
        source,
        consumer,
        reason,
        detail,
        channel,
        event_id=event.event_id if event is not None else "",
        type=event.type if event is not None else "",
        subject_id=event.subject_id if event is not None else "",
        where=where_of(error),
    )


def read_each(
    events: Sequence[RecordedEvent],
    opened: Sequence[bytes | ServiceError],
    read: Callable[[RecordedEvent, bytes], T],
    source: str,
    consumer: str,
) -> tuple[list[tuple[RecordedEvent, T]], list[Letter]]:
    """What *read* makes of each event that can be opened and read, and the letters of the others.

    Of somebody who was erased there is neither: their rows are about to be deleted.
    """
    found: list[tuple[RecordedEvent, T]] = []
    letters: list[Letter] = []
    for event, plain in zip(events, opened, strict=True):
        try:
            if isinstance(plain, ServiceError):
                if plain.reason == "SUBJECT_ERASED":
                    continue
                raise plain
            found.append((event, read(event, plain)))
        except Exception as error:
            letters.append(letter_of(error, source, consumer, event=event))
    return found, letters


def read_rows(
    rows: Iterable[asyncpg.Record],
    read: Callable[[asyncpg.Record], T],
    source: str,
    consumer: str,
    table: str,
    *keys: str,
) -> tuple[list[tuple[asyncpg.Record, T]], list[Letter]]:
    """What *read* makes of each row that can be read, and the letters of the others.

    Args:
        keys: the columns that name the row; they name nobody.
    """
    found: list[tuple[asyncpg.Record, T]] = []
    letters: list[Letter] = []
    for row in rows:
        try:
            found.append((row, read(row)))
        except Exception as error:
            letters.append(letter_of(error, source, consumer, channel=_place_of(row, table, keys)))
    return found, letters


def _place_of(row: asyncpg.Record, table: str, keys: Sequence[str]) -> str:
    return "/".join((table, *(str(row[key]) for key in keys)))


def impossible_place(service: str, place: str) -> Letter:
    """The letter of a reader's position that was beyond the log, and was given up."""
    detail = "it was beyond the log; what lies behind it is read again"
    return Letter(service, "positions", "IMPOSSIBLE_POSITION", detail, channel=place)


class Rows:
    """What one reader holds of a table: a row that cannot be read is put aside once, and read again until it can be.

    Args:
        keys: the columns that name the row; they name nobody.
    """

    def __init__(self, pool: Pool, source: str, consumer: str, table: str, *keys: str) -> None:
        self._pool = pool
        self._place = source, consumer, table, *keys
        self._unread: dict[str, tuple[Any, ...]] = {}
        # Those of `_unread` whose letters are stored.
        self._told: set[str] = set()

    @property
    def unread(self) -> list[tuple[Any, ...]]:
        """The keys of rows that could not be read; to be read again with whatever is new."""
        return list(self._unread.values())

    async def read(
        self,
        rows: Iterable[asyncpg.Record],
        read: Callable[[asyncpg.Record], T],
        *,
        again: Iterable[tuple[Any, ...]] = (),
    ) -> list[tuple[asyncpg.Record, T]]:
        """What *read* makes of each row that can be read.

        Args:
            again: keys of `unread` that were asked for; of those no row came for there is nothing left to read.
        """
        rows = list(rows)
        _, _, table, *keys = self._place
        found, letters = read_rows(rows, read, *self._place)
        fresh = [letter for letter in letters if letter.channel not in self._told]
        failed = {letter.channel for letter in letters}
        for key in again:
            self._unread.pop("/".join((table, *map(str, key))), None)
        for row in rows:
            place = _place_of(row, table, keys)
            if place in failed:
                self._unread[place] = tuple(row[key] for key in keys)
            else:
                self._unread.pop(place, None)
        self._told &= self._unread.keys()
        if await put_aside(self._pool, fresh):
            self._told.update(letter.channel for letter in fresh)
        return found

    def lacks(self, letter: Letter) -> bool:
        """Whether the row that the letter names still cannot be read."""
        return letter.channel in self._unread


def retry_rows(again: Callable[[], Awaitable[object]], *held: Rows) -> "Retry":
    """Retries the letters of rows that a reader holds: *again* has it read what it could not."""

    async def retry(_: Connection, letter: Letter) -> None:
        await again()
        if any(rows.lacks(letter) for rows in held):
            raise ServiceError(Kind.FAILED_PRECONDITION, "STILL_UNREADABLE", "the row is as it was: mend it first")

    return retry


async def put_aside_in(connection: Connection, letter: Letter) -> None:
    """Store a letter, count it, log it and raise the alarm; one that is there already changes nothing."""
    stored = await connection.fetchval(
        PUT_SQL,
        letter.source,
        letter.consumer,
        _storable(letter.channel),
        UUID(letter.event_id) if _is_uuid(letter.event_id) else None,
        _storable(letter.type),
        _storable(letter.subject_id),
        letter.reason,
        _storable(letter.detail),
        letter.payload,
    )
    if stored is None:
        return
    metrics.DEAD_LETTERS.labels(letter.source).inc()
    set_alarm(Alarm.DEAD_LETTERS, True)
    _log.error(
        "put_aside",
        source=letter.source,
        consumer=letter.consumer,
        event_id=letter.event_id,
        reason=letter.reason,
        where=letter.where,
    )


async def put_aside(pool: Pool, letters: Iterable[Letter]) -> bool:
    """Store letters of rows that stay where they are; a reader goes on also where that cannot be done now.

    Returns:
        Whether all are stored; where not, whoever reads the rows again is to try again.
    """
    try:
        for letter in letters:
            async with transaction(pool) as connection:
                await put_aside_in(connection, letter)
    except ServiceError as outage:
        # The row is there, and the next reader says it.
        _log.warning("not_put_aside", reason=outage.reason)
        return False
    return True


class DeadLetters:
    """The letters of one service, for its operators."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._retries: dict[tuple[str, str], Retry] = {}

    def retried_by(self, source: str, consumer: str, retry: Retry) -> None:
        """Letters of this consumer can be retried, and this is how."""
        self._retries[source, consumer] = retry

    def can_retry(self, letter: Letter) -> bool:
        """Whether there is a way to retry it; a row that nobody holds is read again by whoever reads it next."""
        return (letter.source, letter.consumer) in self._retries or not letter.payload

    async def after(self, last_id: int, limit: int) -> tuple[list[Letter], int]:
        """The letters after an id, oldest first, and how many there are in all."""
        async with acquire(self._pool) as connection:
            rows = await connection.fetch(LIST_SQL, last_id, min(limit or LIST_MAX, LIST_MAX))
            count = await connection.fetchval(COUNT_SQL)
        set_alarm(Alarm.DEAD_LETTERS, count > 0)
        return [_letter(row) for row in rows], count

    async def discard(self, ids: Sequence[int]) -> int:
        """Drop letters; how many there were."""
        async with acquire(self._pool) as connection:
            count: int = await connection.fetchval(DISCARD_SQL, list(ids))
        await self.look()
        return count

    async def retry(self, letter_id: int) -> ServiceError | None:
        """Give a letter its effect and drop it; why it stays, where it has to.

        It is a task of its own: a caller that is cancelled leaves neither the effect nor what follows it halfway.

        Raises:
            ServiceError: UNAVAILABLE.
        """
        return await uncancelled(self._retry(letter_id))

    async def _retry(self, letter_id: int) -> ServiceError | None:
        try:
            async with transaction(self._pool) as connection:
                row = await connection.fetchrow(TAKE_SQL, letter_id)
                if row is None:
                    return ServiceError(Kind.NOT_FOUND, "NO_SUCH_LETTER", "there is no such dead letter any more")
                after = await self._take(connection, _letter(row))
        except Exception as error:
            if passes(error):
                raise
            reason, detail = reason_of(error)
            return ServiceError(Kind.FAILED_PRECONDITION, reason, detail)
        if after is not None:
            await after()
        await self.look()
        return None

    async def look(self) -> None:
        """Raise or clear the alarm by what is there."""
        async with acquire(self._pool) as connection:
            set_alarm(Alarm.DEAD_LETTERS, await connection.fetchval(COUNT_SQL) > 0)

    async def watch(self) -> None:
        """Look for ever: another replica may put letters aside, or drop them."""
        while True:
            try:
                await self.look()
            except ServiceError as outage:
                _log.warning("dead_letters_not_counted", reason=outage.reason)
            await asyncio.sleep(WATCH_EVERY_S)

    async def _take(self, connection: Connection, letter: Letter) -> After | None:
        retry = self._retries.get((letter.source, letter.consumer))
        if retry is not None:
            return await retry(connection, letter)
        if letter.payload:
            raise ServiceError(
                Kind.FAILED_PRECONDITION, "NOT_RETRIED", "nothing here takes it in again: mend its source, discard it"
            )
        return None


def reason_of(error: Exception) -> tuple[str, str]:
    """Reason code and sentence; of a bug or a database error only what kind it was, since its text may quote values."""
    if isinstance(error, ServiceError):
        return error.reason, error.message
    if isinstance(error, asyncpg.PostgresError):
        return "DATABASE_REFUSED", type(error).__name__
    return "BUG", type(error).__name__


def where_of(error: Exception) -> str:
    """File and line of the innermost frame; a bug's text may quote values, where it is does not."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"


def _letter(row: asyncpg.Record) -> Letter:
    return Letter(
        row["source"],
        row["consumer"],
        row["reason"],
        row["detail"],
        row["channel"],
        str(row["event_id"] or ""),
        row["type"],
        row["subject_id"],
        row["payload"],
        id=row["id"],
        received_at=row["received_at"],
    )


def _is_uuid(text: str) -> bool:
    try:
        return bool(UUID(text))
    except ValueError:
        return False


def _storable(text: str) -> str:
    """The text without what Postgres takes in no text."""
    return text.replace("\x00", "")
