"""From states of members to vectors of subjects."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.events import ORIGIN, LogPosition
from services.features.domain.aggregates import Float32s, MemberLayout
from services.features.domain.catalog import CatalogItem
from services.features.domain.declared import (
    CategoryAffinity,
    Similarity,
    SubjectCount,
    SubjectRate,
    SubjectRecency,
)
from services.features.domain.feature_set import compile_features
from services.features.domain.item_rows import build
from services.features.domain.members import Behavior, MemberState, contribution, empty, fold
from services.features.domain.reading import Answers, Question, ValueState, read
from tests.unit.features.examples import (
    DAY_S,
    ITEMS,
    MEMBERS,
    START_S,
    behavior,
    everything,
    feature,
    folded,
    histories,
)

SET = everything()
LAYOUT = MemberLayout.of(SET.counted)
WEIGHTS = build(SET, ITEMS).weights
LATER_S = START_S + 40 * DAY_S


def states_of(events: list[Behavior]) -> list[MemberState]:
    """The states of the members that the events are of."""
    mine = {member: [event for event in events if event.member_id == member] for member in MEMBERS}
    return [folded(LAYOUT, own, member) for member, own in mine.items() if own]


def answer(*questions: Question) -> Answers:
    return read(SET, LAYOUT, WEIGHTS, questions)


def values(events: list[Behavior], *kinds: object, at_s: float = START_S) -> Float32s:
    """The vector of one member after these events, of a set with these kinds alone."""
    of = compile_features([feature(f"f{n}", kind) for n, kind in enumerate(kinds)])  # type: ignore[arg-type]
    layout = MemberLayout.of(of.counted)
    told: Float32s = read(of, layout, build(of, ITEMS).weights, [Question([folded(layout, events)], at_s)]).vectors[0]
    return told


@given(st.lists(histories(members=MEMBERS), min_size=1, max_size=5), st.data())
def test_an_answer_is_the_same_alone_and_in_a_batch(people: list[list[Behavior]], data: st.DataObject) -> None:
    """Whoever else is asked about changes no bit."""
    moments = data.draw(st.lists(st.integers(0, 10**10), min_size=len(people), max_size=len(people)))
    questions = [
        Question(states_of(events), START_S + moment / 1000) for events, moment in zip(people, moments, strict=True)
    ]
    together = answer(*questions)
    for row, question in enumerate(questions):
        alone = answer(question)
        assert alone.vectors[0].tobytes() == together.vectors[row].tobytes()
        assert alone.states[0].tobytes() == together.states[row].tobytes()
        assert alone.positions[0] == together.positions[row]


@given(histories(members=MEMBERS, max_size=20), st.permutations(range(4)))
def test_members_merge_in_any_order(events: list[Behavior], order: list[int]) -> None:
    """Which member came first, and who merged with whom first, does not matter beyond the last bits."""
    states = states_of(events)
    turned = [states[n] for n in order if n < len(states)]
    one, other = answer(Question(states, LATER_S)), answer(Question(turned, LATER_S))
    np.testing.assert_allclose(one.vectors, other.vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one.states, other.states)
    assert one.positions == other.positions


@given(histories(max_size=20))
def test_a_merged_subject_is_as_if_one_member_had_done_it_all(events: list[Behavior]) -> None:
    """Histories split over two members read as the one history."""
    first, second = events[::2], events[1::2]
    apart = [folded(LAYOUT, first), folded(LAYOUT, second)]
    one = answer(Question([folded(LAYOUT, events)], LATER_S))
    two = answer(Question([state for state in apart if state.position != ORIGIN], LATER_S))
    if events:
        np.testing.assert_allclose(one.vectors, two.vectors, rtol=1e-4, atol=1e-5)


@given(histories(members=MEMBERS[:2], max_size=20))
def test_unmerging_restores_each_side_exactly(events: list[Behavior]) -> None:
    """Reading two members together leaves no trace in either."""
    states = states_of(events)
    before = [answer(Question([state], LATER_S)).vectors.tobytes() for state in states]
    answer(Question(states, LATER_S))
    assert [answer(Question([state], LATER_S)).vectors.tobytes() for state in states] == before


@given(histories(max_size=20), st.integers(0, 20), st.permutations(range(20)))
def test_what_happens_later_changes_nothing_earlier(events: list[Behavior], cut: int, order: list[int]) -> None:
    """A vector read before an event is the same whatever follows, in whatever order."""
    past, future = events[:cut], events[cut:]
    permuted = [future[n] for n in order if n < len(future)]
    now_s = max((event.occurred_s for event in past), default=START_S) + 1.0
    read_then = []
    for follow in (future, permuted):
        state = folded(LAYOUT, past)
        read_then.append(answer(Question([state] if past else [], now_s)).vectors.tobytes())
        folded(LAYOUT, [*past, *follow])
    assert read_then[0] == read_then[1]


def test_a_subject_nobody_knows_is_missing_throughout() -> None:
    """MISSING is NaN, so that nothing computed from it looks like a number."""
    unknown = answer(Question([], START_S))
    assert np.isnan(unknown.vectors).all()
    assert set(unknown.states[0].tolist()) == {ValueState.MISSING}
    assert unknown.positions == (ORIGIN,)


def test_a_rate_leans_on_its_prior() -> None:
    """(2 · 0.2 + 1) ÷ (2 + 2) after one click on two items shown."""
    events = [behavior(1, "exposure", "boots", "coat"), behavior(2, "click", "boots")]
    assert values(events, SubjectRate("click", "exposure", 2.0, 0.2)).tolist() == [pytest.approx(0.35)]


def test_a_rate_of_nothing_is_missing() -> None:
    """Without occasions and without a prior there is no rate."""
    assert np.isnan(values([behavior(1, "page_viewed")], SubjectRate("click", "exposure"))).all()


def test_recency_halves_and_never_exceeds_one() -> None:
    """1 at the event (also for a clock that is behind), a half a half-life later, 0 for what never happened."""
    recency, never = SubjectRecency("click", DAY_S), SubjectRecency("purchase", DAY_S)
    events = [behavior(1, "click")]
    assert values(events, recency, never).tolist() == [1.0, 0.0]
    assert values(events, recency, at_s=START_S - 60.0).tolist() == [1.0]
    assert values(events, recency, at_s=START_S + DAY_S).tolist() == [0.5]


def test_counts_decay_to_the_moment_of_reading_and_do_not_grow_before_it() -> None:
    """What a late reader sees is less; a reader whose clock is behind sees no more than there was."""
    count = SubjectCount("click", DAY_S)
    assert values([behavior(1, "click")], count, at_s=START_S + 2 * DAY_S).tolist() == [0.25]
    assert values([behavior(1, "click")], count, at_s=START_S - 2 * DAY_S).tolist() == [1.0]


def test_affinity_is_how_much_more_often_than_usual() -> None:
    """Clicked on shoes, not on books: above zero, below zero, and zero for what was never met."""
    events = [behavior(1, "exposure", "boots", "novel"), behavior(2, "click", "boots")]
    kind = CategoryAffinity("kind", "click", 64, "exposure", 1.0)
    of = compile_features([feature("f", kind)])
    segments = build(of, ITEMS).still
    dots = dict(zip(sorted(item.id for item in ITEMS), segments @ values(events, kind), strict=True))
    assert dots == {
        # (1 - ½ · 1) ÷ (1 + 1) and (0 - ½ · 1) ÷ (1 + 1)
        "boots": pytest.approx(0.25),
        "novel": pytest.approx(-0.25),
        "coat": 0.0,
        "plain": 0.0,
    }


def test_affinity_before_the_first_occasion_is_missing() -> None:
    """Nothing shown, no rate to compare with."""
    assert np.isnan(values([behavior(1, "click", "boots")], CategoryAffinity("kind", "click", 8, "exposure"))).all()


def test_similarity_is_a_cosine() -> None:
    """The item itself is at 1, what shares a trait between, what shares none at 0."""
    kind = Similarity(("kind", "color"), "click", 64)
    of = compile_features([feature("f", kind)])
    dots = build(of, ITEMS).still @ values([behavior(1, "click", "boots")], kind)
    boots, coat, novel, plain = dots.tolist()
    assert boots == pytest.approx(1.0)
    assert 0.0 < coat < 1.0
    assert novel == plain == 0.0


def test_rare_traits_weigh_more() -> None:
    """A trait that every item has brings two items less close than one that only they have."""
    items = [
        CatalogItem("clicked", categories={"t": ("common", "rare")}),
        CatalogItem("shares_rare", categories={"t": ("rare",)}),
        *(CatalogItem(f"shares_common_{n}", categories={"t": ("common",)}) for n in range(20)),
    ]
    of = compile_features([feature("f", Similarity(("t",), "click", 64))])
    table, layout = build(of, items), MemberLayout.of(of.counted)
    added = contribution(layout, items[0])
    state = fold(layout, empty(layout, MEMBERS[0]), [behavior(1, "click", "clicked")], lambda *_: added)
    vector = read(of, layout, table.weights, [Question([state], START_S)]).vectors[0]
    dots = dict(zip(table.item_ids, table.still @ vector, strict=True))
    assert dots["shares_rare"] > dots["shares_common_0"] > 0.0


@pytest.mark.parametrize(("age_s", "state"), [(3600.0, ValueState.PRESENT), (3601.0, ValueState.STALE)])
def test_a_value_older_than_its_bound_is_stale(age_s: float, state: ValueState) -> None:
    """Exactly at the bound it is still fresh; a stale value is told, and told as stale."""
    of = compile_features([feature("f", SubjectCount("click"), freshness_s=3600)])
    layout = MemberLayout.of(of.counted)
    told = read(of, layout, {}, [Question([folded(layout, [behavior(1, "click")])], START_S + age_s)])
    assert told.states.tolist() == [[state]]
    assert told.vectors.tolist() == [[1.0]]


def test_the_position_told_is_the_newest_of_the_members() -> None:
    """It says how much of the log is in the vector."""
    events = [behavior(1, "click"), behavior(2, "click", member_id=MEMBERS[1])]
    assert answer(Question(states_of(events), START_S)).positions == (LogPosition(1, 2, 2),)


def test_every_value_of_a_vector_belongs_to_one_feature() -> None:
    """Places follow on each other without gap or overlap."""
    covered = [
        offset
        for place in SET.places
        for offset in range(place.subject_offset, place.subject_offset + place.subject_width)
    ]
    assert covered == list(range(SET.subject_width))
