"""What features asks of others: the behavior of erased members, once more, from feedback's log."""

from collections.abc import AsyncIterator, Sequence

import grpc
from comity.feedback.v1 import feedback_service_pb2 as pb
from comity.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub

from services.chassis.ports import Access
from services.chassis.reads import new_operation, operation_to_pb
from services.chassis.rpc_client import stream
from services.features.domain.members import Behavior
from services.features.wire import replayed_from_pb

# A person's whole behavior; a step of an erasure that takes longer is taken again.
REPLAY_TIMEOUT_S = 60.0


class FeedbackLog:
    """store.holdings.BehaviorLog over feedback."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = FeedbackServiceStub(channel)

    async def behavior_of(self, member_ids: Sequence[str]) -> AsyncIterator[list[tuple[str, Behavior]]]:
        """See store.holdings.BehaviorLog."""
        operation = new_operation(Access("features", "what an erased person did is subtracted"))
        request = pb.ReplayEventsRequest(
            kinds=[pb.REPLAY_KIND_BEHAVIOR], member_ids=member_ids, operation=operation_to_pb(operation)
        )
        async for response in stream(self._stub.ReplayEvents, request, REPLAY_TIMEOUT_S):
            yield [replayed_from_pb(event) for event in response.events]
