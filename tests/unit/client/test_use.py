"""What programs do wrong, and how they learn of it: addresses, event loops, forks, failures nobody looks at."""

import asyncio
import inspect
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from comity.decision.v1 import decision_events_pb2 as events_pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from comity.feedback.v1 import feedback_service_pb2 as feedback_pb
from comity_client import (
    ComityClient,
    Consent,
    Entry,
    Failure,
    FallbackReason,
    Happening,
    InvalidAddressError,
    InvalidRequestError,
    PeopleReason,
    Placement,
    Reason,
    SyncComityClient,
    SyncConsent,
    TrackReason,
)
from comity_client.failures import Failures
from comity_client.transport import Outcome
from google.protobuf.descriptor import EnumDescriptor
from opentelemetry import trace

from services.chassis.errors import Kind, ServiceError
from services.chassis.status import to_status
from tests.arch.code import ROOT
from tests.unit.client.test_client import ALICE, DEFAULTS, Decisions, Feedback, answer, dead_address, ranked, served

ADDRESSES = ("address", "feedback_address", "consent_address", "identity_address")
PEOPLE_S = 0.1
LOOPS = 24
LATE = Outcome(why="CLIENT_DEADLINE_EXCEEDED", cause="host:1: no answer")


@pytest.mark.parametrize("field", ADDRESSES)
@pytest.mark.parametrize(
    "wrong", ["http://host:7070", "https://user:secret@host:7070", "host", "host:", "host:0", "host:70700", "", 7070]
)
def test_address_that_leads_nowhere_is_refused_when_the_client_is_made(field: str, wrong: Any) -> None:
    """With its name and what is right; it is not repeated. An empty one of the others means the first."""
    given = {"address": "host:7070"} | {field: wrong}
    if field != "address" and not wrong:
        ComityClient(**given)
        return
    with pytest.raises(InvalidAddressError, match=f"^{field}: must be host:port") as caught:
        ComityClient(**given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "right", ["127.0.0.1:7070", "[::1]:7070", "comity-decision.shop_a.svc:7070", "dns:///host:7070", "unix:/tmp/x"]
)
def test_address_that_grpc_knows_is_taken(right: str) -> None:
    """Hosts, IPv6, names with a resolver, sockets."""
    ComityClient(right)


async def test_each_failure_has_its_cause_in_the_result_and_is_counted_and_told() -> None:
    """Of every call, where nobody listens."""
    address = dead_address()
    told: list[Failure] = []
    client = ComityClient(
        address, defaults=DEFAULTS, track_deadline_s=PEOPLE_S, people_deadline_s=PEOPLE_S, on_failure=told.append
    )
    async with client:
        hero = (await client.decide(identities=ALICE, placements=["home_hero"]))["home_hero"]
        results: list[Any] = [
            await client.track("click", identities=ALICE),
            await client.identify(identities=ALICE),
            await client.consent.record(identities=ALICE, answers={"ads": True}),
            await client.consent.revoke(identities=ALICE),
            await client.consent.history(identities=ALICE, accessor="tests", reason="a test"),
        ]
    for one in (hero, *results):
        assert one.cause.startswith(f"{address}: ")
    whys = [hero.fallback_reason, *(one.problem for one in results)]
    methods = ["Decide", "Track", "Link", "Record", "Revoke", "History"]
    assert client.counts == dict.fromkeys(zip(methods, whys, strict=True), 1)
    assert [(one.method, one.reason) for one in told] == list(zip(methods, whys, strict=True))


async def test_forgotten_feedback_address_is_named_in_the_cause() -> None:
    """The service that was asked instead has no such method, and the cause says what to give."""
    async with served(Decisions(ranked)) as address, ComityClient(address, defaults=DEFAULTS) as client:
        await client.decide(identities=ALICE, placements=["home_hero"])
        tracked = await client.track("click", identities=ALICE)
    assert (tracked.status, tracked.problem) == ("NOT_DELIVERED", "CLIENT_ERROR")
    assert "feedback_address" in tracked.cause
    assert client.counts == {("Decide", ""): 1, ("Track", "CLIENT_ERROR"): 1}


async def test_unsound_answer_is_counted_as_a_failure() -> None:
    """The call succeeded, and gave nothing."""

    async def empty(request: Any, context: Any) -> decision_pb.DecideResponse:
        return decision_pb.DecideResponse()

    async with served(Decisions(empty)) as address, ComityClient(address, defaults=DEFAULTS) as client:
        await client.decide(identities=ALICE, placements=["home_hero"])
    assert client.counts == {("Decide", "CLIENT_INVALID_ANSWER"): 1}


async def test_site_that_is_not_set_up_is_counted_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """It gives defaults until somebody applies one, and no person is why; FAILED_PRECONDITION tells of both."""

    async def not_applied(request: Any, context: Any) -> decision_pb.DecideResponse:
        error = ServiceError(Kind.FAILED_PRECONDITION, "SITE_NOT_APPLIED", "no site was applied yet")
        await context.abort_with_status(to_status(error))
        raise AssertionError

    async with served(Decisions(not_applied)) as address, ComityClient(address, defaults=DEFAULTS) as client:
        await client.decide(identities=ALICE, placements=["home_hero"], deadline_s=10)
    assert client.counts == {("Decide", "CLIENT_ERROR"): 1}
    assert "no site was applied yet" in caplog.text


@pytest.mark.parametrize(("who", "why"), [({"user_id": 42}, "CLIENT_REFUSED"), ({"user_id": "\ud800"}, "")], ids=ascii)
async def test_mistake_found_before_sending_is_counted_of_every_call(who: Any, why: str) -> None:
    """Where none raises, a program would never learn of it; what a visitor's browser sent is no mistake."""
    client = ComityClient(dead_address(), defaults=DEFAULTS, raise_on_invalid=False)
    await client.decide(identities=who, placements=["home_hero"])
    await client.track("click", identities=who)
    await client.track_many([Happening("click", {"user_id": "\ud800"}), Happening("click", who)])
    await client.identify(identities=who)
    await client.consent.record(identities=who, answers={"ads": True})
    await client.consent.revoke(identities=who)
    await client.consent.history(identities=who, accessor="tests", reason="a test")
    methods = ["Decide", "Track", "Track", "Link", "Record", "Revoke", "History"]
    assert client.counts == Counter((method, why) for method in methods)


def test_failures_are_warned_of_once_a_minute_with_how_many_there_were(caplog: pytest.LogCaptureFixture) -> None:
    """At once for the first; those in between are told with the next."""
    now_s = 100.0
    failures = Failures(None, lambda: now_s)
    for _ in range(5):
        failures.ended("Decide", LATE)
    failures.ended("Decide", Outcome(answer=object()))
    now_s += 59.9
    failures.ended("Track", LATE)
    assert len(caplog.records) == 1
    now_s += 0.1
    failures.ended("Track", LATE)
    first, second = [one.getMessage() for one in caplog.records]
    assert "Decide CLIENT_DEADLINE_EXCEEDED: 1; " in first
    assert "Decide CLIENT_DEADLINE_EXCEEDED: 4, Track CLIENT_DEADLINE_EXCEEDED: 2; " in second
    assert "Track: host:1: no answer" in second
    assert {one.name for one in caplog.records} == {"comity_client"}


def test_hook_that_raises_breaks_no_call(caplog: pytest.LogCaptureFixture) -> None:
    """It is told with the warning."""

    def broken(failure: Failure) -> None:
        raise KeyError(failure.reason)

    Failures(broken).ended("Decide", LATE)
    assert "on_failure raised KeyError" in caplog.text


def ask(client: ComityClient) -> str:
    """As a framework without an event loop does: one a request."""

    async def decide() -> str:
        return (await client.decide(identities=ALICE, placements=["home_hero"], deadline_s=10))["home_hero"].source

    return asyncio.run(decide())


async def test_one_event_loop_a_request_is_answered_each_time() -> None:
    """Each has a connection of its own, and those of loops that ended are not kept."""
    async with served(Decisions(ranked)) as address:
        client = ComityClient(address, defaults=DEFAULTS)
        for _ in range(3):
            assert await asyncio.to_thread(ask, client) == "slate"
        assert len(client._transport._channels) == 1
        await client.close()


async def test_many_event_loops_at_once_have_a_connection_each() -> None:
    """In a thread each, as a server with threads has: none costs another its own while that one waits."""
    all_ask, held = asyncio.Barrier(LOOPS), set()

    async def together(request: Any, context: Any) -> decision_pb.DecideResponse:
        await all_ask.wait()
        held.add(len(client._transport._channels))
        return answer("kite")

    async with served(Decisions(together)) as address:
        client = ComityClient(address, defaults=DEFAULTS)
        with ThreadPoolExecutor(LOOPS) as threads:
            loop = asyncio.get_running_loop()
            sources = await asyncio.gather(*(loop.run_in_executor(threads, ask, client) for _ in range(LOOPS)))
        await client.close()
    assert (sources, held) == (["slate"] * LOOPS, {LOOPS})


async def test_sync_client_asks_and_tracks() -> None:
    """From several threads at once, without an event loop of theirs."""
    feedback = Feedback(feedback_pb.TrackResult(status=feedback_pb.TRACK_STATUS_ACCEPTED))
    async with served(Decisions(ranked)) as address, served(feedback) as feedback_address:
        client = ComityClient(address, feedback_address=feedback_address, defaults=DEFAULTS)

        def page(sync: SyncComityClient) -> str:
            hero = sync.decide(identities=ALICE, placements=["home_hero"], deadline_s=10)["home_hero"]
            return sync.track("click", identities=ALICE, decision=hero, deadline_s=10).status

        sync = SyncComityClient(client)
        assert await asyncio.gather(*(asyncio.to_thread(page, sync) for _ in range(4))) == ["ACCEPTED"] * 4
        assert sync.counts == {("Decide", ""): 4, ("Track", ""): 4}
        await asyncio.to_thread(sync.close)
        late = await asyncio.to_thread(sync.decide, identities=ALICE, placements=["home_hero"])
    assert late["home_hero"].source == "client_default"


@pytest.mark.parametrize(("sync", "own"), [(SyncComityClient, ComityClient), (SyncConsent, Consent)])
def test_sync_client_has_every_call(sync: type, own: type) -> None:
    """With the same arguments and the same words about them."""
    calls = {
        name: call
        for name, call in vars(own).items()
        if not name.startswith("_") and name != "close" and inspect.iscoroutinefunction(call)
    }
    assert len(calls) == 4
    for name, call in calls.items():
        assert inspect.signature(vars(sync)[name]) == inspect.signature(call)
        assert vars(sync)[name].__doc__ == call.__doc__


FORK = """
import asyncio, gc, os, signal, sys
from comity_client import ComityClient, Entry, ForkedError, SyncComityClient

signal.alarm(60)
address, sync, connected = sys.argv[1], sys.argv[2].startswith("sync"), sys.argv[3] == "connected"
own, raises = {"home_hero": [Entry("own")]}, sys.argv[4] == "raise"
client = ComityClient(address, defaults=own, deadline_s=30, raise_on_invalid=raises)
client = SyncComityClient(client) if sync else client

def ask():
    page = client.decide(identities={"user_id": "alice"}, placements=["home_hero"])
    hero = (page if sync else asyncio.run(page))["home_hero"]
    return hero.fallback_reason or hero.source

async def enter_and_ask():
    async with client:
        page = await client.decide(identities={"user_id": "alice"}, placements=["home_hero"])
    return page["home_hero"].fallback_reason or page["home_hero"].source

def enter():
    if not sync:
        return asyncio.run(enter_and_ask())
    with client:
        return ask()

if connected:
    ask()
child = os.fork()
if not child:
    signal.alarm(60)
    try:
        print(enter() if "with" in sys.argv[2] else ask(), flush=True)
    except ForkedError:
        print("ForkedError", flush=True)
    del client
    gc.collect()
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ask(), flush=True)
"""


@pytest.mark.parametrize("kind", ["async", "sync", "async with", "sync with"])
@pytest.mark.parametrize(
    ("connected", "mistakes", "in_child"),
    [("not yet", "raise", "slate"), ("connected", "raise", "ForkedError"), ("connected", "tell", "CLIENT_FORKED")],
)
async def test_client_made_before_a_fork(kind: str, connected: str, mistakes: str, in_child: str) -> None:
    """Works in the child where it was not connected; else it says so and hangs nothing, and the parent goes on."""
    async with served(Decisions(ranked)) as address:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FORK, address, kind, connected, mistakes, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert out.decode().splitlines() == [in_child, "0 slate"]


async def test_placement_may_have_a_size_and_candidates_of_its_own() -> None:
    """Beside ids alone; exclusions of the call hold for all, and an own default is no longer than asked for."""
    decisions = Decisions(ranked)
    placements: list[str | Placement] = [
        "home_hero",
        Placement("side", slate_size=1, candidate_ids=["a"], excluded_item_ids=["b"]),
    ]
    async with served(decisions) as address, ComityClient(address, defaults=DEFAULTS) as client:
        page = await client.decide(
            identities=ALICE,
            placements=placements,
            candidate_ids=["c"],
            excluded_item_ids=["d"],
            defaults={"side": [Entry("x"), Entry("y")]},
            deadline_s=10,
        )
    assert list(decisions.requests[0].placements) == [
        decision_pb.PlacementRequest(placement_id="home_hero", candidate_ids=["c"], excluded_item_ids=["d"]),
        decision_pb.PlacementRequest(
            placement_id="side", slate_size=1, candidate_ids=["a"], excluded_item_ids=["d", "b"]
        ),
    ]
    assert [one.item_id for one in page["side"].entries] == ["x"]


@pytest.mark.parametrize("size", [-1, 101, 2.0, "3"])
async def test_slate_size_that_cannot_be_is_refused(size: Any) -> None:
    """With its field."""
    async with ComityClient(dead_address(), defaults=DEFAULTS) as client:
        with pytest.raises(InvalidRequestError, match=r"placements\[0\].slate_size: must be a whole number"):
            await client.decide(identities=ALICE, placements=[Placement("home_hero", slate_size=size)])


async def test_trace_context_of_the_current_span_goes_along_by_itself() -> None:
    """With every call, also from a thread without an event loop; one that is given goes before it."""
    came: list[str] = []

    async def traced(request: Any, context: Any) -> decision_pb.DecideResponse:
        came.append(dict(context.invocation_metadata()).get("traceparent", ""))
        return answer("kite")

    span = trace.NonRecordingSpan(trace.SpanContext(0xA, 0xB, is_remote=False, trace_flags=trace.TraceFlags(1)))
    asked: dict[str, Any] = {"identities": ALICE, "placements": ["home_hero"], "deadline_s": 10}
    given = f"00-{'a' * 32}-{'b' * 16}-01"
    async with served(Decisions(traced)) as address:
        sync = SyncComityClient(ComityClient(address, defaults=DEFAULTS))
        with trace.use_span(span):
            await asyncio.to_thread(sync.decide, **asked)
            async with ComityClient(address, defaults=DEFAULTS) as client:
                await client.decide(**asked)
                await client.decide(**asked, traceparent=given)
        await asyncio.to_thread(sync.close)
    current = f"00-{0xA:032x}-{0xB:016x}-01"
    assert came == [current, current, given]


async def test_track_many_sends_the_callers_clock_and_tells_the_reason() -> None:
    """A clock without a time zone is a mistake of the program."""
    refused = feedback_pb.TrackResult(
        status=feedback_pb.TRACK_STATUS_REFUSED, field="event_id", reason="EVENT_ID_REUSED"
    )
    feedback = Feedback(refused)
    sent_at = datetime(2026, 1, 2, tzinfo=UTC)
    async with served(feedback) as address, ComityClient(address) as client:
        (tracked,) = await client.track_many([Happening("click", ALICE)], sent_at=sent_at, deadline_s=10)
        await client.track_many([Happening("click", ALICE)], deadline_s=10)
        with pytest.raises(InvalidRequestError, match="sent_at: must be aware"):
            await client.track_many([Happening("click", ALICE)], sent_at=datetime(2026, 1, 2))  # noqa: DTZ001
    assert tracked.reason == TrackReason.EVENT_ID_REUSED
    assert feedback.requests[0].sent_at.ToDatetime(tzinfo=UTC) == sent_at
    assert not feedback.requests[1].HasField("sent_at")


def words_of(enum: EnumDescriptor, prefix: str) -> set[str]:
    return {one.name.removeprefix(prefix) for one in enum.values if one.number}


def test_reasons_are_those_of_the_protos_and_the_clients_own() -> None:
    """A word that a server learns is given its meaning here."""
    reasons = words_of(events_pb.Reason.DESCRIPTOR, "REASON_")
    assert {one.value for one in Reason} == reasons | {"CLIENT_DEFAULT"}
    fallbacks = words_of(events_pb.FallbackReason.DESCRIPTOR, "FALLBACK_REASON_")
    assert {one.value for one in FallbackReason if not one.startswith("CLIENT_")} == fallbacks


def test_readme_has_the_meaning_of_every_reason() -> None:
    """The table is written from the enums."""
    readme = Path(ROOT, "clients/python/README.md").read_text()
    for one in (*Reason, *FallbackReason, *TrackReason, *PeopleReason):
        if not one.meaning.startswith("reserved"):
            assert f"| `{one}` | {one.meaning} |" in readme
