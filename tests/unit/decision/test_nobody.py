"""Of a decision about nobody no string of the caller is kept: nothing could ever be found in it and erased."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from comity.decision.v1 import decision_service_pb2 as pb
from google.protobuf.descriptor import FieldDescriptor

from services.chassis.errors import Kind, ServiceError
from services.chassis.events import ORIGIN, Sealed
from services.decision.domain.plan import CompiledSite
from services.decision.domain.record import DecisionRecord
from services.decision.domain.replay import Pinned, decide_again
from services.decision.domain.request import DecideRequest
from services.decision.domain.site import DefaultEntry
from services.decision.domain.vocabulary import Exclusion, FallbackReason, Reason
from services.decision.wire.calls import decide_from_pb
from tests.unit.decision.fakes import DEAD, Harness
from tests.unit.decision.test_past import past, recording
from tests.unit.decision.world import ITEMS, MEMBER, PLACEMENT, POLICY, PROFILE, SEED_KEY, model, site

CANARY = "canary"
RULE = 'context["canary"] == "canary"'
LATE = ServiceError(Kind.DEADLINE, "LATE", "no answer in time")


def shop(eligibility: str = "", **changes: Any) -> CompiledSite:
    """A site whose rules read what the caller sends; its default names items of the catalog."""
    default = (DefaultEntry("item-1", "large"), DefaultEntry("item-2"), DefaultEntry("gift-card"))
    placement = replace(PLACEMENT, default_slate=default, **changes)
    return site(placement=placement, policy=replace(POLICY, epsilon=0.0, eligibility=eligibility))


def unrecognized(harness: Harness) -> None:
    """Known by a fingerprint alone, which the person does not allow."""
    harness.identity.person = replace(harness.identity.person, required_purposes=frozenset({"device_recognition"}))


# Every way in which a Decide comes to be about nobody.
NOBODY: dict[str, Callable[[Harness], None]] = {
    "identity is late": lambda harness: setattr(harness.identity, "fails", LATE),
    "identity is away": lambda harness: setattr(harness.identity, "fails", DEAD),
    "identity is broken": lambda harness: setattr(harness.identity, "fails", RuntimeError("bug")),
    "may not be recognized": unrecognized,
}


def with_canaries(message: Any, path: str = "") -> Any:
    """The message with a canary in every string that it can hold, told apart by where it is."""
    for field in message.DESCRIPTOR.fields:
        where = f"{path}{CANARY}-{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            with_canaries(getattr(message, field.name)[CANARY], where)
        elif field.message_type is not None:
            nested = getattr(message, field.name)
            with_canaries(nested.add() if field.is_repeated else nested, where)
        elif field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
            getattr(message, field.name).append(where)
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, where)
        else:
            assert field.type != FieldDescriptor.TYPE_BYTES, "bytes hold canaries, too"
    return message


def ask(*, named: bool = True) -> DecideRequest:
    """A request all of whose strings are canaries, but for a placement, some ids of items, and the fact of a rule."""
    message = with_canaries(pb.DecideRequest())
    message.context[CANARY].string_value = CANARY
    (placement,) = message.placements
    placement.placement_id = PLACEMENT.id
    placement.candidate_ids.extend(["item-3", "item-0"])
    placement.excluded_item_ids.append("item-1")
    if not named:
        placement.ClearField("candidate_ids")
    return decide_from_pb(message)


async def kept_of(harness: Harness, request: DecideRequest) -> tuple[bytes, DecisionRecord]:
    """What of the decision goes into the log, and with it into every copy; and what it is read as."""
    (answer,) = (await harness.decide(request)).decisions
    (event,) = await harness.log.store.read_stream(answer.decision_id)
    assert isinstance(event.payload, bytes), "nobody's record is sealed for nobody"
    return event.payload + repr(replace(event, payload=b"")).encode(), await harness.logged(answer.decision_id)


def replays(record: DecisionRecord, compiled: CompiledSite) -> tuple[str, ...]:
    by_id = {item.id: item for item in ITEMS}
    items = [by_id.get(item_id) for item_id in record.inputs.candidates.item_ids]
    return decide_again(record, Pinned(compiled, items, model, SEED_KEY, record.seed_key_id)).differences


@pytest.mark.parametrize("popular", [False, True], ids=["default", "popular"])
@pytest.mark.parametrize("named", [False, True], ids=["offered", "named"])
@pytest.mark.parametrize("why", NOBODY)
async def test_nobodys_record_holds_no_string_of_the_caller(why: str, named: bool, popular: bool) -> None:
    """Whatever field it came in; and it replays all the same."""
    compiled = shop(RULE, popular_without_consent=popular)
    harness = Harness(compiled)
    NOBODY[why](harness)
    request = ask(named=named)
    assert request.context[CANARY] == CANARY
    kept, record = await kept_of(harness, request)
    assert record.member_id == ""
    assert CANARY.encode() not in kept
    assert request.digest not in kept
    # Of what is left out of the default the codes are kept, and nothing of the candidates that were named.
    assert record.inputs.default_left_out == {"item-1": Exclusion.EXCLUDED_BY_CALLER}
    assert b"item-3" not in kept or not named
    answered = Reason.POPULAR if popular and not named else Reason.DEFAULT
    assert record.choice.reason is answered
    if answered is Reason.DEFAULT:
        assert record.choice.slate.item_ids == ["item-2", "gift-card"]
    assert replays(record, compiled) == ()


@pytest.mark.parametrize("port", ["identity", "consent", "features", "keys", "log"])
async def test_what_is_decided_while_something_is_late_is_sealed_or_says_nothing(port: str) -> None:
    """Whatever the log holds of it, and of its retry once all is well, goes with the person's key."""
    harness = Harness(shop(RULE))
    late: Any = getattr(harness, port)
    late.fails = LATE
    await harness.decide(ask())
    late.fails = None
    await asyncio.gather(*harness.corrections._pending)
    await harness.decide(ask())
    events = await harness.log.store.read_log(ORIGIN, limit=10)
    assert events
    # Without identity it is nobody's, and the caller's strings are nowhere; else all of it is sealed.
    assert {event.subject_id for event in events} == {"" if port == "identity" else MEMBER}
    for event in events:
        assert isinstance(event.payload, Sealed) is bool(event.subject_id)
        plain = event.payload if isinstance(event.payload, bytes) else b""
        assert CANARY.encode() not in plain + repr(replace(event, payload=b"")).encode()


async def test_somebodys_record_holds_what_the_rules_read() -> None:
    """It is sealed, and goes with its key: the sweep above finds what is there."""
    harness = Harness(shop(RULE))
    (answer,) = (await harness.decide(ask())).decisions
    record = await harness.logged(answer.decision_id)
    assert record.context == {CANARY: CANARY}
    assert f"{CANARY}-placements{CANARY}-candidate_ids" in record.inputs.candidates.item_ids[0]
    assert record.versions.template == f"{CANARY}-template_version"


async def test_a_retry_of_nobodys_decision_is_answered_and_another_request_is_refused() -> None:
    """The digest is kept keyed: it still tells one request from another, also once the person is recognized."""
    harness = Harness(shop())
    harness.identity.fails = DEAD
    first = await harness.decide(ask())
    for identity in (DEAD, None):
        harness.identity.fails = identity
        again = await harness.decide(ask())
        assert again.decisions[0].decision_id == first.decisions[0].decision_id
        with pytest.raises(ServiceError) as refused:
            await harness.decide(replace(ask(), digest=b"of another request"))
        assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_a_slate_of_somebody_who_may_not_be_recognized_is_not_recorded() -> None:
    """RecordDecisions: it would be strings of the caller and nothing else; the other slates of the call are."""
    harness = Harness(shop())
    harness.consent.allowed = frozenset({PROFILE})
    record, known = recording(harness), harness.identity.person
    unrecognized(harness)
    (refused,) = await record([past("canary-1")])
    assert (refused.decision_id, refused.fallback_reason) == ("", FallbackReason.NO_CONSENT)
    assert await harness.log.store.read_log(refused.position, limit=1) == []
    harness.identity.person = known
    (taken,) = await record([past("canary-2")])
    assert taken.decision_id
