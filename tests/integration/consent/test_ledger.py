"""The ledger over gRPC and Postgres: what a caller sees and what is kept."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import consent_service_pb2 as pb
from comity.identity.v1 import identity_service_pb2 as identity_pb

from services.chassis.clock import SystemClock
from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN
from services.chassis.eventstore import PostgresEventStore
from services.chassis.status import from_call_error
from services.consent import wire
from services.consent.domain.ledger import fold
from services.consent.store import ledger
from services.consent.store.policies import PostgresPolicies
from tests.integration.consent.conftest import DRAIN_S

ALICE, BOB = "a" * 26, "b" * 26


def who(subject_id: str) -> common_pb.SubjectRef:
    return common_pb.SubjectRef(subject_id=subject_id)


def known_as(*presented: str) -> common_pb.SubjectRef:
    pairs = [one.split(":") for one in presented]
    return common_pb.SubjectRef(identities=[common_pb.Identity(namespace=name, value=value) for name, value in pairs])


def member(subject_id: str) -> list[common_pb.Member]:
    return [common_pb.Member(subject_id=subject_id)]


async def refusal(call: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call_error(caught.value)


async def test_what_was_granted_is_allowed_and_nothing_else(consent: Any) -> None:
    """Per person and purpose; an answer of another person or to another purpose counts for nothing."""
    recorded = await consent.record("r1", who(ALICE), ads="GRANTED", measurement="DENIED")
    assert (recorded.subject_id, recorded.consent_version) == (ALICE, 2)
    assert await consent.states(member(ALICE), "ads", "measurement", "undeclared") == [
        "GRANTED",
        "DENIED",
        "UNSPECIFIED",
    ]
    assert await consent.states(member(BOB), "ads") == ["UNSPECIFIED"]


async def test_a_batch_is_one_query_and_answers_in_order(consent: Any) -> None:
    """Verdicts of many people come from one statement, hence one snapshot."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    await consent.evaluate(member(ALICE), "ads")
    asked: list[str] = []
    for holder in consent.read_pool._holders:
        if holder._con is not None:
            holder._con.add_query_logger(lambda record: asked.append(record.query))
    queries = [pb.EvaluateQuery(members=member(name * 26), purposes=["ads"]) for name in "bacda"]
    response = await consent.service.Evaluate(pb.EvaluateRequest(queries=queries), timeout=10)
    assert [one.verdicts[0].allowed for one in response.evaluations] == [False, True, False, False, True]
    assert [one.consent_version for one in response.evaluations] == [0, 1, 0, 0, 1]
    assert asked == [ledger.STANDINGS_SQL]


async def test_verdicts_say_how_long_a_decide_revoke_waits_for(consent: Any) -> None:
    """And so does consent when it is asked for nothing else: a Decide that may take longer must not use them."""
    query = pb.EvaluateQuery(members=member(ALICE), purposes=["ads"])
    response = await consent.service.Evaluate(pb.EvaluateRequest(queries=[query]), timeout=10)
    described = await consent.service.DescribeConsent(pb.DescribeConsentRequest(), timeout=10)
    assert response.decide_budget_ms == described.decide_budget_ms == int(DRAIN_S * 1000)


async def test_declared_purposes_are_named_where_they_are_asked_for(consent: Any) -> None:
    """Whoever waits for consent every moment does not ask, and costs no read."""
    named, plain = [
        (await consent.service.DescribeConsent(pb.DescribeConsentRequest(with_purposes=asked), timeout=10)).purposes
        for asked in (True, False)
    ]
    assert {"ads", "measurement"} <= set(named)
    assert list(plain) == []


async def test_all_answers_are_recorded_or_none(consent: Any) -> None:
    """One that is wrong refuses the others too, and names the purposes there are."""
    error = await refusal(consent.record("r1", who(ALICE), ads="GRANTED", fun="GRANTED"))
    assert (error.kind, error.reason) == (Kind.INVALID, "PURPOSE_UNKNOWN")
    assert error.problems[0].field == "answers[1].purpose"
    assert "ads, measurement" in error.message
    assert (await consent.evaluate(member(ALICE), "ads")).consent_version == 0
    # The request id was not used up.
    assert (await consent.record("r1", who(ALICE), ads="GRANTED")).consent_version == 1


async def test_a_retry_is_answered_and_another_command_refused(consent: Any) -> None:
    """The same request id appends once, whatever came in between."""
    first = await consent.record("r1", who(ALICE), ads="GRANTED")
    revoked = await consent.revoke("r2", who(ALICE))
    assert await consent.record("r1", who(ALICE), ads="GRANTED") == first
    assert await consent.states(member(ALICE), "ads") == ["REVOKED"]
    assert await consent.revoke("r2", who(ALICE)) == revoked
    assert list(revoked.purposes) == ["ads", "measurement"]
    for other in (
        consent.record("r1", who(ALICE), ads="DENIED"),
        consent.revoke("r1", who(ALICE)),
    ):
        error = await refusal(other)
        assert (error.kind, error.reason) == (Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert await consent.pool.fetchval("SELECT count(*) FROM events WHERE stream_id <> 'policy'") == 3


async def test_a_question_without_purposes_is_about_all_of_the_site(consent: Any) -> None:
    """Whoever only asks whether somebody has refused anything need not know what there is to refuse."""
    await consent.record("r1", who(ALICE), measurement="DENIED")
    verdicts = (await consent.evaluate(member(ALICE))).verdicts
    assert [(one.purpose, one.state) for one in verdicts] == [
        ("ads", pb.CONSENT_STATE_UNSPECIFIED),
        ("measurement", pb.CONSENT_STATE_DENIED),
    ]


async def test_a_request_id_is_its_persons_own(consent: Any) -> None:
    """Whoever numbers requests by person meets nobody else: each is recorded, and each retry is answered, once."""
    for _ in range(2):
        for person, state in ((ALICE, "GRANTED"), (BOB, "DENIED")):
            recorded = await consent.record("r1", who(person), ads=state)
            assert (recorded.subject_id, recorded.consent_version) == (person, 1)
            assert (await consent.revoke("r2", who(person), "measurement")).consent_version == 2
    assert await consent.states(member(ALICE), "ads") == ["GRANTED"]
    assert await consent.states(member(BOB), "ads") == ["DENIED"]
    for person in (ALICE, BOB):
        assert (await refusal(consent.record("r1", who(person), ads="OBJECTED"))).reason == "REQUEST_ID_REUSED"


async def test_one_request_id_of_many_people_at_once_is_each_persons_own(consent: Any) -> None:
    """They race for the id in the log, and none loses its answer."""
    people = [letter * 26 for letter in "abcdefgh"]
    for _ in range(2):
        recorded = await asyncio.gather(*(consent.record("r1", who(one), ads="GRANTED") for one in people))
        assert [(one.subject_id, one.consent_version) for one in recorded] == [(one, 1) for one in people]


async def test_a_retry_is_answered_after_its_expiry(consent: Any) -> None:
    """What was valid when it was recorded is not refused when the caller asks again."""
    with consent.an_hour_ago() as expires_at:
        first = await consent.record("r1", who(ALICE), expires_at=expires_at, ads="GRANTED")
    assert await consent.states(member(ALICE), "ads") == ["EXPIRED"]
    assert await consent.record("r1", who(ALICE), expires_at=expires_at, ads="GRANTED") == first
    assert (await refusal(consent.record("r2", who(ALICE), expires_at=expires_at, ads="GRANTED"))).reason == (
        "EXPIRES_IN_PAST"
    )


async def test_a_revocation_of_what_was_never_granted_is_a_fact(consent: Any) -> None:
    """It is in the ledger, and an older grant that is imported later does not count."""
    revoked = await consent.revoke("r1", who(ALICE), "ads")
    assert (revoked.consent_version, list(revoked.purposes)) == (1, ["ads"])
    request = pb.RecordRequest(
        request_id="r2",
        subject=who(ALICE),
        answers=[pb.PurposeAnswer(purpose="ads", state=pb.CONSENT_STATE_GRANTED)],
        mechanism="import",
    )
    request.collected_at.FromDatetime(datetime.now(UTC) - timedelta(days=30))
    assert (await consent.service.Record(request, timeout=10)).consent_version == 2
    assert await consent.states(member(ALICE), "ads") == ["REVOKED"]
    assert (await consent.evaluate(member(ALICE), "ads")).consent_version == 2


async def test_revoke_waits_until_every_decide_before_it_has_ended(consent: Any) -> None:
    """The longest Decide budget passes between the commit and the answer, also for a retry."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    consent.pauses.gate = asyncio.Event()
    call = asyncio.ensure_future(consent.revoke("r2", who(ALICE), "ads"))
    async with asyncio.timeout(50):
        await consent.pauses.began.wait()
    assert await consent.states(member(ALICE), "ads") == ["REVOKED"]
    assert not call.done()
    consent.pauses.gate.set()
    await call
    await consent.revoke("r2", who(ALICE), "ads")
    assert consent.pauses.asked_s == [0.05, 0.05]


async def test_commands_of_one_person_at_once_are_one_after_the_other(consent: Any) -> None:
    """Every answer has a version of its own and commit order is version order, so that followers see the same end."""
    await asyncio.gather(
        *(consent.record(f"r{n}", who(ALICE), ads=("GRANTED", "DENIED")[n % 2]) for n in range(12)),
        *(consent.revoke(f"v{n}", who(ALICE), "ads", "measurement") for n in range(6)),
    )
    log = await PostgresEventStore(consent.pool).read_log(ORIGIN, limit=1000)
    versions = [event.version for event in log if event.stream_id == f"consent-{ALICE}"]
    assert versions == list(range(1, 25))


async def test_what_stands_is_the_fold_of_the_log(consent: Any) -> None:
    """Rebuilt from the facts, the state table is the same to the last column."""
    soon = datetime.now(UTC) + timedelta(days=1)
    for n, subject in enumerate((ALICE, BOB)):
        await consent.record(f"a{n}", who(subject), expires_at=soon, ads="GRANTED", measurement="OBJECTED")
        await consent.revoke(f"b{n}", who(subject), "ads")
        await consent.record(f"c{n}", who(subject), measurement="GRANTED")
    log = await PostgresEventStore(consent.pool).read_log(ORIGIN, limit=1000)
    rows = await consent.pool.fetch(ledger.STANDINGS_SQL, [ALICE, BOB])
    kept = ledger._standings(rows)
    for subject in (ALICE, BOB):
        facts = [wire.decode_answer(event) for event in log if event.stream_id == f"consent-{subject}"]
        assert fold(facts) == kept[subject]


async def test_never_expiring_is_a_value(consent: Any) -> None:
    """Consent without an end has the end of time, and its history says no time."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    assert await consent.pool.fetchval("SELECT expires_at = 'infinity' FROM consent_state")


async def test_bad_requests_name_the_field_and_the_remedy(consent: Any) -> None:
    """Nobody or two meant, an answer from the future, a state that is not an answer."""
    nobody = await refusal(consent.record("r1", common_pb.SubjectRef(), ads="GRANTED"))
    assert (nobody.kind, nobody.problems[0].field) == (Kind.INVALID, "subject")
    request = pb.RecordRequest(
        request_id="r1",
        subject=who(ALICE),
        answers=[pb.PurposeAnswer(purpose="ads", state=pb.CONSENT_STATE_REVOKED)],
    )
    request.collected_at.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    wrong = await refusal(consent.service.Record(request, timeout=10))
    assert [one.field for one in wrong.problems] == ["answers[0].state", "collected_at"]
    assert (await refusal(consent.revoke("r1", who(ALICE), "fun"))).reason == "PURPOSE_UNKNOWN"


async def test_without_identity_pseudonyms_still_work(consent: Any) -> None:
    """Consent can be given and taken back by subject_id; who somebody is cannot be told, and is not guessed."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    await consent.revoke("r2", who(ALICE))
    assert await consent.states(member(ALICE), "ads") == ["REVOKED"]
    for call in (
        consent.record("r3", known_as("user_id:1"), ads="GRANTED"),
        consent.revoke("r4", known_as("user_id:1")),
        consent.service.History(pb.HistoryRequest(subject=who(ALICE)), timeout=10),
    ):
        error = await refusal(call)
        assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "IDENTITY_UNAVAILABLE")


async def test_consent_follows_a_person_through_merge_and_unmerge(stitched: Any) -> None:
    """Restrictive at the merge, the latest word after it, and each side's own after the link is taken back."""
    identity, consent = stitched

    async def members(*presented: str) -> list[common_pb.Member]:
        query = identity_pb.ResolveQuery(identities=known_as(*presented).identities)
        response = await identity.Resolve(identity_pb.ResolveRequest(queries=[query]), timeout=10)
        return list(response.subjects[0].members)

    anonymous, user = "anonymous_id:a", "user_id:1"
    await consent.record("r1", known_as(anonymous), ads="DENIED", measurement="GRANTED")
    await consent.record("r2", known_as(user, anonymous), ads="GRANTED", identity_linking="GRANTED")
    assert await consent.states(await members(user), "ads", "measurement") == ["GRANTED", "UNSPECIFIED"]
    request = identity_pb.LinkRequest(request_id="l1", identities=known_as(anonymous, user).identities)
    linked = await identity.Link(request, timeout=10)
    assert await consent.states(await members(user), "ads", "measurement") == ["DENIED", "GRANTED"]
    recorded = await consent.record("r3", known_as(user), ads="GRANTED")
    assert recorded.subject_id == linked.subject.subject_id
    assert await consent.states(await members(anonymous), "ads") == ["GRANTED"]
    history = await consent.service.History(pb.HistoryRequest(subject=known_as(anonymous)), timeout=10)
    assert [(one.purpose, one.state) for one in history.records] == [
        ("ads", pb.CONSENT_STATE_DENIED),
        ("measurement", pb.CONSENT_STATE_GRANTED),
        ("ads", pb.CONSENT_STATE_GRANTED),
        ("identity_linking", pb.CONSENT_STATE_GRANTED),
        ("ads", pb.CONSENT_STATE_GRANTED),
    ]
    assert len({one.subject_id for one in history.records}) == 2
    assert history.records[0].mechanism == "banner"
    assert not history.records[0].HasField("expires_at")
    await identity.Unlink(identity_pb.UnlinkRequest(request_id="l2", link_id=linked.link_id), timeout=10)
    assert await consent.states(await members(anonymous), "ads", "measurement") == ["DENIED", "GRANTED"]
    assert await consent.states(await members(user), "ads", "measurement") == ["GRANTED", "UNSPECIFIED"]


async def test_nobody_answers_for_a_person_by_a_fingerprint(stitched: Any) -> None:
    """It was linked with the person's consent, and still it neither records their answers nor reads them."""
    identity, consent = stitched
    allowed = {"identity_linking": "GRANTED", "device_recognition": "GRANTED"}
    await consent.publish("device_recognition")
    await consent.record("r1", known_as("anonymous_id:a"), **allowed)
    names = known_as("anonymous_id:a", "device_fingerprint:f").identities
    await identity.Link(identity_pb.LinkRequest(request_id="l1", identities=names), timeout=10)
    for call in (
        consent.record("r2", known_as("device_fingerprint:f"), ads="GRANTED"),
        consent.service.History(pb.HistoryRequest(subject=known_as("device_fingerprint:f")), timeout=10),
    ):
        error = await refusal(call)
        assert (error.kind, error.problems[0].field) == (Kind.INVALID, "subject")
        assert "identity of their own" in error.message


async def test_nobody_is_linked_against_their_consent(stitched: Any) -> None:
    """With the real ledger: unasked is no, one side's yes is enough, a no or a revocation of either side is a no."""
    identity, consent = stitched

    async def link(request_id: str, *presented: str) -> identity_pb.LinkResponse:
        request = identity_pb.LinkRequest(request_id=request_id, identities=known_as(*presented).identities)
        response: identity_pb.LinkResponse = await identity.Link(request, timeout=10)
        return response

    assert (await refusal(link("l1", "anonymous_id:a", "user_id:1"))).reason == "IDENTITY_LINKING_NOT_ALLOWED"
    await consent.record("r1", known_as("anonymous_id:a"), identity_linking="DENIED")
    await consent.record("r2", known_as("user_id:1"), identity_linking="GRANTED")
    assert (await refusal(link("l1", "anonymous_id:a", "user_id:1"))).reason == "IDENTITY_LINKING_NOT_ALLOWED"
    assert (await link("l2", "anonymous_id:b", "user_id:1")).merged
    await consent.revoke("r3", known_as("user_id:1"), "identity_linking")
    assert (await refusal(link("l3", "anonymous_id:c", "user_id:1"))).reason == "IDENTITY_LINKING_NOT_ALLOWED"
    # What was made before is answered as it was.
    assert (await link("l2", "anonymous_id:b", "user_id:1")).merged


async def test_identities_that_contradict_each_other_record_nothing(stitched: Any) -> None:
    """Identity's refusal reaches the caller as one of the field."""
    _, consent = stitched
    error = await refusal(consent.record("r1", known_as("user_id:canary1", "user_id:canary2"), ads="GRANTED"))
    assert (error.kind, error.problems[0].field) == (Kind.INVALID, "subject")
    assert "canary" not in error.message


async def test_purposes_are_published_whole_and_stay(consent: Any) -> None:
    """The version is the content's; validating writes nothing; a refused set changes nothing."""
    before = await consent.publish("ads", "measurement")
    assert await consent.publish("measurement", "ads", validate_only=True) == before
    planned = await consent.publish("fun", validate_only=True)
    assert (await consent.evaluate(member(ALICE), "ads")).consent_version == 0
    assert await consent.pool.fetchval("SELECT policy_version FROM active_policy") == before
    assert await consent.publish("fun") == planned != before
    assert (await refusal(consent.publish("ads:1", "fun:1:legitimate_interest"))).reason == "PURPOSES_INVALID"
    # What was not published again is still there.
    await consent.record("r1", who(ALICE), ads="GRANTED", fun="GRANTED")
    assert await consent.pool.fetchval("SELECT count(*) FROM events WHERE stream_id = 'policy'") == 2


async def test_a_changed_purpose_asks_again_on_every_replica(consent: Any, consent_over: Callable[..., Any]) -> None:
    """Another process that knew the old version uses the new one from the next read on."""
    other = await consent_over(url=consent.url)
    await consent.record("r1", who(ALICE), ads="GRANTED")
    assert await other.states(member(ALICE), "ads") == ["GRANTED"]
    await consent.publish("ads:2")
    assert await other.states(member(ALICE), "ads") == ["UNSPECIFIED"]
    await other.record("r2", who(ALICE), ads="GRANTED")
    assert await consent.states(member(ALICE), "ads") == ["GRANTED"]


async def test_publishing_at_once_loses_no_purpose(consent: Any) -> None:
    """Each publisher adds to what is there."""
    await asyncio.gather(*(consent.publish(f"p{n}") for n in range(6)))
    assert await consent.states(member(ALICE), *(f"p{n}" for n in range(6))) == ["UNSPECIFIED"] * 6
    await consent.record("r1", who(ALICE), **{f"p{n}": "GRANTED" for n in range(6)}, ads="GRANTED")


async def test_a_legitimate_interest_is_allowed_until_somebody_objects(consent: Any) -> None:
    """Unasked it is allowed; an objection holds, also when the purpose changes."""
    await consent.publish("security:1:legitimate_interest")
    assert await consent.states(member(ALICE), "security") == ["allowed UNSPECIFIED"]
    await consent.record("r1", who(ALICE), security="OBJECTED")
    assert await consent.states(member(ALICE), "security") == ["OBJECTED"]
    await consent.publish("security:2:legitimate_interest")
    assert await consent.states(member(ALICE), "security") == ["OBJECTED"]


async def test_who_reads_a_history_leaves_a_fact(stitched: Any) -> None:
    """The read is recorded before the answers are handed out, also of a caller that does not say who it is."""
    _, consent = stitched
    await consent.record("r1", who(ALICE), ads="GRANTED")
    for access in (common_pb.Access(accessor="officer", reason="a complaint"), None):
        await consent.service.History(pb.HistoryRequest(subject=who(ALICE), access=access), timeout=5)
    events = await PostgresEventStore(consent.pool).read_stream(f"access-{ALICE}")
    facts = [holdings_pb.PersonalDataAccessed.FromString(bytes(event.payload)) for event in events]  # type: ignore[arg-type]  # plain
    assert [fact.access.accessor for fact in facts] == ["officer", "unstated"]


async def test_rows_that_cannot_be_read_cost_nobody_else_an_answer(consent: Any) -> None:
    """A state that a newer release wrote allows nothing; a fact that is none is left out of a history and put aside."""
    await consent.record("r1", who(ALICE), ads="GRANTED", measurement="GRANTED")
    await consent.record("r2", who(BOB), ads="GRANTED")
    # As the migration of a release that knows more states would.
    await consent.pool.execute("ALTER TABLE consent_state DROP CONSTRAINT consent_state_state_check")
    await consent.pool.execute("UPDATE consent_state SET state = 99 WHERE member_id = $1 AND purpose = 'ads'", ALICE)
    both = await consent.states([*member(ALICE)], "ads", "measurement")
    assert both == ["DENIED", "GRANTED"]
    assert await consent.states(member(BOB), "ads") == ["GRANTED"]
    await consent.pool.execute(
        "INSERT INTO events (epoch, event_id, stream_id, version, type, subject_id, occurred_at, payload, traceparent) "
        "SELECT epoch, gen_random_uuid(), stream_id, 99, type, subject_id, now(), 'no fact', '' FROM events "
        "WHERE subject_id = $1 LIMIT 1",
        ALICE,
    )
    reader = ledger.PostgresLedger(consent.pool, consent.read_pool, PostgresPolicies(consent.pool, SystemClock()))
    assert len(await reader.history([ALICE], limit=10)) == 2
    assert await consent.pool.fetchval("SELECT count(*) FROM dead_letters WHERE consumer = 'history'") == 1
