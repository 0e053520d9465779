"""The client's promise: a decision for every placement, on time, whatever the other side does."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from comity.common.v1 import types_pb2 as types_pb
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity_client import ComityClient, ConsentSignals, Entry, Happening, InvalidRequestError, MissingDefaultError
from comity_client.timing import within
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.chassis.errors import Kind, ServiceError
from services.chassis.status import to_status
from tests.virtual_time import in_virtual_time

DEFAULTS = {"home_hero": [Entry("spring-sale"), Entry("tote")]}
ALICE = {"user_id": "alice"}
ACCEPTED = feedback_pb.TrackResult(status=feedback_pb.TRACK_STATUS_ACCEPTED)

Decide = Callable[
    [decision_pb.DecideRequest, grpc.aio.ServicerContext[Any, Any]], Awaitable[decision_pb.DecideResponse]
]


class Decisions:
    def __init__(self, decide: Decide) -> None:
        self.decide = decide
        self.requests: list[decision_pb.DecideRequest] = []

    async def Decide(self, request: Any, context: Any) -> decision_pb.DecideResponse:  # noqa: N802
        self.requests.append(request)
        return await self.decide(request, context)


class Feedback:
    def __init__(self, result: feedback_pb.TrackResult) -> None:
        self.result = result
        self.requests: list[feedback_pb.TrackRequest] = []

    async def Track(self, request: Any, context: Any) -> feedback_pb.TrackResponse:  # noqa: N802
        self.requests.append(request)
        result = feedback_pb.TrackResult()
        result.CopyFrom(self.result)
        result.event_id = result.event_id or request.events[0].event_id
        return feedback_pb.TrackResponse(results=[result])


@asynccontextmanager
async def served(servicer: Decisions | Feedback) -> AsyncIterator[str]:
    """The address of a server with the one method that the test needs."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_handler(servicer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def _handler(servicer: Decisions | Feedback) -> grpc.GenericRpcHandler:
    if isinstance(servicer, Decisions):
        return _unary("decision.v1.DecisionService", "Decide", servicer.Decide, decision_pb.DecideRequest)
    return _unary("feedback.v1.FeedbackService", "Track", servicer.Track, feedback_pb.TrackRequest)


def _unary(service: str, name: str, method: Any, request: Any) -> grpc.GenericRpcHandler:
    handler: Any = grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )
    return grpc.method_handlers_generic_handler(f"comity.{service}", {name: handler})


def answer(*item_ids: str, placement_id: str = "home_hero", propensity: float = 0.9) -> decision_pb.DecideResponse:
    entries = [
        events_pb.SlateEntry(slot=i, item_id=item, propensity=propensity, reason=events_pb.REASON_RANKED)
        for i, item in enumerate(item_ids)
    ]
    decision = decision_pb.PlacementDecision(
        placement_id=placement_id,
        decision_id="d1",
        slate=decision_pb.Slate(entries=entries),
        reason=events_pb.REASON_RANKED,
        exposure_token=b"token",
        learnable=True,
        versions=events_pb.Versions(model="shop_clicks@1"),
    )
    return decision_pb.DecideResponse(decisions=[decision])


async def ranked(request: Any, context: Any) -> decision_pb.DecideResponse:
    return answer("kite", "tote")


def dead_address() -> str:
    """An address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def test_a_slate_comes_back_typed() -> None:
    """What the server decided is what the caller gets, in words."""
    async with served(Decisions(ranked)) as address, ComityClient(address, defaults=DEFAULTS) as comity:
        page = await comity.decide(identities=ALICE, placements=["home_hero"], context={"hour": 20, "gift": True})
    hero = page["home_hero"]
    assert [entry.item_id for entry in hero.entries] == ["kite", "tote"]
    assert (hero.source, hero.reason, hero.fallback_reason, hero.learnable) == ("slate", "RANKED", "", True)
    assert hero.entries[0].propensity == 0.9
    assert hero.versions == {"model": "shop_clicks@1"}


async def test_the_servers_fallback_says_so() -> None:
    """A declared default of the server is a fallback with its reason, not a slate."""

    async def default(request: Any, context: Any) -> decision_pb.DecideResponse:
        response = answer("tote", propensity=1.0)
        decision = response.decisions[0]
        decision.fallback.CopyFrom(decision.slate)
        decision.reason = events_pb.REASON_DEFAULT
        decision.fallback_reason = events_pb.FALLBACK_REASON_NO_CONSENT
        return response

    async with served(Decisions(default)) as address, ComityClient(address, defaults=DEFAULTS) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert (hero.source, hero.reason, hero.fallback_reason) == ("fallback", "DEFAULT", "NO_CONSENT")


async def test_a_server_that_never_answers_gives_the_default() -> None:
    """A hang ends with the deadline; how exactly it is kept is shown in virtual time."""

    async def hang(request: Any, context: Any) -> decision_pb.DecideResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with served(Decisions(hang)) as address, ComityClient(address, defaults=DEFAULTS) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"], deadline_s=0.1))["home_hero"]
    assert (hero.source, hero.fallback_reason) == ("client_default", "CLIENT_DEADLINE_EXCEEDED")
    assert hero.entries == tuple(DEFAULTS["home_hero"])


async def test_a_port_that_takes_connections_and_says_nothing_gives_the_default() -> None:
    """A peer that never finishes the handshake is an outage like any other."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    async with ComityClient(address, defaults=DEFAULTS) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"], deadline_s=0.1))["home_hero"]
    listener.close()
    assert hero.source == "client_default"
    assert hero.fallback_reason in ("CLIENT_DEADLINE_EXCEEDED", "CLIENT_UNAVAILABLE")


async def test_an_unreachable_server_gives_the_default() -> None:
    """Nobody there: the default, and why."""
    async with ComityClient(dead_address(), defaults=DEFAULTS) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert hero.source == "client_default"
    assert hero.fallback_reason in ("CLIENT_DEADLINE_EXCEEDED", "CLIENT_UNAVAILABLE")


async def test_a_server_killed_in_the_middle_gives_the_default_to_those_who_wait() -> None:
    """Calls in flight when the server dies are answered too."""
    arrived = asyncio.Event()

    async def hang(request: Any, context: Any) -> decision_pb.DecideResponse:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_handler(Decisions(hang)),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with ComityClient(f"127.0.0.1:{port}", defaults=DEFAULTS) as comity:
        waiting = [
            asyncio.create_task(comity.decide(identities=ALICE, placements=["home_hero"], deadline_s=5))
            for _ in range(5)
        ]
        await asyncio.wait_for(arrived.wait(), 5)
        await server.stop(None)
        pages = await asyncio.gather(*waiting)
    assert {page["home_hero"].source for page in pages} == {"client_default"}


@pytest.mark.parametrize(
    "garbage",
    [
        decision_pb.DecideResponse(),
        answer("kite", placement_id="another"),
        answer(),
        answer("", "tote"),
        answer("kite", propensity=0.0),
        answer("kite", propensity=7.0),
        answer("kite", propensity=float("nan")),
    ],
)
async def test_an_unsound_answer_gives_the_default(garbage: decision_pb.DecideResponse) -> None:
    """An answer without a slate for the placement is worth nothing."""

    async def unsound(request: Any, context: Any) -> decision_pb.DecideResponse:
        return garbage

    async with served(Decisions(unsound)) as address, ComityClient(address, defaults=DEFAULTS) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert (hero.source, hero.fallback_reason) == ("client_default", "CLIENT_INVALID_ANSWER")


async def test_a_default_that_exclusions_emptied_gives_the_callers_own() -> None:
    """It is the last rung; what it shows is not the empty decision of the log, and proves none."""

    async def emptied(request: Any, context: Any) -> decision_pb.DecideResponse:
        decision = decision_pb.PlacementDecision(
            placement_id="home_hero",
            decision_id="d1",
            fallback=decision_pb.Slate(),
            reason=events_pb.REASON_DEFAULT,
            fallback_reason=events_pb.FALLBACK_REASON_NO_ELIGIBLE_CANDIDATES,
            exposure_token=b"token",
        )
        return decision_pb.DecideResponse(decisions=[decision])

    async with served(Decisions(emptied)) as address, ComityClient(address, defaults=DEFAULTS) as client:
        hero = (await client.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert (hero.source, hero.fallback_reason) == ("client_default", "NO_ELIGIBLE_CANDIDATES")
    assert (list(hero.entries), hero.exposure_token) == (DEFAULTS["home_hero"], b"")


async def test_bytes_that_are_no_message_give_the_default() -> None:
    """What protobuf cannot read does not reach the caller as an exception."""

    async def noise(request: bytes, context: Any) -> bytes:
        return b"\xff\xff\xff\xffnoise"

    method: Any = grpc.unary_unary_rpc_method_handler(noise)
    handler = grpc.method_handlers_generic_handler("comity.decision.v1.DecisionService", {"Decide": method})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with ComityClient(f"127.0.0.1:{port}", defaults=DEFAULTS) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    await server.stop(None)
    assert (hero.source, hero.fallback_reason) == ("client_default", "CLIENT_INVALID_ANSWER")


async def test_a_retry_keeps_the_request_id() -> None:
    """An unavailable server is asked again with the same id, so that it decides once."""
    tries = 0

    async def second_time(request: Any, context: Any) -> decision_pb.DecideResponse:
        nonlocal tries
        tries += 1
        if tries == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return answer("kite")

    servicer = Decisions(second_time)
    async with served(servicer) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=2) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert hero.source == "slate"
    assert len({request.request_id for request in servicer.requests}) == 1
    assert tries == 2


@pytest.mark.parametrize(
    ("code", "tries", "why"),
    [
        (grpc.StatusCode.UNAVAILABLE, 3, "CLIENT_UNAVAILABLE"),
        (grpc.StatusCode.INTERNAL, 1, "CLIENT_ERROR"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1, "CLIENT_OVERLOADED"),
        (grpc.StatusCode.UNIMPLEMENTED, 1, "CLIENT_ERROR"),
    ],
)
async def test_only_unavailable_is_tried_again_and_never_for_ever(code: grpc.StatusCode, tries: int, why: str) -> None:
    """Retries are bounded, and an error that another try cannot mend is not tried again."""

    async def failing(request: Any, context: Any) -> decision_pb.DecideResponse:
        await context.abort(code, "no")
        raise AssertionError

    servicer = Decisions(failing)
    async with served(servicer) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=5) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert (hero.source, hero.fallback_reason) == ("client_default", why)
    assert len(servicer.requests) == tries


@pytest.mark.parametrize(("wait_s", "tries"), [(0.05, 2), (60.0, 1)])
async def test_server_that_takes_no_more_says_when_it_will(wait_s: float, tries: int) -> None:
    """The call is made again then, where its deadline allows; else the default comes at once, with its cause."""

    async def at_first(request: Any, context: Any) -> decision_pb.DecideResponse:
        if len(servicer.requests) == 1:
            busy = ServiceError(Kind.EXHAUSTED, "OVERLOADED", "too much to do", retry_after_s=wait_s)
            await context.abort_with_status(to_status(busy))
        return answer("kite")

    servicer = Decisions(at_first)
    async with served(servicer) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=30) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert len(servicer.requests) == tries
    assert len({request.request_id for request in servicer.requests}) == 1
    if tries == 1:
        assert (hero.source, hero.fallback_reason) == ("client_default", "CLIENT_OVERLOADED")
        assert "too much to do" in hero.cause
    else:
        assert hero.source == "slate"


async def test_overloaded_answer_is_an_answer() -> None:
    """The site's default with its reason; nothing of it can be tracked, and it is not asked for again."""

    async def shedding(request: Any, context: Any) -> decision_pb.DecideResponse:
        shed = answer("tote").decisions[0]
        shed.fallback.CopyFrom(shed.slate)
        shed.reason, shed.fallback_reason = events_pb.REASON_DEFAULT, events_pb.FALLBACK_REASON_OVERLOADED
        shed.decision_id, shed.exposure_token, shed.learnable = "", b"", False
        return decision_pb.DecideResponse(decisions=[shed])

    servicer = Decisions(shedding)
    async with served(servicer) as address, ComityClient(address, defaults=DEFAULTS, deadline_s=30) as comity:
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert (hero.source, hero.reason, hero.fallback_reason) == ("fallback", "DEFAULT", "OVERLOADED")
    assert ([entry.item_id for entry in hero.entries], len(servicer.requests)) == (["tote"], 1)
    assert (hero.decision_id, hero.exposure_token, hero.learnable) == ("", b"", False)


async def refuse(request: Any, context: Any) -> decision_pb.DecideResponse:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="identities", description="must hold at least one")
    details = [any_pb2.Any(), any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain="comity"))
    details[1].Pack(bad)
    status = status_pb2.Status(
        code=code_pb2.INVALID_ARGUMENT, message="identities: must hold at least one", details=details
    )
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError


async def test_a_refused_request_raises_with_the_field_and_the_remedy() -> None:
    """A mistake in the program is not hidden behind a default."""
    async with served(Decisions(refuse)) as address, ComityClient(address, defaults=DEFAULTS) as comity:
        with pytest.raises(InvalidRequestError) as caught:
            await comity.decide(identities={}, placements=["home_hero"])
    assert caught.value.reason == "INVALID_FIELD"
    assert [(p.field, p.problem) for p in caught.value.problems] == [("identities", "must hold at least one")]


async def test_a_refused_request_gives_the_default_where_the_caller_wants_that() -> None:
    """With raise_on_invalid off nothing is ever raised for what the server says."""
    async with (
        served(Decisions(refuse)) as address,
        ComityClient(address, defaults=DEFAULTS, raise_on_invalid=False) as comity,
    ):
        hero = (await comity.decide(identities={}, placements=["home_hero"]))["home_hero"]
    assert (hero.source, hero.fallback_reason) == ("client_default", "CLIENT_REFUSED")


@pytest.mark.parametrize(
    ("code", "kind", "why"),
    [
        (code_pb2.INVALID_ARGUMENT, "ErrorInfo", "CLIENT_REFUSED"),
        (code_pb2.FAILED_PRECONDITION, "BadRequest", "CLIENT_ERROR"),
        (code_pb2.RESOURCE_EXHAUSTED, "RetryInfo", "CLIENT_OVERLOADED"),
    ],
)
async def test_details_that_are_malformed_are_passed_over(code: int, kind: str, why: str) -> None:
    """Whoever answers may be anybody; what its status says beside them holds."""

    async def malformed(request: Any, context: Any) -> decision_pb.DecideResponse:
        detail = any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=b"\xff")
        await context.abort_with_status(
            rpc_status.to_status(status_pb2.Status(code=code, message="no", details=[detail]))
        )
        raise AssertionError

    async with (
        served(Decisions(malformed)) as address,
        ComityClient(address, defaults=DEFAULTS, raise_on_invalid=False, deadline_s=10) as comity,
    ):
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert hero.fallback_reason == why


async def test_what_cannot_be_written_as_a_request_is_told_as_one() -> None:
    """A number as user id is the program's mistake: said in words, or answered by the default where that is wanted."""
    wrong: Any = {"user_id": 42}
    async with ComityClient(dead_address(), defaults=DEFAULTS) as comity:
        with pytest.raises(InvalidRequestError, match="must be text"):
            await comity.decide(identities=wrong, placements=["home_hero"])
    async with ComityClient(dead_address(), defaults=DEFAULTS, raise_on_invalid=False) as comity:
        hero = (await comity.decide(identities=wrong, placements=["home_hero"]))["home_hero"]
    assert (hero.source, hero.fallback_reason) == ("client_default", "CLIENT_REFUSED")


async def test_a_placement_without_a_default_is_refused_before_anything_is_asked() -> None:
    """The promise cannot be kept without a default, so the first call says so, not the first outage."""
    async with ComityClient(dead_address(), defaults={"home_hero": []}) as comity:
        with pytest.raises(MissingDefaultError, match="home_hero"):
            await comity.decide(identities=ALICE, placements=["home_hero"])


async def test_a_default_of_the_call_goes_before_the_clients_own() -> None:
    """What the caller passes to decide wins."""
    async with ComityClient(dead_address(), defaults=DEFAULTS) as comity:
        page = await comity.decide(
            identities=ALICE, placements=["home_hero"], defaults={"home_hero": [Entry("lantern")]}
        )
    assert [entry.item_id for entry in page["home_hero"].entries] == ["lantern"]


async def test_a_closed_client_still_gives_the_default() -> None:
    """Even after close there is something to show."""
    comity = ComityClient(dead_address(), defaults=DEFAULTS)
    await comity.close()
    hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
    assert hero.source == "client_default"


@in_virtual_time
async def test_the_timer_does_not_wait_for_work_that_ignores_it() -> None:
    """Work that swallows its cancellation is left behind."""
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    started_s = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        await within(stubborn(), 0.05)
    assert asyncio.get_running_loop().time() == started_s + 0.05
    release.set()


async def test_a_cancelled_caller_stops_its_call() -> None:
    """Cancellation of the caller goes through, and the work behind it is stopped."""
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    caller = asyncio.create_task(within(work(), 60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.wait_for(stopped.wait(), 5)


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (feedback_pb.TRACK_STATUS_ACCEPTED, "ACCEPTED"),
        (feedback_pb.TRACK_STATUS_DUPLICATE, "DUPLICATE"),
        (feedback_pb.TRACK_STATUS_DROPPED_NO_CONSENT, "DROPPED_NO_CONSENT"),
        (feedback_pb.TRACK_STATUS_ANONYMIZED, "ANONYMIZED"),
    ],
)
async def test_track_says_what_became_of_the_event(status: feedback_pb.TrackStatus.ValueType, word: str) -> None:
    """The server's verdict on the event reaches the caller, and the decision travels with it."""
    feedback = Feedback(feedback_pb.TrackResult(status=status))
    async with (
        served(Decisions(ranked)) as address,
        served(feedback) as feedback_address,
        ComityClient(address, feedback_address=feedback_address, defaults=DEFAULTS) as comity,
    ):
        hero = (await comity.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
        tracked = await comity.track(
            "click", identities=ALICE, item_ids=["kite"], decision=hero, properties={"amount": 3}
        )
    assert tracked.status == word
    event = feedback.requests[0].events[0]
    assert (event.decision_id, event.exposure_token, list(event.item_ids)) == ("d1", b"token", ["kite"])


async def test_an_event_the_server_refuses_raises() -> None:
    """An event that is wrong is a mistake in the program."""
    refused = feedback_pb.TrackResult(status=feedback_pb.TRACK_STATUS_REFUSED, field="type", problem="is not declared")
    async with served(Feedback(refused)) as address, ComityClient(address) as comity:
        with pytest.raises(InvalidRequestError, match="type: is not declared"):
            await comity.track("clik", identities=ALICE)


async def test_an_event_that_nobody_takes_is_not_delivered_and_not_raised() -> None:
    """Tracking never breaks the page."""
    async with ComityClient(dead_address(), track_deadline_s=0.1) as comity:
        tracked = await comity.track("click", identities=ALICE, event_id="e1")
    assert (tracked.event_id, tracked.status) == ("e1", "NOT_DELIVERED")


async def test_a_result_for_another_event_is_not_taken() -> None:
    """A reply that answers something else counts as none."""
    other = feedback_pb.TrackResult(event_id="other", status=feedback_pb.TRACK_STATUS_ACCEPTED)
    async with served(Feedback(other)) as address, ComityClient(address) as comity:
        tracked = await comity.track("click", identities=ALICE)
    assert (tracked.status, tracked.problem) == ("NOT_DELIVERED", "CLIENT_INVALID_ANSWER")


async def test_many_events_go_in_one_call_and_a_refused_one_costs_no_other() -> None:
    """Each event of a batch has its own verdict, and none raises."""
    refused = feedback_pb.TrackResult(status=feedback_pb.TRACK_STATUS_REFUSED, field="type", problem="is not declared")
    feedback = Feedback(refused)
    happenings = [Happening("clik", ALICE), Happening("click", ALICE, item_ids=("kite",))]
    async with served(feedback) as address, ComityClient(address) as comity:
        tracked = await comity.track_many(happenings)
    assert [one.status for one in tracked] == ["REFUSED", "NOT_DELIVERED"]
    assert len(feedback.requests) == 1


async def test_consent_signals_travel_as_they_came() -> None:
    """With a decision, with one event and with many; without any, nothing is sent; gpc alone is the short form."""
    signals = ConsentSignals(
        gpc="1", tc_string="tc", gpp="gpp", usp="1YNN", jurisdiction="us-ca", do_not_personalize=True
    )
    sent = types_pb.ConsentSignals(
        gpc="1", tc_string="tc", gpp="gpp", usp="1YNN", jurisdiction="us-ca", do_not_personalize=True
    )
    decisions, feedback = Decisions(ranked), Feedback(ACCEPTED)
    async with (
        served(decisions) as address,
        served(feedback) as feedback_address,
        ComityClient(address, feedback_address=feedback_address, defaults=DEFAULTS) as comity,
    ):
        for more in ({"consent_signals": signals}, {"gpc": "1"}, {"consent_signals": signals, "gpc": "0"}, {}):
            await comity.decide(identities=ALICE, placements=["home_hero"], **more)
        await comity.track("click", identities=ALICE, consent_signals=signals)
        await comity.track_many([Happening("click", ALICE, consent_signals=signals), Happening("click", ALICE)])
    decided = [request.consent_signals for request in decisions.requests]
    assert decided == [sent, types_pb.ConsentSignals(gpc="1"), sent, types_pb.ConsentSignals()]
    tracked = [event for request in feedback.requests for event in request.events]
    assert [event.consent_signals for event in tracked] == [sent, sent, types_pb.ConsentSignals()]
    assert not tracked[2].HasField("consent_signals")


def test_signals_are_not_shown_when_they_are_printed() -> None:
    """A log line of the caller's holds nothing of the strings."""
    shown = repr(ConsentSignals(gpc="canary", tc_string="canary", gpp="canary", usp="canary", jurisdiction="eu"))
    assert "canary" not in shown
    assert "eu" in shown


async def test_a_trace_context_goes_along_unless_it_is_malformed() -> None:
    """A trace belongs under the caller's; words that are no trace context cost it, and never the answer."""
    context_of_caller = f"00-{'a' * 32}-{'b' * 16}-01"
    came: list[str] = []

    async def traced(request: Any, context: Any) -> decision_pb.DecideResponse:
        came.append(dict(context.invocation_metadata()).get("traceparent", ""))
        return answer("kite")

    async with served(Decisions(traced)) as address, ComityClient(address, defaults=DEFAULTS) as comity:
        for traceparent in (context_of_caller, "", "nonsense\n", "00-ä"):
            page = await comity.decide(identities=ALICE, placements=["home_hero"], traceparent=traceparent)
            assert page["home_hero"].source == "slate"
    assert came == [context_of_caller, "", "", ""]
