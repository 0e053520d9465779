"""Why a decision came out as it did, in sentences a person can read, from its record and the pinned site."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from services.decision.domain.catalog import OFFERED_MAX, PlacementView, judge_item
from services.decision.domain.ladder import Inputs, Slate, audience_of, choose_ranked
from services.decision.domain.layers import layer_of, not_stronger
from services.decision.domain.plan import Plan
from services.decision.domain.record import DecisionRecord
from services.decision.domain.rules import Verdict
from services.decision.domain.site import Item
from services.decision.domain.vocabulary import Exclusion, FallbackReason, Level, Origin, Reason, StageOutcome

_WHY = {
    FallbackReason.DEADLINE_EXCEEDED: "the answer was not ready in time",
    FallbackReason.NO_CONSENT: "the person has not allowed it",
    FallbackReason.CONSENT_UNAVAILABLE: "consent could not be read, which counts as no",
    FallbackReason.DO_NOT_PERSONALIZE: "the person objects to it",
    FallbackReason.IDENTITY_UNAVAILABLE: "identity did not say who it is",
    FallbackReason.FEATURES_UNAVAILABLE: "the features could not be read",
    FallbackReason.MODEL_UNAVAILABLE: "no model could score",
    FallbackReason.NO_ELIGIBLE_CANDIDATES: "nothing was left that may be shown",
    FallbackReason.POLICY_DISABLED: "the placement is switched off",
    FallbackReason.LOG_UNAVAILABLE: "the log could not take the decision in time",
}

_BY_DEFAULT = (Reason.DEFAULT, Reason.HOLDOUT, Reason.DISABLED, Reason.ERROR)

_AMONG = {
    Verdict.YES: "among those whom the policy is for",
    Verdict.NO: "not among those whom the policy is for",
    Verdict.ERROR: "cannot be told, which counts as not among those whom the policy is for",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a decision and what it found."""

    stage: str
    finding: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The steps in the order they were taken, and what would have been shown without exploration."""

    steps: tuple[Step, ...]
    without_exploration: Slate


def explain(record: DecisionRecord, plan: Plan) -> Explanation:
    """The explanation of a decision made by this plan."""
    steps = (
        Step("identity", _identity(record)),
        Step("consent", _consent(record, plan)),
        *_audience(record, plan),
        Step("eligible", _eligible(record)),
        Step("scored", _scored(record)),
        *_drawn(record, plan),
        *_default(record),
        Step("served", _served(record)),
    )
    return Explanation(steps, _without_exploration(record, plan))


def of_catalog(record: DecisionRecord, plan: Plan, view: PlacementView) -> Iterator[Step]:
    """How many items could not be shown whatever the request said, and by what.

    Args:
        view: what decides now; where that is not what decided then, nothing can be told.
    """
    if (plan.placement, plan.eligibility and plan.eligibility.source) != (
        view.placement,
        view.rule and view.rule.source,
    ) or record.versions.catalog != str(view.catalog.version):
        return
    counts = Counter(Exclusion(value) for value in view.exclusions[:-1].tolist())
    counts.pop(Exclusion.NONE, 0)
    excluded = "".join(f"; {count} {_excluded(why, plan)}" for why, count in sorted(counts.items()))
    yield Step("catalog", f"{len(view.catalog.items)} items{excluded}")


def of_item(record: DecisionRecord, plan: Plan, item_id: str, item: Item | None) -> Step:
    """Why an item is shown or not.

    Args:
        item: as the catalog had it then; None: it did not.
    """
    candidates, shown = record.inputs.candidates, list(record.choice.slate.item_ids)
    if item_id in shown:
        return Step("item", f"{item_id}: shown at place {shown.index(item_id) + 1}")
    if item_id in candidates.item_ids:
        exclusion = Exclusion(int(candidates.exclusions[list(candidates.item_ids).index(item_id)]))
        finding = "eligible, and others came before it"
    else:
        exclusion = Exclusion.UNKNOWN_ITEM
        if item is not None:
            exclusion = judge_item(item, plan.placement, plan.eligibility)[1]
        finding = "may be shown, and was not among the candidates"
    if exclusion is not Exclusion.NONE:
        finding = f"excluded, {_excluded(exclusion, plan)}"
    return Step("item", f"{item_id}: {finding}")


def _excluded(why: Exclusion, plan: Plan) -> str:
    """The exclusion, with the rule where a rule excludes."""
    if why in (Exclusion.INELIGIBLE, Exclusion.RULE_ERROR) and plan.eligibility is not None:
        return f"{why.name} by the rule {plan.eligibility.source}"
    return why.name


def _identity(record: DecisionRecord) -> str:
    if not record.subject_id:
        return f"nobody: identity was {_ended(record.inputs.identity)}"
    arm = "in the holdout" if record.holdout else "not in the holdout"
    return f"{Level(record.level).name} subject, bucket {record.holdout_bucket}, {arm}"


def _consent(record: DecisionRecord, plan: Plan) -> str:
    if record.do_not_personalize:
        return f"{_WHY[FallbackReason.DO_NOT_PERSONALIZE]}{_said(record)}"
    if record.inputs.consent is StageOutcome.REFUSED:
        return "the person was recognized by an identity that needs a purpose which is not allowed"
    if record.inputs.consent is not StageOutcome.OK:
        return f"not read: {_ended(record.inputs.consent)}"
    if plan.layers:
        return _layer(record, plan)
    lacking = sorted(plan.purposes.difference(record.allowed_purposes))
    needed = ", ".join(sorted(plan.purposes))
    if lacking:
        version = record.consent_version
        return f"needs {needed}; not allowed: {', '.join(lacking)} (ledger version {version}){_said(record)}"
    return f"{needed} allowed (ledger version {record.consent_version}){_said(record)}"


def _layer(record: DecisionRecord, plan: Plan) -> str:
    """Which layer was used, or may have been, and why none that is stronger."""
    allowed = frozenset(record.allowed_purposes)
    layer = layer_of(plan, record.level, allowed)
    used = "no layer"
    if layer is not None:
        used = f"{layer.level.name} layer: {', '.join(sorted(layer.purposes)) or 'no purpose'} allowed"
    why = "".join(f"; {one}" for one in not_stronger(plan, record.level, allowed, layer))
    return f"{used} (ledger version {record.consent_version}){why}{_said(record)}"


def _said(record: DecisionRecord) -> str:
    """The consent signal that decided, where one did."""
    return f", by signal {record.said.signal}: {record.said.reason}" if record.said.signal else ""


def _audience(record: DecisionRecord, plan: Plan) -> Iterator[Step]:
    """Whether the person was among those whom the policy is for: there are no other segments of people."""
    if plan.audience is not None and record.origin is Origin.SERVED:
        verdict = audience_of(plan, record.context, Level(record.level))
        yield Step("audience", f"{_AMONG[verdict]}: {plan.audience.source}")


def _eligible(record: DecisionRecord) -> str:
    counts = Counter(Exclusion(value).name for value in record.inputs.candidates.exclusions.tolist())
    eligible = counts.pop(Exclusion.NONE.name, 0)
    excluded = "".join(f"; {count} {name}" for name, count in sorted(counts.items()))
    return f"{eligible} of {len(record.inputs.candidates.item_ids)} candidates{excluded}{_cut(record.inputs)}"


def _cut(inputs: Inputs) -> str:
    """What the candidates are the first of, where not all items were considered."""
    if inputs.cut is None:
        return ""
    considered, order = len(inputs.candidates.item_ids), inputs.cut.by or "their entry into the catalog"
    return (
        f"; the first {considered} of {inputs.cut.eligible_count} eligible items by {order}, bounded by {OFFERED_MAX}"
    )


def _scored(record: DecisionRecord) -> str:
    inputs = record.inputs
    if inputs.scores is None:
        return f"nothing: features {_ended(inputs.features)}, ranker {_ended(inputs.ranker)}"
    by = record.versions.model or "a column of the feature set"
    return f"{len(inputs.scores)} candidates by {by}, scores {inputs.scores.min():.4g} to {inputs.scores.max():.4g}"


def _ended(outcome: StageOutcome) -> str:
    return "not asked" if outcome is StageOutcome.UNSPECIFIED else outcome.name


def _drawn(record: DecisionRecord, plan: Plan) -> Iterator[Step]:
    epsilon = plan.policy.epsilon
    if record.choice.learnable and record.origin is Origin.SERVED:
        outcome = record.choice.reason.name
        yield Step("drawn", f"explores with probability {epsilon:g}; drew {record.choice.coin:.4f}: {outcome}")


def _default(record: DecisionRecord) -> Iterator[Step]:
    """What is missing of the default, where it answered."""
    left_out = record.inputs.default_left_out
    if left_out and record.choice.reason in _BY_DEFAULT:
        yield Step("default", f"left out: {', '.join(f'{item_id} ({why.name})' for item_id, why in left_out.items())}")


def _served(record: DecisionRecord) -> str:
    choice = record.choice
    shown = ", ".join(choice.slate.item_ids) or "nothing"
    why = f" because {_WHY[choice.fallback_reason]}" if choice.fallback_reason in _WHY else ""
    origin = "shown by another system" if record.origin is Origin.RECORDED else choice.reason.name
    learnable = "may be learned from" if choice.learnable else "never learned from"
    also = "; another attempt under the same id was answered the default" if record.default_also_answered else ""
    return f"{shown}: {origin}{why}{also}; {learnable}"


def _without_exploration(record: DecisionRecord, plan: Plan) -> Slate:
    """The head of the ranking; empty where nothing was drawn."""
    ranking = record.inputs.scores if record.inputs.scores is not None else record.inputs.popularity
    if ranking is None or not record.choice.learnable or record.origin is Origin.RECORDED:
        return Slate()
    certain = replace(plan, policy=replace(plan.policy, epsilon=0.0))
    return choose_ranked(certain, replace(record.inputs, scores=ranking), b"").slate
