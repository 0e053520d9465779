"""Times on the wire; *never* is no time there."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from services.consent.domain.ledger import NEVER


def to_datetime(stamp: Timestamp) -> datetime:
    """The moment, aware, in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def to_timestamp(at: datetime) -> Timestamp | None:
    """None for never: on the wire, no time."""
    if at == NEVER:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
