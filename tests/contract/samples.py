"""Events and appends for tests, every one of them new."""

import itertools
from datetime import UTC, datetime, timedelta

from services.chassis.events import Append, NewEvent, Sealed
from services.chassis.ids import uuid7

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
_numbers = itertools.count(1)


def new_event(
    payload: bytes | Sealed = b"payload", *, subject_id: str = "", type_name: str = "comity.test.v1.Happened"
) -> NewEvent:
    """An event that no other is like."""
    number = next(_numbers)
    return NewEvent(
        event_id=uuid7(START + timedelta(milliseconds=number)),
        type=type_name,
        payload=payload,
        occurred_at=START + timedelta(seconds=number, microseconds=123456),
        subject_id=subject_id,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def new_append(
    stream_id: str, expected_version: int = 0, *, count: int = 1, request_id: str | None = None, digest: bytes = b""
) -> Append:
    """An append of *count* new events."""
    events = tuple(new_event(f"{stream_id}/{number}".encode()) for number in range(count))
    return Append(stream_id, expected_version, events, request_id, digest)
