"""Protobuf ↔ domain, the only translator: what this service is sent, keeps, gives out and asks of others."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from comity.common.v1 import types_pb2
from comity.consent.v1 import consent_service_pb2 as consent_pb2
from comity.decision.v1 import decision_events_pb2 as decision_pb2
from comity.feedback.v1 import feedback_events_pb2 as events_pb2
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.identity.v1 import identity_service_pb2 as identity_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.envelope import from_position, to_position
from services.chassis.errors import FieldProblem
from services.chassis.events import ORIGIN, RecordedEvent
from services.chassis.limits import problems_of
from services.chassis.visitors import SIGNAL_CHARACTERS_MAX, bounded, identifies
from services.feedback.domain.attribution import Answer, Decided, Outcome
from services.feedback.domain.behavior import (
    Behavior,
    ConsentQuestion,
    Identity,
    Member,
    Permission,
    Person,
    PropertyValue,
    Refusal,
    Signals,
    Status,
    Subject,
    TrackedEvent,
    Verdict,
)
from services.feedback.domain.rectification import Rectification
from services.feedback.domain.replay import Kind, Place, Range, Replayed
from services.feedback.domain.schemas import EventProperty, EventSchema, PropertyKind

BEHAVIOR_RECORDED = events_pb2.BehaviorRecorded.DESCRIPTOR.full_name
OUTCOME_ATTRIBUTED = events_pb2.OutcomeAttributed.DESCRIPTOR.full_name
SCHEMAS_PUBLISHED = events_pb2.EventSchemasPublished.DESCRIPTOR.full_name
DECISION_MADE = decision_pb2.DecisionMade.DESCRIPTOR.full_name

TYPE_OF = {Kind.BEHAVIOR: BEHAVIOR_RECORDED, Kind.OUTCOME: OUTCOME_ATTRIBUTED}
KIND_OF = {name: kind for kind, name in TYPE_OF.items()}

_PROPERTY_KINDS = {
    pb.PROPERTY_KIND_STRING: PropertyKind.STRING,
    pb.PROPERTY_KIND_NUMBER: PropertyKind.NUMBER,
    pb.PROPERTY_KIND_BOOLEAN: PropertyKind.BOOLEAN,
    pb.PROPERTY_KIND_UNSPECIFIED: PropertyKind.UNKNOWN,
}
_PROPERTY_KINDS_BACK = {kind: value for value, kind in _PROPERTY_KINDS.items()}
_REPLAY_KINDS = {
    pb.REPLAY_KIND_DECISION: Kind.DECISION,
    pb.REPLAY_KIND_BEHAVIOR: Kind.BEHAVIOR,
    pb.REPLAY_KIND_OUTCOME: Kind.OUTCOME,
}
_STATUSES = {
    Status.ACCEPTED: pb.TRACK_STATUS_ACCEPTED,
    Status.DUPLICATE: pb.TRACK_STATUS_DUPLICATE,
    Status.REFUSED: pb.TRACK_STATUS_REFUSED,
    Status.DROPPED_NO_CONSENT: pb.TRACK_STATUS_DROPPED_NO_CONSENT,
    Status.ANONYMIZED: pb.TRACK_STATUS_ANONYMIZED,
}
# Labels of a counter: words that a newer consent might send do not become new ones.
_REFUSED_AS = {
    consent_pb2.CONSENT_STATE_DENIED: "DENIED",
    consent_pb2.CONSENT_STATE_REVOKED: "REVOKED",
    consent_pb2.CONSENT_STATE_EXPIRED: "EXPIRED",
    consent_pb2.CONSENT_STATE_OBJECTED: "OBJECTED",
}
_SIGNALS = frozenset({"gpc", "tc_string", "gpp", "usp", "do_not_personalize"})


# --- times -----------------------------------------------------------------------------------------------


def stamp(moment: datetime) -> Timestamp:
    """The moment on the wire."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def moment(message: Timestamp) -> datetime:
    """The moment from the wire, aware UTC; its range was checked with the request's limits."""
    return message.ToDatetime(tzinfo=UTC)


# --- Track -----------------------------------------------------------------------------------------------


def sent_from_pb(event: pb.TrackedEvent) -> TrackedEvent | Verdict:
    """An event as it was sent, or the refusal of one that breaks its declared limits."""
    problems = problems_of(event)
    if problems:
        # What stands in an id that is too long is not ours to repeat; the order of the results says which it is.
        return Verdict(event.event_id[:64], Status.REFUSED, problems[0])
    if any(value.WhichOneof("value") is None for value in event.properties.values()):
        return Verdict(
            event.event_id, Status.REFUSED, FieldProblem("properties", "holds one without a value; leave it out")
        )
    return TrackedEvent(
        event_id=event.event_id,
        type=event.type,
        person=person_from_pb(event.subject),
        occurred_at=moment(event.occurred_at) if event.HasField("occurred_at") else None,
        item_ids=tuple(event.item_ids),
        properties=properties_from_pb(event.properties),
        decision_id=event.decision_id,
        exposure_token=event.exposure_token,
        signals=_signals_from_pb(event.consent_signals) if event.HasField("consent_signals") else None,
    )


def _signals_from_pb(message: types_pb2.ConsentSignals) -> Signals:
    return Signals(
        gpc=bounded(message.gpc, SIGNAL_CHARACTERS_MAX),
        tc_string=bounded(message.tc_string, SIGNAL_CHARACTERS_MAX),
        gpp=bounded(message.gpp, SIGNAL_CHARACTERS_MAX),
        usp=bounded(message.usp, SIGNAL_CHARACTERS_MAX),
        jurisdiction=bounded(message.jurisdiction, SIGNAL_CHARACTERS_MAX),
        do_not_personalize=message.do_not_personalize,
    )


def person_from_pb(subject: types_pb2.SubjectRef) -> Person:
    """Whom a request is about."""
    return Person(
        identities=tuple(Identity(identity.namespace, identity.value) for identity in subject.identities),
        subject_id=subject.subject_id,
    )


def properties_from_pb(properties: Mapping[str, events_pb2.PropertyValue]) -> dict[str, PropertyValue]:
    """Property values, each of which is set."""
    return {name: getattr(value, str(value.WhichOneof("value"))) for name, value in properties.items()}


def verdict_to_pb(verdict: Verdict) -> pb.TrackResult:
    """The answer to one event."""
    result = pb.TrackResult(event_id=verdict.event_id, status=_STATUSES[verdict.status], reason=verdict.reason)
    if verdict.problem is not None:
        result.field = verdict.problem.field
        result.problem = verdict.problem.problem
    return result


# --- RectifyBehavior -------------------------------------------------------------------------------------


def rectification_from_pb(request: pb.RectifyBehaviorRequest) -> Rectification:
    """What is to be put right."""
    value = request.value.WhichOneof("value")
    return Rectification(
        request_id=request.request_id,
        member_ids=tuple(dict.fromkeys(request.member_ids)),
        type=request.type,
        property_name=request.property,
        value=None if value is None else getattr(request.value, str(value)),
        event_id=request.event_id,
    )


# --- what is kept ----------------------------------------------------------------------------------------


def encode_behavior(behavior: Behavior) -> bytes:
    """BehaviorRecorded, serialized."""
    message = events_pb2.BehaviorRecorded(
        type=behavior.type,
        item_ids=behavior.item_ids,
        decision_id=behavior.decision_id,
        placement_id=behavior.placement_id,
        subject_id=behavior.subject_id,
        decision_proven=behavior.decision_proven,
        digest=behavior.digest,
    )
    for name, value in behavior.properties.items():
        entry = message.properties[name]
        if isinstance(value, bool):
            entry.boolean_value = value
        elif isinstance(value, str):
            entry.string_value = value
        else:
            entry.number_value = value
    return message.SerializeToString()


def decode_behavior(plain: bytes) -> Behavior:
    """BehaviorRecorded as it is kept."""
    message = events_pb2.BehaviorRecorded.FromString(plain)
    return Behavior(
        type=message.type,
        subject_id=message.subject_id,
        item_ids=tuple(message.item_ids),
        properties=properties_from_pb(message.properties),
        decision_id=message.decision_id,
        placement_id=message.placement_id,
        decision_proven=message.decision_proven,
        digest=message.digest,
    )


def decode_answer(event: RecordedEvent, plain: bytes) -> Answer | None:
    """The behavior as an answer to the decision it names; None when it names none."""
    message = events_pb2.BehaviorRecorded.FromString(plain)
    if not message.decision_id:
        return None
    return Answer(
        behavior_id=event.event_id,
        type=message.type,
        member_id=event.subject_id,
        subject_id=message.subject_id,
        decision_id=message.decision_id,
        decision_proven=message.decision_proven,
        item_ids=tuple(message.item_ids),
        occurred_at=event.occurred_at,
        properties=properties_from_pb(message.properties),
    )


def encode_outcome(outcome: Outcome) -> bytes:
    """OutcomeAttributed, serialized."""
    return events_pb2.OutcomeAttributed(
        decision_id=outcome.decision_id,
        placement_id=outcome.placement_id,
        type=outcome.type,
        item_id=outcome.item_id,
        slot=outcome.slot,
        reward=outcome.reward,
        behavior_id=outcome.behavior_id,
        decided_at=stamp(outcome.decided_at),
    ).SerializeToString()


def decode_decided(member_id: str, plain: bytes) -> Decided:
    """What of a DecisionMade behavior is joined to."""
    message = decision_pb2.DecisionMade.FromString(plain)
    return Decided(
        decision_id=message.decision_id,
        placement_id=message.placement_id,
        member_id=member_id,
        subject_id=message.subject_id,
        decided_at=moment(message.decided_at),
        item_ids=tuple(entry.item_id for entry in sorted(message.slate, key=_slot)),
        # A recorded decision was shown by the system that made it; its exposure is that system's to track.
        # Where the default was answered, too, nobody can tell which was shown.
        immediate=message.activation == decision_pb2.ACTIVATION_IMMEDIATE
        and message.origin != decision_pb2.ORIGIN_RECORDED
        and not message.default_also_answered,
        refused_by_signal=dict(message.consent.refused_by_signal),
    )


def _slot(entry: decision_pb2.SlateEntry) -> int:
    return entry.slot


def encode_schema(schema: EventSchema) -> bytes:
    """EventSchema, serialized."""
    message = pb.EventSchema(
        type=schema.type,
        description=schema.description,
        purposes=schema.purposes,
        owner=schema.owner,
        reason=schema.reason,
        retention_days=schema.retention_days,
        item_required=schema.item_required,
        reward=schema.reward,
        anonymize_without_consent=schema.anonymize_without_consent,
        reward_property=schema.reward_property,
    )
    for entry in schema.properties:
        message.properties.add(name=entry.name, kind=_PROPERTY_KINDS_BACK[entry.kind], required=entry.required)
    return message.SerializeToString()


def decode_schema(data: bytes) -> EventSchema:
    """EventSchema from what was kept."""
    return schema_from_pb(pb.EventSchema.FromString(data))


def schema_from_pb(message: pb.EventSchema) -> EventSchema:
    """A declared type of behavior."""
    return EventSchema(
        type=message.type,
        description=message.description,
        purposes=tuple(message.purposes),
        owner=message.owner,
        reason=message.reason,
        retention_days=message.retention_days,
        item_required=message.item_required,
        properties=tuple(
            EventProperty(entry.name, _PROPERTY_KINDS.get(entry.kind, PropertyKind.UNKNOWN), entry.required)
            for entry in message.properties
        ),
        reward=message.reward,
        anonymize_without_consent=message.anonymize_without_consent,
        reward_property=message.reward_property,
    )


def encode_published(version: str, schemas: Sequence[EventSchema]) -> bytes:
    """EventSchemasPublished, serialized."""
    types = [schema.type for schema in schemas]
    return events_pb2.EventSchemasPublished(version=version, types=types).SerializeToString()


# --- ReplayEvents ----------------------------------------------------------------------------------------


def kinds_from_pb(kinds: Iterable[pb.ReplayKind.ValueType]) -> list[Kind]:
    """The kinds asked for; UNSPECIFIED names none."""
    return [_REPLAY_KINDS[kind] for kind in kinds if kind in _REPLAY_KINDS]


def range_from_pb(request: pb.ReplayEventsRequest) -> Range:
    """The range asked for."""
    return Range(
        since=moment(request.since) if request.HasField("since") else None,
        until=moment(request.until) if request.HasField("until") else None,
    )


def after_from_pb(request: pb.ReplayEventsRequest) -> Place:
    """The place to go on from; the beginning where none is given."""
    place = request.after
    return Place(
        decided_at=moment(place.decided_at) if place.HasField("decided_at") else None,
        decision_id=place.decision_id,
        position=from_position(place.position),
    )


def place_to_pb(place: Place) -> pb.ReplayPlace:
    """The place, to be given back."""
    message = pb.ReplayPlace(decision_id=place.decision_id)
    if place.decided_at is not None:
        message.decided_at.FromDatetime(place.decided_at)
    if place.position != ORIGIN:
        message.position.CopyFrom(to_position(place.position))
    return message


def placement_of(kind: Kind, plain: bytes) -> str:
    """Where a behavior was shown, or what an outcome belongs to."""
    if kind is Kind.BEHAVIOR:
        return events_pb2.BehaviorRecorded.FromString(plain).placement_id
    return events_pb2.OutcomeAttributed.FromString(plain).placement_id


class _Parsed(Protocol):
    def MergeFromString(self, serialized: bytes) -> int: ...  # noqa: N802 — protobuf's name


def add_replayed(response: pb.ReplayEventsResponse, event: Replayed) -> None:
    """Put a fact into a response; its payload is parsed in place."""
    entry = response.events.add(event_id=event.event_id, subject_id=event.member_id)
    entry.occurred_at.FromDatetime(event.occurred_at)
    entry.position.CopyFrom(to_position(event.position))
    payload: _Parsed = getattr(entry, event.kind.value)
    # An empty message would leave the oneof unset.
    payload.MergeFromString(event.payload)


# --- what is asked of others -----------------------------------------------------------------------------


def query_to_pb(person: Person) -> identity_pb2.ResolveQuery:
    """The question to identity: who is this, by the identities that can be somebody's."""
    return identity_pb2.ResolveQuery(
        identities=[
            types_pb2.Identity(namespace=identity.namespace, value=identity.value)
            for identity in person.identities
            if identifies(identity.value)
        ],
        subject_id=person.subject_id,
    )


# Identity's words for identities that are nobody's: placeholders, or a fingerprint that recognizes nobody here.
_NOBODY = frozenset({"NOBODY_NAMED", "NAMESPACE_NOT_ALLOWED"})


def subject_from_pb(message: identity_pb2.ResolvedSubject) -> Subject | FieldProblem | None:
    """Identity's answer, or why it has none; None: the identities are nobody's, which a visitor may have brought."""
    if message.error_reason in _NOBODY:
        return None
    if message.error:
        return FieldProblem("subject", message.error)
    return Subject(
        subject_id=message.subject_id,
        member_id=message.member_id,
        members=tuple(
            Member(member.subject_id, moment(member.merged_at) if member.HasField("merged_at") else None)
            for member in message.members
        ),
        required_purposes=frozenset(message.required_purposes),
    )


def consent_query_to_pb(question: ConsentQuestion) -> consent_pb2.EvaluateQuery:
    """The question to consent: which of these purposes does this person allow."""
    query = consent_pb2.EvaluateQuery(purposes=question.purposes)
    if question.signals is not None:
        query.signals.CopyFrom(_signals_to_pb(question.signals))
    for member in question.members:
        entry = query.members.add(subject_id=member.member_id)
        if member.merged_at is not None:
            entry.merged_at.FromDatetime(member.merged_at)
    return query


def _signals_to_pb(signals: Signals) -> types_pb2.ConsentSignals:
    return types_pb2.ConsentSignals(
        gpc=signals.gpc,
        tc_string=signals.tc_string,
        gpp=signals.gpp,
        usp=signals.usp,
        jurisdiction=signals.jurisdiction,
        do_not_personalize=signals.do_not_personalize,
    )


def permission_from_pb(evaluation: consent_pb2.Evaluation) -> Permission:
    """What consent's answer allows, and why not the rest."""
    return Permission(
        frozenset(verdict.purpose for verdict in evaluation.verdicts if verdict.allowed),
        {verdict.purpose: _refusal(verdict) for verdict in evaluation.verdicts if not verdict.allowed},
    )


def _refusal(verdict: consent_pb2.PurposeVerdict) -> Refusal:
    return Refusal(_REFUSED_AS.get(verdict.state, "NEVER_ASKED"), verdict.signal if verdict.signal in _SIGNALS else "")
