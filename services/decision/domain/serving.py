"""What a replica decides with right now: one immutable object, swapped whole, so that no Decide sees half a change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from services.decision.domain.candidates import Offer, default_of, whole_offer
from services.decision.domain.catalog import (
    NO_ITEMS,
    Catalog,
    ItemColumns,
    ItemRows,
    PlacementView,
    item_rows_of,
    view_of,
)
from services.decision.domain.layout import Floats
from services.decision.domain.plan import CompiledSite


class Ranker(Protocol):
    """Scores candidates; the same matrix gives the same bits."""

    @property
    def version(self) -> str:
        """name@sha256."""
        ...

    @property
    def feature_set_version(self) -> str:
        """The feature set whose columns it reads."""
        ...

    def score(self, matrix: Floats) -> Floats:
        """float32, one score a row, higher is better."""
        ...

    def cost_s(self, rows_count: int) -> float:
        """About how long scoring that many rows takes."""
        ...

    def stop(self) -> None:
        """End what it scores now, with an error, and score nothing from then on; called from any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Serving:
    """A site, the catalog, item columns and models, and what follows from them.

    Args:
        compiled: None before the first site was applied.
        columns: None until features has sent a snapshot of the site's feature set.
        rows: the columns, looked up by the catalog's rows.
        rankers: active models by name.
        views: by placement id.
        offers: every item a placement may show, by placement id; what a request without candidates chooses from.
        defaults: the entries of each placement's declared default, by placement id.
    """

    compiled: CompiledSite | None = None
    catalog: Catalog = NO_ITEMS
    columns: ItemColumns | None = None
    rows: ItemRows | None = None
    rankers: Mapping[str, Ranker] = field(default_factory=dict)
    views: Mapping[str, PlacementView] = field(default_factory=dict)
    offers: Mapping[str, Offer] = field(default_factory=dict)
    defaults: Mapping[str, Offer] = field(default_factory=dict)

    def ranker(self, name: str) -> Ranker | None:
        """The active model with this name, if it reads the site's feature set."""
        ranker = self.rankers.get(name)
        if ranker is None or self.compiled is None:
            return None
        return ranker if ranker.feature_set_version == self.compiled.layout.feature_set.version else None


def serving_of(
    previous: Serving,
    compiled: CompiledSite | None,
    catalog: Catalog,
    columns: ItemColumns | None,
    rankers: Mapping[str, Ranker],
    *,
    offered_max: int,
) -> Serving:
    """The next state, reusing of the previous one what did not change.

    Args:
        offered_max: most candidates of a request that names none.
    """
    if compiled is None:
        return Serving(catalog=catalog, rankers=rankers)
    if columns is not None and columns.feature_set_version != compiled.layout.feature_set.version:
        columns = None
    rows = _rows(previous, catalog, columns)
    views, offers = {}, {}
    everything = np.arange(len(catalog.items))
    for placement_id, plan in compiled.plans.items():
        view = view_of(catalog, plan.placement, plan.eligibility, previous.views.get(placement_id))
        views[placement_id] = view
        popularity = None if rows is None else rows.values(everything, plan.popular_offset)
        offers[placement_id] = whole_offer(view, popularity, offered_max, popular_by=plan.policy.popular_by)
    defaults = {placement_id: default_of(view) for placement_id, view in views.items()}
    return Serving(compiled, catalog, columns, rows, rankers, views, offers, defaults)


def _rows(previous: Serving, catalog: Catalog, columns: ItemColumns | None) -> ItemRows | None:
    """The columns by the catalog's rows; where both keep their order, as they mostly do, nothing is looked up."""
    if columns is None:
        return None
    held = previous.rows
    if held is not None and catalog is previous.catalog and columns.item_ids is held.columns.item_ids:
        return ItemRows(columns, held.places)
    return item_rows_of(columns, catalog)
