"""What decision holds about a person: given out with its reasons, kept out, deleted; and models are marked."""

from collections.abc import Sequence

import asyncpg
import pytest
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as pb

from services.chassis.errors import Kind
from services.chassis.holdings import to_json
from services.chassis.rpc_client import call
from tests.integration.decision.conftest import FEATURE_SET, TIMEOUT_S, Deciding, member, parts, past
from tests.integration.decision.test_deciding import refusal
from tests.unit.decision.onnx_models import linear

SUPPRESS, WITHDRAW = holdings_pb.ERASURE_STEP_SUPPRESS, holdings_pb.ERASURE_STEP_WITHDRAW
DELETE = holdings_pb.ERASURE_STEP_DELETE
ANN, BOB = member("ann"), member("bob")


async def erase(deciding: Deciding, *steps: holdings_pb.ErasureStep.ValueType) -> dict[str, int]:
    """Take the steps for Ann; the counts of the last."""
    response = holdings_pb.EraseHoldingsResponse()
    for step in steps:
        request = holdings_pb.EraseHoldingsRequest(erasure_id="e1", member_ids=[ANN], step=step)
        response = await call(deciding.holdings.EraseHoldings, request, TIMEOUT_S)
    return {count.name: count.count for count in response.counts}


async def export(deciding: Deciding, who: str = ANN) -> list[holdings_pb.HeldRecord]:
    request = holdings_pb.ExportHoldingsRequest(member_ids=[who])
    pages = deciding.holdings.ExportHoldings(request, timeout=TIMEOUT_S)
    return [record async for page in pages for record in page.records]


async def trained(deciding: Deciding, *member_ids: str, name: str = "ranker") -> None:
    """Register a model that was trained on these members, told in two messages."""
    model = linear(len(FEATURE_SET.columns))
    messages: Sequence[pb.RegisterModelRequest] = parts(model.SerializeToString(), name=name)
    told = [
        pb.RegisterModelRequest(training_members=pb.TrainingMembers(member_ids=some))
        for some in (member_ids[:1], member_ids[1:])
    ]
    messages = [messages[0], told[0], *messages[1:], told[1]]
    await deciding.release.RegisterModel(iter(messages), timeout=TIMEOUT_S)


async def listed(deciding: Deciding) -> dict[str, tuple[int, bool]]:
    """Of each model how many were erased, and whether it is to be trained again."""
    response = await deciding.release.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
    return {one.name: (one.erased_subjects_count, one.HasField("retrain_since")) for one in response.models}


async def subjects(deciding: Deciding) -> set[str]:
    connection = await asyncpg.connect(deciding.url)
    try:
        return {row["subject_id"] for row in await connection.fetch("SELECT DISTINCT subject_id FROM events")}
    finally:
        await connection.close()


async def test_a_person_s_decisions_go_and_nobody_else_s(deciding: Deciding) -> None:
    """Served and recorded ones with their corrections; counted once, however often it is asked."""
    await deciding.decide()
    kept = await deciding.decide(who="bob")
    await deciding.decision.RecordDecisions(pb.RecordDecisionsRequest(decisions=[past("one")]), timeout=TIMEOUT_S)
    counts = await erase(deciding, SUPPRESS, WITHDRAW, DELETE)
    assert counts["events"] == 2
    assert await erase(deciding, SUPPRESS, WITHDRAW, DELETE) == counts
    assert {ANN, BOB} & await subjects(deciding) == {BOB}
    found = await deciding.decision.GetDecision(pb.GetDecisionRequest(decision_id=kept.decision_id), timeout=TIMEOUT_S)
    assert found.decision.decision_id == kept.decision_id
    assert await export(deciding) == []


async def test_a_decide_in_flight_leaves_no_record(deciding: Deciding) -> None:
    """Whoever was resolved before the erasure gets the default, not learnable, and is not in the log; others are."""
    await erase(deciding, SUPPRESS)
    answer = await deciding.decide(request_id="r1")
    assert answer.fallback_reason == events_pb.FALLBACK_REASON_NO_CONSENT
    assert (answer.learnable, answer.exposure_token) == (False, b"")
    again = await deciding.decide(request_id="r1")
    assert again.fallback_reason == events_pb.FALLBACK_REASON_NO_CONSENT
    await deciding.decide(who="bob")
    assert ANN not in await subjects(deciding)


async def test_the_past_of_the_erased_is_refused(deciding: Deciding) -> None:
    """RecordDecisions says why, and records nothing of them."""
    await erase(deciding, SUPPRESS)
    refused = await refusal(
        deciding.decision.RecordDecisions(pb.RecordDecisionsRequest(decisions=[past("one")]), timeout=TIMEOUT_S)
    )
    assert (refused.kind, refused.reason) == (Kind.FAILED_PRECONDITION, "SUBJECT_ERASED")
    assert ANN not in await subjects(deciding)


async def test_decisions_are_given_out_with_their_reasons(deciding: Deciding) -> None:
    """Opened, with the steps that explain them; the record of processing names where they lie."""
    await deciding.learn()
    answer = await deciding.decide()
    (record,) = await export(deciding)
    assert (record.name, record.member_id, record.schema) == ("events", ANN, "comity.decision.v1.DecisionMade")
    content = to_json(record.content)
    assert content["decision_id"] == answer.decision_id
    stages = [step["stage"] for step in content["explanation"]]
    assert stages[:3] == ["identity", "consent", "eligible"]
    assert content["without_exploration"]
    described = await call(deciding.holdings.DescribeHoldings, holdings_pb.DescribeHoldingsRequest(), TIMEOUT_S)
    assert {"events", "model_members", "models"} <= {holding.name for holding in described.holdings}


async def test_models_that_knew_the_person_are_marked(deciding: Deciding) -> None:
    """Once a model, and not those that did not know them; the list holds them no more."""
    await trained(deciding, ANN, BOB)
    await trained(deciding, BOB, name="other")
    assert await listed(deciding) == {"ranker": (0, False), "other": (0, False)}
    counts = await erase(deciding, SUPPRESS, WITHDRAW)
    assert (counts["models"], counts["model_members"]) == (1, 1)
    assert await listed(deciding) == {"ranker": (1, True), "other": (0, False)}
    assert await erase(deciding, WITHDRAW, DELETE, WITHDRAW) == counts
    assert await listed(deciding) == {"ranker": (1, True), "other": (0, False)}


async def test_a_model_trained_on_who_was_erased_meanwhile_is_marked_at_once(deciding: Deciding) -> None:
    """Its data was read before the erasure; registering it again does not count them twice."""
    await erase(deciding, SUPPRESS, WITHDRAW, DELETE)
    await trained(deciding, ANN, BOB)
    assert await listed(deciding) == {"ranker": (1, True)}
    await trained(deciding, ANN, BOB)
    assert await listed(deciding) == {"ranker": (1, True)}


async def test_a_model_of_untold_people_is_taken(deciding: Deciding) -> None:
    """Older learning does not say whom it trained on; a later registration may."""
    await deciding.learn()
    assert await listed(deciding) == {"ranker": (0, False)}
    await trained(deciding, ANN)
    await erase(deciding, SUPPRESS, WITHDRAW)
    assert await listed(deciding) == {"ranker": (1, True)}


@pytest.mark.parametrize("step", [holdings_pb.ERASURE_STEP_UNSPECIFIED, 99])
async def test_an_unknown_step_is_refused(deciding: Deciding, step: int) -> None:
    """The refusal names the field."""
    request = holdings_pb.EraseHoldingsRequest(erasure_id="e1", member_ids=[ANN], step=step)  # type: ignore[arg-type]
    refused = await refusal(deciding.holdings.EraseHoldings(request, timeout=TIMEOUT_S))
    assert refused.kind is Kind.INVALID
    assert refused.problems[0].field == "step"
