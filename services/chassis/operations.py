"""comity.common.v1.OperationsService: what of a process an operator must know; chassis.lifecycle mounts it."""

from typing import Any, TypeAlias

import grpc
from comity.common.v1 import operations_pb2 as pb
from comity.common.v1 import operations_pb2_grpc as pb_grpc

from services.chassis.alarms import standing
from services.chassis.dead_letters import DeadLetters, Letter
from services.chassis.errors import Kind, ServiceError

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class OperationsService(pb_grpc.OperationsServiceServicer):
    """OperationsService of this process.

    Args:
        letters: of the service; None where it keeps none.
    """

    letters: DeadLetters | None = None

    async def ListAlarms(  # noqa: N802
        self, request: pb.ListAlarmsRequest, context: Context
    ) -> pb.ListAlarmsResponse:
        """The alarms that stand, the one that has stood longest first."""
        response = pb.ListAlarmsResponse()
        for alarm, since in standing().items():
            told = response.alarms.add(name=alarm.label, sentence=alarm.sentence, remedy=alarm.remedy)
            told.since.FromDatetime(since)
        return response

    async def ListDeadLetters(  # noqa: N802
        self, request: pb.ListDeadLettersRequest, context: Context
    ) -> pb.ListDeadLettersResponse:
        """A page of what was put aside."""
        letters = self._kept()
        page, count = await letters.after(request.after, request.limit)
        told = [_letter_to_pb(letter, can_retry=letters.can_retry(letter)) for letter in page]
        return pb.ListDeadLettersResponse(letters=told, count=count)

    async def RetryDeadLetters(  # noqa: N802
        self, request: pb.RetryDeadLettersRequest, context: Context
    ) -> pb.RetryDeadLettersResponse:
        """Try each again, on its own merits."""
        response = pb.RetryDeadLettersResponse()
        for letter_id in request.ids:
            refusal = await self._kept().retry(letter_id)
            told = response.letters.add(id=letter_id)
            if refusal is not None:
                told.reason, told.detail = refusal.reason, refusal.message
        return response

    async def DiscardDeadLetters(  # noqa: N802
        self, request: pb.DiscardDeadLettersRequest, context: Context
    ) -> pb.DiscardDeadLettersResponse:
        """Drop them."""
        return pb.DiscardDeadLettersResponse(count=await self._kept().discard(request.ids))

    def _kept(self) -> DeadLetters:
        if self.letters is None:
            raise ServiceError(Kind.FAILED_PRECONDITION, "KEEPS_NO_LETTERS", "This service puts nothing aside.")
        return self.letters


def _letter_to_pb(letter: Letter, *, can_retry: bool) -> pb.DeadLetter:
    told = pb.DeadLetter(
        id=letter.id,
        source=letter.source,
        consumer=letter.consumer,
        channel=letter.channel,
        event_id=letter.event_id,
        type=letter.type,
        reason=letter.reason,
        detail=letter.detail,
        can_retry=can_retry,
    )
    if letter.received_at is not None:
        told.received_at.FromDatetime(letter.received_at)
    return told
