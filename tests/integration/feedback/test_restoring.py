"""Feedback on a restored backup: who was erased since is gone before it can be called."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from comity.consent.v1 import privacy_service_pb2 as privacy_pb
from comity.consent.v1 import privacy_service_pb2_grpc as privacy_grpc

from services.chassis.errors import Kind, ServiceError
from services.chassis.events import Append
from services.chassis.eventstore import PostgresEventStore
from services.chassis.lifecycle import App
from services.chassis.postgres import create_pool
from services.chassis.rpc_server import RpcServer
from services.chassis.settings import ServiceSettings
from services.chassis.telemetry import Telemetry
from services.feedback.main import Settings, build
from tests.contract.samples import new_event
from tests.integration.feedback.conftest import TOKEN_KEY, member
from tests.waiting import eventually

ANN, BOB = member("ann"), member("bob")


class PrivacyStandIn(privacy_grpc.PrivacyServiceServicer):
    """A ledger that says Ann was erased; away while *down*."""

    def __init__(self) -> None:
        self.down = True
        self.asked_count = 0

    async def ListErasures(  # noqa: N802
        self, request: privacy_pb.ListErasuresRequest, context: Any
    ) -> privacy_pb.ListErasuresResponse:
        """See PrivacyService."""
        self.asked_count += 1
        if self.down:
            raise ServiceError(Kind.UNAVAILABLE, "DOWN", "as in the test")
        entries = [] if request.after else [privacy_pb.ErasureEntry(number=1, erasure_id="e1", member_ids=[ANN])]
        return privacy_pb.ListErasuresResponse(erasures=entries)

    async def GetErasure(  # noqa: N802
        self, request: privacy_pb.GetErasureRequest, context: Any
    ) -> privacy_pb.GetErasureResponse:
        """See PrivacyService."""
        return privacy_pb.GetErasureResponse(state=privacy_pb.ERASURE_STATE_COMPLETED)


async def test_the_erased_are_gone_before_a_restored_service_is_reachable(
    database: Callable[[str], Awaitable[str]], nats_url: str, tmp_path: Path
) -> None:
    """It waits for consent's ledger, and then has deleted who is in it; nothing about them is taken in again."""
    token_key = tmp_path / "token_key"
    token_key.write_bytes(TOKEN_KEY)
    url = await database("feedback")
    privacy = PrivacyStandIn()  # type: ignore[abstract]  # feedback asks it for nothing else
    async with AsyncExitStack() as stack:
        pool = await create_pool(url, size=2)
        stack.push_async_callback(pool.close)
        store = PostgresEventStore(pool)
        for name in (ANN, BOB):
            await store.append(Append(f"behavior of {name}", 0, (new_event(subject_id=name),)))
        # What the migrator does when it finds the tables in another cluster.
        await pool.execute("UPDATE log_epoch SET epoch = 2")
        server = RpcServer(ServiceSettings(database_url="", nats_url="", drain_s=0.0))  # type: ignore[arg-type]
        server.add(privacy_grpc.add_PrivacyServiceServicer_to_server, privacy)
        address = f"127.0.0.1:{await server.start()}"
        stack.push_async_callback(server.stop)
        settings = Settings(
            database_url=url,  # type: ignore[arg-type]
            nats_url=nats_url,
            identity_address=address,
            consent_address=address,
            token_key_file=token_key,
            drain_s=0.0,
        )
        app = App("feedback", RpcServer(settings), Telemetry("feedback", None, ratio=0.0))
        stack.push_async_callback(app.close)
        # The server starts, and reports SERVING, only when this has returned (chassis.lifecycle).
        building = asyncio.create_task(build(settings, app))

        async def asked() -> bool:
            return privacy.asked_count >= 2

        await eventually(asked)
        assert not building.done()
        privacy.down = False
        await building
        rows = await pool.fetch("SELECT subject_id FROM events WHERE subject_id <> ''")
        assert [row["subject_id"] for row in rows] == [BOB]
        assert await pool.fetchval("SELECT array_agg(member_id) FROM erased_members") == [ANN]
