"""The gRPC faces: unpack, call the use case, pack."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from comity.decision.v1 import decision_service_pb2 as pb
from comity.decision.v1 import decision_service_pb2_grpc as pb_grpc

from services.chassis.envelope import from_position, to_position
from services.chassis.errors import Kind, ServiceError, invalid
from services.chassis.ports import Access
from services.chassis.reads import UNSTATED, access_of, begin
from services.decision.handlers.catalog import ApplySite, DescribeSite, ListItems, UpsertItems
from services.decision.handlers.decide import Decide
from services.decision.handlers.inspect import InspectDecisions
from services.decision.handlers.past import RecordDecisions
from services.decision.handlers.refresh import Refresher
from services.decision.handlers.releases import IDLE_S_MAX, ActivateModel, GetModel, ListModels, Part, RegisterModel
from services.decision.wire.calls import (
    answers_to_pb,
    decide_from_pb,
    explanation_to_pb,
    past_from_pb,
    past_result_to_pb,
    replayed_to_pb,
)
from services.decision.wire.facts import declared_items, described_to_pb, items_to_pb, sent_site
from services.decision.wire.record import record_to_pb
from services.decision.wire.release import announced_from_pb, model_to_pb

# Of a file that is given out: large enough to be few, small enough for one message.
CHUNK_BYTES = 512 * 1024

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class DecisionService(pb_grpc.DecisionServiceServicer):
    """DecisionService over the use cases."""

    def __init__(self, *, decide: Decide, record: RecordDecisions, inspect: InspectDecisions) -> None:
        self._decide = decide
        self._record = record
        self._inspect = inspect

    async def Decide(self, request: pb.DecideRequest, context: Context) -> pb.DecideResponse:  # noqa: N802
        """Decide for each placement."""
        return answers_to_pb(await self._decide(decide_from_pb(request), context.peer()))

    async def Preview(self, request: pb.PreviewRequest, context: Context) -> pb.PreviewResponse:  # noqa: N802
        """Say what Decide would answer."""
        shown = await self._decide.preview(decide_from_pb(request.request), context.peer())
        return pb.PreviewResponse(answer=answers_to_pb(shown))

    async def RecordDecisions(  # noqa: N802
        self, request: pb.RecordDecisionsRequest, context: Context
    ) -> pb.RecordDecisionsResponse:
        """Record slates of another system."""
        results = await self._record([past_from_pb(decision) for decision in request.decisions])
        position = max(result.position for result in results)
        return pb.RecordDecisionsResponse(
            results=[past_result_to_pb(result) for result in results], position=to_position(position)
        )

    async def GetDecision(self, request: pb.GetDecisionRequest, context: Context) -> pb.GetDecisionResponse:  # noqa: N802
        """Give a decision as it was logged."""
        record = await self._inspect.get(request.decision_id, begin(access_of(request.access)).access)
        return pb.GetDecisionResponse(decision=record_to_pb(record))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:  # noqa: N802
        """Say why a decision came out as it did."""
        access = begin(access_of(request.access)).access
        return explanation_to_pb(*await self._inspect.explain(request.decision_id, access, request.item_id))

    async def Replay(self, request: pb.ReplayRequest, context: Context) -> pb.ReplayResponse:  # noqa: N802
        """Decide again and compare."""
        begin(Access(UNSTATED, "replay of a decision"))
        return replayed_to_pb(await self._inspect.replay(request.decision_id))


class CatalogService(pb_grpc.CatalogServiceServicer):
    """CatalogService over the use cases."""

    def __init__(
        self, *, apply: ApplySite, upsert: UpsertItems, describe: DescribeSite, listing: ListItems, refresher: Refresher
    ) -> None:
        self._apply = apply
        self._list = listing
        self._upsert = upsert
        self._describe = describe
        self._refresher = refresher

    async def ApplySite(self, request: pb.ApplySiteRequest, context: Context) -> pb.ApplySiteResponse:  # noqa: N802
        """Let a site decide."""
        version, changed = await self._apply(sent_site(request), validate_only=request.validate_only)
        return pb.ApplySiteResponse(site_version=version, changed=changed)

    async def UpsertItems(self, request: pb.UpsertItemsRequest, context: Context) -> pb.UpsertItemsResponse:  # noqa: N802
        """Enter or change items."""
        version, position = await self._upsert(declared_items(request), validate_only=request.validate_only)
        return pb.UpsertItemsResponse(catalog_version=str(version), position=to_position(position))

    async def DescribeSite(self, request: pb.DescribeSiteRequest, context: Context) -> pb.DescribeSiteResponse:  # noqa: N802
        """Say what decides now."""
        return described_to_pb(*await self._describe())

    async def ListItems(  # noqa: N802
        self, request: pb.ListItemsRequest, context: Context
    ) -> AsyncIterator[pb.ListItemsResponse]:
        """Give the items."""
        async for page in self._list():
            for response in items_to_pb(page):
                yield response

    async def AwaitItemColumns(  # noqa: N802
        self, request: pb.AwaitItemColumnsRequest, context: Context
    ) -> pb.AwaitItemColumnsResponse:
        """Wait for item columns."""
        version = await self._refresher.await_columns(
            from_position(request.behavior_position), from_position(request.catalog_position)
        )
        return pb.AwaitItemColumnsResponse(columns_version=version)


class ReleaseService(pb_grpc.ReleaseServiceServicer):
    """ReleaseService over the use cases."""

    def __init__(self, *, register: RegisterModel, activate: ActivateModel, models: ListModels, get: GetModel) -> None:
        self._get = get
        self._register = register
        self._activate = activate
        self._models = models

    async def RegisterModel(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.RegisterModelRequest], context: Context
    ) -> pb.RegisterModelResponse:
        """Take a model in."""
        try:
            first = await asyncio.wait_for(anext(aiter(request_iterator), None), IDLE_S_MAX)
        except TimeoutError as error:
            raise ServiceError(
                Kind.DEADLINE, "UPLOAD_TOO_SLOW", f"no header came for {IDLE_S_MAX:g} s; send the file again"
            ) from error
        if first is None or first.WhichOneof("part") != "header":
            raise invalid("header", "is missing; the first message holds it")
        model, already = await self._register(announced_from_pb(first.header), _parts(request_iterator))
        return pb.RegisterModelResponse(model_version=model.version, already_registered=already)

    async def ActivateModel(self, request: pb.ActivateModelRequest, context: Context) -> pb.ActivateModelResponse:  # noqa: N802
        """Let a model decide."""
        return pb.ActivateModelResponse(model_version=await self._activate(request.name, request.sha256))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        """Give the registered models."""
        return pb.ListModelsResponse(models=[model_to_pb(model) for model in await self._models()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> AsyncIterator[pb.GetModelResponse]:  # noqa: N802
        """Give a model's file."""
        data = await self._get(request.name, request.sha256)
        for start in range(0, len(data), CHUNK_BYTES):
            yield pb.GetModelResponse(chunk=data[start : start + CHUNK_BYTES])


async def _parts(requests: AsyncIterator[pb.RegisterModelRequest]) -> AsyncIterator[Part]:
    async for request in requests:
        part = request.WhichOneof("part")
        if part == "chunk":
            yield request.chunk
        elif part == "training_members":
            yield tuple(request.training_members.member_ids)
        else:
            raise invalid("header", "comes once, with the first message; the others hold chunks or training members")
