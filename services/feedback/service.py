"""The gRPC face: unpack, call the use case, pack."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.feedback.v1 import feedback_service_pb2_grpc as pb_grpc

from services.chassis.envelope import from_position, to_position
from services.chassis.ports import AccessLog
from services.chassis.reads import carry, operation_of
from services.chassis.tracing import span
from services.chassis.turns import TURN, in_turns
from services.feedback.handlers.join import AwaitJoined
from services.feedback.handlers.publish import PublishEventSchemas
from services.feedback.handlers.rectify import RectifyBehavior
from services.feedback.handlers.replay import ReplayLog, ReplayPage
from services.feedback.handlers.track import TrackBehavior
from services.feedback.wire import (
    add_replayed,
    after_from_pb,
    kinds_from_pb,
    moment,
    place_to_pb,
    range_from_pb,
    rectification_from_pb,
    schema_from_pb,
    sent_from_pb,
    verdict_to_pb,
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

REPLAY_METHOD = "comity.feedback.v1.FeedbackService/ReplayEvents"
# A message of the replay stream ends with the fact that takes it past this: receivers bound what they take.
REPLAY_BYTES = 256 * 1024
# A caller without a deadline still gets an answer.
AWAIT_MAX_S = 60.0


class FeedbackService(pb_grpc.FeedbackServiceServicer):
    """FeedbackService over the use cases."""

    def __init__(
        self,
        *,
        track: TrackBehavior,
        replay: ReplayLog,
        publish: PublishEventSchemas,
        await_joined: AwaitJoined,
        accesses: AccessLog,
    ) -> None:
        self._track = track
        self._accesses = accesses
        self._replay = replay
        self._publish = publish
        self._await_joined = await_joined

    async def Track(  # noqa: N802
        self, request: pb.TrackRequest, context: Context
    ) -> pb.TrackResponse:
        """Take events in."""
        sent_at = moment(request.sent_at) if request.HasField("sent_at") else None
        tracked = await self._track([sent_from_pb(event) for event in request.events], sent_at)
        return pb.TrackResponse(
            results=[verdict_to_pb(verdict) for verdict in tracked.verdicts], position=to_position(tracked.position)
        )

    async def ReplayEvents(  # noqa: N802
        self,
        request: pb.ReplayEventsRequest,
        context: Context,
    ) -> AsyncIterator[pb.ReplayEventsResponse]:
        """Give the log out again; that it is read has been recorded before anything is given."""
        operation, member_ids = carry(operation_of(request.operation)), tuple(dict.fromkeys(request.member_ids))
        await self._accesses.operated(operation, REPLAY_METHOD, member_ids=member_ids, purpose=request.purpose)
        pages = self._replay(
            kinds_from_pb(request.kinds),
            range_from_pb(request),
            placement_id=request.placement_id,
            purpose=request.purpose,
            member_ids=member_ids,
            after=after_from_pb(request),
        )
        async for page in pages:
            async for response in _responses(page):
                yield response

    async def PublishEventSchemas(  # noqa: N802
        self,
        request: pb.PublishEventSchemasRequest,
        context: Context,
    ) -> pb.PublishEventSchemasResponse:
        """Declare types of behavior."""
        schemas = [schema_from_pb(schema) for schema in request.schemas]
        version = await self._publish(schemas, validate_only=request.validate_only)
        return pb.PublishEventSchemasResponse(version=version)

    async def AwaitPosition(  # noqa: N802
        self,
        request: pb.AwaitPositionRequest,
        context: Context,
    ) -> pb.AwaitPositionResponse:
        """Wait for decisions and their outcomes."""
        reached = await self._await_joined(from_position(request.position), timeout_s=AWAIT_MAX_S)
        return pb.AwaitPositionResponse(position=to_position(reached))


class RectificationService(pb_grpc.RectificationServiceServicer):
    """RectificationService over the use case."""

    def __init__(self, rectify: RectifyBehavior) -> None:
        self._rectify = rectify

    async def RectifyBehavior(  # noqa: N802
        self, request: pb.RectifyBehaviorRequest, context: Context
    ) -> pb.RectifyBehaviorResponse:
        """Put recorded behavior right."""
        with span("feedback.rectify"):
            return pb.RectifyBehaviorResponse(count=await self._rectify(rectification_from_pb(request)))


async def _responses(page: ReplayPage) -> AsyncIterator[pb.ReplayEventsResponse]:
    """The page in messages of bounded size; the last one says where it ends, and what was withheld from it."""
    response, size = pb.ReplayEventsResponse(), 0
    async for start in in_turns(len(page.events)):
        for event in page.events[start : start + TURN]:
            if size >= REPLAY_BYTES:
                yield response
                response, size = pb.ReplayEventsResponse(), 0
            add_replayed(response, event)
            size += len(event.payload)
    response.withheld_count = page.withheld_count
    response.end.CopyFrom(place_to_pb(page.end))
    yield response
