"""comity.common.v1.OperationsService: what of a process an operator must know; chassis.lifecycle mounts it."""

from typing import Any, TypeAlias

import grpc
from comity.common.v1 import operations_pb2 as pb
from comity.common.v1 import operations_pb2_grpc as pb_grpc

from services.chassis.alarms import standing

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class OperationsService(pb_grpc.OperationsServiceServicer):
    """OperationsService of this process."""

    async def ListAlarms(  # noqa: N802
        self, request: pb.ListAlarmsRequest, context: Context
    ) -> pb.ListAlarmsResponse:
        """The alarms that stand, the one that has stood longest first."""
        response = pb.ListAlarmsResponse()
        for alarm, since in standing().items():
            told = response.alarms.add(name=alarm.label, sentence=alarm.sentence, remedy=alarm.remedy)
            told.since.FromDatetime(since)
        return response
