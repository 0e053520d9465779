"""What is not eligible says why, and the first reason that holds is the one given."""

from dataclasses import replace

import numpy as np
import pytest

from services.decision.domain.candidates import offer_of, screen, whole_offer
from services.decision.domain.catalog import Cut, view_of
from services.decision.domain.site import Context, Item
from services.decision.domain.vocabulary import Exclusion
from tests.unit.decision.world import ITEMS, PLACEMENT, POLICY, catalog, site, view

NONE = Exclusion.NONE


def screened(eligibility: str = "", *, context: Context | None = None, excluded: set[str] | None = None) -> list[int]:
    compiled = site(policy=replace(POLICY, eligibility=eligibility))
    seen = view(compiled)
    offer = offer_of(seen, ["item-0", "item-1", "nothing", "item-2"])
    plan = compiled.plans[PLACEMENT.id]
    return list(screen(plan, seen, offer, context or {}, excluded=excluded or set(), shown={"item-2"}).tolist())


def test_unknown_excluded_and_shown_items_say_so() -> None:
    """The catalog, the caller and the rest of the page each exclude with their own reason."""
    assert screened(excluded={"item-1", "nothing"}) == [
        NONE,
        Exclusion.EXCLUDED_BY_CALLER,
        Exclusion.UNKNOWN_ITEM,
        Exclusion.SHOWN_ELSEWHERE,
    ]


def test_an_item_rule_excludes_what_it_does_not_allow() -> None:
    """The item's own reason stands before the page's."""
    assert screened('"red" in item.categories.tags') == [1, NONE, Exclusion.UNKNOWN_ITEM, 1]


@pytest.mark.parametrize(
    ("context", "reason"),
    [({"hour": 19.0}, NONE), ({"hour": 9.0}, Exclusion.INELIGIBLE), ({}, Exclusion.RULE_ERROR)],
)
def test_a_context_rule_holds_for_all(context: Context, reason: Exclusion) -> None:
    """Asked once; an error excludes."""
    assert screened("context.hour > 18", context=context)[:2] == [reason, reason]


def test_a_mixed_rule_is_asked_for_each_candidate() -> None:
    """A rule over item and context decides candidate by candidate."""
    rule = "item.attributes.price < context.limit"
    assert screened(rule, context={"limit": 1.0}) == [
        NONE,
        Exclusion.INELIGIBLE,
        Exclusion.UNKNOWN_ITEM,
        Exclusion.SHOWN_ELSEWHERE,
    ]


def test_retired_items_and_items_without_a_fitting_variant_are_not_shown() -> None:
    """The first variant that the placement can render is the one shown."""
    items = (replace(ITEMS[0], retired=True), ITEMS[1], Item("bare"))
    placement = replace(PLACEMENT, variants=("huge", "large"))
    seen = view(site(placement=placement), items)
    assert seen.exclusions.tolist() == [Exclusion.RETIRED, NONE, Exclusion.NO_VARIANT, Exclusion.UNKNOWN_ITEM]
    assert seen.variants[1] == "large"
    assert view(site(), items).variants == ("small", "small", "", "")


def test_items_already_judged_are_not_judged_again() -> None:
    """A changed item is judged anew, the others keep their verdict, and the result is that of judging all."""
    compiled = site(policy=replace(POLICY, eligibility="item.attributes.price < 3.0"))
    plan = compiled.plans[PLACEMENT.id]
    before = view_of(catalog(), plan.placement, plan.eligibility)
    changed = catalog().with_items(2, [replace(ITEMS[0], numbers={"price": 9.0}), Item("new", numbers={"price": 1.0})])
    after = view_of(changed, plan.placement, plan.eligibility, before)
    assert after.exclusions.tolist() == [1, 0, 0, 1, 1, 1, 0, Exclusion.UNKNOWN_ITEM]
    np.testing.assert_array_equal(after.exclusions, view_of(changed, plan.placement, plan.eligibility).exclusions)


def test_the_whole_catalog_is_cut_to_the_most_popular() -> None:
    """Of more items than can be scored, those most people like are the candidates, in catalog order; and it is said."""
    seen = view(site())
    popularity = np.array([1, 5, 2, np.nan, 4, 3], dtype=np.float32)
    popular, first, whole = (
        whole_offer(seen, values, count, popular_by="clicks")
        for values, count in ((popularity, 3), (None, 2), (popularity, 6))
    )
    assert (popular.item_ids, popular.cut) == (["item-1", "item-4", "item-5"], Cut(6, "clicks"))
    assert (first.item_ids, first.cut) == (["item-0", "item-1"], Cut(6, ""))
    assert (len(whole.item_ids), whole.cut) == (len(ITEMS), None)
