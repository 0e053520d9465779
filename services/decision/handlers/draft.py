"""From what is known to a decision for one placement: eligible, assembled, scored, drawn; not recorded yet."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from services.chassis.ids import content_hash
from services.decision.domain.candidates import Offer, left_out, offer_of, screen
from services.decision.domain.catalog import PlacementView
from services.decision.domain.exploration import seed_of
from services.decision.domain.ladder import (
    Candidates,
    Choice,
    Facts,
    Inputs,
    Kind,
    audience_of,
    choose,
    is_holdout,
    overloaded,
    rung_of,
    score_by_column,
)
from services.decision.domain.layers import layer_of
from services.decision.domain.plan import CompiledSite, Plan
from services.decision.domain.record import DecisionRecord, Evidence, Versions, of_nobody
from services.decision.domain.request import Ask, Consent, DecideRequest, Person
from services.decision.domain.rules import Scope
from services.decision.domain.serving import Serving
from services.decision.domain.site import Context
from services.decision.domain.vocabulary import Level, Origin, StageOutcome
from services.decision.handlers.people import Known
from services.decision.handlers.scoring import Scoring
from services.decision.handlers.stages import SCORED_BY, Budget, is_too_short

# In the place of a signal's name: there were some, and consent did not answer.
UNREAD = "unread"
_NOBODY = Person("", "", Level.UNSPECIFIED, 0, ())
_NO_CANDIDATES = Candidates((), (), np.zeros(0, np.uint8))


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of the decision service.

    Args:
        seed: draws and decision ids are HMACs under it.
        token: exposure tokens are signed with it.
    """

    seed: bytes
    token: bytes

    @property
    def seed_id(self) -> str:
        """Names the seed key without telling it."""
        return content_hash(hmac.digest(self.seed, b"seed key id", "sha256"))

    def decision_id(self, *names: str) -> str:
        """32 hex digits that only a holder of the key can derive."""
        return hmac.digest(self.seed, "\0".join(names).encode(), "sha256")[:16].hex()

    def keyed(self, request_digest: bytes) -> bytes:
        """The digest as it is kept of nobody's request."""
        return hmac.digest(self.seed, b"request\0" + request_digest, "sha256")


@dataclass(frozen=True, slots=True)
class Call:
    """One Decide while it runs: what it decides with, for whom, and until when."""

    request: DecideRequest
    serving: Serving
    site: CompiledSite
    budget: Budget
    now: datetime
    known: Known


@dataclass(frozen=True, slots=True)
class Draft:
    """A decision that was made and is not in the log yet."""

    plan: Plan
    facts: Facts
    record: DecisionRecord


@dataclass(frozen=True, slots=True)
class _Computed:
    """Inputs that are complete, and what they stand on."""

    inputs: Inputs
    evidence: Evidence
    model: str = ""


class Drafting:
    """Makes decisions."""

    def __init__(self, scoring: Scoring, keys: Keys) -> None:
        self._scoring = scoring
        self._keys = keys
        self._seed_id = keys.seed_id

    async def draft(self, call: Call, ask: Ask, plan: Plan, shown: set[str]) -> Draft:
        """The decision for one placement; *shown*: items that earlier placements of the call show."""
        request, serving, known = call.request, call.serving, call.known
        context = {key: request.context[key] for key in plan.context_keys if key in request.context}
        facts = _facts(call, plan, context)
        view = serving.views[ask.placement_id]
        offer, default = _offer(call, ask, view), serving.defaults[ask.placement_id]
        excluded = ask.excluded_item_ids
        exclusions = screen(plan, view, offer, context, excluded=excluded, shown=shown)
        inputs = Inputs(
            candidates=Candidates(offer.item_ids, offer.variant_ids, exclusions),
            slate_size=ask.slate_size or plan.placement.slate_size,
            identity=known.identity,
            consent=known.consent,
            features=_features_outcome(call),
            log=StageOutcome.OK,
            cut=offer.cut,
            budget_too_short=known.budget_too_short,
            default_left_out=left_out(plan, view, default, context, excluded=excluded, shown=shown),
        )
        computed = await self._compute(call, plan, facts, inputs, offer, context)
        record = self._record(call, plan, facts, computed, context)
        if known.person is None:
            record = of_nobody(record)
        return Draft(plan, facts, record)

    async def _compute(
        self, call: Call, plan: Plan, facts: Facts, inputs: Inputs, offer: Offer, context: Context
    ) -> _Computed:
        """Whatever the rung that answers needs, and nothing of the profile where it may not be used."""
        rung = rung_of(plan, facts, inputs)
        computed = _Computed(inputs, Evidence())
        if rung.kind is Kind.RANKED:
            computed = await self._score(call, plan, facts, inputs, offer, context)
            rung = rung_of(plan, facts, computed.inputs)
        rows = call.serving.rows
        if rung.kind in (Kind.POPULAR, Kind.COLD) and rows is not None:
            popularity = rows.values(offer.rows[inputs.candidates.eligible], plan.popular_offset)
            return replace(computed, inputs=replace(computed.inputs, popularity=popularity))
        return computed

    async def _score(
        self, call: Call, plan: Plan, facts: Facts, inputs: Inputs, offer: Offer, context: Context
    ) -> _Computed:
        """The model's input, and the scores if it can give them in time."""
        serving, profile, layout = call.serving, call.known.profile, call.site.layout
        assert serving.rows is not None, "features are OK"
        assert serving.columns is not None, "rows come from columns"
        assert profile is not None, "features are OK"
        rows = serving.rows.of(offer.rows[inputs.candidates.eligible])
        layer = layer_of(plan, facts.level, facts.allowed)
        assert layer is not None, "consent allows it"
        subject = layout.permitted(profile.subject, layer.purposes)
        matrix = layout.assemble(rows, subject, context, layer.purposes)
        evidence = Evidence(subject, profile.position, serving.columns.position)
        if plan.column is not None:
            scores = score_by_column(plan, matrix)
            return _Computed(replace(inputs, ranker=StageOutcome.OK, matrix=matrix, scores=scores), evidence)
        ranker = serving.ranker(plan.policy.model)
        if ranker is None:
            return _Computed(replace(inputs, ranker=StageOutcome.SKIPPED, matrix=matrix), evidence)
        until_s = call.budget.at(SCORED_BY)
        too_short = is_too_short(until_s)
        outcome, found = await self._scoring.score(ranker, matrix, until_s)
        too_short = inputs.budget_too_short or (too_short and outcome is StageOutcome.LATE)
        scored = replace(inputs, ranker=outcome, matrix=matrix, scores=found, budget_too_short=too_short)
        return _Computed(scored, evidence, ranker.version)

    def _record(self, call: Call, plan: Plan, facts: Facts, computed: _Computed, context: Context) -> DecisionRecord:
        request, known, placement_id = call.request, call.known, plan.placement.id
        person = known.person or _NOBODY
        decision_id = self._keys.decision_id("decision", request.request_id, placement_id)
        return DecisionRecord(
            decision_id=decision_id,
            placement_id=placement_id,
            subject_id=person.subject_id,
            member_id=person.member_id,
            level=facts.level,
            decided_at=call.now,
            versions=versions_of(
                call.serving, call.site, plan, known.permission, computed.model, request.template_version
            ),
            holdout=facts.holdout,
            holdout_bucket=person.holdout_bucket,
            allowed_purposes=tuple(sorted(facts.allowed)),
            consent_version=0 if known.permission is None else known.permission.version,
            do_not_personalize=facts.do_not_personalize,
            context=context,
            inputs=computed.inputs,
            evidence=computed.evidence,
            choice=choose(plan, facts, computed.inputs, seed_of(self._keys.seed, decision_id)),
            activation=request.activation,
            origin=Origin.SERVED,
            seed_key_id=self._seed_id,
            budget_ms=int(call.budget.seconds * 1000),
            request_digest=request.digest,
            twin_digest=self._keys.keyed(request.digest),
            said=known.deciding(deciding_purposes(plan, facts.level, facts.allowed)),
            layer=used_layer(plan, facts.level, facts.allowed, computed.inputs),
            refused_by_signal=_refused_by_signal(call),
        )


def choose_overloaded(serving: Serving, request: DecideRequest, ask: Ask, plan: Plan, shown: set[str]) -> Choice:
    """The answer where the person is not asked about; it keeps to every exclusion. Nothing of it is recorded.

    Popular only where that is allowed without consent, and costs no rule an evaluation for each candidate.
    """
    context = {key: request.context[key] for key in plan.context_keys if key in request.context}
    view, excluded = serving.views[ask.placement_id], ask.excluded_item_ids
    default, rule = serving.defaults[ask.placement_id], plan.eligibility
    inputs = Inputs(
        candidates=_NO_CANDIDATES,
        slate_size=ask.slate_size or plan.placement.slate_size,
        default_left_out=left_out(plan, view, default, context, excluded=excluded, shown=shown),
    )
    is_cheap = rule is None or rule.scope is not Scope.BOTH
    if plan.placement.popular_without_consent and is_cheap and serving.rows is not None:
        offer = offer_of(view, ask.candidate_ids) if ask.candidate_ids else serving.offers[ask.placement_id]
        exclusions = screen(plan, view, offer, context, excluded=excluded, shown=shown)
        candidates = Candidates(offer.item_ids, offer.variant_ids, exclusions)
        popularity = serving.rows.values(offer.rows[candidates.eligible], plan.popular_offset)
        inputs = replace(inputs, candidates=candidates, popularity=popularity)
    return overloaded(plan, inputs)


def _offer(call: Call, ask: Ask, view: PlacementView) -> Offer:
    """What is chosen from. Nobody's candidates are kept nowhere (of_nobody), so nothing is chosen from them."""
    if not ask.candidate_ids:
        return call.serving.offers[ask.placement_id]
    return offer_of(view, () if call.known.person is None else ask.candidate_ids)


def versions_of(
    serving: Serving, site: CompiledSite, plan: Plan, permission: Consent | None, model: str, template: str = ""
) -> Versions:
    """What a decision of this plan is made with."""
    return Versions(
        model=model,
        feature_set=site.layout.feature_set.version,
        consent_policy=site.site.consent_policy_version if permission is None else permission.policy_version,
        decision_policy=plan.policy.version,
        site=site.site.version,
        catalog=str(serving.catalog.version),
        item_columns="" if serving.columns is None else serving.columns.version,
        template=template,
    )


def deciding_purposes(plan: Plan, level: Level, allowed: frozenset[str]) -> frozenset[str]:
    """The purposes that a signal decided about, if one did: the used layer's, or all where nothing may be used."""
    layer = layer_of(plan, level, allowed) if plan.layers else None
    return plan.purposes if layer is None else layer.purposes


def used_layer(plan: Plan, level: Level, allowed: frozenset[str], inputs: Inputs) -> Level:
    """The layer that the inputs were made from; UNSPECIFIED where nothing of the person was."""
    layer = None if inputs.matrix is None else layer_of(plan, level, allowed)
    return Level.UNSPECIFIED if layer is None else layer.level


def _refused_by_signal(call: Call) -> Mapping[str, str]:
    """What the signals of the request refused; where there are some and nobody judged them: all that exposures need."""
    if call.request.signals is None:
        return {}
    if call.known.consent is not StageOutcome.OK:
        return dict.fromkeys(sorted(call.site.site.exposure_purposes), UNREAD)
    return call.known.refused_by_signal


def _facts(call: Call, plan: Plan, context: Context) -> Facts:
    known, person = call.known, call.known.person
    level = Level.UNSPECIFIED if person is None else person.level
    # An objection leaves the layers that need nothing of what is objected to.
    is_refused = layer_of(plan, level, known.allowed) is None
    return Facts(
        do_not_personalize=is_refused and known.objects_to(plan.purposes - known.allowed),
        level=level,
        allowed=known.allowed,
        holdout=person is not None and is_holdout(person.holdout_bucket, call.site.site.holdout_share),
        audience=audience_of(plan, context, level),
    )


def _features_outcome(call: Call) -> StageOutcome:
    """Features are there when the person's vector, of the width that the layout reads, and the items' rows are."""
    known = call.known
    if known.features is not StageOutcome.OK:
        return known.features
    if call.serving.rows is None or known.profile is None:
        return StageOutcome.UNAVAILABLE
    fits = len(known.profile.subject.vector) == call.site.layout.feature_set.subject_width
    return StageOutcome.OK if fits else StageOutcome.REFUSED
