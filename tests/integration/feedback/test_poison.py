"""No row, event or message that cannot be read stops the joiner, a replay or a batch: it is put aside, and listed."""

import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from comity.common.v1 import events_pb2, operations_pb2
from comity.decision.v1 import decision_events_pb2 as decision_pb2
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.feedback.v1.feedback_events_pb2 import BehaviorRecorded

from services.chassis import envelope
from services.chassis.events import Append, NewEvent
from services.chassis.eventstore import PostgresEventStore
from services.chassis.ids import uuid7
from services.chassis.postgres import acquire
from services.feedback.main import MIGRATIONS
from services.feedback.wire import BEHAVIOR_RECORDED, DECISION_MADE
from tests.integration.feedback.conftest import TIMEOUT_S, Feedback, event, made, member
from tests.waiting import eventually

CHANNEL = "ev.v1.0.decision.DecisionMade"
EPOCH = "(SELECT epoch FROM log_epoch)"
Poison = Callable[[Feedback], Awaitable[None]]


async def execute(feedback: Feedback, sql: str, *arguments: object) -> None:
    async with acquire(feedback.pool) as connection:
        await connection.execute(sql, *arguments)


async def take_in(feedback: Feedback, *decisions: decision_pb2.DecisionMade) -> None:
    """Have these decisions in feedback, joined."""
    await feedback.joined(await feedback.decisions.make(list(decisions)))


async def under_nobody(feedback: Feedback) -> None:
    """A decision sealed for somebody and kept under nobody, as corrections made it."""
    await take_in(feedback, made("under_nobody", who="eve"))
    await execute(feedback, f"UPDATE decision_facts SET member_id = '', {AGAIN} WHERE decision_id = 'under_nobody'")


async def broken_seal(feedback: Feedback) -> None:
    """A decision whose bytes were changed."""
    await take_in(feedback, made("broken_seal", who="eve"))
    changed = f"UPDATE decision_facts SET payload = payload || '\\x00', {AGAIN} WHERE decision_id = 'broken_seal'"
    await execute(feedback, changed)


async def no_decision(feedback: Feedback) -> None:
    """A row that opens, and holds no decision."""
    await take_in(feedback, made("no_decision", who="eve"))
    await execute(
        feedback,
        f"UPDATE decision_facts SET key_id = NULL, nonce = NULL, payload = 'no message', {AGAIN} "
        "WHERE decision_id = 'no_decision'",
    )


async def time_out_of_range(feedback: Feedback) -> None:
    """A decision made at a time that no clock shows."""
    wrong = made("time_out_of_range", who="eve")
    wrong.decided_at.seconds = 2**60
    await take_in(feedback, made("time_out_of_range", who="eve"))
    await execute(
        feedback,
        f"UPDATE decision_facts SET key_id = NULL, nonce = NULL, payload = $1, {AGAIN} "
        "WHERE decision_id = 'time_out_of_range'",
        wrong.SerializeToString(),
    )


async def no_behavior(feedback: Feedback) -> None:
    """An event of the log that holds no behavior."""
    await log(feedback, b"no message")


async def unspeakable_decision(feedback: Feedback) -> None:
    """A click that names a decision with a character that Postgres takes in no text, as anybody once could send it."""
    click = BehaviorRecorded(type="click", item_ids=["1"], decision_id="d\x00")
    await log(feedback, click.SerializeToString())


async def no_schema(feedback: Feedback) -> None:
    """A declared type that cannot be read."""
    await execute(
        feedback, "INSERT INTO event_schemas SELECT 'poison', 'x'::bytea, max(publication) + 1 FROM event_schemas"
    )


async def no_batch(feedback: Feedback) -> None:
    """A message that is none of ours."""
    await feedback.bus.publish(CHANNEL, b"no batch", message_id=uuid.uuid4().hex, headers={})


async def nameless_event(feedback: Feedback) -> None:
    """An event in a message of ours whose id is no id."""
    await batch(feedback, events_pb2.Event(event_id="no uuid", type=DECISION_MADE, stream_id="poison", version=1))


async def unspeakable_subject(feedback: Feedback) -> None:
    """An event about whom no text of Postgres can name."""
    await batch(feedback, events_pb2.Event(event_id=str(uuid.uuid4()), type=DECISION_MADE, subject_id="a\x00"))


async def unspeakable_stream(feedback: Feedback) -> None:
    """An event whose stream has no name."""
    await batch(feedback, events_pb2.Event(event_id=str(uuid.uuid4()), type=DECISION_MADE, version=2**32 - 1))


async def endless_watermark(feedback: Feedback) -> None:
    """A message that says that its source is further than any log can be; what is in it is sound."""
    headers = {envelope.CE_WATERMARK: f"1-{2**70}-1"}
    await feedback.bus.publish(CHANNEL, b"\xff", message_id=uuid.uuid4().hex, headers=headers)


async def batch(feedback: Feedback, event_: events_pb2.Event) -> None:
    await feedback.bus.publish(
        CHANNEL,
        events_pb2.EventBatch(events=[event_]).SerializeToString(),
        message_id=uuid.uuid4().hex,
        headers={},
    )


async def log(feedback: Feedback, payload: bytes) -> None:
    now = datetime.now(UTC)
    await PostgresEventStore(feedback.pool).append(
        Append(uuid.uuid4().hex, 0, (NewEvent(uuid7(now), BEHAVIOR_RECORDED, payload, now),))
    )


AGAIN = f"arrival_epoch = {EPOCH}, arrival_xid = pg_current_xact_id(), arrival = DEFAULT"
POISONS: dict[str, tuple[Poison, str]] = {
    "under_nobody": (under_nobody, "DATA_KEY_UNKNOWN"),
    "broken_seal": (broken_seal, "SEAL_BROKEN"),
    "no_decision": (no_decision, "BUG"),
    "time_out_of_range": (time_out_of_range, "BUG"),
    "no_behavior": (no_behavior, "BUG"),
    "unspeakable_decision": (unspeakable_decision, "DATABASE_REFUSED"),
    "no_schema": (no_schema, "BUG"),
    "no_batch": (no_batch, "UNDECODABLE"),
    "nameless_event": (nameless_event, "UNDECODABLE"),
    "unspeakable_subject": (unspeakable_subject, "UNDECODABLE"),
    "unspeakable_stream": (unspeakable_stream, "DATABASE_REFUSED"),
    "endless_watermark": (endless_watermark, "UNDECODABLE"),
}


async def test_everything_behind_what_cannot_be_read_goes_on(feedback: Feedback) -> None:
    """With every kind of poison in its tables, log and stream at once, feedback joins, replays and tells of each."""
    for plant, _ in POISONS.values():
        await plant(feedback)
    position = await feedback.decisions.make([made("good", who="ann")])
    tracked = await feedback.track(event("click", decision_id="good"))
    assert tracked.results[0].status == pb.TRACK_STATUS_ACCEPTED
    await feedback.joined(position)

    async def all_told() -> bool:
        return {letter.reason for letter in await feedback.letters()} >= {reason for _, reason in POISONS.values()}

    await eventually(all_told)
    outcomes, _ = await feedback.replay(pb.REPLAY_KIND_OUTCOME)
    assert [outcome.outcome.decision_id for outcome in outcomes] == ["good"]
    decisions, _ = await feedback.replay(pb.REPLAY_KIND_DECISION, purpose="measurement")
    assert [one.decision.decision_id for one in decisions] == ["good"]
    alarms = await feedback.operations.ListAlarms(operations_pb2.ListAlarmsRequest(), timeout=TIMEOUT_S)
    assert "dead_letters" in [alarm.name for alarm in alarms.alarms]


@pytest.mark.parametrize("name", POISONS)
async def test_poison_is_listed_once_with_its_reason(feedback: Feedback, name: str) -> None:
    """Each kind alone: one letter by whoever consumes it, however often it is met; what comes behind it is joined."""
    plant, reason = POISONS[name]
    await plant(feedback)
    position = await feedback.decisions.make([made("good", who="ann")])
    await feedback.track(event("click", decision_id="good"))
    await feedback.joined(position)

    async def told() -> bool:
        return any(letter.consumer != "replay" for letter in await feedback.letters())

    await eventually(told)
    await feedback.replay(pb.REPLAY_KIND_DECISION)
    await feedback.replay(pb.REPLAY_KIND_DECISION)
    letters = await feedback.letters()
    assert {letter.reason for letter in letters} == {reason}
    assert len({(letter.consumer, letter.event_id, letter.channel) for letter in letters}) == len(letters) <= 2


async def test_letter_that_can_be_read_now_has_its_effect_when_retried(feedback: Feedback) -> None:
    """A decision whose row was mended is joined to the click that waits for it; until then its letter stays."""
    await under_nobody(feedback)
    await feedback.track(event("click", who="eve", decision_id="under_nobody"))

    async def told() -> bool:
        return bool(await feedback.letters())

    await eventually(told)
    (letter,) = await feedback.letters()
    request = operations_pb2.RetryDeadLettersRequest(ids=[letter.id])
    answer = await feedback.operations.RetryDeadLetters(request, timeout=TIMEOUT_S)
    assert [one.reason for one in answer.letters] == ["DATA_KEY_UNKNOWN"]
    await execute(feedback, "UPDATE decision_facts SET member_id = $1", member("eve"))
    answer = await feedback.operations.RetryDeadLetters(request, timeout=TIMEOUT_S)
    assert [one.reason for one in answer.letters] == [""]

    async def joined() -> bool:
        outcomes, _ = await feedback.replay(pb.REPLAY_KIND_OUTCOME)
        return [one.outcome.decision_id for one in outcomes] == ["under_nobody"]

    await eventually(joined)
    assert not await feedback.letters()


async def test_discarded_row_is_not_told_again(feedback: Feedback) -> None:
    """Whoever replays the log meets the row again, and what an operator has dropped stays dropped."""
    await no_decision(feedback)

    async def told() -> bool:
        return bool(await feedback.letters())

    await eventually(told)
    await feedback.replay(pb.REPLAY_KIND_DECISION)
    request = operations_pb2.DiscardDeadLettersRequest(ids=[letter.id for letter in await feedback.letters()])
    assert (await feedback.operations.DiscardDeadLetters(request, timeout=TIMEOUT_S)).count == 2
    await feedback.replay(pb.REPLAY_KIND_DECISION)
    assert not await feedback.letters()


async def test_rows_kept_under_nobody_are_given_back_to_their_member(feedback: Feedback) -> None:
    """The migration reads off the key's other rows whose a decision is; under nobody stays what no row tells of."""
    await take_in(feedback, made("first", who="eve"), made("second", who="eve"), made("alone", who="bob"))
    await execute(feedback, "UPDATE decision_facts SET member_id = '' WHERE decision_id IN ('second', 'alone')")
    (repair,) = MIGRATIONS.glob("0004_*.sql")
    up = repair.read_text().partition("-- migrate:down")[0]
    await execute(feedback, up)
    async with acquire(feedback.pool) as connection:
        rows = await connection.fetch("SELECT decision_id, member_id FROM decision_facts")
    assert {row["decision_id"]: row["member_id"] for row in rows} == {
        "first": member("eve"),
        "second": member("eve"),
        "alone": "",
    }
