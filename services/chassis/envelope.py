"""How events travel: RecordedEvent ↔ comity.common.v1.Event and EventBatch, and the CloudEvents headers beside them."""

from collections.abc import Sequence

from comity.common.v1 import events_pb2, types_pb2

from services.chassis.events import LogPosition, RecordedEvent


def channel_of(service: str, event: RecordedEvent) -> str:
    """The channel an event travels on: partition by subject, else by stream."""
    raise NotImplementedError


def to_event(event: RecordedEvent) -> events_pb2.Event:
    """The event as it lies on the wire."""
    raise NotImplementedError


def from_event(event: events_pb2.Event) -> RecordedEvent:
    """The event as it was recorded."""
    raise NotImplementedError


def encode_batch(events: Sequence[RecordedEvent]) -> bytes:
    """A message of these events, in this order."""
    raise NotImplementedError


def decode_batch(payload: bytes) -> list[RecordedEvent]:
    """The events of a message.

    Raises:
        ServiceError: INVALID (UNDECODABLE) when it is not an EventBatch.
    """
    raise NotImplementedError


def to_position(position: LogPosition) -> types_pb2.LogPosition:
    """The position on the wire."""
    raise NotImplementedError


def from_position(position: types_pb2.LogPosition) -> LogPosition:
    """The position from the wire; an unset one is ORIGIN."""
    raise NotImplementedError
