"""The simulator's visitors: the same for a seed, with a truth that can be computed and is worth learning."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from cli.bundle import load_bundle
from cli.demo.simulator import Consent, Shop, ShopItem, population
from cli.demo.site import consent_purposes, default_slates, eligible_items, exploring

SHOP = Path(__file__).parents[3] / "examples" / "shop"
ITEMS = eligible_items(load_bundle(SHOP))


def test_a_seed_gives_the_same_people_and_the_same_clicks() -> None:
    """Everything random comes from the generator that is passed in."""
    runs = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        shop = Shop(ITEMS, rng)
        visitors = population(ITEMS, 20, rng)
        slate = [item.item_id for item in ITEMS[:3]]
        runs.append((visitors, [shop.clicks(visitor, slate, rng) for visitor in visitors]))
    assert runs[0] == runs[1]


def test_the_best_slate_is_the_best_of_all_slates() -> None:
    """No ordered choice of items has more expected clicks than the one in closed form."""
    rng = np.random.default_rng(5)
    few = ITEMS[::6]
    shop = Shop(few, rng)
    for visitor in population(few, 5, rng):
        best = shop.expected_click_rate(visitor, shop.best_slate(visitor, 3))
        every = itertools.permutations([item.item_id for item in few], 3)
        assert best == pytest.approx(max(shop.expected_click_rate(visitor, slate) for slate in every))


def test_clicks_come_as_often_as_their_probability_says() -> None:
    """The drawn frequency of clicks agrees with the known truth."""
    rng = np.random.default_rng(11)
    shop = Shop(ITEMS, rng)
    visitor = population(ITEMS, 3, rng)[0]
    slate = shop.best_slate(visitor, 6)
    draws = 4000
    counts = np.zeros(6)
    for _ in range(draws):
        counts[shop.clicks(visitor, slate, rng)] += 1
    for slot, item in enumerate(slate):
        probability = shop.click_probability(visitor, item, slot)
        error = np.sqrt(probability * (1 - probability) / draws)
        assert abs(counts[slot] / draws - probability) < 5 * error


@pytest.mark.parametrize("seed", range(5))
def test_the_declared_default_leaves_much_to_gain(seed: int) -> None:
    """The default slate gets less than half of what is possible, so that a gain can be seen."""
    rng = np.random.default_rng(seed)
    shop = Shop(ITEMS, rng)
    visitors = population(ITEMS, 200, rng)
    default = [entry.item_id for entry in default_slates(load_bundle(SHOP))["home_hero"]]
    got = np.mean([shop.expected_click_rate(visitor, default) for visitor in visitors])
    possible = np.mean([shop.expected_click_rate(visitor, shop.best_slate(visitor, 3)) for visitor in visitors])
    assert got < possible / 2


@pytest.mark.parametrize(("count", "some"), [(20, 2), (200, 20), (4, 1)])
def test_some_refuse_and_some_take_consent_back(count: int, some: int) -> None:
    """The shares of answers are those that were asked for, and nobody is left out of a small crowd."""
    visitors = population(ITEMS, count, np.random.default_rng(1))
    counts = {consent: sum(v.consent is consent for v in visitors) for consent in Consent}
    assert counts == {Consent.GIVEN: count - 2 * some, Consent.REFUSED: some, Consent.REVOKED: some}


def test_views_are_by_taste_and_never_twice() -> None:
    """What is looked at in a session is distinct, and a favorite category comes up more often than its share."""
    rng = np.random.default_rng(2)
    shop = Shop(ITEMS, rng)
    visitor = population(ITEMS, 3, rng)[0]
    favorite = max(visitor.taste, key=lambda name: visitor.taste[name])
    seen = [shop.views(visitor, rng) for _ in range(300)]
    assert all(len(set(views)) == len(views) for views in seen)
    share = np.mean([shop.items[name].category == favorite for views in seen for name in views])
    assert share > 1.5 * sum(item.category == favorite for item in ITEMS) / len(ITEMS)


def test_first_days_explore_where_a_model_will_rank_and_nothing_else_changes() -> None:
    """Before there is a model its placements draw at random; the rest of the site is as declared."""
    bundle = load_bundle(SHOP)
    first = {policy.message.id: policy.message for policy in exploring(bundle).policies}
    own = {policy.message.id: policy.message for policy in bundle.policies}
    assert first["hero"].epsilon == 1.0
    assert first["hero"].ranker.column == own["hero"].popular_by
    assert first["hero"].eligibility == own["hero"].eligibility
    assert first["checkout"] == own["checkout"]
    assert own["hero"].ranker.model == "shop_clicks"


def test_items_out_of_stock_or_retired_are_not_in_the_shop() -> None:
    """The optimum is among what the policies let through."""
    names = {item.item_id for item in ITEMS}
    assert "hammock" not in names
    assert "vhs-rewinder" not in names
    assert isinstance(ITEMS[0], ShopItem)


def test_people_are_asked_for_what_needs_consent() -> None:
    """A legitimate interest is not asked for."""
    purposes = consent_purposes(load_bundle(SHOP))
    assert "profile_personalization" in purposes
    assert "site_optimization" not in purposes
