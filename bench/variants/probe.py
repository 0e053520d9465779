"""A consumer whose only effect is to be counted: one row for each event it was given. Killed again and again by proofs.

Told by its arguments: its database, NATS, and the source it consumes.
"""

import asyncio
import sys
import time

import asyncpg

from services.chassis.bus import NatsBus
from services.chassis.errors import ServiceError
from services.chassis.events import RecordedEvent
from services.chassis.inbox import Subscription
from services.chassis.postgres import Connection, create_pool

# Made by the proof, beside the inbox.
EFFECTS_TABLE_SQL = "CREATE TABLE effects (event_id uuid NOT NULL)"
EFFECT_SQL = "INSERT INTO effects (event_id) SELECT unnest($1::uuid[])"
# Between effect and acknowledgement: long, so that kills fall into it.
PAUSE_S = 0.05


async def count(database_url: str, nats_url: str, source: str) -> None:
    """Consume until killed."""
    pool = await create_pool(database_url, size=4, name="probe")
    bus = await NatsBus.connect(nats_url, name="probe")
    await bus.ensure_stream(source)
    await Subscription(pool, bus, source, "probe", _effect, _linger).run()


async def _effect(connection: Connection, events: list[RecordedEvent]) -> None:
    await connection.execute(EFFECT_SQL, [event.event_id for event in events])


async def _linger(_: list[RecordedEvent]) -> None:
    await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    while True:
        # A database that was just killed is away for a moment: a probe that gave up would miss events for no fault.
        try:
            asyncio.run(count(*sys.argv[1:4]))
        # One that is just starting again says so by an error of its own, which is no OSError.
        except (ServiceError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            time.sleep(0.2)
