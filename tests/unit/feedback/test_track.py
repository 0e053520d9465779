"""Taking behavior in."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.chassis.errors import ServiceError
from services.chassis.events import ORIGIN
from services.feedback.domain.behavior import Claim, Identity, Person, Signals, Status, Verdict
from tests.unit.feedback.world import NOW, World, decided, event, member, person


def put_right(what: str) -> float:
    return REGISTRY.get_sample_value("comity_events_put_right_total", {"what": what}) or 0.0


def statuses(verdicts: tuple[Verdict, ...]) -> list[Status]:
    return [verdict.status for verdict in verdicts]


async def test_a_bad_event_costs_the_others_nothing() -> None:
    """Each event of a batch has its own verdict, in the order sent."""
    world = World()
    tracked = await world.track([event("1"), event("2", "unheard_of"), event("3"), event("4", item_ids=())])
    assert statuses(tracked.verdicts) == [Status.ACCEPTED, Status.REFUSED, Status.ACCEPTED, Status.REFUSED]
    assert [verdict.event_id for verdict in tracked.verdicts] == ["1", "2", "3", "4"]
    problems = [verdict.problem for verdict in tracked.verdicts]
    assert problems[1] is not None
    assert problems[1].field == "type"
    assert "click" in problems[1].problem
    assert problems[3] is not None
    assert problems[3].field == "item_ids"


async def test_an_event_sent_again_is_a_duplicate() -> None:
    """The same event of the same member is stored once, in one call or in two, and its position is known again."""
    world = World()
    first = await world.track([event("1"), event("1"), event("2")])
    assert statuses(first.verdicts) == [Status.ACCEPTED, Status.DUPLICATE, Status.ACCEPTED]
    again = await world.track([event("1"), event("2")])
    assert statuses(again.verdicts) == [Status.DUPLICATE, Status.DUPLICATE]
    assert again.position == first.position
    assert len(world.log.behaviors) == 2


async def test_an_event_of_nobody_is_dropped_and_costs_no_other() -> None:
    """Whose identities are placeholders is nobody, who has agreed to nothing; also where no purpose is asked for."""
    world = World()
    nobody = [replace(event("1"), person=Person((Identity("user_id", value),))) for value in ("undefined", "")]
    tracked = await world.track([nobody[0], event("2"), replace(nobody[1], type="page_viewed")])
    assert statuses(tracked.verdicts) == [Status.DROPPED_NO_CONSENT, Status.ACCEPTED, Status.DROPPED_NO_CONSENT]
    assert len(world.log.behaviors) == 1


async def test_two_people_may_use_the_same_event_id() -> None:
    """An id is its member's own."""
    world = World()
    tracked = await world.track([event("1", who="ann"), event("1", who="bob")])
    assert statuses(tracked.verdicts) == [Status.ACCEPTED, Status.ACCEPTED]


async def test_without_consent_nothing_is_stored() -> None:
    """An event whose type asks for a purpose that is not allowed is dropped; a type that asks for none is not."""
    world = World()
    world.consents.refused.add((member("ann"), "measurement"))
    tracked = await world.track([event("1"), event("2", "page_viewed"), event("3", who="bob")])
    assert statuses(tracked.verdicts) == [Status.DROPPED_NO_CONSENT, Status.ACCEPTED, Status.ACCEPTED]
    assert [entry.behavior.type for _, entry in world.log.behaviors] == ["page_viewed", "click"]


async def test_whoever_may_not_be_recognized_is_not_recorded() -> None:
    """A person whom a fingerprint recognized needs its purpose for every event, also of a type that asks for none."""
    world = World()
    world.subjects.required[member("ann")] = frozenset({"device_recognition"})
    allowed = await world.track([event("1"), event("2", "page_viewed")])
    assert statuses(allowed.verdicts) == [Status.ACCEPTED, Status.ACCEPTED]
    world.consents.refused.add((member("ann"), "device_recognition"))
    refused = await world.track([event("3"), event("4", "page_viewed"), event("5", who="bob")])
    assert statuses(refused.verdicts) == [Status.DROPPED_NO_CONSENT, Status.DROPPED_NO_CONSENT, Status.ACCEPTED]


async def test_consent_is_asked_with_every_member_of_the_person() -> None:
    """A refusal given under another pseudonym of the same person counts."""
    world = World()
    world.subjects.merge("ann", "anonymous")
    world.consents.refused.add((member("anonymous"), "measurement"))
    tracked = await world.track([event("1")])
    assert statuses(tracked.verdicts) == [Status.DROPPED_NO_CONSENT]


@pytest.mark.parametrize(
    ("port", "reason"), [("consents", "CONSENT_UNAVAILABLE"), ("subjects", "IDENTITY_UNAVAILABLE")]
)
async def test_nothing_is_stored_while_consent_or_identity_is_away(port: str, reason: str) -> None:
    """The call fails as a whole, so that the caller sends it again."""
    world = World()
    getattr(world, port).down = True
    with pytest.raises(ServiceError) as raised:
        await world.track([event("1"), event("2", "page_viewed")])
    assert raised.value.reason == reason
    assert world.log.behaviors == []


async def test_a_full_batch_takes_a_handful_of_round_trips() -> None:
    """A thousand events of a hundred people: one question to identity, one to consent, one write."""
    world = World()
    tracked = await world.track([event(str(n), who=f"p{n % 100}") for n in range(1000)])
    assert set(statuses(tracked.verdicts)) == {Status.ACCEPTED}
    assert (world.subjects.calls, world.consents.calls, world.log.calls) == ([100], [100], 1)


async def test_an_event_from_the_future_is_refused_beyond_five_minutes() -> None:
    """Five minutes ahead is a clock that runs fast; more is a mistake."""
    world = World()
    ahead = NOW + timedelta(minutes=5)
    tracked = await world.track(
        [event("1", occurred_at=ahead), event("2", occurred_at=ahead + timedelta(milliseconds=1))]
    )
    assert statuses(tracked.verdicts) == [Status.ACCEPTED, Status.REFUSED]


async def test_a_token_proves_the_decision() -> None:
    """With a token alone the behavior names the token's decision, and says that it was proven."""
    world = World()
    world.tokens.claims[b"token"] = Claim("d1", "home", member("ann"))
    await world.track([event("1", exposure_token=b"token")])
    behavior = world.log.behaviors[0][1].behavior
    assert (behavior.decision_id, behavior.placement_id, behavior.decision_proven) == ("d1", "home", True)


async def test_a_token_of_another_decision_or_subject_is_refused() -> None:
    """A token is proof for its own decision and person only; a merged person is the same person."""
    world = World()
    world.subjects.merge("ann", "anonymous")
    world.tokens.claims[b"token"] = Claim("d1", "home", member("anonymous"))
    tracked = await world.track(
        [
            event("1", exposure_token=b"token", decision_id="d1"),
            event("2", exposure_token=b"token", decision_id="d2"),
            event("3", exposure_token=b"forged"),
        ]
    )
    assert statuses(tracked.verdicts) == [Status.ACCEPTED, Status.REFUSED, Status.REFUSED]
    fields = [verdict.problem.field for verdict in tracked.verdicts if verdict.problem]
    assert fields == ["exposure_token"] * 2


async def test_event_answers_what_was_seen_before_a_login_that_may_not_be_linked() -> None:
    """It is stored under the identity that saw the slate, as its outcome, and in nobody's profile that logged in."""
    world = World()
    world.decisions.arrive(decided("d1", who="visitor"))
    world.tokens.claims[b"token"] = Claim("d1", "home", member("visitor"))
    both = Person((Identity("user_id", "ann"), Identity("anonymous_id", "visitor")))
    before = put_right("proof_of_another")
    sent = event("1", "purchase", item_ids=("2",), exposure_token=b"token", properties={"amount": 49.0})
    tracked = await world.track([replace(sent, person=both), event("2")])
    await world.settle()
    assert statuses(tracked.verdicts) == [Status.ACCEPTED, Status.ACCEPTED]
    assert [entry.member_id for _, entry in world.log.behaviors] == [member("visitor"), member("ann")]
    assert put_right("proof_of_another") == before + 1
    assert [(one.member_id, one.decision_id, one.reward) for one in world.log.outcomes] == [
        (member("visitor"), "d1", 49.0)
    ]


async def test_event_with_a_proof_of_somebody_else_loses_the_proof_alone() -> None:
    """It is stored, and nothing in it says whose slate it came with; a bare exposure has nothing else to say."""
    world = World()
    world.decisions.arrive(decided("d1", who="bob"))
    world.tokens.claims[b"token"] = Claim("d1", "home", member("bob"))
    tracked = await world.track(
        [event("1", exposure_token=b"token", decision_id="d1"), event("2", "exposure", exposure_token=b"token")]
    )
    await world.settle()
    assert statuses(tracked.verdicts) == [Status.ACCEPTED, Status.REFUSED]
    ((_, stored),) = world.log.behaviors
    assert stored.member_id == member("ann")
    assert (stored.behavior.decision_id, stored.behavior.decision_proven) == ("", False)
    assert world.log.outcomes == []


@pytest.mark.parametrize("early", [timedelta(minutes=6), timedelta(hours=1), timedelta(days=365)])
async def test_event_before_the_decision_that_it_proves_happened_with_it(early: timedelta) -> None:
    """The token proves the decision, so it is the clock that is wrong: the answer counts."""
    world = World()
    shown = decided("d1")
    world.decisions.arrive(shown)
    world.tokens.claims[b"token"] = Claim("d1", "home", member("ann"), shown.decided_at)
    before = put_right("before_its_decision")
    await world.track([event("1", exposure_token=b"token", occurred_at=shown.decided_at - early)])
    assert put_right("before_its_decision") == before + 1
    await world.settle()
    assert world.log.behaviors[0][1].occurred_at == shown.decided_at
    assert [one.decision_id for one in world.log.outcomes] == ["d1"]


async def test_times_are_put_right_by_how_far_the_senders_clock_is_off() -> None:
    """Also beyond what is refused without that clock, and never beyond what a time can be."""
    world = World()
    hour = timedelta(hours=1)
    sent = [event("1", occurred_at=NOW + hour - timedelta(minutes=3)), event("2")]
    fast = await world.track(sent, NOW + hour)
    slow = await world.track([event("3", occurred_at=NOW - hour - timedelta(minutes=3))], NOW - hour)
    assert statuses(fast.verdicts + slow.verdicts) == [Status.ACCEPTED] * 3
    times = [entry.occurred_at for _, entry in world.log.behaviors]
    assert times == [NOW - timedelta(minutes=3), NOW, NOW - timedelta(minutes=3)]
    absurd = await world.track(
        [event("4", occurred_at=datetime(1, 1, 2, tzinfo=UTC))], datetime(9999, 1, 1, tzinfo=UTC)
    )
    assert statuses(absurd.verdicts) == [Status.ACCEPTED]


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "click", "properties": {}},
        {"item_ids": ("2",)},
        {"item_ids": ("1", "1")},
        {"decision_id": "d1"},
        {"properties": {"amount": 50.0}},
        {"properties": {}},
    ],
)
@pytest.mark.parametrize("in_one_call", [True, False])
async def test_event_id_that_comes_again_with_other_content_is_refused(
    other: dict[str, Any], *, in_one_call: bool
) -> None:
    """The event that came first is kept, and the other one is not taken for it."""
    world = World()
    said: dict[str, Any] = {"kind": "purchase", "item_ids": ("1",), "properties": {"amount": 49.0}}
    first, second = event("1", **said), event("1", **{**said, **other})
    if in_one_call:
        verdicts = (await world.track([first, second])).verdicts
    else:
        verdicts = (await world.track([first])).verdicts + (await world.track([second])).verdicts
    assert statuses(verdicts) == [Status.ACCEPTED, Status.REFUSED]
    assert verdicts[1].reason == "EVENT_ID_REUSED"
    assert len(world.log.behaviors) == 1


async def test_retry_may_bring_other_times_and_signals() -> None:
    """They are those of its own moment, and no part of what is said."""
    world = World()
    await world.track([event("1", occurred_at=NOW - timedelta(minutes=1))])
    again = await world.track([event("1", occurred_at=NOW, signals=Signals(jurisdiction="us-ca"))], NOW)
    assert statuses(again.verdicts) == [Status.DUPLICATE]


async def test_event_id_is_one_event_of_all_that_a_person_is_known_by() -> None:
    """Sent as a visitor, and again with the login that was linked meanwhile: one fact, or one that is refused."""
    world = World()
    visitor = Person((Identity("anonymous_id", "visitor"),))
    first = await world.track([replace(event("1"), person=visitor)])
    world.subjects.merge("visitor", "ann")
    again = await world.track([event("1"), event("1", item_ids=("2",))])
    assert statuses(again.verdicts) == [Status.DUPLICATE, Status.REFUSED]
    assert again.position == first.position
    assert len(world.log.behaviors) == 1


async def test_a_token_that_names_nobody_proves_nothing() -> None:
    """A decision made while identity could not say can be answered, but is proof for no person."""
    world = World()
    world.tokens.claims[b"token"] = Claim("d1", "home", "")
    tracked = await world.track([event("1", exposure_token=b"token")])
    assert statuses(tracked.verdicts) == [Status.ACCEPTED]
    assert not world.log.behaviors[0][1].behavior.decision_proven


async def test_an_exposure_of_a_decision_shows_its_slate() -> None:
    """An exposure that names no items is of every item of its decision."""
    world = World()
    world.decisions.arrive(decided("d1"))
    tracked = await world.track([event("1", "exposure", decision_id="d1")])
    assert statuses(tracked.verdicts) == [Status.ACCEPTED]
    behavior = world.log.behaviors[0][1].behavior
    assert (behavior.item_ids, behavior.placement_id) == (("1", "2", "3"), "home")


async def test_a_slate_is_seen_once() -> None:
    """An immediate decision is its own exposure: telling it again, as often as one likes, counts nothing twice."""
    world = World()
    world.decisions.arrive(decided("d1", immediate=True))
    await world.settle()
    tracked = await world.track([event("1", "exposure", decision_id="d1"), event("2", "exposure", decision_id="d1")])
    assert statuses(tracked.verdicts) == [Status.DUPLICATE, Status.DUPLICATE]
    assert len(world.log.behaviors) == 1


async def test_an_exposure_of_an_unknown_or_foreign_decision_is_refused() -> None:
    """Without items there is nothing to store; another person's slate is not to be had by its id."""
    world = World()
    world.decisions.arrive(decided("d1", who="bob"))
    tracked = await world.track(
        [
            event("1", "exposure", decision_id="d0"),
            event("2", "exposure", decision_id="d1"),
            event("3", "exposure"),
            event("4", "exposure", decision_id="d0", item_ids=("9",)),
        ]
    )
    assert statuses(tracked.verdicts) == [Status.REFUSED] * 3 + [Status.ACCEPTED]


async def test_an_erased_person_is_refused() -> None:
    """Nothing is stored again about someone who was erased; the others of the call are not concerned."""
    world = World()
    world.log.erased.add(member("ann"))
    tracked = await world.track([event("1"), event("2", who="bob")])
    assert statuses(tracked.verdicts) == [Status.REFUSED, Status.ACCEPTED]


async def test_a_person_is_named_in_one_way() -> None:
    """A pseudonym or identities; neither and both are refused, as is a namespace that nobody knows."""
    world = World()
    both = replace(person("ann"), subject_id=member("ann"))
    tracked = await world.track(
        [
            event("1", person=Person(subject_id=member("ann"))),
            event("2", person=Person()),
            event("3", person=both),
            event("4", person=Person(identities=(Identity("shoe_size", "44"),))),
        ]
    )
    assert statuses(tracked.verdicts) == [Status.ACCEPTED] + [Status.REFUSED] * 3


async def test_a_call_that_stores_nothing_has_nothing_to_wait_for() -> None:
    """Its position is the beginning of the log."""
    tracked = await World().track([Verdict("1", Status.REFUSED), event("2", "unheard_of")])
    assert statuses(tracked.verdicts) == [Status.REFUSED, Status.REFUSED]
    assert tracked.position == ORIGIN
