"""With a service dead or standing still, or a ranker too slow, Decide answers in time and says what was missing."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.decision.v1 import site_pb2 as site_pb
from comity.features.v1 import features_service_pb2 as features_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity_client import ComityClient

from cli.bundle import apply_bundle
from cli.connections import Services
from cli.stack import Stack
from learning.register import activate
from services.chassis.errors import Kind
from services.chassis.status import from_call_error
from tests.e2e.people import CALL_S, DEFAULTS, item_ids, ranked_person, ranking_shop, reason, until_well
from tests.e2e.slow_model import put_in, slow_model
from tests.waiting import eventually

EXPECTED = {
    "identity": "DEFAULT/IDENTITY_UNAVAILABLE",
    "consent": "DEFAULT/CONSENT_UNAVAILABLE",
    "features": "POPULAR/FEATURES_UNAVAILABLE",
}
# Longer than a Decide may take.
SLOW_S = 2.0
# Shorter than the cache waits for its server: who waits that long has no features.
SHORT_S = 0.3
# In no trial of a model, and in no clock.
SLOW_HOUR = 77.0
# Of the shop that can be shown.
ITEMS_COUNT = 45


@asynccontextmanager
async def broken(stack: Stack, services: Services, service: str, how: str) -> AsyncIterator[None]:
    """The service paused or killed for a while, and well again afterwards."""
    if how == "paused":
        stack.pause(service)
    else:
        await stack.kill(service)
    try:
        yield
    finally:
        if how == "paused":
            stack.resume(service)
        else:
            await stack.restart(service)
        await until_well(services)


@pytest.mark.parametrize("how", ["paused", "dead"])
@pytest.mark.parametrize("service", sorted(EXPECTED))
async def test_decide_answers_without_a_service(stack: Stack, services: Services, service: str, how: str) -> None:
    """The next rung answers, names what was missing, and all is well again afterwards.

    A busy machine may make another service late, too: then that is named. That answers are on time is shown in virtual
    time (tests/unit/decision).
    """
    somebody = await ranked_person(services)

    async def names_it() -> bool:
        (hero,) = (await somebody.decide()).decisions
        assert not hero.learnable
        if reason(hero).startswith("DEFAULT/"):
            assert item_ids(hero) == DEFAULTS["home_hero"]
        return reason(hero) == EXPECTED[service]

    async with broken(stack, services, service, how):
        await eventually(names_it)


@pytest.mark.parametrize("server", ["nats", "valkey"])
async def test_a_hung_server_that_is_no_record_costs_no_personalization(
    stack: Stack, services: Services, server: str
) -> None:
    """With the transport or the cache standing still at least half of the answers are ranked; others say why not."""
    somebody = await ranked_person(services)
    await somebody.click("kite")

    async def told() -> str:
        try:
            return reason((await somebody.decide(timeout_s=SHORT_S)).decisions[0])
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            # A busy machine: that answers are on time is shown in virtual time.
            return "LATE"

    async def half_are_ranked() -> bool:
        answers = [await told() for _ in range(10)]
        assert all(answer in ("RANKED", "LATE") or "/" in answer for answer in answers)
        return answers.count("RANKED") >= len(answers) / 2

    stack.pause(server)
    try:
        await eventually(half_are_ranked)
    finally:
        stack.resume(server)
        await until_well(services)


@pytest.mark.usefixtures("site_restored")
async def test_decide_answers_with_a_ranker_that_is_too_slow(stack: Stack, services: Services) -> None:
    """What cannot be scored in time is not waited for: what is popular answers, and the log says what was late."""
    somebody = await ranked_person(services)
    described = await services.features.DescribeFeatureSet(features_pb.DescribeFeatureSetRequest(), timeout=CALL_S)
    columns = tuple(column.name for column in described.feature_set.columns)
    slow = slow_model(
        len(columns), column=columns.index("hour"), value=SLOW_HOUR, rows_count=ITEMS_COUNT, seconds=SLOW_S
    )
    version = described.feature_set.version
    # It has a loop, so it is not taken in: here it is kept since before, and no trial has found anything.
    await put_in(stack, slow, name="slow", feature_set=version, columns_count=len(columns))
    await activate(services.release, name="slow", sha256=slow.sha256)
    bundle = ranking_shop()
    hero = site_pb.Policy()
    hero.CopyFrom(next(policy.message for policy in bundle.policies if policy.message.id == "hero"))
    hero.ranker.model = "slow"
    applied = await apply_bundle(bundle.with_policies({"hero": hero}), services)

    async def decides() -> bool:
        return (await somebody.decide()).decisions[0].versions.site == applied.versions["site"]

    await eventually(decides)

    async def is_ranked() -> bool:
        return reason((await somebody.decide()).decisions[0]) == "RANKED"

    await eventually(is_ranked)
    asked = {"hour": events_pb.ContextFact(number_value=SLOW_HOUR)}
    shown = decision_pb.PlacementDecision()

    async def is_popular() -> bool:
        shown.CopyFrom((await somebody.decide(context=asked)).decisions[0])
        assert not shown.learnable
        return reason(shown) == "POPULAR/MODEL_UNAVAILABLE"

    await eventually(is_popular)

    async def goes_on_beside() -> bool:
        """The loop is not held up: while the thread still computes, a placement that a column ranks goes on."""
        return reason((await somebody.decide("checkout_addon")).decisions[0]) in ("RANKED", "EXPLORED")

    await eventually(goes_on_beside)
    logged = await services.decision.GetDecision(
        decision_pb.GetDecisionRequest(decision_id=shown.decision_id), timeout=CALL_S
    )
    assert logged.decision.inputs.ranker == events_pb.STAGE_OUTCOME_LATE


async def test_tracking_without_feedback_is_told_and_never_raised(stack: Stack, services: Services) -> None:
    """A backend learns that nothing was delivered, sends the same event again, and it counts once."""
    somebody = await ranked_person(services)
    event_id = uuid.uuid4().hex
    async with ComityClient(
        stack.addresses["decision"], feedback_address=stack.addresses["feedback"], track_deadline_s=CALL_S
    ) as comity:
        track = partial(comity.track, "click", identities=somebody.identities, item_ids=["kite"], event_id=event_id)
        async with broken(stack, services, "feedback", "dead"):
            lost = await track()
            assert (lost.event_id, lost.status) == (event_id, "NOT_DELIVERED")
            assert lost.problem
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await services.feedback.Track(feedback_pb.TrackRequest(), timeout=CALL_S)
            assert from_call_error(caught.value).kind in (Kind.UNAVAILABLE, Kind.DEADLINE)
        statuses: list[str] = []

        async def delivered() -> bool:
            statuses.append((await track()).status)
            return statuses[-1] != "NOT_DELIVERED"

        await eventually(delivered)
        assert statuses[-1] == "ACCEPTED"
        assert (await track()).status == "DUPLICATE"
