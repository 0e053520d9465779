"""The ladder: ranked → popular → the declared default, and an honest word for which rung answered and why.

`rung_of` says, from how the stages ended, which rung answers; `choose` answers from it. A Decide asks `rung_of` to know
whether there is anything to score, scores, and asks `choose`; a replay asks `choose` with what was logged. Both
therefore take the same rung.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from services.decision.domain.catalog import Cut, Exclusions, order_by
from services.decision.domain.exploration import draw_slate
from services.decision.domain.layers import layer_of
from services.decision.domain.layout import Floats, Integers
from services.decision.domain.plan import Plan
from services.decision.domain.rules import Verdict
from services.decision.domain.site import Context
from services.decision.domain.vocabulary import Exclusion, FallbackReason, Level, Reason, StageOutcome

# Ranker and log come last: while they have not ended they count as stages that will end well.
_WELL_SO_FAR = (StageOutcome.OK, StageOutcome.UNSPECIFIED)
# Looked up once: Python 3.11 takes half a microsecond to find a member of an enumeration.
_OK, _SKIPPED, _YES = StageOutcome.OK, StageOutcome.SKIPPED, Verdict.YES


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about the request and the person, when it is known.

    Args:
        do_not_personalize: the person objects to what would be done here, in the ledger or by a signal.
        allowed: purposes that are allowed.
        holdout: the person is of the share that always gets the default.
    """

    do_not_personalize: bool
    level: Level
    allowed: frozenset[str]
    holdout: bool
    audience: Verdict


@dataclass(frozen=True, slots=True)
class Candidates:
    """What could be shown; entry k of every list belongs to candidate k.

    Args:
        exclusions: an Exclusion a candidate.
        eligible: indices of the candidates that have none, in order; found here, once.
    """

    item_ids: Sequence[str]
    variant_ids: Sequence[str]
    exclusions: Exclusions
    eligible: Integers = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eligible", np.flatnonzero(self.exclusions == 0))


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a slate is computed from.

    Args:
        matrix: float32, eligible candidates in order × columns; None where nothing was to be scored.
        scores: float32, one an eligible candidate; None where nothing was scored.
        popularity: float32, one an eligible candidate; None where it was not needed, or not known.
        late: the answer was not ready inside the budget.
        budget_too_short: a stage was abandoned that never had the time it usually takes.
        default_left_out: entries of the declared default that are not shown, by item id, and why.
        cut: what the candidates are the first of; None: nothing was cut.
    """

    candidates: Candidates
    slate_size: int
    identity: StageOutcome = StageOutcome.UNSPECIFIED
    consent: StageOutcome = StageOutcome.UNSPECIFIED
    features: StageOutcome = StageOutcome.UNSPECIFIED
    ranker: StageOutcome = StageOutcome.UNSPECIFIED
    log: StageOutcome = StageOutcome.UNSPECIFIED
    late: bool = False
    matrix: Floats | None = None
    scores: Floats | None = None
    popularity: Floats | None = None
    budget_too_short: bool = False
    default_left_out: Mapping[str, Exclusion] = field(default_factory=dict)
    cut: Cut | None = None


class Kind(Enum):
    """The rungs of the ladder."""

    RANKED = "ranked"
    # No model is active yet: what is popular stands in for the ranking, explored like it, so that there is something
    # to train the first model on.
    COLD = "cold"
    POPULAR = "popular"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Rung:
    """Which rung answers, and why it is not a higher one."""

    kind: Kind
    reason: Reason
    fallback_reason: FallbackReason = FallbackReason.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Slate:
    """The ordered answer, column by column: entry s of every list is slot s."""

    item_ids: Sequence[str] = ()
    variant_ids: Sequence[str] = ()
    scores: Sequence[float] = ()
    propensities: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen.

    Args:
        learnable: the propensities are those of a policy's slate; else never train on it.
        coin: the draw between ranking and exploring; 0 where nothing was drawn.
    """

    slate: Slate
    reason: Reason
    fallback_reason: FallbackReason
    learnable: bool
    coin: float = 0.0


_RANKED = Rung(Kind.RANKED, Reason.RANKED)


def rung_of(plan: Plan, facts: Facts, inputs: Inputs) -> Rung:
    """Which rung answers, as far as the stages have ended."""
    return _unasked(plan, inputs) or _unprofiled(plan, facts, inputs) or _unscored(inputs) or _RANKED


def choose(plan: Plan, facts: Facts, inputs: Inputs, seed: bytes) -> Choice:
    """The slate, by the rung that the inputs allow."""
    rung = rung_of(plan, facts, inputs)
    if rung.kind is Kind.RANKED:
        return choose_ranked(plan, inputs, seed)
    if inputs.popularity is not None and len(inputs.popularity):
        if rung.kind is Kind.COLD:
            return _cold(plan, inputs, rung, seed)
        if rung.kind is Kind.POPULAR:
            return _popular(inputs, rung)
    return _default(plan, inputs, rung)


def overloaded(plan: Plan, inputs: Inputs) -> Choice:
    """What is answered where there is too much to do to ask about the person: what needs nothing about them."""
    if plan.placement.disabled:
        return _default(plan, inputs, Rung(Kind.DEFAULT, Reason.DISABLED, FallbackReason.POLICY_DISABLED))
    if inputs.popularity is not None and len(inputs.popularity):
        return _popular(inputs, Rung(Kind.POPULAR, Reason.POPULAR, FallbackReason.OVERLOADED))
    return _default(plan, inputs, Rung(Kind.DEFAULT, Reason.DEFAULT, FallbackReason.OVERLOADED))


def _default(plan: Plan, inputs: Inputs, rung: Rung) -> Choice:
    """The declared default without what is excluded, cut to the slate size that was asked for.

    Where nothing is left the slate is empty: the caller's own default is the last rung. Of one that was declared empty
    nothing was left out: the cause stays.
    """
    entries = [one for one in plan.placement.default_slate if one.item_id not in inputs.default_left_out]
    emptied = not entries and inputs.default_left_out
    fallback_reason = FallbackReason.NO_ELIGIBLE_CANDIDATES if emptied else rung.fallback_reason
    entries = entries[: inputs.slate_size]
    slate = Slate(
        item_ids=[entry.item_id for entry in entries],
        variant_ids=[entry.variant_id for entry in entries],
        scores=[0.0] * len(entries),
        propensities=[1.0] * len(entries),
    )
    reason = Reason.DEFAULT if rung.reason is Reason.POPULAR else rung.reason
    return Choice(slate, reason, fallback_reason, learnable=False)


def audience_of(plan: Plan, context: Context, level: Level) -> Verdict:
    """Whether the policy is for the person of this request."""
    return Verdict.YES if plan.audience is None else plan.audience.about_context(context, level)


def is_holdout(bucket: int, share: float) -> bool:
    """Whether a bucket in [0, 10000) belongs to the share that always gets the default."""
    return bucket < round(share * 10_000)


def score_by_column(plan: Plan, matrix: Floats) -> Floats:
    """The scores of a ranker that orders by one column."""
    assert plan.column is not None, "a model ranks here"
    return np.ascontiguousarray(matrix[:, plan.column])


def known_scores(scores: Floats) -> list[float]:
    """The scores, 0 where there is none: a column that ranks may be unknown for an item."""
    return [0.0 if score != score else score for score in scores.tolist()]


def _unasked(plan: Plan, inputs: Inputs) -> Rung | None:
    """The rung where there is nothing to ask, or no time or log left for an answer."""
    if plan.placement.disabled:
        return Rung(Kind.DEFAULT, Reason.DISABLED, FallbackReason.POLICY_DISABLED)
    if inputs.late:
        return Rung(Kind.DEFAULT, Reason.DEFAULT, FallbackReason.DEADLINE_EXCEEDED)
    if inputs.log not in _WELL_SO_FAR:
        return Rung(Kind.DEFAULT, Reason.DEFAULT, _cause(inputs, inputs.log, FallbackReason.LOG_UNAVAILABLE))
    return None


def _cause(inputs: Inputs, outcome: StageOutcome, of_stage: FallbackReason) -> FallbackReason:
    """Why a stage gave nothing: the stage itself, or a budget in which it could not have ended."""
    if outcome is StageOutcome.LATE and inputs.budget_too_short:
        return FallbackReason.DEADLINE_EXCEEDED
    return of_stage


def _unprofiled(plan: Plan, facts: Facts, inputs: Inputs) -> Rung | None:
    """The rung where the profile may not be used, or is not to be.

    Consent comes before the holdout, so that the arms that are compared both consist of people who consented.
    """
    refused = _consent_refusal(plan, facts, inputs)
    if refused is not None:
        if plan.placement.popular_without_consent:
            return Rung(Kind.POPULAR, Reason.POPULAR, refused)
        return Rung(Kind.DEFAULT, Reason.DEFAULT, refused)
    if facts.audience is not _YES:
        missed = facts.audience is Verdict.NO
        return Rung(Kind.DEFAULT, Reason.DEFAULT if missed else Reason.ERROR)
    if facts.holdout:
        return Rung(Kind.DEFAULT, Reason.HOLDOUT)
    return None


def _consent_refusal(plan: Plan, facts: Facts, inputs: Inputs) -> FallbackReason | None:
    if facts.do_not_personalize:
        return FallbackReason.DO_NOT_PERSONALIZE
    if inputs.identity is not _OK:
        return _cause(inputs, inputs.identity, FallbackReason.IDENTITY_UNAVAILABLE)
    if inputs.consent is StageOutcome.REFUSED:
        return FallbackReason.NO_CONSENT
    if inputs.consent is not _OK:
        return _cause(inputs, inputs.consent, FallbackReason.CONSENT_UNAVAILABLE)
    if layer_of(plan, facts.level, facts.allowed) is None:
        return FallbackReason.NO_CONSENT
    return None


def _unscored(inputs: Inputs) -> Rung | None:
    """The rung where there is nobody to rank, or nothing to rank by."""
    if not len(inputs.candidates.eligible):
        return Rung(Kind.DEFAULT, Reason.DEFAULT, FallbackReason.NO_ELIGIBLE_CANDIDATES)
    if inputs.features is not _OK:
        why = _cause(inputs, inputs.features, FallbackReason.FEATURES_UNAVAILABLE)
        return Rung(Kind.POPULAR, Reason.POPULAR, why)
    if inputs.ranker is _SKIPPED:
        return Rung(Kind.COLD, Reason.POPULAR, FallbackReason.MODEL_UNAVAILABLE)
    if inputs.ranker not in _WELL_SO_FAR:
        why = _cause(inputs, inputs.ranker, FallbackReason.MODEL_UNAVAILABLE)
        return Rung(Kind.POPULAR, Reason.POPULAR, why)
    return None


def choose_ranked(plan: Plan, inputs: Inputs, seed: bytes) -> Choice:
    """The policy's own slate: by score, and with probability ε a uniform draw."""
    scores = inputs.scores
    assert scores is not None, "the ranked rung answers only after scoring"
    ranking = order_by(scores)
    drawn = draw_slate(len(ranking), inputs.slate_size, plan.policy.epsilon, seed)
    places = ranking[drawn.order]
    slate = _slate(inputs, places, known_scores(scores[places]), drawn.propensities)
    reason = Reason.EXPLORED if drawn.explored else Reason.RANKED
    return Choice(slate, reason, FallbackReason.UNSPECIFIED, learnable=True, coin=drawn.coin)


def _cold(plan: Plan, inputs: Inputs, rung: Rung, seed: bytes) -> Choice:
    """The policy's slate with popularity in the model's place.

    That no model is active is a standing state and no accident of the moment: the propensities are true, and the
    slate may be learned from. Of an outage neither holds.
    """
    assert inputs.popularity is not None, "checked by choose"
    ranking = order_by(inputs.popularity)
    drawn = draw_slate(len(ranking), inputs.slate_size, plan.policy.epsilon, seed)
    slate = _slate(inputs, ranking[drawn.order], [0.0] * len(drawn.order), drawn.propensities)
    reason = Reason.EXPLORED if drawn.explored else rung.reason
    return Choice(slate, reason, rung.fallback_reason, learnable=True, coin=drawn.coin)


def _popular(inputs: Inputs, rung: Rung) -> Choice:
    """What most people like, of what is eligible: needs nothing about the person."""
    assert inputs.popularity is not None, "checked by choose"
    places = order_by(inputs.popularity)[: inputs.slate_size]
    slate = _slate(inputs, places, [0.0] * len(places), [1.0] * len(places))
    return Choice(slate, Reason.POPULAR, rung.fallback_reason, learnable=False)


def _slate(inputs: Inputs, places: Integers, scores: list[float], propensities: list[float]) -> Slate:
    """Entries for these places among the eligible candidates."""
    candidates = inputs.candidates
    chosen = candidates.eligible[places].tolist()
    return Slate(
        item_ids=[candidates.item_ids[k] for k in chosen],
        variant_ids=[candidates.variant_ids[k] for k in chosen],
        scores=scores,
        propensities=propensities,
    )
