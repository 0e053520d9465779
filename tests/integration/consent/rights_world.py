"""The rights of a person over a real ledger, with services that hold what a test says and fail when it says."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as common_pb
from comity.consent.v1 import privacy_service_pb2 as pb
from comity.consent.v1 import privacy_service_pb2_grpc as pb_grpc

from services.chassis.access import PostgresAccessLog
from services.chassis.clock import SystemClock
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import connect
from services.chassis.rpc_server import RpcServer
from services.consent.domain.commands import Person, Who
from services.consent.domain.erasure import SERVICES, Step
from services.consent.domain.receipts import Counts
from services.consent.handlers.erasing import EraseWorker
from services.consent.handlers.privacy import PrivacyHandlers
from services.consent.handlers.privacy_ports import Participant, Ports
from services.consent.service import PrivacyService
from services.consent.store.erasures import PostgresErasures
from services.consent.store.holdings import ConsentHoldings, OwnParticipant
from services.consent.store.ledger import PostgresLedger
from services.consent.store.policies import PostgresPolicies
from services.consent.store.receipts import Ed25519Signer, PostgresReceipts

CONTROLLER = "a shop"
TIMEOUT_S = 10.0


class KilledError(Exception):
    """The process ended here."""


@dataclass
class FakeService:
    """A participant: rows by member; steps are idempotent, as every service's must be.

    Args:
        down: every call is refused.
        fails: steps that fail this many times before anything was done.
        dies_after: steps after whose effect the caller is killed, once each.
        taken: steps in the order they had their effect; a repetition is not one.
    """

    name: str
    held: dict[str, int] = field(default_factory=dict)
    down: bool = False
    fails: dict[Step, int] = field(default_factory=dict)
    dies_after: set[Step] = field(default_factory=set)
    taken: list[Step] = field(default_factory=list)
    calls: int = 0
    gone: dict[tuple[str, Step], int] = field(default_factory=dict)

    async def take(self, step: Step, erasure_id: str, member_ids: Sequence[str]) -> Counts:
        """See handlers.privacy_ports.Participant."""
        self.calls += 1
        self._answer()
        if self.fails.get(step, 0):
            self.fails[step] -= 1
            raise ServiceError(Kind.UNAVAILABLE, "OUT_FOR_LUNCH", "try again")
        if (erasure_id, step) not in self.gone:
            self.taken.append(step)
            count = sum(self.held.pop(one, 0) for one in member_ids) if step is Step.DELETE else 0
            self.gone[erasure_id, step] = count
        if step in self.dies_after:
            self.dies_after.discard(step)
            raise KilledError
        return (("postgres", "rows", self.gone[erasure_id, step]),)

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[Any]:
        """See handlers.privacy_ports.Participant."""
        self._answer()
        for member_id in member_ids:
            records = [
                holdings_pb.HeldRecord(store="postgres", name="rows", schema="row", member_id=member_id)
                for _ in range(self.held.get(member_id, 0))
            ]
            if records:
                yield records

    async def describe(self) -> Any:
        """See handlers.privacy_ports.Participant."""
        self._answer()
        return [holdings_pb.Holding(store="postgres", name="rows")]

    def _answer(self) -> None:
        if self.down:
            raise ServiceError(Kind.UNAVAILABLE, "PARTICIPANT_UNAVAILABLE", f"{self.name} does not answer")


@dataclass
class FakeIdentity:
    """handlers.ledger.IdentityReader: a person is the members said here, else one of their own."""

    members: dict[str, tuple[str, ...]] = field(default_factory=dict)

    async def person(self, who: Who) -> Person:
        """See handlers.ledger.IdentityReader."""
        name = who.subject_id or who.identities[0].value
        members = self.members.get(name, (name,))
        return Person(members[0], members[0], members)


@dataclass
class FakeRectifier:
    """handlers.privacy_ports.Rectifier."""

    asked: list[tuple[tuple[str, ...], pb.RectifyRequest]] = field(default_factory=list)

    async def rectify(self, member_ids: Sequence[str], request: Any) -> int:
        """See handlers.privacy_ports.Rectifier."""
        self.asked.append((tuple(member_ids), request))
        return 3


@dataclass
class Rights:
    """PrivacyService over a ledger, and what a test may look into."""

    privacy: Any
    services: dict[str, FakeService]
    identity: FakeIdentity
    rectifier: FakeRectifier
    ports: Ports
    woken: asyncio.Event

    def worker(self) -> EraseWorker:
        """A worker that knows nothing but the ledger, as after a restart."""
        return EraseWorker(self.ports)

    async def erase(self, subject_id: str, request_id: str = "e1") -> str:
        """Begin an erasure."""
        request = pb.EraseRequest(
            request_id=request_id,
            subject=common_pb.SubjectRef(subject_id=subject_id),
            access=common_pb.Access(accessor="officer", reason="asked for it"),
        )
        return str((await self.privacy.Erase(request, timeout=TIMEOUT_S)).erasure_id)

    async def status(self, erasure_id: str) -> pb.GetErasureResponse:
        """How far it is."""
        request = pb.GetErasureRequest(erasure_id=erasure_id)
        response: pb.GetErasureResponse = await self.privacy.GetErasure(request, timeout=TIMEOUT_S)
        return response

    async def export(self, subject_id: str) -> list[tuple[str, str]]:
        """(service, schema) of everything held."""
        request = pb.ExportRequest(
            subject=common_pb.SubjectRef(subject_id=subject_id), access=common_pb.Access(accessor="officer")
        )
        return [
            (page.service, record.schema.rpartition(".")[2])
            async for page in self.privacy.Export(request, timeout=TIMEOUT_S)
            for record in page.records
        ]


@asynccontextmanager
async def rights_over(consent: Any, settings: Any) -> AsyncIterator[Rights]:
    """PrivacyService on the database of a running consent service."""
    clock = SystemClock()
    policies = PostgresPolicies(consent.pool, clock)
    ledger = PostgresLedger(consent.pool, consent.read_pool, policies)
    fakes = {name: FakeService(name) for name in SERVICES if name != "consent"}
    participants: dict[str, Participant] = {**fakes}
    participants["consent"] = OwnParticipant(consent.pool, ConsentHoldings(consent.pool))
    identity, rectifier, woken = FakeIdentity(), FakeRectifier(), asyncio.Event()
    ports = Ports(
        erasures=PostgresErasures(consent.pool, ledger, clock),
        participants=participants,
        identity=identity,
        receipts=PostgresReceipts(consent.pool, policies),
        rectifier=rectifier,
        accesses=PostgresAccessLog(consent.pool, clock, outlives_erasure=True),
        signer=Ed25519Signer(b"k" * 32),
        clock=clock,
    )
    handlers = PrivacyHandlers(ports, drain_s=0.05, pause=consent.pauses, wake=woken.set)
    server = RpcServer(settings)
    server.add(pb_grpc.add_PrivacyServiceServicer_to_server, PrivacyService(handlers))
    channel = connect(f"127.0.0.1:{await server.start()}")
    try:
        yield Rights(pb_grpc.PrivacyServiceStub(channel), fakes, identity, rectifier, ports, woken)
    finally:
        await channel.close()
        await server.stop()
