"""Facts before and after they are recorded. Pure: no clock, no dice, no I/O."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, order=True)
class LogPosition:
    """A place in one log; order is commit order.

    A sequence number alone is not enough: a transaction that took a lower number can commit later, and a
    reader that has passed it would never see it. xid is the writing transaction's id (xid8); the
    epoch comes first because xids start again when a log is restored into a new cluster.
    """

    epoch: int
    xid: int
    position: int


ORIGIN = LogPosition(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A payload encrypted with a subject's data key (chassis.sealing)."""

    key_id: str
    nonce: bytes
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A fact about to be recorded.

    Args:
        event_id: UUIDv7.
        type: full name of the payload's protobuf message.
        payload: serialized message, sealed when the message is declared personal.
        subject_id: member the fact is about; empty where it is about nobody.
        occurred_at: when it happened, aware UTC.
        traceparent: W3C trace context; empty when not sampled.
    """

    event_id: str
    type: str
    payload: bytes | Sealed
    occurred_at: datetime
    subject_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A fact as it lies in a log."""

    event_id: str
    type: str
    payload: bytes | Sealed
    occurred_at: datetime
    subject_id: str
    traceparent: str
    stream_id: str
    version: int
    position: LogPosition


@dataclass(frozen=True, slots=True)
class Append:
    """Events to put at the end of one stream: all of them, or none.

    Args:
        expected_version: version the stream stands at, 0 for a new one.
        request_id: idempotency key of the command; None where the stream id already is one.
        request_digest: digest of the command; the same id with another digest is refused.
    """

    stream_id: str
    expected_version: int
    events: tuple[NewEvent, ...]
    request_id: str | None = None
    request_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did.

    Args:
        version: version the stream stands at after it.
        position: of its last event.
        duplicate: nothing was written now: a command with this request id had been applied before.
    """

    version: int
    position: LogPosition
    duplicate: bool = False
