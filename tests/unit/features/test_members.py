"""The fold of one member's behavior."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.events import LogPosition
from services.features.domain.aggregates import Counted, MemberLayout, Spread, Tally
from services.features.domain.catalog import ItemVersion, bucket_of, place_at
from services.features.domain.feature_set import compile_features
from services.features.domain.members import (
    Behavior,
    Contribution,
    MemberState,
    Pending,
    UnreadableStateError,
    decode,
    empty,
    encode,
    fold,
    fold_pending,
    pending_of,
)
from tests.unit.features.examples import (
    DAY_S,
    EVERYTHING,
    ITEMS,
    MEMBERS,
    START_S,
    behavior,
    contributions,
    everything,
    folded,
    histories,
)

LAYOUT = MemberLayout.of(everything().counted)


def same_bits(one: MemberState, other: MemberState) -> bool:
    return encode(LAYOUT, one) == encode(LAYOUT, other)


@given(histories(), st.sets(st.integers(0, 12)))
def test_batches_cut_anywhere_fold_to_the_same_bits(events: list[Behavior], cuts: set[int]) -> None:
    """Stored and read back between any two events, a state goes on as if it had stayed in memory."""
    state = empty(LAYOUT, MEMBERS[0])
    edges = [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)]
    for begin, end in pairwise(edges):
        state = fold(LAYOUT, state, events[begin:end], contributions(LAYOUT))
        state = decode(LAYOUT, encode(LAYOUT, state), MEMBERS[0])
    assert same_bits(state, folded(LAYOUT, events))


@given(histories(), st.data())
def test_an_event_applied_again_changes_nothing(events: list[Behavior], data: st.DataObject) -> None:
    """Whatever of the past comes again, in whatever order, the state stays bit for bit as it was."""
    state = folded(LAYOUT, events)
    again = data.draw(st.lists(st.sampled_from(events), max_size=8)) if events else []
    assert same_bits(fold(LAYOUT, state, again, contributions(LAYOUT)), state)


@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_what_happened_does_not_matter(events: list[Behavior], random: Random) -> None:
    """The same events at other positions give the same counts: a late one is weighted down to its age."""
    shuffled = list(events)
    random.shuffle(shuffled)
    moved = [replace(event, position=LogPosition(1, n, n)) for n, event in enumerate(shuffled, start=1)]
    one, other = folded(LAYOUT, events), folded(LAYOUT, moved)
    np.testing.assert_allclose(one.counts, other.counts, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one.newest_s, other.newest_s)
    assert one.reference_s == other.reference_s


@given(histories(), st.integers(0, 12), st.sets(st.sampled_from([item.id for item in ITEMS])))
def test_an_item_that_comes_later_counts_as_if_it_had_been_there(
    events: list[Behavior], after: int, missing: set[str]
) -> None:
    """What was folded without an item's categories and then with them is what it would have been at once."""
    all_known = contributions(LAYOUT)

    def known_then(item_id: str, at_s: float) -> Contribution | None:
        return None if item_id in missing else all_known(item_id, at_s)

    state = fold(LAYOUT, empty(LAYOUT, MEMBERS[0]), events[:after], known_then)
    pending = pending_of(LAYOUT, events[:after], known_then)
    state = fold_pending(LAYOUT, state, pending, all_known, {})
    state = fold(LAYOUT, state, events[after:], all_known)
    at_once = folded(LAYOUT, events)
    np.testing.assert_allclose(state.counts, at_once.counts, rtol=1e-5, atol=1e-6)
    assert (state.reference_s, state.position) == (at_once.reference_s, at_once.position)


def test_what_waited_counts_in_nothing_that_was_declared_later() -> None:
    """As an event whose item was there: a new aggregate begins at zero when it is first declared."""
    spreads = sorted(LAYOUT.spreads)
    then = MemberLayout(LAYOUT.tallies, tuple(spreads[:1]), LAYOUT.newest)
    one = Pending(MEMBERS[0], spreads[0].event_type, ITEMS[0].id, START_S, then.version)
    state = fold_pending(LAYOUT, empty(LAYOUT, MEMBERS[0]), [one], contributions(LAYOUT), {then.version: then})
    offset = LAYOUT.spread_offsets[spreads[0]]
    assert state.counts[offset : offset + spreads[0].buckets].sum() > 0.0
    assert state.counts.sum() == state.counts[offset : offset + spreads[0].buckets].sum()


def test_an_event_counts_for_the_categories_of_its_time() -> None:
    """The version that was current then, else the item's first."""
    versions = [ItemVersion(10.0, ITEMS[0]), ItemVersion(20.0, ITEMS[1]), ItemVersion(30.0, ITEMS[2])]
    assert [place_at(versions, at_s) for at_s in (5.0, 10.0, 19.9, 20.0, 1e9)] == [0, 0, 0, 1, 2]


@given(histories())
def test_folding_leaves_the_state_it_began_from(events: list[Behavior]) -> None:
    """A state is a value: what was read of it stays true."""
    before = empty(LAYOUT, MEMBERS[0])
    fold(LAYOUT, before, events, contributions(LAYOUT))
    assert same_bits(before, empty(LAYOUT, MEMBERS[0]))


def test_an_event_counts_once_for_each_item_it_names() -> None:
    """Two items shown are two exposures, one of them named twice is still one, a page without items is one view."""
    layout = MemberLayout.of(Counted(frozenset({Tally("exposure"), Tally("page_viewed")})))
    state = folded(layout, [behavior(1, "exposure", "boots", "coat", "boots"), behavior(2, "page_viewed")])
    assert state.counts[layout.tally_slots[Tally("exposure")]] == 2.0
    assert state.counts[layout.tally_slots[Tally("page_viewed")]] == 1.0


def test_items_that_share_a_bucket_both_count() -> None:
    """One event on two black items is two in the bucket of black."""
    spread = Spread("click", ("color",), 32)
    layout = MemberLayout.of(Counted(spreads=frozenset({spread})))
    state = folded(layout, [behavior(1, "click", "boots", "coat")])
    black = layout.spread_offsets[spread] + bucket_of("color", "black", 32)
    assert state.counts[black] == 2.0


def test_what_forgets_is_halved_in_its_half_life() -> None:
    """After a day a click counts half, and one that comes late by a day counts half at once."""
    tally = Tally("click", DAY_S)
    layout = MemberLayout.of(Counted(frozenset({tally})))
    in_time = [behavior(1, "click"), behavior(2, "click", at_s=START_S + DAY_S)]
    late = [behavior(1, "click", at_s=START_S + DAY_S), behavior(2, "click")]
    assert folded(layout, in_time).counts.tolist() == [1.5]
    assert folded(layout, late).counts.tolist() == [1.5]


def test_an_item_of_no_catalog_counts_but_has_no_categories() -> None:
    """It is a click all the same, and says nothing of tastes."""
    state = folded(LAYOUT, [behavior(1, "click", "unheard_of")])
    assert state.counts[LAYOUT.tally_slots[Tally("click", DAY_S)]] == 1.0
    assert not state.counts[len(LAYOUT.tallies) :].any()


@pytest.mark.parametrize("damage", ["member", "layout", "format", "short", "header"])
def test_a_blob_that_is_not_the_members_state_is_refused(damage: str) -> None:
    """Another member's, another layout's, or a damaged blob never becomes a profile."""
    blob = encode(LAYOUT, folded(LAYOUT, [behavior(1, "click", "boots")]))
    reason, member_id, layout = "FORMAT", MEMBERS[0], LAYOUT
    if damage == "member":
        reason, member_id = "MEMBER", MEMBERS[1]
    elif damage == "layout":
        reason, layout = "LAYOUT", MemberLayout.of(Counted(frozenset({Tally("click")})))
    elif damage == "format":
        blob = b"\x07" + blob[1:]
    else:
        blob = blob[:-1] if damage == "short" else blob[:10]
    with pytest.raises(UnreadableStateError) as refusal:
        decode(layout, blob, member_id)
    assert refusal.value.reason == reason
    assert MEMBERS[0] not in str(refusal.value)


@given(histories(), st.lists(st.sampled_from(EVERYTHING), unique=True))
def test_a_new_layout_keeps_what_both_count(events: Sequence[Behavior], kept: list[object]) -> None:
    """Read in another layout, a history has the counts that both declare, and goes on from there."""
    smaller = MemberLayout.of(compile_features([feature for feature in EVERYTHING if feature in kept]).counted)
    state = folded(LAYOUT, events)
    carried = decode(smaller, encode(LAYOUT, state), MEMBERS[0], {LAYOUT.version: LAYOUT})
    np.testing.assert_array_equal(carried.counts, folded(smaller, events).counts)
    np.testing.assert_array_equal(carried.newest_s, folded(smaller, events).newest_s)
    assert carried.position == state.position


def test_a_count_declared_later_begins_at_zero() -> None:
    """What nobody counted before is not made up."""
    old = MemberLayout.of(Counted(frozenset({Tally("click")})))
    new = MemberLayout.of(Counted(frozenset({Tally("click"), Tally("exposure")})))
    state = folded(old, [behavior(1, "click"), behavior(2, "exposure", "boots")])
    carried = decode(new, encode(old, state), MEMBERS[0], {old.version: old})
    assert carried.counts[new.tally_slots[Tally("click")]] == 1.0
    assert carried.counts[new.tally_slots[Tally("exposure")]] == 0.0


def test_a_layout_without_counts_has_a_state() -> None:
    """A site without features about people still remembers how far it has read."""
    nothing = MemberLayout.of(Counted())
    state = folded(nothing, [behavior(1, "click", "boots")])
    assert decode(nothing, encode(nothing, state), MEMBERS[0]).position == LogPosition(1, 1, 1)
