"""The logged decision as a message: float32 blobs and columns, no message a candidate."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import numpy as np
from comity.common.v1 import types_pb2
from comity.decision.v1 import decision_events_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.envelope import from_position, to_position
from services.chassis.events import LogPosition
from services.decision.domain.ladder import Candidates, Choice, Inputs, Slate
from services.decision.domain.layout import Floats, Subject
from services.decision.domain.record import DecisionRecord, Evidence, Versions, digest_of, float_bytes
from services.decision.domain.site import ContextFact
from services.decision.domain.vocabulary import Activation, FallbackReason, Level, Origin, Reason, StageOutcome

DECISION_MADE = pb.DecisionMade.DESCRIPTOR.full_name


def record_to_bytes(record: DecisionRecord) -> bytes:
    """The record as the log keeps it, before it is sealed."""
    return record_to_pb(record).SerializeToString()


def record_from_bytes(payload: bytes, member_id: str) -> DecisionRecord:
    """The record; *member_id* is in its envelope."""
    return record_from_pb(pb.DecisionMade.FromString(payload), member_id)


def record_to_pb(record: DecisionRecord) -> pb.DecisionMade:
    """The record as a message."""
    choice = record.choice
    return pb.DecisionMade(
        decision_id=record.decision_id,
        placement_id=record.placement_id,
        subject_id=record.subject_id,
        level=number(record.level),
        decided_at=to_timestamp(record.decided_at),
        versions=versions_to_pb(record.versions),
        assignment=pb.Assignment(holdout=record.holdout, holdout_bucket=record.holdout_bucket),
        consent=pb.ConsentBasis(
            allowed_purposes=record.allowed_purposes,
            consent_version=record.consent_version,
            do_not_personalize=record.do_not_personalize,
        ),
        context=facts_to_pb(record.context),
        inputs=_inputs_to_pb(record),
        slate=slate_to_pb(choice.slate, choice.reason),
        reason=number(choice.reason),
        fallback_reason=number(choice.fallback_reason),
        learnable=choice.learnable,
        activation=number(record.activation),
        origin=number(record.origin),
        seed_key_id=record.seed_key_id,
        budget_ms=record.budget_ms,
        request_digest=record.request_digest,
    )


def record_from_pb(message: pb.DecisionMade, member_id: str) -> DecisionRecord:
    """The record that the message holds."""
    inputs = message.inputs
    return DecisionRecord(
        decision_id=message.decision_id,
        placement_id=message.placement_id,
        subject_id=message.subject_id,
        member_id=member_id,
        level=Level(message.level),
        decided_at=from_timestamp(message.decided_at),
        versions=_versions_from_pb(message.versions),
        holdout=message.assignment.holdout,
        holdout_bucket=message.assignment.holdout_bucket,
        allowed_purposes=tuple(message.consent.allowed_purposes),
        consent_version=message.consent.consent_version,
        do_not_personalize=message.consent.do_not_personalize,
        context=facts_from_pb(message.context),
        inputs=_inputs_from_pb(inputs),
        evidence=_evidence_from_pb(inputs),
        choice=_choice_from_pb(message),
        activation=Activation(message.activation),
        origin=Origin(message.origin),
        seed_key_id=message.seed_key_id,
        budget_ms=message.budget_ms,
        request_digest=message.request_digest,
        digest=inputs.digest,
    )


def versions_to_pb(versions: Versions) -> pb.Versions:
    """The versions as a message."""
    return pb.Versions(
        model=versions.model,
        feature_set=versions.feature_set,
        consent_policy=versions.consent_policy,
        decision_policy=versions.decision_policy,
        site=versions.site,
        catalog=versions.catalog,
        item_columns=versions.item_columns,
    )


def slate_to_pb(slate: Slate, reason: Reason) -> list[pb.SlateEntry]:
    """One message an entry, in slot order."""
    columns = zip(slate.item_ids, slate.variant_ids, slate.scores, slate.propensities, strict=True)
    entry, why = pb.SlateEntry, number(reason)
    return [
        entry(slot=slot, item_id=item_id, variant_id=variant_id, score=score, propensity=propensity, reason=why)
        for slot, (item_id, variant_id, score, propensity) in enumerate(columns)
    ]


def slate_from_pb(entries: Iterable[pb.SlateEntry]) -> Slate:
    """The slate, column by column."""
    entries = list(entries)
    return Slate(
        item_ids=[entry.item_id for entry in entries],
        variant_ids=[entry.variant_id for entry in entries],
        scores=[entry.score for entry in entries],
        propensities=[entry.propensity for entry in entries],
    )


def facts_to_pb(facts: Mapping[str, ContextFact]) -> dict[str, pb.ContextFact]:
    """The facts as messages."""
    return {key: _fact_to_pb(fact) for key, fact in facts.items()}


def facts_from_pb(facts: Mapping[str, pb.ContextFact]) -> dict[str, ContextFact]:
    """The facts; one without a value is left out."""
    found: dict[str, ContextFact] = {}
    for key, fact in facts.items():
        kind = fact.WhichOneof("value")
        if kind is not None:
            found[key] = getattr(fact, kind)
    return found


def number(word: IntEnum) -> Any:
    """The word, which is its proto enum's number too (a test holds the two equal); said to the type checker alone."""
    return word


def to_timestamp(moment: datetime) -> Timestamp:
    """The aware moment as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def from_timestamp(message: Timestamp) -> datetime:
    """The moment, aware, in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def _fact_to_pb(fact: ContextFact) -> pb.ContextFact:
    if isinstance(fact, bool):
        return pb.ContextFact(boolean_value=fact)
    if isinstance(fact, str):
        return pb.ContextFact(string_value=fact)
    return pb.ContextFact(number_value=fact)


def _inputs_to_pb(record: DecisionRecord) -> pb.DecisionInputs:
    inputs, evidence = record.inputs, record.evidence
    subject = evidence.subject
    return pb.DecisionInputs(
        item_ids=inputs.candidates.item_ids,
        variant_ids=inputs.candidates.variant_ids,
        exclusions=inputs.candidates.exclusions.tolist(),
        slate_size=inputs.slate_size,
        identity=number(inputs.identity),
        consent=number(inputs.consent),
        features=number(inputs.features),
        ranker=number(inputs.ranker),
        log=number(inputs.log),
        late=inputs.late,
        subject_vector=b"" if subject is None else float_bytes(subject.vector),
        subject_states=b"" if subject is None else subject.states,
        matrix=float_bytes(inputs.matrix),
        columns_count=0 if inputs.matrix is None else inputs.matrix.shape[1],
        scores=float_bytes(inputs.scores),
        popularity=float_bytes(inputs.popularity),
        subject_position=_position(evidence.subject_position),
        columns_position=_position(evidence.columns_position),
        draw=record.choice.coin,
        digest=record.digest or digest_of(record),
    )


def _inputs_from_pb(inputs: pb.DecisionInputs) -> Inputs:
    matrix = _floats(inputs.matrix)
    return Inputs(
        candidates=Candidates(
            list(inputs.item_ids), list(inputs.variant_ids), np.array(inputs.exclusions, dtype=np.uint8)
        ),
        slate_size=inputs.slate_size,
        identity=StageOutcome(inputs.identity),
        consent=StageOutcome(inputs.consent),
        features=StageOutcome(inputs.features),
        ranker=StageOutcome(inputs.ranker),
        log=StageOutcome(inputs.log),
        late=inputs.late,
        matrix=None if matrix is None else matrix.reshape(-1, inputs.columns_count or 1),
        scores=_floats(inputs.scores),
        popularity=_floats(inputs.popularity),
    )


def _evidence_from_pb(inputs: pb.DecisionInputs) -> Evidence:
    vector = _floats(inputs.subject_vector)
    return Evidence(
        subject=None if vector is None else Subject(vector, inputs.subject_states),
        subject_position=from_position(inputs.subject_position) if inputs.HasField("subject_position") else None,
        columns_position=from_position(inputs.columns_position) if inputs.HasField("columns_position") else None,
    )


def _choice_from_pb(message: pb.DecisionMade) -> Choice:
    return Choice(
        slate=slate_from_pb(message.slate),
        reason=Reason(message.reason),
        fallback_reason=FallbackReason(message.fallback_reason),
        learnable=message.learnable,
        coin=message.inputs.draw,
    )


def _versions_from_pb(versions: pb.Versions) -> Versions:
    return Versions(
        model=versions.model,
        feature_set=versions.feature_set,
        consent_policy=versions.consent_policy,
        decision_policy=versions.decision_policy,
        site=versions.site,
        catalog=versions.catalog,
        item_columns=versions.item_columns,
    )


def _position(position: LogPosition | None) -> types_pb2.LogPosition | None:
    return None if position is None else to_position(position)


def _floats(data: bytes) -> Floats | None:
    """float32 of little endian bytes; None where there are none."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32) if data else None
