"""Track over gRPC, down to the rows."""

import math
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from comity.common.v1.types_pb2 import ConsentSignals, SubjectRef
from comity.feedback.v1 import feedback_events_pb2
from comity.feedback.v1 import feedback_service_pb2 as pb

from services.chassis.exposure_token import ExposureClaim, sign
from tests.integration.feedback.conftest import TOKEN_KEY, Feedback, event, made, member, schema

ACCEPTED = pb.TRACK_STATUS_ACCEPTED
DUPLICATE = pb.TRACK_STATUS_DUPLICATE
REFUSED = pb.TRACK_STATUS_REFUSED
DROPPED = pb.TRACK_STATUS_DROPPED_NO_CONSENT
READER = pb.EventProperty(name="reader", kind=pb.PROPERTY_KIND_STRING)


def statuses(response: pb.TrackResponse) -> list[pb.TrackStatus.ValueType]:
    return [result.status for result in response.results]


async def test_each_event_is_answered_on_its_own(feedback: Feedback) -> None:
    """Good, repeated, unknown, invalid and not agreed to, in one call, each with its own answer and remedy."""
    feedback.consent.refused.add((member("bob"), "measurement"))
    too_long = event("x" * 65)
    number = feedback_events_pb2.PropertyValue(number_value=math.nan)
    response = await feedback.track(
        event("1"),
        event("1"),
        event("2", "unheard_of"),
        too_long,
        event("3", who="bob"),
        event("4", "page_viewed", properties={"size": number}),
        event("5", item_ids=[]),
        event("6", who="bob", type="page_viewed", item_ids=[]),
        pb.TrackedEvent(event_id="7", type="click", item_ids=["1"]),
    )
    assert statuses(response) == [ACCEPTED, DUPLICATE, REFUSED, REFUSED, DROPPED, REFUSED, REFUSED, ACCEPTED, REFUSED]
    assert [result.field for result in response.results] == [
        "", "", "type", "event_id", "", "properties[size].number_value", "item_ids", "", "subject",
    ]  # fmt: skip
    assert "click, exposure, page_viewed" in response.results[2].problem
    assert await feedback.pool.fetchval("SELECT count(*) FROM events WHERE type LIKE '%BehaviorRecorded'") == 2


async def test_what_is_stored_about_a_person_is_sealed(feedback: Feedback) -> None:
    """No column of the log shows the event, its sender's id, or the identity that came with it."""
    await feedback.track(event("id-of-the-sender", item_ids=["item-that-was-clicked"]))
    rows = await feedback.pool.fetch("SELECT * FROM events")
    for secret in ("id-of-the-sender", "item-that-was-clicked", "ann"):
        needle = secret.encode()
        assert not any(needle in (v if isinstance(v, bytes) else str(v).encode()) for row in rows for v in row.values())


async def test_a_call_repeated_after_a_lost_answer_gives_the_same_position(feedback: Feedback) -> None:
    """Sending again stores nothing, and says where the first call's events are."""
    first = await feedback.track(event("1"), event("2"))
    again = await feedback.track(event("1"), event("2"))
    assert statuses(again) == [DUPLICATE, DUPLICATE]
    assert again.position == first.position


async def test_a_thousand_events_fit_one_call(feedback: Feedback) -> None:
    """The largest batch is taken in; one more event is refused as a whole."""
    many = [event(str(n), who=f"p{n % 300}") for n in range(1001)]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await feedback.track(*many)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    response = await feedback.track(*many[:1000])
    assert set(statuses(response)) == {ACCEPTED}


async def test_while_consent_is_away_nothing_is_stored(feedback: Feedback) -> None:
    """The whole call is UNAVAILABLE, says which service did not answer, and can be sent again."""
    feedback.consent.down = True
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await feedback.track(event("1"))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Consent" in str(raised.value.details())
    assert await feedback.pool.fetchval("SELECT count(*) FROM events WHERE type LIKE '%BehaviorRecorded'") == 0
    feedback.consent.down = False
    assert statuses(await feedback.track(event("1"))) == [ACCEPTED]


async def test_a_token_of_decide_is_proof(feedback: Feedback) -> None:
    """A token signed with decision's key is taken; an old and a changed one are not; a foreign one proves nothing."""
    later = datetime.now(UTC) + timedelta(hours=1)
    decision_id = "0" * 32
    good = sign(TOKEN_KEY, ExposureClaim(decision_id, member("ann"), "home", later))
    foreign = sign(TOKEN_KEY, ExposureClaim(decision_id, member("bob"), "home", later))
    stale = sign(TOKEN_KEY, ExposureClaim(decision_id, member("ann"), "home", datetime.now(UTC) - timedelta(hours=1)))
    response = await feedback.track(
        event("1", exposure_token=good),
        event("2", exposure_token=foreign),
        event("3", exposure_token=stale),
        event("4", exposure_token=good[:-1] + bytes([good[-1] ^ 1])),
        event("5", exposure_token=good, decision_id="1" * 32),
    )
    assert statuses(response) == [ACCEPTED, ACCEPTED] + [REFUSED] * 3
    assert [one.reason for one in response.results[2:4]] == ["EXPOSURE_TOKEN_EXPIRED", "EXPOSURE_TOKEN_INVALID"]
    events, _ = await feedback.replay(pb.REPLAY_KIND_BEHAVIOR)
    named = [(one.behavior.decision_id, one.behavior.decision_proven) for one in events]
    assert sorted(named) == [("", False), (decision_id, True)]


async def test_event_id_that_comes_again_is_compared_with_what_is_stored(feedback: Feedback) -> None:
    """Also where what is stored is sealed."""
    first = await feedback.track(event("1"))
    again = await feedback.track(event("1"), event("1", item_ids=["3"]))
    assert statuses(first) + statuses(again) == [ACCEPTED, DUPLICATE, REFUSED]
    assert again.results[1].reason == "EVENT_ID_REUSED"
    assert again.position == first.position


async def test_a_pseudonym_alone_names_a_person(feedback: Feedback) -> None:
    """What a backend was given as subject_id it may send back."""
    response = await feedback.track(event("1", subject=SubjectRef(subject_id=member("ann"))), event("1"))
    assert statuses(response) == [ACCEPTED, DUPLICATE]


async def test_an_exposure_takes_its_items_from_the_slate(feedback: Feedback) -> None:
    """Also when it is tracked before the decision has come in here."""
    position = await feedback.decisions.make([made("d1")])
    response = await feedback.track(event("1", "exposure", decision_id="d1"))
    assert statuses(response) == [ACCEPTED]
    await feedback.joined(position)
    events, _ = await feedback.replay(pb.REPLAY_KIND_BEHAVIOR)
    assert list(events[0].behavior.item_ids) == ["1", "2", "3"]


async def test_an_erased_person_gets_no_new_key(feedback: Feedback) -> None:
    """A late event about somebody who was erased is refused, alone."""
    feedback.identity.keys.destroy([member("ann")])
    response = await feedback.track(event("1"), event("2", who="bob"))
    assert statuses(response) == [REFUSED, ACCEPTED]


async def test_schemas_are_published_for_the_next_event(feedback: Feedback) -> None:
    """A new type counts at once; a bad publication changes nothing and names its mistakes."""
    assert statuses(await feedback.track(event("1", "search"))) == [REFUSED]
    ask = pb.PublishEventSchemasRequest(schemas=[schema("search")], validate_only=True)
    promised = await feedback.stub.PublishEventSchemas(ask, timeout=10)
    assert statuses(await feedback.track(event("1", "search"))) == [REFUSED]
    ask.validate_only = False
    published = await feedback.stub.PublishEventSchemas(ask, timeout=10)
    assert published.version == promised.version
    assert statuses(await feedback.track(event("1", "search"))) == [ACCEPTED]
    bad = pb.PublishEventSchemasRequest(schemas=[schema("fine"), schema("decision")])
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await feedback.stub.PublishEventSchemas(bad, timeout=10)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert statuses(await feedback.track(event("2", "fine"))) == [REFUSED]


async def test_what_a_person_did_not_agree_to_is_kept_without_the_person(feedback: Feedback) -> None:
    """Where its type says so: no member, no key, no property, no link; the answer says what became of it."""
    declared = schema("read", anonymize_without_consent=True, properties=[READER])
    await feedback.stub.PublishEventSchemas(pb.PublishEventSchemasRequest(schemas=[declared]), timeout=10)
    feedback.consent.refused.add((member("ann"), "measurement"))
    canary = feedback_events_pb2.PropertyValue(string_value="canary")
    sent = event("canary-id", "read", item_ids=["7"], properties={"reader": canary}, decision_id="canary-decision")
    response = await feedback.track(sent, sent, event("2"))
    assert statuses(response) == [pb.TRACK_STATUS_ANONYMIZED, DUPLICATE, DROPPED]
    (row,) = await feedback.pool.fetch("SELECT * FROM events WHERE type LIKE '%BehaviorRecorded'")
    assert (row["subject_id"], row["key_id"], row["traceparent"]) == ("", None, "")
    assert feedback_events_pb2.BehaviorRecorded.FromString(row["payload"]) == feedback_events_pb2.BehaviorRecorded(
        type="read", item_ids=["7"]
    )
    assert not any("canary" in str(value) or member("ann") in str(value) for value in row.values())
    # The person changes their mind and the backend sends it again: it is the same event.
    feedback.consent.refused.clear()
    again = await feedback.track(sent, event("2"))
    assert statuses(again) == [DUPLICATE, ACCEPTED]
    events, withheld = await feedback.replay(pb.REPLAY_KIND_BEHAVIOR, purpose="measurement")
    assert ([one.behavior.type for one in events], withheld) == (["read", "click"], 0)


async def test_signals_of_an_event_reach_consent(feedback: Feedback) -> None:
    """As they came, with the question about their own event; an event without any asks with none."""
    signals = ConsentSignals(gpc="1", tc_string="x", jurisdiction="eu", do_not_personalize=True)
    response = await feedback.track(event("1", consent_signals=signals), event("2"))
    assert statuses(response) == [DROPPED, ACCEPTED]
    asked = [query.signals for query in feedback.consent.queries]
    assert sorted(one.gpc for one in asked) == ["", "1"]
    assert signals in asked
