"""A caller that leaves a stream: no error of ours, in no log, and what the stream held is let go at once."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from comity.features.v1 import features_service_pb2 as pb
from comity.features.v1 import features_service_pb2_grpc as pb_grpc
from structlog.testing import capture_logs

from services.chassis import rpc_client
from services.chassis.rpc_server import RpcServer
from services.chassis.tracing import span
from tests.integration.chassis.test_rpc import settings
from tests.traced import Traced
from tests.waiting import eventually

STREAMS_COUNT = 12


class Features(pb_grpc.FeatureServiceServicer):
    """Streams for ever, a page inside a span, from a generator inside a generator, as an export does."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    async def GetItemColumns(  # noqa: N802
        self, request: pb.GetItemColumnsRequest, context: Any
    ) -> AsyncIterator[pb.GetItemColumnsResponse]:
        with span("outer"):
            async for page in self.pages():
                yield page

    async def pages(self) -> AsyncIterator[pb.GetItemColumnsResponse]:
        self.begun += 1
        try:
            while True:
                yield pb.GetItemColumnsResponse(columns_version="v" * 1000)
        finally:
            self.ended += 1


@pytest.mark.parametrize("leaves", ["cancelled", "forgotten", "out of time", "disconnected"])
async def test_caller_that_leaves_a_stream_is_no_error(leaves: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it cancels, drops the call, runs out of time or goes away: nothing above INFO is logged."""
    caplog.set_level(logging.INFO)
    traced, features = Traced(), Features()  # type: ignore[abstract]
    server = RpcServer(settings(), traced.telemetry)
    server.add(pb_grpc.add_FeatureServiceServicer_to_server, features)
    address = f"127.0.0.1:{await server.start()}"
    try:
        with capture_logs() as logged:
            await asyncio.gather(*(leave(address, leaves) for _ in range(STREAMS_COUNT)))
            gc.collect()

            async def all_ended() -> bool:
                return features.begun == features.ended

            await eventually(all_ended)
    finally:
        await server.stop()
        traced.telemetry.shutdown()
    gc.collect()
    await asyncio.sleep(0)
    assert [one for one in logged if one["log_level"] not in ("debug", "info")] == []
    assert [(one.name, one.getMessage()) for one in caplog.records if one.levelno > logging.INFO] == []


async def read_all(stream: Any) -> None:
    async for _ in stream:
        pass


async def leave(address: str, how: str) -> None:
    """Begin a stream, read some of it, and be gone."""
    # As a backend's, which leaves it to the service whether to trace.
    channel = grpc.aio.insecure_channel(address, options=rpc_client.CHANNEL_OPTIONS)
    timeout_s = 0.5 if how == "out of time" else 30.0
    stub = pb_grpc.FeatureServiceStub(channel)
    stream = stub.GetItemColumns(pb.GetItemColumnsRequest(feature_set_version="v"), timeout=timeout_s)
    if how == "out of time":
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(stream)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        for _ in range(5):
            assert await stream.read()
    if how == "cancelled":
        stream.cancel()
    elif how == "forgotten":
        del stream
    await channel.close()
