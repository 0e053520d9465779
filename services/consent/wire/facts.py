"""The facts of the ledger, as the log holds them."""

from comity.consent.v1 import consent_events_pb2 as events_pb
from google.protobuf.message import Message

from services.chassis.events import RecordedEvent
from services.consent.domain.ledger import NEVER, Answer, Collection, State
from services.consent.domain.policy import Policy
from services.consent.wire.times import to_datetime, to_timestamp

_Answered = events_pb.ConsentGranted | events_pb.ConsentDenied | events_pb.ConsentObjected
_Fact = _Answered | events_pb.ConsentRevoked | events_pb.ConsentExpired

_BY_TYPE: dict[str, tuple[State, type[_Fact]]] = {
    events_pb.ConsentGranted.DESCRIPTOR.full_name: (State.GRANTED, events_pb.ConsentGranted),
    events_pb.ConsentDenied.DESCRIPTOR.full_name: (State.DENIED, events_pb.ConsentDenied),
    events_pb.ConsentObjected.DESCRIPTOR.full_name: (State.OBJECTED, events_pb.ConsentObjected),
    events_pb.ConsentRevoked.DESCRIPTOR.full_name: (State.REVOKED, events_pb.ConsentRevoked),
    events_pb.ConsentExpired.DESCRIPTOR.full_name: (State.EXPIRED, events_pb.ConsentExpired),
}


def encode_answer(answer: Answer) -> tuple[str, bytes]:
    """An answer's type and payload, as the log holds them."""
    return _encoded(_answer_message(answer))


def decode_answer(event: RecordedEvent) -> Answer:
    """The answer that an event of a ledger holds."""
    assert isinstance(event.payload, bytes), "the ledger is not sealed"
    state, message_type = _BY_TYPE[event.type]
    message = message_type.FromString(event.payload)
    expires_at = NEVER
    if isinstance(message, events_pb.ConsentGranted | events_pb.ConsentExpired) and message.HasField("expires_at"):
        expires_at = to_datetime(message.expires_at)
    if isinstance(message, events_pb.ConsentRevoked | events_pb.ConsentExpired):
        return Answer(message.purpose, state, event.version, event.occurred_at, expires_at)
    return Answer(
        purpose=message.purpose,
        state=state,
        version=event.version,
        recorded_at=event.occurred_at,
        expires_at=expires_at,
        collection=Collection(
            collected_at=to_datetime(message.collection.collected_at),
            purpose_version=message.collection.purpose_version,
            policy_version=message.collection.policy_version,
            notice_version=message.collection.notice_version,
            notice_language=message.collection.notice_language,
            mechanism=message.collection.mechanism,
            source_hash=message.collection.source_hash,
            jurisdiction=message.collection.jurisdiction,
        ),
    )


def encode_policy(policy: Policy) -> tuple[str, bytes]:
    """Type and payload of the fact that these are the purposes now."""
    return _encoded(events_pb.PurposesPublished(policy_version=policy.version, purposes=sorted(policy.purposes)))


def _answer_message(answer: Answer) -> Message:
    if answer.state is State.REVOKED:
        return events_pb.ConsentRevoked(purpose=answer.purpose)
    if answer.state is State.EXPIRED:
        return events_pb.ConsentExpired(purpose=answer.purpose, expires_at=to_timestamp(answer.expires_at))
    assert answer.collection is not None, "only a revocation and an expiry were collected from nobody"
    collection = events_pb.Collection(
        notice_version=answer.collection.notice_version,
        notice_language=answer.collection.notice_language,
        mechanism=answer.collection.mechanism,
        collected_at=to_timestamp(answer.collection.collected_at),
        purpose_version=answer.collection.purpose_version,
        policy_version=answer.collection.policy_version,
        source_hash=answer.collection.source_hash,
        jurisdiction=answer.collection.jurisdiction,
    )
    match answer.state:
        case State.GRANTED:
            return events_pb.ConsentGranted(
                purpose=answer.purpose, collection=collection, expires_at=to_timestamp(answer.expires_at)
            )
        case State.DENIED:
            return events_pb.ConsentDenied(purpose=answer.purpose, collection=collection)
        case State.OBJECTED:
            return events_pb.ConsentObjected(purpose=answer.purpose, collection=collection)
        case _:
            raise AssertionError("not an answer")


def _encoded(message: Message) -> tuple[str, bytes]:
    return message.DESCRIPTOR.full_name, message.SerializeToString(deterministic=True)
