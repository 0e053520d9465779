"""Takes a source's events in, each with its effect once: inbox row, effect and position are one transaction.

Delivery is at least once and a source's messages come in the order they were stored, one at a time. What can never
have its effect is put aside with its reason at once; what may pass is waited for. Neither stops the rest for good.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from uuid import UUID

import asyncpg
import structlog

from services.chassis import envelope, metrics, tracing
from services.chassis.erasure import erased_in
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, LogPosition, RecordedEvent
from services.chassis.ports import Bus, Delivery, Message
from services.chassis.postgres import Connection, Pool, acquire, transaction, translate

# Applies events that this consumer has not seen, in commit order per subject, inside the given transaction.
Handle = Callable[[Connection, list[RecordedEvent]], Awaitable[None]]
# Told every event of a message (also those seen before) once their effect is committed, and also that none is left of
# it: an earlier try may have begun what this ends. Must be idempotent.
AfterCommit = Callable[[list[RecordedEvent]], Awaitable[None]]

# The first retry is soon, because most outages are short; the last is what a database that is away costs.
RETRY_DELAY_S_MIN = 0.2
RETRY_DELAY_S_MAX = 10.0
# An effect that takes longer is an outage.
HANDLE_TIMEOUT_S = 60.0
# How often await_position looks whether another process got there.
POLL_S = 0.05
# Twice as long as a stream keeps its messages (chassis.bus): nothing older is delivered again.
KEEP = "14 days"
KEEP_S = 14 * 86_400.0
PRUNE_EVERY_S = 3600.0
PRUNE_MAX = 50_000

# What time may mend; all else is a fault of the event or of the handler, and would be the same next time.
_PASSING = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED, Kind.CONFLICT})

# One statement, because every message pays for it. The position moves with the effect or not at all. What is about
# somebody who was erased is never fresh and leaves no row: so a row also says that the event had its effect.
FRESH_SQL = """
WITH advanced AS (
    INSERT INTO inbox_positions AS p (source, consumer, epoch, xid, position)
    SELECT $1, $2, $4, $5, $6 WHERE $4::integer IS NOT NULL
    ON CONFLICT (source, consumer) DO UPDATE
    SET epoch = excluded.epoch, xid = excluded.xid, position = excluded.position, updated_at = now()
    WHERE (p.epoch, p.xid, p.position) < (excluded.epoch, excluded.xid, excluded.position)
)
INSERT INTO inbox (source, consumer, event_id)
SELECT $1, $2, e.event_id FROM unnest($3::uuid[], $7::text[]) AS e(event_id, subject_id)
WHERE (SELECT true FROM erased_members m WHERE m.member_id = e.subject_id FOR KEY SHARE) IS NULL ORDER BY e.event_id
ON CONFLICT DO NOTHING RETURNING event_id
"""
POSITION_SQL = "SELECT epoch, xid, position FROM inbox_positions WHERE source = $1 AND consumer = $2"
# Of somebody who was erased nothing is kept aside either; a whole message is searched for its bytes.
DEAD_LETTER_SQL = """
INSERT INTO dead_letters (source, consumer, channel, event_id, type, subject_id, reason, detail, payload)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9
WHERE NOT EXISTS (
    SELECT FROM erased_members m
    WHERE m.member_id = $6 OR ($6 = '' AND position(convert_to(m.member_id, 'UTF8') IN $9) > 0) FOR KEY SHARE
)
"""
PRUNE_SQL = f"""
DELETE FROM inbox WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM inbox WHERE received_at < now() - interval '{KEEP}' LIMIT {PRUNE_MAX}
))
"""

_log = structlog.get_logger(__name__)


class Subscription:
    """A durable consumer of everything that one service emits, or of one type of it.

    An event whose handling raises ServiceError INVALID, NOT_FOUND, FAILED_PRECONDITION (or a bug) goes to
    dead_letters with its reason, at first delivery, and the rest of its message applies; UNAVAILABLE and lost
    databases are waited out, with the message kept first in line. A type that *handle* does not know it must ignore.
    Events about people who were erased reach neither *handle* nor *after_commit*.

    Args:
        pool: of the consuming service's database.
        bus: where from.
        source: service that emits, e.g. "consent".
        consumer: durable name, unique among all consumers of this source, e.g. "features".
        handle: the effect; may use only the given connection, and may be called again for the same events
            (in a new transaction) when a part of them failed.
        after_commit: what need not be in the transaction (caches); runs before the message is acknowledged.
        only: full name of the one type to take: whoever needs few of a source's events is not to pay for all
            of them. Its own positions are then the only ones that can be awaited, and its events must be about nobody
            and of one stream, so that they come in order.
    """

    def __init__(
        self,
        pool: Pool,
        bus: Bus,
        source: str,
        consumer: str,
        handle: Handle,
        after_commit: AfterCommit | None = None,
        only: str = "",
    ) -> None:
        self._only = only
        self._pool = pool
        self._bus = bus
        self._source = source
        self._consumer = consumer
        self._handle = handle
        self._after_commit = after_commit
        self._position = ORIGIN
        self._moved = asyncio.Event()
        self._prune_at_s = time.monotonic() + PRUNE_EVERY_S

    @property
    def position(self) -> LogPosition:
        """Everything of the source up to here has had its effect, as far as this process knows."""
        return self._position

    async def run(self) -> None:
        """Consume until cancelled; outages are waited out."""
        channels = f"ev.v1.*.{self._source}.{self._only.rpartition('.')[2] or '>'}"
        async with aclosing(self._bus.consume(channels, durable=self._consumer)) as deliveries:
            async for delivery in deliveries:
                await self._take(delivery)

    async def await_position(self, position: LogPosition, timeout_s: float) -> None:
        """Returns once everything of the source up to *position* has had its effect, in whichever process.

        Raises:
            ServiceError: DEADLINE (POSITION_NOT_REACHED).
        """
        give_up_at = time.monotonic() + timeout_s
        while self._position < position:
            moved = self._moved
            await self._read_position()
            left_s = give_up_at - time.monotonic()
            if self._position >= position:
                return
            if left_s <= 0:
                raise ServiceError(
                    Kind.DEADLINE,
                    "POSITION_NOT_REACHED",
                    f"Events of {self._source} are still on their way: wait longer.",
                )
            # Another process may be the one that consumes, so time is a reason to look as well.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, POLL_S)):
                    await moved.wait()

    async def _take(self, delivery: Delivery) -> None:
        """Give a message its effect and its verdict."""
        message = delivery.message
        try:
            with tracing.consumer_span(f"{self._source} consume", message.headers):
                await self._effect(message)
        except ServiceError as outage:
            delay_s = min(RETRY_DELAY_S_MIN * 2 ** min(message.deliveries_count - 1, 16), RETRY_DELAY_S_MAX)
            _log.warning("message_retried", source=self._source, consumer=self._consumer, reason=outage.reason)
            await self._settle(delivery.retry(delay_s=delay_s))
        else:
            await self._settle(delivery.ack())

    async def _effect(self, message: Message) -> None:
        """Everything that a message is to do.

        Raises:
            ServiceError: what time may mend.
        """
        events = await self._apply_or_put_aside(message)
        if self._after_commit is None:
            return
        try:
            await self._after_commit(events)
        except Exception as error:
            if _passes(error):
                raise _as_outage(error) from error
            # What it feeds can be rebuilt, and waiting would not mend it.
            _log.error("after_commit_failed", source=self._source, error=type(error).__name__, where=_where(error))

    async def _settle(self, verdict: Awaitable[None]) -> None:
        """Hand in a verdict; where the bus is away it forgets, and delivers again."""
        try:
            await verdict
        except ServiceError as outage:
            _log.warning("verdict_lost", source=self._source, consumer=self._consumer, reason=outage.reason)

    async def _apply_or_put_aside(self, message: Message) -> list[RecordedEvent]:
        """The events of the message, each applied or put aside.

        All at once as a rule; when something in it is poison again, event by event; and when even then the COMMIT
        refuses (a deferred constraint), there is no telling which event it was, and all are put aside.
        """
        refusal: Exception | None = None
        for apart in (False, True):
            try:
                return await self._apply(message, self._handle, apart=apart)
            except Exception as error:
                if _passes(error):
                    raise _as_outage(error) from error
                refusal = error
        assert refusal is not None, "there were two tries"
        return await self._apply(message, _refuse_with(refusal), apart=True)

    async def _apply(self, message: Message, handle: Handle, *, apart: bool) -> list[RecordedEvent]:
        """Effect, inbox rows and position in one transaction; the events of the message."""
        try:
            events = envelope.decode_batch(message.payload)
            ids = [UUID(event.event_id) for event in events]
        except (ServiceError, ValueError):
            await self._put_message_aside(message)
            return []
        watermark = self._watermark(message, events)
        reached = (None,) * 3 if watermark is None else (watermark.epoch, watermark.xid, watermark.position)
        async with asyncio.timeout(HANDLE_TIMEOUT_S), transaction(self._pool) as connection:
            subjects = [event.subject_id for event in events]
            rows = await connection.fetch(FRESH_SQL, self._source, self._consumer, ids, *reached, subjects)
            unseen = {row["event_id"] for row in rows}
            if len(unseen) < len(ids):
                events, ids = await _without_erased(connection, events, ids)
            fresh = [event for event, event_id in zip(events, ids, strict=True) if _take_out(unseen, event_id)]
            if fresh and not apart:
                await handle(connection, fresh)
            elif fresh:
                await self._handle_apart(connection, message, fresh, handle)
        if watermark is not None:
            self._move(watermark)
        if ids:
            metrics.INBOX_LAG_S.labels(self._source).set(_age_s(ids[-1]))
        await self._prune()
        return events

    def _watermark(self, message: Message, events: Sequence[RecordedEvent]) -> LogPosition | None:
        """How far the source has come with this message, where that is known.

        The relay says it of all that it published; of one type alone its own events say it.
        """
        if self._only:
            return events[-1].position if events else None
        return envelope.watermark_of(message.headers)

    async def _handle_apart(
        self, connection: Connection, message: Message, events: list[RecordedEvent], handle: Handle
    ) -> None:
        """The effect of each event, but for those that can never have it."""
        for event in events:
            try:
                async with connection.transaction():
                    await handle(connection, [event])
            except Exception as error:
                if _passes(error):
                    raise
                await self._put_event_aside(connection, message, event, error)

    async def _put_event_aside(
        self, connection: Connection, message: Message, event: RecordedEvent, error: Exception
    ) -> None:
        reason, detail = _reason(error)
        _log.error(
            "event_put_aside",
            source=self._source,
            consumer=self._consumer,
            event_id=event.event_id,
            reason=reason,
            # A bug's traceback is needed, and its text is not: it may quote the event.
            where=_where(error),
        )
        metrics.DEAD_LETTERS.labels(self._source).inc()
        await connection.execute(
            DEAD_LETTER_SQL,
            self._source,
            self._consumer,
            message.channel,
            event.event_id,
            event.type,
            event.subject_id,
            reason,
            detail,
            envelope.encode_batch([event]),
        )

    async def _put_message_aside(self, message: Message) -> None:
        """Keep a message that is no EventBatch."""
        _log.error("message_put_aside", source=self._source, consumer=self._consumer, reason="UNDECODABLE")
        metrics.DEAD_LETTERS.labels(self._source).inc()
        async with transaction(self._pool) as connection:
            await connection.execute(
                DEAD_LETTER_SQL,
                self._source,
                self._consumer,
                message.channel,
                None,
                "",
                "",
                "UNDECODABLE",
                "",
                message.payload,
            )

    async def _read_position(self) -> None:
        async with acquire(self._pool) as connection:
            row = await connection.fetchrow(POSITION_SQL, self._source, self._consumer)
        if row is not None:
            self._move(LogPosition(row["epoch"], row["xid"], row["position"]))

    def _move(self, position: LogPosition) -> None:
        if position > self._position:
            self._position = position
            self._moved.set()
            self._moved = asyncio.Event()

    async def _prune(self) -> None:
        """Once an hour, forget events too old to be delivered again."""
        if time.monotonic() >= self._prune_at_s:
            self._prune_at_s = time.monotonic() + PRUNE_EVERY_S
            async with acquire(self._pool) as connection:
                await connection.execute(PRUNE_SQL)


async def _without_erased(
    connection: Connection, events: list[RecordedEvent], ids: list[UUID]
) -> tuple[list[RecordedEvent], list[UUID]]:
    """The events, less those about people who were erased, and their ids."""
    erased = await erased_in(connection, {event.subject_id for event in events})
    if not erased:
        return events, ids
    kept = [(event, event_id) for event, event_id in zip(events, ids, strict=True) if event.subject_id not in erased]
    metrics.EVENTS_DROPPED.labels("erased").inc(len(events) - len(kept))
    return [event for event, _ in kept], [event_id for _, event_id in kept]


def _take_out(unseen: set[UUID], event_id: UUID) -> bool:
    """Whether the event is fresh; the second of two in one message is not."""
    if event_id in unseen:
        unseen.remove(event_id)
        return True
    return False


def _passes(error: Exception) -> bool:
    """Whether time may mend it."""
    known = error if isinstance(error, ServiceError) else translate(error)
    return known is not None and known.kind in _PASSING


def _as_outage(error: Exception) -> ServiceError:
    known = error if isinstance(error, ServiceError) else translate(error)
    assert known is not None, "what passes is known"
    return known


def _refuse_with(error: Exception) -> Handle:
    """A handle that refuses every event for the same reason."""

    async def handle(connection: Connection, events: list[RecordedEvent]) -> None:
        raise error

    return handle


def _age_s(event_id: UUID) -> float:
    """How long ago an event was recorded, from the time in its UUIDv7."""
    return time.time() - (event_id.int >> 80) / 1000


def _reason(error: Exception) -> tuple[str, str]:
    """Reason code and sentence; of a bug or a database error only what kind it was, since its text may quote values."""
    if isinstance(error, ServiceError):
        return error.reason, error.message
    if isinstance(error, asyncpg.PostgresError):
        return "DATABASE_REFUSED", type(error).__name__
    return "BUG", type(error).__name__


def _where(error: Exception) -> str:
    """File and line of the innermost frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
