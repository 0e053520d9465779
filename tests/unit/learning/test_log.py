"""The log as feedback gives it out again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from comity.feedback.v1 import feedback_service_pb2 as pb

from learning.log import replay_log
from services.chassis.errors import Kind, ServiceError
from tests.virtual_time import in_virtual_time


class SilentStub:
    """Gives out a little, and then nothing any more."""

    async def ReplayEvents(self, request: pb.ReplayEventsRequest) -> AsyncIterator[pb.ReplayEventsResponse]:  # noqa: N802
        yield pb.ReplayEventsResponse()
        await asyncio.Event().wait()


@in_virtual_time
async def test_a_log_that_falls_silent_is_an_error() -> None:
    """However long it takes to read: a service that hangs does not keep its readers for ever."""
    stub: Any = SilentStub()
    with pytest.raises(ServiceError) as silent:
        async for _ in replay_log(stub, pb.ReplayEventsRequest()):
            pass
    assert (silent.value.kind, silent.value.reason) == (Kind.DEADLINE, "REPLAY_SILENT")
