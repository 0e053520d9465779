"""Calls of commands that run for long: what may pass is waited out, what will not is told with the call's name."""

import logging
from typing import Any

import grpc
import pytest
from comity.decision.v1 import decision_service_pb2 as pb

from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import TRIES_MAX, call, call_again
from tests.virtual_time import in_virtual_time

REQUEST = pb.ReplayRequest(decision_id="d1")


class Replay:
    """DecisionService.Replay that does not answer the first so many calls."""

    def __init__(self, fails: int, code: grpc.StatusCode = grpc.StatusCode.DEADLINE_EXCEEDED) -> None:
        self.calls = 0
        self._fails = fails
        self._code = code

    async def __call__(self, request: Any, timeout: float) -> pb.ReplayResponse:
        self.calls += 1
        if self.calls <= self._fails:
            raise grpc.aio.AioRpcError(self._code, grpc.aio.Metadata(), grpc.aio.Metadata())
        return pb.ReplayResponse(identical=True)


@in_virtual_time
async def test_a_slow_call_is_made_again_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """One slow answer ends no command of many minutes; whoever watches sees which call is slow."""
    replay = Replay(2)
    with caplog.at_level(logging.WARNING):
        assert (await call_again(replay, REQUEST, 10.0)).identical
    assert replay.calls == 3
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["decision.Replay"] * 2


@in_virtual_time
async def test_a_call_that_never_comes_back_is_named() -> None:
    """With how often it was tried."""
    with pytest.raises(ServiceError, match=f"decision.Replay was tried {TRIES_MAX} times") as raised:
        await call_again(Replay(TRIES_MAX, grpc.StatusCode.UNAVAILABLE), REQUEST, 10.0)
    assert (raised.value.kind, raised.value.reason) == (Kind.UNAVAILABLE, "RPC_UNAVAILABLE")


@in_virtual_time
async def test_what_is_refused_is_not_tried_again() -> None:
    """It would be refused again."""
    replay = Replay(1, grpc.StatusCode.NOT_FOUND)
    with pytest.raises(ServiceError):
        await call_again(replay, REQUEST, 10.0)
    assert replay.calls == 1


@in_virtual_time
async def test_a_call_that_fails_is_named_also_where_it_is_made_once() -> None:
    """Whoever made many of them wants to know which it was."""
    with pytest.raises(ServiceError, match=r"^decision\.Replay failed with DEADLINE_EXCEEDED$"):
        await call(Replay(1), REQUEST, 10.0)
