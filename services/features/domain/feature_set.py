"""Declared features compiled: the layout of a subject's vector, an item's row and the model's input.

Every input of a model is one float32 that can be had from a subject vector s, an item row i and the request's context
alone: s[a], i[b], a dot product of a piece of s with a piece of i, or a number of the context. Whoever assembles it
needs to know nothing of what the features mean.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

from services.chassis.errors import FieldProblem, Kind, ServiceError
from services.chassis.ids import content_hash
from services.features.domain.aggregates import Counted, Spread, Tally
from services.features.domain.declared import (
    PERSONAL,
    CategoryAffinity,
    CategoryRate,
    ContextValue,
    Feature,
    ItemAttribute,
    ItemCategory,
    ItemCount,
    ItemRate,
    Similarity,
    SubjectCount,
    SubjectRate,
    SubjectRecency,
)
from services.features.domain.declared import Kind as FeatureKind

# Part of every version: raised when the fold or the reading of what is declared changes its meaning.
SEMANTICS = 1
# A vector is read, sent and logged in every Decide; 2,048 values are 8 kB. Rows are held for the whole catalog.
SUBJECT_WIDTH_MAX = 2048
ITEM_WIDTH_MAX = 2048
COLUMNS_MAX = 512


@dataclass(frozen=True, slots=True)
class SubjectColumn:
    """s[offset]."""

    offset: int


@dataclass(frozen=True, slots=True)
class ItemColumn:
    """i[offset]."""

    offset: int


@dataclass(frozen=True, slots=True)
class DotColumn:
    """sum(s[subject_offset:+width] · i[item_offset:+width])."""

    subject_offset: int
    item_offset: int
    width: int


@dataclass(frozen=True, slots=True)
class ContextColumn:
    """context[key], or default_value."""

    key: str
    default_value: float


Source: TypeAlias = SubjectColumn | ItemColumn | DotColumn | ContextColumn


@dataclass(frozen=True, slots=True)
class ModelColumn:
    """One input of the model."""

    name: str
    feature: str
    purposes: tuple[str, ...]
    source: Source


@dataclass(frozen=True, slots=True)
class Place:
    """Where a feature's values lie; a width is 0 where it has none."""

    feature: Feature
    subject_offset: int
    subject_width: int
    item_offset: int
    item_width: int


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """What the declared features become.

    Args:
        version: content hash of all that was declared and changes a number, or the name that a set which computes the
            same was published under before.
        places: one a feature, in the order declared.
        counted: what must be counted for it.
    """

    version: str
    features: tuple[Feature, ...]
    subject_width: int
    item_width: int
    columns: tuple[ModelColumn, ...]
    places: tuple[Place, ...]
    counted: Counted

    @property
    def computed(self) -> tuple[Feature, ...]:
        """What is computed: sets in which this is the same give the same numbers."""
        return tuple(map(without_words, self.features))


def compile_features(features: Sequence[Feature], version: str = "") -> FeatureSet:
    """The feature set of these declarations; the same ones always give the same set.

    Args:
        version: that it was published under; empty: its content hash.

    Raises:
        ServiceError: INVALID (FEATURES_INVALID) with every problem found: the field, the feature, how to mend it.
    """
    problems = [problem for index, feature in enumerate(features) for problem in _problems(index, feature)]
    problems += _repeated(features)
    if problems:
        raise _refusal(problems)
    places: list[Place] = []
    columns: list[ModelColumn] = []
    counted = Counted()
    subject_width = item_width = 0
    for feature in features:
        in_subject, in_item = _widths(feature.kind)
        place = Place(feature, subject_width, in_subject, item_width, in_item)
        subject_width, item_width = subject_width + in_subject, item_width + in_item
        places.append(place)
        columns += _columns(place)
        counted |= counted_by(feature)
    if doubled := [name for name, times in Counter(column.name for column in columns).items() if times > 1]:
        problem = f"two columns would be called {doubled[0]}; rename one of the features that make them"
        raise _refusal([FieldProblem("features", problem)])
    for what, width, width_max in (
        ("subject vector", subject_width, SUBJECT_WIDTH_MAX),
        ("item row", item_width, ITEM_WIDTH_MAX),
        ("model input", len(columns), COLUMNS_MAX),
    ):
        if width > width_max:
            problem = f"together they make the {what} {width} values wide, {width_max} are allowed; use fewer buckets"
            raise _refusal([FieldProblem("features", problem)])
    return FeatureSet(
        version or version_of(features),
        tuple(features),
        subject_width,
        item_width,
        tuple(columns),
        tuple(places),
        counted,
    )


def without_words(feature: Feature) -> Feature:
    """The declaration without what people read: no number changes with it."""
    return replace(feature, description="", owner="", reason="", retention_days=0)


def version_of(features: Sequence[Feature]) -> str:
    """Content hash of what changes a number; models and data sets are bound to it."""
    declared = [[type(feature.kind).__name__, asdict(without_words(feature))] for feature in features]
    return content_hash(json.dumps([SEMANTICS, declared], sort_keys=True).encode())


def counted_by(feature: Feature) -> Counted:
    """What must be counted for a feature."""
    counted = Counted()
    match feature.kind:
        case ItemCount(event_type, half_life_s):
            counted = Counted(of_item=_tallies(half_life_s, event_type))
        case ItemRate(numerator, denominator, _, half_life_s) | CategoryRate(_, numerator, denominator, _, half_life_s):
            counted = Counted(of_item=_tallies(half_life_s, numerator, denominator))
        case SubjectCount(event_type, half_life_s):
            counted = Counted(_tallies(half_life_s, event_type), newest=frozenset({event_type}))
        case SubjectRate(numerator, denominator):
            counted = Counted(_tallies(0.0, numerator, denominator), newest=frozenset({numerator, denominator}))
        case SubjectRecency(event_type):
            counted = Counted(newest=frozenset({event_type}))
        case CategoryAffinity() as kind:
            types = (kind.numerator, kind.denominator) if kind.denominator else (kind.numerator,)
            spreads = frozenset(Spread(name, (kind.attribute,), kind.buckets, kind.half_life_s) for name in types)
            counted = Counted(_tallies(kind.half_life_s, *types), spreads, newest=frozenset(types))
        case Similarity(attributes, event_type, dimensions):
            spread = Spread(event_type, attributes, dimensions)
            counted = Counted(spreads=frozenset({spread}), newest=frozenset({event_type}))
    return counted


def _tallies(half_life_s: float, *event_types: str) -> frozenset[Tally]:
    return frozenset(Tally(event_type, half_life_s) for event_type in event_types)


def _widths(kind: FeatureKind) -> tuple[int, int]:
    """Values in the subject's vector and in the item's row."""
    match kind:
        case ItemAttribute() | ItemCount() | ItemRate() | CategoryRate():
            return 0, 1
        case ItemCategory(_, values):
            return 0, len(values)
        case SubjectCount() | SubjectRate() | SubjectRecency():
            return 1, 0
        case CategoryAffinity():
            return kind.buckets, kind.buckets
        case Similarity():
            return kind.dimensions, kind.dimensions
        case ContextValue():
            return 0, 0


def _columns(place: Place) -> Iterator[ModelColumn]:
    feature = place.feature
    match feature.kind:
        case ContextValue(key, default_value):
            yield ModelColumn(feature.name, feature.name, feature.purposes, ContextColumn(key, default_value))
        case ItemCategory(_, values):
            for at, value in enumerate(values):
                source = ItemColumn(place.item_offset + at)
                yield ModelColumn(f"{feature.name}_{value}", feature.name, feature.purposes, source)
        case CategoryAffinity() | Similarity():
            dot = DotColumn(place.subject_offset, place.item_offset, place.subject_width)
            yield ModelColumn(feature.name, feature.name, feature.purposes, dot)
        case SubjectCount() | SubjectRate() | SubjectRecency():
            yield ModelColumn(feature.name, feature.name, feature.purposes, SubjectColumn(place.subject_offset))
        case _:
            yield ModelColumn(feature.name, feature.name, feature.purposes, ItemColumn(place.item_offset))


def _problems(index: int, feature: Feature) -> Iterator[FieldProblem]:
    """What is wrong with one declaration, beyond what the protos' limits say."""
    at, who = f"features[{index}]", f"feature {feature.name}"
    if isinstance(feature.kind, PERSONAL) and not feature.purposes:
        yield FieldProblem(f"{at}.purposes", f"{who} tells something about a person; name what must be allowed for it")
    if len(set(feature.purposes)) < len(feature.purposes):
        yield FieldProblem(f"{at}.purposes", f"{who} names a purpose twice; name it once")
    match feature.kind:
        case ItemCategory(_, values) if len(set(values)) < len(values):
            yield FieldProblem(f"{at}.item_category.values", f"{who} names a value twice; name it once")
        case Similarity(attributes) if len(set(attributes)) < len(attributes):
            yield FieldProblem(f"{at}.similarity.attributes", f"{who} names an attribute twice; name it once")
        case (
            ItemRate(numerator, denominator)
            | CategoryRate(_, numerator, denominator)
            | SubjectRate(numerator, denominator)
        ) if numerator == denominator:
            yield FieldProblem(at, f"{who} divides {numerator} by itself; name the events that are the occasions")
        case CategoryAffinity() as kind if kind.numerator == kind.denominator:
            yield FieldProblem(at, f"{who} divides {kind.numerator} by itself; leave the denominator out for shares")


def _repeated(features: Sequence[Feature]) -> Iterator[FieldProblem]:
    first: dict[str, int] = {}
    for index, feature in enumerate(features):
        if first.setdefault(feature.name, index) != index:
            problem = f"feature {feature.name} is declared in features[{first[feature.name]}] too; rename one"
            yield FieldProblem(f"features[{index}].name", problem)


def _refusal(problems: list[FieldProblem]) -> ServiceError:
    listed = "; ".join(f"{problem.field}: {problem.problem}" for problem in problems[:5])
    return ServiceError(Kind.INVALID, "FEATURES_INVALID", listed, problems=tuple(problems))
