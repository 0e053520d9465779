"""Requests and answers of DecisionService, and what other services say, as messages."""

import hashlib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from datetime import UTC

import numpy as np
from comity.common.v1 import types_pb2
from comity.consent.v1 import consent_service_pb2
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as pb
from comity.features.v1 import features_service_pb2
from comity.identity.v1 import identity_service_pb2
from google.protobuf.message import Message

from services.chassis.envelope import from_position
from services.chassis.visitors import FACT_CHARACTERS_MAX, SIGNAL_CHARACTERS_MAX, bounded, identifies
from services.decision.domain.explain import Explanation
from services.decision.domain.layout import Subject
from services.decision.domain.record import DecisionRecord, Said
from services.decision.domain.replay import Replayed
from services.decision.domain.request import (
    Answer,
    Answers,
    Ask,
    Consent,
    DecideRequest,
    Identity,
    Member,
    PastDecision,
    PastResult,
    Person,
    Profile,
    Signals,
)
from services.decision.domain.site import Context
from services.decision.domain.vocabulary import Activation, FallbackReason, Level, Reason
from services.decision.wire.record import facts_from_pb, fill_slate, number, record_to_pb, to_timestamp, versions_to_pb

_OWN_SLATE = (Reason.RANKED, Reason.EXPLORED)


def digest_of(message: Message) -> bytes:
    """Content digest of a request."""
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


def identities_from_pb(identities: Iterable[types_pb2.Identity]) -> tuple[Identity, ...]:
    """The identities that can be somebody's, to be passed on."""
    return tuple((identity.namespace, identity.value) for identity in identities if identifies(identity.value))


def decide_from_pb(request: pb.DecideRequest) -> DecideRequest:
    """The request."""
    return DecideRequest(
        request_id=request.request_id,
        identities=identities_from_pb(request.identities),
        asks=tuple(
            Ask(ask.placement_id, list(ask.candidate_ids), ask.slate_size, frozenset(ask.excluded_item_ids))
            for ask in request.placements
        ),
        context=_facts_from_pb(request.context),
        signals=_signals_from_pb(request.consent_signals) if request.HasField("consent_signals") else None,
        activation=Activation(request.activation) or Activation.IMMEDIATE,
        digest=_digest_without_signals(request),
        template_version=request.template_version,
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


def _facts_from_pb(facts: Mapping[str, events_pb.ContextFact]) -> Context:
    """The facts, of texts as much as is read and kept."""
    found = facts_from_pb(facts)
    return {k: bounded(v, FACT_CHARACTERS_MAX) if isinstance(v, str) else v for k, v in found.items()}


def _digest_without_signals(request: pb.DecideRequest | pb.RecordedDecision) -> bytes:
    """Content digest of what the decision answers: a retry may bring other signals, and nothing of them is kept."""
    if not request.HasField("consent_signals"):
        return digest_of(request)
    bare = deepcopy(request)
    bare.ClearField("consent_signals")
    return digest_of(bare)


def answers_to_pb(answers: Answers) -> pb.DecideResponse:
    """The response."""
    return pb.DecideResponse(
        decisions=[_answer_to_pb(answer) for answer in answers.decisions],
        budget_ms=answers.budget_ms,
        spent_ms=answers.spent_ms,
    )


def past_from_pb(decision: pb.RecordedDecision) -> PastDecision:
    """The slate that another system showed."""
    return PastDecision(
        external_id=decision.external_id,
        subject_id=decision.subject.subject_id,
        identities=identities_from_pb(decision.subject.identities),
        placement_id=decision.placement_id,
        item_ids=list(decision.item_ids),
        decided_at=decision.decided_at.ToDatetime(tzinfo=UTC),
        propensities=list(decision.propensities),
        context=_facts_from_pb(decision.context),
        signals=_signals_from_pb(decision.consent_signals) if decision.HasField("consent_signals") else None,
        digest=_digest_without_signals(decision),
    )


def past_result_to_pb(result: PastResult) -> pb.RecordedResult:
    """What became of it."""
    return pb.RecordedResult(
        external_id=result.external_id,
        decision_id=result.decision_id,
        already_recorded=result.already_recorded,
        scores=result.scores,
        fallback_reason=number(result.fallback_reason),
        refused=result.refused,
    )


def explanation_to_pb(record: DecisionRecord, explanation: Explanation) -> pb.ExplainResponse:
    """The decision, the steps, and what would have been shown without exploration."""
    response = pb.ExplainResponse(
        decision=record_to_pb(record),
        steps=[pb.ExplanationStep(stage=step.stage, finding=step.finding) for step in explanation.steps],
    )
    fill_slate(response.without_exploration, explanation.without_exploration, Reason.RANKED)
    return response


def replayed_to_pb(replayed: Replayed) -> pb.ReplayResponse:
    """Whether the decision came out the same."""
    response = pb.ReplayResponse(identical=not replayed.differences, differences=replayed.differences)
    fill_slate(response.slate, replayed.choice.slate, replayed.choice.reason)
    return response


def resolve_query(identities: tuple[Identity, ...]) -> identity_service_pb2.ResolveQuery:
    """One question to identity."""
    return identity_service_pb2.ResolveQuery(
        identities=[types_pb2.Identity(namespace=namespace, value=value) for namespace, value in identities]
    )


def person_from_pb(resolved: identity_service_pb2.ResolvedSubject) -> Person:
    """Who it is."""
    return Person(
        subject_id=resolved.subject_id,
        member_id=resolved.member_id,
        level=Level(resolved.level),
        holdout_bucket=resolved.holdout_bucket,
        members=tuple(
            Member(member.subject_id, member.merged_at.ToDatetime(tzinfo=UTC) if member.HasField("merged_at") else None)
            for member in resolved.members
        ),
        required_purposes=frozenset(resolved.required_purposes),
    )


def evaluate_query(
    members: tuple[Member, ...], purposes: tuple[str, ...], signals: Signals | None = None
) -> consent_service_pb2.EvaluateQuery:
    """One question to consent."""
    return consent_service_pb2.EvaluateQuery(
        members=[
            types_pb2.Member(
                subject_id=member.member_id,
                merged_at=None if member.merged_at is None else to_timestamp(member.merged_at),
            )
            for member in members
        ],
        purposes=purposes,
        signals=None if signals is None else _signals_to_pb(signals),
    )


def _signals_to_pb(signals: Signals) -> types_pb2.ConsentSignals:
    return types_pb2.ConsentSignals(
        gpc=signals.gpc,
        tc_string=signals.tc_string,
        gpp=signals.gpp,
        usp=signals.usp,
        jurisdiction=signals.jurisdiction,
        do_not_personalize=signals.do_not_personalize,
    )


def consent_from_pb(evaluation: consent_service_pb2.Evaluation, policy_version: str) -> Consent:
    """What is allowed."""
    return Consent(
        allowed=frozenset(verdict.purpose for verdict in evaluation.verdicts if verdict.allowed),
        version=evaluation.consent_version,
        policy_version=policy_version,
        objected=frozenset(
            verdict.purpose
            for verdict in evaluation.verdicts
            if verdict.state == consent_service_pb2.CONSENT_STATE_OBJECTED
        ),
        said={
            verdict.purpose: Said(verdict.signal, verdict.signal_reason)
            for verdict in evaluation.verdicts
            if verdict.signal
        },
    )


def profile_from_pb(features: features_service_pb2.SubjectFeatures) -> Profile:
    """What is known of the person."""
    vector = np.frombuffer(features.vector, dtype="<f4").astype(np.float32, copy=False)
    return Profile(Subject(vector, features.states), from_position(features.position))


def _answer_to_pb(answer: Answer) -> pb.PlacementDecision:
    choice = answer.choice
    aimed_for = choice.reason in _OWN_SLATE and choice.fallback_reason is FallbackReason.UNSPECIFIED
    message = pb.PlacementDecision(
        placement_id=answer.placement_id,
        decision_id=answer.decision_id,
        reason=number(choice.reason),
        fallback_reason=number(choice.fallback_reason),
        versions=versions_to_pb(answer.versions),
        assignment=events_pb.Assignment(holdout=answer.holdout, holdout_bucket=answer.holdout_bucket),
        exposure_token=answer.exposure_token,
        learnable=answer.learnable,
        layer=number(answer.layer),
    )
    answered = message.slate if aimed_for else message.fallback
    # A slate without entries is an answer too.
    answered.SetInParent()
    fill_slate(answered.entries, choice.slate, choice.reason)
    return message
