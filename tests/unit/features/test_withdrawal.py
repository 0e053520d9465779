"""Taking people out of the counts of items again: as though they had never been."""

from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.features.domain.aggregates import ItemLayout, Tally
from services.features.domain.item_counts import Block, ItemCounts, at, blocks_of, decode, encode, fold_items
from services.features.domain.members import Behavior
from services.features.domain.withdrawal import Folded, withdraw
from tests.unit.features.examples import DAY_S, MEMBERS, START_S, behavior, histories

PLAIN = ItemLayout((Tally("click"), Tally("exposure")))
DECAYED = ItemLayout((Tally("click"), Tally("click", DAY_S), Tally("exposure", 7 * DAY_S)))
LATER_S = START_S + 60 * DAY_S


def all_declared(layout: ItemLayout) -> dict[Tally, float]:
    return dict.fromkeys(layout.tallies, 0.0)


def without(layout: ItemLayout, events: list[Behavior], erased: set[str]) -> dict[Block, ItemCounts]:
    """Fold everything, then withdraw the erased."""
    blocks = fold_items(layout, {}, events)
    gone = [Folded(event, START_S) for event in events if event.member_id in erased]
    return {**blocks, **withdraw(layout, all_declared(layout), blocks, gone)}


def worth(layout: ItemLayout, blocks: Mapping[Block, ItemCounts], block: Block) -> list[float]:
    """The block's counts at one moment; a block that is not there counts nothing."""
    state = blocks.get(block)
    if state is None:
        return [0.0] * len(layout.tallies)
    return [float(count) for count in at(layout, state.counts[None, :], np.array([state.reference_s]), LATER_S)[0]]


ERASED = st.sets(st.sampled_from(MEMBERS))


@given(histories(members=MEMBERS, max_size=30), ERASED, st.randoms(use_true_random=False))
def test_counts_are_as_though_they_had_never_been(events: list[Behavior], erased: set[str], chance: object) -> None:
    """Exact where nothing is forgotten, in whatever order events came, whatever partitions they share."""
    chance.shuffle(events)  # type: ignore[attr-defined]
    events = [
        behavior(number, one.type, *one.item_ids, at_s=one.occurred_s, member_id=one.member_id)
        for number, one in enumerate(events, start=1)
    ]
    kept = fold_items(PLAIN, {}, [event for event in events if event.member_id not in erased])
    left = without(PLAIN, events, erased)
    for block in blocks_of(events):
        assert worth(PLAIN, left, block) == worth(PLAIN, kept, block)


@given(histories(members=MEMBERS, max_size=30), ERASED)
def test_what_is_forgotten_is_taken_out_as_far_as_it_was_left(events: list[Behavior], erased: set[str]) -> None:
    """Within rounding where counts forget, also after the block was stored and read again."""
    kept = fold_items(DECAYED, {}, [event for event in events if event.member_id not in erased])
    before = fold_items(DECAYED, {}, events)
    left = without(DECAYED, events, erased)
    left = {block: decode(DECAYED, encode(DECAYED, state)) for block, state in left.items()}
    for block in blocks_of(events):
        most = max(before[block].counts.max(), 1.0)
        np.testing.assert_allclose(
            worth(DECAYED, left, block), worth(DECAYED, kept, block), rtol=1e-9, atol=2e-9 * most
        )


@given(histories(members=MEMBERS, max_size=30))
def test_nothing_is_left_of_everybody(events: list[Behavior]) -> None:
    """Every touched block is exactly zero: what rounding leaves would say that somebody was here."""
    for state in without(DECAYED, events, set(MEMBERS)).values():
        assert not state.counts.any()


@given(histories(members=MEMBERS, max_size=30), ERASED)
def test_no_count_falls_below_zero(events: list[Behavior], erased: set[str]) -> None:
    """Also where more is taken out than was ever folded."""
    blocks = fold_items(DECAYED, {}, events[::2])
    gone = [Folded(event, START_S) for event in events if event.member_id in erased]
    for state in withdraw(DECAYED, all_declared(DECAYED), blocks, gone).values():
        assert (state.counts >= 0.0).all()


def test_what_was_not_counted_yet_is_not_subtracted() -> None:
    """A tally that was declared after an event was folded does not hold it."""
    declared = {Tally("click"): 0.0, Tally("click", DAY_S): START_S + 5.0}
    old = ItemLayout((Tally("click"),))
    new = ItemLayout((Tally("click"), Tally("click", DAY_S)))
    first, second = behavior(1, "click", "boots"), behavior(2, "click", "boots")
    blocks = fold_items(old, {}, [first])
    blocks = {block: decode(new, encode(old, state), {old.version: old}) for block, state in blocks.items()}
    blocks = fold_items(new, blocks, [second])
    (only,) = withdraw(new, declared, blocks, [Folded(first, START_S)]).values()
    assert only.counts.tolist() == [1.0, 1.0]
    (none,) = withdraw(new, declared, blocks, [Folded(first, START_S), Folded(second, START_S + 9.0)]).values()
    assert none.counts.tolist() == [0.0, 0.0]


def test_other_partitions_and_items_are_not_touched() -> None:
    """Only the blocks that the erased person was counted in come back changed."""
    mine, other = behavior(1, "click", "boots"), behavior(2, "click", "coat", member_id=MEMBERS[1])
    blocks = fold_items(PLAIN, {}, [mine, other])
    assert set(withdraw(PLAIN, all_declared(PLAIN), blocks, [Folded(mine, START_S)])) == blocks_of([mine])
