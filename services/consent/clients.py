"""Consent's ports over gRPC to other services."""

import grpc
from comity.identity.v1 import identity_service_pb2_grpc as pb_grpc

from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.rpc_client import call
from services.consent import wire
from services.consent.domain.commands import Person, Who

TIMEOUT_S = 1.0


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
        person = wire.person_of(response)
        if isinstance(person, str):
            raise invalid("subject", person, reason="SUBJECT_INVALID")
        return person
