"""Events on the wire: the same after the way as before, in order, in messages of a bounded size."""

from datetime import UTC, datetime
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis import envelope
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, LogPosition, RecordedEvent, Sealed
from services.chassis.ids import uuid7

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
positions = st.builds(LogPosition, st.integers(0, 2**31 - 1), st.integers(0, 2**63), st.integers(0, 2**63 - 1))
times = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
recorded_events = st.builds(
    RecordedEvent,
    event_id=times.map(uuid7),
    type=st.sampled_from(["comity.test.v1.Granted", "comity.test.v1.Revoked"]),
    payload=st.binary(max_size=300) | st.builds(Sealed, text, st.binary(min_size=12, max_size=12), st.binary()),
    occurred_at=times,
    subject_id=st.sampled_from(["", "a" * 26, "b" * 26, "c" * 26]),
    traceparent=st.sampled_from(["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]),
    stream_id=text,
    version=st.integers(1, 2**31 - 1),
    position=positions,
)


@given(recorded_events)
def test_event_survives_the_way(event: RecordedEvent) -> None:
    """Every field arrives as it left, to the microsecond."""
    assert envelope.decode_batch(envelope.encode_batch([event])) == [event]


@given(st.lists(recorded_events, max_size=40), st.sampled_from([1, 2, 16]))
def test_pack_keeps_every_event_and_its_partitions_order(events: list[RecordedEvent], partitions_count: int) -> None:
    """Messages hold all events once; within a partition they are in commit order; a message is of one type."""
    packed = envelope.pack("source", events, partitions_count)
    for number, messages in packed.items():
        carried = [event for message in messages for event in message.events]
        assert carried == [event for event in events if envelope.partition(event, partitions_count) == number]
        for message in messages:
            assert envelope.decode_batch(message.payload) == list(message.events)
            assert {envelope.channel_of("source", event.type, number) for event in message.events} == {message.channel}
    assert sum(len(message.events) for messages in packed.values() for message in messages) == len(events)


def of_size(size: int, number: int = 0) -> RecordedEvent:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return RecordedEvent(uuid7(at), "t.T", bytes(size), at, "a" * 26, "", "s", number + 1, LogPosition(1, 1, number))


def test_messages_are_bounded() -> None:
    """Events are spread over messages of bounded size and number; one larger than that travels alone."""
    (messages,) = envelope.pack("source", [of_size(60_000, number) for number in range(10)]).values()
    assert [len(message.events) for message in messages] == [3, 3, 3, 1]
    assert all(len(message.payload) <= envelope.MESSAGE_BYTES_MAX for message in messages)
    (messages,) = envelope.pack("source", [of_size(1), of_size(500_000), of_size(1)]).values()
    assert [len(message.events) for message in messages] == [1, 1, 1]
    (messages,) = envelope.pack("source", [of_size(1, number) for number in range(1001)]).values()
    assert [len(message.events) for message in messages] == [1000, 1]


def test_message_id_is_the_same_for_the_same_events() -> None:
    """An event alone keeps its id; a batch has one of its own that depends on its events and their order."""
    first, second = of_size(1), of_size(1)
    assert envelope.message_id([first]) == first.event_id
    assert envelope.message_id([first, second]) == envelope.message_id([first, second])
    assert len({envelope.message_id(events) for events in ([first, second], [second, first], [first])}) == 3


@given(positions)
def test_watermark_survives_the_headers(position: LogPosition) -> None:
    """A watermark is read as it was written."""
    (messages,) = envelope.pack("source", [of_size(1)]).values()
    headers = envelope.headers("source", messages[0], watermark=position)
    assert envelope.watermark_of(headers) == position
    assert envelope.watermark_of(envelope.headers("source", messages[0])) is None


@pytest.mark.parametrize("value", ["", "1-2", "1-2-3-4", "a-b-c", "1--3", "1.0-2-3", "-1-2-3", "²-2-3"])
def test_watermark_that_is_none_is_none(value: str) -> None:
    """A header that somebody else wrote is not taken for a position."""
    assert envelope.watermark_of({envelope.CE_WATERMARK: value}) is None


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_header_values_are_printable_and_come_back(value: str) -> None:
    """Percent-encoded attributes are printable ASCII without space, quote or line ends."""
    encoded = envelope.percent_encode(value)
    assert unquote(encoded) == value
    assert all(0x21 <= ord(char) < 0x7F and char != '"' for char in encoded)


def test_plain_values_stay_readable() -> None:
    """What needs no encoding is not encoded (CloudEvents HTTP binding 3.1.3.2)."""
    assert envelope.percent_encode("/comity/consent?a=1&b") == "/comity/consent?a=1&b"
    assert envelope.percent_encode('Euro € 😀 "%"') == "Euro%20%E2%82%AC%20%F0%9F%98%80%20%22%25%22"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_refused(payload: bytes) -> None:
    """Bytes that are no EventBatch are INVALID, never a crash."""
    try:
        envelope.decode_batch(payload)
    except ServiceError as refusal:
        assert (refusal.kind, refusal.reason) == (Kind.INVALID, "UNDECODABLE")  # noqa: PT017


def test_unset_position_is_the_origin() -> None:
    """The wire's empty position is the log's beginning."""
    assert envelope.from_position(envelope.to_position(ORIGIN)) == ORIGIN
