"""Compliance as code: what uses people's data without account, or where it never may, is refused by name and line."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from comity.features.v1 import feature_set_pb2 as features_pb
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.bundle import Declared, Problem, load_bundle
from cli.bundle.checks.never import forbidden_names, words_of
from cli.bundle.checks.never_list import BUILT_IN
from cli.main import app
from services.decision.domain.rules import names_of
from tests.unit.bundle.samples import RANKLENS, SHOP, Edit, problems_of

REMEDY = "remove it, or name who answers for it and why under `allow` of never.yaml"


def only_problem(folder: Path) -> Problem:
    found = problems_of(folder)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def line_of(folder: Path, problem: Problem) -> str:
    """The text of the line that the problem names."""
    return (folder / problem.file).read_text().splitlines()[problem.line - 1]


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "says", "remedy"),
    [
        (
            "features.yaml",
            "  purposes: [profile_personalization]\n  owner: data-science\n  reason: Tells",
            "  owner: data-science\n  reason: Tells",
            "- name: subject_clicks",
            "subject_count tells something about a person",
            "name the purposes it is used for",
        ),
        (
            "features.yaml",
            "  owner: data-science\n  reason: Tells",
            "  reason: Tells",
            "- name: subject_clicks",
            "is missing",
            "name who answers for it",
        ),
        (
            "features.yaml",
            "  reason: Tells how much the affinities below can be trusted.\n",
            "",
            "- name: subject_clicks",
            "is missing",
            "say why it is wanted at all",
        ),
        (
            "features.yaml",
            "mornings for errands.\n  retention_days: 1\n",
            "mornings for errands.\n",
            "- name: hour",
            "is missing",
            "say after how many days it is deleted",
        ),
        (
            "features.yaml",
            "trusted.\n  retention_days: 180",
            "trusted.\n  retention_days: 366",
            "  retention_days: 366",
            "purpose 'profile_personalization' keeps data for 365 days",
            "keep it for 365 days at most, or raise the purpose's retention_days and its version",
        ),
        (
            "events/click.yaml",
            "purposes: [measurement]\n",
            "",
            "type: click",
            "an event is something a person did",
            "name the purposes it is stored for",
        ),
        ("events/click.yaml", "owner: analytics\n", "", "type: click", "is missing", "name who answers for it"),
        (
            "events/click.yaml",
            "reason: What the ranking is trained on and measured by.\n",
            "",
            "type: click",
            "is missing",
            "say why it is wanted at all",
        ),
        (
            "events/click.yaml",
            "retention_days: 180\n",
            "",
            "type: click",
            "is missing",
            "say after how many days it is deleted",
        ),
        (
            "events/click.yaml",
            "retention_days: 180",
            "retention_days: 181",
            "retention_days: 181",
            "purpose 'measurement' keeps data for 180 days",
            "keep it for 180 days at most, or raise the purpose's retention_days and its version",
        ),
        (
            "placements.yaml",
            "  purposes: [profile_personalization]\n  policy_id: row",
            "  purposes: [model_training]\n  policy_id: row",
            "  purposes: [model_training]",
            "are no feature's",
            "name the purposes of the features it ranks by",
        ),
    ],
)
def test_what_is_not_accounted_for_is_refused(
    shop: Path, edit: Edit, file: str, old: str, new: str, line: str, says: str, remedy: str
) -> None:
    """A use of people's data says what for, who asks, why and for how long; the refusal has the line and the remedy."""
    edit(file, old, new)
    problem = only_problem(shop)
    assert problem.file == file
    assert line_of(shop, problem) == line
    assert says in problem.problem
    assert problem.remedy == remedy


@pytest.mark.parametrize(
    ("old", "new", "path", "says"),
    [
        ("LEVEL_ANONYMOUS, p", "LEVEL_KNOWN, p", "[0].layers[1].level", "does not rise"),
        ("LEVEL_PSEUDONYMOUS, p", "LEVEL_ANONYMOUS, p", "[0].layers[1].level", "does not rise"),
        ("LEVEL_ANONYMOUS, p", "LEVEL_UNSPECIFIED, p", "[0].layers[0].level", ""),
        ("LEVEL_ANONYMOUS, p", "LEVEL_STRANGER, p", "[0].layers[0].level", ""),
        (
            "  purposes: [session_personalization, profile_personalization]\n",
            "  purposes: [profile_personalization]\n",
            "[0].layers[0].purposes[0]",
            "is no purpose of it",
        ),
        ("purposes: [profile_personalization]}", "purposes: [profile]}", "[0].layers[1].purposes[0]", "is no purpose"),
    ],
)
def test_layers_that_make_no_sense_are_refused(
    shop: Path, edit: Edit, old: str, new: str, path: str, says: str
) -> None:
    """Not rising, weaker than the weakest, unknown levels and purposes: with field and line."""
    edit("placements.yaml", old, new)
    found = [problem for problem in problems_of(shop) if problem.path == path]
    assert found, problems_of(shop)
    assert says in found[0].problem
    assert found[0].line > 0


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("features.yaml", "- name: hour", "- name: health_score", "'health_score' tells of a person's health"),
        ("features.yaml", "{key: hour,", "{key: isPregnant,", "'isPregnant' tells of a person's health"),
        ("events/click.yaml", "type: click", "type: diagnosis_read", "'diagnosis_read' tells of a person's health"),
        ("events/purchase.yaml", "name: amount", "name: card_number", "'card_number' tells of means of payment"),
        ("purposes.yaml", "id: site_optimization", "id: voter_targeting", "'voter_targeting' tells of a person's pol"),
        ("policies.yaml", "has(context.gift)", "has(context.religion)", "'religion' tells of a person's religious"),
        ("policies.yaml", "has(context.gift)", 'context["Home-Address"] == ""', "'Home-Address' tells of where"),
        ("policies.yaml", "- id: row", "- id: children", "'children' tells of children"),
        (
            "policies.yaml",
            "- id: row\n",
            "- id: row\n  audience: 'context.group == \"pregnant\"'\n",
            "'pregnant' tells of",
        ),
        ("events/purchase.yaml", "name: amount", "name: gender_guess", "'gender_guess' is never used about people, by"),
        ("features.yaml", "{key: hour,", "{key: postalcode,", "'postalcode' stands in for ethnicity"),
        ("features.yaml", "- name: hour", "- name: first_names", "'first_names' stands in for gender"),
    ],
)
def test_a_name_of_the_never_list_is_refused(shop: Path, edit: Edit, file: str, old: str, new: str, says: str) -> None:
    """Special categories, the site's own rules and what stands in for them: wherever names of data are declared."""
    edit(file, old, new)
    found = [problem for problem in problems_of(shop) if problem.remedy == REMEDY]
    assert len(found) == 1, [str(problem) for problem in problems_of(shop)]
    assert found[0].file == file
    assert says in found[0].problem
    name = says.split("'")[1]
    assert name in line_of(shop, found[0]) + line_of(shop, found[0]).replace('"', "")


def test_an_attribute_of_items_that_a_feature_reads_is_looked_at(shop: Path, edit: Edit) -> None:
    """A person's affinity to a sensitive attribute of items is data about the person."""
    text = (shop / "items.yaml").read_text()
    (shop / "items.yaml").write_text(text.replace("brand:", "religion:"))
    assert problems_of(shop)  # the features read `brand`, which is gone
    features = (shop / "features.yaml").read_text()
    (shop / "features.yaml").write_text(
        features.replace("attribute: brand", "attribute: religion").replace(", brand", "")
    )
    problem = only_problem(shop)
    assert problem.path.endswith("category_affinity.attribute")
    assert "attribute: religion" in line_of(shop, problem)
    assert problem.remedy == REMEDY


def test_a_refusal_by_the_site_names_the_rule(shop: Path, edit: Edit) -> None:
    """Who is refused by never.yaml finds the rule and its reason."""
    edit("features.yaml", "- name: hour", "- name: salutation_hour")
    rule = next(
        number
        for number, line in enumerate((shop / "never.yaml").read_text().splitlines(), start=1)
        if "attribute: gender" in line
    )
    assert f"by never.yaml:{rule}: Goods and services" in only_problem(shop).problem


def allow(shop: Path, name: str, *, approver: str = "approver: Data protection officer") -> None:
    with (shop / "never.yaml").open("a") as file:
        file.write(f"allow:\n  - name: {name}\n    reason: Bicycles.\n    {approver}\n")


def test_an_exception_is_explicit_and_is_told(shop: Path, edit: Edit) -> None:
    """What is allowed all the same has a reason and an approver, and every check says so."""
    edit("features.yaml", "- name: hour", "- name: race_bike_hour")
    assert only_problem(shop).remedy == REMEDY
    allow(shop, "race_bike_hour")
    assert problems_of(shop) == []
    people = CliRunner().invoke(app, ["check", str(shop)])
    assert people.exit_code == 0
    assert "race_bike_hour" in people.output
    assert "Data protection officer" in people.output
    programs = CliRunner().invoke(app, ["check", str(shop), "--json"])
    assert json.loads(programs.stdout)["allowed"] == [
        {"name": "race_bike_hour", "approver": "Data protection officer", "reason": "Bicycles."}
    ]


def test_an_exception_without_an_approver_is_refused(shop: Path, edit: Edit) -> None:
    """Nobody allows anything in nobody's name."""
    edit("features.yaml", "- name: hour", "- name: race_bike_hour")
    allow(shop, "race_bike_hour", approver="")
    problem = only_problem(shop)
    assert (problem.file, problem.remedy) == ("never.yaml", "name the person who decided")


def test_an_exception_covers_one_name_only(shop: Path, edit: Edit) -> None:
    """Allowing a name does not allow the word in it."""
    edit("features.yaml", "- name: hour", "- name: race_bike_hour")
    edit("features.yaml", "{key: hour,", "{key: race,")
    allow(shop, "race_bike_hour")
    assert "'race'" in only_problem(shop).problem


def test_an_exception_that_is_none_is_refused(shop: Path) -> None:
    """What allows nothing would allow something unseen one day."""
    allow(shop, "race_bike_hour")
    problem = only_problem(shop)
    assert problem.file == "never.yaml"
    assert line_of(shop, problem).strip() == "- name: race_bike_hour"
    assert problem.remedy == "remove it, or write the name as it is declared"


def test_a_second_list_is_refused(shop: Path) -> None:
    """never.yaml holds one list: of two one would be read without the other."""
    (shop / "never.yaml").write_text("- rules: []\n- rules: []\n")
    assert only_problem(shop).problem == "is a second one"


def test_without_a_list_of_its_own_a_site_has_the_built_in_one(shop: Path, edit: Edit) -> None:
    """never.yaml adds; it is not what protects."""
    (shop / "never.yaml").unlink()
    assert problems_of(shop) == []
    edit("features.yaml", "- name: hour", "- name: sexual_orientation")
    assert only_problem(shop).remedy == REMEDY


@pytest.mark.parametrize("example", [SHOP, RANKLENS])
def test_the_examples_say_what_they_never_use(example: Path) -> None:
    """Both examples show a list of their own, and need no exception."""
    never = load_bundle(example).never.message
    assert never.rules
    assert not never.allow


def keys_refused(keys: Sequence[str]) -> list[str]:
    """Which of these keys of the context a feature may not read."""
    features = [features_pb.Feature(name="f", context_value=features_pb.ContextValue(key=key)) for key in keys]
    declared = tuple(Declared(feature, "features.yaml", f"[{i}]") for i, feature in enumerate(features))
    problems = forbidden_names(replace(load_bundle(SHOP), features=declared))
    return [keys[int(problem.path[1 : problem.path.index("]")])] for problem in problems]


def test_every_phrase_of_the_built_in_list_is_found() -> None:
    """A phrase is found as it stands, among other words, in the plural, written together and in camel case."""
    phrases = [phrase for one in BUILT_IN for phrase in (one.name, *one.synonyms)]
    camel = ["".join(word.capitalize() for word in phrase.split("_")) for phrase in phrases]
    together = [phrase.replace("_", "") for phrase in phrases]
    keys = [*phrases, *together, *(f"their_{phrase}_x" for phrase in phrases), *(f"their{word}" for word in camel)]
    assert keys_refused(keys) == keys


def test_a_part_of_a_word_is_no_word() -> None:
    """Names are compared by whole words, so that innocent ones pass."""
    assert keys_refused(["trace_id", "healthcheck", "embrace", "platform", "later", "general", "unionized"]) == []


@pytest.mark.parametrize(
    "key",
    [
        "HIVStatus", "userSSN", "SSNs", "hasHIV", "ssn2", "lat1", "lastIPAddress", "under13", "under13s",
        "Under13Group", "ip_addresses", "illnesses", "churches", "diagnoses", "allergies", "home_addresses", "tax_ids",
    ],
)  # fmt: skip
def test_a_word_is_found_however_it_is_written(key: str) -> None:
    """Acronyms, numbers behind a word, and plurals, all as names are given in practice."""
    assert keys_refused([key]) == [key]


@given(st.text(max_size=40))
def test_words_never_hold_what_parts_them(name: str) -> None:
    """Any text has words, and they are made of small letters and digits."""
    assert all(word and set(word) <= set("abcdefghijklmnopqrstuvwxyz0123456789") for word in words_of(name))


def test_values_and_comments_of_a_rule_are_no_names() -> None:
    """What a rule compares with is no name: leaving health books out must stay possible."""
    source = """!("health" in item.categories["topic"]) // religion
        && context.gift == 'race' && context["age_band"] == "x" """
    assert {"topic", "age_band", "gift"} <= names_of(source)
    assert not {"health", "religion", "race", "x"} & names_of(source)
