"""An explanation says, stage by stage, what happened; a person can read it."""

from dataclasses import replace

import pytest

from services.decision.domain.catalog import Cut
from services.decision.domain.explain import Explanation, explain, of_catalog, of_item
from services.decision.domain.record import DecisionRecord, of_nobody
from services.decision.domain.vocabulary import Origin, StageOutcome
from tests.unit.decision.world import ITEMS, PLACEMENT, POLICY, decide, site, view

SITE = site(policy=replace(POLICY, epsilon=1.0, eligibility="item.attributes.price < 4.0"))


def explained(record: DecisionRecord) -> tuple[Explanation, dict[str, str]]:
    explanation = explain(record, SITE.plans[PLACEMENT.id])
    return explanation, {step.stage: step.finding for step in explanation.steps}


def test_an_explored_decision_says_what_would_have_been_shown() -> None:
    """Consent, eligible, scored, drawn, served; and the head of the ranking."""
    record = decide(SITE)
    explanation, steps = explained(record)
    assert list(steps) == ["identity", "consent", "eligible", "scored", "drawn", "served"]
    assert "allowed (ledger version 3)" in steps["consent"]
    assert steps["eligible"] == "4 of 6 candidates; 2 INELIGIBLE"
    assert "ranker@1" in steps["scored"]
    assert "EXPLORED" in steps["drawn"]
    scores = explanation.without_exploration.scores
    assert list(scores) == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("audience", "said"),
    [
        ("context.hour < 24.0", "among those whom the policy is for: context.hour"),
        ("context.hour > 24.0", "not among those whom the policy is for: context.hour"),
        ("context.absent == 1.0", "cannot be told"),
    ],
)
def test_a_policy_for_some_says_whether_the_person_is_one_of_them(audience: str, said: str) -> None:
    """Which segment somebody was counted to is theirs to know; a policy for everybody has none."""
    only_some = site(policy=replace(POLICY, audience=audience))
    explanation = explain(decide(only_some, context={"hour": 3.0}), only_some.plans[PLACEMENT.id])
    (finding,) = [step.finding for step in explanation.steps if step.stage == "audience"]
    assert finding.startswith(said)


@pytest.mark.parametrize(
    ("outcomes", "stage", "said"),
    [
        ({"allowed": frozenset()}, "consent", "not allowed: profile_personalization"),
        ({"allowed": frozenset()}, "served", "the person has not allowed it"),
        ({"allowed": frozenset()}, "scored", "ranker not asked"),
        ({"consent": StageOutcome.LATE}, "consent", "LATE"),
        ({"late": True}, "served", "not ready in time"),
        ({"bucket": 0}, "identity", "in the holdout"),
        ({"origin": Origin.RECORDED}, "served", "another system"),
    ],
)
def test_a_fallback_says_why(outcomes: dict[str, object], stage: str, said: str) -> None:
    """Each fallback is named in words, and nothing is said to have been drawn."""
    record = decide(SITE, **outcomes)  # type: ignore[arg-type]
    explanation, steps = explained(record)
    assert said in steps[stage]
    assert "drawn" not in steps
    assert explanation.without_exploration.item_ids == ()


def test_an_explanation_says_that_the_default_was_answered_too() -> None:
    """Where nobody knows which of the two was shown."""
    record = decide(SITE)
    _, steps = explained(replace(record, default_also_answered=True, choice=replace(record.choice, learnable=False)))
    assert steps["served"].endswith("another attempt under the same id was answered the default; never learned from")


def test_a_cut_is_not_told_of_nobodys_candidates_that_are_not_kept() -> None:
    """`the first 0 of 1500` would be no word about what was considered."""
    record = decide(SITE, allowed=frozenset(), cut=Cut(1500, "clicks"))
    _, steps = explained(of_nobody(record))
    assert steps["eligible"] == "0 of 0 candidates"


@pytest.mark.parametrize(("by", "said"), [("clicks", "by clicks"), ("", "by their entry into the catalog")])
def test_a_cut_among_the_eligible_is_told(by: str, said: str) -> None:
    """How many of how many, in which order, and the setting that bounds them."""
    _, steps = explained(decide(SITE, cut=Cut(1500, by)))
    assert steps["eligible"].endswith(
        f"the first 6 of 1500 eligible items {said}, bounded by COMITY_DECISION_OFFERED_MAX"
    )


def test_the_catalog_tells_how_many_each_rule_excludes() -> None:
    """Where no candidates are named the excluded are none: without it, "0 of 0 candidates" is all there is."""
    rule = "item.attributes.price < context.limit || item.attributes.stokc > 0.0"
    for source, said in (
        ("item.attributes.price < 4.0", "6 items; 2 INELIGIBLE by the rule item.attributes.price < 4.0"),
        ("item.attributes.stokc > 4.0", "6 items; 6 RULE_ERROR by the rule item.attributes.stokc > 4.0"),
        (rule, "6 items"),
    ):
        compiled = site(policy=replace(POLICY, eligibility=source))
        plan = compiled.plans[PLACEMENT.id]
        record = decide(compiled, context={"limit": 3.0})
        record = replace(record, versions=replace(record.versions, catalog="1"))
        assert [step.finding for step in of_catalog(record, plan, view(compiled))] == [said]
        changed = replace(record, versions=replace(record.versions, catalog="2"))
        assert not list(of_catalog(changed, plan, view(compiled)))
        assert not list(of_catalog(record, plan, view(site())))


@pytest.mark.parametrize(
    ("asked", "item_id", "said"),
    [
        (None, "item-4", "excluded, INELIGIBLE by the rule item.attributes.price < 4.0"),
        (["item-1"], "item-5", "excluded, INELIGIBLE by the rule item.attributes.price < 4.0"),
        (["item-1"], "item-1", "shown at place 1"),
        (["item-1"], "item-2", "may be shown, and was not among the candidates"),
        (["item-1"], "nothing", "excluded, UNKNOWN_ITEM"),
        (["item-0", "item-1", "item-2", "item-3"], "", "eligible, and others came before it"),
    ],
)
def test_an_explanation_says_why_one_item_is_there_or_not(asked: list[str] | None, item_id: str, said: str) -> None:
    """By the record where it was a candidate, else by the pinned rule and the item as it was."""
    record = decide(SITE, asked=asked)
    (item_id,) = {item_id} - {""} or set(asked or ()) - set(record.choice.slate.item_ids)
    item = {item.id: item for item in ITEMS}.get(item_id)
    assert of_item(record, SITE.plans[PLACEMENT.id], item_id, item).finding == f"{item_id}: {said}"
