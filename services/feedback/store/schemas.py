"""The declared types of behavior; what is held in memory is checked against the table at every use."""

from collections.abc import Sequence

from services.chassis.clock import Clock
from services.chassis.dead_letters import Letter, put_aside, read_rows
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import append_in
from services.chassis.ids import uuid7
from services.chassis.postgres import Connection, Pool, acquire, transaction
from services.feedback.domain.schemas import EventSchema, SchemaBook
from services.feedback.wire import SCHEMAS_PUBLISHED, decode_schema, encode_published, encode_schema

STREAM = "event_schemas"

NEWER_SQL = "SELECT type, schema, publication FROM event_schemas WHERE publication > $1"
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

    async def book(self) -> SchemaBook:
        """See handlers.ports.Schemas: one small read, which gives nothing while nothing was published."""
        async with acquire(self._pool) as connection:
            newer, publication, letters = await _newer(connection, self._publication)
        await put_aside(self._pool, letters)
        # Another task may have read further meanwhile; older rows must not go over newer ones.
        if publication > self._publication:
            self._held = {**self._held, **newer}
            self._publication = publication
        return self._held

    async def publish(self, schemas: Sequence[EventSchema], *, version: str, before: SchemaBook) -> bool:
        """See handlers.ports.Schemas: the table and the fact that it changed are one transaction."""
        async with transaction(self._pool) as connection:
            await connection.execute(LOCK_SQL)
            current, publication, _ = await _newer(connection, 0)
            if current != before:
                return False
            now = self._clock.now()
            event = NewEvent(uuid7(now), SCHEMAS_PUBLISHED, encode_published(version, schemas), now)
            await append_in(connection, [Append(STREAM, publication, (event,))])
            types, encoded = [schema.type for schema in schemas], [encode_schema(schema) for schema in schemas]
            await connection.execute(PUT_SQL, types, encoded, publication + 1)
        return True


async def _newer(connection: Connection, publication: int) -> tuple[dict[str, EventSchema], int, list[Letter]]:
    """What was declared since, up to which publication, and what cannot be read: such a type is as if undeclared."""
    rows = await connection.fetch(NEWER_SQL, publication)
    newest = max((row["publication"] for row in rows), default=publication)
    found, letters = read_rows(
        rows, lambda row: decode_schema(row["schema"]), "feedback", "schemas", "event_schemas", "type"
    )
    return {row["type"]: schema for row, schema in found}, newest, letters
