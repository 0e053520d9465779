"""PrivacyService as the commands ask it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC
from typing import Any

import grpc
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import privacy_service_pb2 as pb
from google.protobuf.json_format import MessageToDict

from cli.connections import Services
from services.chassis.rpc_client import call_again
from services.chassis.status import from_call_error

TIMEOUT_S = 15.0
EXPORT_TIMEOUT_S = 300.0
POLL_S = 0.25


async def export_records(
    services: Services, subject: types_pb.SubjectRef, access: types_pb.Access
) -> AsyncIterator[dict[str, Any]]:
    """Everything held, as an export's lines; a decision's content has its explanation.

    Raises:
        ServiceError: as of Export, also in the middle: what came before it is not the whole.
    """
    request = pb.ExportRequest(subject=subject, access=access)
    try:
        async for page in services.privacy.Export(request, timeout=EXPORT_TIMEOUT_S):
            for record in page.records:
                yield _line(page.service, record)
    except grpc.aio.AioRpcError as error:
        raise from_call_error(error, "consent.Export") from error


async def until_erased(
    services: Services, erasure_id: str, tell: Callable[[pb.GetErasureResponse], None]
) -> pb.GetErasureResponse:
    """How it ended, told each time how far it is. Waits for ever: so does the erasure."""
    while True:
        answer: pb.GetErasureResponse = await call_again(
            services.privacy.GetErasure, pb.GetErasureRequest(erasure_id=erasure_id), TIMEOUT_S
        )
        tell(answer)
        if answer.state == pb.ERASURE_STATE_COMPLETED:
            return answer
        await asyncio.sleep(POLL_S)


def _line(service: str, record: holdings_pb.HeldRecord) -> dict[str, Any]:
    line: dict[str, Any] = {
        "service": service,
        "store": record.store,
        "name": record.name,
        "schema": record.schema,
        "member_id": record.member_id,
    }
    if record.HasField("occurred_at"):
        line["occurred_at"] = record.occurred_at.ToDatetime(tzinfo=UTC).isoformat()
    return {**line, "content": MessageToDict(record.content)}
