"""Requests and answers of ConsentService, and what identity is asked."""

from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import consent_service_pb2 as pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.consent.domain.commands import Identity, Person, RecordCommand, RevokeCommand, Who
from services.consent.domain.ledger import NEVER, Answer, State
from services.consent.domain.signals.decoding import RawSignals
from services.consent.domain.verdicts import Evaluation, Member, Query, Stated
from services.consent.wire.times import to_datetime, to_timestamp


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
        collected_at=to_datetime(request.collected_at) if request.HasField("collected_at") else None,
        expires_at=to_datetime(request.expires_at) if request.HasField("expires_at") else NEVER,
        source_hash=request.source_hash,
        jurisdiction=request.jurisdiction,
        do_not_personalize=request.do_not_personalize,
    )


def revoke_of(request: pb.RevokeRequest) -> RevokeCommand:
    """The command to take consent back."""
    return RevokeCommand(request.request_id, tuple(request.purposes))


def query_of(message: pb.EvaluateQuery) -> Query:
    """What is asked about whom."""
    return Query(
        tuple(
            Member(one.subject_id, to_datetime(one.merged_at) if one.HasField("merged_at") else None)
            for one in message.members
        ),
        tuple(message.purposes),
        stated_of(message.signals) if message.HasField("signals") else None,
    )


def stated_of(message: common_pb.ConsentSignals) -> Stated:
    """What the person's browser or consent platform says with the request."""
    return Stated(
        RawSignals(gpc=message.gpc, tc_string=message.tc_string, gpp=message.gpp, usp=message.usp),
        jurisdiction=message.jurisdiction,
        do_not_personalize=message.do_not_personalize,
    )


def evaluation(result: Evaluation) -> pb.Evaluation:
    """The verdicts on one query."""
    return pb.Evaluation(
        verdicts=[
            pb.PurposeVerdict(
                purpose=one.purpose,
                allowed=one.allowed,
                state=_state(one.state),
                signal=one.signal,
                signal_reason=one.signal_reason,
            )
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
        recorded_at=to_timestamp(answer.recorded_at),
        expires_at=to_timestamp(answer.expires_at),
    )
    if answer.collection is not None:
        message.collected_at.CopyFrom(to_timestamp(answer.collection.collected_at) or Timestamp())
        message.notice_version = answer.collection.notice_version
        message.notice_language = answer.collection.notice_language
        message.mechanism = answer.collection.mechanism
        message.purpose_version = answer.collection.purpose_version
        message.policy_version = answer.collection.policy_version
        message.source_hash = answer.collection.source_hash
        message.jurisdiction = answer.collection.jurisdiction
    return message


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
    if found.required_purposes:
        # Whoever presents a fingerprint can neither answer for the person nor read what they answered.
        return "is recognized without their help only: present an identity of their own, or the subject_id"
    return Person(found.subject_id, found.member_id, tuple(one.subject_id for one in found.members))


def _state(state: State) -> pb.ConsentState.ValueType:
    return int(state)  # type: ignore[return-value]  # the domain's numbers are the enum's
