"""What feedback holds about a person: given out, put right, and gone."""

from typing import Any

import pytest
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.feedback.v1.feedback_events_pb2 import PropertyValue

from services.chassis.access import PERSONAL_DATA_ACCESSED
from services.chassis.errors import Kind, ServiceError
from services.chassis.holdings import to_json
from services.chassis.rpc_client import call
from tests.integration.feedback.conftest import TIMEOUT_S, Feedback, event, made, member, schema

BEHAVIOR, OUTCOME, DECISION = pb.REPLAY_KIND_BEHAVIOR, pb.REPLAY_KIND_OUTCOME, pb.REPLAY_KIND_DECISION
SUPPRESS, DELETE = holdings_pb.ERASURE_STEP_SUPPRESS, holdings_pb.ERASURE_STEP_DELETE
ANN, BOB = member("ann"), member("bob")

Counts = dict[str, int]


async def erase(feedback: Feedback, *steps: holdings_pb.ErasureStep.ValueType, who: str = ANN) -> Counts:
    """Take the steps; the counts of the last."""
    response = holdings_pb.EraseHoldingsResponse()
    for step in steps:
        request = holdings_pb.EraseHoldingsRequest(erasure_id="e1", member_ids=[who], step=step)
        response = await call(feedback.holdings.EraseHoldings, request, TIMEOUT_S)
    return {count.name: count.count for count in response.counts}


async def export(feedback: Feedback, who: str = ANN) -> list[holdings_pb.HeldRecord]:
    request = holdings_pb.ExportHoldingsRequest(member_ids=[who])
    return [
        record async for page in feedback.holdings.ExportHoldings(request, timeout=TIMEOUT_S) for record in page.records
    ]


async def rectify(feedback: Feedback, request_id: str = "r1", **asked: Any) -> int:
    plain = {"member_ids": [ANN], "type": "page_viewed", "property": "section"}
    request = pb.RectifyBehaviorRequest(request_id=request_id, **{**plain, **asked})
    return (await call(feedback.rectification.RectifyBehavior, request, TIMEOUT_S)).count


@pytest.fixture
async def sections(feedback: Feedback) -> Feedback:
    """Feedback where page views have a section (a string) and a depth (a number)."""
    declared = schema("page_viewed", purposes=[])
    declared.properties.add(name="section", kind=pb.PROPERTY_KIND_STRING)
    declared.properties.add(name="depth", kind=pb.PROPERTY_KIND_NUMBER)
    await feedback.stub.PublishEventSchemas(pb.PublishEventSchemasRequest(schemas=[declared]), timeout=TIMEOUT_S)
    return feedback


def viewed(event_id: str, section: str, *, who: str = "ann") -> pb.TrackedEvent:
    return event(event_id, "page_viewed", who=who, properties={"section": PropertyValue(string_value=section)})


async def full(feedback: Feedback) -> None:
    """Ann and Bob each have a decision, its answer and an answer that waits; Ann twice what Bob has."""
    for who in ("ann", "bob"):
        position = await feedback.decisions.make([made(f"d-{who}", who=who)])
        await feedback.track(
            event("1", who=who, decision_id=f"d-{who}"), event("2", who=who, decision_id=f"not-yet-{who}")
        )
        await feedback.joined(position)


async def test_a_person_s_rows_go_and_nobody_else_s(feedback: Feedback) -> None:
    """Behavior, outcomes, decision copies and waiting answers of the erased are deleted, counted once; Bob's stay."""
    await full(feedback)
    before = [len((await feedback.replay(kind, member_ids=[BOB]))[0]) for kind in (BEHAVIOR, OUTCOME, DECISION)]
    counts = await erase(feedback, SUPPRESS, DELETE)
    assert counts == {"events": 3, "commands": 0, "dead_letters": 0, "decision_facts": 1,
                      "pending_outcomes": 1, "rectifications": 0}  # fmt: skip
    assert await erase(feedback, SUPPRESS, DELETE) == counts
    for table, column in (("events", "subject_id"), ("decision_facts", "member_id")):
        rows = await feedback.pool.fetch(f"SELECT {column} AS member FROM {table} WHERE {column} <> ''")
        assert {row["member"] for row in rows} == {BOB}
    assert await feedback.pool.fetchval("SELECT count(*) FROM pending_outcomes") == 1
    assert await export(feedback) == []
    after = [len((await feedback.replay(kind, member_ids=[BOB]))[0]) for kind in (BEHAVIOR, OUTCOME, DECISION)]
    assert after == before == [2, 1, 1]


async def test_nothing_about_the_suppressed_is_taken_in(feedback: Feedback) -> None:
    """Track refuses them, a decision that comes late is not kept, and no outcome is recorded; others are served."""
    await erase(feedback, SUPPRESS)
    response = await feedback.track(event("1"), event("2", who="bob"))
    assert [result.status for result in response.results] == [pb.TRACK_STATUS_REFUSED, pb.TRACK_STATUS_ACCEPTED]
    assert response.results[0].field == "subject"
    position = await feedback.decisions.make([made("d-ann"), made("d-bob", who="bob")])
    await feedback.joined(position)
    assert await feedback.pool.fetchval("SELECT array_agg(decision_id) FROM decision_facts") == ["d-bob"]
    assert await feedback.pool.fetchval("SELECT count(*) FROM inbox") == 1


async def test_the_suppressed_can_be_read_until_they_are_deleted(feedback: Feedback) -> None:
    """What features subtract is read once more between SUPPRESS and DELETE, of the members asked for alone."""
    await full(feedback)
    await erase(feedback, SUPPRESS)
    events, withheld = await feedback.replay(BEHAVIOR, member_ids=[ANN])
    assert ([one.subject_id for one in events], withheld) == ([ANN, ANN], 0)
    everybody, _ = await feedback.replay(BEHAVIOR)
    assert len(everybody) == 4
    assert (await feedback.replay(BEHAVIOR, member_ids=["x" * 26]))[0] == []


async def test_everything_held_is_given_out_opened(feedback: Feedback) -> None:
    """Behavior and outcome with ids and contents, and which decisions lie here; the description names them all."""
    await full(feedback)
    records = await export(feedback)
    assert {record.member_id for record in records} == {ANN}
    by_name: dict[str, list[holdings_pb.HeldRecord]] = {}
    for record in records:
        by_name.setdefault(record.name, []).append(record)
    assert {name: len(found) for name, found in by_name.items()} == {
        "events": 3, "decision_facts": 1, "pending_outcomes": 1,
    }  # fmt: skip
    outcome = next(one for one in by_name["events"] if one.schema.endswith("OutcomeAttributed"))
    clicks = [one for one in by_name["events"] if one.schema.endswith("BehaviorRecorded")]
    assert outcome.content["behavior_id"] in [click.content["event_id"] for click in clicks]
    assert to_json(clicks[0].content)["item_ids"] == ["2"]
    described = await call(feedback.holdings.DescribeHoldings, holdings_pb.DescribeHoldingsRequest(), TIMEOUT_S)
    assert by_name.keys() <= {holding.name for holding in described.holdings}
    assert all(holding.erasure and holding.content for holding in described.holdings)


async def test_what_was_recorded_wrong_is_put_right(sections: Feedback) -> None:
    """Every event of the type with another value gets the right one, once, under its id; the old row is gone."""
    await sections.track(viewed("1", "shoes"), viewed("2", "hats"), viewed("3", "shoes", who="bob"), event("4"))
    before, _ = await sections.replay(BEHAVIOR, member_ids=[ANN])
    right = PropertyValue(string_value="hats")
    assert await rectify(sections, value=right) == 1
    assert await rectify(sections, value=right) == 1
    assert await rectify(sections, "r2", value=right) == 0
    after, _ = await sections.replay(BEHAVIOR, member_ids=[ANN])
    assert {one.event_id for one in after} == {one.event_id for one in before}
    values = [one.behavior.properties["section"].string_value for one in after if one.behavior.type == "page_viewed"]
    assert values == ["hats", "hats"]
    behavior = "SELECT version, count(*) AS n FROM events WHERE subject_id = $1 AND type <> $2 GROUP BY 1"
    rows = await sections.pool.fetch(behavior, ANN, PERSONAL_DATA_ACCESSED)
    assert {row["version"]: row["n"] for row in rows} == {1: 2, 2: 1}
    bobs, _ = await sections.replay(BEHAVIOR, member_ids=[BOB])
    assert bobs[0].behavior.properties["section"].string_value == "shoes"


async def test_one_event_alone_is_put_right(sections: Feedback) -> None:
    """Named by its id, also where it lacked the property; an event of somebody else is unknown."""
    await sections.track(viewed("1", "shoes"), viewed("2", "shoes"), viewed("3", "shoes", who="bob"))
    events, _ = await sections.replay(BEHAVIOR)
    mine = [one.event_id for one in events if one.subject_id == ANN]
    bobs = next(one.event_id for one in events if one.subject_id == BOB)
    assert await rectify(sections, value=PropertyValue(number_value=2.0), property="depth", event_id=mine[0]) == 1
    after, _ = await sections.replay(BEHAVIOR, member_ids=[ANN])
    assert [one.behavior.properties["depth"].number_value for one in after if one.event_id == mine[0]] == [2.0]
    for unknown in (bobs, "no-uuid"):
        with pytest.raises(ServiceError) as refusal:
            await rectify(sections, "r2", value=PropertyValue(number_value=2.0), property="depth", event_id=unknown)
        assert (refusal.value.kind, refusal.value.reason) == (Kind.NOT_FOUND, "EVENT_UNKNOWN")


async def test_an_answer_that_was_put_right_counts_once(sections: Feedback) -> None:
    """The joiner sees the event again and records no second outcome."""
    declared = schema("click", item_required=True, reward=1.0)
    declared.properties.add(name="button", kind=pb.PROPERTY_KIND_STRING)
    await sections.stub.PublishEventSchemas(pb.PublishEventSchemasRequest(schemas=[declared]), timeout=TIMEOUT_S)
    position = await sections.decisions.make([made("d1")])
    await sections.track(event("1", decision_id="d1", properties={"button": PropertyValue(string_value="left")}))
    await sections.joined(position)
    asked: dict[str, Any] = {"type": "click", "property": "button", "value": PropertyValue(string_value="right")}
    assert await rectify(sections, **asked) == 1
    await sections.joined(await sections.decisions.make([made("d2")]))
    outcomes, _ = await sections.replay(OUTCOME)
    assert len(outcomes) == 1


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"type": "unheard_of"}, "type"),
        ({"property": "unheard_of"}, "property"),
        ({"value": PropertyValue(number_value=1.0)}, "value"),
        ({"value": PropertyValue()}, "value"),
    ],
)
async def test_what_no_schema_declares_is_refused(sections: Feedback, changed: dict[str, Any], field: str) -> None:
    """The refusal names the field; nothing is changed."""
    with pytest.raises(ServiceError) as refusal:
        await rectify(sections, **{"value": PropertyValue(string_value="x"), **changed})
    assert refusal.value.kind is Kind.INVALID
    assert refusal.value.problems[0].field == field


async def test_a_request_id_is_one_rectification_s(sections: Feedback) -> None:
    """Another command under it is refused, and so is any about somebody who was erased."""
    await sections.track(viewed("1", "shoes"))
    await rectify(sections, value=PropertyValue(string_value="hats"))
    with pytest.raises(ServiceError) as reused:
        await rectify(sections, value=PropertyValue(string_value="coats"))
    assert reused.value.reason == "REQUEST_ID_REUSED"
    await erase(sections, SUPPRESS)
    with pytest.raises(ServiceError) as erased:
        await rectify(sections, "r3", value=PropertyValue(string_value="coats"))
    assert (erased.value.kind, erased.value.reason) == (Kind.FAILED_PRECONDITION, "SUBJECT_ERASED")
