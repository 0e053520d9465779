"""The items there are, and what each placement may show of them: masks made once a version, not once a Decide."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.chassis.events import LogPosition
from services.decision.domain.layout import Floats, Integers
from services.decision.domain.rules import Rule, Scope, Verdict
from services.decision.domain.site import Item, Placement
from services.decision.domain.vocabulary import Exclusion

Exclusions = NDArray[np.uint8]

# The setting that bounds what a request without candidates chooses from.
OFFERED_MAX = "COMITY_DECISION_OFFERED_MAX"

_OF_VERDICT = {Verdict.YES: Exclusion.NONE, Verdict.NO: Exclusion.INELIGIBLE, Verdict.ERROR: Exclusion.RULE_ERROR}


@dataclass(frozen=True, slots=True)
class Catalog:
    """The items at one version; an item keeps its row for ever, new ones come at the end."""

    version: int
    items: tuple[Item, ...]
    rows: dict[str, int]

    def with_items(self, version: int, changed: Iterable[Item]) -> "Catalog":
        """The catalog after these items entered or changed."""
        items, rows = list(self.items), dict(self.rows)
        for item in changed:
            row = rows.setdefault(item.id, len(items))
            items[row : row + 1] = [item]
        return Catalog(version, tuple(items), rows)

    def rows_of(self, item_ids: Sequence[str]) -> list[int]:
        """The row of each item; -1 for one that is not in the catalog."""
        get = self.rows.get
        return [get(item_id, -1) for item_id in item_ids]


NO_ITEMS = Catalog(0, (), {})


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """A snapshot of the item rows that features computed.

    Args:
        rows: float32, shape (items_count, item_width).
        position: of the behavior log that it stands at.
        catalog_position: of the catalog's log that it stands at.
    """

    version: str
    feature_set_version: str
    item_ids: tuple[str, ...]
    rows: Floats
    position: LogPosition
    catalog_position: LogPosition

    def with_columns(self, version: "ItemColumns", offsets: Integers) -> "ItemColumns":
        """The newer snapshot, of which only these columns were sent: *version*'s rows hold just them, in our order.

        Raises:
            ValueError: the rows are not one an item.
        """
        if version.rows.shape != (len(self.item_ids), len(offsets)):
            raise ValueError("the columns sent do not fit the rows held")
        rows = self.rows.copy()
        rows[:, offsets] = version.rows
        return replace(version, item_ids=self.item_ids, rows=rows)


@dataclass(frozen=True, slots=True)
class ItemRows:
    """Item columns as the catalog's rows see them: looked up, never copied, because snapshots are large and come often.

    Args:
        places: where each row of the catalog is in the columns, -1 where it is not; the last is for an unknown item.
    """

    columns: ItemColumns
    places: Integers

    def of(self, rows: Integers) -> Floats:
        """The item rows of these rows of the catalog, float32, shape (rows_count, item_width); NaN where unknown."""
        places = self.places[rows]
        known = places >= 0
        if known.all():
            return self.columns.rows[places]
        found = np.full((len(places), self.columns.rows.shape[1]), np.nan, dtype=np.float32)
        found[known] = self.columns.rows[places[known]]
        return found

    def values(self, rows: Integers, offset: int) -> Floats:
        """One value of each of these rows of the catalog, float32, shape (rows_count,); NaN where unknown."""
        places = self.places[rows]
        known = places >= 0
        found = np.full(len(places), np.nan, dtype=np.float32)
        found[known] = self.columns.rows[places[known], offset]
        return found


def item_rows_of(columns: ItemColumns, catalog: Catalog) -> ItemRows:
    """The columns, looked up by the catalog's rows."""
    places = np.full(len(catalog.items) + 1, -1, dtype=np.intp)
    rows = np.array(catalog.rows_of(columns.item_ids), dtype=np.intp)
    known = np.flatnonzero(rows >= 0)
    places[rows[known]] = known
    return ItemRows(columns, places)


@dataclass(frozen=True, slots=True)
class Cut:
    """That only the first of many eligible items are considered.

    Args:
        eligible_count: of all of them.
        by: feature that they are ordered by, descending; empty: by when they entered the catalog.
    """

    eligible_count: int
    by: str


@dataclass(frozen=True, slots=True)
class PlacementView:
    """What a placement may show of a catalog, as far as items alone decide it.

    Args:
        exclusions: an Exclusion an item and one more, the last, for an unknown item (row -1).
        variants: the variant that would be shown, an item; empty for an item that has none.
    """

    catalog: Catalog
    placement: Placement
    rule: Rule | None
    exclusions: Exclusions
    variants: tuple[str, ...]


def view_of(
    catalog: Catalog, placement: Placement, rule: Rule | None, previous: PlacementView | None = None
) -> PlacementView:
    """What the placement may show of the catalog; *rule* is its eligibility, asked here when it is an ITEM rule.

    Items that *previous*, a view under the same placement and rule, has judged are not judged again.
    """
    if previous is not None and (previous.placement != placement or _source(previous.rule) != _source(rule)):
        previous = None
    if previous is not None and previous.catalog is catalog:
        return previous
    judged_items = () if previous is None else previous.catalog.items
    exclusions = np.full(len(catalog.items) + 1, Exclusion.UNKNOWN_ITEM, dtype=np.uint8)
    variants = []
    for row, item in enumerate(catalog.items):
        if previous is not None and row < len(judged_items) and judged_items[row] is item:
            exclusions[row] = previous.exclusions[row]
            variants.append(previous.variants[row])
            continue
        variant, exclusion = judge_item(item, placement, rule)
        exclusions[row] = exclusion
        variants.append(variant)
    return PlacementView(catalog, placement, rule, exclusions, (*variants, ""))


def judge_item(item: Item, placement: Placement, rule: Rule | None) -> tuple[str, Exclusion]:
    """The variant that would be shown of the item, and why it may not be, as far as the item alone decides it."""
    variant = _variant_of(item, placement)
    if item.retired:
        return variant or "", Exclusion.RETIRED
    if variant is None:
        return "", Exclusion.NO_VARIANT
    if rule is not None and rule.scope is Scope.ITEM:
        return variant, _OF_VERDICT[rule.about_item(item)]
    return variant, Exclusion.NONE


def exclusion_of(verdict: Verdict) -> Exclusion:
    """What an eligibility rule's verdict means for a candidate: an error excludes, it is never a grant."""
    return _OF_VERDICT[verdict]


def order_by(values: Floats) -> Integers:
    """Places in descending order of value: unknown (NaN) ones last, ties in the order they came."""
    return np.argsort(-values, kind="stable")


def _variant_of(item: Item, placement: Placement) -> str | None:
    """The item's first variant that the placement can render; None when there is none."""
    if not placement.variants:
        return item.variants[0] if item.variants else ""
    return next((variant for variant in item.variants if variant in placement.variants), None)


def _source(rule: Rule | None) -> str:
    return "" if rule is None else rule.source
