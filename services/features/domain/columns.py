"""The item columns at one moment: what decision replicas hold in memory."""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from services.chassis.events import ORIGIN, LogPosition
from services.chassis.ids import content_hash
from services.features.domain.aggregates import Float32s, ItemLayout
from services.features.domain.catalog import CatalogItem
from services.features.domain.item_counts import Block, ItemCounts, ItemTotals, total
from services.features.domain.item_rows import ItemTable, moving_values, rows

# At four snapshots a second: who holds an older one gets whole rows.
ISSUED_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the columns have come: positions of the behavior log and of the catalog's, and who was taken out since.

    Args:
        withdrawn: number of the last erased member whose part was subtracted.
    """

    behavior: LogPosition = ORIGIN
    catalog: LogPosition = ORIGIN
    withdrawn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A snapshot.

    Args:
        version: of feature set and positions; the same on every replica.
        rows: float32, items × item_width.
    """

    version: str
    standing: Standing
    item_ids: tuple[str, ...]
    rows: Float32s


@dataclass(slots=True)
class Shelf:
    """Catalog and counts as one replica holds them; changed in place by what changed since.

    Args:
        items: by id.
        blocks: item → its blocks by partition.
    """

    items: dict[str, CatalogItem] = field(default_factory=dict)
    blocks: dict[str, dict[int, ItemCounts]] = field(default_factory=lambda: defaultdict(dict))
    newest_s: float = 0.0

    def put_blocks(self, changed: Mapping[Block, ItemCounts]) -> set[str]:
        """Take in blocks; the items they are of."""
        for (item_id, partition), block in changed.items():
            self.blocks[item_id][partition] = block
            self.newest_s = max(self.newest_s, block.reference_s)
        return {item_id for item_id, _ in changed}


class RunningTotals:
    """The totals of a table's items, computed again only for those whose blocks changed."""

    def __init__(self, table: ItemTable, layout: ItemLayout, shelf: Shelf) -> None:
        self.table = table
        self.layout = layout
        # Snapshots of this very table: who holds one of them lacks nothing but the moving columns.
        self._issued: deque[str] = deque(maxlen=ISSUED_MAX)
        self._row_of = {item_id: row for row, item_id in enumerate(table.item_ids)}
        self._totals = total(layout, [list(shelf.blocks.get(item_id, {}).values()) for item_id in table.item_ids])

    def update(self, shelf: Shelf, item_ids: Iterable[str]) -> None:
        """Compute these items' totals again; those the table does not have are passed over."""
        changed = [item_id for item_id in item_ids if item_id in self._row_of]
        if not changed:
            return
        fresh = total(self.layout, [list(shelf.blocks[item_id].values()) for item_id in changed])
        at = np.array([self._row_of[item_id] for item_id in changed])
        self._totals.counts[at] = fresh.counts
        self._totals.reference_s[at] = fresh.reference_s

    def columns(self, standing: Standing, newest_s: float) -> Columns:
        """The snapshot; counts that forget are taken to the newest event's time."""
        totals: ItemTotals = self._totals
        moving = moving_values(self.table, self.layout, totals, newest_s)
        version = version_of(self.table.feature_set.version, standing)
        self._issued.append(version)
        return Columns(version, standing, self.table.item_ids, rows(self.table, moving))

    def changed_since(self, held_version: str) -> tuple[int, ...] | None:
        """Offsets of the only columns that can differ from the snapshot; None where all of it can."""
        return self.table.moving if held_version in self._issued else None


def version_of(feature_set_version: str, standing: Standing) -> str:
    """Names a snapshot: feature set and positions decide what is in it."""
    return content_hash(f"{feature_set_version}|{standing}".encode())
