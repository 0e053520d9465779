"""Feedback over real Postgres, JetStream and gRPC, in this process; identity, consent and decision stand in."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from comity.common.v1 import operations_pb2
from comity.common.v1.holdings_pb2_grpc import HoldingsServiceStub
from comity.common.v1.operations_pb2_grpc import OperationsServiceStub
from comity.common.v1.types_pb2 import Identity, Member, SubjectRef
from comity.consent.v1 import consent_service_pb2 as consent_pb2
from comity.consent.v1 import consent_service_pb2_grpc as consent_grpc
from comity.decision.v1 import decision_events_pb2 as decision_pb2
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub, RectificationServiceStub
from comity.identity.v1 import identity_service_pb2 as identity_pb2
from comity.identity.v1 import identity_service_pb2_grpc as identity_grpc

from services.chassis.bus import NatsBus
from services.chassis.envelope import to_position
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.events import Append, Appended, LogPosition, NewEvent, Sealed
from services.chassis.eventstore import PostgresEventStore
from services.chassis.ids import uuid7
from services.chassis.key_client import GrpcKeyReader
from services.chassis.lifecycle import App
from services.chassis.memory import MemoryKeys
from services.chassis.postgres import Pool, create_pool
from services.chassis.relay import Relay
from services.chassis.rpc_client import connect
from services.chassis.rpc_server import RpcServer
from services.chassis.sealing import Sealer, ToSeal
from services.chassis.settings import ServiceSettings
from services.chassis.telemetry import Telemetry
from services.feedback.main import Settings, build
from services.feedback.wire import DECISION_MADE
from tests.waiting import until_served

TOKEN_KEY = b"key of exposure tokens, 32 bytes"
TIMEOUT_S = 10.0


def member(name: str) -> str:
    """The pseudonym of a user id."""
    return base64.b32encode(hashlib.sha256(name.encode()).digest()[:16]).decode().rstrip("=").lower()


async def not_asked(request: Any, context: Any) -> Any:
    """A method that feedback does not call."""
    raise AssertionError("feedback does not ask this")


class IdentityStandIn(identity_grpc.IdentityServiceServicer, identity_grpc.KeyServiceServicer):
    """Names people by hash and keeps data keys in memory."""

    Link = Unlink = DescribeSubject = PublishPlaceholders = staticmethod(not_asked)

    def __init__(self) -> None:
        self.keys = MemoryKeys()

    async def Resolve(self, request: identity_pb2.ResolveRequest, context: Any) -> identity_pb2.ResolveResponse:  # noqa: N802
        """Everybody is one member."""
        response = identity_pb2.ResolveResponse()
        for query in request.queries:
            name = query.subject_id or member(query.identities[0].value)
            response.subjects.add(subject_id=name, member_id=name, members=[Member(subject_id=name)])
        return response

    async def GetDataKeys(  # noqa: N802
        self, request: identity_pb2.GetDataKeysRequest, context: Any
    ) -> identity_pb2.GetDataKeysResponse:
        """Keys from memory; as identity does it refuses a call that names no member."""
        for index, member_id in enumerate(request.member_ids):
            if len(member_id) != len(member("")):
                raise invalid(f"member_ids[{index}]", "is no pseudonym")
        keys = await self.keys.keys(request.member_ids, mint=request.mint)
        return identity_pb2.GetDataKeysResponse(
            keys=[
                identity_pb2.DataKey(
                    member_id=one, key_id=keys[one].key_id, key=keys[one].key, destroyed=keys[one].destroyed
                )
                for one in request.member_ids
            ]
        )


class ConsentStandIn(consent_grpc.ConsentServiceServicer):
    """Everything is allowed, but for what is in `refused`: (member, purpose)."""

    Record = Revoke = History = PublishPurposes = DescribeConsent = staticmethod(not_asked)

    def __init__(self) -> None:
        self.refused: set[tuple[str, str]] = set()
        self.queries: list[consent_pb2.EvaluateQuery] = []
        self.down = False

    async def Evaluate(self, request: consent_pb2.EvaluateRequest, context: Any) -> consent_pb2.EvaluateResponse:  # noqa: N802
        """See ConsentService."""
        if self.down:
            raise ServiceError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "The database cannot be reached.")
        response = consent_pb2.EvaluateResponse()
        for query in request.queries:
            self.queries.append(query)
            evaluation = response.evaluations.add()
            for purpose in query.purposes:
                refused = any((one.subject_id, purpose) in self.refused for one in query.members)
                refused = refused or query.signals.gpc == "1"
                evaluation.verdicts.add(purpose=purpose, allowed=not refused)
        return response


@dataclass
class Decisions:
    """Decision's log, and its relay."""

    store: PostgresEventStore
    sealer: Sealer
    relay: Relay
    bus: NatsBus

    async def make(self, decisions: Sequence[decision_pb2.DecisionMade], *, version: int = 1) -> LogPosition:
        """Record these, each under its subject; where the log stands then."""
        sealed = await self.sealer.seal_many(
            [ToSeal(one.subject_id, DECISION_MADE, one.SerializeToString()) for one in decisions]
        )
        appends = []
        for one, payload in zip(decisions, sealed, strict=True):
            assert isinstance(payload, Sealed)
            decided_at = one.decided_at.ToDatetime(tzinfo=UTC)
            event = NewEvent(uuid7(decided_at), DECISION_MADE, payload, decided_at, one.subject_id)
            appends.append(Append(one.decision_id, version - 1, (event,)))
        results = await self.store.append_many(appends)
        self.relay.wake()
        return max(result.position for result in results if isinstance(result, Appended))


@dataclass
class Feedback:
    """A running feedback service and what stands around it."""

    stub: FeedbackServiceStub
    rectification: RectificationServiceStub
    holdings: HoldingsServiceStub
    pool: Pool
    identity: IdentityStandIn
    consent: ConsentStandIn
    decisions: Decisions
    operations: OperationsServiceStub
    bus: NatsBus

    async def letters(self) -> list[operations_pb2.DeadLetter]:
        """What feedback put aside."""
        request = operations_pb2.ListDeadLettersRequest()
        return list((await self.operations.ListDeadLetters(request, timeout=TIMEOUT_S)).letters)

    async def track(self, *events: pb.TrackedEvent) -> pb.TrackResponse:
        """Track these."""
        return await self.stub.Track(pb.TrackRequest(events=events), timeout=TIMEOUT_S)

    async def joined(self, position: LogPosition) -> None:
        """Returns when decisions up to there, and all that was tracked, are joined."""
        request = pb.AwaitPositionRequest(source="decision", position=to_position(position))
        await self.stub.AwaitPosition(request, timeout=TIMEOUT_S)

    async def replay(self, *kinds: pb.ReplayKind.ValueType, **asked: Any) -> tuple[list[pb.ReplayedEvent], int]:
        """Everything of these kinds, and how many were withheld."""
        events: list[pb.ReplayedEvent] = []
        withheld = 0
        async for response in self.stub.ReplayEvents(pb.ReplayEventsRequest(kinds=kinds, **asked), timeout=TIMEOUT_S):
            events.extend(response.events)
            withheld += response.withheld_count
        return events, withheld


def schema(name: str, **changes: Any) -> pb.EventSchema:
    """A declared type that asks for `measurement`."""
    plain: dict[str, Any] = {
        "type": name,
        "description": "as in the test",
        "purposes": ["measurement"],
        "owner": "team",
        "reason": "a test",
        "retention_days": 30,
    }
    return pb.EventSchema(**{**plain, **changes})


def event(event_id: str, kind: str = "click", *, who: str = "ann", **changes: Any) -> pb.TrackedEvent:
    """An event as a backend sends it; a click on item 2 unless it says otherwise."""
    plain: dict[str, Any] = {"item_ids": ["2"]} if kind == "click" else {}
    subject = SubjectRef(identities=[Identity(namespace="user_id", value=who)])
    return pb.TrackedEvent(**{"event_id": event_id, "type": kind, "subject": subject, **plain, **changes})


def made(decision_id: str, *, who: str = "ann", age_s: float = 5.0, **changes: Any) -> decision_pb2.DecisionMade:
    """A decision that showed items 1, 2 and 3."""
    decision = decision_pb2.DecisionMade(
        decision_id=decision_id, placement_id="home", subject_id=member(who), learnable=True, **changes
    )
    decision.decided_at.FromDatetime(datetime.now(UTC) - timedelta(seconds=age_s))
    for slot, item_id in enumerate("123"):
        decision.slate.add(slot=slot, item_id=item_id, propensity=1.0)
    return decision


@asynccontextmanager
async def running(app: App) -> AsyncIterator[str]:
    """The app, serving; its address."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(app.serve_until(stop))
        try:
            yield await until_served(app.server)
        finally:
            stop.set()


@asynccontextmanager
async def around_it(identity: IdentityStandIn, consent: ConsentStandIn) -> AsyncIterator[str]:
    """Where the stand-ins answer."""
    server = RpcServer(ServiceSettings(database_url="", nats_url="", drain_s=0.0))  # type: ignore[arg-type]
    server.add(identity_grpc.add_IdentityServiceServicer_to_server, identity)
    server.add(identity_grpc.add_KeyServiceServicer_to_server, identity)
    server.add(consent_grpc.add_ConsentServiceServicer_to_server, consent)
    yield f"127.0.0.1:{await server.start()}"
    await server.stop()


@asynccontextmanager
async def deciding(pool: Pool, nats_url: str, keys_address: str) -> AsyncIterator[Decisions]:
    """Decision's log, being relayed."""
    bus = await NatsBus.connect(nats_url)
    channel = connect(keys_address)
    log = PostgresEventStore(pool)
    relay = Relay(pool, log, bus, "decision")
    task = asyncio.create_task(relay.run())
    try:
        yield Decisions(log, Sealer(GrpcKeyReader(channel, "decision")), relay, bus)
    finally:
        task.cancel()
        await asyncio.wait({task})
        await channel.close()
        await bus.close()


@pytest.fixture
async def feedback(database: Callable[[str], Awaitable[str]], nats_url: str, tmp_path: Path) -> AsyncIterator[Feedback]:
    """Feedback on a fresh database, with `click`, `page_viewed` and `exposure` declared."""
    identity, consent = IdentityStandIn(), ConsentStandIn()
    token_key = tmp_path / "token_key"
    token_key.write_bytes(TOKEN_KEY)
    url = await database("feedback")
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(around_it(identity, consent))
        settings = Settings(
            database_url=url,  # type: ignore[arg-type]
            nats_url=nats_url,
            identity_address=address,
            consent_address=address,
            token_key_file=token_key,
            drain_s=0.0,
            stop_grace_s=1.0,
        )
        app = App("feedback", RpcServer(settings), Telemetry("feedback", None, ratio=0.0))
        stack.push_async_callback(app.close)
        await build(settings, app)
        channel = connect(await stack.enter_async_context(running(app)))
        stack.push_async_callback(channel.close)
        pool = await create_pool(url, size=2)
        stack.push_async_callback(pool.close)
        # Any service's database has the tables of a log.
        log_pool = await create_pool(await database("feedback"), size=4)
        stack.push_async_callback(log_pool.close)
        decisions = await stack.enter_async_context(deciding(log_pool, nats_url, address))
        stub = FeedbackServiceStub(channel)
        declared = [
            schema("click", item_required=True, reward=1.0),
            schema("page_viewed", purposes=[]),
            schema("exposure"),
        ]
        await stub.PublishEventSchemas(pb.PublishEventSchemasRequest(schemas=declared), timeout=TIMEOUT_S)
        yield Feedback(
            stub,
            RectificationServiceStub(channel),
            HoldingsServiceStub(channel),
            pool,
            identity,
            consent,
            decisions,
            OperationsServiceStub(channel),
            decisions.bus,
        )
