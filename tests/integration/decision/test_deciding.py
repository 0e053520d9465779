"""Decide, GetDecision, Explain, Replay and RecordDecisions over gRPC, Postgres and sealed payloads."""

import asyncio

import asyncpg
import grpc
import pytest
from comity.common.v1 import holdings_pb2, types_pb2
from comity.common.v1.types_pb2 import Identity, SubjectRef
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as pb
from comity.decision.v1 import site_pb2

from services.chassis import alarms
from services.chassis.access import PERSONAL_DATA_ACCESSED
from services.chassis.alarms import Alarm
from services.chassis.errors import ServiceError
from services.chassis.eventstore import PostgresEventStore
from services.chassis.status import from_call_error
from tests.integration.decision.conftest import BUDGET_MS, TIMEOUT_S, Deciding, Start, ask, items, member, past, site
from tests.waiting import eventually

Reason = events_pb.Reason


async def refusal(call: "grpc.aio.Call | object") -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_call_error(caught.value)


async def replayed(deciding: Deciding, decision_id: str) -> pb.ReplayResponse:
    return await deciding.decision.Replay(pb.ReplayRequest(decision_id=decision_id), timeout=TIMEOUT_S)


async def test_a_decision_is_ranked_logged_explained_and_replayed(deciding: Deciding) -> None:
    """The whole way: model in, slate out, the log says the same, and the replay is identical."""
    version = await deciding.learn()
    answer = await deciding.decide()
    assert answer.reason in (Reason.REASON_RANKED, Reason.REASON_EXPLORED)
    assert answer.versions.model == version
    assert answer.learnable
    assert len(answer.slate.entries) == 3
    decision_id = answer.decision_id
    logged = (await deciding.decision.GetDecision(pb.GetDecisionRequest(decision_id=decision_id), timeout=5)).decision
    assert list(logged.slate) == list(answer.slate.entries)
    assert logged.subject_id == member("ann")
    explained = await deciding.decision.Explain(
        pb.ExplainRequest(decision_id=decision_id, item_id="item-6"), timeout=TIMEOUT_S
    )
    assert [step.stage for step in explained.steps][:4] == ["identity", "consent", "eligible", "scored"]
    steps = {step.stage: step.finding for step in explained.steps}
    assert "2 INELIGIBLE by the rule item.attributes.price < 6.0" in steps["catalog"]
    assert steps["item"] == "item-6: excluded, INELIGIBLE by the rule item.attributes.price < 6.0"
    again = await replayed(deciding, decision_id)
    assert (again.identical, list(again.differences)) == (True, [])


async def test_who_reads_a_decision_leaves_a_fact(deciding: Deciding) -> None:
    """GetDecision and Explain say under the member who asked; Replay tells nothing about the person and does not."""
    access = types_pb2.Access(accessor="officer", reason="a complaint")
    decision_id = (await deciding.decide()).decision_id
    await deciding.decision.GetDecision(pb.GetDecisionRequest(decision_id=decision_id, access=access), timeout=5)
    await deciding.decision.Explain(pb.ExplainRequest(decision_id=decision_id), timeout=5)
    await replayed(deciding, decision_id)
    connection = await asyncpg.connect(deciding.url)
    try:
        rows = await connection.fetch(
            "SELECT payload FROM events WHERE subject_id = $1 AND type = $2 ORDER BY version",
            member("ann"),
            PERSONAL_DATA_ACCESSED,
        )
    finally:
        await connection.close()
    facts = [holdings_pb2.PersonalDataAccessed.FromString(row["payload"]) for row in rows]
    assert [fact.access.accessor for fact in facts] == ["officer", "unstated"]
    assert [fact.method.rpartition("/")[2] for fact in facts] == ["GetDecision", "Explain"]


async def test_every_kind_of_decision_replays_identically(deciding: Deciding) -> None:
    """Cold, ranked, explored, refused and nobody's: also after site, items, columns and model are others."""
    decisions = [await deciding.decide() for _ in range(3)]
    await deciding.learn()
    decisions += [await deciding.decide() for _ in range(20)]
    deciding.around.refused.add(member("bob"))
    decisions.append(await deciding.decide(who="bob"))
    deciding.around.down.add("identity")
    decisions.append(await deciding.decide())
    deciding.around.down.clear()
    deciding.around.columns = 2
    await deciding.with_columns()
    await deciding.apply(site(eligibility="item.id == 'item-1'", epsilon=0.0))
    changed = [site_pb2.Item(id=item.id, retired=True) for item in items()]
    await deciding.catalog.UpsertItems(pb.UpsertItemsRequest(items=changed), timeout=TIMEOUT_S)
    reasons = {Reason.Name(decision.reason) for decision in decisions}
    assert reasons == {"REASON_POPULAR", "REASON_RANKED", "REASON_EXPLORED", "REASON_DEFAULT"} or len(reasons) == 3
    for decision in decisions:
        again = await replayed(deciding, decision.decision_id)
        assert list(again.differences) == []
        assert again.identical


async def test_no_profile_is_used_where_revoke_waits_for_shorter_than_a_decide(deciding: Deciding) -> None:
    """A Revoke could return while such a Decide is under way; when consent waits long enough, profiles are back."""
    await deciding.learn()
    deciding.around.waits_ms = BUDGET_MS - 1
    answer = await deciding.decide()
    assert Reason.Name(answer.reason) == "REASON_DEFAULT"
    assert events_pb.FallbackReason.Name(answer.fallback_reason) == "FALLBACK_REASON_CONSENT_UNAVAILABLE"
    assert Alarm.REVOKE_WAITS_TOO_SHORT in alarms.standing()
    deciding.around.waits_ms = BUDGET_MS
    assert (await deciding.decide()).reason in (Reason.REASON_RANKED, Reason.REASON_EXPLORED)
    assert Alarm.REVOKE_WAITS_TOO_SHORT not in alarms.standing()


async def test_the_record_path_is_warm_before_a_replica_serves(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first Decide has milliseconds, and would else open the log's connections."""
    warm, warmed = PostgresEventStore.warm, list[PostgresEventStore]()

    async def noted(store: PostgresEventStore) -> None:
        await warm(store)
        warmed.append(store)

    monkeypatch.setattr(PostgresEventStore, "warm", noted)
    await start()
    assert len(warmed) == 1


async def test_a_revoke_that_waits_too_short_is_noticed_before_anybody_decides(
    deciding: Deciding, start: Start
) -> None:
    """The first thing that a replica asks consent is how long it waits."""
    deciding.around.waits_ms = 10
    await start()
    assert Alarm.REVOKE_WAITS_TOO_SHORT in alarms.standing()
    deciding.around.waits_ms = BUDGET_MS
    await deciding.decide()
    assert Alarm.REVOKE_WAITS_TOO_SHORT not in alarms.standing()


async def test_what_is_in_the_database_is_sealed(deciding: Deciding) -> None:
    """The payload of a decision about a person cannot be read from the table."""
    await deciding.learn()
    answer = await deciding.decide(candidate_ids=["item-1", "item-2"])
    connection = await asyncpg.connect(deciding.url)
    try:
        row = await connection.fetchrow(
            "SELECT subject_id, key_id, payload FROM events WHERE stream_id = $1", answer.decision_id
        )
    finally:
        await connection.close()
    assert row is not None
    assert row["subject_id"] == member("ann")
    assert row["key_id"]
    assert b"item-1" not in row["payload"]


async def test_a_retry_gives_the_same_answer_from_any_replica(start: Start, deciding: Deciding) -> None:
    """The log holds one decision, whoever is asked again."""
    await deciding.learn()
    request = ask(request_id="twice")
    first = await deciding.decision.Decide(request, timeout=TIMEOUT_S)
    other = await start()
    await other.with_columns()
    again = await other.decision.Decide(request, timeout=TIMEOUT_S)
    assert list(again.decisions) == list(first.decisions)
    error = await refusal(deciding.decision.Decide(ask(request_id="twice", slate_size=1), timeout=TIMEOUT_S))
    assert error.reason == "REQUEST_ID_REUSED"


async def test_a_retry_while_the_log_is_held_up_leaves_the_decision(deciding: Deciding) -> None:
    """What was shown stays what was shown; that the default was answered too is logged, explained and replays."""
    await deciding.learn()
    first = await deciding.decide(request_id="twice")
    assert first.exposure_token
    admin = await asyncpg.connect(deciding.url)
    try:
        async with admin.transaction():
            await admin.execute("LOCK TABLE events")
            # However long or short: it cannot learn the result.
            again = (await deciding.decision.Decide(ask(request_id="twice"), timeout=0.5)).decisions[0]
    finally:
        await admin.close()
    assert (again.exposure_token, again.learnable, again.layer) == (b"", False, 0)
    asked = pb.GetDecisionRequest(decision_id=first.decision_id)

    async def told() -> bool:
        return (await deciding.decision.GetDecision(asked, timeout=TIMEOUT_S)).decision.default_also_answered

    await eventually(told)
    logged = (await deciding.decision.GetDecision(asked, timeout=TIMEOUT_S)).decision
    assert list(logged.slate) == list((first.slate if first.HasField("slate") else first.fallback).entries)
    assert (logged.reason, logged.learnable) == (first.reason, False)
    explained = await deciding.decision.Explain(pb.ExplainRequest(decision_id=first.decision_id), timeout=TIMEOUT_S)
    assert "another attempt under the same id was answered the default" in explained.steps[-1].finding
    assert (await replayed(deciding, first.decision_id)).identical
    third = await deciding.decide(request_id="twice")
    assert (third.exposure_token, third.learnable) == (first.exposure_token, False)


async def test_simultaneous_decides_share_their_questions(deciding: Deciding) -> None:
    """Calls that wait leave together, and each gets its own person's answer."""
    await deciding.learn()
    people_count = 24
    deciding.around.refused.update(member(f"person-{k}") for k in range(0, people_count, 2))
    deciding.around.batches.clear()
    answers = await asyncio.gather(*(deciding.decide(who=f"person-{k}") for k in range(people_count)))
    for k, answer in enumerate(answers):
        refused = answer.fallback_reason == events_pb.FALLBACK_REASON_NO_CONSENT
        assert refused is (k % 2 == 0)
    assert sum(deciding.around.batches) == people_count
    assert len(deciding.around.batches) < people_count


@pytest.mark.parametrize(
    ("down", "reason"),
    [
        ("identity", events_pb.FALLBACK_REASON_IDENTITY_UNAVAILABLE),
        ("consent", events_pb.FALLBACK_REASON_CONSENT_UNAVAILABLE),
        ("features", events_pb.FALLBACK_REASON_FEATURES_UNAVAILABLE),
        ("keys", events_pb.FALLBACK_REASON_IDENTITY_UNAVAILABLE),
    ],
)
async def test_with_a_service_down_the_ladder_answers(
    deciding: Deciding, down: str, reason: events_pb.FallbackReason.ValueType
) -> None:
    """An answer, and the reason for it."""
    deciding.around.down.add(down)
    answer = await deciding.decide()
    assert answer.fallback_reason == reason
    assert answer.fallback.entries
    assert not answer.learnable


@pytest.mark.parametrize(
    ("request_", "field", "said"),
    [
        (ask(placement_id="nowhere"), "placements[0].placement_id", "home_hero"),
        (ask(candidate_ids=["a", "a"]), "placements[0].candidate_ids", "twice"),
        (ask(candidate_ids=[str(k) for k in range(10_000)]), "placements[0].candidate_ids", "1,000"),
        (pb.DecideRequest(request_id="r", placements=ask().placements), "identities", ""),
        (pb.DecideRequest(request_id="r", identities=ask().identities), "placements", ""),
    ],
)
async def test_bad_requests_name_the_field(
    deciding: Deciding, request_: pb.DecideRequest, field: str, said: str
) -> None:
    """A typed error with the remedy, and nothing is decided."""
    error = await refusal(deciding.decision.Decide(request_, timeout=TIMEOUT_S))
    assert error.kind.value == "INVALID_ARGUMENT"
    assert [problem for problem in error.problems if problem.field == field and said in problem.problem]


async def test_a_decide_without_a_deadline_is_refused(deciding: Deciding) -> None:
    """The deadline is the contract."""
    assert (await refusal(deciding.decision.Decide(ask()))).reason == "DEADLINE_REQUIRED"


async def test_identities_of_two_people_are_refused(deciding: Deciding) -> None:
    """What identity refuses is the caller's to mend, and no outage."""
    request = ask()
    request.identities.add(namespace="user_id", value="somebody else")
    assert (await refusal(deciding.decision.Decide(request, timeout=TIMEOUT_S))).reason == "IDENTITIES_REFUSED"


async def test_an_unknown_decision_is_not_found(deciding: Deciding) -> None:
    """GetDecision, Explain and Replay say so alike."""
    unknown = "00" * 16
    for call in (
        deciding.decision.GetDecision(pb.GetDecisionRequest(decision_id=unknown), timeout=5),
        deciding.decision.Explain(pb.ExplainRequest(decision_id=unknown), timeout=5),
        deciding.decision.Replay(pb.ReplayRequest(decision_id=unknown), timeout=5),
    ):
        assert (await refusal(call)).reason == "DECISION_UNKNOWN"


async def record(deciding: Deciding, *decisions: pb.RecordedDecision) -> list[pb.RecordedResult]:
    request = pb.RecordDecisionsRequest(decisions=decisions)
    return list((await deciding.decision.RecordDecisions(request, timeout=TIMEOUT_S)).results)


async def test_past_decisions_are_recorded_once_with_their_features(deciding: Deciding) -> None:
    """Features as of their moment, the active model's scores, and nothing new the second time."""
    await deciding.learn()
    by_pseudonym = past("two", subject=SubjectRef(subject_id=member("bob")), propensities=[0.5, 0.25, 0.25])
    first = await record(deciding, past("one"), by_pseudonym)
    again = await record(deciding, past("one"), past("three"))
    assert [result.already_recorded for result in (*first, *again)] == [False, False, True, False]
    assert again[0].scores == first[0].scores
    assert len(first[0].scores) == 3
    logged = (
        await deciding.decision.GetDecision(pb.GetDecisionRequest(decision_id=first[1].decision_id), timeout=5)
    ).decision
    assert logged.origin == events_pb.ORIGIN_RECORDED
    assert [entry.propensity for entry in logged.slate] == [0.5, 0.25, 0.25]
    assert logged.learnable
    assert logged.subject_id == member("bob")
    assert (await replayed(deciding, first[0].decision_id)).identical


async def test_the_past_of_someone_who_does_not_agree_is_kept_without_features(deciding: Deciding) -> None:
    """No vector, no scores, and it says why."""
    deciding.around.refused.add(member("ann"))
    (result,) = await record(deciding, past("one"))
    assert (list(result.scores), result.fallback_reason) == ([], events_pb.FALLBACK_REASON_NO_CONSENT)
    request = pb.GetDecisionRequest(decision_id=result.decision_id)
    logged = (await deciding.decision.GetDecision(request, timeout=5)).decision
    assert (logged.inputs.subject_vector, logged.inputs.matrix, logged.learnable) == (b"", b"", False)


async def test_what_the_browser_refused_then_is_not_read_of_the_past(deciding: Deciding) -> None:
    """Signals of the request that another system answered count as in a Decide, and are no part of what it was."""
    objected = past("one", consent_signals=types_pb2.ConsentSignals(gpc="1"))
    (result,) = await record(deciding, objected)
    assert (list(result.scores), result.fallback_reason) == ([], events_pb.FALLBACK_REASON_NO_CONSENT)
    (again,) = await record(deciding, past("one"))
    assert again.already_recorded
    assert list(again.scores) == []
    assert (await replayed(deciding, result.decision_id)).identical


async def test_an_outage_records_nothing_of_the_past(deciding: Deciding) -> None:
    """Recorded without its features a decision would be lost for learning: the caller tries again instead."""
    deciding.around.down.add("features")
    error = await refusal(
        deciding.decision.RecordDecisions(pb.RecordDecisionsRequest(decisions=[past("one")]), timeout=TIMEOUT_S)
    )
    assert error.kind.value == "UNAVAILABLE"
    deciding.around.down.clear()
    assert not (await record(deciding, past("one")))[0].already_recorded


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (past("x", placement_id="nowhere"), "decisions[1].placement_id"),
        (past("x", item_ids=["a", "a"]), "decisions[1].item_ids"),
        (past("x", decided_at={"seconds": 4_000_000_000}), "decisions[1].decided_at"),
        (past("x", propensities=[0.5]), "decisions[1].propensities"),
        (past("x", propensities=[0.5, 0.0, 0.5]), "decisions[1].propensities"),
        (
            past(
                "x", subject=SubjectRef(subject_id=member("a"), identities=[Identity(namespace="user_id", value="b")])
            ),
            "decisions[1].subject",
        ),
    ],
)
async def test_one_wrong_past_decision_records_none(deciding: Deciding, wrong: pb.RecordedDecision, field: str) -> None:
    """All of a call or none, and the field is named."""
    request = pb.RecordDecisionsRequest(decisions=[past("good"), wrong])
    error = await refusal(deciding.decision.RecordDecisions(request, timeout=TIMEOUT_S))
    assert error.problems[0].field == field
    assert not (await record(deciding, past("good")))[0].already_recorded
