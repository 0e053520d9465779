"""The gRPC face: unpack, call the use case, pack."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from comity.features.v1 import feature_set_pb2
from comity.features.v1 import features_service_pb2 as pb
from comity.features.v1 import features_service_pb2_grpc as pb_grpc

from services.chassis.deadline import remaining_s
from services.chassis.envelope import from_position, to_position
from services.chassis.errors import Kind, ServiceError
from services.features.domain.requests import Source
from services.features.handlers import AwaitFolded, ItemColumns, ReadFeatures, checked_set, known_set
from services.features.store import Books
from services.features.wire import (
    answers_to_pb,
    changed_to_pb,
    columns_to_pb,
    feature_set_to_pb,
    features_from_pb,
    queries_from_pb,
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# A caller without a deadline still gets an answer.
AWAIT_MAX_S = 60.0


class FeatureService(pb_grpc.FeatureServiceServicer):
    """FeatureService over the use cases."""

    def __init__(self, *, books: Books, read: ReadFeatures, columns: ItemColumns, await_folded: AwaitFolded) -> None:
        self._books = books
        self._read = read
        self._columns = columns
        self._await_folded = await_folded

    async def GetFeatures(  # noqa: N802
        self, request: pb.GetFeaturesRequest, context: Context
    ) -> pb.GetFeaturesResponse:
        """Vectors of many subjects."""
        queries = queries_from_pb(request.queries)
        return answers_to_pb(queries, await self._read(request.feature_set_version, queries))

    async def GetItemColumns(  # noqa: N802
        self, request: pb.GetItemColumnsRequest, context: Context
    ) -> AsyncIterator[pb.GetItemColumnsResponse]:
        """The newest snapshot; nothing when the caller holds it."""
        columns = await self._columns.columns(request.feature_set_version)
        if columns.version == request.held_version:
            return
        offsets = None
        if request.accepts_partial:
            offsets = self._columns.changed_since(request.feature_set_version, request.held_version)
        for chunk in columns_to_pb(columns) if offsets is None else changed_to_pb(columns, offsets):
            yield chunk

    async def DescribeFeatureSet(  # noqa: N802
        self, request: pb.DescribeFeatureSetRequest, context: Context
    ) -> pb.DescribeFeatureSetResponse:
        """A published set."""
        version = request.version or (await self._books.refresh()).active
        await known_set(self._books, version)
        stored = await self._books.message(version)
        if stored is None:
            raise ServiceError(Kind.NOT_FOUND, "FEATURE_SET_UNKNOWN", "version: no such feature set")
        return pb.DescribeFeatureSetResponse(feature_set=feature_set_pb2.FeatureSet.FromString(stored))

    async def PublishFeatureSet(  # noqa: N802
        self, request: pb.PublishFeatureSetRequest, context: Context
    ) -> pb.PublishFeatureSetResponse:
        """Compile, and unless only asked to validate, keep and activate."""
        feature_set = await self._books.named(checked_set(features_from_pb(request.features)))
        message = feature_set_to_pb(feature_set, request.features)
        if not request.validate_only:
            await self._books.publish(message)
            await self._columns.columns(feature_set.version)
        return pb.PublishFeatureSetResponse(feature_set=message)

    async def AwaitPosition(  # noqa: N802
        self, request: pb.AwaitPositionRequest, context: Context
    ) -> pb.AwaitPositionResponse:
        """Wait until the source's events up to a position are visible."""
        left_s = remaining_s()
        timeout_s = AWAIT_MAX_S if left_s is None else min(left_s, AWAIT_MAX_S)
        reached = await self._await_folded(Source(request.source), from_position(request.position), timeout_s)
        return pb.AwaitPositionResponse(position=to_position(reached))
