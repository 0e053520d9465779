"""Consent's gRPC face: unpack, call, pack."""

from typing import Any

from comity.consent.v1 import consent_service_pb2 as pb
from comity.consent.v1 import consent_service_pb2_grpc as pb_grpc

from services.chassis.access import access_of
from services.consent import wire
from services.consent.handlers.ledger import ConsentHandlers


class ConsentService(pb_grpc.ConsentServiceServicer):
    """comity.consent.v1.ConsentService."""

    def __init__(self, handlers: ConsentHandlers) -> None:
        self._handlers = handlers

    async def Record(self, request: pb.RecordRequest, context: Any) -> pb.RecordResponse:  # noqa: N802
        """Record answers to purposes."""
        changed = await self._handlers.record(wire.who_of(request.subject), wire.record_of(request))
        return pb.RecordResponse(subject_id=changed.subject_id, consent_version=changed.consent_version)

    async def Revoke(self, request: pb.RevokeRequest, context: Any) -> pb.RevokeResponse:  # noqa: N802
        """Take consent back."""
        changed = await self._handlers.revoke(wire.who_of(request.subject), wire.revoke_of(request))
        return pb.RevokeResponse(
            subject_id=changed.subject_id, consent_version=changed.consent_version, purposes=changed.purposes
        )

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:  # noqa: N802
        """Whether data may be used."""
        evaluations, policy_version = await self._handlers.evaluate([wire.query_of(one) for one in request.queries])
        return pb.EvaluateResponse(
            evaluations=[wire.evaluation(one) for one in evaluations], policy_version=policy_version
        )

    async def History(self, request: pb.HistoryRequest, context: Any) -> pb.HistoryResponse:  # noqa: N802
        """What a person answered."""
        answers = await self._handlers.history(wire.who_of(request.subject), access_of(request.access))
        return pb.HistoryResponse(records=[wire.consent_record(member_id, one) for member_id, one in answers])

    async def PublishPurposes(  # noqa: N802
        self, request: pb.PublishPurposesRequest, context: Any
    ) -> pb.PublishPurposesResponse:
        """Declare the purposes, notices and jurisdictions of the site."""
        version = await self._handlers.publish(wire.declaration_of(request), validate_only=request.validate_only)
        return pb.PublishPurposesResponse(policy_version=version)
