"""The log as feedback gives it out again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from comity.feedback.v1 import feedback_service_pb2 as pb

from learning.log import _key, replay_log
from services.chassis.errors import Kind, ServiceError
from tests.virtual_time import in_virtual_time


class BrokenStub:
    """Ten decisions and ten outcomes, some a page; each reading but the last breaks off a page later than the last.

    Before each new reading the first decision that is left is deleted, as by an erasure.
    """

    def __init__(self, breaks: int, page: int = 3) -> None:
        self.readings = 0
        self._breaks = breaks
        self._page = page
        self._log = [pb.ReplayedEvent() for _ in range(20)]
        for n, event in enumerate(self._log[:10]):
            event.decision.decision_id = f"d{n}"
            event.decision.decided_at.FromMilliseconds(n // 2)
        for n, event in enumerate(self._log[10:]):
            event.outcome.decision_id = f"o{n}"
            event.position.xid = n

    async def ReplayEvents(self, request: pb.ReplayEventsRequest) -> AsyncIterator[pb.ReplayEventsResponse]:  # noqa: N802
        self.readings += 1
        log = self._log[self.readings - 1 :]
        for number, start in enumerate(range(0, len(log), self._page), start=1):
            yield pb.ReplayEventsResponse(events=log[start : start + self._page], withheld_count=1)
            if number == self.readings <= self._breaks:
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


@in_virtual_time
async def test_a_log_that_breaks_off_is_read_on_from_where_it_was() -> None:
    """Nothing twice and nothing left out, though pages end elsewhere the next time; each page is withheld from once."""
    stub: Any = BrokenStub(3)
    seen: list[str] = []
    withheld = 0
    async for page in replay_log(stub, pb.ReplayEventsRequest()):
        seen += [event.decision.decision_id or event.outcome.decision_id for event in page.events]
        withheld += page.withheld_count
    assert seen == [*(f"d{n}" for n in range(10)), *(f"o{n}" for n in range(10))]
    assert (stub.readings, withheld) == (4, 6)


class PlacedStub(BrokenStub):
    """The same of a feedback that tells where a page ends, a page being two messages, and goes on after that place."""

    def __init__(self, breaks: int) -> None:
        super().__init__(breaks, page=4)
        self.began: list[int] = []

    async def ReplayEvents(self, request: pb.ReplayEventsRequest) -> AsyncIterator[pb.ReplayEventsResponse]:  # noqa: N802
        self.readings += 1
        # Its own word for a place, which only it reads.
        start = request.after.position.position
        self.began.append(start)
        messages = 0
        while start < len(self._log):
            page, start = self._log[start : start + self._page], start + self._page
            for half in (page[:2], page[2:]):
                messages += 1
                if messages == self.readings + 1 and self.readings <= self._breaks:
                    raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
                response = pb.ReplayEventsResponse(events=half)
                if half[-1] is page[-1]:
                    response.withheld_count = 1
                    response.end.position.position = start
                yield response


@in_virtual_time
async def test_log_that_tells_places_is_read_on_after_the_last() -> None:
    """Not from its beginning: else a log that takes longer than a call would never be read to its end."""
    stub: Any = PlacedStub(4)
    request = pb.ReplayEventsRequest()
    pages = [page async for page in replay_log(stub, request)]
    assert [_key(event) for page in pages for event in page.events] == [_key(event) for event in stub._log]
    assert sum(page.withheld_count for page in pages) == 5
    assert (stub.began, request) == ([0, 0, 4, 8, 16], pb.ReplayEventsRequest())


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
