"""The log as feedback gives it out again."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub

from services.chassis.errors import Kind, ServiceError
from services.chassis.ports import Access
from services.chassis.reads import new_operation, operation_to_pb, this_user
from services.chassis.rpc_client import call_name, tried_again
from services.chassis.status import from_call_error

# A whole log may take an hour to read, a page of it never so long.
SILENCE_S_MAX = 120.0

Key = tuple[int | str, ...]


async def replay_log(
    stub: FeedbackServiceStub, request: pb.ReplayEventsRequest
) -> AsyncIterator[pb.ReplayEventsResponse]:
    """What the log gives, for as long as it goes on giving; one that breaks off is read again from where it was.

    Raises:
        ServiceError: DEADLINE (REPLAY_SILENT), after some tries; else as feedback raised it.
    """
    asked = pb.ReplayEventsRequest(operation=operation_to_pb(new_operation(Access(this_user(), "replay of the log"))))
    asked.MergeFrom(request)
    reading = _Reading(stub, asked)
    # Tries are counted anew for each page.
    while (page := await tried_again(call_name(request), reading.next_page)) is not None:
        yield page


class _Reading:
    """The log, begun again after the last place that feedback told, past what was given out before.

    A feedback of the release before tells no places and begins at the beginning; the keys of events do for both.
    """

    def __init__(self, stub: FeedbackServiceStub, request: pb.ReplayEventsRequest) -> None:
        self._stub = stub
        self._request = pb.ReplayEventsRequest()
        self._request.CopyFrom(request)
        self._pages: AsyncIterator[pb.ReplayEventsResponse] | None = None
        self._given: Key = ()
        self._given_pages = self._read_pages = 0
        self._is_again = False

    async def next_page(self) -> pb.ReplayEventsResponse | None:
        """The next page; None at the end.

        Raises:
            ServiceError: it broke off; the next call goes on.
        """
        while (page := await self._read()) is not None:
            self._read_pages += 1
            # What was deleted meanwhile moves the pages' ends: what was given out before is known by its key.
            fresh = [event for event in page.events if not self._is_again or _key(event) > self._given]
            if page.HasField("end"):
                self._request.after.CopyFrom(page.end)
            is_new = page.HasField("end") or self._read_pages > self._given_pages
            self._given_pages = max(self._given_pages, self._read_pages)
            if fresh:
                self._given = _key(fresh[-1])
            if fresh or is_new:
                withheld_count = page.withheld_count if is_new else 0
                return pb.ReplayEventsResponse(events=fresh, withheld_count=withheld_count) if self._is_again else page
        return None

    async def _read(self) -> pb.ReplayEventsResponse | None:
        if self._pages is None:
            self._pages, self._read_pages = aiter(self._stub.ReplayEvents(self._request)), 0
        try:
            async with asyncio.timeout(SILENCE_S_MAX):
                return await anext(self._pages, None)
        except grpc.aio.AioRpcError as error:
            self._begin_again()
            raise from_call_error(error, call_name(self._request)) from error
        except TimeoutError as error:
            self._begin_again()
            raise ServiceError(
                Kind.DEADLINE,
                "REPLAY_SILENT",
                f"feedback gave nothing out for {SILENCE_S_MAX:g} s: see that it is up, and begin again",
            ) from error

    def _begin_again(self) -> None:
        self._pages, self._is_again = None, True


def _key(event: pb.ReplayedEvent) -> Key:
    """Where an event is in the order of ReplayEvents: decisions by time and id, then the rest by position."""
    if event.WhichOneof("payload") == "decision":
        return 0, event.decision.decided_at.ToNanoseconds(), event.decision.decision_id
    return 1, event.position.epoch, event.position.xid, event.position.position
