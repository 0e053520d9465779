"""From the catalog and counts to one float32 row an item: the only place where item features are computed.

Most of a row changes only with the catalog (attributes, categories, directions); what behavior moves are a few
columns, the *moving* ones. A table is built once a catalog and then only those are computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.features.domain.aggregates import Float32s, Float64s, Indices, ItemLayout, Tally
from services.features.domain.catalog import CatalogItem, bucket_counts, categories_of
from services.features.domain.declared import (
    CategoryAffinity,
    CategoryRate,
    ItemAttribute,
    ItemCategory,
    ItemCount,
    ItemRate,
    Similarity,
    Transform,
)
from services.features.domain.feature_set import FeatureSet, Place
from services.features.domain.item_counts import ItemTotals, at
from services.features.domain.reading import Weights

MOVING = (ItemCount, ItemRate, CategoryRate)


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """Which items have which categories of an attribute: entry k says that item items[k] has category categories[k]."""

    items: Indices
    categories: Indices
    items_count: int
    categories_count: int


@dataclass(frozen=True, slots=True, eq=False)
class ItemTable:
    """A catalog under a feature set.

    Args:
        item_ids: ascending; row k of everything is item k's.
        still: float32, items × item_width; the moving columns are NaN.
        moving: offsets of the columns that behavior moves, ascending.
        weights: of each similarity's dimensions, fitted to this catalog; subjects are read with the same.
        memberships: of the attributes that category rates are about.
    """

    feature_set: FeatureSet
    item_ids: tuple[str, ...]
    still: Float32s
    moving: tuple[int, ...]
    weights: Weights
    memberships: dict[str, Membership]


def build(feature_set: FeatureSet, items: Sequence[CatalogItem]) -> ItemTable:
    """The table of these items."""
    items = sorted(items, key=lambda item: item.id)
    weights = fit(feature_set, items)
    still = np.full((len(items), feature_set.item_width), np.nan, dtype=np.float32)
    for place in feature_set.places:
        if place.item_width and not isinstance(place.feature.kind, MOVING):
            span = slice(place.item_offset, place.item_offset + place.item_width)
            still[:, span] = _still_values(place, items, weights)
    moving = tuple(place.item_offset for place in feature_set.places if isinstance(place.feature.kind, MOVING))
    rated = {
        place.feature.kind.attribute for place in feature_set.places if isinstance(place.feature.kind, CategoryRate)
    }
    memberships = {attribute: _membership(items, attribute) for attribute in sorted(rated)}
    return ItemTable(feature_set, tuple(item.id for item in items), still, moving, weights, memberships)


def fit(feature_set: FeatureSet, items: Sequence[CatalogItem]) -> Weights:
    """Each similarity's weights: 1 + log((1 + items) ÷ (1 + items in the bucket)), as rare traits tell more.

    Source: the smoothed inverse document frequency of scikit-learn's TfidfTransformer.
    """
    weights = {}
    for place in feature_set.places:
        if isinstance(place.feature.kind, Similarity):
            kind = place.feature.kind
            met = np.zeros(kind.dimensions)
            for item in items:
                met[bucket_counts(item, kind.attributes, kind.dimensions)[0]] += 1.0
            weights[place.feature.name] = 1.0 + np.log((1.0 + len(items)) / (1.0 + met))
    return weights


def moving_values(table: ItemTable, layout: ItemLayout, totals: ItemTotals, now_s: float) -> Float32s:
    """The moving columns at this moment: float32, items × moving.

    Args:
        totals: row k is the table's item k.
        now_s: the newest event's time; counts that forget are taken to it.
    """
    counts = at(layout, totals.counts, totals.reference_s, now_s)
    values = np.empty((len(table.item_ids), len(table.moving)), dtype=np.float32)
    places = [place for place in table.feature_set.places if isinstance(place.feature.kind, MOVING)]
    for column, place in enumerate(places):
        values[:, column] = _moving_value(place, table, layout, counts)
    return values


def rows(table: ItemTable, moving: Float32s) -> Float32s:
    """Whole rows: what stands still and what moves."""
    whole = table.still.copy()
    whole[:, table.moving] = moving
    return whole


def _still_values(place: Place, items: Sequence[CatalogItem], weights: Weights) -> Float64s:
    match place.feature.kind:
        case ItemAttribute(attribute, transform):
            numbers = np.array([item.numbers.get(attribute, np.nan) for item in items], dtype=np.float64)
            return _transformed(numbers, transform).reshape(-1, 1)
        case ItemCategory(attribute, values):
            held = [frozenset(categories_of(item, attribute)) for item in items]
            return np.array([[value in own for value in values] for own in held], dtype=np.float64).reshape(
                len(items), len(values)
            )
        case CategoryAffinity(attribute, buckets=buckets):
            counts = _bucketed(items, (attribute,), buckets)
            means: Float64s = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
            return means
        case Similarity(attributes, _, dimensions):
            weighted = _bucketed(items, attributes, dimensions) * weights[place.feature.name]
            lengths = np.sqrt(np.sum(weighted * weighted, axis=1, keepdims=True))
            directions: Float64s = weighted / np.where(lengths > 0.0, lengths, 1.0)
            return directions
        case _:
            raise AssertionError("moves, or is no item feature")


def _moving_value(place: Place, table: ItemTable, layout: ItemLayout, counts: Float64s) -> Float64s:
    def tally(event_type: str, half_life_s: float) -> Float64s:
        return counts[:, layout.slots[Tally(event_type, half_life_s)]]

    match place.feature.kind:
        case ItemCount(event_type, half_life_s, transform):
            return _transformed(tally(event_type, half_life_s), transform)
        case ItemRate(numerator, denominator, prior_strength, half_life_s):
            wanted, occasions = tally(numerator, half_life_s), tally(denominator, half_life_s)
            return smoothed_rate(wanted, occasions, wanted.sum(), occasions.sum(), prior_strength)
        case CategoryRate(attribute, numerator, denominator, prior_strength, half_life_s):
            wanted, occasions = tally(numerator, half_life_s), tally(denominator, half_life_s)
            return _category_rate(table.memberships[attribute], wanted, occasions, prior_strength)
        case _:
            raise AssertionError("stands still, or is no item feature")


def smoothed_rate(
    wanted: Float64s, occasions: Float64s, all_wanted: float, all_occasions: float, prior_strength: float
) -> Float64s:
    """(k + wanted) ÷ (k ÷ p0 + occasions), p0 the rate of everything together; 0 while p0 is."""
    if not (all_wanted > 0.0 and all_occasions > 0.0):
        return np.zeros(len(wanted))
    usual = all_wanted / all_occasions
    below = prior_strength / usual + occasions
    rates: Float64s = np.where(below > 0.0, (prior_strength + wanted) / np.where(below > 0.0, below, 1.0), usual)
    return rates


def _category_rate(membership: Membership, wanted: Float64s, occasions: Float64s, prior_strength: float) -> Float64s:
    """The mean rate of the item's categories; NaN for an item without any."""
    of, size = membership.categories, membership.categories_count
    category_wanted: Float64s = np.bincount(of, wanted[membership.items], size).astype(np.float64)
    category_occasions: Float64s = np.bincount(of, occasions[membership.items], size).astype(np.float64)
    rates = smoothed_rate(category_wanted, category_occasions, wanted.sum(), occasions.sum(), prior_strength)
    held = np.bincount(membership.items, minlength=membership.items_count)
    sums = np.bincount(membership.items, weights=rates[of], minlength=membership.items_count)
    return np.where(held > 0, sums / np.maximum(held, 1), np.nan)


def _membership(items: Sequence[CatalogItem], attribute: str) -> Membership:
    numbers: dict[str, int] = {}
    of_items: list[int] = []
    of_categories: list[int] = []
    for row, item in enumerate(items):
        for value in categories_of(item, attribute):
            of_items.append(row)
            of_categories.append(numbers.setdefault(value, len(numbers)))
    return Membership(
        np.array(of_items, dtype=np.intp), np.array(of_categories, dtype=np.intp), len(items), len(numbers)
    )


def _bucketed(items: Sequence[CatalogItem], attributes: Sequence[str], buckets: int) -> Float64s:
    counts = np.zeros((len(items), buckets))
    for row, item in enumerate(items):
        own, fallen = bucket_counts(item, attributes, buckets)
        counts[row, own] = fallen
    return counts


def _transformed(values: Float64s, transform: Transform) -> Float64s:
    """A logarithm of what is below -1 is no number: MISSING."""
    if transform is Transform.NONE:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log1p(values)
    return np.where(np.isfinite(logarithms), logarithms, np.nan)
