"""The log as feedback gives it out again."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub

from services.chassis.errors import Kind, ServiceError
from services.chassis.status import from_call_error

# A whole log may take an hour to read, a page of it never so long.
SILENCE_S_MAX = 120.0


async def replay_log(
    stub: FeedbackServiceStub, request: pb.ReplayEventsRequest
) -> AsyncIterator[pb.ReplayEventsResponse]:
    """What the log gives, for as long as it goes on giving.

    Raises:
        ServiceError: DEADLINE (REPLAY_SILENT); else as feedback raised it.
    """
    responses = aiter(stub.ReplayEvents(request))
    while True:
        try:
            async with asyncio.timeout(SILENCE_S_MAX):
                response = await anext(responses, None)
        except grpc.aio.AioRpcError as error:
            raise from_call_error(error) from error
        except TimeoutError as error:
            raise ServiceError(
                Kind.DEADLINE,
                "REPLAY_SILENT",
                f"Feedback gave nothing out for {SILENCE_S_MAX:g} s: see that it is up, and begin again.",
            ) from error
        if response is None:
            return
        yield response
