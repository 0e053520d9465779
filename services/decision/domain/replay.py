"""Decide again from what was logged, with the pinned site, model and seed, and list every difference."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.decision.domain.attempts import is_told_apart
from services.decision.domain.candidates import apply_rule
from services.decision.domain.catalog import Exclusions, judge_item
from services.decision.domain.exploration import seed_of
from services.decision.domain.ladder import (
    Choice,
    Facts,
    Inputs,
    Kind,
    audience_of,
    choose,
    is_holdout,
    rung_of,
    score_by_column,
)
from services.decision.domain.layers import layer_of
from services.decision.domain.layout import Floats, Layout
from services.decision.domain.plan import CompiledSite, Plan
from services.decision.domain.record import DecisionRecord, digest_of, float_bytes
from services.decision.domain.rules import Scope
from services.decision.domain.site import Item
from services.decision.domain.vocabulary import Exclusion, Level, Origin

Scorer = Callable[[Floats], Floats]

# What only the request said: taken from the log, nothing pinned could say it again.
_GIVEN = (Exclusion.EXCLUDED_BY_CALLER, Exclusion.SHOWN_ELSEWHERE)


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a decision was made with, as it is kept.

    Args:
        items: the candidates as the catalog had them then, in the candidates' order; None for an unknown one.
        scorer: of the model named in the record, whose bytes have been checked; None where none is kept.
    """

    site: CompiledSite
    items: Sequence[Item | None]
    scorer: Scorer | None
    seed_key: bytes
    seed_key_id: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came out the second time.

    Args:
        differences: field paths that differ, with both values; empty when the decision is identical.
    """

    choice: Choice
    differences: tuple[str, ...]


def decide_again(record: DecisionRecord, pinned: Pinned) -> Replayed:
    """The decision, computed again from its record; a difference is a bug, a lost pin or a changed bit."""
    plan = pinned.site.plans.get(record.placement_id)
    if plan is None:
        return Replayed(record.choice, (f"placement_id: the pinned site has no {record.placement_id}",))
    inputs, score_differences = _score_again(record, plan, pinned)
    differences = (
        *_pin_differences(record, plan, pinned),
        *_input_differences(record, plan, pinned),
        *score_differences,
    )
    if record.origin is Origin.RECORDED:
        return Replayed(record.choice, differences)
    facts = _facts(record, plan, pinned)
    exclusions = _exclude_again(record, plan, pinned.items)
    inputs = replace(inputs, candidates=replace(inputs.candidates, exclusions=exclusions))
    if not _holds_together(plan, facts, inputs):
        return Replayed(record.choice, (*differences, "inputs.scores: not one an eligible candidate"))
    choice = choose(plan, facts, inputs, seed_of(pinned.seed_key, record.decision_id))
    # What other attempts were answered is no input of the choice: it only takes the learning away.
    choice = replace(choice, learnable=choice.learnable and is_told_apart(record))
    return Replayed(choice, (*differences, *choice_differences(record.choice, choice)))


def choice_differences(logged: Choice, again: Choice) -> Iterator[str]:
    """Where two choices differ, bit by bit."""
    for name in ("reason", "fallback_reason", "learnable", "coin"):
        yield from _compare(name, getattr(logged, name), getattr(again, name))
    for name in ("item_ids", "variant_ids", "propensities"):
        yield from _compare(f"slate.{name}", list(getattr(logged.slate, name)), list(getattr(again.slate, name)))
    scores = [np.asarray(choice.slate.scores, dtype=np.float32) for choice in (logged, again)]
    if scores[0].tobytes() != scores[1].tobytes():
        yield f"slate.scores: logged {scores[0].tolist()}, again {scores[1].tolist()}"


def _pin_differences(record: DecisionRecord, plan: Plan, pinned: Pinned) -> Iterator[str]:
    """Pins that are not the record's."""
    yield from _compare("versions.site", record.versions.site, pinned.site.site.version)
    yield from _compare("versions.decision_policy", record.versions.decision_policy, plan.policy.version)
    yield from _compare("seed_key_id", record.seed_key_id, pinned.seed_key_id)


def _input_differences(record: DecisionRecord, plan: Plan, pinned: Pinned) -> Iterator[str]:
    """Inputs that do not hold together: a changed bit, or an eligibility that the pinned rules do not give."""
    inputs, exclusions = record.inputs, record.inputs.candidates.exclusions
    if record.digest != digest_of(record):
        yield "inputs.digest: the inputs are not those that were logged"
    if record.origin is Origin.SERVED and len(pinned.items) == len(inputs.candidates.item_ids):
        again = _exclude_again(record, plan, pinned.items)
        for k in np.flatnonzero(again != exclusions).tolist():
            logged_reason, reason = Exclusion(exclusions[k]).name, Exclusion(again[k]).name
            yield f"inputs.exclusions[{k}]: logged {logged_reason}, again {reason}"
    yield from _matrix_differences(record, plan, pinned.site.layout)


def _matrix_differences(record: DecisionRecord, plan: Plan, layout: Layout) -> Iterator[str]:
    """Columns of the matrix that do not follow from the logged subject and context.

    Item and dot columns stand on a snapshot that is not kept; the digest is what holds those.
    """
    matrix, subject = record.inputs.matrix, record.evidence.subject
    if matrix is None or subject is None:
        return
    if matrix.shape[1] != layout.width or len(subject.vector) != layout.feature_set.subject_width:
        yield f"inputs.columns_count: logged {matrix.shape[1]}, the pinned feature set has {layout.width}"
        return
    layer = layer_of(plan, record.level, frozenset(record.allowed_purposes))
    if plan.layers:
        # A placement without layers was decided about, and logged, before there were any.
        yield from _compare("consent.layer", record.layer, Level.UNSPECIFIED if layer is None else layer.level)
    used = frozenset[str]() if layer is None else layer.purposes
    for name in layout.shared_differs(matrix, subject, record.context, used):
        yield f"inputs.matrix[{name}]: does not follow from the logged subject vector and context"


def _score_again(record: DecisionRecord, plan: Plan, pinned: Pinned) -> tuple[Inputs, list[str]]:
    """The inputs with the scores computed again, and what differs."""
    inputs = record.inputs
    if inputs.matrix is None or inputs.scores is None:
        return inputs, []
    if record.versions.model:
        if pinned.scorer is None:
            why = "it is not kept, not signed by a key that decision knows, or refused; see `comity models`"
            return inputs, [f"versions.model: {record.versions.model} cannot be loaded: {why}"]
        scores = pinned.scorer(inputs.matrix)
    else:
        scores = score_by_column(plan, inputs.matrix)
    if float_bytes(scores) == float_bytes(inputs.scores):
        return inputs, []
    return replace(inputs, scores=scores), ["inputs.scores: the model gives others for the logged matrix"]


def _exclude_again(record: DecisionRecord, plan: Plan, items: Sequence[Item | None]) -> Exclusions:
    """The exclusions by the pinned rules and items; what the request gave is taken from the log."""
    logged = record.inputs.candidates.exclusions
    if record.versions.semantics and not record.member_id:
        # Of what nobody asked for only the candidates that were eligible are kept, and no context to judge them by.
        return logged
    if plan.eligibility is not None and plan.eligibility.stopped:
        # What it once said was logged; asking it again would hold up everybody.
        return logged
    judged = (
        Exclusion.UNKNOWN_ITEM if item is None else judge_item(item, plan.placement, plan.eligibility)[1]
        for item in items
    )
    exclusions = np.fromiter(judged, dtype=np.uint8, count=len(items))
    given = np.isin(logged, _GIVEN) & (exclusions == Exclusion.NONE)
    exclusions = np.where(given, logged, exclusions)
    if plan.eligibility is None or plan.eligibility.scope is Scope.ITEM:
        return exclusions
    return apply_rule(plan.eligibility, exclusions, items, record.context)


def _holds_together(plan: Plan, facts: Facts, inputs: Inputs) -> bool:
    """Whether there is one value an eligible candidate wherever the rung needs one."""
    count = len(inputs.candidates.eligible)
    if inputs.popularity is not None and len(inputs.popularity) != count:
        return False
    if rung_of(plan, facts, inputs).kind is not Kind.RANKED:
        return True
    return inputs.scores is not None and len(inputs.scores) == count


def _facts(record: DecisionRecord, plan: Plan, pinned: Pinned) -> Facts:
    """The facts, from what was logged and what the pinned rules say of it."""
    return Facts(
        do_not_personalize=record.do_not_personalize,
        level=record.level,
        allowed=frozenset(record.allowed_purposes),
        holdout=is_holdout(record.holdout_bucket, pinned.site.site.holdout_share) and bool(record.subject_id),
        audience=audience_of(plan, record.context, record.level),
    )


def _compare(name: str, logged: object, again: object) -> Iterable[str]:
    return () if logged == again else (f"{name}: logged {_shown(logged)}, again {_shown(again)}",)


def _shown(value: object) -> str:
    return getattr(value, "name", None) or str(value)
