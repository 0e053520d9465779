"""Identity's protobuf messages ↔ its domain: the only place that knows both."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.identity.v1 import identity_events_pb2 as events_pb
from comity.identity.v1 import identity_service_pb2 as pb
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.visitors import SIGNAL_CHARACTERS_MAX, bounded
from services.identity.domain.facts import (
    DataKeyDestroyed,
    DataKeyMinted,
    Fact,
    IdentityLinked,
    IdentityUnlinked,
    SubjectErased,
    SubjectsMerged,
    SubjectsUnmerged,
)
from services.identity.domain.identities import NAMESPACES, Contradiction, Identity, Pseudonym
from services.identity.domain.keys import DataKey
from services.identity.domain.permission import Side, Signals, Word
from services.identity.domain.resolution import Query, Resolved, SubjectMember
from services.identity.domain.subjects import LinkNote

_SIGNAL_TEXTS = ("gpc", "tc_string", "gpp", "usp", "jurisdiction")


def query_of(message: pb.ResolveQuery | common_pb.SubjectRef) -> Query:
    """Who is meant."""
    return Query(identities_of(message.identities), message.subject_id)


def identities_of(messages: Iterable[common_pb.Identity]) -> tuple[Identity, ...]:
    """The identities presented."""
    return tuple(Identity(one.namespace, one.value) for one in messages)


def resolved(result: Resolved | Contradiction) -> pb.ResolvedSubject:
    """The answer to one query."""
    if isinstance(result, Contradiction):
        return pb.ResolvedSubject(error=result.problem, error_reason=result.reason)
    return pb.ResolvedSubject(
        subject_id=result.subject_id,
        member_id=result.member_id,
        level=int(result.level),  # type: ignore[arg-type]  # the domain's numbers are the enum's
        holdout_bucket=result.holdout_bucket,
        members=_members(result.members),
        required_purposes=result.required_purposes,
    )


def subject_link(note: LinkNote) -> pb.SubjectLink:
    """A link as a caller may see it."""
    return pb.SubjectLink(link_id=note.link_id, namespaces=note.namespaces, linked_at=_timestamp(note.linked_at))


def data_key(key: DataKey) -> pb.DataKey:
    """A data key in plain, for a service that may have it."""
    return pb.DataKey(member_id=key.member_id, key_id=key.key_id, key=key.key, destroyed=key.destroyed)


def evaluate_request(asked: Sequence[Side], purposes: Sequence[str], signals: Signals) -> consent_pb.EvaluateRequest:
    """What consent is asked about the persons whom a link would join.

    The signals are of whoever logs in, who speaks for all that they are said to be.
    """
    return consent_pb.EvaluateRequest(
        queries=[
            consent_pb.EvaluateQuery(members=_members(side), purposes=purposes, signals=_bounded(signals))
            for side in asked
        ]
    )


def _bounded(signals: Signals) -> common_pb.ConsentSignals | None:
    if signals is None:
        return None
    texts = {name: bounded(getattr(signals, name), SIGNAL_CHARACTERS_MAX) for name in _SIGNAL_TEXTS}
    return common_pb.ConsentSignals(do_not_personalize=signals.do_not_personalize, **texts)


def refusals_request(member_ids: Sequence[str]) -> consent_pb.EvaluateRequest:
    """What consent is asked about members, each for itself: everything that stands."""
    return consent_pb.EvaluateRequest(
        queries=[consent_pb.EvaluateQuery(members=[common_pb.Member(subject_id=one)]) for one in member_ids]
    )


def words_of(response: consent_pb.EvaluateResponse) -> list[Mapping[str, Word]]:
    """What each person has said, by purpose."""
    return [{one.purpose: _word(one) for one in evaluation.verdicts} for evaluation in response.evaluations]


def encode(fact: Fact) -> tuple[str, bytes]:
    """A fact's type and payload, as the log holds them."""
    message = _message(fact)
    return message.DESCRIPTOR.full_name, message.SerializeToString(deterministic=True)


def linked_member_ids(payload: bytes) -> tuple[str, ...]:
    """The members that an IdentityLinked payload names."""
    return tuple(one.member_id for one in events_pb.IdentityLinked.FromString(payload).identities)


def linked_of(payload: bytes) -> IdentityLinked:
    """An IdentityLinked payload as the fact."""
    message = events_pb.IdentityLinked.FromString(payload)
    named = (Pseudonym(NAMESPACES[one.namespace], one.identity_hash, one.member_id) for one in message.identities)
    return IdentityLinked(message.link_id, message.subject_id, tuple(named), tuple(message.gave_way_member_ids))


IDENTITY_LINKED = events_pb.IdentityLinked.DESCRIPTOR.full_name
SUBJECTS_MERGED = events_pb.SubjectsMerged.DESCRIPTOR.full_name


def _message(fact: Fact) -> Message:
    match fact:
        case IdentityLinked():
            identities = [
                events_pb.LinkedIdentity(
                    namespace=one.namespace.name, identity_hash=one.identity_hash, member_id=one.member_id
                )
                for one in fact.named
            ]
            return events_pb.IdentityLinked(
                link_id=fact.link_id,
                subject_id=fact.subject_id,
                identities=identities,
                gave_way_member_ids=fact.gave_way,
            )
        case SubjectsMerged():
            return events_pb.SubjectsMerged(
                link_id=fact.link_id,
                subject_id=fact.subject_id,
                member_ids=fact.member_ids,
                merged_at=_timestamp(fact.merged_at),
            )
        case IdentityUnlinked():
            return events_pb.IdentityUnlinked(link_id=fact.link_id)
        case SubjectsUnmerged():
            return events_pb.SubjectsUnmerged(
                link_id=fact.link_id, subject_id=fact.subject_id, member_ids=fact.member_ids
            )
        case DataKeyMinted() | DataKeyDestroyed():
            kind = events_pb.DataKeyMinted if isinstance(fact, DataKeyMinted) else events_pb.DataKeyDestroyed
            return kind(member_id=fact.member_id, key_id=fact.key_id)
        case SubjectErased():
            return events_pb.SubjectErased(erasure_id=fact.erasure_id, member_ids=fact.member_ids)


# An answer that has expired is no refusal, and neither is none at all; a word of a later release may be one.
_NOTHING = (consent_pb.CONSENT_STATE_UNSPECIFIED, consent_pb.CONSENT_STATE_EXPIRED)


def _word(verdict: consent_pb.PurposeVerdict) -> Word:
    if verdict.allowed:
        return Word.YES
    return Word.NOTHING if verdict.state in _NOTHING else Word.NO


def _members(members: Sequence[SubjectMember]) -> list[common_pb.Member]:
    return [common_pb.Member(subject_id=one.member_id, merged_at=_timestamp(one.merged_at)) for one in members]


def _timestamp(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at.astimezone(UTC))
    return stamp
