"""Consent's gRPC face: unpack, call, pack."""

from collections.abc import AsyncIterator
from typing import Any

from comity.consent.v1 import consent_service_pb2 as pb
from comity.consent.v1 import consent_service_pb2_grpc as pb_grpc
from comity.consent.v1 import privacy_service_pb2 as privacy_pb
from comity.consent.v1 import privacy_service_pb2_grpc as privacy_grpc

from services.chassis.reads import access_of, begin
from services.consent import wire
from services.consent.handlers.ledger import ConsentHandlers
from services.consent.handlers.privacy import PrivacyHandlers
from services.consent.store.journal import PostgresJournal


class ConsentService(pb_grpc.ConsentServiceServicer):
    """comity.consent.v1.ConsentService."""

    def __init__(self, handlers: ConsentHandlers, journal: PostgresJournal | None = None) -> None:
        self._handlers = handlers
        self._journal = journal

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
            evaluations=[wire.evaluation(one) for one in evaluations],
            policy_version=policy_version,
            decide_budget_ms=self._handlers.decide_budget_ms,
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

    async def DescribeConsent(  # noqa: N802
        self, request: pb.DescribeConsentRequest, context: Any
    ) -> pb.DescribeConsentResponse:
        """Say what this process keeps to."""
        described = pb.DescribeConsentResponse(decide_budget_ms=self._handlers.decide_budget_ms)
        if self._journal is not None:
            described.journal.entries, described.journal.lag_s = await self._journal.lag_s()
        if request.with_purposes:
            described.purposes.extend(await self._handlers.purposes())
        return described


class PrivacyService(privacy_grpc.PrivacyServiceServicer):
    """comity.consent.v1.PrivacyService."""

    def __init__(self, handlers: PrivacyHandlers) -> None:
        self._handlers = handlers

    async def Export(  # noqa: N802
        self, request: privacy_pb.ExportRequest, context: Any
    ) -> AsyncIterator[privacy_pb.ExportResponse]:
        """Hand out everything that is held."""
        async for service, records in self._handlers.export(
            wire.who_of(request.subject), begin(access_of(request.access)).access
        ):
            yield privacy_pb.ExportResponse(service=service, records=records)

    async def Rectify(self, request: privacy_pb.RectifyRequest, context: Any) -> privacy_pb.RectifyResponse:  # noqa: N802
        """Put recorded behavior right."""
        count = await self._handlers.rectify(wire.who_of(request.subject), request, access_of(request.access))
        return privacy_pb.RectifyResponse(count=count)

    async def Erase(self, request: privacy_pb.EraseRequest, context: Any) -> privacy_pb.EraseResponse:  # noqa: N802
        """Begin an erasure."""
        erasure_id = await self._handlers.erase(
            request.request_id, wire.who_of(request.subject), begin(access_of(request.access)).access
        )
        return privacy_pb.EraseResponse(erasure_id=erasure_id)

    async def GetErasure(self, request: privacy_pb.GetErasureRequest, context: Any) -> privacy_pb.GetErasureResponse:  # noqa: N802
        """Say how far an erasure is."""
        return wire.erasure_response(await self._handlers.erasure(request.erasure_id))

    async def ListErasures(  # noqa: N802
        self, request: privacy_pb.ListErasuresRequest, context: Any
    ) -> privacy_pb.ListErasuresResponse:
        """Give the ledger of erasures."""
        erasures = await self._handlers.erasures_after(request.after)
        return privacy_pb.ListErasuresResponse(erasures=[wire.erasure_entry(one) for one in erasures])

    async def GetReceipt(self, request: privacy_pb.GetReceiptRequest, context: Any) -> privacy_pb.GetReceiptResponse:  # noqa: N802
        """Give the receipt of a change."""
        return wire.receipt_response(
            await self._handlers.receipt(
                wire.who_of(request.subject), request.consent_version, access_of(request.access)
            )
        )

    async def GetReceiptKey(  # noqa: N802
        self, request: privacy_pb.GetReceiptKeyRequest, context: Any
    ) -> privacy_pb.GetReceiptKeyResponse:
        """Give the key that receipts are signed with."""
        return wire.receipt_key_response(self._handlers.receipt_key())

    async def Inventory(self, request: privacy_pb.InventoryRequest, context: Any) -> privacy_pb.InventoryResponse:  # noqa: N802
        """Give the record of processing."""
        return privacy_pb.InventoryResponse(
            services=[
                privacy_pb.ServiceHoldings(service=name, holdings=holdings)
                for name, holdings in await self._handlers.inventory()
            ]
        )
