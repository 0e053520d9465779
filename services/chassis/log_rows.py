"""The event log's SQL, and events as its rows: the one place that knows the columns."""

from collections.abc import Sequence

import asyncpg

from services.chassis.events import Append, LogPosition, NewEvent, RecordedEvent, Sealed

# The first event of each append decides it: it goes in where the stream stands at the expected version and nobody
# else is faster (ON CONFLICT waits for one who may be). The rest follow those that went in. Both are inserted in a
# fixed order, so that two batches never wait for each other. Scalar subqueries, because they are always index
# look-ups, whatever the planner believes about the size of the arrays. An append about somebody who was erased (by its
# first event) goes in nowhere and comes back as version 0: see chassis.erasure. Nobody ('') is never erased.
APPEND_SQL = """
WITH asked AS (
    SELECT stream_id, expected, events_count, request_id, digest, event_id, type, subject_id, occurred_at,
           key_id, nonce, payload, traceparent,
           (SELECT true FROM erased_members m
            WHERE m.member_id = a.subject_id AND a.subject_id <> '' FOR KEY SHARE) AS erased
    FROM unnest($1::text[], $2::int[], $3::int[], $4::text[], $5::bytea[], $6::uuid[], $7::text[], $8::text[],
                $9::timestamptz[], $10::text[], $11::bytea[], $12::bytea[], $13::text[])
        AS a(stream_id, expected, events_count, request_id, digest, event_id, type, subject_id, occurred_at,
             key_id, nonce, payload, traceparent)
    WHERE (request_id IS NULL OR (SELECT true FROM commands c WHERE c.request_id = a.request_id) IS NULL)
      AND (expected = 0
           OR (SELECT true FROM events e WHERE e.stream_id = a.stream_id AND e.version = a.expected))
), firsts AS (
    INSERT INTO events (epoch, event_id, stream_id, version, type, subject_id, occurred_at,
                        key_id, nonce, payload, traceparent)
    SELECT (SELECT epoch FROM log_epoch), event_id, stream_id, expected + 1, type, subject_id, occurred_at,
           key_id, nonce, payload, traceparent
    FROM asked WHERE erased IS NULL ORDER BY stream_id
    ON CONFLICT DO NOTHING
    RETURNING epoch, xid, position, stream_id, version
), rest AS (
    INSERT INTO events (epoch, event_id, stream_id, version, type, subject_id, occurred_at,
                        key_id, nonce, payload, traceparent)
    SELECT f.epoch, r.event_id, r.stream_id, r.version, r.type, r.subject_id, r.occurred_at,
           r.key_id, r.nonce, r.payload, r.traceparent
    FROM firsts f
    JOIN unnest($14::text[], $15::int[], $16::uuid[], $17::text[], $18::text[], $19::timestamptz[],
                $20::text[], $21::bytea[], $22::bytea[], $23::text[])
        AS r(stream_id, version, event_id, type, subject_id, occurred_at, key_id, nonce, payload, traceparent)
        USING (stream_id)
    ORDER BY r.stream_id, r.version
    RETURNING epoch, xid, position, stream_id, version
), noted AS (
    INSERT INTO commands (request_id, digest, stream_id, version)
    SELECT a.request_id, a.digest, a.stream_id, a.expected + a.events_count
    FROM asked a JOIN firsts f USING (stream_id)
    WHERE a.request_id IS NOT NULL ORDER BY a.request_id
)
SELECT stream_id, version, epoch, xid, position FROM firsts
UNION ALL
SELECT stream_id, version, epoch, xid, position FROM rest
UNION ALL
SELECT stream_id, 0, 0, '0'::xid8, 0 FROM asked WHERE erased
"""

# Why an append did not go in: its command was applied (by now), or who stands where its first event was to go.
LOOK_UP_SQL = """
SELECT a.ordinality, c.digest, l.version, l.epoch, l.xid, l.position,
       f.event_id, o.epoch AS own_epoch, o.xid AS own_xid, o.position AS own_position
FROM unnest($1::text[], $2::int[], $3::int[], $4::text[]) WITH ORDINALITY
    AS a(stream_id, first_version, last_version, request_id, ordinality)
LEFT JOIN commands c ON c.request_id = a.request_id
LEFT JOIN events l ON l.stream_id = c.stream_id AND l.version = c.version
LEFT JOIN events f ON f.stream_id = a.stream_id AND f.version = a.first_version
LEFT JOIN events o ON o.stream_id = a.stream_id AND o.version = a.last_version
ORDER BY a.ordinality
"""

COMMAND_SQL = """
SELECT c.digest, e.version, e.epoch, e.xid, e.position
FROM commands c JOIN events e ON e.stream_id = c.stream_id AND e.version = c.version
WHERE c.request_id = $1
"""
COMMAND_OF_SQL = "SELECT digest, stream_id FROM commands WHERE request_id = $1"
COMMAND_EXISTS_SQL = "SELECT EXISTS (SELECT FROM commands WHERE request_id = ANY($1::text[]) AND digest = $2)"

STREAM_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at,
       key_id, nonce, payload, traceparent
FROM events WHERE stream_id = $1 AND version > $2 ORDER BY version
"""

# Everything below the oldest running transaction has ended; ids of an earlier epoch ended with their cluster.
LOG_SQL = """
SELECT epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at,
       key_id, nonce, payload, traceparent
FROM events
WHERE (epoch, xid, position) > ($1, $2, $3)
  AND (epoch < (SELECT epoch FROM log_epoch) OR xid < pg_snapshot_xmin(pg_current_snapshot()))
ORDER BY epoch, xid, position LIMIT $4
"""
HEAD_SQL = """
SELECT epoch, xid, position FROM events
WHERE epoch < (SELECT epoch FROM log_epoch) OR xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY epoch DESC, xid DESC, position DESC LIMIT 1
"""


def arguments(appends: Sequence[Append]) -> list[list[object]]:
    """The columns of APPEND_SQL: each append with its first event, then the events that follow."""
    heads = [
        (append.stream_id, append.expected_version, len(append.events), append.request_id, append.request_digest)
        for append in appends
    ]
    firsts = _columns([_values(append.events[0]) for append in appends], 8)
    rest = [
        (append.stream_id, append.expected_version + number, *_values(event))
        for append in appends
        for number, event in enumerate(append.events[1:], start=2)
    ]
    return [*_columns(heads, 5), *firsts, *_columns(rest, 10)]


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _values(event: NewEvent) -> tuple[object, ...]:
    sealed = event.payload if isinstance(event.payload, Sealed) else None
    return (
        event.event_id,
        event.type,
        event.subject_id,
        event.occurred_at,
        sealed.key_id if sealed else None,
        sealed.nonce if sealed else None,
        payload_of(event),
        event.traceparent,
    )


def payload_of(event: NewEvent) -> bytes:
    """The payload's bytes, sealed or not."""
    return event.payload.ciphertext if isinstance(event.payload, Sealed) else event.payload


def recorded(row: asyncpg.Record) -> RecordedEvent:
    """The event of a row with the columns of LOG_SQL."""
    payload = row["payload"]
    return RecordedEvent(
        event_id=str(row["event_id"]),
        type=row["type"],
        payload=payload if row["key_id"] is None else Sealed(row["key_id"], row["nonce"], payload),
        occurred_at=row["occurred_at"],
        subject_id=row["subject_id"],
        traceparent=row["traceparent"],
        stream_id=row["stream_id"],
        version=row["version"],
        position=position_of(row),
    )


def position_of(row: asyncpg.Record) -> LogPosition:
    """The place of a row in the log."""
    return LogPosition(row["epoch"], row["xid"], row["position"])
