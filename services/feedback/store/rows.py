"""Rows of the two logs as recorded events."""

import asyncpg

from services.chassis.events import LogPosition, RecordedEvent, Sealed
from services.feedback.wire import DECISION_MADE

EVENT_COLUMNS = (
    "epoch, xid, position, event_id, stream_id, version, type, subject_id, occurred_at, "
    "key_id, nonce, payload, traceparent"
)
# The joiner, as dead letters name it.
JOINER = "joiner"
DECISION_COLUMNS = "decision_id, version, event_id, member_id, decided_at, key_id, nonce, payload, epoch, xid, position"


def decision_of(row: asyncpg.Record) -> RecordedEvent:
    """A row of DECISION_COLUMNS, as the event that it came in as."""
    return RecordedEvent(
        event_id=str(row["event_id"]),
        type=DECISION_MADE,
        payload=_payload_of(row),
        occurred_at=row["decided_at"],
        subject_id=row["member_id"],
        traceparent="",
        stream_id=row["decision_id"],
        version=row["version"],
        position=position_of(row),
    )


def position_of(row: asyncpg.Record) -> LogPosition:
    """The place that epoch, xid and position say."""
    return LogPosition(row["epoch"], row["xid"], row["position"])


def _payload_of(row: asyncpg.Record) -> bytes | Sealed:
    if row["key_id"] is None:
        return bytes(row["payload"])
    return Sealed(row["key_id"], row["nonce"], row["payload"])
