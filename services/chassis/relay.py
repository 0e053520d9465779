"""Publishes a service's log, in commit order, on its channels: the log is the outbox.

The checkpoint is stored after a page was published, so a crash publishes some of it again, and the inboxes drop it.
A leader that lost its lock without noticing publishes nothing that its successor does not publish too, in the same
order, and cannot store a checkpoint.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from services.chassis import envelope, metrics
from services.chassis.dead_letters import IMPOSSIBLE_PLACE, Letter, impossible_place, put_aside_in
from services.chassis.envelope import OutMessage
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, LogPosition, RecordedEvent
from services.chassis.lag import Lag
from services.chassis.log_rows import recorded
from services.chassis.ports import Bus, EventStore
from services.chassis.postgres import Connection, Pool, acquire, leadership, translated

POLL_S = 0.1
# What was just appended can be behind the barrier of a transaction that ends in a moment.
POLL_S_MIN = 0.005
PAGE_EVENTS_MAX = 1_000
PAGE_EVENTS_MIN = 50
# A page is held in memory twice, as rows and as messages.
PAGE_BYTES = 8 * 2**20
# Every message costs each of its consumers a transaction, however few events it holds. So pages are filled as long as
# it takes to stay below this rate (measured: 500 events/s in messages of 1.5 events cost 850 us of CPU each, in tens
# 230). Events that come alone, or a few of one subject at a time, are never held.
MESSAGES_PER_S = 40.0
MESSAGES_BURST = 16.0
FILL_S_MAX = 0.1
PUBLISH_PAUSE_S_MIN = 0.1
PUBLISH_PAUSE_S_MAX = 2.0
OUTAGE_PAUSE_S = 0.5
# Of its dead letters.
CONSUMER = "relay"

CHECKPOINT_SQL = "SELECT epoch, xid, position FROM relay_checkpoint WHERE service = $1"
# Behind what is there already: what was not published of that the reconciler publishes, once, as the inboxes need it.
RESET_SQL = f"""
UPDATE relay_checkpoint SET epoch = newest.e, xid = newest.x, position = newest.p FROM (
    (SELECT epoch, xid, position FROM events ORDER BY epoch DESC, xid DESC, position DESC LIMIT 1)
    UNION ALL SELECT 0, '0'::xid8, 0 LIMIT 1
) AS newest (e, x, p) WHERE service = $1 AND {IMPOSSIBLE_PLACE} RETURNING service
"""
ADVANCE_SQL = """
INSERT INTO relay_checkpoint AS c (service, epoch, xid, position) VALUES ($1, $2, $3, $4)
ON CONFLICT (service) DO UPDATE
SET epoch = excluded.epoch, xid = excluded.xid, position = excluded.position, updated_at = now()
WHERE (c.epoch, c.xid, c.position) < (excluded.epoch, excluded.xid, excluded.position)
"""
EVENT_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at,
       key_id, nonce, payload, traceparent
FROM events WHERE event_id = $1
"""
# Also counts what the barrier still holds back: a transaction that never ends shows here.
LAG_SQL = """
SELECT extract(epoch FROM clock_timestamp() - recorded_at)::float8 FROM events
WHERE (epoch, xid, position) > ($1, $2, $3) ORDER BY epoch, xid, position LIMIT 1
"""
_log = structlog.get_logger(__name__)


async def read_checkpoint(connection: Connection, service: str) -> LogPosition:
    """How far the service's log has been published."""
    row = await connection.fetchrow(CHECKPOINT_SQL, service)
    return ORIGIN if row is None else LogPosition(row["epoch"], row["xid"], row["position"])


class Relay:
    """One leader among the service's processes tails the log and publishes it, page by page.

    Within a partition messages are stored in commit order, each before the next is sent; partitions go side by side.
    The last message of a page leaves when all others are stored and carries the page's end as watermark.

    Args:
        pool: of the service's database; one connection is held for the leader's lock and the checkpoint.
        store: the log.
        bus: where to.
        service: name in the channel, e.g. "consent".
    """

    def __init__(self, pool: Pool, store: EventStore, bus: Bus, service: str) -> None:
        self._pool = pool
        self._store = store
        self._bus = bus
        self._service = service
        self._woken = asyncio.Event()
        self._published_to = ORIGIN
        self._page_events = PAGE_EVENTS_MAX

    def wake(self) -> None:
        """Something was appended: look now and not at the next poll."""
        self._woken.set()

    async def run(self) -> None:
        """Relay until cancelled; outages are waited out."""
        while True:
            try:
                async with leadership(self._pool, f"comity.relay.{self._service}") as connection:
                    await self._lead(connection)
            except* ServiceError as errors:
                _log.warning("relay_interrupted", service=self._service, reason=_first(errors).reason)
            await asyncio.sleep(OUTAGE_PAUSE_S)

    async def _lead(self, connection: Connection) -> None:
        with translated():
            if await connection.fetchval(RESET_SQL, self._service) is not None:
                await put_aside_in(connection, impossible_place(self._service, f"relay_checkpoint/{self._service}"))
        self._published_to = await read_checkpoint(connection, self._service)
        _log.info("relay_leads", service=self._service)
        pace = _Pace()
        poll_s = POLL_S
        while True:
            if self._woken.is_set():
                self._woken.clear()
                poll_s = POLL_S_MIN
            page = await self._store.read_log(self._published_to, limit=self._page_events)
            if not page:
                with suppress(TimeoutError):
                    async with asyncio.timeout(poll_s):
                        await self._woken.wait()
                poll_s = min(2 * poll_s, POLL_S)
                continue
            poll_s = POLL_S_MIN
            messages_count = await self._publish(connection, page)
            self._published_to = page[-1].position
            with translated():
                await connection.execute(
                    ADVANCE_SQL,
                    self._service,
                    page[-1].position.epoch,
                    page[-1].position.xid,
                    page[-1].position.position,
                )
            full = len(page) == self._page_events
            self._page_events = _next_page_events(page)
            pause_s = pace.pause_s(messages_count)
            if not full:
                await asyncio.sleep(pause_s)

    async def _publish(self, connection: Connection, page: Sequence[RecordedEvent]) -> int:
        """Store a page in the stream; how many messages, when every one of them is there."""
        fit, unfit = envelope.sift(page)
        put_aside: list[tuple[OutMessage, str]] = []
        by_partition = envelope.pack(self._service, fit)
        messages_count = sum(map(len, by_partition.values()))
        if fit:
            last = by_partition[envelope.partition(fit[-1], envelope.PARTITIONS_COUNT)].pop()
            async with asyncio.TaskGroup() as group:
                for messages in by_partition.values():
                    group.create_task(self._publish_in_order(messages, put_aside))
            await self._publish_until_stored(last, page[-1].position, put_aside)
        for message, reason in put_aside:
            for event in message.events:
                await self._put_aside(connection, event, reason, message.channel)
        for event in unfit:
            await self._put_aside(connection, event, "UNPUBLISHABLE")
        return messages_count

    async def _publish_in_order(self, messages: Sequence[OutMessage], put_aside: list[tuple[OutMessage, str]]) -> None:
        for message in messages:
            await self._publish_until_stored(message, None, put_aside)

    async def _publish_until_stored(
        self, message: OutMessage, watermark: LogPosition | None, put_aside: list[tuple[OutMessage, str]]
    ) -> None:
        """Publish a message, however long the bus is away; what it will never take is put aside."""
        headers = envelope.headers(self._service, message, watermark=watermark)
        pause_s = PUBLISH_PAUSE_S_MIN
        while True:
            try:
                await self._bus.publish(
                    message.channel, message.payload, message_id=message.message_id, headers=headers
                )
                return
            except ServiceError as error:
                if error.kind is Kind.INVALID:
                    put_aside.append((message, error.reason))
                    return
                _log.warning("publish_retried", service=self._service, reason=error.reason)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PUBLISH_PAUSE_S_MAX)

    async def _put_aside(self, connection: Connection, event: RecordedEvent, reason: str, channel: str = "") -> None:
        """Note what no channel takes, so that one event does not hold up the log for ever; its row stays in the log."""
        letter = Letter(
            self._service,
            CONSUMER,
            reason,
            channel=channel,
            event_id=event.event_id,
            type=event.type,
            subject_id=event.subject_id,
        )
        with translated():
            await put_aside_in(connection, letter)

    async def retry(self, connection: Connection, letter: Letter) -> None:
        """Publish an event of a letter now: a dead_letters.Retry."""
        row = await connection.fetchrow(EVENT_SQL, letter.event_id)
        if row is None:
            return
        fit, _ = envelope.sift([recorded(row)])
        if not fit:
            raise ServiceError(Kind.INVALID, "UNPUBLISHABLE", "no channel can be named after it: discard it")
        for (message,) in envelope.pack(self._service, fit).values():
            headers = envelope.headers(self._service, message)
            await self._bus.publish(message.channel, message.payload, message_id=message.message_id, headers=headers)

    async def watch_lag(self) -> None:
        """Tell for ever how old the oldest event is that waits; every replica does, whoever leads, or hangs."""
        await Lag(metrics.RELAY_LAG_S.labels(self._service)).watch(self._oldest_age_s, alarm_as="relay")

    async def _oldest_age_s(self) -> float:
        async with acquire(self._pool) as connection:
            at = await read_checkpoint(connection, self._service)
            return float(await connection.fetchval(LAG_SQL, at.epoch, at.xid, at.position) or 0.0)


class _Pace:
    """How long to fill the next page: so long that messages stay below MESSAGES_PER_S, not at all until then."""

    def __init__(self) -> None:
        self._at_s = time.monotonic()
        self._allowed = MESSAGES_BURST

    def pause_s(self, messages_count: int) -> float:
        """The pause after a page of this many messages."""
        now_s = time.monotonic()
        self._allowed = min(MESSAGES_BURST, self._allowed + (now_s - self._at_s) * MESSAGES_PER_S) - messages_count
        self._at_s = now_s
        return min(max(0.0, -self._allowed / MESSAGES_PER_S), FILL_S_MAX)


def _next_page_events(page: Sequence[RecordedEvent]) -> int:
    """How many events of this size a page may hold."""
    size = sum(
        len(event.payload if isinstance(event.payload, bytes) else event.payload.ciphertext) for event in page
    ) // len(page)
    return max(PAGE_EVENTS_MIN, min(PAGE_EVENTS_MAX, PAGE_BYTES // max(size, 1)))


def _first(errors: BaseExceptionGroup[ServiceError]) -> ServiceError:
    """One of the errors, for the log."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ServiceError), "the group was split by type"
    return error
