"""Consent and links through the client: typed, within the deadline, and nothing that a visitor brings raises."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.identity.v1 import identity_service_pb2 as identity_pb
from comity_client import ComityClient, ConsentChange, ConsentSignals, InvalidRequestError
from google.protobuf.message import Message

from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.status import to_status
from tests.unit.client.test_client import dead_address

ANN = {"user_id": "ann"}
AT = datetime(2026, 11, 29, 12, tzinfo=UTC)
ACCESS: dict[str, Any] = {"accessor": "shop", "reason": "shown to the person"}
# Every call about people, by the method of the service that it reaches.
CALLS: dict[str, Callable[[ComityClient, Any], Awaitable[Any]]] = {
    "Record": lambda comity, who: comity.consent.record(identities=who, answers={"ads": True}),
    "Revoke": lambda comity, who: comity.consent.revoke(identities=who),
    "Record of object": lambda comity, who: comity.consent.object(identities=who),
    "History": lambda comity, who: comity.consent.history(identities=who, **ACCESS),
    "Link": lambda comity, who: comity.identify(identities=who),
}


class People:
    """Consent and identity: writes down what it is asked, and answers or refuses as it is told."""

    def __init__(self, answer: Message | None = None, *, refuses: ServiceError | None = None) -> None:
        self.answer = answer
        self.refuses = refuses
        self.requests: list[Any] = []

    async def take(self, request: Any, context: Any) -> Message:
        """Any method."""
        self.requests.append(request)
        if self.refuses is not None:
            await context.abort_with_status(to_status(self.refuses))
        assert self.answer is not None
        return self.answer


@asynccontextmanager
async def people(servicer: People) -> AsyncIterator[str]:
    """The address of both services."""
    server = grpc.aio.server()
    for module, service, names in (
        (consent_pb, "consent.v1.ConsentService", ("Record", "Revoke", "History")),
        (identity_pb, "identity.v1.IdentityService", ("Link",)),
    ):
        handlers: Any = {
            name: grpc.unary_unary_rpc_method_handler(
                servicer.take,
                request_deserializer=getattr(module, f"{name}Request").FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name in names
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"comity.{service}", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_an_answer_is_recorded_with_all_that_was_said() -> None:
    """True and False are GRANTED and DENIED; what the person was told travels with it."""
    consent = People(consent_pb.RecordResponse(subject_id="s", consent_version=2))
    async with people(consent) as address, ComityClient("unused:1", consent_address=address) as comity:
        changed = await comity.consent.record(
            identities=ANN | {"anonymous_id": None},
            answers={"ads": True, "measurement": False, "profile": "OBJECTED"},
            notice_version="n1",
            notice_language="en",
            mechanism="banner",
            collected_at=AT,
            expires_at=AT,
            jurisdiction="eu",
            request_id="r1",
        )
    assert changed == ConsentChange(request_id="r1", status="DONE", subject_id="s", consent_version=2)
    (request,) = consent.requests
    assert request.request_id == "r1"
    assert [(one.namespace, one.value) for one in request.subject.identities] == [("user_id", "ann")]
    assert {one.purpose: consent_pb.ConsentState.Name(one.state)[14:] for one in request.answers} == {
        "ads": "GRANTED",
        "measurement": "DENIED",
        "profile": "OBJECTED",
    }
    assert (request.notice_version, request.notice_language, request.mechanism) == ("n1", "en", "banner")
    assert (request.collected_at.ToDatetime(UTC), request.expires_at.ToDatetime(UTC)) == (AT, AT)
    assert (request.jurisdiction, request.do_not_personalize) == ("eu", False)


async def test_consent_is_taken_back_by_pseudonym_too() -> None:
    """That works while identity is away; without purposes it is all of the site."""
    consent = People(consent_pb.RevokeResponse(subject_id="s" * 26, consent_version=3, purposes=["ads"]))
    async with people(consent) as address, ComityClient(address) as comity:
        changed = await comity.consent.revoke(subject_id="s" * 26)
    assert (changed.status, changed.consent_version, changed.purposes) == ("DONE", 3, ("ads",))
    assert consent.requests == [
        consent_pb.RevokeRequest(request_id=changed.request_id, subject=types_pb.SubjectRef(subject_id="s" * 26))
    ]


@pytest.mark.parametrize("purposes", [(), ("ads",)])
async def test_an_objection_is_to_purposes_or_to_personalization_as_such(purposes: tuple[str, ...]) -> None:
    """Without purposes the person objects to every purpose that personalizes."""
    consent = People(consent_pb.RecordResponse(subject_id="s", consent_version=1))
    async with people(consent) as address, ComityClient(address) as comity:
        assert (await comity.consent.object(identities=ANN, purposes=purposes)).status == "DONE"
    (request,) = consent.requests
    assert request.do_not_personalize is (not purposes)
    objected = [(one.purpose, one.state) for one in request.answers]
    assert objected == [(one, consent_pb.CONSENT_STATE_OBJECTED) for one in purposes]


async def test_a_history_is_read_and_says_who_reads_it() -> None:
    """Words and aware times; what is not set is None."""
    record = consent_pb.ConsentRecord(purpose="ads", state=consent_pb.CONSENT_STATE_GRANTED, consent_version=1)
    record.recorded_at.FromDatetime(AT)
    consent = People(consent_pb.HistoryResponse(records=[record]))
    async with people(consent) as address, ComityClient(address) as comity:
        history = await comity.consent.history(identities=ANN, **ACCESS)
    (only,) = history.records
    assert (history.status, only.purpose, only.state, only.recorded_at, only.expires_at) == (
        "DONE",
        "ads",
        "GRANTED",
        AT,
        None,
    )
    assert consent.requests[0].access == types_pb.Access(**ACCESS)


async def test_a_login_is_linked_with_its_signals() -> None:
    """The visitor that the person was becomes part of them, if they agreed."""
    identity = People(
        identity_pb.LinkResponse(subject=identity_pb.ResolvedSubject(subject_id="s"), merged=True, link_id="l1")
    )
    async with people(identity) as address, ComityClient("unused:1", identity_address=address) as comity:
        linked = await comity.identify(
            identities=ANN | {"anonymous_id": "c1"}, consent_signals=ConsentSignals(gpc="1"), request_id="r1"
        )
    assert (linked.status, linked.merged, linked.link_id, linked.subject_id) == ("DONE", True, "l1", "s")
    (request,) = identity.requests
    assert (request.request_id, len(request.identities), request.consent_signals.gpc) == ("r1", 2, "1")


@pytest.mark.parametrize("name", CALLS)
async def test_an_outage_is_told_and_never_raised(name: str) -> None:
    """Nothing may be taken for recorded or linked; a history that was not read is not empty."""
    async with ComityClient(dead_address(), people_deadline_s=0.2) as comity:
        result = await CALLS[name](comity, ANN)
    assert (result.status, result.reason) == ("NOT_DELIVERED", "")
    assert result.problem.startswith("CLIENT_")


PERSONS_DOING = [
    invalid("subject", "names nobody", reason="NOBODY_NAMED"),
    ServiceError(Kind.FAILED_PRECONDITION, "SUBJECT_ERASED", "the person was erased"),
    ServiceError(Kind.FAILED_PRECONDITION, "IDENTITY_LINKING_NOT_ALLOWED", "nobody granted it"),
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("refuses", PERSONS_DOING, ids=lambda error: error.reason)
async def test_a_refusal_that_is_the_persons_doing_is_told_and_not_raised(name: str, refuses: ServiceError) -> None:
    """Whose cookie is a placeholder, who was erased or has not agreed breaks no page."""
    async with people(People(refuses=refuses)) as address, ComityClient(address) as comity:
        result = await CALLS[name](comity, ANN)
    assert (result.status, result.reason) == ("REFUSED", refuses.reason)
    assert refuses.message in result.problem


@pytest.mark.parametrize("name", CALLS)
async def test_a_mistake_in_the_program_raises_with_its_field(name: str) -> None:
    """As in decide; with raise_on_invalid off it is a status."""
    consent = People(refuses=invalid("answers[0].purpose", "is not declared"))
    async with people(consent) as address, ComityClient(address) as comity:
        with pytest.raises(InvalidRequestError, match="is not declared") as caught:
            await CALLS[name](comity, ANN)
        assert [one.field for one in caught.value.problems] == ["answers[0].purpose"]
    async with people(consent) as address, ComityClient(address, raise_on_invalid=False) as comity:
        assert (await CALLS[name](comity, ANN)).status == "REFUSED"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("who", [{"user_id": 42}, {7: "a"}, "ann"], ids=repr)
async def test_identities_of_a_wrong_type_are_a_typed_error(name: str, who: Any) -> None:
    """No TypeError out of the middle of protobuf; and nothing of the value is repeated."""
    async with ComityClient(dead_address()) as comity:
        with pytest.raises(InvalidRequestError, match="identities") as caught:
            await CALLS[name](comity, who)
    assert "42" not in str(caught.value)
    async with ComityClient(dead_address(), raise_on_invalid=False) as comity:
        assert (await CALLS[name](comity, who)).status == "REFUSED"


@pytest.mark.parametrize("name", CALLS)
async def test_an_identity_that_cannot_be_sent_raises_nothing(name: str) -> None:
    """A lone surrogate is what a browser's JSON may hold."""
    async with ComityClient(dead_address()) as comity:
        result = await CALLS[name](comity, {"anonymous_id": "\ud800"})
    assert (result.status, result.reason) == ("REFUSED", "NOT_A_REQUEST")
    assert "identities[anonymous_id]" in result.problem


@pytest.mark.parametrize(
    "wrong",
    [
        {"answers": {"ads": "YES"}},
        {"answers": {"ads": 1}},
        {"answers": ["ads"]},
        {"answers": {"ads": True}, "collected_at": datetime(2026, 11, 29)},  # noqa: DTZ001
        {"answers": {"ads": True}, "expires_at": "tomorrow"},
        {"answers": {"ads": True}, "mechanism": 7},
    ],
    ids=repr,
)
async def test_an_answer_of_a_wrong_type_is_a_typed_error(wrong: dict[str, Any]) -> None:
    """It names the field; nothing is sent."""
    async with ComityClient(dead_address()) as comity:
        with pytest.raises(InvalidRequestError) as caught:
            await comity.consent.record(identities=ANN, **wrong)
    assert caught.value.problems[0].field.partition("[")[0] in wrong
