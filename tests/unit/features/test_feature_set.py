"""Declared features compiled to a layout."""

from dataclasses import fields, replace
from typing import Any

import pytest

from services.chassis.errors import Kind, ServiceError
from services.features.domain.book import Book
from services.features.domain.catalog import CatalogItem, bucket_counts, bucket_of
from services.features.domain.declared import (
    CategoryAffinity,
    ContextValue,
    Feature,
    ItemCategory,
    ItemCount,
    ItemRate,
    Similarity,
    SubjectCount,
)
from services.features.domain.feature_set import (
    SUBJECT_WIDTH_MAX,
    ContextColumn,
    DotColumn,
    ItemColumn,
    SubjectColumn,
    compile_features,
)
from tests.unit.features.examples import EVERYTHING, everything, feature

# Of shoes, jackets and books among 64.
BUCKETS = [38, 2, 12]


def test_the_layout_follows_the_declarations() -> None:
    """Each column says how it is had from vector, row and context, in the order declared."""
    compiled = compile_features(
        [
            feature("kind", ItemCategory("kind", ("shoes", "books"))),
            feature("my_clicks", SubjectCount("click")),
            feature("taste", CategoryAffinity("kind", "click", 8)),
            feature("clicks", ItemCount("click")),
            feature("hour", ContextValue("hour", 12.0)),
        ]
    )
    assert [(column.name, column.source) for column in compiled.columns] == [
        ("kind_shoes", ItemColumn(0)),
        ("kind_books", ItemColumn(1)),
        ("my_clicks", SubjectColumn(0)),
        ("taste", DotColumn(1, 2, 8)),
        ("clicks", ItemColumn(10)),
        ("hour", ContextColumn("hour", 12.0)),
    ]
    assert (compiled.subject_width, compiled.item_width) == (9, 11)
    assert {column.purposes for column in compiled.columns} == {("profile",)}


WORDS: dict[str, Any] = {"description": "another", "owner": "another", "reason": "another", "retention_days": 7}
NUMBERS: dict[str, Any] = {"name": "another", "kind": ItemCount("another"), "purposes": ("another",), "freshness_s": 7}


def test_every_field_of_a_feature_is_either_words_or_numbers() -> None:
    """A field that is added says by this whether it changes a version."""
    assert {field.name for field in fields(Feature)} == {*WORDS, *NUMBERS}


@pytest.mark.parametrize("field", sorted(WORDS))
def test_correcting_words_keeps_the_version(field: str) -> None:
    """What changes no number leaves models and data sets what they were trained on."""
    changed = [replace(one, **{field: WORDS[field]}) for one in EVERYTHING]
    assert compile_features(changed).version == everything().version


@pytest.mark.parametrize("field", sorted(NUMBERS))
def test_what_changes_a_number_changes_the_version(field: str) -> None:
    """Also the order: it is the order of the model's columns."""
    changed = [replace(EVERYTHING[0], **{field: NUMBERS[field]}), *EVERYTHING[1:]]
    assert compile_features(changed).version != everything().version
    assert compile_features(EVERYTHING[::-1]).version != everything().version


def test_a_set_that_computes_the_same_keeps_its_published_name() -> None:
    """Releases before hashed the words, too: what was published then is found again, the active one first."""
    older, active = compile_features(EVERYTHING, "older"), compile_features(EVERYTHING, "active")
    newer, other = compile_features(EVERYTHING, "newer"), compile_features(EVERYTHING[1:])
    sets = {known.version: known for known in (older, active, newer, other)}
    corrected = compile_features([replace(one, description="another") for one in EVERYTHING])
    assert Book(sets, "active").version_of(corrected) == "active"
    assert Book(sets, other.version).version_of(corrected) == "newer"
    assert Book({other.version: other}, other.version).version_of(corrected) == corrected.version


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (replace(feature("f", SubjectCount("click")), purposes=()), "features[1].purposes"),
        (replace(feature("f", ItemCount("click")), purposes=("a", "a")), "features[1].purposes"),
        (feature("f", ItemCategory("kind", ("a", "a"))), "features[1].item_category.values"),
        (feature("f", Similarity(("a", "a"), "click", 8)), "features[1].similarity.attributes"),
        (feature("f", ItemRate("click", "click")), "features[1]"),
        (feature("f", CategoryAffinity("kind", "click", 8, "click")), "features[1]"),
        (feature("price", ItemCount("click")), "features[1].name"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(wrong: Feature, field: str) -> None:
    """The refusal names field, feature and remedy."""
    with pytest.raises(ServiceError) as refusal:
        compile_features([EVERYTHING[0], wrong])
    assert (refusal.value.kind, refusal.value.reason) == (Kind.INVALID, "FEATURES_INVALID")
    assert [problem.field for problem in refusal.value.problems] == [field]
    assert wrong.name in refusal.value.problems[0].problem
    assert ";" in refusal.value.problems[0].problem, "what is wrong; how to mend it"


def test_every_problem_is_told_at_once() -> None:
    """Nobody mends a bundle one refusal at a time."""
    bare = replace(feature("f", SubjectCount("click")), purposes=())
    with pytest.raises(ServiceError) as refusal:
        compile_features([bare, bare])
    assert len(refusal.value.problems) == 3


def test_columns_of_two_features_are_never_called_the_same() -> None:
    """A ranker or a policy names columns: a name has to mean one."""
    with pytest.raises(ServiceError, match="kind_a"):
        compile_features([feature("kind", ItemCategory("kind", ("a",))), feature("kind_a", ItemCount("click"))])


def test_too_wide_a_set_is_refused() -> None:
    """Vectors are read, sent and logged in every Decide: their width has a bound."""
    wide = [feature(f"f{n}", Similarity(("a",), f"e{n}", 1024)) for n in range(SUBJECT_WIDTH_MAX // 1024 + 1)]
    with pytest.raises(ServiceError, match="subject vector"):
        compile_features(wide)


def test_buckets_stay_where_they_are() -> None:
    """States outlive processes: a category that changed buckets would turn histories into noise."""
    assert [bucket_of("kind", value, 64) for value in ("shoes", "jackets", "books")] == BUCKETS
    item = CatalogItem("x", categories={"kind": ("shoes", "shoes", "books")})
    buckets, counts = bucket_counts(item, ("kind",), 64)
    assert (buckets.tolist(), counts.tolist()) == (sorted({BUCKETS[0], BUCKETS[2]}), [1.0, 1.0])


def test_the_item_itself_is_a_category() -> None:
    """Attribute item_id needs no declaration in the catalog."""
    buckets, counts = bucket_counts(CatalogItem("boots"), ("item_id",), 64)
    assert (buckets.tolist(), counts.tolist()) == ([bucket_of("item_id", "boots", 64)], [1.0])
