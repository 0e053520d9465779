"""A site that cannot work is refused whole, with every mistake named."""

from dataclasses import replace
from typing import Any

import pytest

from services.chassis.errors import Kind, ServiceError
from services.decision.domain.layout import Column, DotColumn, ItemColumn, SubjectColumn
from services.decision.domain.plan import compile_site
from services.decision.domain.site import DefaultEntry, Site
from tests.unit.decision.world import FEATURE_SET, PLACEMENT, POLICY, site

SITE = Site("shop", "1", 0.1, (PLACEMENT,), (POLICY,), FEATURE_SET.version)


def refusal(broken: Site) -> dict[str, str]:
    with pytest.raises(ServiceError) as caught:
        compile_site(broken, FEATURE_SET)
    assert caught.value.kind is Kind.INVALID
    return {problem.field: problem.problem for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"eligibility": "item.prize < 1.0"}, "eligibility", "line 1, column 5"),
        ({"audience": "item.id == 'a'"}, "audience", "undeclared"),
        ({"model": ""}, "ranker", "either"),
        ({"column": "price"}, "ranker", "either"),
        ({"model": "", "column": "nothing"}, "ranker.column", "features.yaml"),
        ({"popular_by": "visits"}, "popular_by", "item alone"),
        ({"popular_by": "nothing"}, "popular_by", "item column"),
        ({"epsilon": float("nan")}, "epsilon", "probability"),
        ({"epsilon": 1.5}, "epsilon", "probability"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(changes: dict[str, Any], field: str, remedy: str) -> None:
    """The refusal names the field of the policy and the remedy."""
    problems = refusal(replace(SITE, policies=(replace(POLICY, **changes),)))
    assert remedy in problems[f"site.policies[0].{field}"]


def test_numbers_that_are_none_are_refused() -> None:
    """Of a stored site nobody else asks: NaN draws no holdout, and no slate has fewer entries than one."""
    broken = replace(SITE, holdout_share=float("nan"), placements=(replace(PLACEMENT, slate_size=0),))
    assert refusal(broken).keys() >= {"site.holdout_share", "site.placements[0].slate_size"}


FAR, WIDE = 2**31, 2**32 - 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"subject_width": WIDE}, "feature_set.subject_width"),
        ({"item_width": WIDE}, "feature_set.item_width"),
        ({"columns": FEATURE_SET.columns * 103}, "feature_set.columns"),
        ({"columns": (Column("a", "a", (), ItemColumn(FAR)),)}, "feature_set.columns[0]"),
        ({"columns": (Column("a", "a", (), ItemColumn(4)),)}, "feature_set.columns[0]"),
        ({"columns": (Column("a", "a", (), SubjectColumn(FAR)),)}, "feature_set.columns[0]"),
        ({"columns": (Column("a", "a", (), DotColumn(0, 0, WIDE)),)}, "feature_set.columns[0]"),
        ({"columns": (Column("a", "a", (), DotColumn(1, FAR, 2)),)}, "feature_set.columns[0]"),
        ({"columns": (Column("a", "a", (), DotColumn(2, 1, 2)),)}, "feature_set.columns[0]"),
    ],
)
def test_a_feature_set_that_reads_beyond_its_widths_is_refused(changes: dict[str, Any], field: str) -> None:
    """Before anything is made of it: offsets and widths of 32 bits would cost a gigabyte."""
    with pytest.raises(ServiceError) as caught:
        compile_site(SITE, replace(FEATURE_SET, **changes))
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "SITE_INVALID")
    assert field in {problem.field for problem in caught.value.problems}


def test_every_mistake_is_named_at_once() -> None:
    """Placements point to policies that exist, defaults fit their slate, ids appear once."""
    broken = replace(PLACEMENT, policy_id="nobody", slate_size=1)
    problems = refusal(replace(SITE, placements=(broken, broken), feature_set_version="other"))
    assert "home" in problems["site.placements[0].policy_id"]
    assert "slate_size" in problems["site.placements[0].default_slate"]
    assert "twice" in problems["site.placements[1]"]
    assert "version" in problems["site.feature_set_version"]


def test_an_entry_twice_in_a_default_slate_is_refused() -> None:
    """A slate shows an item once."""
    twice = replace(PLACEMENT, default_slate=(DefaultEntry("a"), DefaultEntry("a")))
    assert "twice" in refusal(replace(SITE, placements=(twice,)))["site.placements[0].default_slate[1]"]


def test_a_plan_knows_what_of_the_context_is_read() -> None:
    """Rules and columns name what is logged of the context."""
    policy = replace(POLICY, eligibility='context.device == "x"', audience="has(context.beta)")
    assert site(policy=policy).plans[PLACEMENT.id].context_keys == {"device", "beta", "hour"}
