"""Consent's protobuf messages ↔ its domain: the only place that knows both."""

from collections.abc import Iterable
from datetime import UTC, datetime

from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import consent_events_pb2 as events_pb
from comity.consent.v1 import consent_service_pb2 as pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.events import RecordedEvent
from services.consent.domain.commands import Identity, Person, RecordCommand, RevokeCommand, Who
from services.consent.domain.ledger import NEVER, Answer, Collection, State
from services.consent.domain.purposes import Policy, Purpose
from services.consent.domain.verdicts import Evaluation, Member, Query


def who_of(message: common_pb.SubjectRef) -> Who:
    """The person meant."""
    return Who(message.subject_id, tuple(Identity(one.namespace, one.value) for one in message.identities))


def record_of(request: pb.RecordRequest) -> RecordCommand:
    """The command to record answers."""
    return RecordCommand(
        request_id=request.request_id,
        answers=tuple((one.purpose, State(one.state)) for one in request.answers),
        notice_version=request.notice_version,
        notice_language=request.notice_language,
        mechanism=request.mechanism,
        collected_at=_datetime(request.collected_at) if request.HasField("collected_at") else None,
        expires_at=_datetime(request.expires_at) if request.HasField("expires_at") else NEVER,
    )


def revoke_of(request: pb.RevokeRequest) -> RevokeCommand:
    """The command to take consent back."""
    return RevokeCommand(request.request_id, tuple(request.purposes))


def query_of(message: pb.EvaluateQuery) -> Query:
    """What is asked about whom."""
    return Query(
        tuple(
            Member(one.subject_id, _datetime(one.merged_at) if one.HasField("merged_at") else None)
            for one in message.members
        ),
        tuple(message.purposes),
    )


def evaluation(result: Evaluation) -> pb.Evaluation:
    """The verdicts on one query."""
    return pb.Evaluation(
        verdicts=[
            pb.PurposeVerdict(purpose=one.purpose, allowed=one.allowed, state=_state(one.state))
            for one in result.verdicts
        ],
        consent_version=result.consent_version,
    )


def consent_record(member_id: str, answer: Answer) -> pb.ConsentRecord:
    """A fact of the ledger as a person may read it."""
    message = pb.ConsentRecord(
        subject_id=member_id,
        purpose=answer.purpose,
        state=_state(answer.state),
        consent_version=answer.version,
        recorded_at=_timestamp(answer.recorded_at),
        expires_at=_timestamp(answer.expires_at),
    )
    if answer.collection is not None:
        message.collected_at.CopyFrom(_timestamp(answer.collection.collected_at) or Timestamp())
        message.notice_version = answer.collection.notice_version
        message.notice_language = answer.collection.notice_language
        message.mechanism = answer.collection.mechanism
        message.purpose_version = answer.collection.purpose_version
        message.policy_version = answer.collection.policy_version
    return message


def purposes_of(messages: Iterable[pb.Purpose]) -> list[Purpose]:
    """The purposes declared."""
    return [
        Purpose(
            id=one.id,
            description=one.description,
            legal_basis=one.legal_basis,
            owner=one.owner,
            retention_days=one.retention_days,
            version=one.version,
        )
        for one in messages
    ]


def encode_answer(answer: Answer) -> tuple[str, bytes]:
    """An answer's type and payload, as the log holds them."""
    return _encoded(_answer_message(answer))


def decode_answer(event: RecordedEvent) -> Answer:
    """The answer that an event of a ledger holds."""
    assert isinstance(event.payload, bytes), "the ledger is not sealed"
    state, message_type = _BY_TYPE[event.type]
    message = message_type.FromString(event.payload)
    if isinstance(message, events_pb.ConsentRevoked):
        return Answer(message.purpose, state, event.version, event.occurred_at)
    expires_at = NEVER
    if isinstance(message, events_pb.ConsentGranted) and message.HasField("expires_at"):
        expires_at = _datetime(message.expires_at)
    return Answer(
        purpose=message.purpose,
        state=state,
        version=event.version,
        recorded_at=event.occurred_at,
        expires_at=expires_at,
        collection=Collection(
            collected_at=_datetime(message.collection.collected_at),
            purpose_version=message.collection.purpose_version,
            policy_version=message.collection.policy_version,
            notice_version=message.collection.notice_version,
            notice_language=message.collection.notice_language,
            mechanism=message.collection.mechanism,
        ),
    )


def encode_policy(policy: Policy) -> tuple[str, bytes]:
    """Type and payload of the fact that these are the purposes now."""
    return _encoded(events_pb.PurposesPublished(policy_version=policy.version, purposes=sorted(policy.purposes)))


def resolve_request(who: Who) -> identity_pb.ResolveRequest:
    """The question to identity: who is this?"""
    identities = [common_pb.Identity(namespace=one.namespace, value=one.value) for one in who.identities]
    return identity_pb.ResolveRequest(
        queries=[identity_pb.ResolveQuery(identities=identities, subject_id=who.subject_id)]
    )


def person_of(response: identity_pb.ResolveResponse) -> Person | str:
    """Identity's answer; a text where the identities contradict each other."""
    (found,) = response.subjects
    if found.error:
        return found.error
    return Person(found.subject_id, found.member_id, tuple(one.subject_id for one in found.members))


_BY_TYPE: dict[
    str,
    tuple[
        State,
        type[events_pb.ConsentGranted | events_pb.ConsentDenied | events_pb.ConsentObjected | events_pb.ConsentRevoked],
    ],
] = {
    events_pb.ConsentGranted.DESCRIPTOR.full_name: (State.GRANTED, events_pb.ConsentGranted),
    events_pb.ConsentDenied.DESCRIPTOR.full_name: (State.DENIED, events_pb.ConsentDenied),
    events_pb.ConsentObjected.DESCRIPTOR.full_name: (State.OBJECTED, events_pb.ConsentObjected),
    events_pb.ConsentRevoked.DESCRIPTOR.full_name: (State.REVOKED, events_pb.ConsentRevoked),
}


def _answer_message(answer: Answer) -> Message:
    if answer.state is State.REVOKED:
        return events_pb.ConsentRevoked(purpose=answer.purpose)
    assert answer.collection is not None, "only a revocation needs no notice"
    collection = events_pb.Collection(
        notice_version=answer.collection.notice_version,
        notice_language=answer.collection.notice_language,
        mechanism=answer.collection.mechanism,
        collected_at=_timestamp(answer.collection.collected_at),
        purpose_version=answer.collection.purpose_version,
        policy_version=answer.collection.policy_version,
    )
    match answer.state:
        case State.GRANTED:
            return events_pb.ConsentGranted(
                purpose=answer.purpose, collection=collection, expires_at=_timestamp(answer.expires_at)
            )
        case State.DENIED:
            return events_pb.ConsentDenied(purpose=answer.purpose, collection=collection)
        case State.OBJECTED:
            return events_pb.ConsentObjected(purpose=answer.purpose, collection=collection)
        case _:
            raise AssertionError("not an answer")


def _encoded(message: Message) -> tuple[str, bytes]:
    return message.DESCRIPTOR.full_name, message.SerializeToString(deterministic=True)


def _state(state: State) -> pb.ConsentState.ValueType:
    return int(state)  # type: ignore[return-value]  # the domain's numbers are the enum's


def _datetime(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _timestamp(at: datetime) -> Timestamp | None:
    """None for never: on the wire, no time."""
    if at == NEVER:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
