"""`comity check`: every mistake in a bundle is found, with its line and what to do about it."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.bundle import BundleError, check_bundle, load_bundle
from cli.bundle.document import FILE_BYTES_MAX
from cli.main import app
from tests.unit.bundle.samples import SHOP, Edit, problems_of
from tests.unit.decision.test_rule_trial import LARGE_PATTERNS
from tests.unit.decision.test_rules import DOUBLING


def test_the_shop_is_sound() -> None:
    """The example is a bundle without a problem, and all of it is read."""
    bundle = load_bundle(SHOP)
    assert bundle.head.message.name == "harbor_lane"
    assert len(bundle.items) == 49
    assert {event.message.type for event in bundle.events} >= {"exposure", "click", "purchase", "page_viewed"}


@pytest.mark.parametrize(
    ("file", "old", "new", "field", "says"),
    [
        ("site.yaml", "holdout_share: 0.10", "holdout_share: 0.7", "holdout_share", "0 to 0.5"),
        ("site.yaml", "holdout_share: 0.10", 'holdout_share: "0.1"', "holdout_share", "must be a number"),
        ("site.yaml", "holdout_share: 0.10", "holdout_share:", "holdout_share", "has no value"),
        ("site.yaml", "controller: Harbor Lane Ltd.", "# ", "controller", "nobody answers to people for their data"),
        ("site.yaml", "name: harbor_lane", "nmae: harbor_lane", "nmae", "did you mean name?"),
        ("site.yaml", "name: harbor_lane", "name: Harbor Lane", "name", "name"),
        (
            "site.yaml",
            "name: harbor_lane",
            "name: harbor_lane\nfeature_set_version: x",
            "feature_set_version",
            "remove it",
        ),
        ("purposes.yaml", "version: 1", "version: one", "version", "must be a whole number"),
        ("purposes.yaml", "version: 1", "version: -1", "version", "must be a whole number"),
        ("purposes.yaml", "legal_basis: consent", "legal_basis: vibes", "legal_basis", ""),
        ("purposes.yaml", "- id: measurement", "- id: model_training", "id", "is declared already in purposes.yaml"),
        ("purposes.yaml", "owner: analytics", "owner: no", "owner", "is read by YAML as a boolean"),
        ("features.yaml", "numerator: click", "numerator: clik", "item_rate.numerator", "did you mean 'click'?"),
        (
            "features.yaml",
            "attribute: price,",
            "attribute: prize,",
            "item_attribute.attribute",
            "did you mean 'price'?",
        ),
        ("features.yaml", "item_attribute: {attribute: rating}", "", "", "has no kind"),
        (
            "events/purchase.yaml",
            "reward: 5.0",
            "reward_property: amonut",
            "reward_property",
            "no number among the properties",
        ),
        ("events/exposure.yaml", "type: exposure", "type: exposure\nreward: -1", "reward", "being shown is no outcome"),
        ("features.yaml", "TRANSFORM_LOG1P", "LOG", "transform", "TRANSFORM_LOG1P"),
        (
            "features.yaml",
            "  purposes: [profile_personalization]\n",
            "",
            "purposes",
            "subject_count tells something about a person",
        ),
        ("placements.yaml", "policy_id: row", "policy_id: rwo", "policy_id", "did you mean 'row'?"),
        ("placements.yaml", "slate_size: 3", "slate_size: 4", "default_slate", "slate_size is 4"),
        ("placements.yaml", "slate_size: 3", "slate_size: 0", "slate_size", ""),
        ("placements.yaml", "item_id: tote,", "item_id: totte,", "default_slate[0].item_id", "did you mean 'tote'?"),
        (
            "placements.yaml",
            "item_id: tote,",
            "item_id: puzzle,",
            "default_slate[5].item_id",
            "stands in the slate twice",
        ),
        ("placements.yaml", "item_id: tote,", "item_id: vhs-rewinder,", "default_slate[0].item_id", "is retired"),
        ("placements.yaml", "variant_id: photo", "variant_id: video", "default_slate[0].variant_id", "is no variant"),
        ("placements.yaml", "[photo, story]", "[photo, stroy]", "variants[1]", "did you mean 'story'?"),
        (
            "placements.yaml",
            "  purposes: [profile_personalization]\n  policy_id: row",
            "  purposes: [profil_personalization]\n  policy_id: row",
            "purposes[0]",
            "did you mean 'profile_",
        ),
        ("policies.yaml", "item.attributes.stock > 0.0", "item.attributes.stock >", "eligibility", "line 1, column"),
        ("policies.yaml", "item.attributes.stock > 0.0", "item.attributes.stock", "eligibility", "true or false"),
        ("policies.yaml", "item.attributes.stock >", "item.attributes.stokc >", "eligibility", "did you mean 'stock'?"),
        (
            "policies.yaml",
            "item.attributes.stock > 0.0\n",
            "'item.categories[\"brnad\"] != []'\n",
            "eligibility",
            "did you mean 'brand'?",
        ),
        ("policies.yaml", "has(context.gift)", "has(context.huor)", "eligibility", "did you mean 'hour'?"),
        (
            "policies.yaml",
            "item.attributes.stock > 0.0\n",
            f"'{DOUBLING}'\n",
            "eligibility",
            "run over item.categories",
        ),
        (
            "policies.yaml",
            "item.attributes.stock > 0.0\n",
            f"'{LARGE_PATTERNS}'\n",
            "eligibility",
            "make the rule smaller",
        ),
        ("policies.yaml", "epsilon: 0.10", "epsilon: 1.5", "epsilon", "0 to 1"),
        ("policies.yaml", "epsilon: 0.10", "epsilon: .nan", "epsilon", ""),
        ("policies.yaml", "popular_by: item_click_rate", "popular_by: item_clicks", "popular_by", "is no feature"),
        ("policies.yaml", "popular_by: item_click_rate", "popular_by: subject_clicks", "popular_by", "is no feature"),
        ("policies.yaml", "{model: shop_clicks}", "{model: m, column: c}", "ranker", "keep one of them"),
        ("policies.yaml", "{model: shop_clicks}", "{model: ''}", "ranker.model", ""),
        ("policies.yaml", "{column: item_click_rate}", "{column: nothing}", "ranker.column", "is no feature"),
        ("items.yaml", "variants: [photo, story]", "variants: photo", "variants", "must be a list"),
        ("items.yaml", "- id: tote", "- id: trail-runner", "id", "is declared already"),
        ("items.yaml", "numbers: {price: 49", "numbers: {1: 49", 'numbers["1"]', "put it in quotes"),
        ("items.yaml", "numbers: {price: 49", "numbers: {price: 49,90, x: 49", "numbers", "write 49.90"),
        ("events/click.yaml", "reward: 1.0", "reward: 1,5", "reward", "write 1.5"),
        ("events/click.yaml", "type: click", "type: click\n<<: {owner: x}", "", "merges another mapping"),
        ("purposes.yaml", "version: 1", f"version: {'9' * 5000}", "version", "must be a whole number"),
        ("policies.yaml", "item.attributes.stock > 0.0", "item.attributes.stock > 0", "eligibility", "write 10.0"),
        ("policies.yaml", "item.attributes.stock > 0.0\n", f"{'(' * 200}true{')' * 200}\n", "eligibility", "too deep"),
        ("events/click.yaml", "reward: 1.0", "reward: .inf", "reward", ""),
        (
            "events/purchase.yaml",
            "PROPERTY_KIND_NUMBER",
            "PROPERTY_KIND_MONEY",
            "properties[0].kind",
            "PROPERTY_KIND_STRING",
        ),
        ("events/click.yaml", "purposes: [measurement]", "purposes: [measuring]", "purposes[0]", "is no purpose"),
    ],
)
def test_a_mistake_is_named_with_its_field_its_line_and_a_remedy(
    shop: Path, edit: Edit, file: str, old: str, new: str, field: str, says: str
) -> None:
    """One change that makes the bundle wrong gives a problem there that says what to do."""
    edit(file, old, new)
    found = [problem for problem in problems_of(shop) if problem.file == file]
    matching = [problem for problem in found if problem.path.endswith(field) and says in str(problem)]
    assert matching, [str(problem) for problem in found]
    line = (shop / file).read_text().splitlines()[matching[0].line - 1]
    assert line.strip()
    assert matching[0].remedy


@pytest.mark.parametrize(
    ("file", "old", "new", "path"),
    [
        ("items.yaml", "- id: kite", '- id: "kite\\e[2J"', ".id"),
        ("placements.yaml", "item_id: tote", 'item_id: "tote\\u202e"', ".item_id"),
        ("purposes.yaml", "owner: ", 'owner: "\\x85" # ', ".owner"),
    ],
)
def test_id_that_moves_a_cursor_or_turns_the_writing_is_refused(
    shop: Path, edit: Edit, file: str, old: str, new: str, path: str
) -> None:
    """The rule of the protos, with file and line, before anything is published."""
    edit(file, old, new)
    found = [one for one in problems_of(shop) if one.file == file and one.path.endswith(path)]
    assert any("a control character, a line break" in one.problem and one.line for one in found), problems_of(shop)


def test_more_than_a_call_takes_is_found_before_a_service_is_asked(shop: Path) -> None:
    """A list that is longer than the services take is a problem of its file."""
    features = (shop / "features.yaml").read_text()
    declared = [
        f"- name: more_{k}\n  description: more\n  owner: web\n  reason: {'r' * 1000}\n  retention_days: 30\n"
        "  context_value: {key: hour}\n"
        for k in range(256)
    ]
    (shop / "features.yaml").write_text(features + "\n" + "".join(declared))
    assert any("entries; at most 256 are allowed" in one.problem for one in problems_of(shop))


def test_every_problem_is_listed_not_only_the_first(shop: Path, edit: Edit) -> None:
    """Mistakes in several files, and several in one, are found in one go, in order of file and line."""
    edit("site.yaml", "holdout_share: 0.10", "holdout_share: 0.9")
    edit("placements.yaml", "policy_id: row", "policy_id: rwo")
    edit("placements.yaml", "item_id: tote", "item_id: totte")
    edit("policies.yaml", "epsilon: 0.10", "epsilon: 7")
    found = problems_of(shop)
    assert [problem.file for problem in found] == ["placements.yaml", "placements.yaml", "policies.yaml", "site.yaml"]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- id: [1\n", "is not YAML"),
        ("", "is empty"),
        ("just text\n", "must be a mapping"),
        ("- id: a\n  id: b\n", "stands here twice"),
        ("- &a {id: *a}\n", "must be a single value"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ('- id: "\\0"\n', ""),
    ],
)
def test_a_file_that_is_no_list_of_things_is_refused(shop: Path, text: str, says: str) -> None:
    """What is not YAML with one meaning is a problem of that file, not a crash."""
    (shop / "policies.yaml").write_text(text)
    found = [problem for problem in problems_of(shop) if problem.file == "policies.yaml"]
    assert found
    assert any(says in str(problem) for problem in found), [str(problem) for problem in found]


NESTED = "[" * 100_000
ALIASES = "".join(f"{key}: &{key} [{', '.join([f'*{before}'] * 9)}]\n" for before, key in pairwise("abcdefgh"))


@pytest.mark.parametrize(
    ("text", "says", "remedy"),
    [
        (NESTED, "nests more than 16 deep", "mend the syntax"),
        ("\n".join(" " * k + "- " for k in range(2000)), "nests more than 16 deep", "mend the syntax"),
        ("x" * (FILE_BYTES_MAX + 1), "has more than 4 MiB", "--items FEED"),
        ("a: &a [x, x]\n" + ALIASES, "", ""),
        ("- &i {id: x}\n" + "- *i\n" * 3, "is declared already", "remove one"),
        (f"- {{{', '.join(f'k{k}: 1' for k in range(500))}}}", "is no key that is known here", "known keys"),
        ("- {[a]: b}", "is no key", ""),
    ],
)
def test_a_hostile_file_ends_in_a_problem(shop: Path, text: str, says: str, remedy: str) -> None:
    """Depth, size and what aliases stand for are bounded, and so is what is said of them."""
    (shop / "items.yaml").write_text(text)
    found = [problem for problem in problems_of(shop) if problem.file == "items.yaml"]
    assert any(says in problem.problem and remedy in problem.remedy for problem in found), found[:3]
    assert len(found) <= 101


def test_aliases_that_stand_for_millions_of_values_are_refused_once(shop: Path) -> None:
    """A few kB of them would be read for ever."""
    values = f"values: [{', '.join(['a'] * 1000)}]"
    same = ", ".join(["c", *[f"c{k}: *c" for k in range(1, 500)]]).replace("c,", f"c: &c {{{values}}},", 1)
    (shop / "items.yaml").write_text(f"- &i\n  id: x\n  categories: {{{same}}}\n" + "- *i\n" * 100)
    told = [problem for problem in problems_of(shop) if "aliases stand for" in problem.problem]
    assert [(problem.file, problem.remedy) for problem in told] == [("items.yaml", "write it out without aliases")]
    assert told[0].line


def test_what_is_no_regular_file_is_named_and_not_opened(shop: Path) -> None:
    """A pipe would be waited for, a link to itself or a folder passed over without a word."""
    for name in ("items.yaml", "never.yaml", "notices.yaml", "events/click.yaml"):
        (shop / name).unlink()
    os.mkfifo(shop / "items.yaml")
    (shop / "never.yaml").symlink_to("never.yaml")
    (shop / "notices.yaml").mkdir()
    (shop / "events/click.yaml").symlink_to("gone")
    found = {problem.file: str(problem) for problem in problems_of(shop)}
    assert "is no regular file" in found.pop("items.yaml")
    assert "cannot be read" in found.pop("never.yaml")
    assert "is no regular file" in found.pop("notices.yaml")
    assert "cannot be read" in found.pop("events/click.yaml")
    assert found == {}


def test_one_file_that_cannot_be_read_is_one_problem(shop: Path, edit: Edit) -> None:
    """What refers to it is not wrong; it is looked at once the file can be read."""
    edit("purposes.yaml", "- id", "- id: [")
    assert [problem.file for problem in problems_of(shop)] == ["purposes.yaml"]


def test_an_entry_is_called_by_its_name(shop: Path, edit: Edit) -> None:
    """People know placements by their ids, not by their numbers; programs have both."""
    edit("placements.yaml", "slate_size: 3", "slate_size: 0")
    problem = next(one for one in problems_of(shop) if one.path.endswith(".slate_size"))
    name = yaml.safe_load((shop / "placements.yaml").read_text())[int(problem.path[1])]["id"]
    assert problem.place.endswith(f": {name}.slate_size")
    assert problem.as_json()["name"] == name


def test_what_is_printed_is_what_is_meant(shop: Path, edit: Edit) -> None:
    """`:100:` between a line and a column is no emoji."""
    with (shop / "policies.yaml").open("a") as file:
        file.write("\n" * (99 - len((shop / "policies.yaml").read_text().splitlines())) + "- oops\n")
    assert "policies.yaml:100:" in "".join(CliRunner().invoke(app, ["check", str(shop)]).output.split())


def test_event_file_that_would_be_passed_over_is_one_problem(shop: Path) -> None:
    """Only .yaml is read; what refers to the event is not wrong."""
    (shop / "events/click.yaml").rename(shop / "events/click.yml")
    (problem,) = problems_of(shop)
    assert (problem.file, problem.remedy) == ("events/click.yml", "rename it to end with .yaml")


def test_bundle_without_events_is_one_problem(shop: Path) -> None:
    """The features that count them are not wrong."""
    shutil.rmtree(shop / "events")
    assert [problem.file for problem in problems_of(shop)] == ["events"]


@pytest.mark.parametrize("file", ["site.yaml", "purposes.yaml", "events/click.yaml"])
def test_list_of_nothing_is_empty_where_something_is_needed(shop: Path, file: str) -> None:
    """Of features, placements and policies a site may have none, and `[]` says so."""
    for may_be_none in ("features.yaml", "placements.yaml", "policies.yaml"):
        (shop / may_be_none).write_text("[]\n")
    assert problems_of(shop) == []
    (shop / file).write_text("[]\n")
    assert [(problem.file, problem.problem) for problem in problems_of(shop)] == [(file, "is empty")]


def test_site_is_declared_once(shop: Path) -> None:
    """A second one would be passed over without a word."""
    (shop / "site.yaml").write_text("- {name: first, controller: A}\n- {name: second, controller: B}\n")
    (problem,) = problems_of(shop)
    assert (problem.file, problem.line, problem.problem) == ("site.yaml", 2, "is a second one")


def test_a_line_of_a_feed_is_bounded_before_it_is_held(shop: Path, tmp_path: Path) -> None:
    """One line without an end is one problem; what comes after it is read."""
    feed = tmp_path / "feed.jsonl"
    feed.write_text("x" * 5_000_000 + '\n{"title": "no id"}\n')
    _, problems = check_bundle(shop, feed=feed)
    assert [problem.line for problem in problems if problem.file == "feed.jsonl"] == [1, 2]


def test_bytes_that_are_no_text_are_refused(shop: Path) -> None:
    """A file that is not UTF-8 is named."""
    (shop / "policies.yaml").write_bytes(b"\xff\xfe\x00")
    assert any("is not YAML" in str(problem) for problem in problems_of(shop))


def test_an_alias_that_holds_itself_ends(shop: Path) -> None:
    """A YAML graph without an end is refused instead of walked for ever."""
    (shop / "items.yaml").write_text("- &a\n  id: x\n  categories: &c {k: *a}\n")
    assert problems_of(shop)


def test_a_missing_file_is_named(shop: Path) -> None:
    """Nothing of a bundle may be left out but the items."""
    for file in ("site.yaml", "purposes.yaml", "features.yaml", "placements.yaml", "policies.yaml"):
        (shop / file).unlink()
    shutil.rmtree(shop / "events")
    missing = {problem.file for problem in problems_of(shop) if problem.line == 0}
    assert missing == {"site.yaml", "purposes.yaml", "features.yaml", "placements.yaml", "policies.yaml", "events"}


def test_a_mistyped_file_name_is_named(shop: Path) -> None:
    """A file that would be left out without a word is a problem."""
    (shop / "policies.yaml").rename(shop / "policy.yaml")
    assert any(problem.file == "policy.yaml" for problem in problems_of(shop))


def test_without_items_what_refers_to_them_is_left_to_the_services(shop: Path) -> None:
    """A site whose items come from elsewhere is checked as far as it can be."""
    (shop / "items.yaml").unlink()
    assert problems_of(shop) == []


def feed_of(items: Path, target: Path) -> Path:
    lines = [json.dumps(item) for item in yaml.safe_load(items.read_text())]
    target.write_text("\n".join(lines) + "\n")
    return target


def test_a_feed_takes_the_place_of_items(shop: Path, tmp_path: Path) -> None:
    """Items may come as JSON lines; they are checked like those of items.yaml."""
    feed = feed_of(shop / "items.yaml", tmp_path / "feed.jsonl")
    (shop / "items.yaml").unlink()
    bundle, problems = check_bundle(shop, feed=feed)
    assert problems == []
    assert len(bundle.items) == 49


def test_a_bad_line_of_a_feed_is_named_by_its_number(shop: Path, tmp_path: Path) -> None:
    """Each line of a feed stands for itself."""
    feed = feed_of(shop / "items.yaml", tmp_path / "feed.jsonl")
    (shop / "items.yaml").unlink()
    with feed.open("a") as lines:
        lines.write('not json\n{"id": "x", "colour": "red"}\n{"title": "no id"}\n[]\n')
    _, problems = check_bundle(shop, feed=feed)
    assert [problem.line for problem in problems] == [50, 51, 52, 53]


def test_loading_a_spoiled_bundle_raises_all_its_problems(shop: Path, edit: Edit) -> None:
    """Who loads without checking is told as much as who checks."""
    edit("site.yaml", "holdout_share: 0.10", "holdout_share: 0.9")
    with pytest.raises(BundleError) as caught:
        load_bundle(shop)
    assert len(caught.value.found) == len(caught.value.problems) == 1


def test_the_command_lists_problems_for_people_and_programs(shop: Path, edit: Edit) -> None:
    """`comity check` ends with 1 and prints every problem, as text or as JSON."""
    edit("policies.yaml", "epsilon: 0.10", "epsilon: 1.5")
    people = CliRunner().invoke(app, ["check", str(shop)])
    programs = CliRunner().invoke(app, ["check", str(shop), "--json"])
    assert people.exit_code == programs.exit_code == 1
    assert "policies.yaml:" in people.output
    body = json.loads(programs.stdout)
    assert body["ok"] is False
    assert body["problems"][0]["file"] == "policies.yaml"


def test_a_feature_may_read_the_id_of_the_item(shop: Path, edit: Edit) -> None:
    """Every item has its id for a category: a feature can tell what a person did with this very item before."""
    edit("features.yaml", "category_affinity: {attribute: brand,", "category_affinity: {attribute: item_id,")
    assert problems_of(shop) == []


def test_the_command_is_content_with_the_shop() -> None:
    """`comity check examples/shop` ends with 0."""
    result = CliRunner().invoke(app, ["check", str(SHOP), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"ok": True, "problems": [], "allowed": []}
