"""Decisions come in, behavior is joined to them, the log goes out again: over real Postgres and JetStream."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from comity.common.v1 import holdings_pb2
from comity.decision.v1 import decision_events_pb2 as decision_pb2
from comity.feedback.v1 import feedback_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.access import PERSONAL_DATA_ACCESSED
from services.chassis.events import LogPosition
from services.chassis.ports import Access
from services.chassis.reads import new_operation, operation_to_pb
from services.chassis.sealing import Sealer
from services.feedback.domain.replay import BEGINNING, Kind, Range, Replayed
from services.feedback.store import PostgresArchive
from services.feedback.store import archive as archive_module
from services.feedback.store.archive import DECISIONS_PAGE
from tests.integration.feedback.conftest import Feedback, event, made, member

DECISION = pb.REPLAY_KIND_DECISION
BEHAVIOR = pb.REPLAY_KIND_BEHAVIOR
OUTCOME = pb.REPLAY_KIND_OUTCOME
# The recorded event under another id and in another stream.
RECORD_AGAIN_SQL = """
INSERT INTO events (epoch, event_id, stream_id, version, type, subject_id, occurred_at, key_id, nonce, payload,
                    traceparent)
SELECT epoch, gen_random_uuid(), 'late', version, type, subject_id, occurred_at, key_id, nonce, payload, traceparent
FROM events WHERE type = 'comity.feedback.v1.BehaviorRecorded' RETURNING event_id
"""


async def test_a_click_after_its_decision_becomes_an_outcome(feedback: Feedback) -> None:
    """With the slot of the item, once, however often the click is sent."""
    position = await feedback.decisions.make([made("d1")])
    await feedback.joined(position)
    await feedback.track(event("1", decision_id="d1"))
    await feedback.track(event("1", decision_id="d1"))
    await feedback.joined(position)
    outcomes, _ = await feedback.replay(OUTCOME)
    assert [(o.outcome.decision_id, o.outcome.item_id, o.outcome.slot, o.outcome.reward) for o in outcomes] == [
        ("d1", "2", 1, 1.0)
    ]
    behaviors, _ = await feedback.replay(BEHAVIOR)
    assert outcomes[0].outcome.behavior_id == behaviors[0].event_id
    assert outcomes[0].subject_id == member("ann")


async def test_a_click_before_its_decision_waits_for_it(feedback: Feedback) -> None:
    """It is joined when the decision comes in; AwaitPosition returns after that."""
    await feedback.track(event("1", decision_id="d1"), event("2", decision_id="d2"))
    assert (await feedback.replay(OUTCOME))[0] == []
    await feedback.joined(await feedback.decisions.make([made("d1")]))
    assert [o.outcome.decision_id for o in (await feedback.replay(OUTCOME))[0]] == ["d1"]
    assert await feedback.pool.fetchval("SELECT count(*) FROM pending_outcomes") == 1
    await feedback.joined(await feedback.decisions.make([made("d2")]))
    assert [o.outcome.decision_id for o in (await feedback.replay(OUTCOME))[0]] == ["d1", "d2"]
    assert await feedback.pool.fetchval("SELECT count(*) FROM pending_outcomes") == 0


async def test_clicks_and_decisions_that_race_are_all_joined_once(feedback: Feedback) -> None:
    """Three hundred of each, sent at the same time in batches: one outcome for every click."""
    numbers = list(range(300))

    async def click(batch: list[int]) -> None:
        await feedback.track(*(event(f"c{n}", who=f"p{n % 7}", decision_id=f"d{n}") for n in batch))

    async def decide(batch: list[int]) -> LogPosition:
        return await feedback.decisions.make([made(f"d{n}", who=f"p{n % 7}") for n in batch])

    batches = [numbers[start : start + 20] for start in range(0, len(numbers), 20)]
    async with asyncio.TaskGroup() as group:
        decided = [group.create_task(decide(batch)) for batch in batches]
        for batch in reversed(batches):
            group.create_task(click(batch))
    await feedback.joined(max(task.result() for task in decided))
    outcomes, _ = await feedback.replay(OUTCOME)
    assert sorted(o.outcome.decision_id for o in outcomes) == sorted(f"d{n}" for n in numbers)


async def test_a_decision_shown_at_once_is_its_own_exposure(feedback: Feedback) -> None:
    """Where the person allows it to be measured; a recorded decision is not, its exposure is tracked."""
    feedback.consent.refused.add((member("bob"), "measurement"))
    now = decision_pb2.ACTIVATION_IMMEDIATE
    position = await feedback.decisions.make(
        [
            made("d1", activation=now),
            made("d2", who="bob", activation=now),
            made("d3", activation=decision_pb2.ACTIVATION_DEFERRED),
            made("d4", activation=now, origin=decision_pb2.ORIGIN_RECORDED),
        ]
    )
    await feedback.joined(position)
    shown, _ = await feedback.replay(BEHAVIOR)
    assert [(e.behavior.type, e.behavior.decision_id, list(e.behavior.item_ids)) for e in shown] == [
        ("exposure", "d1", ["1", "2", "3"])
    ]


async def test_a_corrected_decision_is_the_newest_version(feedback: Feedback) -> None:
    """What was really answered takes the place of what was not."""
    await feedback.decisions.make([made("d1")])
    corrected = made("d1", fallback_reason=decision_pb2.FALLBACK_REASON_LOG_UNAVAILABLE)
    corrected.learnable = False
    await feedback.joined(await feedback.decisions.make([corrected], version=2))
    decisions, _ = await feedback.replay(DECISION)
    assert [e.decision.learnable for e in decisions] == [False]


async def test_a_slate_beside_which_the_default_was_answered_is_joined_and_not_learned_from(
    feedback: Feedback,
) -> None:
    """The slate stands and clicks find their place in it; it is no exposure, since nobody knows what was shown."""
    stands = made("d1", final=True, default_also_answered=True)
    stands.activation, stands.learnable = decision_pb2.ACTIVATION_IMMEDIATE, False
    await feedback.decisions.make([made("d1")])
    position = await feedback.decisions.make([stands], version=2)
    await feedback.track(event("1", decision_id="d1", item_ids=["2"]))
    await feedback.joined(position)
    events, _ = await feedback.replay(DECISION, BEHAVIOR, OUTCOME)
    kinds = [e.WhichOneof("payload") for e in events]
    assert kinds == ["decision", "behavior", "outcome"]
    assert (events[0].decision.default_also_answered, events[0].decision.learnable) == (True, False)
    assert events[2].outcome.slot == 1


async def test_the_log_comes_out_in_order_and_in_range(feedback: Feedback) -> None:
    """Decisions by time first, then behavior and outcomes by position; a range is half open; a placement filters."""
    ages = {"d1": 30.0, "d2": 20.0, "d3": 10.0}
    other = made("d4", age_s=40.0)
    other.placement_id = "checkout"
    position = await feedback.decisions.make([*(made(name, age_s=age) for name, age in ages.items()), other])
    await feedback.track(event("1", decision_id="d2"), event("2", "page_viewed"))
    await feedback.joined(position)
    events, _ = await feedback.replay(OUTCOME, DECISION, BEHAVIOR)
    assert [e.WhichOneof("payload") for e in events] == ["decision"] * 4 + ["behavior", "behavior", "outcome"]
    assert [e.decision.decision_id for e in events[:4]] == ["d4", "d1", "d2", "d3"]
    home, _ = await feedback.replay(DECISION, placement_id="home", since=events[0].occurred_at)
    assert [e.decision.decision_id for e in home] == ["d1", "d2", "d3"]
    part, _ = await feedback.replay(DECISION, since=events[1].occurred_at, until=events[3].occurred_at)
    assert [e.decision.decision_id for e in part] == ["d1", "d2"]


async def test_facts_are_withheld_for_a_purpose_that_is_not_allowed(feedback: Feedback) -> None:
    """Counted, and given out again once it is allowed."""
    position = await feedback.decisions.make([made("d1"), made("d2", who="bob")])
    await feedback.joined(position)
    feedback.consent.refused.add((member("bob"), "model_training"))
    events, withheld = await feedback.replay(DECISION, purpose="model_training")
    assert ([e.decision.decision_id for e in events], withheld) == (["d1"], 1)
    feedback.consent.refused.clear()
    events, withheld = await feedback.replay(DECISION, purpose="model_training")
    assert (len(events), withheld) == (2, 0)


async def test_an_erased_persons_facts_cannot_be_given_out(feedback: Feedback) -> None:
    """Once the key is gone and forgotten nothing can be opened; the others' facts come as before."""
    position = await feedback.decisions.make([made("d1"), made("d2", who="bob")])
    await feedback.track(event("1"), event("2", who="bob"))
    await feedback.joined(position)
    feedback.identity.keys.destroy([member("bob")])
    archive = PostgresArchive(feedback.pool, Sealer(feedback.identity.keys))
    for kind in (Kind.DECISION, Kind.BEHAVIOR):
        pages = archive.pages(frozenset({kind}), Range(), placement_id="", member_ids=(), after=BEGINNING)
        assert [fact.member_id async for page, _ in pages for fact in page] == [member("ann")]


async def test_many_pages_come_out_whole(feedback: Feedback) -> None:
    """More decisions than a page holds, many at the same time: each once."""
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) - timedelta(minutes=1))
    decisions = [made(f"{n:032x}", who=f"p{n % 50}") for n in range(1203)]
    for decision in decisions[100:900]:
        decision.decided_at.CopyFrom(moment)
    position = await feedback.decisions.make(decisions)
    await feedback.joined(position)
    events, _ = await feedback.replay(DECISION)
    assert len(events) == len({e.decision.decision_id for e in events}) == 1203
    assert [e.occurred_at.ToNanoseconds() for e in events] == sorted(e.occurred_at.ToNanoseconds() for e in events)


@pytest.mark.parametrize("members", [[], ["ann", "bob"]])
async def test_replay_goes_on_where_an_earlier_one_ended(feedback: Feedback, members: list[str]) -> None:
    """From each place that it told, of decisions and of the rest: what comes then is what is missing."""
    position = await feedback.decisions.make([made(f"{n:032x}", who="ann" if n % 2 else "bob") for n in range(600)])
    await feedback.track(event("1"), event("2", who="bob"))
    await feedback.joined(position)
    asked = pb.ReplayEventsRequest(
        kinds=[DECISION, pb.REPLAY_KIND_BEHAVIOR], member_ids=[member(name) for name in members]
    )

    async def ids(after: pb.ReplayPlace | None = None) -> list[tuple[list[str], pb.ReplayPlace]]:
        request = pb.ReplayEventsRequest(after=after)
        request.MergeFrom(asked)
        pages = feedback.stub.ReplayEvents(request, timeout=60)
        return [([one.event_id for one in page.events], page.end) async for page in pages]

    whole = await ids()
    every = [event_id for page, _ in whole for event_id in page]
    assert len(every) == 602
    told = 0
    for k, (_, end) in enumerate(whole):
        if end == pb.ReplayPlace():
            continue
        told += 1
        rest = [event_id for page, _ in whole[k + 1 :] for event_id in page]
        assert [event_id for page, _ in await ids(end) for event_id in page] == rest
    assert told >= 3
    assert whole[-1][1].HasField("position")


@pytest.mark.parametrize("members", [[], ["ann"]])
async def test_replay_passes_over_nothing_that_is_still_being_recorded(
    feedback: Feedback, members: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a transaction records that began before others and ends after them is given by whoever goes on."""

    async def ids(after: pb.ReplayPlace | None) -> tuple[list[str], pb.ReplayPlace]:
        asked = pb.ReplayEventsRequest(kinds=[BEHAVIOR], member_ids=[member(name) for name in members], after=after)
        pages = [page async for page in feedback.stub.ReplayEvents(asked, timeout=60)]
        return [one.event_id for page in pages for one in page.events], pages[-1].end if pages else pb.ReplayPlace()

    await feedback.track(event("1"))
    assert len((await ids(None))[0]) == 1
    async with feedback.pool.acquire() as connection, connection.transaction():
        late = str(await connection.fetchval(RECORD_AGAIN_SQL))
        await feedback.track(event("2"))
        monkeypatch.setattr(archive_module, "OPEN_S_MAX", 0.0)
        before, end = await ids(None)
        assert len(before) == 1
        monkeypatch.setattr(archive_module, "OPEN_S_MAX", 3600.0)
        waiting = asyncio.ensure_future(ids(None))
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert not done
    rest, _ = await ids(end)
    assert (len(rest), rest[0]) == (2, late)
    assert (await waiting)[0] == [*before, *rest]


def ids_of(page: Sequence[Replayed]) -> set[str]:
    return {decision_pb2.DecisionMade.FromString(one.payload).decision_id for one in page}


async def test_decision_that_is_corrected_during_a_replay_is_given(feedback: Feedback) -> None:
    """It was there when the call began, and has its place in time still, though it arrived anew."""
    decisions = {f"{n:032x}": made(f"{n:032x}") for n in range(DECISIONS_PAGE + 2)}
    await feedback.joined(await feedback.decisions.make(list(decisions.values())))
    archive = PostgresArchive(feedback.pool, Sealer(feedback.identity.keys))
    pages = archive.pages(frozenset({Kind.DECISION}), Range(), placement_id="", member_ids=(), after=BEGINNING)
    first, _ = await anext(pages)
    left = decisions.keys() - ids_of(first)
    await feedback.joined(await feedback.decisions.make([decisions[min(left)]], version=2))
    assert {decision_id async for page, _ in pages for decision_id in ids_of(page)} == left


async def test_a_replay_is_a_fact_with_its_purpose(feedback: Feedback) -> None:
    """Recorded before anything is given, once an operation, however often it is taken up again."""
    operation = operation_to_pb(new_operation(Access("trainer", "training")))
    for _ in range(2):
        await feedback.replay(pb.REPLAY_KIND_BEHAVIOR, purpose="measurement", operation=operation)
    await feedback.replay(pb.REPLAY_KIND_BEHAVIOR)
    rows = await feedback.pool.fetch(
        "SELECT stream_id, payload FROM events WHERE type = $1 ORDER BY position", PERSONAL_DATA_ACCESSED
    )
    told = [(row["stream_id"], holdings_pb2.PersonalDataAccessed.FromString(row["payload"])) for row in rows]
    assert [(stream, fact.access.accessor, fact.purpose) for stream, fact in told] == [
        (f"access-op-{operation.id}", "trainer", "measurement"),
        ("access-everybody", "unstated", ""),
    ]


@pytest.mark.parametrize("kinds", [[], [DECISION]])
async def test_a_replay_that_asks_for_nothing_is_refused(
    feedback: Feedback, kinds: list[pb.ReplayKind.ValueType]
) -> None:
    """No kinds, or a range that ends before it begins."""
    late, early = Timestamp(seconds=2), Timestamp(seconds=1)
    with pytest.raises(Exception, match=r"kinds|until"):
        await feedback.replay(*kinds, since=late, until=early)
