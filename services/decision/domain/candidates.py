"""From what may be shown to what is eligible in this request."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.decision.domain.catalog import Cut, Exclusions, PlacementView, exclusion_of, order_by
from services.decision.domain.layout import Floats, Integers
from services.decision.domain.plan import Plan
from services.decision.domain.rules import Rule, Scope, Verdict
from services.decision.domain.site import Context, Item
from services.decision.domain.vocabulary import Exclusion


@dataclass(frozen=True, slots=True)
class Offer:
    """Candidates before the request is looked at; entry k of every list belongs to candidate k.

    Args:
        rows: of the catalog; -1 for an unknown item.
        exclusions: an Exclusion a candidate, as far as items alone decide it.
        cut: what they are the first of; None: nothing was cut.
    """

    rows: Integers
    item_ids: Sequence[str]
    variant_ids: Sequence[str]
    exclusions: Exclusions
    cut: Cut | None = None


def offer_of(view: PlacementView, item_ids: Sequence[str]) -> Offer:
    """The candidates a caller asks for."""
    rows = view.catalog.rows_of(item_ids)
    variants = view.variants
    return Offer(np.array(rows, dtype=np.intp), item_ids, [variants[row] for row in rows], view.exclusions[rows])


def whole_offer(view: PlacementView, popularity: Floats | None, count_max: int, *, popular_by: str) -> Offer:
    """Every item that may be shown; of more than *count_max*, the most popular ones: scoring takes time per candidate.

    Args:
        popular_by: feature that says how popular an item is.
        popularity: float32, one a row of the catalog; None while it is not known: then the first items are taken.
    """
    rows = np.flatnonzero(view.exclusions[:-1] == Exclusion.NONE)
    cut = None
    if len(rows) > count_max:
        cut = Cut(len(rows), "" if popularity is None else popular_by)
        best = rows if popularity is None else rows[order_by(popularity[rows])]
        rows = np.sort(best[:count_max])
    items, variants = view.catalog.items, view.variants
    chosen = rows.tolist()
    return Offer(rows, [items[r].id for r in chosen], [variants[r] for r in chosen], view.exclusions[rows], cut)


def default_of(view: PlacementView) -> Offer:
    """The entries of the declared default; one that the catalog does not have is known by the declaration alone."""
    offer = offer_of(view, [entry.item_id for entry in view.placement.default_slate])
    return replace(offer, exclusions=np.where(offer.rows < 0, np.uint8(Exclusion.NONE), offer.exclusions))


def left_out(
    plan: Plan,
    view: PlacementView,
    default: Offer,
    context: Context,
    *,
    excluded: Collection[str],
    shown: Collection[str],
) -> dict[str, Exclusion]:
    """Which entries of the default are not shown, and why: it keeps to every exclusion that candidates keep to."""
    exclusions, rule = default.exclusions, plan.eligibility
    # Mostly the request has nothing to say about the few entries, and every Decide asks.
    if any(item_id in excluded or item_id in shown for item_id in default.item_ids) or (
        rule is not None and rule.scope is not Scope.ITEM
    ):
        exclusions = screen(plan, view, default, context, excluded=excluded, shown=shown)
    if not exclusions.any():
        return {}
    return {default.item_ids[k]: Exclusion(exclusions[k]) for k in np.flatnonzero(exclusions).tolist()}


def screen(
    plan: Plan,
    view: PlacementView,
    offer: Offer,
    context: Context,
    *,
    excluded: Collection[str],
    shown: Collection[str],
) -> Exclusions:
    """An Exclusion a candidate: the item's own, else the caller's, else what is shown elsewhere, else the rule's.

    Args:
        excluded: items the caller does not want.
        shown: items that earlier placements of the same call show.
    """
    exclusions = offer.exclusions
    if excluded or shown:
        exclusions = _without(exclusions, offer.item_ids, excluded, Exclusion.EXCLUDED_BY_CALLER)
        exclusions = _without(exclusions, offer.item_ids, shown, Exclusion.SHOWN_ELSEWHERE)
    rule = plan.eligibility
    if rule is None or rule.scope is Scope.ITEM:
        return exclusions
    items = [view.catalog.items[row] if row >= 0 else None for row in offer.rows.tolist()]
    return apply_rule(rule, exclusions, items, context)


def apply_rule(rule: Rule, exclusions: Exclusions, items: Sequence[Item | None], context: Context) -> Exclusions:
    """The exclusions with a rule that reads the context applied to every candidate that has none yet.

    An item that the catalog does not have cannot be judged by what it is.
    """
    exclusions = exclusions.copy()
    if rule.scope is Scope.CONTEXT:
        verdict = rule.about_context(context)
        if verdict is not Verdict.YES:
            exclusions[exclusions == Exclusion.NONE] = exclusion_of(verdict)
        return exclusions
    for k in np.flatnonzero(exclusions == Exclusion.NONE).tolist():
        item = items[k]
        if item is not None:
            exclusions[k] = exclusion_of(rule.about(item, context))
    return exclusions


def _without(
    exclusions: Exclusions, item_ids: Sequence[str], unwanted: Collection[str], reason: Exclusion
) -> Exclusions:
    if not unwanted:
        return exclusions
    hit = np.fromiter((item_id in unwanted for item_id in item_ids), dtype=bool, count=len(item_ids))
    return np.where(hit & (exclusions == Exclusion.NONE), np.uint8(reason), exclusions)
