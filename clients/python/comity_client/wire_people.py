"""Protobuf ↔ dataclasses of what is said about people: links, consent."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from google.protobuf.timestamp_pb2 import Timestamp

from comity_client.errors import FieldError
from comity_client.incoming import entry, id_of, identities_of, signals_of, texts_of
from comity_client.results import (
    ConsentChange,
    ConsentHistory,
    ConsentRecord,
    ConsentSignals,
    ConsentState,
    Identified,
    PeopleStatus,
)
from comity_client.transport import Outcome
from comity_client.wire import moment_of, word, writable

# What a person can answer; the other states follow.
_ANSWERS = {
    True: consent_pb.CONSENT_STATE_GRANTED,
    False: consent_pb.CONSENT_STATE_DENIED,
    "GRANTED": consent_pb.CONSENT_STATE_GRANTED,
    "DENIED": consent_pb.CONSENT_STATE_DENIED,
    "OBJECTED": consent_pb.CONSENT_STATE_OBJECTED,
}


def subject_of(identities: Mapping[str, str | None] | None, subject_id: str) -> types_pb.SubjectRef:
    """The person a call is about.

    Raises:
        FieldError: a value cannot be sent.
    """
    subject_id = writable("subject_id", subject_id)
    return types_pb.SubjectRef(
        subject_id=subject_id, identities=identities_of({} if identities is None else identities)
    )


def link_request(
    request_id: str, identities: Mapping[str, str | None], signals: ConsentSignals | None
) -> identity_pb.LinkRequest:
    """The request to link.

    Raises:
        FieldError: a value cannot be sent.
    """
    return identity_pb.LinkRequest(
        request_id=id_of("request_id", request_id),
        identities=identities_of(identities),
        consent_signals=signals_of(signals),
    )


def identified_of(outcome: Outcome, *, request_id: str) -> Identified:
    """What became of a link."""
    answer = outcome.answer
    if not isinstance(answer, identity_pb.LinkResponse) or not answer.link_id:
        return Identified(request_id, *_ended(outcome))
    return Identified(
        request_id=request_id,
        status="DONE",
        merged=answer.merged,
        link_id=answer.link_id,
        subject_id=answer.subject.subject_id,
        gave_way_count=len(answer.gave_way_member_ids),
    )


def record_request(
    request_id: str,
    subject: types_pb.SubjectRef,
    answers: Mapping[str, ConsentState | bool],
    *,
    notice_version: str = "",
    notice_language: str = "",
    mechanism: str = "",
    collected_at: datetime | None = None,
    expires_at: datetime | None = None,
    source_hash: str = "",
    jurisdiction: str = "",
    do_not_personalize: bool = False,
) -> consent_pb.RecordRequest:
    """The request to record answers.

    Raises:
        FieldError: a value cannot be sent.
    """
    if not isinstance(answers, Mapping):
        raise FieldError("answers", f"must map purposes to answers, not be {type(answers).__name__}")
    return consent_pb.RecordRequest(
        request_id=id_of("request_id", request_id),
        subject=subject,
        answers=[_answer(purpose, state) for purpose, state in answers.items()],
        notice_version=writable("notice_version", notice_version),
        notice_language=writable("notice_language", notice_language),
        mechanism=writable("mechanism", mechanism),
        collected_at=None if collected_at is None else moment_of("collected_at", collected_at),
        expires_at=None if expires_at is None else moment_of("expires_at", expires_at),
        source_hash=writable("source_hash", source_hash),
        jurisdiction=writable("jurisdiction", jurisdiction),
        do_not_personalize=do_not_personalize,
    )


def _answer(purpose: str, state: object) -> consent_pb.PurposeAnswer:
    known = _ANSWERS.get(state) if isinstance(state, bool | str) else None
    if known is None:
        raise FieldError(entry("answers", purpose), "must be GRANTED, DENIED, OBJECTED, True or False")
    return consent_pb.PurposeAnswer(purpose=writable("answers", purpose), state=known)


def revoke_request(request_id: str, subject: types_pb.SubjectRef, purposes: Sequence[str]) -> consent_pb.RevokeRequest:
    """The request to take consent back.

    Raises:
        FieldError: a value cannot be sent.
    """
    return consent_pb.RevokeRequest(
        request_id=id_of("request_id", request_id),
        subject=subject,
        purposes=[writable("purposes", one) for one in texts_of("purposes", purposes)],
    )


def change_of(outcome: Outcome, *, request_id: str) -> ConsentChange:
    """What became of an answer."""
    answer = outcome.answer
    if not isinstance(answer, consent_pb.RecordResponse | consent_pb.RevokeResponse) or not answer.subject_id:
        return ConsentChange(request_id, *_ended(outcome))
    return ConsentChange(
        request_id=request_id,
        status="DONE",
        subject_id=answer.subject_id,
        consent_version=answer.consent_version,
        purposes=tuple(answer.purposes) if isinstance(answer, consent_pb.RevokeResponse) else (),
    )


def history_request(subject: types_pb.SubjectRef, accessor: str, reason: str) -> consent_pb.HistoryRequest:
    """The request to read what a person answered.

    Raises:
        FieldError: a value cannot be sent.
    """
    access = types_pb.Access(accessor=writable("accessor", accessor), reason=writable("reason", reason))
    return consent_pb.HistoryRequest(subject=subject, access=access)


def history_of(outcome: Outcome) -> ConsentHistory:
    """What a person answered."""
    if not isinstance(outcome.answer, consent_pb.HistoryResponse):
        return ConsentHistory(*_ended(outcome))
    return ConsentHistory(status="DONE", records=tuple(_record(one) for one in outcome.answer.records))


def _record(one: consent_pb.ConsentRecord) -> ConsentRecord:
    return ConsentRecord(
        purpose=one.purpose,
        state=word(consent_pb.ConsentState.DESCRIPTOR, one.state),
        consent_version=one.consent_version,
        recorded_at=one.recorded_at.ToDatetime(tzinfo=UTC),
        collected_at=_moment(one.collected_at) if one.HasField("collected_at") else None,
        expires_at=_moment(one.expires_at) if one.HasField("expires_at") else None,
        notice_version=one.notice_version,
        notice_language=one.notice_language,
        mechanism=one.mechanism,
        jurisdiction=one.jurisdiction,
        purpose_version=one.purpose_version,
        policy_version=one.policy_version,
        source_hash=one.source_hash,
    )


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _ended(outcome: Outcome) -> tuple[PeopleStatus, str, str, str]:
    """Status, reason, problem and cause of a call about people that has no answer."""
    if outcome.refusal is None:
        return "NOT_DELIVERED", "", outcome.why or "CLIENT_INVALID_ANSWER", outcome.cause
    return "REFUSED", outcome.refusal.reason, str(outcome.refusal), ""
