"""Takes a source's events in, each with its effect once: inbox row, effect and position are one transaction.

Delivery is at least once and a source's messages come in the order they were stored, one at a time. What can never
have its effect is put aside with its reason at once; what may pass is waited for. Neither stops the rest for good.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from uuid import UUID

import structlog

from services.chassis import envelope, metrics, tracing
from services.chassis.dead_letters import After, Letter, letter_of, passes, put_aside_in, reason_of, where_of
from services.chassis.erasure import erased_in
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, LogPosition, RecordedEvent
from services.chassis.lag import Lag
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
WHERE (SELECT true FROM erased_members m
       WHERE m.member_id = e.subject_id AND e.subject_id <> '' FOR KEY SHARE) IS NULL
ORDER BY e.event_id
ON CONFLICT DO NOTHING RETURNING event_id
"""
POSITION_SQL = "SELECT epoch, xid, position FROM inbox_positions WHERE source = $1 AND consumer = $2"
# A letter that is retried is about to have its effect for the first time.
FORGET_SQL = "DELETE FROM inbox WHERE source = $1 AND consumer = $2 AND event_id = ANY($3::uuid[])"
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
        self._channels = f"ev.v1.*.{source}.{only.rpartition('.')[2] or '>'}"
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
        async with aclosing(self._bus.consume(self._channels, durable=self._consumer)) as deliveries:
            async for delivery in deliveries:
                await self._take(delivery)

    async def watch_lag(self) -> None:
        """Tell for ever how old the oldest message is that waits; every replica does, whichever works, or hangs."""

        async def oldest_age_s() -> float:
            return await self._bus.oldest_age_s(self._channels, durable=self._consumer)

        await Lag(metrics.INBOX_LAG_S.labels(self._source)).watch(oldest_age_s, alarm_as=f"inbox {self._source}")

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
            with tracing.consumer_span(f"process {message.channel}", message.headers, self._told(message)):
                await self._effect(message)
        except ServiceError as outage:
            delay_s = min(RETRY_DELAY_S_MIN * 2 ** min(message.deliveries_count - 1, 16), RETRY_DELAY_S_MAX)
            _log.warning("message_retried", source=self._source, consumer=self._consumer, reason=outage.reason)
            await self._settle(delivery.retry(delay_s=delay_s))
        else:
            await self._settle(delivery.ack())

    def _told(self, message: Message) -> tracing.Attributes:
        """What a span says of a message."""
        return {
            tracing.MESSAGING_SYSTEM: "nats",
            tracing.MESSAGING_OPERATION_NAME: "process",
            tracing.MESSAGING_OPERATION_TYPE: "process",
            tracing.MESSAGING_DESTINATION_NAME: message.channel,
            tracing.MESSAGING_CONSUMER_GROUP_NAME: self._consumer,
            tracing.MESSAGING_MESSAGE_ID: message.headers.get(envelope.CE_ID, ""),
            tracing.MESSAGING_BODY_SIZE: len(message.payload),
        }

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
            if passes(error):
                raise _as_outage(error) from error
            # What it feeds can be rebuilt, and waiting would not mend it.
            _log.error("after_commit_failed", source=self._source, error=type(error).__name__, where=where_of(error))

    async def _settle(self, verdict: Awaitable[None]) -> None:
        """Hand in a verdict; where the bus is away it forgets, and delivers again."""
        try:
            await verdict
        except ServiceError as outage:
            _log.warning("verdict_lost", source=self._source, consumer=self._consumer, reason=outage.reason)

    async def _apply_or_put_aside(self, message: Message) -> list[RecordedEvent]:
        """The events of the message, each applied or put aside.

        All at once as a rule; when something in it is poison again, event by event; when even then the COMMIT refuses
        (a deferred constraint), there is no telling which event it was, and all are put aside; and what cannot even be
        noted event by event is put aside as it came.
        """
        refusal: Exception | None = None
        for apart, refuse_all in ((False, False), (True, False), (True, True)):
            handle = _refuse_with(refusal) if refuse_all and refusal is not None else self._handle
            try:
                return await self._apply(message, handle, apart=apart)
            except Exception as error:
                if passes(error):
                    raise _as_outage(error) from error
                refusal = error
        assert refusal is not None, "there were three tries"
        await self._put_message_aside(message, refusal)
        return []

    async def _apply(self, message: Message, handle: Handle, *, apart: bool) -> list[RecordedEvent]:
        """Effect, inbox rows and position in one transaction; the events of the message."""
        try:
            events, unread = envelope.decode_each(message.payload)
        except ServiceError as error:
            await self._put_message_aside(message, error)
            return []
        ids = [UUID(event.event_id) for event in events]
        tracing.set_attributes({tracing.COMITY_BATCH_SIZE: len(events)})
        # The header names the first sampled event alone.
        tracing.add_links(event.traceparent for event in events[1:])
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
            for payload in unread:
                await put_aside_in(connection, self._letter(message, envelope.undecodable(), payload))
        if watermark is not None:
            self._move(watermark)
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
                if passes(error):
                    raise
                await self._put_event_aside(connection, message, event, error)

    async def _put_event_aside(
        self, connection: Connection, message: Message, event: RecordedEvent, error: Exception
    ) -> None:
        letter = letter_of(error, self._source, self._consumer, event=event, channel=message.channel)
        await put_aside_in(connection, replace(letter, payload=envelope.encode_batch([event])))

    async def _put_message_aside(self, message: Message, error: Exception) -> None:
        """Keep a message that is no EventBatch, or whose events cannot even be put aside."""
        async with transaction(self._pool) as connection:
            await put_aside_in(connection, self._letter(message, error, message.payload))

    def _letter(self, message: Message, error: Exception, payload: bytes) -> Letter:
        reason, detail = reason_of(error)
        return Letter(
            self._source, self._consumer, reason, detail, message.channel, payload=payload, where=where_of(error)
        )

    async def retry(self, connection: Connection, letter: Letter) -> After:
        """Give a letter its effect now: a dead_letters.Retry. What came behind it has had its effect already."""
        events = envelope.decode_batch(letter.payload)
        ids = [UUID(event.event_id) for event in events]
        await connection.execute(FORGET_SQL, self._source, self._consumer, ids)
        subjects = [event.subject_id for event in events]
        rows = await connection.fetch(FRESH_SQL, self._source, self._consumer, ids, None, None, None, subjects)
        fresh = {row["event_id"] for row in rows}
        taken = [event for event, event_id in zip(events, ids, strict=True) if _take_out(fresh, event_id)]
        if taken:
            await self._handle(connection, taken)

        async def after() -> None:
            if self._after_commit is not None and taken:
                await self._after_commit(taken)

        return after

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


def _as_outage(error: Exception) -> ServiceError:
    known = error if isinstance(error, ServiceError) else translate(error)
    assert known is not None, "what passes is known"
    return known


def _refuse_with(error: Exception) -> Handle:
    """A handle that refuses every event for the same reason."""

    async def handle(connection: Connection, events: list[RecordedEvent]) -> None:
        raise error

    return handle
