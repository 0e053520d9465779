"""The declared types of behavior; what is held in memory is checked against the table at every use."""

from collections.abc import Sequence

import asyncpg

from services.chassis.alarms import Alarm, set_alarm
from services.chassis.clock import Clock
from services.chassis.dead_letters import Rows
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.feedback.domain.schemas import EventSchema, SchemaBook
from services.feedback.wire import SCHEMAS_PUBLISHED, decode_schema, encode_published, encode_schema

STREAM = "event_schemas"

NEWER_SQL = "SELECT type, schema, publication FROM event_schemas WHERE publication > $1 OR type = ANY($2::text[])"
LOCK_SQL = "LOCK TABLE event_schemas IN SHARE ROW EXCLUSIVE MODE"
PUT_SQL = """
INSERT INTO event_schemas (type, schema, publication)
SELECT declared.type, declared.schema, $3 FROM unnest($1::text[], $2::bytea[]) AS declared (type, schema)
ON CONFLICT (type) DO UPDATE SET schema = EXCLUDED.schema, publication = EXCLUDED.publication
"""


class PostgresSchemas:
    """handlers.ports.Schemas. A publication by any replica counts for the next event of every replica."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._held: SchemaBook = {}
        self._publication = 0
        self.rows = Rows(pool, "feedback", "schemas", "event_schemas", "type")

    async def book(self) -> SchemaBook:
        """See handlers.ports.Schemas: one small read, which gives nothing while nothing was published."""
        async with acquire(self._pool) as connection:
            newer, publication = await self._newer(connection, self._publication)
        # Another task may have read further meanwhile; older rows must not go over newer ones.
        if publication >= self._publication and newer:
            self._held = {**self._held, **newer}
        self._publication = max(self._publication, publication)
        set_alarm(Alarm.STORED_UNUSABLE, bool(self.rows.unread))
        return self._held

    async def publish(self, schemas: Sequence[EventSchema], *, version: str, before: SchemaBook) -> bool:
        """See handlers.ports.Schemas: the table and the fact that it changed are one transaction."""
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_SQL)
            current, publication = await self._newer(connection, 0)
            if current != before:
                return False
            now = self._clock.now()
            event = NewEvent(uuid7(now), SCHEMAS_PUBLISHED, encode_published(version, schemas), now)
            await append_in(connection, [Append(STREAM, publication, (event,))])
            types, encoded = [schema.type for schema in schemas], [encode_schema(schema) for schema in schemas]
            await connection.execute(PUT_SQL, types, encoded, publication + 1)
        return True

    async def _newer(self, connection: Connection, publication: int) -> tuple[dict[str, EventSchema], int]:
        """What was declared since, up to which publication; a type that cannot be read is as if undeclared."""
        again = self.rows.unread
        rows = await connection.fetch(NEWER_SQL, publication, [type_ for (type_,) in again])
        # A row that was mended is of its own publication, which may be an earlier one.
        newest = max([publication, *(row["publication"] for row in rows)])
        return {row["type"]: schema for row, schema in await self.rows.read(rows, _schema_of, again=again)}, newest


def _schema_of(row: asyncpg.Record) -> EventSchema:
    schema = decode_schema(row["schema"])
    if schema.type != row["type"]:
        raise ServiceError(Kind.INTERNAL, "SCHEMA_OF_OTHER_TYPE", "the row holds another type than it is named after")
    return schema
