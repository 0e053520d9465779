"""Consent and identity over real Postgres and real gRPC, in this process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import consent_service_pb2 as pb
from comity.consent.v1 import consent_service_pb2_grpc as pb_grpc
from comity.identity.v1 import identity_service_pb2_grpc as identity_pb_grpc

from cli.stack.ports import free_port
from services.chassis.access import PostgresAccessLog
from services.chassis.clock import SystemClock
from services.chassis.postgres import Pool, create_pool
from services.chassis.rpc_client import connect, warm
from services.chassis.rpc_server import RpcServer
from services.chassis.settings import ServiceSettings
from services.consent.clients import GrpcIdentityReader
from services.consent.handlers.ledger import ConsentHandlers
from services.consent.service import ConsentService
from services.consent.store import ledger
from services.consent.store.ledger import PostgresLedger
from services.consent.store.policies import PostgresPolicies
from services.identity.clients import GrpcConsentReader
from services.identity.handlers import IdentityHandlers
from services.identity.service import IdentityService
from services.identity.store.links import PostgresLinks
from services.identity.store.placeholders import PostgresPlaceholders
from services.identity.store.subjects import PostgresSubjects
from tests.integration.consent.rights_world import CONTROLLER, Rights, rights_over

DRAIN_S = 0.05
# The production value is 25; a loaded test machine is no reason to fail.
EVALUATE_TIMEOUT_MS = 500

MakeDatabase = Callable[[str], Awaitable[str]]


@dataclass
class Pauses:
    """In place of asyncio.sleep: returns at once, or when the test says so."""

    asked_s: list[float] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None

    async def __call__(self, seconds: float) -> None:
        """Note it, and wait for the gate if there is one."""
        self.asked_s.append(seconds)
        self.began.set()
        if self.gate is not None:
            await self.gate.wait()


@dataclass(frozen=True)
class Consent:
    """A running consent service and what a test may look into."""

    url: str
    pool: Pool
    read_pool: Pool
    service: pb_grpc.ConsentServiceStub
    pauses: Pauses
    handlers: ConsentHandlers

    async def publish(self, *purposes: str, validate_only: bool = False) -> str:
        """Declare purposes, written `ads`, `ads:2` (its version) or `security:1:legitimate_interest`."""
        request = pb.PublishPurposesRequest(
            purposes=map(purpose, purposes), validate_only=validate_only, controller=CONTROLLER
        )
        return (await self.service.PublishPurposes(request, timeout=10)).policy_version

    async def record(
        self, request_id: str, subject: common_pb.SubjectRef, *, expires_at: datetime | None = None, **answers: str
    ) -> pb.RecordResponse:
        """`record("r1", who("m"), ads="GRANTED")`."""
        request = pb.RecordRequest(
            request_id=request_id,
            subject=subject,
            answers=[
                pb.PurposeAnswer(purpose=name, state=pb.ConsentState.Value(f"CONSENT_STATE_{state}"))
                for name, state in answers.items()
            ],
            mechanism="banner",
        )
        if expires_at is not None:
            request.expires_at.FromDatetime(expires_at)
        return await self.service.Record(request, timeout=10)

    @staticmethod
    @contextmanager
    def an_hour_ago() -> Iterator[datetime]:
        """What is recorded meanwhile is recorded an hour ago, as far as the ledger can tell; a time in between.

        So a grant that was valid has run out, and no test waits for that.
        """
        earlier = ledger.STANDINGS_SQL.replace("statement_timestamp()", "statement_timestamp() - interval '1 hour'")
        assert earlier != ledger.STANDINGS_SQL
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ledger, "STANDINGS_SQL", earlier)
            yield datetime.now(UTC) - timedelta(minutes=30)

    async def revoke(self, request_id: str, subject: common_pb.SubjectRef, *purposes: str) -> pb.RevokeResponse:
        """Take consent back."""
        request = pb.RevokeRequest(request_id=request_id, subject=subject, purposes=purposes)
        return await self.service.Revoke(request, timeout=10)

    async def evaluate(self, members: list[common_pb.Member], *purposes: str) -> pb.Evaluation:
        """The verdicts on one person."""
        query = pb.EvaluateQuery(members=members, purposes=purposes)
        return (await self.service.Evaluate(pb.EvaluateRequest(queries=[query]), timeout=10)).evaluations[0]

    async def states(self, members: list[common_pb.Member], *purposes: str) -> list[str]:
        """`GRANTED`, `allowed UNSPECIFIED` …: the states, and whether one but GRANTED is allowed or GRANTED is not."""
        found = []
        for verdict in (await self.evaluate(members, *purposes)).verdicts:
            state = pb.ConsentState.Name(verdict.state).removeprefix("CONSENT_STATE_")
            surprise = verdict.allowed != (state == "GRANTED")
            found.append(f"{'allowed' if verdict.allowed else 'refused'} {state}" if surprise else state)
        return found


def purpose(text: str) -> pb.Purpose:
    """See Consent.publish."""
    name, version, basis, *_ = [*text.split(":"), "", ""][:3] if ":" in text else [text, "1", "consent"]
    return pb.Purpose(
        id=name,
        description=f"what {name} is for",
        legal_basis=basis or "consent",
        owner="privacy@site",
        retention_days=30,
        version=int(version or 1),
    )


@pytest.fixture
def consent_port() -> int:
    """Where identity expects consent."""
    return free_port()


@pytest.fixture
async def identity(
    database: MakeDatabase, consent_port: int
) -> AsyncIterator[tuple[identity_pb_grpc.IdentityServiceStub, str]]:
    """Identity on a fresh database: its stub and its address."""
    url = await database("identity")
    pool = await create_pool(url, size=4)
    server = RpcServer(_settings(url))
    # Consent comes later, and is found where it was said to be: each of the two starts without the other.
    consent_channel = connect(f"127.0.0.1:{consent_port}")
    handlers = IdentityHandlers(
        PostgresSubjects(pool),
        PostgresLinks(pool),
        GrpcConsentReader(consent_channel),
        PostgresAccessLog(pool, SystemClock()),
        PostgresPlaceholders(pool),
        SystemClock(),
        pepper=b"p" * 32,
        holdout_salt="salt",
    )
    server.add(identity_pb_grpc.add_IdentityServiceServicer_to_server, IdentityService(handlers))
    address = f"127.0.0.1:{await server.start()}"
    channel = connect(address)
    yield identity_pb_grpc.IdentityServiceStub(channel), address
    await channel.close()
    await server.stop()
    await consent_channel.close()
    await pool.close()


@pytest.fixture
async def consent_over(database: MakeDatabase) -> AsyncIterator[Callable[..., Awaitable[Consent]]]:
    """`await consent_over(identity_address="…")`: consent on a fresh database, or on one given, or through a proxy."""
    closers: list[Callable[[], Awaitable[object]]] = []

    async def make(
        *, identity_address: str = "127.0.0.1:1", url: str = "", write_url: str = "", port: int = 0
    ) -> Consent:
        url = url or await database("consent")
        pool = await create_pool(write_url or url, size=8)
        read_pool = await create_pool(url, size=8, statement_timeout_ms=EVALUATE_TIMEOUT_MS)
        identity_channel = connect(identity_address)
        pauses, clock = Pauses(), SystemClock()
        policies = PostgresPolicies(pool, clock)
        handlers = ConsentHandlers(
            PostgresLedger(pool, read_pool, policies),
            policies,
            GrpcIdentityReader(identity_channel),
            PostgresAccessLog(pool, clock, outlives_erasure=True),
            clock,
            drain_s=DRAIN_S,
            pause=pauses,
        )
        server = RpcServer(_settings(url, port))
        server.add(pb_grpc.add_ConsentServiceServicer_to_server, ConsentService(handlers))
        channel = connect(f"127.0.0.1:{await server.start()}")
        if port:
            # Identity has tried the address in vain already, and gRPC pauses before it tries again.
            assert await warm(channel)
        closers.extend([pool.close, read_pool.close, identity_channel.close, server.stop, channel.close])
        return Consent(url, pool, read_pool, pb_grpc.ConsentServiceStub(channel), pauses, handlers)

    yield make
    for close in reversed(closers):
        await close()


@pytest.fixture
async def consent(consent_over: Callable[..., Awaitable[Consent]]) -> Consent:
    """Consent on a fresh database, with two purposes, while identity is away."""
    made = await consent_over()
    await made.publish("ads", "measurement")
    return made


@pytest.fixture
async def stitched(
    identity: tuple[identity_pb_grpc.IdentityServiceStub, str],
    consent_over: Callable[..., Awaitable[Consent]],
    consent_port: int,
) -> tuple[identity_pb_grpc.IdentityServiceStub, Consent]:
    """Consent with an identity service that answers."""
    stub, address = identity
    made = await consent_over(identity_address=address, port=consent_port)
    await made.publish("ads", "measurement", "identity_linking")
    return stub, made


@pytest.fixture
async def rights(consent: Consent) -> AsyncIterator[Rights]:
    """The rights of a person over the ledger of the fixture `consent`."""
    async with rights_over(consent, _settings(consent.url)) as made:
        yield made


def _settings(url: str, port: int = 0) -> ServiceSettings:
    return ServiceSettings(listen=f"127.0.0.1:{port}", database_url=url, nats_url="", drain_s=0.0)  # type: ignore[arg-type]
