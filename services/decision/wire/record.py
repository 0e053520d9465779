"""The logged decision as a message: float32 blobs and columns, no message a candidate."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from comity.common.v1 import types_pb2
from comity.decision.v1 import decision_events_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.envelope import from_position, to_position
from services.chassis.events import LogPosition
from services.decision.domain.catalog import Cut
from services.decision.domain.ladder import Candidates, Choice, Inputs, Slate
from services.decision.domain.layout import Floats, Subject
from services.decision.domain.record import DecisionRecord, Evidence, Said, Versions, digest_of, float_bytes
from services.decision.domain.site import ContextFact
from services.decision.domain.vocabulary import (
    Activation,
    Exclusion,
    FallbackReason,
    Level,
    Origin,
    Reason,
    StageOutcome,
)

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_EXCLUSION_MAX = np.iinfo(np.uint8).max
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
    message = pb.DecisionMade(
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
            signal=record.said.signal,
            signal_reason=record.said.reason,
            layer=number(record.layer),
            refused_by_signal=record.refused_by_signal,
        ),
        context=facts_to_pb(record.context),
        reason=number(choice.reason),
        fallback_reason=number(choice.fallback_reason),
        learnable=choice.learnable,
        activation=number(record.activation),
        origin=number(record.origin),
        seed_key_id=record.seed_key_id,
        budget_ms=record.budget_ms,
        request_digest=record.request_digest,
        final=record.final,
        default_also_answered=record.default_also_answered,
    )
    _fill_inputs(message.inputs, record)
    fill_slate(message.slate, choice.slate, choice.reason)
    return message


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
        said=Said(message.consent.signal, message.consent.signal_reason),
        layer=Level(message.consent.layer),
        refused_by_signal=dict(message.consent.refused_by_signal),
        digest_format=inputs.digest_format,
        final=message.final,
        default_also_answered=message.default_also_answered,
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
        semantics=versions.semantics,
        template_version=versions.template,
    )


def fill_slate(entries: "RepeatedCompositeFieldContainer[pb.SlateEntry]", slate: Slate, reason: Reason) -> None:
    """Put the slate into a message's entries, in slot order; in place: a message that is passed in is copied."""
    why, add = number(reason), entries.add
    columns = zip(slate.item_ids, slate.variant_ids, slate.scores, slate.propensities, strict=True)
    for slot, (item_id, variant_id, score, propensity) in enumerate(columns):
        entry = add()
        entry.slot = slot
        entry.item_id = item_id
        entry.variant_id = variant_id
        entry.score = score
        entry.propensity = propensity
        entry.reason = why


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


def _fill_inputs(message: pb.DecisionInputs, record: DecisionRecord) -> None:
    inputs, evidence, candidates = record.inputs, record.evidence, record.inputs.candidates
    message.item_ids.extend(candidates.item_ids)
    message.variant_ids.extend(candidates.variant_ids)
    message.exclusions.extend(candidates.exclusions.tolist())
    message.slate_size = inputs.slate_size
    message.identity = number(inputs.identity)
    message.consent = number(inputs.consent)
    message.features = number(inputs.features)
    message.ranker = number(inputs.ranker)
    message.log = number(inputs.log)
    message.late = inputs.late
    if evidence.subject is not None:
        message.subject_vector = float_bytes(evidence.subject.vector)
        message.subject_states = evidence.subject.states
    if inputs.matrix is not None:
        message.matrix = float_bytes(inputs.matrix)
        message.columns_count = inputs.matrix.shape[1]
    message.scores = float_bytes(inputs.scores)
    message.popularity = float_bytes(inputs.popularity)
    _fill_position(message.subject_position, evidence.subject_position)
    _fill_position(message.columns_position, evidence.columns_position)
    message.draw = record.choice.coin
    message.digest = record.digest or digest_of(record)
    message.digest_format = record.digest_format
    message.default_left_out.extend(inputs.default_left_out)
    message.default_exclusions.extend(map(number, inputs.default_left_out.values()))
    message.budget_too_short = inputs.budget_too_short
    if inputs.cut is not None:
        message.cut_from, message.cut_by = inputs.cut.eligible_count, inputs.cut.by


def _inputs_from_pb(inputs: pb.DecisionInputs) -> Inputs:
    matrix = _floats(inputs.matrix)
    return Inputs(
        candidates=Candidates(
            list(inputs.item_ids),
            list(inputs.variant_ids),
            # What a newer replica wrote is some exclusion, whatever its number.
            np.minimum(np.array(inputs.exclusions, dtype=np.int32), _EXCLUSION_MAX).astype(np.uint8),
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
        budget_too_short=inputs.budget_too_short,
        cut=Cut(inputs.cut_from, inputs.cut_by) if inputs.cut_from else None,
        default_left_out=dict(zip(inputs.default_left_out, map(Exclusion, inputs.default_exclusions), strict=False)),
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
        semantics=versions.semantics,
        template=versions.template_version,
    )


def _fill_position(message: types_pb2.LogPosition, position: LogPosition | None) -> None:
    if position is not None:
        message.CopyFrom(to_position(position))


def _floats(data: bytes) -> Floats | None:
    """float32 of little endian bytes; None where there are none."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32) if data else None
