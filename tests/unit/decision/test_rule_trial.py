"""Rules are tried in a process of their own before they decide; what takes too much never runs in a service."""

from dataclasses import replace

import pytest

from services.chassis.errors import Kind, ServiceError
from services.decision.domain.catalog import view_of
from services.decision.domain.plan import CompiledSite, compile_site
from services.decision.domain.release import DeclaredSite, SentSite
from services.decision.domain.replay import Pinned, decide_again
from services.decision.domain.site import Site
from services.decision.domain.vocabulary import Exclusion
from services.decision.handlers.catalog import ApplySite
from services.decision.rule_trial import refusals, trial, without_slow_rules
from tests.unit.decision.test_refresh import Sites, World, refresher
from tests.unit.decision.test_rules import DIGITS_FIVE_DEEP, DOUBLING, OVER_BUDGET
from tests.unit.decision.world import (
    FEATURE_SET,
    ITEMS,
    PLACEMENT,
    POLICY,
    SEED_KEY,
    SEED_KEY_ID,
    catalog,
    decide,
    model,
    site,
)

LARGE_PATTERNS = (
    "item.categories.tags.exists(a, item.categories.tags.exists(b, "
    'a.matches(b + "|" + a + "((z{50}){50})|((y{50}){50})|((x{50}){50})")))'
)


def with_rule(eligibility: str = "", audience: str = "") -> CompiledSite:
    return site(policy=replace(POLICY, eligibility=eligibility, audience=audience))


def test_a_trial_finds_what_raises_and_what_takes_too_much() -> None:
    """Memory, time and the iteration budget; an ordinary rule, and one that only misses a key, pass."""
    over_budget = DIGITS_FIVE_DEEP.format("context.x > 0.0")
    rules = {
        ("eligibility", DOUBLING): "slow",
        ("eligibility", OVER_BUDGET): "raises",
        ("audience", over_budget): "raises",
        ("eligibility", "item.attributes.stock > 0.0 && (!has(context.gift) || item.attributes.price < 60.0)"): None,
        ("eligibility", 'item.categories.exists(k, item.categories[k].exists(v, v == "x"))'): None,
        ("audience", 'level == "KNOWN" && context.hour > 18.0'): None,
    }
    found = trial(frozenset(rules))
    assert {rule: found.get(rule) for rule in rules} == rules


def test_a_rule_that_is_bounded_but_takes_too_much_is_refused() -> None:
    """Thousands of large patterns an item: nothing that only looks at the rule would see it."""
    (refused,) = refusals(frozenset({("eligibility", LARGE_PATTERNS)})).values()
    assert "time or memory" in str(refused)


class Published:
    """handlers.ports.FeatureSetReader."""

    async def published(self, version: str) -> bytes | None:
        return b"published"


@pytest.mark.parametrize("rule", ["eligibility", "audience"])
@pytest.mark.parametrize("source", [DOUBLING, OVER_BUDGET.replace("item.id", "'a'")])
@pytest.mark.parametrize("validate_only", [True, False])
async def test_apply_refuses_a_rule_that_must_not_decide(rule: str, source: str, validate_only: bool) -> None:
    """A typed error that names the field and the remedy, before anything is kept."""
    world = World()
    sites, applied = Sites(world), []

    async def apply(declared: DeclaredSite) -> bool:
        applied.append(declared)
        return True

    sites.apply = apply  # type: ignore[method-assign]
    sent = SentSite("features-1", lambda _: DeclaredSite(with_rule(**{rule: source}), b"", b""))
    with pytest.raises(ServiceError) as refused:
        await ApplySite(sites, Published(), refresher(world))(sent, validate_only=validate_only)
    assert (refused.value.kind, refused.value.reason) == (Kind.INVALID, "SITE_INVALID")
    (problem,) = refused.value.problems
    assert problem.field == f"site.policies[0].{rule}"
    assert "item.categories" in problem.problem or "nest" in problem.problem
    assert not applied


def test_a_kept_rule_that_takes_too_much_excludes_without_being_asked() -> None:
    """An earlier release let it in: its items are not shown, and the catalog is judged at once."""
    compiled = without_slow_rules(with_rule(DOUBLING))
    plan = compiled.plans[PLACEMENT.id]
    assert compiled.has_stopped_rules
    assert set(view_of(catalog(), plan.placement, plan.eligibility).exclusions[:-1]) == {Exclusion.RULE_ERROR}


@pytest.mark.parametrize("source", ["item.attributes.exists(k, k == 'price')", OVER_BUDGET, DOUBLING])
def test_a_decision_by_a_kept_rule_that_would_be_refused_now_replays(source: str) -> None:
    """One that can be asked says again what it said; of one that cannot the log is believed."""
    assert refusals(frozenset({("eligibility", source)}))
    as_decided = with_rule("item.id != 'item-2'") if source is DOUBLING else with_rule(source)
    record = decide(as_decided)
    items = [{item.id: item for item in ITEMS}.get(item_id) for item_id in record.inputs.candidates.item_ids]
    pinned = Pinned(without_slow_rules(with_rule(source)), items, model, SEED_KEY, SEED_KEY_ID)
    assert decide_again(record, pinned).differences == ()


def test_a_site_whose_rules_may_decide_is_left_as_it_is() -> None:
    """Nothing is copied, and nothing is stopped."""
    policies = (replace(POLICY, eligibility=OVER_BUDGET), replace(POLICY, id="other", audience="level == 'KNOWN'"))
    compiled = compile_site(Site("shop", "1", 0.1, (PLACEMENT,), policies, FEATURE_SET.version), FEATURE_SET)
    assert without_slow_rules(compiled) is compiled
