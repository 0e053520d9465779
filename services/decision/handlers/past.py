"""RecordDecisions: slates that another system showed, with the features of their moment and our model's scores."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import numpy as np
import structlog

from services.chassis.clock import Clock
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.events import LogPosition
from services.chassis.gather import Load
from services.decision.domain.candidates import offer_of
from services.decision.domain.ladder import Candidates, Choice, Inputs, Slate, is_holdout, known_scores, score_by_column
from services.decision.domain.layers import layer_of
from services.decision.domain.layout import Floats
from services.decision.domain.plan import CompiledSite, Plan
from services.decision.domain.record import DecisionRecord, Evidence
from services.decision.domain.request import NOBODY, Consent, PastDecision, PastResult, Person, Profile
from services.decision.domain.serving import Serving
from services.decision.domain.vocabulary import Activation, Exclusion, FallbackReason, Origin, Reason, StageOutcome
from services.decision.handlers.decide import plan_of
from services.decision.handlers.draft import Keys, deciding_purposes, used_layer, versions_of
from services.decision.handlers.ports import ConsentReader, DecisionLog, FeatureReader, IdentityReader

A = TypeVar("A")
B = TypeVar("B")

# Clocks differ; what is further ahead is a mistake.
AHEAD_MAX = timedelta(minutes=5)
# Identity's words for a decision's own person, who is nobody that anything may be recorded of: no fault of the others'.
_NOT_SOMEBODY = NOBODY | {"SUBJECT_ERASED"}
# Decisions computed in one go in a thread: enough to pay for the hop, few enough to let a Decide score in between.
COMPUTED_TOGETHER = 8

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """A past decision and what is known of its person."""

    decision: PastDecision
    plan: Plan
    person: Person
    permission: Consent
    profile: Profile | None


class RecordDecisions:
    """The use case. All of a call is checked before anything is recorded; each decision is recorded once."""

    def __init__(
        self,
        *,
        serving: Callable[[], Serving],
        identity: IdentityReader,
        consent: ConsentReader,
        features: FeatureReader,
        log: DecisionLog,
        keys: Keys,
        load: Load,
        clock: Clock,
    ) -> None:
        self._serving = serving
        self._identity = identity
        self._consent = consent
        self._features = features
        self._log = log
        self._keys = keys
        self._load = load
        self._clock = clock

    async def __call__(self, decisions: Sequence[PastDecision]) -> list[PastResult]:
        """One result a decision, in that order.

        Raises:
            ServiceError: INVALID, naming the field; an outage, after which the same call may be made again: here a
                decision without its features would be worth nothing, so nothing is recorded instead.
        """
        serving = self._serving()
        site, plans = self._admit(serving, decisions)
        with self._load.active():
            found = await asyncio.gather(
                *(self._find(site, decision, plan) for decision, plan in zip(decisions, plans, strict=True))
            )
            recognized = [each for each in found if each is not None]
            records = await _aside(partial(self._compute, serving, site), recognized)
            recorded = await asyncio.gather(*map(self._record, records))
            before = [
                (each, stored)
                for each, record, (_, stored) in zip(recognized, records, recorded, strict=True)
                if stored is not None and stored.is_of_request(record)
            ]
            again = iter(await _aside(lambda each: _score_again(serving, *each), before))
            results = iter(
                [
                    _result(each, record, position, None if stored is None else next(again))
                    if stored is None or stored.is_of_request(record)
                    else _reused(each.decision)
                    for each, record, (position, stored) in zip(recognized, records, recorded, strict=True)
                ]
            )
            return [
                _unrecognized(decision) if each is None else next(results)
                for decision, each in zip(decisions, found, strict=True)
            ]

    def _admit(self, serving: Serving, decisions: Sequence[PastDecision]) -> tuple[CompiledSite, list[Plan]]:
        """The plan of each decision's placement, when all of the call can be recorded."""
        site = serving.compiled
        if site is None:
            raise ServiceError(Kind.FAILED_PRECONDITION, "SITE_NOT_APPLIED", "no site was applied yet; apply one first")
        if serving.rows is None:
            raise ServiceError(
                Kind.UNAVAILABLE, "ITEM_COLUMNS_UNAVAILABLE", "no item columns yet; see that features is up, try again"
            )
        latest = self._clock.now() + AHEAD_MAX
        plans = []
        for k, decision in enumerate(decisions):
            field = f"decisions[{k}]"
            plans.append(plan_of(site, f"{field}.placement_id", decision.placement_id))
            if len(set(decision.item_ids)) != len(decision.item_ids):
                raise invalid(f"{field}.item_ids", "holds an item twice; a slate shows each once")
            if decision.decided_at > latest:
                raise invalid(f"{field}.decided_at", "is in the future; send when the slate was shown")
            if bool(decision.subject_id) == bool(decision.identities):
                raise invalid(f"{field}.subject", "name either subject_id or identities")
            _check_propensities(field, decision)
        return site, plans

    async def _find(self, site: CompiledSite, decision: PastDecision, plan: Plan) -> _Found | None:
        """Who it was, what they allow now, and what was known of them then; None: nobody who may be recognized."""
        try:
            if decision.subject_id:
                person = await self._identity.describe(decision.subject_id)
            else:
                person = await self._identity.resolve(decision.identities)
        except ServiceError as error:
            if error.reason not in _NOT_SOMEBODY:
                raise
            return None
        needed = plan.purposes | person.required_purposes
        asked = tuple(sorted(site.layout.purposes | needed))
        permission = await self._consent.evaluate(person.members, asked, decision.signals)
        if not person.required_purposes <= permission.allowed:
            return None
        found = _Found(decision, plan, person, permission, None)
        if layer_of(plan, person.level, permission.allowed) is None:
            return found
        profile = await self._features.read(site.layout.feature_set.version, person, decision.decided_at)
        return replace(found, profile=profile)

    def _compute(self, serving: Serving, site: CompiledSite, found: _Found) -> DecisionRecord:
        """The record: the slate as given is the list of candidates, all of them eligible because they were shown."""
        decision, plan, profile, person = found.decision, found.plan, found.profile, found.person
        view = serving.views[decision.placement_id]
        offer = offer_of(view, decision.item_ids)
        context = {key: decision.context[key] for key in plan.context_keys if key in decision.context}
        allowed = found.permission.allowed
        outcome = StageOutcome.SKIPPED if profile is None else StageOutcome.OK
        matrix, scores, model, evidence, ranker = None, None, "", Evidence(), StageOutcome.SKIPPED
        if profile is not None:
            assert serving.rows is not None, "checked by _admit"
            layer = layer_of(plan, person.level, allowed)
            assert layer is not None, "checked by _find"
            subject = site.layout.permitted(profile.subject, layer.purposes)
            matrix = site.layout.assemble(serving.rows.of(offer.rows), subject, context, layer.purposes)
            position = None if serving.columns is None else serving.columns.position
            evidence = Evidence(subject, profile.position, position)
            ranker, scores, model = _score(serving, plan, matrix)
        inputs = Inputs(
            candidates=Candidates(
                offer.item_ids, offer.variant_ids, np.full(len(offer.item_ids), Exclusion.NONE, dtype=np.uint8)
            ),
            slate_size=len(offer.item_ids),
            identity=StageOutcome.OK,
            consent=StageOutcome.OK,
            features=outcome,
            ranker=ranker,
            log=StageOutcome.OK,
            matrix=matrix,
            scores=scores,
        )
        return DecisionRecord(
            decision_id=self._keys.decision_id("recorded", decision.external_id),
            placement_id=decision.placement_id,
            subject_id=person.subject_id,
            member_id=person.member_id,
            level=person.level,
            decided_at=decision.decided_at,
            versions=versions_of(serving, site, plan, found.permission, model),
            holdout=is_holdout(person.holdout_bucket, site.site.holdout_share),
            holdout_bucket=person.holdout_bucket,
            allowed_purposes=tuple(sorted(allowed)),
            consent_version=found.permission.version,
            do_not_personalize=False,
            context=context,
            inputs=inputs,
            evidence=evidence,
            choice=_choice(decision, inputs),
            activation=Activation.IMMEDIATE,
            origin=Origin.RECORDED,
            seed_key_id=self._keys.seed_id,
            budget_ms=0,
            request_digest=decision.digest,
            said=found.permission.deciding(deciding_purposes(plan, person.level, allowed)),
            layer=used_layer(plan, person.level, allowed, inputs),
        )

    async def _record(self, record: DecisionRecord) -> tuple[LogPosition, DecisionRecord | None]:
        """Put it into the log; its position there, and what was recorded before, if it was."""
        try:
            return await self._log.add(record), None
        except ServiceError as error:
            logged = await self._log.find(record.decision_id) if error.kind is Kind.CONFLICT else None
            if logged is None:
                raise
        # Also of an earlier call, whose outcome its caller may not have learned.
        return logged.position, logged.record


async def _aside(work: Callable[[A], B], each: Sequence[A]) -> list[B]:
    """What *work* gives of each, computed in a thread: a model may be too dear for the loop."""
    done: list[B] = []
    for start in range(0, len(each), COMPUTED_TOGETHER):
        part = each[start : start + COMPUTED_TOGETHER]
        done += await asyncio.to_thread(lambda part: list(map(work, part)), part)
    return done


def _result(
    found: _Found, record: DecisionRecord, position: LogPosition, again: tuple[Floats | None, FallbackReason] | None
) -> PastResult:
    """What became of the slate; *again*: the scores of what had been recorded before."""
    scores, reason = again or (record.inputs.scores, record.choice.fallback_reason)
    return PastResult(
        external_id=found.decision.external_id,
        decision_id=record.decision_id,
        already_recorded=again is not None,
        scores=() if scores is None else scores.tolist(),
        fallback_reason=reason,
        position=position,
    )


def _reused(decision: PastDecision) -> PastResult:
    """The result where another decision has this one's external id."""
    return PastResult(decision.external_id, "", False, (), FallbackReason.UNSPECIFIED, refused="EXTERNAL_ID_REUSED")


def _unrecognized(decision: PastDecision) -> PastResult:
    """The result where nothing was recorded: a slate of nobody is strings of the caller and nothing else."""
    return PastResult(decision.external_id, "", False, (), FallbackReason.NO_CONSENT)


def _check_propensities(field: str, decision: PastDecision) -> None:
    given = decision.propensities
    if given and len(given) != len(decision.item_ids):
        raise invalid(f"{field}.propensities", "must be one an item, or none at all")
    if any(not 0.0 < propensity <= 1.0 for propensity in given):
        raise invalid(f"{field}.propensities", "must lie in (0, 1]; leave them out where they are not known")


def _score(serving: Serving, plan: Plan, matrix: Floats) -> tuple[StageOutcome, Floats | None, str]:
    """How the active ranker would have scored the slate."""
    if plan.column is not None:
        return StageOutcome.OK, score_by_column(plan, matrix), ""
    ranker = serving.ranker(plan.policy.model)
    if ranker is None:
        return StageOutcome.SKIPPED, None, ""
    try:
        scores = ranker.score(matrix)
    except Exception as error:
        # As in a Decide: a model that breaks costs the scores, and the slate was shown all the same.
        _log.error("model failed", exc_info=error, stage="score")
        return StageOutcome.UNAVAILABLE, None, ""
    if not np.isfinite(scores).all():
        return StageOutcome.REFUSED, None, ""
    return StageOutcome.OK, scores, ranker.version


def _score_again(serving: Serving, found: _Found, stored: DecisionRecord) -> tuple[Floats | None, FallbackReason]:
    """The active ranker's scores of what was recorded before, by its own features, where they may still be used."""
    matrix, allowed = stored.inputs.matrix, found.permission.allowed
    if found.profile is None or matrix is None or not allowed.issuperset(stored.allowed_purposes):
        return None, FallbackReason.NO_CONSENT
    assert serving.compiled is not None, "checked by _admit"
    if stored.versions.feature_set != serving.compiled.layout.feature_set.version:
        return None, FallbackReason.MODEL_UNAVAILABLE
    _, scores, _ = _score(serving, found.plan, matrix)
    return scores, FallbackReason.UNSPECIFIED if scores is not None else FallbackReason.MODEL_UNAVAILABLE


def _choice(decision: PastDecision, inputs: Inputs) -> Choice:
    """The slate as it was shown.

    Learnable wherever its features are logged: which entry was chosen out of a shown slate is true whoever ordered it.
    An entry's propensity of 0 says that it is not known; off-policy estimates skip those.
    """
    count = len(decision.item_ids)
    slate = Slate(
        item_ids=decision.item_ids,
        variant_ids=inputs.candidates.variant_ids,
        scores=[0.0] * count if inputs.scores is None else known_scores(inputs.scores),
        propensities=list(decision.propensities) or [0.0] * count,
    )
    reason = FallbackReason.UNSPECIFIED
    if inputs.matrix is None:
        reason = FallbackReason.NO_CONSENT
    elif inputs.scores is None:
        reason = FallbackReason.MODEL_UNAVAILABLE
    return Choice(slate, Reason.UNKNOWN, reason, learnable=inputs.matrix is not None)
