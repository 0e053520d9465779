"""Identity over a real Postgres and real gRPC, in this process."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from comity.common.v1 import holdings_pb2_grpc as holdings_pb_grpc
from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import consent_service_pb2 as consent_pb
from comity.consent.v1 import consent_service_pb2_grpc as consent_pb_grpc
from comity.identity.v1 import identity_service_pb2 as pb
from comity.identity.v1 import identity_service_pb2_grpc as pb_grpc

from services.chassis.access import PostgresAccessLog
from services.chassis.clock import SystemClock
from services.chassis.holdings import HoldingsService
from services.chassis.postgres import Pool, create_pool
from services.chassis.rpc_client import connect
from services.chassis.rpc_server import RpcServer
from services.chassis.settings import ServiceSettings
from services.identity.clients import GrpcConsentReader
from services.identity.domain.identities import NAMESPACES
from services.identity.handlers import IdentityHandlers, KeyHandlers
from services.identity.service import IdentityService, KeyService
from services.identity.store.holdings import IdentityHoldings
from services.identity.store.keys import PostgresKeys, Wrapping
from services.identity.store.links import PostgresLinks
from services.identity.store.placeholders import PostgresPlaceholders
from services.identity.store.subjects import PostgresSubjects

PEPPER = b"pepper of the tests, 32 bytes long"
KEK = b"key that wraps keys, 32 bytes long"


async def not_asked(request: Any, context: Any) -> Any:
    """A method that identity does not call."""
    raise AssertionError("identity does not ask this")


@dataclass
class ConsentStandIn(consent_pb_grpc.ConsentServiceServicer):
    """Consent over gRPC: a member says yes to everything that `states` has no other answer for.

    Args:
        states: by member and purpose.
        asked: the queries, in order.
        on_ask: awaited before an answer.
    """

    Record = Revoke = History = PublishPurposes = DescribeConsent = staticmethod(not_asked)

    states: dict[tuple[str, str], str] = field(default_factory=dict)
    asked: list[consent_pb.EvaluateQuery] = field(default_factory=list)
    on_ask: Callable[[], Awaitable[object]] | None = None

    def says(self, member_id: str, state: str, purpose: str = "identity_linking") -> None:
        """`says(member, "DENIED")`; UNSPECIFIED: never asked."""
        self.states[member_id, purpose] = state

    async def Evaluate(self, request: consent_pb.EvaluateRequest, context: Any) -> consent_pb.EvaluateResponse:  # noqa: N802
        """The strictest of the members' answers."""
        self.asked.extend(request.queries)
        if self.on_ask is not None:
            await self.on_ask()
        return consent_pb.EvaluateResponse(evaluations=[self._evaluation(query) for query in request.queries])

    def _evaluation(self, query: consent_pb.EvaluateQuery) -> consent_pb.Evaluation:
        evaluation = consent_pb.Evaluation()
        for purpose in query.purposes or sorted({purpose for _, purpose in self.states}):
            if query.signals.gpc:
                evaluation.verdicts.add(purpose=purpose, state=consent_pb.CONSENT_STATE_OBJECTED)
                continue
            said = [self.states.get((one.subject_id, purpose), "GRANTED") for one in query.members]
            known = [consent_pb.ConsentState.Value(f"CONSENT_STATE_{state}") for state in said]
            strictest = max(known, key=lambda state: (state != consent_pb.CONSENT_STATE_GRANTED, state))
            allowed = strictest == consent_pb.CONSENT_STATE_GRANTED
            evaluation.verdicts.add(purpose=purpose, allowed=allowed, state=strictest)
        return evaluation


@dataclass(frozen=True)
class Identity:
    """A running identity service and what a test may look into."""

    url: str
    pool: Pool
    consent: ConsentStandIn
    consent_server: RpcServer
    service: pb_grpc.IdentityServiceStub
    keys: pb_grpc.KeyServiceStub
    holdings: holdings_pb_grpc.HoldingsServiceStub

    async def resolve(self, *presented: str) -> pb.ResolvedSubject:
        """Who `user_id:1`, `anonymous_id:a` … are, as one query."""
        response = await self.service.Resolve(
            pb.ResolveRequest(queries=[pb.ResolveQuery(identities=identities(*presented))]), timeout=10
        )
        return response.subjects[0]

    async def link(
        self, request_id: str, *presented: str, signals: common_pb.ConsentSignals | None = None
    ) -> pb.LinkResponse:
        """State that these are one person."""
        request = pb.LinkRequest(request_id=request_id, identities=identities(*presented), consent_signals=signals)
        return await self.service.Link(request, timeout=10)

    async def unlink(self, request_id: str, link_id: str) -> pb.UnlinkResponse:
        """Take it back."""
        return await self.service.Unlink(pb.UnlinkRequest(request_id=request_id, link_id=link_id), timeout=10)

    async def events(self, stream_id: str) -> list[str]:
        """Types of what was recorded, in order."""
        rows = await self.pool.fetch("SELECT type FROM events WHERE stream_id = $1 ORDER BY version", stream_id)
        return [row["type"].rpartition(".")[2] for row in rows]


def identities(*presented: str) -> list[common_pb.Identity]:
    """`user_id:1` as messages; what is hashed is hashed here."""
    pairs = [one.split(":") for one in presented]
    return [common_pb.Identity(namespace=name, value=value_of(name, value)) for name, value in pairs]


def value_of(namespace: str, name: str) -> str:
    """What a caller presents for a name in this namespace."""
    hashed = NAMESPACES[namespace].hashed if namespace in NAMESPACES else False
    return hashlib.sha256(name.encode()).hexdigest() if hashed else name


@pytest.fixture
async def identity(database: Callable[[str], Awaitable[str]]) -> AsyncIterator[Identity]:
    """Identity on a fresh database."""
    url = await database("identity")
    pool = await create_pool(url, size=8)
    clock = SystemClock()
    consent, consent_server = ConsentStandIn(), RpcServer(_settings(url))
    consent_server.add(consent_pb_grpc.add_ConsentServiceServicer_to_server, consent)
    consent_channel = connect(f"127.0.0.1:{await consent_server.start()}")
    server = RpcServer(_settings(url))
    handlers = IdentityHandlers(
        PostgresSubjects(pool),
        PostgresLinks(pool),
        GrpcConsentReader(consent_channel),
        PostgresAccessLog(pool, clock),
        PostgresPlaceholders(pool),
        clock,
        pepper=PEPPER,
        holdout_salt="salt",
    )
    server.add(pb_grpc.add_IdentityServiceServicer_to_server, IdentityService(handlers))
    accesses = PostgresAccessLog(pool, clock)
    keys = KeyHandlers(PostgresKeys(pool, Wrapping(KEK), clock), accesses)
    server.add(pb_grpc.add_KeyServiceServicer_to_server, KeyService(keys))
    server.add(
        holdings_pb_grpc.add_HoldingsServiceServicer_to_server,
        HoldingsService(pool, IdentityHoldings(pool, clock), accesses),
    )
    channel: grpc.aio.Channel = connect(f"127.0.0.1:{await server.start()}")
    stub, key_stub = pb_grpc.IdentityServiceStub(channel), pb_grpc.KeyServiceStub(channel)
    holdings_stub = holdings_pb_grpc.HoldingsServiceStub(channel)
    yield Identity(url, pool, consent, consent_server, stub, key_stub, holdings_stub)
    await channel.close()
    await server.stop()
    await consent_channel.close()
    await consent_server.stop()
    await pool.close()


def _settings(url: str) -> ServiceSettings:
    return ServiceSettings(database_url=url, nats_url="", drain_s=0.0)  # type: ignore[arg-type]
