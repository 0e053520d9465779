"""Consent's ports over gRPC to other services."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from comity.common.v1 import holdings_pb2 as holdings_pb
from comity.common.v1 import holdings_pb2_grpc as holdings_grpc
from comity.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from comity.identity.v1 import identity_service_pb2_grpc as pb_grpc

from services.chassis.deadline import shave
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.reads import operation_to_pb, running
from services.chassis.rpc_client import SHAVE_S, call
from services.chassis.status import from_call_error
from services.consent import wire
from services.consent.domain.commands import Person, Who
from services.consent.domain.erasure import Step
from services.consent.domain.receipts import Counts

SUBJECT_ERASED = "SUBJECT_ERASED"
NOBODY_NAMED = "NOBODY_NAMED"
TIMEOUT_S = 1.0
STEP_TIMEOUT_S = 60.0
EXPORT_TIMEOUT_S = 300.0


class GrpcIdentityReader:
    """handlers.ledger.IdentityReader over identity.Resolve."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float = TIMEOUT_S) -> None:
        self._stub = pb_grpc.IdentityServiceStub(channel)
        self._timeout_s = timeout_s

    async def person(self, who: Who) -> Person:
        """See handlers.ledger.IdentityReader."""
        try:
            response = await call(self._stub.Resolve, wire.resolve_request(who), self._timeout_s)
        except ServiceError as error:
            if error.kind not in (Kind.UNAVAILABLE, Kind.DEADLINE):
                raise
            raise ServiceError(
                Kind.UNAVAILABLE,
                "IDENTITY_UNAVAILABLE",
                "who the person is cannot be told now: try again, or give the subject_id",
                retry_after_s=1.0,
            ) from error
        if response.subjects[0].error_reason == SUBJECT_ERASED:
            raise ServiceError(Kind.FAILED_PRECONDITION, SUBJECT_ERASED, f"subject: {response.subjects[0].error}")
        if response.subjects[0].error_reason == NOBODY_NAMED:
            raise invalid("subject", response.subjects[0].error, reason=NOBODY_NAMED)
        person = wire.person_of(response)
        if isinstance(person, str):
            raise invalid("subject", person, reason="SUBJECT_INVALID")
        return person


class GrpcParticipant:
    """handlers.privacy_ports.Participant over another service's HoldingsService.

    Args:
        service: its name, as errors tell it.
        timeout_s: of one step; deleting much is given time, and what is not done in it is done at the next try.
        export_timeout_s: of a whole export.
    """

    def __init__(
        self,
        service: str,
        channel: grpc.aio.Channel,
        *,
        timeout_s: float = STEP_TIMEOUT_S,
        export_timeout_s: float = EXPORT_TIMEOUT_S,
    ) -> None:
        self._service = service
        self._stub = holdings_grpc.HoldingsServiceStub(channel)
        self._timeout_s = timeout_s
        self._export_timeout_s = export_timeout_s

    async def take(self, step: Step, erasure_id: str, member_ids: Sequence[str]) -> Counts:
        """See handlers.privacy_ports.Participant."""
        # A caller waits for the first step; who does not answer it soon is asked again behind the caller's back.
        timeout_s = TIMEOUT_S if step is Step.SUPPRESS else self._timeout_s
        request = wire.erase_request(step, erasure_id, member_ids)
        return wire.counts_of(await call(self._stub.EraseHoldings, request, timeout_s))

    async def export(self, member_ids: Sequence[str]) -> AsyncIterator[Any]:
        """See handlers.privacy_ports.Participant. A page is the records of one ExportHoldingsResponse."""
        operation = running()
        assert operation is not None, "whatever asks what is held is an operation"
        request = holdings_pb.ExportHoldingsRequest(member_ids=member_ids, operation=operation_to_pb(operation))
        try:
            async for page in self._stub.ExportHoldings(request, timeout=min(self._export_timeout_s, shave(SHAVE_S))):
                yield page.records
        except grpc.aio.AioRpcError as error:
            raise _away(self._service, from_call_error(error)) from error

    async def describe(self) -> Any:
        """See handlers.privacy_ports.Participant: the Holding messages."""
        try:
            response = await call(self._stub.DescribeHoldings, holdings_pb.DescribeHoldingsRequest(), TIMEOUT_S)
        except ServiceError as error:
            raise _away(self._service, error) from error
        return response.holdings


class GrpcRectifier:
    """handlers.privacy_ports.Rectifier over feedback."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float = STEP_TIMEOUT_S) -> None:
        self._stub = feedback_grpc.RectificationServiceStub(channel)
        self._timeout_s = timeout_s

    async def rectify(self, member_ids: Sequence[str], request: Any) -> int:
        """See handlers.privacy_ports.Rectifier; *request*: a RectifyRequest."""
        try:
            response = await call(
                self._stub.RectifyBehavior, wire.rectify_request(member_ids, request), self._timeout_s
            )
        except ServiceError as error:
            if error.kind in (Kind.UNAVAILABLE, Kind.DEADLINE):
                raise _away("feedback", error) from error
            raise
        return int(response.count)


def _away(service: str, error: ServiceError) -> ServiceError:
    """A part would pass for the whole, so whatever keeps a service from answering fails the call, and says which."""
    return ServiceError(
        Kind.UNAVAILABLE,
        "PARTICIPANT_UNAVAILABLE",
        f"{service} does not answer ({error.reason}), and without it the answer would not be the whole: try again",
        retry_after_s=1.0,
    )
