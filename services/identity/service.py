"""Identity's gRPC face: unpack, call, pack."""

from typing import Any

from comity.common.v1 import types_pb2 as types_pb
from comity.identity.v1 import identity_service_pb2 as pb
from comity.identity.v1 import identity_service_pb2_grpc as pb_grpc

from services.chassis.reads import access_of, operation_of
from services.identity import wire
from services.identity.handlers import IdentityHandlers, KeyHandlers


class IdentityService(pb_grpc.IdentityServiceServicer):
    """comity.identity.v1.IdentityService."""

    def __init__(self, handlers: IdentityHandlers) -> None:
        self._handlers = handlers

    async def Resolve(self, request: pb.ResolveRequest, context: Any) -> pb.ResolveResponse:  # noqa: N802
        """Who each query means."""
        access = access_of(request.access) if request.HasField("access") else None
        results = await self._handlers.resolve([wire.query_of(query) for query in request.queries], access)
        return pb.ResolveResponse(subjects=[wire.resolved(result) for result in results])

    async def Link(self, request: pb.LinkRequest, context: Any) -> pb.LinkResponse:  # noqa: N802
        """State that identities belong to one person."""
        signals = request.consent_signals if request.HasField("consent_signals") else None
        identities = wire.identities_of(request.identities)
        linked, subject = await self._handlers.link(request.request_id, identities, signals)
        return pb.LinkResponse(
            subject=wire.resolved(subject),
            merged=linked.merged,
            link_id=linked.link_id,
            gave_way_member_ids=linked.gave_way,
        )

    async def Unlink(self, request: pb.UnlinkRequest, context: Any) -> pb.UnlinkResponse:  # noqa: N802
        """Take a link back."""
        subjects = await self._handlers.unlink(request.request_id, request.link_id)
        return pb.UnlinkResponse(subjects=[wire.resolved(subject) for subject in subjects])

    async def DescribeSubject(  # noqa: N802
        self, request: pb.DescribeSubjectRequest, context: Any
    ) -> pb.DescribeSubjectResponse:
        """Who is meant, and by which links."""
        subject, links = await self._handlers.describe(wire.query_of(request.subject), access_of(request.access))
        return pb.DescribeSubjectResponse(
            subject=wire.resolved(subject), links=[wire.subject_link(link) for link in links]
        )

    async def PublishPlaceholders(  # noqa: N802
        self, request: pb.PublishPlaceholdersRequest, context: Any
    ) -> pb.PublishPlaceholdersResponse:
        """Values that name nobody, beside the built-in ones."""
        version, changed = await self._handlers.publish_placeholders(
            request.values, validate_only=request.validate_only
        )
        return pb.PublishPlaceholdersResponse(version=version, changed=changed)


class KeyService(pb_grpc.KeyServiceServicer):
    """comity.identity.v1.KeyService."""

    def __init__(self, handlers: KeyHandlers) -> None:
        self._handlers = handlers

    async def GetDataKeys(self, request: pb.GetDataKeysRequest, context: Any) -> pb.GetDataKeysResponse:  # noqa: N802
        """The data keys of members."""
        operations = [operation_of(operation) for operation in request.operations or [types_pb.Operation()]]
        keys = await self._handlers.data_keys(request.member_ids, mint=request.mint, operations=operations)
        return pb.GetDataKeysResponse(keys=[wire.data_key(key) for key in keys])
