"""How events travel: RecordedEvent ↔ comity.common.v1.Event and EventBatch, and the CloudEvents headers beside them.

Headers follow the NATS binding of CloudEvents 1.0 in binary mode: attributes as `ce-*`, percent-encoded, the payload
as it is. A message's `ce-watermark` is ours: everything of its service up to there is in this message or before it.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from urllib.parse import quote
from uuid import UUID

from comity.common.v1 import events_pb2, types_pb2
from google.protobuf.message import DecodeError

from services.chassis.errors import ServiceError, invalid
from services.chassis.events import LogPosition, RecordedEvent, Sealed
from services.chassis.ids import partition_of

# Small enough to be quick to store and to retry; a single larger event travels alone.
MESSAGE_BYTES_MAX = 200 * 2**10
EVENTS_MAX = 1_000
# A consumer takes all partitions of a source, one message at a time, so that a second partition divides every message
# and gains nothing (measured: with 16 a page of few events was sixteen messages, each a transaction of every consumer).
# Where one consumer is outgrown, more of them let each worker own some; at most as many as ids.partition_of has.
PARTITIONS_COUNT = 1

CE_ID = "ce-id"
CE_SOURCE = "ce-source"
CE_TYPE = "ce-type"
CE_SPECVERSION = "ce-specversion"
CE_WATERMARK = "ce-watermark"
CONTENT_TYPE = "content-type"
TRACEPARENT = "traceparent"

# What a channel can be named after; a type of another shape is none of ours.
_TYPE = re.compile(r"[A-Za-z0-9_.]*[A-Za-z0-9_]")
_TRACEPARENT = re.compile(r"[0-9a-f-]{55}")
# What integer, xid8 and bigint hold.
_POSITION_MAX = (2**31 - 1, 2**64 - 1, 2**63 - 1)
# Printable ASCII travels as it is, but for space, quote and percent (CloudEvents HTTP binding, 3.1.3.2).
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


@dataclass(frozen=True, slots=True)
class OutMessage:
    """A message about to be published: events of one type and one partition, in commit order."""

    channel: str
    message_id: str
    events: tuple[RecordedEvent, ...]
    payload: bytes


def partition(event: RecordedEvent, partitions_count: int) -> int:
    """The partition an event travels in: by subject, or by stream where it is about nobody."""
    return partition_of(event.subject_id or event.stream_id) % partitions_count


def channel_of(service: str, event_type: str, number: int) -> str:
    """The channel that events of a type travel on in a partition."""
    return f"ev.v1.{number}.{service}.{event_type.rpartition('.')[2]}"


def sift(events: Sequence[RecordedEvent]) -> tuple[list[RecordedEvent], list[RecordedEvent]]:
    """Those that can be published, and those that no channel or message can hold."""
    fit: list[RecordedEvent] = []
    unfit: list[RecordedEvent] = []
    for event in events:
        (fit if _can_travel(event) else unfit).append(event)
    return fit, unfit


def _can_travel(event: RecordedEvent) -> bool:
    try:
        to_event(event)
    except (ValueError, TypeError, OverflowError):
        return False
    return _TYPE.fullmatch(event.type) is not None and "\x00" not in event.type


def pack(
    service: str, events: Sequence[RecordedEvent], partitions_count: int = PARTITIONS_COUNT
) -> dict[int, list[OutMessage]]:
    """The messages for these events by partition, each partition's in the order they must be stored.

    A partition's events stay in commit order across types: a message ends where the type changes, so a grant never
    overtakes the revocation before it.
    """
    by_partition: dict[int, list[RecordedEvent]] = {}
    for event in events:
        by_partition.setdefault(partition(event, partitions_count), []).append(event)
    return {number: list(_messages(service, number, among)) for number, among in by_partition.items()}


def _messages(service: str, number: int, events: Sequence[RecordedEvent]) -> Iterator[OutMessage]:
    run: list[RecordedEvent] = []
    parts: list[bytes] = []
    size = 0
    for event in events:
        part = _field(to_event(event))
        if run and (event.type != run[0].type or size + len(part) > MESSAGE_BYTES_MAX or len(run) == EVENTS_MAX):
            yield _message(service, number, run, parts)
            run, parts, size = [], [], 0
        run.append(event)
        parts.append(part)
        size += len(part)
    if run:
        yield _message(service, number, run, parts)


def _message(service: str, number: int, events: Sequence[RecordedEvent], parts: Sequence[bytes]) -> OutMessage:
    return OutMessage(channel_of(service, events[0].type, number), message_id(events), tuple(events), b"".join(parts))


def _field(event: events_pb2.Event) -> bytes:
    """An EventBatch of one; batches are joined by joining bytes, so an event is serialized once."""
    return events_pb2.EventBatch(events=(event,)).SerializeToString()


def message_id(events: Sequence[RecordedEvent]) -> str:
    """The same for the same events: the event's own id, or a hash of the ids of all."""
    if len(events) == 1:
        return events[0].event_id
    return hashlib.sha256("".join(event.event_id for event in events).encode()).hexdigest()[:32]


def headers(service: str, message: OutMessage, *, watermark: LogPosition | None = None) -> dict[str, str]:
    """The CloudEvents headers of a message; the trace context is that of its first sampled event."""
    found = {
        CE_SPECVERSION: "1.0",
        CE_ID: percent_encode(message.message_id),
        CE_SOURCE: percent_encode(f"/comity/{service}"),
        CE_TYPE: percent_encode(message.events[0].type),
        CONTENT_TYPE: "application/protobuf",
    }
    # Anything else would end the header, and the message with it.
    traceparents = (event.traceparent for event in message.events if _TRACEPARENT.fullmatch(event.traceparent))
    traceparent = next(traceparents, "")
    if traceparent:
        found[TRACEPARENT] = traceparent
    if watermark is not None:
        found[CE_WATERMARK] = f"{watermark.epoch}-{watermark.xid}-{watermark.position}"
    return found


def watermark_of(message_headers: Mapping[str, str]) -> LogPosition | None:
    """The watermark of a message that carries one."""
    value = message_headers.get(CE_WATERMARK, "")
    numbers = value.split("-")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        return None
    position = LogPosition(*map(int, numbers))
    return position if _is_position(position) else None


def _is_position(position: LogPosition) -> bool:
    """Whether a log can have such a place."""
    numbers = (position.epoch, position.xid, position.position)
    return all(number <= most for number, most in zip(numbers, _POSITION_MAX, strict=True))


def percent_encode(value: str) -> str:
    """An attribute's value as a header may hold it."""
    return quote(value, safe=_SAFE)


def to_event(event: RecordedEvent) -> events_pb2.Event:
    """The event as it lies on the wire."""
    message = events_pb2.Event(
        event_id=event.event_id,
        type=event.type,
        stream_id=event.stream_id,
        version=event.version,
        subject_id=event.subject_id,
        position=to_position(event.position),
        traceparent=event.traceparent,
    )
    message.occurred_at.FromDatetime(event.occurred_at)
    if isinstance(event.payload, Sealed):
        message.sealed.key_id = event.payload.key_id
        message.sealed.nonce = event.payload.nonce
        message.sealed.ciphertext = event.payload.ciphertext
    else:
        message.plain = event.payload
    return message


def from_event(event: events_pb2.Event) -> RecordedEvent:
    """The event as it was recorded."""
    payload: bytes | Sealed = event.plain
    if event.WhichOneof("payload") == "sealed":
        payload = Sealed(event.sealed.key_id, event.sealed.nonce, event.sealed.ciphertext)
    return RecordedEvent(
        event_id=event.event_id,
        type=event.type,
        payload=payload,
        occurred_at=event.occurred_at.ToDatetime(tzinfo=UTC),
        subject_id=event.subject_id,
        traceparent=event.traceparent,
        stream_id=event.stream_id,
        version=event.version,
        position=from_position(event.position),
    )


def encode_batch(events: Sequence[RecordedEvent]) -> bytes:
    """A message of these events, in this order."""
    return events_pb2.EventBatch(events=[to_event(event) for event in events]).SerializeToString()


def decode_batch(payload: bytes) -> list[RecordedEvent]:
    """The events of a message.

    Raises:
        ServiceError: INVALID (UNDECODABLE) when it is not an EventBatch.
    """
    try:
        return [from_event(event) for event in events_pb2.EventBatch.FromString(payload).events]
    except (DecodeError, ValueError, OverflowError) as error:
        # A timestamp out of range is a ValueError or OverflowError.
        raise undecodable() from error


def decode_each(payload: bytes) -> tuple[list[RecordedEvent], list[bytes]]:
    """The events of a message, and those of them that cannot be read, each as a message of its own.

    Raises:
        ServiceError: INVALID (UNDECODABLE) when it is not an EventBatch.
    """
    try:
        batch = events_pb2.EventBatch.FromString(payload)
    except DecodeError as error:
        raise undecodable() from error
    read: list[RecordedEvent] = []
    unread: list[bytes] = []
    for event in batch.events:
        try:
            read.append(_sound(from_event(event)))
        except (ValueError, OverflowError):
            unread.append(_field(event))
    return read, unread


def _sound(event: RecordedEvent) -> RecordedEvent:
    """The event, whose name, place and texts a database can hold.

    Raises:
        ValueError: it cannot.
    """
    UUID(event.event_id)
    if "\x00" in event.type + event.subject_id + event.stream_id or not _is_position(event.position):
        raise ValueError("no database holds this")
    return event


def undecodable() -> ServiceError:
    """The refusal of bytes that are no EventBatch."""
    return invalid("payload", "it is not a comity.common.v1.EventBatch", reason="UNDECODABLE")


def to_position(position: LogPosition) -> types_pb2.LogPosition:
    """The position on the wire."""
    return types_pb2.LogPosition(epoch=position.epoch, xid=position.xid, position=position.position)


def from_position(position: types_pb2.LogPosition) -> LogPosition:
    """The position from the wire; an unset one is ORIGIN."""
    return LogPosition(position.epoch, position.xid, position.position)
