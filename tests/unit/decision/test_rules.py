"""Rules say yes, no or error, know what they read, and say where they are wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.decision.domain.rules import (
    RuleError,
    Scope,
    Verdict,
    attributes_of,
    compile_audience,
    compile_eligibility,
    context_keys_of,
    require_bounded,
)
from services.decision.domain.site import Item
from services.decision.domain.vocabulary import Level

DIGITS = str(list(range(10))).replace(" ", "")
DIGITS_FIVE_DEEP = "".join(f"{DIGITS}.all({name}," for name in "abcde") + "{})))))"
DOUBLING = f'["{"x" * 20}"]' + ".map(l, l+l+l+l+l+l+l+l)" * 7 + ".size() > 0"
OVER_BUDGET = DIGITS_FIVE_DEEP.format("item.id == 'a'")
ITEM = Item("a", categories={"tags": ("sale", "red")}, numbers={"price": 9.5})


@pytest.mark.parametrize(
    ("source", "scope"),
    [
        ('"sale" in item.categories.tags', Scope.ITEM),
        ('item.id != "a"', Scope.ITEM),
        ('context.device == "phone"', Scope.CONTEXT),
        ("item.attributes.price < 10.0 && context.hour > 18", Scope.BOTH),
    ],
)
def test_a_rule_knows_what_it_depends_on(source: str, scope: Scope) -> None:
    """A rule over items alone is asked once a catalog, one over the context once a Decide."""
    assert compile_eligibility(source).scope is scope


def test_a_rule_says_yes_or_no() -> None:
    """Categories, attributes and context are read by name."""
    rule = compile_eligibility('"sale" in item.categories["tags"] && item.attributes.price < context.limit')
    assert rule.about(ITEM, {"limit": 10.0}) is Verdict.YES
    assert rule.about(ITEM, {"limit": 9.0}) is Verdict.NO


@pytest.mark.parametrize("context", [{}, {"hour": "late"}])
def test_what_cannot_be_evaluated_is_an_error_and_no_grant(context: dict[str, str]) -> None:
    """A missing key and a wrong type are errors; the reader excludes."""
    assert compile_eligibility("context.hour > 18").about_context(context) is Verdict.ERROR


def test_a_rule_whose_value_is_no_boolean_is_an_error() -> None:
    """A dynamic value that is not a boolean is never taken as true."""
    assert compile_eligibility("context.flag").about_context({"flag": 1.0}) is Verdict.ERROR
    assert compile_eligibility("context.flag").about_context({"flag": True}) is Verdict.YES


def test_what_raises_is_an_error_and_no_grant() -> None:
    """CEL's iteration budget is exceeded: the binding raises, of an item, of the context and of both."""
    over = {"x": 1.0}
    assert compile_eligibility(OVER_BUDGET).about_item(ITEM) is Verdict.ERROR
    assert compile_eligibility(DIGITS_FIVE_DEEP.format("context.x > 0.0")).about_context(over) is Verdict.ERROR
    assert compile_audience(DIGITS_FIVE_DEEP.format("context.x > 0.0")).about_context(over) is Verdict.ERROR
    both = DIGITS_FIVE_DEEP.format("item.id == 'a' && context.x > 0.0")
    assert compile_eligibility(both).about(ITEM, over) is Verdict.ERROR


@pytest.mark.parametrize(
    "source",
    [
        'item.categories.exists(k, item.categories[k].exists(v, v == "x"))',
        'item . categories["tags"].all(v, v != "a") && item.categories.tags.exists_one(v, v == "b")',
        '["a",\n"b"].exists(v, v in item.categories.tags)',
        "true || [1, -2.5, 3u, true].map(v, v) == []",
        '"a" in ["a"].filter(v, v != "b")',
        "item.id == '.map(' // .map(",
        "size(item.categories.tags.map(v, v + v)) > 0",
        "[1].all(a, true) && [1].all(a, true) && [1].all(a, true)",
    ],
)
def test_a_comprehension_over_categories_or_a_few_values_is_bounded(source: str) -> None:
    """Also one in another, and what only looks like one in a string or a comment."""
    compile_eligibility(source)
    require_bounded(source)


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (DOUBLING, "line 1, column 49"),
        ("item.attributes.exists(k, true)", "line 1, column 16"),
        ("true &&\ncontext.x.exists(v, true)", "line 2, column 10"),
        ("item.categories.map(k, k).exists(k, true)", "line 1, column 26"),
        ("[[1, 2]].exists(x, x.exists(y, y == 1))", "line 1, column 9"),
        ("[1].map(v, [v, v])[0].exists(v, true)", "line 1, column 22"),
        ("[item.id].exists(v, true)", "line 1, column 10"),
        ("QQQa\\QQQ.QQQ.size() > 0 && item.attributes.exists(k, true)".replace("Q", "'"), "line 1, column 43"),
        (f"[{','.join('1' * 33)}].exists(v, true)", "line 1, column 68"),
        (OVER_BUDGET, "line 1, column 78"),
    ],
)
def test_any_other_comprehension_is_refused_with_its_place(source: str, place: str) -> None:
    """What it runs over may grow with every step; the refusal says what it may run over."""
    compile_eligibility(source)
    with pytest.raises(RuleError) as refused:
        require_bounded(source)
    assert str(refused.value).startswith(place)
    assert refused.value.remedy


def test_an_audience_reads_the_level() -> None:
    """Whom a policy is for may depend on how well they are known."""
    rule = compile_audience('level == "KNOWN"')
    assert rule.about_context({}, Level.KNOWN) is Verdict.YES
    assert rule.about_context({}, Level.ANONYMOUS) is Verdict.NO


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("item.prize < 10.0", "line 1, column 5"),
        ("true &&\n  nobody", "line 2, column 3"),
        ("item.attributes.price < 10", "write 10.0, not 10"),
        ('"sale"', "true or false"),
        ("1 +", "ends too early"),
        ("context.all(k, true)", "by name"),
        ("context[item.id] == 1", "by name"),
        ("size(context) > 1", "by name"),
    ],
)
def test_a_wrong_rule_says_where_and_what(source: str, said: str) -> None:
    """The refusal carries the place and the remedy."""
    with pytest.raises(RuleError, match=said):
        compile_eligibility(source)


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ('context.device == "phone" && context["os"] == "x"', {"device", "os"}),
        ('"context.not" == context.yes', {"yes"}),
        ("has(context.device) // context.comment", {"device"}),
        ('item.id == "a"', set()),
    ],
)
def test_the_context_keys_are_those_that_are_named(source: str, keys: set[str]) -> None:
    """What a rule reads of the context is known from its text."""
    assert context_keys_of(source) == keys


@given(st.dictionaries(st.sampled_from(["hour", "other"]), st.floats(0, 24), max_size=2))
def test_what_a_rule_does_not_name_does_not_change_it(context: dict[str, float]) -> None:
    """Only the named keys reach the rule, so what is logged is all that it read."""
    rule = compile_eligibility("context.hour > 18")
    named = {key: value for key, value in context.items() if key == "hour"}
    assert rule.about_context(context) is rule.about_context(named)


def test_a_rule_knows_which_attributes_and_categories_it_reads() -> None:
    """By either notation; functions, comments, strings and computed names are none."""
    source = """has(item.attributes.stock) && item.attributes["price"] > (1.0) && item.categories.exists(k, k == "a")
        && "x" in item.categories.tags && "item.attributes.text" != item.id // item.attributes.comment"""
    compile_eligibility(source)
    assert attributes_of(source) == {("attributes", "stock"), ("attributes", "price"), ("categories", "tags")}


@pytest.mark.parametrize(
    ("context", "dear_is_shown"),
    [({}, True), ({"gift": True}, False), ({"gift": False}, True), ({"gift": ""}, True), ({"gift": 0.0}, True)],
)
def test_the_shop_takes_only_who_says_so_for_a_gift_seeker(context: dict[str, Any], dear_is_shown: bool) -> None:
    """People copy examples: gift=false, an empty gift and 0 say that it is none."""
    policies = yaml.safe_load((Path(__file__).parents[3] / "examples/shop/policies.yaml").read_text())
    (source,) = [policy["eligibility"] for policy in policies if policy["id"] == "row"]
    rule = compile_eligibility(source)
    assert (rule.about(Item("dear", numbers={"stock": 1.0, "price": 80.0}), context) is Verdict.YES) is dear_is_shown
    assert rule.about(Item("cheap", numbers={"stock": 1.0, "price": 8.0}), context) is Verdict.YES
