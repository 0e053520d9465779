"""The first loop: what was decided and answered becomes a model, and the model decides without a restart."""

import asyncio
import time
import uuid
from dataclasses import replace

import pytest
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2 as site_pb
from comity.features.v1 import feature_set_pb2 as feature_set_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb

from cli.bundle import Bundle, apply_bundle, load_bundle
from cli.connections import Services
from cli.demo.log import wait_joined
from cli.demo.site import exploring
from cli.stack import Stack
from learning.log import replay_log
from learning.pipeline import Services as LearningServices
from learning.pipeline import TrainRequest, train
from tests.e2e.people import CALL_S, SHOP, Person, item_ids, ranking_shop, reason

PEOPLE = 30
PAGES = 6
AT_ONCE = 6
# Everybody clicks these and nothing else, so that there is something to learn.
LOVED = ("kite", "puzzle", "plush-seal", "wood-blocks", "train-set", "marble-run")
SWAP_S = 10.0


@pytest.mark.usefixtures("site_restored")
async def test_a_trained_model_decides_without_a_restart_and_its_decisions_replay(
    stack: Stack, services: Services
) -> None:
    """Explored slates and their clicks train a model; once activated it ranks what people click, no restart needed.

    The words of the features are corrected meanwhile: the model reads the same numbers and goes on fitting.
    """
    bundle = load_bundle(SHOP)
    await apply_bundle(exploring(bundle), services)
    pid = stack.pid("decision")
    people = [Person(services) for _ in range(PEOPLE)]
    await asyncio.gather(*(person.grant() for person in people))
    at_once = asyncio.Semaphore(AT_ONCE)
    clicks = sum(await asyncio.gather(*(browse(person, at_once) for person in people)))
    await wait_joined(services, clicks)
    stubs = LearningServices(services.feedback, services.features, services.release, services.sign)
    report = await train(stubs, TrainRequest(name="shop_clicks", purpose="model_training"))
    assert report.parity_difference_max < 1e-4
    await apply_bundle(reworded(bundle), services)
    decision = await first_by_model(people)
    assert stack.pid("decision") == pid
    assert decision.versions.model == report.model_version
    request = decision_pb.ReplayRequest(decision_id=decision.decision_id)
    assert (await services.decision.Replay(request, timeout=CALL_S)).identical
    ranked = [d for d in await decisions_of(people) if reason(d) == "RANKED"]
    assert sum(set(item_ids(d)) <= set(LOVED) for d in ranked) >= 0.8 * len(ranked) > 0


def reworded(bundle: Bundle) -> Bundle:
    """The bundle with other descriptions of its features."""
    features = []
    for declared in bundle.features:
        message = feature_set_pb.Feature()
        message.CopyFrom(declared.message)
        message.description += " (corrected)"
        features.append(replace(declared, message=message))
    return replace(bundle, features=tuple(features))


async def browse(person: Person, at_once: asyncio.Semaphore) -> int:
    """See the page some times and click what is loved; how many clicks were taken."""
    async with at_once:
        return sum([await see(person) for _ in range(PAGES)])


async def see(person: Person) -> int:
    """One page and its clicks."""
    answer = await person.decide("home_hero", "you_may_like", activation=events_pb.ACTIVATION_DEFERRED)
    joinable = [d for d in answer.decisions if d.exposure_token and "IDENTITY" not in reason(d)]
    events = [event for decision in joinable for event in answers(person, decision)]
    if not events:
        return 0
    response = await person.services.feedback.Track(feedback_pb.TrackRequest(events=events), timeout=CALL_S)
    assert {result.status for result in response.results} == {feedback_pb.TRACK_STATUS_ACCEPTED}
    return sum(event.type == "click" for event in events)


def answers(person: Person, decision: decision_pb.PlacementDecision) -> list[feedback_pb.TrackedEvent]:
    """That it was seen, and a click on each item that is loved."""
    loved = [("click", [item]) for item in item_ids(decision) if item in LOVED]
    return [
        feedback_pb.TrackedEvent(
            event_id=uuid.uuid4().hex,
            type=kind,
            subject=person.subject,
            item_ids=items,
            decision_id=decision.decision_id,
            exposure_token=decision.exposure_token,
        )
        for kind, items in [("exposure", item_ids(decision)), *loved]
    ]


async def first_by_model(people: list[Person]) -> decision_pb.PlacementDecision:
    """The first decision that the model made."""
    until = time.monotonic() + SWAP_S
    while time.monotonic() < until:
        for decision in await decisions_of(people):
            if decision.versions.model and decision.WhichOneof("answer") == "slate":
                return decision
    pytest.fail("the model was activated and did not decide")


async def decisions_of(people: list[Person]) -> list[decision_pb.PlacementDecision]:
    """One decision for each."""
    return [(await person.decide()).decisions[0] for person in people]


async def test_training_from_people_who_did_not_agree_to_it_is_withheld(services: Services) -> None:
    """ReplayEvents gives out only what the people behind it allow to be learned from now."""
    person = Person(services)
    await person.grant("profile_personalization", "measurement")
    (hero,) = (await person.decide()).decisions
    events = feedback_pb.ReplayEventsRequest(kinds=[feedback_pb.REPLAY_KIND_DECISION], purpose="model_training")
    everything = feedback_pb.ReplayEventsRequest(kinds=[feedback_pb.REPLAY_KIND_DECISION])
    until = time.monotonic() + SWAP_S
    while hero.decision_id not in await replayed_ids(services, everything):
        assert time.monotonic() < until, "the decision did not reach feedback"
    assert hero.decision_id not in await replayed_ids(services, events)


async def replayed_ids(services: Services, request: feedback_pb.ReplayEventsRequest) -> set[str]:
    """Ids of the decisions that are given out."""
    found: set[str] = set()
    async for page in replay_log(services.feedback, request):
        found |= {event.decision.decision_id for event in page.events}
    return found


@pytest.mark.usefixtures("site_restored")
async def test_a_site_can_be_changed_while_it_decides(services: Services) -> None:
    """Applying a site takes effect within a second, and the version on decisions says which decided."""
    person = Person(services)
    await person.grant()
    before = (await person.decide()).decisions[0].versions.site
    bundle = ranking_shop()
    changed = site_pb.Policy()
    changed.CopyFrom(next(p.message for p in bundle.policies if p.message.id == "hero"))
    changed.ranker.column = "price"
    applied = await apply_bundle(bundle.with_policies({"hero": changed}), services)
    until = time.monotonic() + SWAP_S
    while (after := (await person.decide()).decisions[0].versions.site) != applied.versions["site"]:
        assert time.monotonic() < until, "the site was applied and does not decide"
    assert after != before
