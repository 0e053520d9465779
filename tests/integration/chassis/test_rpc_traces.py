"""One trace over services, SQL and Redis; and nothing where the call is not sampled."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import grpc
import pytest
import redis.asyncio
from comity.consent.v1 import consent_service_pb2 as pb
from comity.consent.v1 import consent_service_pb2_grpc as pb_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import SecretStr

from cli.stack.servers import Servers
from services.chassis import rpc_client, tracing
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_server import RpcServer
from services.chassis.settings import ServiceSettings
from services.chassis.telemetry import Telemetry
from tests.traced import Kept
from tests.waiting import eventually


def history(subject_id: str) -> pb.HistoryRequest:
    request = pb.HistoryRequest()
    request.subject.subject_id = subject_id
    return request


class Consent(pb_grpc.ConsentServiceServicer):
    """Asks another service, Postgres and Redis, or fails, as the request says."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", cache: "redis.asyncio.Redis") -> None:
        self.pool = pool
        self.cache = cache
        self.next: Any = None
        self.traceparents: list[str] = []
        self.peers: set[str] = set()

    async def History(self, request: pb.HistoryRequest, context: Any) -> pb.HistoryResponse:  # noqa: N802
        self.traceparents.append(tracing.traceparent())
        self.peers.add(context.peer())
        if request.subject.subject_id == "b" * 26:
            raise ServiceError(Kind.NOT_FOUND, "NOBODY", "nobody is there")
        if request.subject.subject_id == "c" * 26:
            await rpc_client.call(self.next, history("a" * 26), 5.0)
        await self.pool.fetchval("SELECT $1::text", "canary")
        await self.cache.mget(["canary", "canary2"])
        return pb.HistoryResponse()


class Served:
    def __init__(self, kept: Kept, telemetry: Telemetry, consent: Consent, address: str) -> None:
        self.kept = kept
        self.telemetry = telemetry
        self.consent = consent
        self.address = address

    async def ask(self, subject_id: str, traceparent: str | None) -> None:
        """As a backend would: its channel knows nothing of our tracing."""
        metadata = (("traceparent", traceparent),) if traceparent is not None else None
        async with grpc.aio.insecure_channel(self.address, options=rpc_client.CHANNEL_OPTIONS) as channel:
            await pb_grpc.ConsentServiceStub(channel).History(history(subject_id), timeout=10, metadata=metadata)

    def spans(self) -> list[ReadableSpan]:
        self.telemetry.flush()
        return self.kept.spans


@pytest.fixture
def kept() -> Iterator[tuple[Kept, Telemetry]]:
    exporter = Kept()
    telemetry = Telemetry("sample", exporter, ratio=0.0)
    yield exporter, telemetry
    telemetry.shutdown()


@pytest.fixture
async def served(kept: tuple[Kept, Telemetry], servers: Servers) -> AsyncIterator[Served]:
    pool = await asyncpg.create_pool(servers.postgres.url, min_size=1, max_size=2)
    cache = redis.asyncio.Redis.from_url(servers.valkey.url)
    consent = Consent(pool, cache)  # type: ignore[abstract]
    settings = ServiceSettings(database_url=SecretStr("x"), nats_url="x", drain_s=0.0, stop_grace_s=1.0)
    server = RpcServer(settings, kept[1])
    server.add(pb_grpc.add_ConsentServiceServicer_to_server, consent)
    address = f"127.0.0.1:{await server.start()}"
    channel = rpc_client.connect(address)
    assert await rpc_client.warm(channel)
    consent.next = pb_grpc.ConsentServiceStub(channel).History
    yield Served(*kept, consent, address)
    await channel.close()
    await server.stop()
    await cache.aclose()
    await pool.close()


TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-b7ad6b7169203331-00"


async def test_a_sampled_call_is_one_trace_through_everything(served: Served) -> None:
    """Server, client, server, SQL and Redis hang together under the caller's trace; statements hold no values."""
    await served.ask("c" * 26, SAMPLED)
    spans = served.spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    by_id = {span.context.span_id: span for span in spans}
    path = "/comity.consent.v1.ConsentService/History"
    (inner,) = [s for s in spans if s.kind is SpanKind.SERVER and s.parent and s.parent.span_id in by_id]
    assert inner.parent is not None
    client = by_id[inner.parent.span_id]
    assert (inner.name, client.name, client.kind) == (path, path, SpanKind.CLIENT)
    assert client.parent is not None
    outer = by_id[client.parent.span_id]
    assert outer.parent is not None
    assert f"{outer.parent.span_id:016x}" == "b7ad6b7169203331"
    for server in (inner, outer):
        children = {span.name for span in spans if span.parent == server.context}
        assert {"SELECT", "MGET"} <= children
    statements = {str((span.attributes or {}).get("db.statement")) for span in spans}
    assert {"SELECT $1::text", "MGET ? ?"} <= statements
    assert not [span.name for span in spans if "canary" in span.to_json()]


@pytest.mark.parametrize("traceparent", [None, NOT_SAMPLED])
async def test_a_call_that_is_not_sampled_creates_nothing_anywhere(served: Served, traceparent: str | None) -> None:
    """Neither here nor in the service behind: it is told, and throws no dice of its own."""
    served.telemetry._ratio = 0.0 if traceparent is None else 1.0
    await served.ask("c" * 26, traceparent)
    assert served.spans() == []
    assert served.consent.traceparents == ["", ""]


async def test_the_service_behind_does_not_throw_the_dice_again(served: Served) -> None:
    """Inside a call that was decided against, an onward call says so, whatever the ratio there."""
    served.telemetry._ratio = 1.0
    await served.consent.next(history("a" * 26), timeout=10)
    assert served.spans() == []


async def test_a_refusal_is_seen_in_its_span(served: Served) -> None:
    """The span carries the status and the reason."""
    with pytest.raises(grpc.aio.AioRpcError):
        await served.ask("b" * 26, SAMPLED)

    async def ended() -> bool:
        # The answer reaches its caller a moment before the span of the call that gave it has ended.
        return bool(served.spans())

    await eventually(ended)
    (span,) = served.spans()
    attributes = span.attributes or {}
    assert attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert (attributes[tracing.COMITY_ERROR_REASON], attributes["error.type"]) == ("NOBODY", "NOT_FOUND")
    assert span.status.status_code is not StatusCode.OK


async def test_traced_and_plain_calls_share_their_connection(served: Served) -> None:
    """The two channels behind connect() cost one connection, so that a traced call is as warm as the others."""
    request = history("a" * 26)
    await served.consent.next(request, timeout=10)
    with tracing.tracer().start_as_current_span("call", kind=SpanKind.SERVER):
        await served.consent.next(request, timeout=10)
    assert len(served.consent.traceparents) == 2
    assert served.consent.traceparents[0] == ""
    assert served.consent.traceparents[1] != ""
    assert len(served.consent.peers) == 1
