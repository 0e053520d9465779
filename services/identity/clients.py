"""Identity's ports over gRPC to other services."""

from collections.abc import Mapping, Sequence

import grpc
from comity.consent.v1 import consent_service_pb2_grpc as pb_grpc
from comity.consent.v1.consent_service_pb2 import EvaluateRequest

from services.chassis.errors import Kind, ServiceError
from services.chassis.rpc_client import call
from services.identity import wire
from services.identity.domain.permission import Side, Signals, Word

TIMEOUT_S = 1.0


class GrpcConsentReader:
    """handlers.ConsentReader over consent.Evaluate.

    Every question is a call of its own, sent when it is asked: never cached, never shared.
    """

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float = TIMEOUT_S) -> None:
        self._stub = pb_grpc.ConsentServiceStub(channel)
        self._timeout_s = timeout_s

    async def words(self, asked: Sequence[Side], purposes: Sequence[str], signals: Signals) -> list[Mapping[str, Word]]:
        """See handlers.ConsentReader."""
        return await self._words(wire.evaluate_request(asked, purposes, signals))

    async def refusing(self, member_ids: Sequence[str]) -> frozenset[str]:
        """See handlers.ConsentReader."""
        if not member_ids:
            return frozenset()
        words = await self._words(wire.refusals_request(member_ids))
        return frozenset(one for one, said in zip(member_ids, words, strict=True) if Word.NO in said.values())

    async def _words(self, request: EvaluateRequest) -> list[Mapping[str, Word]]:
        try:
            response = await call(self._stub.Evaluate, request, self._timeout_s)
        except ServiceError as error:
            if error.kind not in (Kind.UNAVAILABLE, Kind.DEADLINE):
                raise
            raise ServiceError(
                Kind.UNAVAILABLE,
                "CONSENT_UNAVAILABLE",
                "whether the persons may be linked cannot be told now; nothing was linked: try again",
                retry_after_s=1.0,
            ) from error
        words = wire.words_of(response)
        if len(words) != len(request.queries):
            # A side that was left out must not pass for one that refused nothing.
            raise ServiceError(Kind.INTERNAL, "VERDICTS_MIXED_UP", "consent answered for other persons than were asked")
        return words
