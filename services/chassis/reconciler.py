"""Finds what a service's stream lost and publishes it again; the log is the record, the stream only carries it.

A stream that was deleted, purged, thinned out or cut short looks different from when it was last compared: that is
looked at often and costs one request. Then all that the stream should hold is compared event by event; otherwise only
the newest part, now and then, for losses that leave no trace. What is published twice does no harm (chassis.inbox).
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import structlog

from services.chassis import envelope
from services.chassis.bus import STREAM_AGE_S, NatsBus, StreamState
from services.chassis.envelope import OutMessage
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition
from services.chassis.log_rows import recorded
from services.chassis.postgres import Connection, Pool, acquire, leadership
from services.chassis.relay import read_checkpoint

LOOK_EVERY_S = 10.0
COMPARE_EVERY_S = 300.0
# What is about to leave the stream by its age is not worth publishing again.
AGE_S = STREAM_AGE_S - 3600
# How far back a comparison goes behind the one before: further than a server may hold back writing to its disk.
OVERLAP = timedelta(minutes=3)
# How much of the log is compared at once: bounds the memory.
SLICE = timedelta(minutes=10)
# Clocks of database and bus may differ, and a message is stored a while after its event was recorded.
EARLY = timedelta(minutes=1)
LATE = timedelta(minutes=10)
BATCH_EVENTS = 500

STATE_SQL = """
SELECT stream_created, first_seq, last_seq, deleted_count, least(compared_until, now()) AS compared_until
FROM reconciler_state WHERE service = $1
"""
SAVE_SQL = """
INSERT INTO reconciler_state (service, stream_created, first_seq, last_seq, deleted_count, compared_until)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (service) DO UPDATE
SET stream_created = excluded.stream_created, first_seq = excluded.first_seq, last_seq = excluded.last_seq,
    deleted_count = excluded.deleted_count, compared_until = excluded.compared_until
"""
NEXT_SQL = """
SELECT min(recorded_at), now() FROM events WHERE recorded_at >= $1 AND (epoch, xid, position) <= ($2, $3, $4)
"""
IDS_SQL = """
SELECT event_id FROM events WHERE recorded_at >= $1 AND recorded_at < $2 AND (epoch, xid, position) <= ($3, $4, $5)
"""
EVENTS_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at,
       key_id, nonce, payload, traceparent
FROM events WHERE event_id = ANY ($1::uuid[]) ORDER BY epoch, xid, position
"""

_log = structlog.get_logger(__name__)


class Reconciler:
    """Compares log and stream: at the start, whenever the stream looks like less than it was, and every interval.

    Args:
        pool: of the service's database.
        bus: its JetStream.
        service: name in the channel.
        look_every_s: between two looks at the stream's counters.
        interval_s: between two comparisons of the newest part.
    """

    def __init__(
        self,
        pool: Pool,
        bus: NatsBus,
        service: str,
        *,
        look_every_s: float = LOOK_EVERY_S,
        interval_s: float = COMPARE_EVERY_S,
    ) -> None:
        self._pool = pool
        self._bus = bus
        self._service = service
        self._look_every_s = look_every_s
        self._interval = timedelta(seconds=interval_s)

    async def run(self) -> None:
        """Reconcile until cancelled, in one process of the service at a time; outages are waited out."""
        while True:
            try:
                async with leadership(self._pool, f"comity.reconciler.{self._service}") as connection:
                    while True:
                        await self._look(connection)
                        await asyncio.sleep(self._look_every_s)
            except ServiceError as error:
                _log.warning("reconciler_interrupted", service=self._service, reason=error.reason)
            await asyncio.sleep(self._look_every_s)

    async def reconcile(self) -> int:
        """Compare once, over all that the stream should hold; how many events were published again."""
        async with acquire(self._pool) as connection:
            return await self._compare(connection, await self._state(), _oldest())

    async def _look(self, connection: Connection) -> None:
        """Compare as much as there is reason to."""
        state = await self._state()
        row = await connection.fetchrow(STATE_SQL, self._service)
        if row is None or lost_something(row, state):
            await self._compare(connection, state, _oldest())
        elif datetime.now(UTC) - row["compared_until"] > self._interval:
            await self._compare(connection, state, max(_oldest(), row["compared_until"] - OVERLAP))

    async def _state(self) -> StreamState:
        """The stream's state; one that is gone is made anew, empty."""
        try:
            return await self._bus.stream_state(self._service)
        except ServiceError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        await self._bus.ensure_stream(self._service)
        return await self._bus.stream_state(self._service)

    async def _compare(self, connection: Connection, state: StreamState, since: datetime) -> int:
        """Publish again what the log has from *since* on and the stream has not."""
        # What lies behind the checkpoint was stored; the rest is still the relay's.
        published_to = await read_checkpoint(connection, self._service)
        count = 0
        until = since
        while True:
            begin, now = await connection.fetchrow(NEXT_SQL, until, *_parts(published_to)) or (None, since)
            if begin is None:
                break
            until = begin + SLICE
            count += await self._compare_slice(connection, begin, until, published_to)
        if count:
            _log.warning("events_published_again", service=self._service, count=count)
        await connection.execute(
            SAVE_SQL, self._service, state.created, state.first_seq, state.last_seq, state.deleted_count, now
        )
        return count

    async def _compare_slice(
        self, connection: Connection, begin: datetime, until: datetime, published_to: LogPosition
    ) -> int:
        rows = await connection.fetch(IDS_SQL, begin, until, *_parts(published_to))
        missing = {row["event_id"] for row in rows}
        async with aclosing(self._bus.stored(self._service, since=begin - EARLY, until=until + LATE)) as messages:
            async for message in messages:
                missing.difference_update(_event_ids(message.payload))
                if not missing:
                    return 0
        ids = sorted(missing)
        count = 0
        for start in range(0, len(ids), BATCH_EVENTS):
            count += await self._publish_again(await connection.fetch(EVENTS_SQL, ids[start : start + BATCH_EVENTS]))
        return count

    async def _publish_again(self, rows: Sequence[asyncpg.Record]) -> int:
        """Publish events under new message ids: the stream remembers the old ones for a while, and would drop them.

        How many: what no channel takes the relay has put aside.
        """
        fit, _ = envelope.sift([recorded(row) for row in rows])
        for messages in envelope.pack(self._service, fit).values():
            for message in messages:
                await self._publish(message)
        return len(fit)

    async def _publish(self, message: OutMessage) -> None:
        try:
            await self._bus.publish(
                message.channel,
                message.payload,
                message_id=f"again-{uuid4().hex}",
                headers=envelope.headers(self._service, message),
            )
        except ServiceError as error:
            if error.kind is not Kind.INVALID:
                raise
            # The relay met it as well, and put it aside: the bus never takes it.
            _log.warning("event_cannot_be_published", service=self._service, reason=error.reason)


def lost_something(before: asyncpg.Record, state: StreamState) -> bool:
    """Whether a stream that looked like *before* can only look like this because something was taken from it."""
    # An empty stream tells no time of its first message, and is worth a comparison.
    aged_out = state.first_at.year > 1 and state.first_at < _oldest() + timedelta(hours=1)
    return (
        before["stream_created"] != state.created
        or state.last_seq < before["last_seq"]
        or state.deleted_count > before["deleted_count"]
        or (state.first_seq > before["first_seq"] and not aged_out)
    )


def _oldest() -> datetime:
    return datetime.now(UTC) - timedelta(seconds=AGE_S)


def _parts(position: LogPosition) -> tuple[int, int, int]:
    return position.epoch, position.xid, position.position


def _event_ids(payload: bytes) -> list[UUID]:
    try:
        events, _ = envelope.decode_each(payload)
        return [UUID(event.event_id) for event in events]
    except ServiceError:
        # Not ours; the inboxes put it aside.
        return []
