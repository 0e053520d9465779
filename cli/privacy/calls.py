"""PrivacyService as the commands ask it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC
from typing import Any

import grpc
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import types_pb2 as types_pb
from comity.consent.v1 import privacy_service_pb2 as pb
from comity.decision.v1 import decision_service_pb2 as decision_pb
from google.protobuf.json_format import MessageToDict

from cli.connections import Services
from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call
from services.chassis.status import from_call_error

TIMEOUT_S = 15.0
EXPORT_TIMEOUT_S = 300.0
POLL_S = 0.25
# Each explanation is a call; of more decisions than this the export holds the log's records alone.
EXPLAINED_MAX = 2_000
DECISION_MADE = "comity.decision.v1.DecisionMade"
EXPLANATION = "explanation"


async def export_records(
    services: Services, subject: types_pb.SubjectRef, access: types_pb.Access
) -> AsyncIterator[dict[str, Any]]:
    """Everything held, as an export's lines; then an explanation of each decision.

    Raises:
        ServiceError: as of Export, also in the middle: what came before it is not the whole.
    """
    request = pb.ExportRequest(subject=subject, access=access)
    decisions: dict[str, str] = {}
    try:
        async for page in services.privacy.Export(request, timeout=EXPORT_TIMEOUT_S):
            for record in page.records:
                line = _line(page.service, record)
                if record.schema == DECISION_MADE and len(decisions) < EXPLAINED_MAX:
                    decisions[str(line["content"].get("decision_id", ""))] = record.member_id
                yield line
    except grpc.aio.AioRpcError as error:
        raise from_call_error(error) from error
    for decision_id, member_id in decisions.items():
        explained = await _explanation(services, decision_id, access) if decision_id else None
        if explained is not None:
            yield {
                "service": "decision",
                "store": "postgres",
                "name": "events",
                "schema": EXPLANATION,
                "member_id": member_id,
                "content": explained,
            }


async def until_erased(
    services: Services, erasure_id: str, tell: Callable[[pb.GetErasureResponse], None]
) -> pb.GetErasureResponse:
    """How it ended, told each time how far it is. Waits for ever: so does the erasure."""
    while True:
        answer: pb.GetErasureResponse = await call(
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


async def _explanation(services: Services, decision_id: str, access: types_pb.Access) -> dict[str, Any] | None:
    """Why it came out so; None for one whose site is no longer kept."""
    request = decision_pb.ExplainRequest(decision_id=decision_id, access=access)
    try:
        answer = await call(services.decision.Explain, request, TIMEOUT_S)
    except ServiceError as error:
        if error.kind is Kind.NOT_FOUND:
            return None
        raise
    steps = [{"stage": step.stage, "finding": step.finding} for step in answer.steps]
    return {"decision_id": decision_id, "steps": steps}
