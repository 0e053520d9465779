"""Behavior that a person did not agree to: dropped, or stored without the person."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.feedback.domain.behavior import (
    Behavior,
    Claim,
    Identity,
    Permission,
    Person,
    Refusal,
    Signals,
    Status,
    anonymous,
)
from services.feedback.domain.schemas import EXPOSURE, canonical
from services.feedback.wire import decode_schema, encode_schema
from tests.unit.feedback.world import BOOK, World, decided, event, member, schema

OPEN_BOOK = {name: replace(one, anonymize_without_consent=True) for name, one in BOOK.items()}
GPC = Signals(gpc="1")


def statuses(world_answer: object) -> list[Status]:
    return [verdict.status for verdict in world_answer.verdicts]  # type: ignore[attr-defined]


def counted(**labels: str) -> float:
    return REGISTRY.get_sample_value("comity_events_without_consent_total", labels) or 0.0


def refusing_world(*, anonymize: bool = True) -> World:
    world = World(OPEN_BOOK if anonymize else BOOK)
    world.consents.refused.add((member("ann"), "measurement"))
    return world


async def test_what_is_stored_without_the_person_leads_nowhere() -> None:
    """Type, items and time stay; member, subject, properties and the decision do not."""
    world = refusing_world()
    world.tokens.claims[b"token"] = Claim("d1", "home", member("ann"))
    sent = [
        event("canary-1", exposure_token=b"token"),
        event("canary-2", "search", properties={"query": "canary", "results": 3.0}),
        event("canary-3", who="bob"),
    ]
    assert statuses(await world.track(sent)) == [Status.ANONYMIZED, Status.ANONYMIZED, Status.ACCEPTED]
    stored = [entry for _, entry in world.log.behaviors]
    assert [entry.member_id for entry in stored] == ["", "", member("bob")]
    assert stored[0].behavior == Behavior(type="click", subject_id="", item_ids=("1",))
    assert stored[1].behavior == Behavior(type="search", subject_id="")


@given(st.text(), st.dictionaries(st.text(), st.text()), st.text(), st.lists(st.text()))
def test_nothing_but_type_and_items_is_left(
    subject: str, properties: dict[str, str], link: str, items: list[str]
) -> None:
    """Whatever the behavior held."""
    left = anonymous(Behavior("click", subject, tuple(items), properties, link, link, decision_proven=True))
    assert left == Behavior("click", "", tuple(items))


async def test_nobody_can_tell_whose_it_was_by_trying() -> None:
    """The stream's name hangs on a key: members and event ids alone do not give it."""
    world = refusing_world()
    await world.track([event("1"), event("1", who="bob")])
    (_, nobodys), (_, bobs) = world.log.behaviors
    assert nobodys.stream_id not in nobodys.twin_stream_ids
    assert bobs.stream_id not in bobs.twin_stream_ids
    assert not set(nobodys.twin_stream_ids) & set(world.log.streams)


async def test_an_event_is_stored_once_whatever_the_person_says_between_two_tries() -> None:
    """Without the person, then with; or with, then without: the second is a duplicate, and its position is known."""
    world = refusing_world()
    first = await world.track([event("1"), event("1")])
    assert statuses(first) == [Status.ANONYMIZED, Status.DUPLICATE]
    world.consents.refused.clear()
    again = await world.track([event("1"), event("2")])
    assert statuses(again) == [Status.DUPLICATE, Status.ACCEPTED]
    world.consents.refused.add((member("ann"), "measurement"))
    repeated = await world.track([event("2")])
    assert statuses(repeated) == [Status.DUPLICATE]
    assert repeated.position == again.position
    assert len(world.log.behaviors) == 2


async def test_an_event_of_nobody_is_stored_without_the_person() -> None:
    """Whose identities are placeholders has agreed to nothing; what was done counts for the items all the same."""
    world = World(OPEN_BOOK)
    world.tokens.claims[b"token"] = Claim("d1", "home", member("ann"))
    nobody = Person((Identity("user_id", "undefined"),))
    before = counted(effect="anonymized", reason="NEVER_ASKED", signal="")
    sent = [
        event("canary-1", person=nobody, exposure_token=b"token", decision_id="d1"),
        event("canary-2", "search", person=nobody, properties={"query": "canary"}),
        event("3"),
    ]
    assert statuses(await world.track(sent)) == [Status.ANONYMIZED, Status.ANONYMIZED, Status.ACCEPTED]
    stored = [(entry.member_id, entry.behavior) for _, entry in world.log.behaviors]
    assert stored[:2] == [("", Behavior("click", "", ("1",))), ("", Behavior("search", ""))]
    assert stored[2][0] == member("ann")
    assert counted(effect="anonymized", reason="NEVER_ASKED", signal="") == before + 2
    assert world.consents.calls == [1]


@pytest.mark.parametrize("in_one_call", [True, False])
async def test_nobody_is_many_and_an_event_of_theirs_is_stored_once(*, in_one_call: bool) -> None:
    """The same event sent again is a duplicate; another one under the same id is another stranger's."""
    world = World(OPEN_BOOK)
    nobody = Person((Identity("user_id", ""),))
    sent = [event("1", person=nobody, item_ids=(item,)) for item in ("1", "1", "2")]
    calls = [sent] if in_one_call else [[one] for one in sent]
    answered = [status for call in calls for status in statuses(await world.track(call))]
    assert answered == [Status.ANONYMIZED, Status.DUPLICATE, Status.ANONYMIZED]
    assert [entry.behavior.item_ids for _, entry in world.log.behaviors] == [("1",), ("2",)]


async def test_signals_that_come_with_an_event_count_for_it_alone() -> None:
    """Two events of one person in one call: one with an objection, one without."""
    world = World()
    tracked = await world.track([event("1", signals=GPC), event("2"), event("3", "page_viewed", signals=GPC)])
    assert statuses(tracked) == [Status.DROPPED_NO_CONSENT, Status.ACCEPTED, Status.ACCEPTED]


@pytest.mark.parametrize(("anonymize", "effect"), [(True, "anonymized"), (False, "dropped")])
async def test_what_was_not_agreed_to_is_counted_by_reason(anonymize: bool, effect: str) -> None:
    """By what became of it, by the state that refused it and by the signal, where one did."""
    world = refusing_world(anonymize=anonymize)
    by_ledger = {"effect": effect, "reason": "DENIED", "signal": ""}
    by_signal = {"effect": effect, "reason": "OBJECTED", "signal": "gpc"}
    before = counted(**by_ledger), counted(**by_signal)
    await world.track([event("1"), event("2", signals=GPC), event("3", who="bob")])
    assert (counted(**by_ledger), counted(**by_signal)) == (before[0] + 1, before[1] + 1)


async def test_a_bare_exposure_keeps_its_items_and_not_its_decision() -> None:
    """What was shown is counted; for whom it was decided is not kept."""
    world = refusing_world()
    world.decisions.arrive(decided("d1"))
    tracked = await world.track([event("1", EXPOSURE, decision_id="d1", item_ids=())])
    assert statuses(tracked) == [Status.ANONYMIZED]
    (_, stored) = world.log.behaviors[0]
    assert stored.behavior == Behavior(EXPOSURE, "", ("1", "2", "3"))


async def test_an_immediate_decision_is_its_own_exposure_also_without_the_person() -> None:
    """Once: the exposure that the backend tracks besides is the same fact."""
    world = refusing_world()
    world.decisions.arrive(decided("d1", immediate=True))
    await world.settle()
    tracked = await world.track([event("1", EXPOSURE, decision_id="d1", item_ids=())])
    assert statuses(tracked) == [Status.DUPLICATE]
    assert [(entry.member_id, entry.behavior.item_ids) for _, entry in world.log.behaviors] == [("", ("1", "2", "3"))]
    dropping = refusing_world(anonymize=False)
    dropping.decisions.arrive(decided("d1", immediate=True))
    await dropping.settle()
    assert dropping.log.behaviors == []


async def test_what_the_signals_of_a_decide_refused_is_not_collected_from_it() -> None:
    """The ledger allows it, and the browser that asked did not: dropped, counted by the signal; others are kept."""
    world = World()
    before = counted(effect="dropped", reason="DENIED", signal="tc_string")
    world.decisions.arrive(decided("d1", immediate=True, refused_by_signal={"measurement": "tc_string"}))
    world.decisions.arrive(decided("d2", immediate=True, refused_by_signal={"profile_personalization": "gpc"}))
    await world.settle()
    assert [entry.behavior.decision_id for _, entry in world.log.behaviors] == ["d2"]
    assert counted(effect="dropped", reason="DENIED", signal="tc_string") == before + 1


async def test_behavior_of_nobody_answers_no_decision() -> None:
    """No outcome follows from it: an outcome is a person's."""
    world = refusing_world()
    world.tokens.claims[b"token"] = Claim("d1", "home", member("ann"))
    world.decisions.arrive(decided("d1"))
    await world.track([event("1", exposure_token=b"token")])
    await world.settle()
    assert world.log.outcomes == []


def test_the_first_purpose_that_is_missing_says_why() -> None:
    """One reason an event, so that counts add up."""
    answer = Permission(frozenset("c"), {"a": Refusal("DENIED"), "b": Refusal("OBJECTED", "gpc")})
    assert answer.refusal_of(frozenset("abc")) == Refusal("DENIED")
    assert answer.refusal_of(frozenset("bc")) == Refusal("OBJECTED", "gpc")
    assert answer.refusal_of(frozenset("c")) is None
    assert answer.refusal_of(frozenset("d")) == Refusal("NEVER_ASKED")


def test_a_site_that_anonymizes_nothing_keeps_its_version() -> None:
    """Only what is declared is part of the content that is hashed."""
    assert b"anonymize" not in canonical({"click": schema("click")})
    declared = schema("click", anonymize_without_consent=True)
    assert canonical({"click": declared}) != canonical({"click": schema("click")})
    assert decode_schema(encode_schema(declared)) == declared
