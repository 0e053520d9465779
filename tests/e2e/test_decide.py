"""Decide over all five services: ranked for those who agreed, the declared default for everybody else."""

import asyncio
import uuid
from typing import Any

import grpc
import pytest
from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from cli.connections import Services
from tests.e2e.people import CALL_S, DEFAULTS, PURPOSES, Person, item_ids, ranked_person, reason


async def test_a_person_who_agreed_gets_a_ranked_slate(willing: Person) -> None:
    """A slate of the declared size, best first, with a propensity for each entry and the versions that decided."""
    (hero,) = (await willing.decide()).decisions
    assert reason(hero) in ("RANKED", "HOLDOUT")
    assert len(item_ids(hero)) == 3
    assert hero.decision_id
    assert hero.exposure_token
    assert hero.versions.site
    assert hero.versions.feature_set
    assert hero.versions.consent_policy
    assert hero.versions.decision_policy
    entries = hero.slate.entries if hero.WhichOneof("answer") == "slate" else hero.fallback.entries
    assert all(0.0 < entry.propensity <= 1.0 for entry in entries)
    assert [entry.slot for entry in entries] == [0, 1, 2]


async def test_nine_in_ten_are_ranked_and_the_rest_are_the_holdout(services: Services) -> None:
    """The holdout is a share of people, not of calls, and a person stays in it."""
    people = [Person(services) for _ in range(40)]
    await asyncio.gather(*(person.grant() for person in people))
    first = [reason((await person.decide()).decisions[0]) for person in people]
    again = [reason((await person.decide()).decisions[0]) for person in people]
    assert set(first) <= {"RANKED", "HOLDOUT"}
    assert first.count("RANKED") >= 24
    assert first == again


async def test_a_person_who_was_never_asked_gets_the_declared_default(person: Person) -> None:
    """No answer is no consent."""
    (hero,) = (await person.decide()).decisions
    assert reason(hero) == "DEFAULT/NO_CONSENT"
    assert item_ids(hero) == DEFAULTS["home_hero"]
    assert not hero.learnable


async def test_agreeing_to_something_else_is_not_agreeing_to_a_profile(person: Person) -> None:
    """Each purpose is asked for on its own."""
    await person.grant("measurement")
    (hero,) = (await person.decide()).decisions
    assert reason(hero) == "DEFAULT/NO_CONSENT"


async def test_after_a_revocation_the_default_comes_at_once(willing: Person) -> None:
    """The first Decide after Revoke has returned no longer uses the profile."""
    await willing.decide()
    await willing.revoke()
    (hero,) = (await willing.decide()).decisions
    assert reason(hero) == "DEFAULT/NO_CONSENT"
    assert item_ids(hero) == DEFAULTS["home_hero"]


async def test_without_consent_a_placement_may_show_what_is_popular(person: Person) -> None:
    """Where the site says so, popularity, which needs nothing about the person, takes the default's place."""
    (addon,) = (await person.decide("checkout_addon")).decisions
    assert reason(addon) == "POPULAR/NO_CONSENT"
    assert len(item_ids(addon)) == 2


async def test_the_browsers_objection_is_heard(willing: Person) -> None:
    """Sec-GPC is an objection when it is exactly 1, and only then."""
    for gpc, expected in (("1", "DEFAULT/DO_NOT_PERSONALIZE"), ("true", None)):
        signals = types_pb.ConsentSignals(gpc=gpc)
        (hero,) = (await willing.decide(consent_signals=signals)).decisions
        assert (reason(hero) == "DEFAULT/DO_NOT_PERSONALIZE") is (expected is not None)


async def test_one_call_decides_a_page_without_showing_anything_twice(services: Services) -> None:
    """What one placement of a call shows, the next does not."""
    somebody = await ranked_person(services)
    first, second = (await somebody.decide("home_hero", "you_may_like")).decisions
    assert [first.placement_id, second.placement_id] == ["home_hero", "you_may_like"]
    assert not set(item_ids(first)) & set(item_ids(second))


async def test_without_a_model_what_is_popular_takes_its_place_and_can_be_learned_from(services: Services) -> None:
    """A policy whose model was never trained goes by popularity, explores as declared, and says so."""
    somebody = await ranked_person(services)
    (row,) = (await somebody.decide("you_may_like")).decisions
    assert reason(row) in ("POPULAR/MODEL_UNAVAILABLE", "EXPLORED/MODEL_UNAVAILABLE")
    assert row.learnable


async def test_what_the_caller_excludes_is_not_shown(services: Services) -> None:
    """Excluded items and those outside the candidates stay out; so does what is not in stock."""
    somebody = await ranked_person(services)
    (hero,) = (await somebody.decide()).decisions
    excluded = item_ids(hero)[:1]
    request = somebody.request()
    request.placements[0].excluded_item_ids.extend(excluded)
    answer = await services.decision.Decide(request, timeout=CALL_S)
    assert not set(excluded) & set(item_ids(answer.decisions[0]))
    request = somebody.request()
    request.placements[0].candidate_ids.extend(["kite", "hammock", "tote", "no-such-item"])
    answer = await services.decision.Decide(request, timeout=CALL_S)
    assert sorted(item_ids(answer.decisions[0])) == ["kite", "tote"]


async def test_the_same_request_id_gives_the_same_decision(willing: Person) -> None:
    """A retry is one decision: the same id and the same slate."""
    request_id = uuid.uuid4().hex
    first = (await willing.decide(request_id=request_id)).decisions[0]
    again = (await willing.decide(request_id=request_id)).decisions[0]
    assert again.decision_id == first.decision_id
    assert item_ids(again) == item_ids(first)


async def test_a_retry_reads_consent_again(services: Services) -> None:
    """A decision that was made with consent is not given again after the consent was taken back."""
    somebody = await ranked_person(services)
    request_id = uuid.uuid4().hex
    await somebody.decide(request_id=request_id)
    await somebody.revoke()
    (again,) = (await somebody.decide(request_id=request_id)).decisions
    assert reason(again) == "DEFAULT/NO_CONSENT"


async def test_a_request_id_cannot_be_used_for_another_request(willing: Person) -> None:
    """The id names one request; another one under it is refused."""
    request_id = uuid.uuid4().hex
    await willing.decide(request_id=request_id)
    other = willing.request(request_id=request_id)
    other.placements[0].excluded_item_ids.append("kite")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await willing.services.decision.Decide(other, timeout=CALL_S)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_consent_survives_logging_in(services: Services) -> None:
    """What an anonymous visitor agreed to holds for the person they turn out to be; what they revoke holds for both."""
    visitor = Person(services, {"anonymous_id": uuid.uuid4().hex})
    await visitor.grant(*PURPOSES, "identity_linking")
    known = Person(services, {**visitor.identities, "user_id": uuid.uuid4().hex})
    link = identity_pb.LinkRequest(request_id=uuid.uuid4().hex, identities=known.messages)
    await services.identity.Link(link, timeout=CALL_S)
    account = Person(services, {"user_id": known.identities["user_id"]})
    assert reason((await account.decide()).decisions[0]) in ("RANKED", "HOLDOUT")
    await account.revoke()
    assert reason((await visitor.decide()).decisions[0]) == "DEFAULT/NO_CONSENT"


async def test_every_kind_of_decision_replays_to_the_identical_slate(services: Services) -> None:
    """Ranked, explored, holdout, popular and default decisions all come out the same from their logged inputs."""
    people: list[Any] = [Person(services) for _ in range(12)]
    for somebody in people[::2]:
        await somebody.grant()
    made: list[str] = []
    for somebody in people:
        answer = await somebody.decide("home_hero", "you_may_like", "checkout_addon")
        made += [decision.decision_id for decision in answer.decisions]
    for name in made:
        replayed = await services.decision.Replay(decision_pb.ReplayRequest(decision_id=name), timeout=CALL_S)
        assert replayed.identical, list(replayed.differences)


async def test_a_decision_explains_itself(services: Services) -> None:
    """Explain gives the logged decision and its steps in words."""
    somebody = await ranked_person(services)
    (hero,) = (await somebody.decide()).decisions
    request = decision_pb.ExplainRequest(decision_id=hero.decision_id)
    explained = await services.decision.Explain(request, timeout=CALL_S)
    assert explained.decision.reason == events_pb.REASON_RANKED
    assert [entry.item_id for entry in explained.decision.slate] == item_ids(hero)
    stages = [step.stage for step in explained.steps]
    assert "consent" in stages
    assert "eligible" in stages
