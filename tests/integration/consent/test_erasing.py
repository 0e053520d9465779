"""Erasures over a real ledger: refused where they must be, done once, and done whatever fails in between."""

import asyncio
import json
from typing import Any

import grpc
import pytest
from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import consent_events_pb2 as events_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.consent.v1 import privacy_service_pb2 as pb
from comity.feedback.v1 import feedback_events_pb2 as feedback_pb
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.chassis.dead_letters import Letter, put_aside
from services.chassis.erasure import Erasure
from services.chassis.erasure import Step as SharedStep
from services.chassis.errors import Kind, ServiceError
from services.chassis.eventstore import PostgresEventStore
from services.chassis.settings import ServiceSettings
from services.chassis.status import from_call_error
from services.consent.domain.erasure import SERVICES, Step
from services.consent.store.holdings import ConsentHoldings
from tests.integration.consent.rights_world import KilledError, rights_over

ALICE, BOB, CAROL = "a" * 26, "b" * 26, "c" * 26
OTHERS = tuple(name for name in SERVICES if name != "consent")


def who(subject_id: str) -> common_pb.SubjectRef:
    return common_pb.SubjectRef(subject_id=subject_id)


async def refusal(call: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_call_error(caught.value)


async def to_the_end(rights: Any, erasure_id: str, *, rounds_max: int = 200) -> pb.GetErasureResponse:
    """Work until the erasure is done; workers that are killed are replaced by ones that know nothing."""
    for _ in range(rounds_max):
        status = await rights.status(erasure_id)
        if status.state == pb.ERASURE_STATE_COMPLETED:
            return status  # type: ignore[no-any-return]
        try:
            await rights.worker().step()
        except KilledError:
            continue
    raise AssertionError("the erasure does not end")


@pytest.fixture
async def alice(consent: Any, rights: Any) -> None:
    """Two members that are one person, of whom something is held everywhere; Bob is somebody else."""
    rights.identity.members |= {ALICE: (ALICE, CAROL), CAROL: (ALICE, CAROL)}
    await consent.record("r1", who(ALICE), ads="GRANTED", measurement="GRANTED")
    await consent.record("r2", who(CAROL), ads="GRANTED")
    await consent.record("r3", who(BOB), ads="GRANTED")
    for service in rights.services.values():
        service.held |= {ALICE: 2, CAROL: 3, BOB: 1}


async def test_a_call_about_a_placeholder_is_refused_and_not_taken_for_nobody(
    stitched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every right and every answer: who is erased or exported as "undefined" would take everybody's for their own."""
    _, consent = stitched
    nobody = common_pb.SubjectRef(identities=[common_pb.Identity(namespace="user_id", value="undefined")])
    access = common_pb.Access(accessor="officer", reason="asked for it")
    answers = [consent_pb.PurposeAnswer(purpose="ads", state=consent_pb.CONSENT_STATE_GRANTED)]
    value = feedback_pb.PropertyValue(boolean_value=True)
    ledger, timeout = consent.service, 10
    settings = ServiceSettings(database_url=consent.url, nats_url="", drain_s=0.0)
    async with rights_over(consent, settings) as rights:
        # As the service itself asks identity.
        monkeypatch.setattr(rights.identity, "person", consent.handlers._identity.person)
        privacy = rights.privacy
        calls = {
            "Record": ledger.Record(consent_pb.RecordRequest(request_id="r", subject=nobody, answers=answers)),
            "Revoke": ledger.Revoke(consent_pb.RevokeRequest(request_id="r", subject=nobody)),
            "History": ledger.History(consent_pb.HistoryRequest(subject=nobody, access=access)),
            "Erase": privacy.Erase(pb.EraseRequest(request_id="r", subject=nobody, access=access)),
            "Export": privacy.Export(pb.ExportRequest(subject=nobody, access=access)).read(),
            "GetReceipt": privacy.GetReceipt(pb.GetReceiptRequest(subject=nobody, consent_version=1, access=access)),
            "Rectify": privacy.Rectify(
                pb.RectifyRequest(
                    request_id="r", subject=nobody, type="click", property="p", value=value, access=access
                )
            ),
        }
        for name, call in calls.items():
            error = await refusal(asyncio.wait_for(call, timeout))
            assert (name, error.kind, error.reason) == (name, Kind.INVALID, "NOBODY_NAMED")
            assert "undefined, null" in error.message


@pytest.mark.usefixtures("alice")
async def test_a_request_id_erases_nobody_else_and_says_so(rights: Any) -> None:
    """Bob would pass for erased; whoever names Alice again gets the erasure that was begun, also when she is new."""
    erasure_id = await rights.erase(ALICE)
    assert await rights.erase(ALICE) == await rights.erase(CAROL) == erasure_id
    error = await refusal(rights.erase(BOB))
    assert (error.kind, error.reason) == (Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert "nothing of this person was erased" in error.message
    for name, reason in (("d" * 26, ""), (BOB, "REQUEST_ID_REUSED")):
        identity = common_pb.Identity(namespace="user_id", value=name)
        request = pb.EraseRequest(
            request_id="e1",
            subject=common_pb.SubjectRef(identities=[identity]),
            access=common_pb.Access(accessor="officer"),
        )
        if reason:
            assert (await refusal(rights.privacy.Erase(request, timeout=10))).reason == reason
        else:
            assert (await rights.privacy.Erase(request, timeout=10)).erasure_id == erasure_id


async def test_row_that_cannot_be_read_costs_no_other_its_export(consent: Any) -> None:
    """It is handed out as what it is, with the letter that it has; the letter goes with the person."""
    await consent.record("r1", who(ALICE), ads="GRANTED")
    await consent.record("r2", who(ALICE), measurement="GRANTED")
    await consent.pool.execute("ALTER TABLE events DISABLE TRIGGER events_append_only")
    await consent.pool.execute(
        "UPDATE events SET payload = '\\xff' WHERE stream_id = $1 AND version = 1", f"consent-{ALICE}"
    )
    await put_aside(consent.pool, [Letter("consent", "history", "BUG", subject_id=ALICE)])
    holdings = ConsentHoldings(consent.pool)
    broken, whole, letter = [record async for record in holdings.export([ALICE])]
    assert broken.content["unreadable"] == "UNREADABLE"
    assert whole.content["purpose"] == "measurement"
    assert (letter.name, letter.content["reason"]) == ("dead_letters", "BUG")
    await holdings.erase(SharedStep.DELETE, Erasure("e1", (ALICE,)))
    assert [record.name async for record in holdings.export([ALICE])] == ["events", "events"]


@pytest.mark.usefixtures("alice")
async def test_from_erase_on_nothing_is_allowed_and_nothing_recorded(consent: Any, rights: Any) -> None:
    """When Erase has returned every member is closed everywhere, before any worker has done anything."""
    erasure_id = await rights.erase(ALICE)
    assert consent.pauses.asked_s == [0.05]
    for member_id in (ALICE, CAROL):
        verdicts = (await consent.evaluate([common_pb.Member(subject_id=member_id)], "ads", "measurement")).verdicts
        assert not any(verdict.allowed for verdict in verdicts)
    # Also for what is declared later, on whatever legal basis, and whatever the request itself says.
    await consent.publish("security:1:legitimate_interest")
    query = consent_pb.EvaluateQuery(
        members=[common_pb.Member(subject_id=BOB), common_pb.Member(subject_id=ALICE)], purposes=["security"]
    )
    response = await consent.service.Evaluate(consent_pb.EvaluateRequest(queries=[query]), timeout=5)
    assert not response.evaluations[0].verdicts[0].allowed
    for call in (consent.record("r4", who(CAROL), ads="GRANTED"), consent.revoke("v1", who(ALICE), "ads")):
        assert (await refusal(call)).reason == "SUBJECT_ERASED"
    assert await consent.states([common_pb.Member(subject_id=BOB)], "ads") == ["GRANTED"]
    assert all(service.taken == [Step.SUPPRESS] for service in rights.services.values())
    assert rights.woken.is_set()
    assert (await rights.status(erasure_id)).state == pb.ERASURE_STATE_RUNNING


@pytest.mark.usefixtures("alice")
async def test_a_whole_erasure_takes_its_steps_in_order_and_signs_what_went(consent: Any, rights: Any) -> None:
    """Every service takes every step, each after all took the one before; the receipt has the counts and verifies."""
    erasure_id = await rights.erase(ALICE)
    status = await to_the_end(rights, erasure_id)
    assert all(service.taken == list(Step) for service in rights.services.values())
    assert all(service.held == {BOB: 1} for service in rights.services.values())
    Ed25519PublicKey.from_public_bytes(status.public_key).verify(status.signature, status.receipt)
    receipt = json.loads(status.receipt)
    assert receipt["pii_principal_ids"] == [ALICE, CAROL]
    deleted = {one["service"]: one["counts"] for one in receipt["steps"] if one["step"] == "DELETE"}
    assert deleted["features"] == [{"store": "postgres", "name": "rows", "count": 5}]
    assert set(receipt["gone_from"]) >= {"streams", "logs", "traces", "backups", "models"}
    events = await PostgresEventStore(consent.pool).read_stream(f"erasure-{erasure_id}")
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds == ["ErasureRequested", *["ErasureStepTaken"] * 20, "ErasureCompleted"]
    assert isinstance(events[0].payload, bytes)
    requested = events_pb.ErasureRequested.FromString(events[0].payload)
    assert (requested.requested_by, list(requested.member_ids)) == ("officer", [ALICE, CAROL])


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("how", ["fails", "dies"])
@pytest.mark.usefixtures("alice")
async def test_whatever_fails_at_any_step_it_is_taken_to_the_end_once(rights: Any, step: Step, how: str) -> None:
    """Each service in turn fails before its effect, or the worker is killed after it: the counts are still true."""
    erasure_id = await rights.erase(ALICE)
    for name in OTHERS:
        if step is Step.SUPPRESS:
            # Erase itself takes the first step; as though it had not reached the service.
            rights.services[name].gone.clear()
            rights.services[name].taken.clear()
        if how == "fails":
            rights.services[name].fails[step] = 1
        else:
            rights.services[name].dies_after.add(step)
    if step is Step.SUPPRESS:
        await _forget_steps(rights)
    status = await to_the_end(rights, erasure_id)
    counts = {
        (one.service, int(one.step)): one.counts[0].count
        for one in status.steps
        if one.service in OTHERS and one.counts
    }
    assert all(counts[name, Step.DELETE] == 5 for name in OTHERS)
    assert all(service.taken == list(Step) for service in rights.services.values())


async def _forget_steps(rights: Any) -> None:
    async with rights.ports.erasures._pool.acquire() as connection:
        await connection.execute("DELETE FROM erasure_steps")


@pytest.mark.usefixtures("alice")
async def test_a_service_that_is_away_is_waited_for_and_named(consent: Any, rights: Any) -> None:
    """Erase returns without it; the step after is begun by nobody; its return is all that is needed."""
    rights.services["features"].down = True
    erasure_id = await rights.erase(ALICE)
    await rights.worker().step()
    waiting = [(one.service, one.waiting_for) for one in (await rights.status(erasure_id)).steps if one.waiting_for]
    assert waiting == [("features", "PARTICIPANT_UNAVAILABLE")]
    assert rights.services["decision"].taken == [Step.SUPPRESS]
    rights.services["features"].down = False
    status = await to_the_end(rights, erasure_id)
    assert not any(one.waiting_for for one in status.steps)


@pytest.mark.usefixtures("alice")
async def test_a_worker_waits_longer_after_each_failure(rights: Any) -> None:
    """A service that stays away is not asked in a loop."""
    rights.services["features"].down = True
    await rights.erase(ALICE)
    worker = rights.worker()
    before = rights.services["features"].calls
    for _ in range(20):
        await worker.step()
    assert rights.services["features"].calls == before + 1


@pytest.mark.usefixtures("alice")
async def test_two_erasures_of_one_person(rights: Any) -> None:
    """The same request is the same erasure, also at once; another one is refused and told which runs."""
    first, again = await asyncio.gather(rights.erase(ALICE, "e1"), rights.erase(CAROL, "e1"))
    assert first == again == await rights.erase(ALICE, "e1")
    error = await refusal(rights.erase(CAROL, "e2"))
    assert (error.kind, error.reason) == (Kind.FAILED_PRECONDITION, "ERASURE_RUNNING")
    assert first in error.message
    await to_the_end(rights, first)
    assert (await refusal(rights.erase(CAROL, "e3"))).reason == "SUBJECT_ERASED"
    assert await rights.erase(ALICE, "e1") == first


@pytest.mark.usefixtures("alice")
async def test_erasures_at_once_of_one_person_are_one(rights: Any) -> None:
    """Of many requests one begins, the others hear so."""
    results = await asyncio.gather(*(rights.erase(ALICE, f"e{n}") for n in range(8)), return_exceptions=True)
    begun = [one for one in results if isinstance(one, str)]
    refused = [from_call_error(one).reason for one in results if isinstance(one, grpc.aio.AioRpcError)]
    assert len(begun) == 1
    assert refused == ["ERASURE_RUNNING"] * 7


async def test_nobody_cannot_be_erased(rights: Any) -> None:
    """A person of whom no service holds anything is not put on any list; an unknown erasure is not one."""
    error = await refusal(rights.erase("d" * 26))
    assert (error.kind, error.reason) == (Kind.NOT_FOUND, "NOTHING_HELD")
    assert not any(service.taken for service in rights.services.values())
    assert (await refusal(rights.status("nothing"))).reason == "ERASURE_UNKNOWN"


async def test_what_only_one_service_holds_can_be_erased(rights: Any) -> None:
    """Somebody who never answered anything can still be forgotten."""
    rights.services["feedback"].held[BOB] = 4
    status = await to_the_end(rights, await rights.erase(BOB))
    assert status.state == pb.ERASURE_STATE_COMPLETED


@pytest.mark.usefixtures("alice")
async def test_an_export_is_the_whole_or_fails(rights: Any) -> None:
    """Every service's records with its name; a service that is away fails it, and so does an erasure."""
    held = await rights.export(CAROL)
    assert [one for one in held if one[0] != "consent"] == [(name, "row") for name in OTHERS for _ in range(5)]
    assert held.count(("consent", "ConsentGranted")) == 3
    # That it was read is a fact, recorded before anything was handed out.
    assert ("consent", "PersonalDataAccessed") in held
    rights.services["decision"].down = True
    error = await refusal(rights.export(ALICE))
    assert error.kind is Kind.UNAVAILABLE
    assert "decision" in error.message
    rights.services["decision"].down = False
    await rights.erase(ALICE)
    assert (await refusal(rights.export(ALICE))).reason == "ERASURE_RUNNING"


@pytest.mark.usefixtures("alice")
async def test_what_is_recorded_is_put_right_for_the_whole_person(rights: Any) -> None:
    """Feedback is asked for all members; while the person is being erased there is nothing to put right."""
    request = pb.RectifyRequest(
        request_id="x1", subject=who(CAROL), type="view", property="city", access=common_pb.Access(accessor="officer")
    )
    request.value.string_value = "Bern"
    assert (await rights.privacy.Rectify(request, timeout=5)).count == 3
    assert rights.rectifier.asked[0][0] == (ALICE, CAROL)
    await rights.erase(ALICE)
    assert (await refusal(rights.privacy.Rectify(request, timeout=5))).reason == "ERASURE_RUNNING"


async def test_the_record_of_processing_is_of_all_services_or_none(rights: Any) -> None:
    """Each service is named with what it keeps; one that is away fails the whole and is named."""
    response = await rights.privacy.Inventory(pb.InventoryRequest(), timeout=5)
    assert [one.service for one in response.services] == list(SERVICES)
    assert all(one.holdings for one in response.services)
    rights.services["feedback"].down = True
    error = await refusal(rights.privacy.Inventory(pb.InventoryRequest(), timeout=5))
    assert "feedback" in error.message


@pytest.mark.usefixtures("alice")
async def test_the_ledger_of_erasures_is_read_in_order(rights: Any) -> None:
    """Running and completed, each once, whoever asks from where."""
    first = await rights.erase(ALICE, "e1")
    await to_the_end(rights, first)
    second = await rights.erase(BOB, "e2")
    listed = (await rights.privacy.ListErasures(pb.ListErasuresRequest(), timeout=5)).erasures
    assert [(one.erasure_id, list(one.member_ids)) for one in listed] == [(first, [ALICE, CAROL]), (second, [BOB])]
    rest = await rights.privacy.ListErasures(pb.ListErasuresRequest(after=listed[0].number), timeout=5)
    assert [one.erasure_id for one in rest.erasures] == [second]
