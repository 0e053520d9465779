"""Joining behavior to decisions, in whichever order they come."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.errors import Kind, ServiceError
from services.chassis.events import LogPosition
from services.feedback.domain.attribution import NOT_IN_SLATE, Answer, attribute
from services.feedback.handlers.join import AwaitJoined
from tests.unit.feedback.world import NOW, WINDOW, World, decided, event, member, schema


def answer(**changes: object) -> Answer:
    plain: dict[str, object] = {
        "behavior_id": "b1",
        "type": "click",
        "member_id": member("ann"),
        "subject_id": member("ann"),
        "decision_id": "d1",
        "decision_proven": False,
        "item_ids": ("2",),
        "occurred_at": NOW,
    }
    return Answer(**{**plain, **changes})  # type: ignore[arg-type]


def test_an_outcome_says_where_in_the_slate_the_item_was() -> None:
    """One outcome an item, with its slot; -1 for an item that was not shown; one without an item for none."""
    both = attribute(answer(item_ids=("3", "9", "3")), decided(), reward=2.0, window=WINDOW)
    assert [(o.item_id, o.slot, o.reward) for o in both] == [("3", 2, 2.0), ("9", NOT_IN_SLATE, 2.0)]
    none = attribute(answer(item_ids=()), decided(), reward=2.0, window=WINDOW)
    assert [(o.item_id, o.slot) for o in none] == [("", NOT_IN_SLATE)]


@pytest.mark.parametrize(
    ("late", "counts"),
    [
        (timedelta(), True),
        (WINDOW, True),
        (WINDOW + timedelta(microseconds=1), False),
        (timedelta(minutes=-5), True),
        (timedelta(minutes=-5, microseconds=-1), False),
    ],
)
def test_an_answer_counts_within_the_reward_window(late: timedelta, counts: bool) -> None:
    """Up to the window's end; a sender's clock may be five minutes late."""
    fact = decided()
    outcomes = attribute(answer(occurred_at=fact.decided_at + late), fact, reward=1.0, window=WINDOW)
    assert bool(outcomes) is counts


@pytest.mark.parametrize(
    ("properties", "rewards"),
    [({"amount": 49.9}, [49.9]), ({"amount": -49.0}, [-49.0]), ({}, [5.0]), ({"amount": 0.0}, [])],
)
async def test_reward_is_the_number_that_came_with_the_event(
    properties: dict[str, float], rewards: list[float]
) -> None:
    """A refund is below nothing; without the number the type's own reward counts, and nothing is no outcome."""
    world = World()
    world.decisions.arrive(decided("d1"))
    await world.track([event("1", "purchase", item_ids=("2",), decision_id="d1", properties=properties)])
    await world.settle()
    assert [one.reward for one in world.log.outcomes] == rewards


def test_only_the_person_it_was_made_for_answers_a_decision() -> None:
    """By member, by canonical subject, or by a token; not by knowing the id."""
    stranger = answer(member_id=member("bob"), subject_id=member("bob"))
    assert not attribute(stranger, decided(), reward=1.0, window=WINDOW)
    assert attribute(answer(member_id=member("bob")), decided(), reward=1.0, window=WINDOW)
    proven = answer(member_id=member("bob"), subject_id=member("bob"), decision_proven=True)
    assert attribute(proven, decided(), reward=1.0, window=WINDOW)
    nobody = answer(member_id=member("bob"), subject_id="")
    assert not attribute(nobody, decided(subject_id=""), reward=1.0, window=WINDOW)


async def test_a_click_after_its_decision_becomes_an_outcome() -> None:
    """Decision first."""
    world = World()
    world.decisions.arrive(decided())
    await world.settle()
    await world.track([event("1", decision_id="d1", item_ids=("2",))])
    await world.settle()
    assert [(o.decision_id, o.item_id, o.slot) for o in world.log.outcomes] == [("d1", "2", 1)]
    assert world.progress.pending == {}


async def test_a_click_before_its_decision_waits_for_it() -> None:
    """Click first: it is put down as waiting, and joined when the decision comes in."""
    world = World()
    await world.track([event("1", decision_id="d1", item_ids=("2",))])
    await world.settle()
    assert world.log.outcomes == []
    assert len(world.progress.pending) == 1
    world.decisions.arrive(decided())
    await world.settle()
    assert [(o.decision_id, o.item_id, o.slot) for o in world.log.outcomes] == [("d1", "2", 1)]
    assert world.progress.pending == {}


async def test_joining_again_changes_nothing() -> None:
    """A joiner that starts over, as after a crash before its progress was written, records no outcome twice."""
    world = World()
    await world.track([event("1", decision_id="d1"), event("2", decision_id="d2")])
    world.decisions.arrive(decided("d1"))
    await world.settle()
    world.progress.positions.clear()
    world.decisions.arrive(decided("d2"))
    await world.settle()
    world.progress.positions.clear()
    await world.settle()
    assert sorted(o.decision_id for o in world.log.outcomes) == ["d1", "d2"]


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("decision"), st.integers(0, 3)),
            st.tuples(st.just("click"), st.integers(0, 3)),
            st.tuples(st.just("step"), st.just(0)),
            st.tuples(st.just("crash"), st.just(0)),
        ),
        max_size=30,
    )
)
async def test_every_answer_is_joined_once_in_any_order(history: list[tuple[str, int]]) -> None:
    """Arrivals, clicks, steps and restarts in any order: in the end each click of a known decision has one outcome."""
    world = World()
    clicked: set[int] = set()
    for what, which in history:
        if what == "decision" and f"d{which}" not in world.decisions.facts:
            world.decisions.arrive(decided(f"d{which}"))
        elif what == "click":
            clicked.add(which)
            await world.track([event(f"c{which}", decision_id=f"d{which}")])
        elif what == "step":
            await world.join.step()
        elif what == "crash":
            world.progress.positions.clear()
    await world.settle()
    known = {which for which in clicked if f"d{which}" in world.decisions.facts}
    assert sorted(o.decision_id for o in world.log.outcomes) == sorted(f"d{which}" for which in known)
    assert {entry.decision_id for entry in world.progress.pending.values()} == {f"d{w}" for w in clicked - known}


@pytest.mark.parametrize("click_first", [True, False])
async def test_click_waits_for_a_decision_that_cannot_be_read(click_first: bool) -> None:
    """Once that is put right it arrives again, and is answered, whichever of the two came first."""
    world = World()
    world.decisions.unreadable.add("d1")
    click = [event("1", decision_id="d1", item_ids=("2",))]
    if click_first:
        await world.track(click)
        await world.settle()
    world.decisions.arrive(decided())
    await world.settle()
    if not click_first:
        await world.track(click)
        await world.settle()
    world.decisions.unreadable.clear()
    world.decisions.arrive(decided())
    await world.settle()
    assert [(o.decision_id, o.item_id, o.slot) for o in world.log.outcomes] == [("d1", "2", 1)]
    assert world.progress.pending == {}


async def test_a_behavior_without_reward_is_no_outcome() -> None:
    """Only types that are worth something answer a decision."""
    world = World({**World().schemas.declared, "glance": schema("glance")})
    world.decisions.arrive(decided())
    await world.track([event("1", "glance", decision_id="d1", item_ids=("1",))])
    await world.settle()
    assert world.log.outcomes == []
    assert world.progress.pending == {}


async def test_an_immediate_decision_is_its_own_exposure() -> None:
    """It is recorded once as an exposure of its slate, where the person allows that; a deferred one is not."""
    world = World()
    world.consents.refused.add((member("bob"), "measurement"))
    world.decisions.arrive(decided("d1", immediate=True))
    world.decisions.arrive(decided("d2", who="bob", immediate=True))
    world.decisions.arrive(decided("d3"))
    await world.settle()
    world.progress.positions.clear()
    await world.settle()
    shown = [entry.behavior for _, entry in world.log.behaviors]
    assert [(b.type, b.decision_id, b.item_ids) for b in shown] == [("exposure", "d1", ("1", "2", "3"))]


async def test_without_a_declared_exposure_nothing_is_recorded_for_a_decision() -> None:
    """What a site did not declare is not collected."""
    book = {name: entry for name, entry in World().schemas.declared.items() if name != "exposure"}
    world = World(book)
    world.decisions.arrive(decided("d1", immediate=True))
    await world.settle()
    assert world.log.behaviors == []


async def test_an_answer_whose_decision_never_comes_is_given_up_on() -> None:
    """After the reward window nothing waits any more."""
    world = World()
    await world.track([event("1", decision_id="d0")])
    await world.settle()
    assert world.progress.pending
    world.clock.advance(WINDOW.total_seconds() + 1)
    await world.settle()
    assert world.progress.pending == {}


class Arrived:
    """An intake that has everything."""

    async def await_position(self, position: LogPosition, timeout_s: float) -> None:
        """See handlers.ports.Arrived."""


async def test_waiting_ends_when_everything_is_joined_and_not_before() -> None:
    """AwaitPosition returns only once answers tracked before it are joined; out of time it says so."""
    world = World()
    await_joined = AwaitJoined(arrived=Arrived(), log=world.log, decisions=world.decisions, progress=world.progress)
    world.decisions.arrive(decided())
    await world.track([event("1", decision_id="d1")])
    position = LogPosition(1, 1, 1)
    with pytest.raises(ServiceError) as raised:
        await await_joined(position, timeout_s=0.0)
    assert raised.value.kind is Kind.DEADLINE
    before = await world.log.newest()
    await world.settle()
    assert await world.progress.position("answers") >= before
    # The outcome itself lies behind what was asked for.
    world.progress.positions["answers"] = await world.log.newest()
    assert await await_joined(position, timeout_s=0.0) == position
