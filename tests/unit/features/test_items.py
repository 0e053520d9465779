"""Behavior on items, and the rows that come of it."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.ids import partition_of
from services.features.domain.aggregates import Counted, Float32s, ItemLayout, Tally
from services.features.domain.catalog import CatalogItem
from services.features.domain.declared import CategoryRate, ItemAttribute, ItemCount, ItemRate, Transform
from services.features.domain.feature_set import compile_features
from services.features.domain.item_counts import (
    Block,
    ItemCounts,
    ItemTotals,
    blocks_of,
    decode,
    encode,
    fold_items,
    total,
)
from services.features.domain.item_rows import build, moving_values, rows
from services.features.domain.members import Behavior, UnreadableStateError
from tests.unit.features.examples import DAY_S, ITEMS, MEMBERS, START_S, behavior, everything, feature, histories

SET = everything()
LAYOUT = ItemLayout.of(SET.counted)
TABLE = build(SET, ITEMS)


def blobs(blocks: dict[Block, ItemCounts], layout: ItemLayout = LAYOUT) -> dict[Block, bytes]:
    return {block: encode(layout, counts) for block, counts in blocks.items()}


def totals_of(blocks: dict[Block, ItemCounts], item_ids: tuple[str, ...], layout: ItemLayout = LAYOUT) -> ItemTotals:
    own: dict[str, list[ItemCounts]] = defaultdict(list)
    for item_id, partition in sorted(blocks):
        own[item_id].append(blocks[item_id, partition])
    return total(layout, [own[item_id] for item_id in item_ids])


def moving(kind: object, events: list[Behavior], items: tuple[CatalogItem, ...] = ITEMS) -> Float32s:
    """The moving column of a set with this kind alone, after these events."""
    of = compile_features([feature("f", kind)])  # type: ignore[arg-type]
    layout, table = ItemLayout.of(of.counted), build(of, items)
    now_s = max((event.occurred_s for event in events), default=START_S)
    blocks = fold_items(layout, {}, events)
    return moving_values(table, layout, totals_of(blocks, table.item_ids, layout), now_s)[:, 0]


@given(histories(members=MEMBERS, max_size=20), st.sets(st.integers(0, 20)))
def test_batches_cut_anywhere_count_to_the_same_bits(events: list[Behavior], cuts: set[int]) -> None:
    """Stored and read back between any two events, blocks go on as if they had stayed in memory."""
    at_once = fold_items(LAYOUT, {}, events)
    blocks: dict[Block, ItemCounts] = {}
    edges = [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)]
    for begin, end in pairwise(edges):
        blocks |= fold_items(LAYOUT, blocks, events[begin:end])
        blocks = {block: decode(LAYOUT, encode(LAYOUT, counts)) for block, counts in blocks.items()}
    assert blobs(blocks) == blobs(at_once)


@given(histories(members=MEMBERS, max_size=20), st.data())
def test_an_event_counted_again_changes_nothing(events: list[Behavior], data: st.DataObject) -> None:
    """Positions decide, a partition at a time."""
    blocks = fold_items(LAYOUT, {}, events)
    again = data.draw(st.lists(st.sampled_from(events), max_size=8)) if events else []
    assert blobs(blocks | fold_items(LAYOUT, blocks, again)) == blobs(blocks)


@given(histories(members=MEMBERS, max_size=20), st.permutations(sorted({partition_of(m) for m in MEMBERS})))
def test_partitions_may_interleave_at_will(events: list[Behavior], order: list[int]) -> None:
    """Events of one partition long after those of another with higher positions still count."""
    by_turns: dict[Block, ItemCounts] = {}
    for partition in order:
        own = [event for event in events if partition_of(event.member_id) == partition]
        by_turns |= fold_items(LAYOUT, by_turns, own)
    assert blobs(by_turns) == blobs(fold_items(LAYOUT, {}, events))


def test_blocks_of_names_what_a_fold_will_change() -> None:
    """Whoever locks them before folding has locked enough."""
    events = [behavior(1, "click", "boots"), behavior(2, "exposure", "boots", "coat", member_id=MEMBERS[1])]
    assert blocks_of(events) == set(fold_items(LAYOUT, {}, events))


def test_an_exposure_counts_once_on_each_item() -> None:
    """Also where the item is named twice."""
    counts = moving(ItemCount("exposure"), [behavior(1, "exposure", "boots", "coat", "boots")])
    assert dict(zip(TABLE.item_ids, counts.tolist(), strict=True)) == {"boots": 1, "coat": 1, "novel": 0, "plain": 0}


def test_counts_of_members_add_up_at_the_newest_time() -> None:
    """Yesterday's click of one person is worth half beside today's of another."""
    events = [behavior(1, "click", "boots"), behavior(2, "click", "boots", at_s=START_S + DAY_S, member_id=MEMBERS[2])]
    assert moving(ItemCount("click", DAY_S), events)[0] == pytest.approx(1.5)


def test_a_rate_is_smoothed_towards_the_site() -> None:
    """p0 = ½: (2 + 1) ÷ (2 ÷ ½ + 1), (2 + 0) ÷ (4 + 1), and p0 for what nobody has seen."""
    events = [behavior(1, "exposure", "boots", "coat"), behavior(2, "click", "boots")]
    rates = moving(ItemRate("click", "exposure", 2.0), events)
    assert rates.tolist() == [pytest.approx(0.6), pytest.approx(0.4), pytest.approx(0.5), pytest.approx(0.5)]


@pytest.mark.parametrize("kind", [ItemRate("click", "exposure", 2.0), ItemRate("click", "exposure")])
def test_a_rate_before_anything_happened_is_zero(kind: ItemRate) -> None:
    """Never NaN, never infinite: popularity can order by it from the first moment."""
    assert moving(kind, []).tolist() == [0.0] * len(ITEMS)
    assert np.isfinite(moving(kind, [behavior(1, "click", "boots")])).all()


def test_a_category_speaks_for_items_nobody_has_seen() -> None:
    """The red coat has what is known of red; an item without colors has nothing to go by."""
    items = (*ITEMS, CatalogItem("scarf", categories={"color": ("red",)}))
    events = [behavior(1, "exposure", "boots", "novel"), behavior(2, "click", "boots")]
    ids = build(compile_features([feature("f", ItemCount("click"))]), items).item_ids
    rates = dict(zip(ids, moving(CategoryRate("color", "click", "exposure", 2.0), events, items).tolist(), strict=True))
    assert rates["scarf"] == pytest.approx((2 + 1) / (2 / 0.5 + 1))
    assert np.isnan(rates["plain"])


def test_what_the_catalog_does_not_say_is_missing() -> None:
    """No price is NaN, and so is the logarithm of what has none; no category is 0."""
    of = compile_features([feature("f", ItemAttribute("price")), feature("g", ItemAttribute("x", Transform.LOG1P))])
    items = [CatalogItem("a", {"price": 3.0, "x": -1.0}), CatalogItem("b", {"x": -7.0}), CatalogItem("c")]
    still = build(of, items).still
    assert still[0, 0] == 3.0
    assert np.isnan(still[1:, 0]).all()
    assert np.isnan(still[:, 1]).all()
    kinds = {column.name: column.source for column in SET.columns if column.feature == "kind"}
    assert sorted(kinds) == ["kind_books", "kind_shoes"]


@given(histories(members=MEMBERS, max_size=20))
def test_only_the_moving_columns_move(events: list[Behavior]) -> None:
    """Whoever replaces these columns in rows held has the rows of now: what partial columns rely on."""
    now_s = max((event.occurred_s for event in events), default=START_S)

    def whole(blocks: dict[Block, ItemCounts]) -> tuple[Float32s, Float32s]:
        values = moving_values(TABLE, LAYOUT, totals_of(blocks, TABLE.item_ids), now_s)
        return rows(TABLE, values), values

    held, _ = whole({})
    now, values = whole(fold_items(LAYOUT, {}, events))
    held[:, TABLE.moving] = values
    assert held.tobytes() == now.tobytes()


@given(histories(members=MEMBERS, max_size=20))
def test_rows_kept_up_to_date_are_rows_computed_afresh(events: list[Behavior]) -> None:
    """Online, block by block through storage, and offline over the whole log: the same bits."""
    blocks: dict[Block, ItemCounts] = {}
    for event in events:
        blocks |= {
            block: decode(LAYOUT, encode(LAYOUT, new)) for block, new in fold_items(LAYOUT, blocks, [event]).items()
        }
    online = moving_values(TABLE, LAYOUT, totals_of(blocks, TABLE.item_ids), START_S)
    offline = moving_values(TABLE, LAYOUT, totals_of(fold_items(LAYOUT, {}, events), TABLE.item_ids), START_S)
    assert online.tobytes() == offline.tobytes()


def test_a_block_of_an_older_layout_keeps_what_both_count() -> None:
    """A count declared later begins at zero, the others go on."""
    old, new = ItemLayout((Tally("click"),)), ItemLayout((Tally("click"), Tally("purchase")))
    block = fold_items(old, {}, [behavior(1, "click", "boots")])["boots", partition_of(MEMBERS[0])]
    assert decode(new, encode(old, block), {old.version: old}).counts.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("cut", "reason"), [(slice(0, 5), "FORMAT"), (slice(0, -1), "FORMAT"), (slice(1, None), "FORMAT")]
)
def test_a_damaged_block_is_refused(cut: slice, reason: str) -> None:
    """It is never read as counts."""
    block = fold_items(LAYOUT, {}, [behavior(1, "click", "boots")])["boots", partition_of(MEMBERS[0])]
    with pytest.raises(UnreadableStateError) as refusal:
        decode(LAYOUT, encode(LAYOUT, block)[cut])
    assert refusal.value.reason == reason


def test_a_block_of_an_unknown_layout_is_refused() -> None:
    """Its numbers would land in the wrong counts."""
    block = fold_items(LAYOUT, {}, [behavior(1, "click", "boots")])["boots", partition_of(MEMBERS[0])]
    other = ItemLayout.of(Counted(of_item=frozenset({Tally("purchase")})))
    with pytest.raises(UnreadableStateError, match="LAYOUT"):
        decode(other, encode(LAYOUT, block))


def test_a_layout_without_counts_has_blocks() -> None:
    """A site that counts nothing on items folds behavior all the same."""
    blocks = fold_items(ItemLayout(), {}, [behavior(1, "click", "boots")])
    assert {block: decode(ItemLayout(), blob).counts.size for block, blob in blobs(blocks, ItemLayout()).items()} == {
        ("boots", partition_of(MEMBERS[0])): 0
    }
